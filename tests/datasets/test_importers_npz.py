"""NumPy archives: arrays recognised by name, streamed, and one line for each bad archive."""

from __future__ import annotations

import io
import os
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.datasets.batches import decode
from fedcli.datasets.importers import npz, recognising, shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.errors import ConfigError, DataError

IMAGES = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5) * 2
LABELS = np.array([7, 0, 2, 7, 1, 3])
# Six texts: five times "a", and one that is not a valid character.
GARBLED = np.array([ord("a")] * 5 + [sys.maxunicode + 1], np.uint32).view("U1")


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return path


def read(path: Path, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(**options))


def message_of(path: Path, kind: type[Exception] = DataError, **options: Any) -> str:
    """Returns the error message of reading; checks that it is one line and names the file."""
    with pytest.raises(kind) as caught:
        read(path, format="npz", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ---- What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        *(("x", "y"), ("X", "Y"), ("images", "labels"), ("pixels", "label"), ("data", "targets")),
        *(("x_train", "y_train"), ("train_images", "train_labels"), ("image", "target")),
    ],
)
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_names_of_images_and_labels(
    tmp_path: Path, write: Callable[..., None], images: str, labels: str
) -> None:
    path = tmp_path / "set.npz"
    write(path, **{labels: LABELS, images: IMAGES})
    found = read(path)
    table = found.tables["train"]
    assert (found.format, list(found.tables), found.num_classes) == ("npz", ["train"], 8)
    np.testing.assert_array_equal(table.pixels, IMAGES)
    assert table.pixels.dtype == np.uint8
    assert (table.scale, table.offset) == (1 / 255, 0.0)
    assert table.labels.tolist() == LABELS.tolist()
    assert (len(table.owners), found.notes, found.source) == (0, (), str(path))


def test_train_and_test_as_keras_saves_them(tmp_path: Path) -> None:
    arrays = {"x_test": IMAGES[4:], "x_train": IMAGES[:4], "y_train": LABELS[:4]}
    path = save(tmp_path / "mnist.npz", **arrays, y_test=LABELS[4:, None], val_images=IMAGES)
    found = read(path)
    assert list(found.tables) == ["train", "test"]
    np.testing.assert_array_equal(found.tables["test"].pixels, IMAGES[4:])
    assert found.tables["test"].labels.tolist() == [1, 3]
    assert found.notes == ("arrays that are not used: 'val_images'",)


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["anna", "bo", "anna", "ä", "bo", "bo"]),
        np.array([b"anna", b"bo", b"anna", "ä".encode(), b"bo", b"bo"]),
    ],
)
@pytest.mark.parametrize("key", ["client_ids", "clients", "writers", "user_id"])
def test_client_ids(tmp_path: Path, key: str, ids: NDArray[Any]) -> None:
    table = read(save(tmp_path / "a.npz", x=IMAGES, y=LABELS, **{key: ids})).tables["train"]
    assert list(table.owner_ids) == ["anna", "bo", "ä"]
    assert table.owners.tolist() == [0, 1, 0, 2, 1, 1]


def test_whole_numbers_are_ids_as_they_are_written(tmp_path: Path) -> None:
    ids = np.array([10, 9, 10, -1, 9, 9])
    table = read(save(tmp_path / "a.npz", x=IMAGES, y=LABELS, client_id=ids)).tables["train"]
    assert list(table.owner_ids) == ["-1", "10", "9"]


