"""TFF's SQLite layout: the same examples as from HDF5; errors name split, client and row."""

from __future__ import annotations

import lzma
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedcli import datasets
from fedcli.datasets.importers import recognising, tff_sqlite
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.tf_example import read_emnist_examples, read_example
from fedcli.errors import DataError
from tests.kit.tff_databases import emnist_rows, example, part, varint, write

GREY = np.arange(48, dtype=np.uint8).reshape(3, 4, 4) * 5


def tff_pixels(levels: np.ndarray = GREY) -> np.ndarray:
    return (1 - levels / 255).astype(np.float32)


def small(path: Path, **options: Any) -> Path:
    rows = emnist_rows(tff_pixels(), [7, 0, 9])
    splits = {"digits_only_train": {"b": rows[:1], "a": rows[1:]}, "digits_only_test": {"b": rows}}
    return write(path, splits, **options)


def read(path: Path, folder: Path | None = None, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(format="tff-sqlite", **options), folder)


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def bad_row(tmp_path: Path, blob: Any) -> str:
    good = emnist_rows(tff_pixels(), [1, 2, 3])
    path = write(tmp_path / "bad.sqlite", {"digits_only_train": {"a": good[:1], "b": [blob]}})
    return message_of(path)


# ---- What is read --------------------------------------------------------------------------------


