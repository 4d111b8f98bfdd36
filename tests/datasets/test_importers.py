"""The format, the classes and the meaning of 1.0 in any source; TFF files and stores."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.importers import recognising, shared, source_files
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.sources.store import StoreInfo, open_store
from fedcli.datasets.sources.store_writer import create
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import ConfigError, DataError

GREY = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4) * 2


def table_of(pixels: Any, labels: Any, owners: Sequence[str] | None = None) -> ExampleTable:
    with TableWriter("some set") as writer:
        writer.add(pixels, np.asarray(labels), scale=1 / 255, offset=0.0, owners=owners)
        return writer.table()


def imported(labels: Any, num_classes: int | None = None, **facts: Any) -> Imported:
    tables = {"train": table_of(GREY[: len(labels)], labels)}
    options = ImportOptions(format="npz", num_classes=num_classes)
    return shared.imported(tables, options, source="some set", pixel_convention="ink", **facts)


def write_tff(path: Path, feature: str = "pixels", labels: Sequence[int] = (1, 0, 2)) -> Path:
    with h5py.File(path, "w") as file:
        for number, client_id in enumerate(("b", "a")):
            grey = GREY[3 * number : 3 * number + 3]
            pixels = (1 - grey / 255).astype(np.float32) if feature == "pixels" else grey
            file[f"examples/{client_id}/{feature}"] = pixels
            file[f"examples/{client_id}/label"] = np.array(labels, np.int32)
    return path


def write_store(path: Path, **facts: Any) -> Path:
    def clients(first: int) -> list[ClientDataset]:
        pixels, labels = GREY[first : first + 2], np.array([first, 0], np.int32)
        return [ClientDataset(name, pixels, labels, 1 / 255, 0.0, "x") for name in ("a", "b")]

    info = StoreInfo(num_classes=4, pixel_convention="background", **facts)
    create(path, {"train": clients(0), "test": clients(1), "central": clients(3)}, info)
    return path


# ---- Number of classes and names -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "given", "facts", "expected"),
    [
        ([0, 0], None, {}, 2),
        ([0, 5], None, {}, 6),
        ([0, 5], 9, {}, 9),
        ([0, 5], None, {"own_classes": 8}, 8),
        ([0, 5], 7, {"own_classes": 8}, 7),
        ([0, 5], None, {"class_names": [*"abcdefg"]}, 7),
        ([0, 9], None, {"is_emnist": True}, 10),
        ([0, 10], None, {"is_emnist": True}, 11),
        ([0, 9], 12, {"is_emnist": True}, 12),
    ],
)
def test_number_of_classes(
    labels: list[int], given: int | None, facts: dict[str, Any], expected: int
) -> None:
    assert imported(labels, given, **facts).num_classes == expected


@pytest.mark.parametrize(
    ("labels", "given", "facts", "remedy"),
    [
        ([0, 5], 5, {}, "label 5 is outside 0 to 4; pass --num-classes 6"),
        ([0, 8], None, {"own_classes": 8}, "label 8 is outside 0 to 7; pass --num-classes 9"),
        ([0, 2**21], None, {}, "label 2097152 is outside 0 to 1048575"),
    ],
)
def test_labels_outside(
    labels: list[int], given: int | None, facts: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(DataError, match=f"some set: example 1: {remedy}"):
        imported(labels, given, **facts)


def test_labels_that_are_codes_are_no_classes() -> None:
    with pytest.raises(
        DataError,
        match="some set: label 1998 needs 1999 classes, of which only 2 occur; renumber the labels "
        "from 0, or pass --num-classes 1999",
    ):
        imported([1997, 1998])
    assert imported([1997, 1998], 1999).num_classes == 1999
    assert imported([0, 1000]).num_classes == 1001


def test_label_outside_names_its_owner_and_place_there() -> None:
    table = table_of(GREY, [0, 1, 9, 0, 9, 0], [*"bababa"])
    with pytest.raises(DataError, match="some set: client 'b': example 1: label 9 "):
        shared.check_table_labels(table, 9)


def test_names_of_characters_and_of_the_source() -> None:
    assert imported([0, 61], is_emnist=True).class_names[35:37] == ("Z", "a")
    assert imported([0, 9], is_emnist=True).class_names == ()
    assert imported([0, 1], class_names=["no", "yes"]).class_names == ("no", "yes")
    wide = imported([0, 1], 3, class_names=["no", "yes"], notes=("before",))
    assert wide.class_names == ()
    assert wide.notes == ("before", "2 class names for 3 classes, so the names were left out")


@pytest.mark.parametrize(
    ("border", "expected"), [(0.0, "ink"), (0.5, "ink"), (0.51, "background"), (1.0, "background")]
)
def test_the_border_decides_the_meaning_of_1(border: float, expected: str) -> None:
    pixels = np.full((3, 5, 5), 1 - border, np.float32)
    pixels[:, [0, -1], :] = border
    pixels[:, :, [0, -1]] = border
    with TableWriter("floats") as writer:
        writer.add(pixels, np.zeros(3, int), scale=1.0, offset=0.0)
        table = writer.table()
    assert shared.polarity_of({"train": table})[0] == expected
    flipped = ExampleTable("flipped", pixels, table.labels, -1.0, 1.0, [], table.owners)
    other = {0.0: "background", 1.0: "ink"}.get(border)
    if other:
        assert shared.polarity_of({"train": flipped})[0] == other


def test_as_much_light_as_dark_is_ink() -> None:
    pixels = np.concatenate([np.zeros((1, 4, 4)), np.ones((1, 4, 4))]).astype(np.uint8) * 255
    convention, why = shared.polarity_of({"train": table_of(pixels, [0, 1])})
    assert convention == "ink"
    assert why.startswith("50 % of the border pixels are light")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "ä" * 128, "\ud800"])
def test_ids_that_a_store_cannot_keep(name: str) -> None:
    with pytest.raises(DataError, match=r"where: client id .*; rename the client"):
        shared.check_id(name, "where")
    assert shared.check_id("ä" * 127, "where") == "ä" * 127


def test_blocks_cover_all_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 100)
    assert [*shared.blocks(7, (5, 5), 2)] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [*shared.blocks(2, (500,))] == [(0, 1), (1, 2)]
    assert [*shared.blocks(0, (5,))] == []


# ---- Which format --------------------------------------------------------------------------------


def test_kinds_of_hdf5_files_are_distinguished(tmp_path: Path) -> None:
    assert recognising.recognise([write_tff(tmp_path / "a.npz")]) == "tff-h5"
    assert recognising.recognise([write_store(tmp_path / "b.csv")]) == "store"


def test_unknown_content(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(b"\xff\xfe nothing known")
    with pytest.raises(DataError, match="notes: its format was not recognised; if it is one of"):
        recognising.read([path])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"label,p0,p1,p2,p3\n", "has only one line, but CSV needs a header and rows; "),
        (b"Dear diary,\ntoday I\n", "is text, but neither CSV of numbers below a header"),
        (b"\0\1\2" * 20, "its format was not recognised"),
    ],
)
def test_sources_without_data_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        recognising.read([path])
    assert str(caught.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_text_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("label,p0,p1,p2,p3\nété,1,2,3,4\n".encode(encoding))
    with pytest.raises(DataError, match=r"a\.csv: is not UTF-8 text; save it as UTF-8$"):
        recognising.read([path])


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="is a folder without files; give one with data"):
        recognising.read([tmp_path])


def test_several_formats_at_once(tmp_path: Path) -> None:
    paths = [write_tff(tmp_path / "a.h5"), write_store(tmp_path / "b.h5")]
    with pytest.raises(DataError, match=r"differ in format: .*a\.h5 is tff-h5, .*b\.h5 is store;"):
        recognising.read(paths)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such file or folder"):
        recognising.read([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"cannot be accessed|no such file"):
        recognising.read([tmp_path / ("x" * 300)])
    with pytest.raises(ConfigError, match="no source given"):
        recognising.read([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "word"}, "--format word: choose one of mat, tff-h5, "),
        ({"num_classes": 0}, "--num-classes 0: choose"),
        ({"folders": "x"}, "--folders x: choose one of class, client, client/class, name$"),
        ({"color": "blue"}, "--color blue: choose one of grey, rgb$"),
        ({"pixel_range": "0-9"}, "--pixel-range 0-9: choose one of 0-1, "),
        ({"polarity": "dark"}, "--polarity dark: choose one of ink, background$"),
    ],
)
def test_options_that_are_not_allowed_in_any_format(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImportOptions(**options)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: "):
        recognising.read([tmp_path / "pipe"])
    with pytest.raises(DataError, match="pipe: is not a regular file"):
        recognising.read([tmp_path / "pipe"], ImportOptions(format="tff-h5"))
    assert source_files.files_of([tmp_path]) == []


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.ENOSPC, "cannot write the pixels to .*; free some space"),
        (errno.EIO, "cannot be read"),
    ],
)
def test_files_that_the_system_cannot_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fault: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = write_tff(tmp_path / "a.h5")
    monkeypatch.setattr(TableWriter, "add", refuse)
    with pytest.raises(DataError, match=fault):
        recognising.read([path], None, tmp_path)


# ---- TFF's HDF5 files ----------------------------------------------------------------------------


def test_tff_pixels(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = recognising.read(
        [write_tff(tmp_path / "a_test.h5")], None, None, lambda *at: told.append(at)
    )
    table = found.tables["train"]
    assert (found.format, list(found.tables), found.num_classes) == ("tff-h5", ["train"], 3)
    assert found.pixel_convention == "background"
    assert list(table.owner_ids) == ["a", "b"]
    assert table.owners.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(table.pixels, 255 - GREY[[3, 4, 5, 0, 1, 2]])
    assert told == [(3, 6), (6, 6)]


def test_tff_characters_and_images(tmp_path: Path) -> None:
    found = recognising.read([write_tff(tmp_path / "a.h5", labels=[0, 61, 5])])
    assert (found.num_classes, found.class_names) == (62, ())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name, of_emnist in (("a", "f0000_14"), ("b", "f4097_41")):
            file.move(f"examples/{name}", f"examples/{of_emnist}")
    assert recognising.read([tmp_path / "a.h5"]).class_names[61] == "z"
    found = recognising.read([write_tff(tmp_path / "b.h5", "image", [0, 99, 5])])
    assert (found.num_classes, found.class_names, found.pixel_convention) == (100, (), "ink")
    np.testing.assert_array_equal(found.tables["train"].pixels[:3], GREY[3:])


def test_tff_labels_outside(tmp_path: Path) -> None:
    path = write_tff(tmp_path / "a.h5", labels=[0, 62, 5])
    assert recognising.read([path]).num_classes == 63
    assert recognising.read([path], ImportOptions(num_classes=63)).num_classes == 63
    with pytest.raises(DataError, match=r"example 1: label 62 .* pass --num-classes 63"):
        recognising.read([path], ImportOptions(num_classes=50))


def test_tff_fit(tmp_path: Path) -> None:
    options = ImportOptions(fit=lambda pixels: pixels[:, :2])
    found = recognising.read([write_tff(tmp_path / "a.h5")], options)
    assert found.tables["train"].pixels.shape == (6, 2, 4)


def test_tff_pair_is_given_one_by_one(tmp_path: Path) -> None:
    paths = [write_tff(tmp_path / name) for name in ("a.h5", "b.h5")]
    with pytest.raises(DataError, match=r"b\.h5: a TFF HDF5 file is a single file, .* --test-data"):
        recognising.read(paths)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_tff_cut(tmp_path: Path, share: float) -> None:
    path = write_tff(tmp_path / "a.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"a\.h5: truncated HDF5 file, "):
        recognising.read([path])


def test_hdf5_of_another_layout(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weights"] = [1.0]
    with pytest.raises(DataError, match=r"neither a TFF file .* it holds 'weights'"):
        recognising.read([tmp_path / "a.h5"])


# ---- Stores --------------------------------------------------------------------------------------


def test_a_store_keeps_all_of_its_information(tmp_path: Path) -> None:
    path = write_store(
        tmp_path / "a.h5",
        class_names=("n", "e", "s", "w"),
        licence="free",
        source="a farm",
        same_people=False,
    )
    found = recognising.read([path])
    assert (found.format, found.num_classes, found.pixel_convention) == ("store", 4, "background")
    assert (found.class_names, found.licence, found.source) == (
        ("n", "e", "s", "w"),
        "free",
        "a farm",
    )
    assert not found.same_people
    assert list(found.tables) == ["train", "test", "central"]
    table = found.tables["central"]
    np.testing.assert_array_equal(table.pixels, GREY[[3, 4, 3, 4]])
    assert table.labels.tolist() == [3, 0, 3, 0]
    assert list(table.owner_ids) == ["a", "b"]
    assert table.owners.tolist() == [0, 0, 1, 1]


def test_store_can_be_fitted_and_have_more_classes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5")
    told: list[tuple[int, int | None]] = []
    options = ImportOptions(num_classes=7, fit=lambda pixels: pixels[:, :2])
    found = recognising.read([path], options, tmp_path, lambda *at: told.append(at))
    assert (found.num_classes, found.source) == (7, str(path))
    for name, split in open_store(path).items():
        table = found.tables[name]
        expected = np.concatenate([split.client(each).pixels for each in "ab"])
        np.testing.assert_array_equal(table.pixels, expected[:, :2])
        assert table.owners.tolist() == [0, 0, 1, 1]
    assert {total for _, total in told} == {12}
    assert told[-1] == (12, 12)
    with pytest.raises(DataError, match="client 'a': example 0: label 3 is outside 0 to 2"):
        recognising.read([path], ImportOptions(num_classes=3))


def test_store_that_is_damaged(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(DataError, match="is a fedcli store of version 99"):
        recognising.read([path])