def test_options_name_arrays(tmp_path: Path) -> None:
    arrays = {"x_train": IMAGES, "fine": LABELS, "y_train": LABELS // 2, "who": LABELS}
    test = {"x_test": IMAGES[:2], "fine_test": LABELS[:2], "y_test": LABELS[:2], "who_test": [1, 2]}
    path = save(tmp_path / "a.npz", **arrays, **test)
    found = read(path, label_column="fine", id_column="who")
    assert found.tables["train"].labels.tolist() == LABELS.tolist()
    assert found.tables["test"].labels.tolist() == [7, 0]
    assert list(found.tables["train"].owner_ids) == ["0", "1", "2", "3", "7"]
    assert list(found.tables["test"].owner_ids) == ["1", "2"]
    by_default = read(path, label_column="y_train").tables["train"]
    assert by_default.labels.tolist() == (LABELS // 2).tolist()
    assert "holds 'x_train'" in message_of(path, ConfigError, label_column="coarse")
    assert "--id-column nobody" in message_of(path, ConfigError, id_column="nobody")


@pytest.mark.parametrize(
    ("pixels", "kept", "scale"),
    [
        (IMAGES > 100, np.uint8, 1 / 255),
        ((IMAGES / 255).astype(np.float32), np.uint8, 1 / 255),
        (IMAGES / 255, np.uint8, 1 / 255),
        ((IMAGES / 255).astype(">f4"), np.uint8, 1 / 255),
        (IMAGES.astype(np.float64), np.uint8, 1 / 255),
        (IMAGES.astype(np.int64), np.uint8, 1 / 255),
        ((IMAGES / 239).astype(np.float32), np.float32, 1.0),
        (IMAGES + 0.25, np.float32, 1 / 255),
    ],
)
def test_types_become_uint8_or_float32(
    tmp_path: Path, pixels: NDArray[Any], kept: type, scale: float
) -> None:
    found = read(save(tmp_path / "a.npz", x=pixels, y=LABELS))
    table = found.tables["train"]
    assert table.pixels.dtype == kept
    assert table.scale == scale
    expected = pixels / (255 if pixels.max() > 1 else 1)
    shown = decode(table.pixels, table.scale, table.offset)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1.2e-7)
    assert len(found.notes) == 1
    top = 255 if pixels.max() > 1 else 1
    assert (
        f"0 to {top} in the source" in found.notes[0]
        or f"taken as the range 0 to {top}," in found.notes[0]
    )


def test_the_range_is_that_of_all_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of 0 and 1 only, in a first block or a test split, must not give the range 0-1."""
    monkeypatch.setattr(shared, "BLOCK_BYTES", 80)
    pixels = IMAGES.astype(np.float32)
    pixels[:3] = 1.0
    path = save(
        tmp_path / "a.npz", x_train=pixels, y_train=LABELS, x_test=pixels[:2], y_test=[0, 1]
    )
    found = read(path)
    for name, count in (("train", 6), ("test", 2)):
        table = found.tables[name]
        shown = decode(table.pixels, table.scale, table.offset)
        np.testing.assert_allclose(shown, pixels[:count] / 255, rtol=0, atol=6e-8)


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [((6, 16), (4, 4)), ((6, 4, 4), (4, 4)), ((6, 4, 4, 1), (4, 4)), ((6, 4, 4, 3), (4, 4, 3))],
)
def test_shapes(tmp_path: Path, shape: tuple[int, ...], becomes: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    table = read(save(tmp_path / "a.npz", x=pixels, y=LABELS)).tables["train"]
    np.testing.assert_array_equal(table.pixels, pixels.reshape(6, *becomes))


def test_image_shape_of_flat_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=IMAGES.reshape(6, 20), y=LABELS)
    assert "20 pixels do not make a square image; pass --image-shape" in message_of(path)
    table = read(path, image_shape=(4, 5)).tables["train"]
    np.testing.assert_array_equal(table.pixels, IMAGES)


@pytest.mark.parametrize(("level", "convention"), [(200, "background"), (20, "ink")])
def test_borders_tell_ink_from_background(tmp_path: Path, level: int, convention: str) -> None:
    pixels = np.full((6, 5, 5), 255 - level, np.uint8)
    pixels[:, [0, -1], :] = level
    pixels[:, :, [0, -1]] = level
    assert read(save(tmp_path / "a.npz", x=pixels, y=LABELS)).pixel_convention == convention
    colour = np.repeat(pixels[..., None], 3, axis=3)
    assert read(save(tmp_path / "b.npz", x=colour, y=LABELS)).pixel_convention == "ink"


def test_headers_of_python_2_are_read(tmp_path: Path) -> None:
    old = npy(IMAGES).replace(b"(6, 4, 5)", b"(6L,4,5L)")
    path = write_zip(tmp_path / "a.npz", {"x": old, "y": npy(LABELS)})
    np.testing.assert_array_equal(read(path).tables["train"].pixels, IMAGES)


def test_any_byte_but_zero_is_true(tmp_path: Path) -> None:
    content = npy(IMAGES > 100)[:-120] + IMAGES.tobytes()
    path = write_zip(tmp_path / "a.npz", {"x": content, "y": npy(LABELS)})
    np.testing.assert_array_equal(read(path).tables["train"].pixels, (IMAGES > 0) * 255)


def test_fit_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 80)
    told: list[tuple[int, int | None]] = []
    path = save(tmp_path / "a.npz", x=IMAGES, y=LABELS, x_test=IMAGES[:1], y_test=LABELS[:1])
    options = ImportOptions(fit=lambda pixels: pixels[:, :2])
    found = recognising.read([path], options, tmp_path, lambda *at: told.append(at))
    np.testing.assert_array_equal(found.tables["train"].pixels, IMAGES[:, :2])
    assert [each for each in told if each[1]] == [(4, 7), (6, 7), (7, 7)]


@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    count = data.draw(st.integers(1, 9))
    sides = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    channels = data.draw(st.sampled_from([(), (3,), (4,)]))
    dtype = data.draw(st.sampled_from(["u1", "<f4", ">f8", "?", "<i2"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    levels = rng.integers(0, 256, (count, *sides, *channels)).astype(np.uint8)
    levels.flat[0] = 255  # if all of a few pixels were at most 16, the range would be unclear
    pixels = levels.astype(dtype)
    labels = rng.integers(0, 20, count).astype(data.draw(st.sampled_from(["u1", ">i2", "<i8"])))
    ids = rng.integers(0, 3, count)
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    write(path, x=pixels, y=labels, clients=ids)
    table = read(path).tables["train"]
    is_shares = dtype != "u1" and pixels.max() <= 1
    np.testing.assert_array_equal(table.pixels, pixels.astype(int) * (255 if is_shares else 1))
    np.testing.assert_array_equal(table.labels, labels)
    assert [table.owner_ids[owner] for owner in table.owners] == [str(each) for each in ids]


# ---- What is refused -----------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Bomb()], object)
    for key in ("x", "y", "client_ids"):
        arrays = {"x": IMAGES[:1], "y": LABELS[:1], key: objects}
        assert f"array {key!r}: holds Python objects" in message_of(
            save(tmp_path / "a.npz", **arrays)
        )
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"x": IMAGES}, "no labels for 'x' among 'x'; name"),
        ({"y": LABELS}, "no images for 'y' among 'y'; name"),
        ({"a": IMAGES, "b": LABELS}, "no images and labels among 'a', 'b'"),
        ({}, "no images and labels among no arrays"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "no labels for 'x_test'"),
        ({"x": IMAGES, "data": IMAGES, "y": LABELS}, "'x' and 'data' could both be"),
        ({"x": IMAGES, "x_train": IMAGES, "y": LABELS}, "'x' and 'x_train' could both be"),
        ({"x": IMAGES, "y": LABELS, "label": LABELS}, "'y' and 'label' could both be used"),
        ({"x": IMAGES, "y": LABELS[:5]}, "6 images but 5 labels in 'y'"),
        ({"x": IMAGES, "y": LABELS, "clients": LABELS[:5]}, "6 images but 5 client ids"),
        ({"x": IMAGES, "y": LABELS + 0.5}, "example 0: label 7.5 is not a whole number"),
        ({"x": IMAGES, "y": np.eye(6, dtype=int) * 2}, "this row is not one-hot (0 ones)"),
        ({"x": IMAGES, "y": np.int64(3)}, "labels have shape []"),
        ({"x": IMAGES, "y": LABELS, "clients": LABELS / 2}, "client ids are float64"),
        ({"x": IMAGES, "y": LABELS, "clients": np.array(["a" * 256] * 6)}, "client ids are <U256"),
        ({"x": IMAGES, "y": LABELS, "clients": np.array(["a"] * 5 + [""])}, "client id '': an id"),
        ({"x": IMAGES, "y": LABELS, "clients": np.array([b"\xff"] * 6)}, "a client id is not text"),
        (
            {"x": IMAGES, "y": LABELS, "clients": np.array(["ä" * 200] * 6)},
            "an id must have 1 to 255",
        ),
        (
            {"x": IMAGES, "y": LABELS, "clients": np.array(["\ud800"] * 6)},
            "an id must have 1 to 255",
        ),
        ({"x": IMAGES, "y": LABELS, "clients": GARBLED}, "'clients': a text in it has a code that"),
        ({"x": IMAGES, "y": GARBLED}, "'y': a text in it has a code that is not a character"),
        ({"x": IMAGES, "y": GARBLED.astype(">U1")}, "'y': a text in it has a code that is not a"),
        ({"x": IMAGES.astype(complex), "y": LABELS}, "pixels are complex128"),
        ({"x": IMAGES.astype(str), "y": LABELS}, "pixels are <U3"),
        ({"x": IMAGES.view([("a", "u1")]), "y": LABELS}, "pixels are [('a', 'u1')]"),
        ({"x": np.uint8(3), "y": LABELS}, "pixels have shape []"),
        ({"x": IMAGES[:, 0, 0], "y": LABELS}, "pixels have shape [6]"),
        ({"x": IMAGES[:, :0], "y": LABELS}, "pixels have shape [6, 0, 5]"),
        ({"x": np.zeros((1, 4097, 1)), "y": LABELS[:1]}, "too large"),
        ({"x": IMAGES.transpose(0, 2, 1).copy(order="F"), "y": LABELS}, "in Fortran order"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "holds no examples"),
        ({"x": IMAGES, "y": LABELS - 1}, "array 'y': example 1: label -1 cannot be a class"),
        ({"x": IMAGES, "y": LABELS + 2**40}, "label 1099511627783 cannot be a class"),
        ({"x": IMAGES, "y": LABELS.astype("u8") - 1}, "label 18446744073709551615 cannot"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], fault: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert fault in message_of(path)


@pytest.mark.parametrize("value", [np.nan, -np.inf, -0.5, 255.5, 1e300])
def test_pixels_that_are_impossible(
    tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 2 * 20 * 8)
    pixels = IMAGES / 255
    pixels[4, 3, 1] = value
    fault = "a pixel is NaN or infinite" if not np.isfinite(value) else f"{value:g}"
    message = message_of(save(tmp_path / "a.npz", x=pixels, y=LABELS))
    assert "array 'x': example 4: " in message
    assert fault in message


def test_labels_beyond_the_number_of_classes_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=IMAGES, y=LABELS, clients=list("ababab"))
    assert read(path, num_classes=12).num_classes == 12
    message = message_of(path, num_classes=7)
    assert "client 'a': example 0: label 7 is outside 0 to 6; pass --num-classes 8" in message


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (npy(IMAGES)[:-1], "needs 248 bytes but it has 247"),
        (npy(IMAGES) + b"\0", "needs 248 bytes but it has 249"),
        (npy(IMAGES)[:100], "not a complete .npz archive"),
        (b"", "not a complete .npz archive"),
        (b"PK" + npy(IMAGES), "not a complete .npz archive"),
        (npy(IMAGES, version=(3, 0)), "not a complete .npz archive (.npy version (3, 0))"),
        (
            npy(IMAGES).replace(b"(6, 4, 5)", b"(6, 4,-5)"),
            "not a complete .npz archive (its header is garbled)",
        ),
        (
            npy(IMAGES).replace(b"(6, 4, 5)", b"(-6,4,-5)"),
            "not a complete .npz archive (its header is garbled)",
        ),
        (npy(IMAGES).replace(b"(6, 4, 5)", b"(6, 4.,5)"), "not a complete .npz archive"),
        (npy(IMAGES).replace(b"|u1", b"|u9"), "not a complete .npz archive"),
        (npy(IMAGES).replace(b"{'descr'", b"exit(  )"), "not a complete .npz archive"),
        (
            npy(IMAGES).replace(b"(6, 4, 5), }" + b" " * 19, b"(4294967296, 4294967296, 64), }"),
            "its shape [4294967296, 4294967296, 64]",
        ),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bad_member(tmp_path: Path, content: bytes, fault: str, method: int) -> None:
    path = write_zip(tmp_path / "a.npz", {"x": content, "y": npy(LABELS)}, method)
    message = message_of(path)
    assert "array 'x': " in message
    assert fault in message


def test_unusual_packing(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.npz", {"x": npy(IMAGES), "y": npy(LABELS)}, zipfile.ZIP_BZIP2)
    assert "compressed by an unusual method" in message_of(path)


def patched(path: Path, place_in_entry: int, form: str, value: int, signature: bytes) -> Path:
    """Overwrites a number in the zip file's first entry that begins with `signature`."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(signature) + place_in_entry, value)
    path.write_bytes(content)
    return path


def test_encrypted_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.npz", {"x": npy(IMAGES), "y": npy(LABELS)})
    assert "is encrypted" in message_of(patched(path, 8, "<H", 1, b"PK\1\2"))


def test_members_that_lie_about_their_size(tmp_path: Path) -> None:
    """The zip directory declares a wrong length, which fits the header of the array."""
    huge = npy(np.empty((60_000, 4, 5), np.uint8))[:128]
    path = write_zip(tmp_path / "a.npz", {"x": huge, "y": npy(np.zeros(60_000, int))})
    patched(path, 24, "<I", 128 + 1_200_000, b"PK\1\2")
    assert "claims to unpack 1200128 bytes from" in message_of(path)
    some = npy(IMAGES)[:-40]
    path = write_zip(tmp_path / "b.npz", {"x": some, "y": npy(LABELS)})
    assert "array 'x': " in message_of(patched(path, 24, "<I", len(some) + 40, b"PK\1\2"))
    # More is packed than the directory declares. Only the declared length is read, so the
    # checksum is wrong.
    path = write_zip(tmp_path / "c.npz", {"x": npy(IMAGES) + bytes(9999), "y": npy(LABELS)})
    assert "array 'x': " in message_of(patched(path, 24, "<I", len(npy(IMAGES)), b"PK\1\2"))


def test_bomb_is_not_unpacked(tmp_path: Path) -> None:
    head = npy(np.empty((1 << 26, 0, 5), np.uint8)).replace(b"0, 5)", b"1, 1)")[:128]
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as member:
            member.write(head)
            for _ in range(64):
                member.write(bytes(1 << 20))
        archive.writestr("y.npy", npy(LABELS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "images but 6 labels" in message_of(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.npz", {"x": npy(IMAGES), "y": npy(LABELS)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", npy(IMAGES))
    assert "holds 'x' twice" in message_of(path)


def test_cut_archive(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    content = path.read_bytes()
    for cut in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert npz.recognises(path)
        assert "not a complete .npz archive" in message_of(path)


@given(data=st.data())
def test_garbled_bytes_raise_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    write(path, x=IMAGES, y=LABELS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message = ""
    try:
        read(path, format="npz")
    except (DataError, ConfigError) as err:
        message = str(err)
    assert "\n" not in message


def test_other_zip_files_are_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert not npz.recognises(path)
    assert not npz.recognises(tmp_path)


def test_several_archives_are_clients_unless_the_format_is_npz(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, x=IMAGES, y=LABELS) for name in ("a.npz", "b.npz")]
    assert list(recognising.read(paths).tables["train"].owner_ids) == ["a", "b"]
    with pytest.raises(DataError, match=r"b\.npz: a \.npz archive is a single file"):
        recognising.read(paths, ImportOptions(format="npz"))