def test_real_sample_equals_the_hdf5_file(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "emnist_schema_sample.sqlite.lzma"
    assert recognising.recognise([path]) == "tff-sqlite"
    imported = recognising.read([path], ImportOptions(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (imported.format, imported.num_classes) == ("tff-sqlite", 10)
    assert imported.pixel_convention == "background"
    assert [len(table) for table in imported.tables.values()] == [1153, 127]
    for split, table in imported.tables.items():
        original = datasets.load(str(shared_data / f"mnist_writers_{split}.h5"))[0]
        assert len(table.owner_ids) == 12
        for number, client_id in enumerate(table.owner_ids):
            client = original.client(client_id)
            is_owned = table.owners == number
            np.testing.assert_array_equal(table.pixels[is_owned], client.pixels)
            np.testing.assert_array_equal(table.labels[is_owned], client.labels)
            assert (table.scale, table.offset) == (client.scale, client.offset)


def test_splits_clients_and_order_of_rows(tmp_path: Path) -> None:
    imported = read(small(tmp_path / "a.sqlite"))
    assert list(imported.tables) == ["train", "test"]
    train = imported.tables["train"]
    assert list(train.owner_ids) == ["a", "b"]
    assert train.owners.tolist() == [1, 0, 0]
    assert train.labels.tolist() == [7, 0, 9]
    np.testing.assert_array_equal(train.pixels, 255 - GREY)
    assert imported.tables["test"].owners.tolist() == [0, 0, 0]
    assert imported.same_people


def test_rows_of_clients_may_be_mixed(tmp_path: Path) -> None:
    rows = emnist_rows(tff_pixels(), [7, 0, 9])
    path = write(tmp_path / "a.sqlite", {"train": {"a": rows[:2], "b": rows[2:]}})
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE examples SET rowid = 10 WHERE rowid = 1")
    connection.close()
    table = read(path).tables["train"]
    assert table.owners.tolist() == [0, 1, 0]
    assert table.labels.tolist() == [0, 9, 7]


def test_all_characters_are_preferred_to_digits(tmp_path: Path) -> None:
    rows = emnist_rows(tff_pixels(), [7, 10, 61])
    splits = {"digits_only_train": {"a": rows[:1]}, "all_train": {"a": rows}}
    imported = read(write(tmp_path / "a.sqlite", splits))
    assert imported.tables["train"].labels.tolist() == [7, 10, 61]
    assert imported.num_classes == 62
    assert imported.class_names[61] == "z"
    assert imported.notes == ("splits that were not read: digits_only_train",)


def test_cifar_keeps_its_bytes_and_its_clients_are_other_people(tmp_path: Path) -> None:
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3) * 2
    rows = [example(image=each, label=[99], coarse_label=[3]) for each in image]
    imported = read(write(tmp_path / "a.sqlite", {"train": {"0": rows}, "test": {"0": rows}}))
    assert imported.tables["train"].pixels.dtype == np.uint8
    np.testing.assert_array_equal(imported.tables["train"].pixels, image)
    assert (imported.num_classes, imported.pixel_convention) == (100, "ink")
    assert not imported.same_people


@pytest.mark.parametrize(("client_id", "expected"), [("w0000", "ink"), ("f0000_14", "background")])
def test_pixels_are_measured_as_in_hdf5_unless_clients_are_emnist_writers(
    tmp_path: Path, client_id: str, expected: str
) -> None:
    pixels = np.zeros((3, 6, 6), np.float32)  # light signs on a dark ground
    pixels[:, 2:4, 2:4] = 1.0
    rows = emnist_rows(pixels, [7, 0, 9])
    found = read(write(tmp_path / "a.sqlite", {"digits_only_train": {client_id: rows}}))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group(f"examples/{client_id}")
        group.create_dataset("pixels", data=pixels)
        group.create_dataset("label", data=np.array([7, 0, 9], np.int32))
    same = recognising.read([tmp_path / "a.h5"], ImportOptions())
    assert found.pixel_convention == same.pixel_convention == expected
    assert found.description.polarity == same.description.polarity


def test_pixels_that_do_not_decide_follow_tff(tmp_path: Path) -> None:
    pixels = np.full((3, 6, 6), 0.25, np.float32)
    pixels[:, :, ::2] = 0.75
    found = read(write(tmp_path / "a.sqlite", {"train": {"a": emnist_rows(pixels, [7, 0, 9])}}))
    assert found.pixel_convention == "background"
    assert found.description.polarity.evidence == "TFF's feature 'pixels'"


def test_values_between_grey_levels_stay_float32(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 4, 4)
    path = write(tmp_path / "a.sqlite", {"train": {"a": emnist_rows(pixels, [0, 1, 2])}})
    table = read(path).tables["train"]
    assert table.pixels.dtype == np.float32
    np.testing.assert_array_equal(table.pixels, pixels)


@pytest.mark.parametrize("container", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_compressed_database_is_unpacked_and_removed(tmp_path: Path, container: int) -> None:
    plain = small(tmp_path / "a.sqlite")
    folder = tmp_path / "work"
    folder.mkdir()
    packed = tmp_path / "packed"
    packed.write_bytes(lzma.compress(plain.read_bytes(), container))
    assert recognising.recognise([packed]) == "tff-sqlite"
    np.testing.assert_array_equal(read(packed, folder).tables["train"].pixels, 255 - GREY)
    assert list(folder.iterdir()) == []


def test_fit_is_applied(tmp_path: Path) -> None:
    imported = read(small(tmp_path / "a.sqlite"), fit=lambda pixels: pixels[:, :2, :2])
    np.testing.assert_array_equal(imported.tables["train"].pixels, (255 - GREY)[:, :2, :2])


def test_table_is_scanned_and_nothing_sorted(tmp_path: Path) -> None:
    # Each of 99 splits has 1 % of the rows. For so few rows SQLite by itself would use the
    # index, and then sort the blobs.
    splits = {str(each): {"a": [b"x"] * 50} for each in range(99)}
    sql = "CREATE INDEX i ON examples (split_name, client_id); ANALYZE"
    path = write(tmp_path / "a.sqlite", splits, sql=sql)
    statements: list[str] = []
    connection = sqlite3.connect(path)
    connection.set_trace_callback(statements.append)
    list(tff_sqlite._groups(connection, "a", ["1", "2"]))
    connection.set_trace_callback(None)
    plan = connection.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()
    connection.close()
    assert [row[3] for row in plan] == ["SCAN examples"]


def test_reading_makes_no_other_file(tmp_path: Path) -> None:
    path = small(tmp_path / "a ? # %41.sqlite")
    path.chmod(0o400)
    read(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


# ---- The wire format -----------------------------------------------------------------------------


def test_vector_of_the_protobuf_library() -> None:
    features = read_example(bytes.fromhex("0a100a0e0a056c6162656c12051a030a0100"))
    assert list(features) == ["label"]
    np.testing.assert_array_equal(features["label"], np.array([0]))


@given(
    pixels=hnp.arrays(np.float32, (3, 784), elements=st.floats(width=32)),
    labels=st.lists(st.integers(0, 127), min_size=3, max_size=3),
    label_first=st.booleans(),
)
def test_fast_path_reads_what_the_general_one_reads(
    pixels: np.ndarray, labels: list[int], label_first: bool
) -> None:
    blobs = [
        example(label=[label], pixels=image)
        if label_first
        else example(pixels=image, label=[label])
        for image, label in zip(pixels, labels, strict=True)
    ]
    assert {len(blob) for blob in blobs} == {3175}
    fast = read_emnist_examples(blobs)
    assert fast is not None
    assert fast[0].tobytes() == pixels.tobytes()
    assert fast[1].tolist() == labels
    for blob, image, label in zip(blobs, *fast, strict=True):
        slow = read_example(blob)
        assert isinstance(slow["pixels"], np.ndarray)
        assert slow["pixels"].tobytes() == image.tobytes()
        assert list(slow["label"]) == [label]


def test_fast_path_leaves_everything_else_to_the_general_one() -> None:
    blob = example(label=[5], pixels=np.zeros(784, np.float32))
    fast = read_emnist_examples([blob])
    assert fast is not None
    wide = example(label=[200], pixels=np.zeros(784, np.float32))
    assert len(wide) == 3176
    assert read_emnist_examples([blob, wide]) is None
    for place in (0, 2, 5, 15, 20, 30, 38):
        changed = bytearray(blob)
        changed[place] ^= 0x80
        assert read_emnist_examples([bytes(changed)]) is None, place
    # The label's byte is changed so that it continues in the next byte. But the next byte is
    # the key of the pixels.
    changed = bytearray(blob)
    changed[blob.index(b"\x0a\x01\x05") + 2] = 0x85
    assert read_emnist_examples([bytes(changed)]) is None


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            hnp.arrays(np.int64, st.integers(0, 20)),
            hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)),
        ),
        max_size=4,
    )
)
def test_features_round_trip(features: dict[str, np.ndarray]) -> None:
    found = read_example(example(**features))
    assert list(found) == list(features)
    for name, values in features.items():
        got = found[name]
        assert isinstance(got, np.ndarray)
        assert got.dtype == values.dtype
        assert got.tobytes() == values.tobytes()


