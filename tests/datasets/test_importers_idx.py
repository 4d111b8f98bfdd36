"""IDX files: exact values, files matched by name, and one line for each bad file."""

from __future__ import annotations

import gzip
import resource
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.core.native import Cancelled
from fedcli.datasets.batches import decode
from fedcli.datasets.importers import idx, recognising, shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) * 4
LABELS = np.array([7, 0, 2], np.uint8)
TABLE = np.array(
    [[7, 0, 12, 0, 37, 9, 0, 0], [0, 0, 3, 0, 30, 8, 0, 0], [2, 4, 12, 1, 32, 7, 0, 0]], np.int32
)


def packed(array: NDArray[Any]) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_set(folder: Path, prefix: str = "train", *, ending: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3-ubyte", IMAGES), ("labels-idx1-ubyte", LABELS)):
        content = packed(array)
        path = folder / f"{prefix}-{name}{ending}"
        path.write_bytes(gzip.compress(content) if ending else content)
    return folder


def read(*sources: Path, **options: Any) -> Imported:
    return recognising.read(sources, ImportOptions(**options))


def message_of(*sources: Path, **options: Any) -> str:
    """Returns the error message of reading; checks that it is one line and names the source."""
    with pytest.raises(DataError) as caught:
        recognising.read(sources, ImportOptions(format="idx", **options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(sources[0]) in message
    return message


def owners_of(table: ExampleTable) -> list[str]:
    return [table.owner_ids[owner] for owner in table.owners]


# ---- What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_folder_gives_both_splits(tmp_path: Path, ending: str) -> None:
    write_set(tmp_path / "set", ending=ending)
    write_set(tmp_path / "set", "t10k", ending=ending)
    (tmp_path / "set" / "readme.txt").write_text("no data")
    (tmp_path / "set" / ".hidden-images-idx3-ubyte").write_text("no data")
    found = read(tmp_path / "set")
    assert (found.format, list(found.tables)) == ("idx", ["train", "test"])
    assert (found.num_classes, found.pixel_convention, found.class_names) == (8, "ink", ())
    assert (found.notes, found.source) == ((), str(tmp_path / "set"))
    for table in found.tables.values():
        np.testing.assert_array_equal(table.pixels, IMAGES)
        assert table.pixels.dtype == np.uint8
        assert (table.scale, table.offset) == (1 / 255, 0.0)
        assert table.labels.tolist() == [7, 0, 2]
        assert (len(table.owner_ids), len(table.owners)) == (0, 0)


def test_a_file_that_is_there_raw_and_compressed_is_read_once(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    write_set(tmp_path / "set", ending=".gz")
    assert len(read(tmp_path / "set").tables["train"]) == 3


def test_several_files_are_one_set_whatever_their_order(tmp_path: Path) -> None:
    files = sorted(write_set(tmp_path / "set").iterdir(), reverse=True)
    assert len(read(*files).tables["train"]) == 3


def test_files_of_other_names_go_together_by_their_counts(tmp_path: Path) -> None:
    (tmp_path / "faces").write_bytes(packed(IMAGES))
    (tmp_path / "names").write_bytes(packed(LABELS))
    (tmp_path / "test-faces").write_bytes(packed(IMAGES[:2]))
    (tmp_path / "test-names").write_bytes(packed(LABELS[:2]))
    found = read(tmp_path)
    assert [len(table) for table in found.tables.values()] == [3, 2]
    assert found.tables["test"].labels.tolist() == [7, 0]


def test_the_table_beside_gives_owners(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "qmnist-train-labels-idx2-int.gz").write_bytes(gzip.compress(packed(TABLE)))
    found = read(folder)
    table = found.tables["train"]
    assert found.same_people
    assert list(table.owner_ids) == ["w0003", "w0012"]
    assert owners_of(table) == ["w0012", "w0003", "w0012"]
    table_path = folder / "qmnist-train-labels-idx2-int.gz"
    assert found.notes == (f"owners of train are the writers in {table_path}",)
    np.testing.assert_array_equal(table.pixels, IMAGES)


def test_the_table_alone_gives_labels_too(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(packed(IMAGES))
    (tmp_path / "qmnist-train-labels-idx2-int").write_bytes(packed(TABLE))
    assert read(tmp_path).tables["train"].labels.tolist() == [7, 0, 2]


def test_a_test_table_may_have_more_rows_than_images(tmp_path: Path) -> None:
    folder = write_set(write_set(tmp_path / "set"), "t10k")
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(TABLE))
    longer = np.concatenate([TABLE, TABLE + 1])
    (folder / "qmnist-test-labels-idx2-int").write_bytes(packed(longer))
    found = read(folder)
    assert not found.same_people
    assert owners_of(found.tables["test"]) == ["w0012", "w0003", "w0012"]
    (folder / "qmnist-test-labels-idx2-int").write_bytes(packed(longer)[:-1])
    assert "needs" in message_of(folder)
    (folder / "qmnist-test-labels-idx2-int").write_bytes(packed(longer[1:]))
    assert "row 0 is of class 0 but the label is 7" in message_of(folder)


def test_a_table_without_images_is_noted(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "qmnist-test-labels-idx2-int").write_bytes(packed(TABLE))
    found = read(folder)
    assert not len(found.tables["train"].owner_ids)
    assert found.same_people
    assert "qmnist-test-labels-idx2-int: not used" in found.notes[0]


def test_emnist_names_turn_images_and_give_characters(tmp_path: Path) -> None:
    found = read(write_set(tmp_path / "set", "emnist-byclass-train", ending=".gz"))
    np.testing.assert_array_equal(found.tables["train"].pixels, IMAGES.transpose(0, 2, 1))
    assert found.num_classes == 62
    assert found.class_names[9:12] == ("9", "A", "B")
    assert "swapped" in found.notes[0]
    digits = read(write_set(tmp_path / "digits", "emnist-digits-test"))
    assert (list(digits.tables), digits.num_classes) == (["test"], 8)


def test_colour_and_wide_labels(tmp_path: Path) -> None:
    colour = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    (tmp_path / "train-images").write_bytes(packed(colour))
    (tmp_path / "train-labels").write_bytes(packed(LABELS.astype(np.int32) * 100))
    found = read(tmp_path)
    np.testing.assert_array_equal(found.tables["train"].pixels, colour)
    assert found.num_classes == 701


@pytest.mark.parametrize(
    ("pixels", "kept", "scale"),
    [
        ((IMAGES / 255).astype(np.float32), np.uint8, 1 / 255),
        (IMAGES / 255, np.uint8, 1 / 255),
        (IMAGES.astype(np.float32), np.uint8, 1 / 255),
        (IMAGES.astype(np.int16), np.uint8, 1 / 255),
        ((IMAGES / 241).astype(np.float32), np.float32, 1.0),
        (IMAGES.astype(np.float32) + np.float32(0.5), np.float32, 1 / 255),
    ],
)
def test_other_types_become_uint8_or_float32(
    tmp_path: Path, pixels: NDArray[Any], kept: type, scale: float
) -> None:
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(packed(pixels))
    found = read(tmp_path)
    table = found.tables["train"]
    assert table.pixels.dtype == kept
    assert table.scale == scale
    expected = pixels / (255 if pixels.max() > 1 else 1)
    np.testing.assert_allclose(
        decode(table.pixels, table.scale, table.offset), expected, rtol=0, atol=1.2e-7
    )
    assert len(found.notes) == 1


@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * data.draw(st.integers(3, 4))))
    label_type = data.draw(st.sampled_from(["u1", "i1", "i2", "i4"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    images = rng.integers(0, 256, shape).astype(np.uint8)
    labels = rng.integers(0, 100, shape[0]).astype(label_type)
    folder = tmp_path_factory.mktemp("idx")
    is_packed = data.draw(st.booleans())
    for name, array in (("train-images", images), ("train-labels", labels)):
        content = packed(array)
        (folder / name).write_bytes(gzip.compress(content) if is_packed else content)
    table = read(folder).tables["train"]
    np.testing.assert_array_equal(table.pixels, images)
    np.testing.assert_array_equal(table.labels, labels)


def test_many_blocks_read_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 2 * 20)
    folder = write_set(tmp_path / "set")
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(TABLE))
    told: list[tuple[int, int | None]] = []
    found = recognising.read([folder], None, None, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(found.tables["train"].pixels, IMAGES)
    assert owners_of(found.tables["train"]) == ["w0012", "w0003", "w0012"]
    assert [each for each in told if each[1]] == [(2, 3), (3, 3)]
    bad = TABLE.copy()
    bad[2, 0] = 1
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(bad))
    assert "row 2 is of class 1 but the label is 2" in message_of(folder)


def test_the_progress_callback_may_stop_the_reading(tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        recognising.read([write_set(tmp_path / "set")], None, None, stop)


def test_fit_is_applied(tmp_path: Path) -> None:
    found = read(write_set(tmp_path / "set"), fit=lambda pixels: pixels[:, :2, :2])
    np.testing.assert_array_equal(found.tables["train"].pixels, IMAGES[:, :2, :2])


# ---- What is refused -----------------------------------------------------------------------------


def images_file(folder: Path) -> Path:
    return write_set(folder) / "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (packed(IMAGES)[:-1], "needs 76 bytes but the file has 75"),
        (packed(IMAGES) + b"\0", "needs 76 bytes but the file has 77"),
        (packed(IMAGES)[:9], "ends too early"),
        (packed(IMAGES)[:3], "begins with 00 00 08, not with"),
        (b"", "begins with nothing"),
        (b"\x01" + packed(IMAGES)[1:], "begins with 01 00 08 03"),
        (b"\0\0\x0a\3" + packed(IMAGES)[4:], "begins with 00 00 0a 03"),
        (b"\0\0\x08\0" + packed(IMAGES)[4:], "declares 0 dimensions"),
        (b"\0\0\x08\5" + packed(IMAGES)[4:], "declares 5 dimensions"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "bytes but the file has 16"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 0, 0), "declares 2147483648 examples"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 4, 5), "0 images but 3 labels"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 0, 5), "pixels have shape [3, 0, 5]"),
        (packed(IMAGES.reshape(3, 20)), "holds uint8 of shape [3, 20]"),
        (
            packed(IMAGES[:, :2, :2].reshape(3, 4).astype(np.float32)),
            "holds float32 of shape [3, 4]",
        ),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_bad_header(tmp_path: Path, content: bytes, fault: str, is_packed: bool) -> None:
    path = images_file(tmp_path / "set")
    if not is_packed:
        path.write_bytes(content)
        assert fault in message_of(path.parent)
        return
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    message = message_of(path.parent)  # the length of a gzip file is known only after unpacking
    if "the file has 75" in fault:
        assert "ends too early" in message
    elif "the file has 77" in fault:
        assert "is longer than the 60 bytes" in message
    else:
        assert fault.split(" file has")[0] in message


def test_files_without_examples(tmp_path: Path) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 4, 5))
    (tmp_path / "train-labels").write_bytes(packed(LABELS[:0]))
    assert "holds no examples" in message_of(tmp_path)