def test_unpacked_lists_are_read() -> None:
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (0.5, -1))
    ints = b"".join(b"\x08" + varint(value) for value in (1, -2))
    blob = part(
        1,
        part(1, part(1, b"f") + part(2, part(2, floats)))
        + part(1, part(1, b"i") + part(2, part(3, ints))),
    )
    found = read_example(blob)
    assert list(found["f"]) == [0.5, -1]
    assert list(found["i"]) == [1, -2]


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(blob: bytes) -> None:
    try:
        read_example(blob)
    except ValueError as err:
        assert str(err)  # noqa: PT017


@given(st.integers(0, 3174), st.integers(0, 255))
def test_a_changed_byte_is_read_alike_or_refused(place: int, value: int) -> None:
    changed = bytearray(example(label=[5], pixels=np.ones(784, np.float32)))
    changed[place] = value
    fast = read_emnist_examples([bytes(changed)])
    if fast is not None:
        slow = read_example(bytes(changed))
        assert isinstance(slow["pixels"], np.ndarray)
        assert slow["pixels"].tobytes() == fast[0].tobytes()
        assert list(slow["label"]) == fast[1].tolist()


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (b"", "must have pixels and label; this one has nothing"),
        (b"garbage", "serialized_example_proto is not a tf.train.Example ("),
        (emnist_rows(tff_pixels(), [1, 2, 3])[0][:-9], "cut short"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (example(label=[1], x=tff_pixels()[0]), "this one has 'label', 'x'"),
        (example(pixels=tff_pixels()[0]), "this one has 'pixels'"),
        (example(label=[], pixels=tff_pixels()[0]), "label is not a single whole number"),
        (example(label=[1, 2], pixels=tff_pixels()[0]), "label is not a single whole number"),
        (
            example(label=np.array([1.5], np.float32), pixels=tff_pixels()[0]),
            "label 1.5 is not a whole number",
        ),
        (example(label=[1], pixels=b"PNG"), "pixels holds bytes"),
        (example(label=[1], pixels=tff_pixels()[0, :3]), "12 pixels but earlier rows have 16"),
        (example(label=[1], pixels=[256] * 16), "pixels has a value outside 0 to 255"),
        (example(label=[1], pixels=[-1] * 16), "pixels has a value outside 0 to 255"),
        ("text", "must be a blob of at most"),
        (None, "must be a blob of at most"),
        (5, "must be a blob of at most"),
    ],
)
def test_malformed_row(tmp_path: Path, blob: Any, fault: str) -> None:
    message = bad_row(tmp_path, blob)
    assert "split 'digits_only_train': client 'b': row 2: " in message
    assert fault in message


def test_pixel_that_is_not_finite(tmp_path: Path) -> None:
    pixels = tff_pixels()[0].copy()
    pixels[1, 1] = np.nan
    message = bad_row(tmp_path, example(label=[1], pixels=pixels))
    assert "client 'b': example 0: a pixel is NaN or infinite" in message


@pytest.mark.parametrize("num_values", [0, 2, 15, 783])
def test_pixels_that_make_no_square(tmp_path: Path, num_values: int) -> None:
    blob = example(label=[1], pixels=np.zeros(num_values, np.float32))
    path = write(tmp_path / "a.sqlite", {"train": {"a": [blob]}})
    assert f"row 1: {num_values} pixels make no square image" in message_of(path)


@pytest.mark.parametrize("label", [-1, 10, 2**40, -(2**63)])
def test_label_outside_the_classes(tmp_path: Path, label: int) -> None:
    message = bad_row(tmp_path, example(label=[label], pixels=tff_pixels()[0]))
    assert f"client 'b': example 0: label {label} is outside 0 to" in message
    assert "split 'digits_only_train'" in message


def test_client_metadata_that_disagree(tmp_path: Path) -> None:
    key = ("digits_only_train", "a")
    message = message_of(small(tmp_path / "a.sqlite", counts={key: 3}))
    assert "client 'a': 2 examples but client_metadata says 3" in message
    assert "is not valid" in message_of(small(tmp_path / "b.sqlite", counts={key: "x"}))
    assert "num_examples is -1" in message_of(small(tmp_path / "c.sqlite", counts={key: -1}))
    sql = "INSERT INTO client_metadata SELECT * FROM client_metadata"
    assert "occurs in two rows" in message_of(small(tmp_path / "d.sqlite", sql=sql))
    sql = "DELETE FROM client_metadata WHERE client_id = 'a'"
    message = message_of(small(tmp_path / "e.sqlite", sql=sql))
    assert "client 'a': 2 examples but client_metadata says 0" in message


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("DROP TABLE client_metadata", "no plain table 'client_metadata'"),
        ("DROP TABLE examples", "no plain table 'examples'"),
        ("ALTER TABLE examples RENAME COLUMN client_id TO x", "no plain column 'client_id'"),
        (
            "ALTER TABLE examples RENAME TO e; CREATE VIEW examples AS SELECT * FROM e",
            "no plain table 'examples'",
        ),
        (
            "DROP TABLE examples; CREATE TABLE examples (split_name TEXT, client_id TEXT, "
            "serialized_example_proto BLOB AS (zeroblob(1000000000)))",
            "no plain column 'serialized_example_proto'",
        ),
        (
            "DROP TABLE examples; CREATE TABLE examples (split_name TEXT, client_id TEXT, "
            "serialized_example_proto BLOB, PRIMARY KEY (client_id)) WITHOUT ROWID",
            "cannot be read as SQLite: no such column: rowid",
        ),
        (
            "UPDATE client_metadata SET split_name = 'odd_' || rowid",
            "has the splits 'odd_1', 'odd_2'",
        ),
        (
            "DELETE FROM client_metadata",
            "has the splits none at all; the name of one must be train",
        ),
        ("UPDATE examples SET client_id = x'00'", "row 1: client_id is not text"),
        ("UPDATE examples SET client_id = ''", "an id must have 1 to 255 bytes"),
        ("UPDATE examples SET client_id = CAST(x'ff' AS TEXT)", "cannot be read as SQLite"),
    ],
)
def test_other_schema_or_content(tmp_path: Path, sql: str, fault: str) -> None:
    assert fault in message_of(small(tmp_path / "a.sqlite", sql=sql))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_truncated_database(tmp_path: Path, share: float) -> None:
    rows = emnist_rows(np.zeros((300, 28, 28), np.float32), [1] * 300)
    path = write(tmp_path / "a.sqlite", {"train": {"a": rows}})
    os.truncate(path, int(path.stat().st_size * share))
    assert message_of(path)