@pytest.mark.parametrize("cut", [4, 12, 25, -5, -1])
def test_cut_gzip(tmp_path: Path, cut: int) -> None:
    path = write_set(tmp_path / "set", ending=".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    assert f"{path}: truncated or damaged gzip file" in message_of(path.parent)


@pytest.mark.parametrize("is_body", [True, False])
def test_garbled_gzip(tmp_path: Path, is_body: bool) -> None:
    path = write_set(tmp_path / "set", ending=".gz") / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    place = 40 if is_body else -6  # a changed checksum is noticed only at the end
    content[place] ^= 0xFF
    path.write_bytes(content)
    assert f"{path}: " in message_of(path.parent)


def test_gzip_with_garbage_behind(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", ending=".gz") / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content + b"garbage")
    assert "damaged gzip file" in message_of(path.parent)
    path.write_bytes(content + gzip.compress(b"more"))
    assert "is longer than the 60 bytes" in message_of(path.parent)
    path.write_bytes(content + bytes(512))  # padding, as tape drives write it
    assert len(read(path.parent).tables["train"]) == 3


def deflated(head: bytes, num_zeros: int) -> bytes:
    """Returns a gzip file of a header and many zeros. The zeros are packed block by block."""
    packer = zlib.compressobj(9, wbits=31)
    block = bytes(1 << 20)
    pieces = [packer.compress(head), *(packer.compress(block) for _ in range(num_zeros >> 20))]
    return b"".join([*pieces, packer.flush()])


def test_gzip_bomb_is_read_one_byte_too_far_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set(tmp_path / "set", ending=".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(deflated(packed(IMAGES), 256 << 20))
    sizes: list[int] = []
    whole_read = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        content = whole_read(self, size)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "is longer than the 60 bytes" in message_of(path.parent)
    assert max(sizes) <= 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_gzip_that_cannot_hold_what_it_declares(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", ending=".gz") / "train-images-idx3-ubyte.gz"
    head = struct.pack(">BBBB3I", 0, 0, 8, 3, 60_000, 28, 28)
    path.write_bytes(gzip.compress(head + bytes(784)))
    assert "needs 47040016 bytes but the file has" in message_of(path.parent)


def test_labels_without_images(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(packed(LABELS))
    assert "t10k-labels-idx1-ubyte: labels without images" in message_of(folder)
    assert "labels without images" in message_of(folder / "t10k-labels-idx1-ubyte")


def test_images_without_labels(tmp_path: Path) -> None:
    path = images_file(tmp_path / "set")
    assert "images without labels" in message_of(path)
    (path.parent / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x10\1garbled")
    assert "train-labels-idx1-ubyte: begins with" in message_of(path.parent)


def test_two_files_of_images_match_one_of_labels(tmp_path: Path) -> None:
    path = images_file(tmp_path / "set")
    other = path.with_name("train-images.idx3-ubyte")
    other.write_bytes(packed(IMAGES))
    message = message_of(path.parent)
    assert f"{path} and {other} both match" in message
    assert "train-labels-idx1-ubyte; give the files of one set" in message


def test_two_files_of_images_match_one_of_labels_by_count(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name).write_bytes(packed(IMAGES))
    (tmp_path / "names").write_bytes(packed(LABELS))
    assert "left and " in message_of(tmp_path)


def test_two_files_of_labels(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "train-labels.idx1-ubyte").write_bytes(packed(LABELS))
    assert "are both labels of" in message_of(folder)


def test_two_sets_in_a_folder(tmp_path: Path) -> None:
    folder = write_set(write_set(tmp_path / "set", "emnist-digits-train"), "emnist-mnist-train")
    assert "are both split 'train'" in message_of(folder)


def test_counts_must_agree(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(np.concatenate([TABLE, TABLE])))
    assert "3 images but 6 rows" in message_of(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(packed(LABELS[:2]))
    assert "3 images but 2 labels" in message_of(folder)


def test_table_of_other_images(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    bad = TABLE.copy()
    bad[1, 0] = 5
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(bad))
    assert "row 1 is of class 5 but the label is 0" in message_of(folder)
    bad = TABLE.copy()
    bad[2, 2] = -1
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(bad))
    assert "row 2: writer -1 is below 0" in message_of(folder)


@pytest.mark.parametrize("label", [-1, 2**31 - 1])
def test_labels_that_are_no_classes(tmp_path: Path, label: int) -> None:
    folder = write_set(tmp_path / "set")
    labels = np.array([0, label, 1], np.int32)
    (folder / "train-labels-idx1-ubyte").write_bytes(packed(labels))
    message = message_of(folder)
    assert f"train-labels-idx1-ubyte: example 1: label {label}" in message


def test_labels_beyond_the_number_of_classes_asked_for(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    assert read(folder, num_classes=9).num_classes == 9
    assert "example 0: label 7 is outside 0 to 6; pass --num-classes 8" in message_of(
        folder, num_classes=7
    )
    (folder / "qmnist-train-labels-idx2-int").write_bytes(packed(TABLE))
    assert "client 'w0012': example 0: label 7" in message_of(folder, num_classes=7)
    assert "client 'w0012': example 0: label 7" in message_of(folder, num_classes=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 256.5, 1e300])
def test_pixels_that_are_impossible(tmp_path: Path, value: float) -> None:
    pixels = IMAGES / 255
    pixels[2, 3, 1] = value
    path = images_file(tmp_path / "set")
    path.write_bytes(packed(pixels))
    fault = "a pixel is NaN or infinite" if not np.isfinite(value) else f"{value:g}"
    message = message_of(path.parent)
    assert f"{path}: example 2: " in message
    assert fault in message


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no data")
    assert "holds no IDX files" in message_of(tmp_path)
    with pytest.raises(DataError, match="its format was not recognised"):
        read(tmp_path)


@given(data=st.data())
def test_garbled_bytes_raise_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_set(tmp_path_factory.mktemp("idx"), ending=".gz")
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message = ""
    try:
        recognising.read([folder], ImportOptions(format="idx"))
    except DataError as err:
        message = str(err)
    assert "\n" not in message


# ---- Real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(shared_data: Path) -> Imported:
    return read(shared_data / "mnist-idx")


def test_mnist_with_its_writers(mnist: Imported) -> None:
    table = mnist.tables["train"]
    assert list(mnist.tables) == ["train"]
    assert (mnist.num_classes, mnist.pixel_convention) == (10, "ink")
    assert table.pixels.shape == (60_000, 28, 28)
    assert len(table.owner_ids) == 539
    assert (table.owner_ids[0], table.owner_ids[-1]) == ("w0000", "w2349")
    # Published for QMNIST: quartiles of the numbers of images of the 539 writers in train.
    sizes = np.bincount(table.owners)
    assert [sizes.min(), *np.percentile(sizes, [25, 50, 75]), sizes.max()] == [
        *(19, 103, 116, 123, 131)
    ]
    assert table.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


def test_mnist_equals_the_hdf5_files_of_its_writers(mnist: Imported, shared_data: Path) -> None:
    """MNIST's IDX files and the HDF5 files hold the same images, in different orders.

    Each IDX image is matched with the nearest HDF5 image of the same writer and label. The
    matching must be one to one. In a pair, no pixel may differ by more than one grey level,
    as the description of the HDF5 files says.
    """
    ours = mnist.tables["train"]
    halves = [
        recognising.read([shared_data / f"mnist_writers_{split}.h5"]).tables["train"]
        for split in ("train", "test")
    ]
    assert all(list(half.owner_ids) == list(ours.owner_ids) for half in halves)
    pixels = np.concatenate([np.asarray(half.pixels) for half in halves])
    labels = np.concatenate([half.labels for half in halves])
    owners = np.concatenate([half.owners for half in halves])
    assert {(half.scale, half.offset) for half in halves} == {(1 / 255, 0.0)}
    theirs = 255 - pixels  # in the HDF5 files 1.0 is background
    groups = ours.owners * 10 + ours.labels
    our_order = np.argsort(groups, kind="stable")
    their_order = np.argsort(owners * 10 + labels, kind="stable")
    np.testing.assert_array_equal(np.sort(groups), (owners * 10 + labels)[their_order])
    bounds = np.flatnonzero(np.diff(np.sort(groups), prepend=-1, append=-1))
    for first, last in pairwise(bounds):
        mine = ours.pixels[our_order[first:last]].reshape(last - first, -1).astype(np.int16)
        other = theirs[their_order[first:last]].reshape(last - first, -1).astype(np.int16)
        differences = np.abs(mine[:, None] - other[None])
        partner = differences.sum(axis=2).argmin(axis=1)
        assert sorted(partner) == list(range(last - first))
        assert differences[np.arange(last - first), partner].max() <= 1


def test_recognises_by_content_alone(shared_data: Path, tmp_path: Path) -> None:
    assert idx.recognises(shared_data / "mnist-idx")
    assert not idx.recognises(shared_data / "mnist_writers_train.h5")
    plain = tmp_path / "holiday.png"
    plain.write_bytes(packed(IMAGES))
    assert idx.recognises(plain)
    plain.write_bytes(gzip.compress(b"some text"))
    assert not idx.recognises(plain)