def test_garbled_database(tmp_path: Path) -> None:
    rows = emnist_rows(np.zeros((30, 28, 28), np.float32), [1] * 30)
    path = write(tmp_path / "a.sqlite", {"train": {"a": rows}})
    content = bytearray(path.read_bytes())
    content[4096:20000] = b"\xee" * (20000 - 4096)
    path.write_bytes(content)
    assert "cannot be read as SQLite" in message_of(path)
    path.write_bytes(b"SQLite format 3\0" + bytes(50))
    assert "cannot be read as SQLite" in message_of(path)


def test_schema_that_is_no_text(tmp_path: Path) -> None:
    """SQLite's error message quotes the schema, so Python cannot decode the message."""
    path = small(tmp_path / "a.sqlite")
    content = path.read_bytes()
    garbled = content.replace(b"tableexamplesexamples", b"tableexampl\xbasexamples")
    assert garbled != content
    path.write_bytes(garbled.replace(b"CREATE TABLE examples", b"CREATE TABXE examples"))
    assert "cannot be read as SQLite" in message_of(path)


def test_truncated_or_garbled_lzma(tmp_path: Path) -> None:
    plain = small(tmp_path / "a.sqlite").read_bytes()
    path = tmp_path / "packed"
    for container in (lzma.FORMAT_XZ, lzma.FORMAT_ALONE):
        packed = lzma.compress(plain, container)
        path.write_bytes(packed[: len(packed) // 2])
        assert "ends too early" in message_of(path)
    path.write_bytes(packed[:40] + bytes(40) + packed[80:])
    assert message_of(path)
    path.write_bytes(b"no LZMA at all")
    assert "damaged LZMA data" in message_of(path)
    assert not tff_sqlite.recognises(path)
    path.write_bytes(lzma.compress(plain[:-4096]))
    assert f"has {len(plain) - 4096} bytes but its header says {len(plain)}" in message_of(path)


def test_bombs_are_refused_before_the_disk_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bytearray(small(tmp_path / "a.sqlite").read_bytes())
    path = tmp_path / "packed"
    path.write_bytes(lzma.compress(bytes(300 << 20), preset=0))
    assert "times its size, so it is not a database" in message_of(path)
    plain[28:32] = b"\xff\xff\xff\xff"
    path.write_bytes(lzma.compress(bytes(plain)))
    assert "times its size, so it is not a database" in message_of(path)
    monkeypatch.setattr(tff_sqlite, "_MAX_RATIO", 10**12)
    assert "more than is free on the disk" in message_of(path)


def test_stopping_while_sqlite_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        raise StopError

    def stop_before_the_first_row(done: int, total: int | None) -> None:
        if not done:
            raise StopError

    monkeypatch.setattr(tff_sqlite, "_OPERATIONS", 1)
    path = small(tmp_path / "a.sqlite")
    with pytest.raises(StopError):
        recognising.read([path], ImportOptions(), None, stop_before_the_first_row)
    packed = tmp_path / "packed"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(StopError):
        recognising.read([packed], ImportOptions(), folder, stop)
    assert list(folder.iterdir()) == []


def test_progress_counts_examples_of_what_is_read(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = small(tmp_path / "a.sqlite")
    recognising.read([path], ImportOptions(), None, lambda *each: told.append(each))
    assert told[-1] == (6, 6)


def test_several_files_are_refused(tmp_path: Path) -> None:
    path = small(tmp_path / "a.sqlite")
    with pytest.raises(DataError, match="a TFF database is a single file"):
        recognising.read([path, path], ImportOptions(format="tff-sqlite"))
