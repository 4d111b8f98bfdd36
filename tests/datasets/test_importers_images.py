"""Folders of images: folders give classes and clients, contents give pixels, errors name files."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fedcli.datasets.importers import picture_tables, recognising
from fedcli.datasets.importers.fit import Fit
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.errors import ConfigError, DataError, FedcliError

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
COLOR = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4


def save(path: Path, pixels: Any = GREY, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def read(path: Path, folder: Path | None = None, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(format="images", **options), folder)


def message_of(root: Path, **options: Any) -> str:
    with pytest.raises(FedcliError) as caught:
        read(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def first_image(root: Path, **options: Any) -> np.ndarray:
    pixels: np.ndarray = read(root, **options).tables["train"].pixels[0]
    return pixels


@pytest.mark.parametrize("folders", ["class", "client/class"])
def test_a_class_whose_name_is_no_text(tmp_path: Path, folders: str) -> None:
    parent = tmp_path / "ann" if "client" in folders else tmp_path
    save(parent / os.fsdecode(b"caf\xe9") / "1.png")
    assert "class 'caf\\udce9': a name must have 1 to 255 bytes" in message_of(
        tmp_path, folders=folders
    )


# ---- Layouts -------------------------------------------------------------------------------------


def test_one_folder_per_class(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "1.png", GREY + 2)
    save(tmp_path / "cat" / "2.png", GREY + 1)
    save(tmp_path / "cat" / "1.png", GREY)
    save(tmp_path / "cat" / ".hidden.png")
    save(tmp_path / ".git" / "1.png")
    assert recognising.recognise([tmp_path]) == "images"
    imported = read(tmp_path)
    table = imported.tables["train"]
    assert imported.class_names == ("cat", "dog")
    assert table.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(table.pixels, [GREY, GREY + 1, GREY + 2])
    assert (list(table.owner_ids), imported.num_classes) == ([], 2)
    assert (table.scale, table.offset, imported.pixel_convention) == (1 / 255, 0.0, "ink")


def test_one_folder_per_client_with_one_per_class(tmp_path: Path) -> None:
    for client, name in (("eve", "b"), ("bob", "b"), ("bob", "a")):
        save(tmp_path / client / name / "x.png")
    imported = read(tmp_path)
    table = imported.tables["train"]
    assert imported.class_names == ("a", "b")
    assert list(table.owner_ids) == ["bob", "eve"]
    assert (table.owners.tolist(), table.labels.tolist()) == ([0, 0, 1], [0, 1, 1])


def test_one_folder_per_client_with_classes_in_file_names(tmp_path: Path) -> None:
    for client, name in (("eve", "7_a-b.png"), ("bob", "10-1_2.png"), ("bob", "7-0.png")):
        save(tmp_path / client / name)
    imported = read(tmp_path, folders="client")
    table = imported.tables["train"]
    assert imported.class_names == ("7", "10")
    assert list(table.owner_ids) == ["bob", "eve"]
    assert (table.owners.tolist(), table.labels.tolist()) == ([0, 0, 1], [1, 0, 0])
    save(tmp_path / "bob" / "_.png")
    assert "takes the class from the name up to its first" in message_of(tmp_path, folders="client")


@pytest.mark.parametrize("name", ["test", "val", "Valid", "validation"])
def test_splits(tmp_path: Path, name: str) -> None:
    save(tmp_path / "train" / "b" / "1.png")
    save(tmp_path / name / "a" / "1.png", GREY + 1)
    imported = read(tmp_path)
    assert list(imported.tables) == ["train", "test"]
    assert imported.class_names == ("a", "b")
    assert imported.tables["train"].labels.tolist() == [1]
    assert imported.tables["test"].labels.tolist() == [0]


def test_train_among_other_names_is_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        save(tmp_path / name / "1.png")
    assert read(tmp_path).class_names == ("bus", "train")


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    for name in ("train", "valid", "val", "test"):
        save(tmp_path / name / "a" / "1.png")
    message = message_of(tmp_path)
    assert "val and valid would both be split 'validation'" in message
    assert "--splits train=train,validation=valid" in message
    splits = {"train": "train", "validation": "valid", "test": "test"}
    assert list(read(tmp_path, splits=splits).tables) == ["train", "test", "validation"]


def test_numbers_sort_by_value(tmp_path: Path) -> None:
    for name in ("10", "9", "x"):
        save(tmp_path / name / "1.png")
    assert read(tmp_path).class_names == ("9", "10", "x")


def test_mixed_depths_and_wrong_layouts(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "c" / "1.png")
    save(tmp_path / "b" / "c" / "2.png")
    assert message_of(tmp_path).startswith(
        f"pictures lie at several depths: 1 at depth 1 ({tmp_path}/a/1.png), 2 at depth 2 "
        f"({tmp_path}/b/c/1.png); put all into class folders (depth 1), or "
    )
    save(tmp_path / "0.png")
    assert message_of(tmp_path).startswith(
        f"{tmp_path}: pictures lie directly in it (0.png, 1 in total); put them into one folder "
        "for each "
    )
    (tmp_path / "0.png").unlink()
    (tmp_path / "a" / "1.png").unlink()
    save(tmp_path / "d" / "e" / "1.png")
    assert "choose --folders class if the outer folders are classes" in message_of(tmp_path)
    assert read(tmp_path, folders="class").class_names == ("b", "d")
    save(tmp_path / "d" / "f" / "1.png")
    assert message_of(tmp_path, folders="class") == (
        f"{tmp_path}/b/c/1.png: does not fit --folders class, which means one folder per class; "
        "choose --folders client/class"
    )
    save(tmp_path / "b" / "c" / "d" / "e" / "1.png")
    message = message_of(tmp_path, folders="client/class")
    assert (
        f"4 at depth 2 ({tmp_path}/b/c/1.png), 1 at depth 4 ({tmp_path}/b/c/d/e/1.png)" in message
    )


def test_only_file_names_of_omniglot_give_drawers(tmp_path: Path) -> None:
    for client, numbers in (("ann", (1, 2)), ("bob", (3, 4))):
        for place, number in enumerate(numbers):
            for drawer in (1, 2):
                name = f"{number:04d}_{drawer:02d}.png"
                save(tmp_path / "a" / client / f"character{place}" / name)
                save(tmp_path / "b" / client / f"person{number}" / name)
                split = "train" if client == "ann" else "test"
                save(tmp_path / "c" / split / f"character{place}" / name)
    drawn = read(tmp_path / "a").tables["train"]
    assert list(drawn.owner_ids) == ["ann 01", "ann 02", "bob 01", "bob 02"]
    assert read(tmp_path / "a").class_names[:2] == ("ann/character0", "ann/character1")
    assert list(read(tmp_path / "b").tables["train"].owner_ids) == ["ann", "bob"]
    assert list(read(tmp_path / "c").tables) == ["train", "test"]


def test_images_nested_too_deeply(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/b/d", "e/f/g", "e/h/i"):
        save(tmp_path / name / "1.png")
    assert f"{tmp_path}/a/b/c: is nested too deeply; " in message_of(tmp_path)


def test_a_split_without_images(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "test" / "a").mkdir(parents=True)
    imported = read(tmp_path)
    assert list(imported.tables) == ["train"]
    assert imported.notes == ("folder test holds no pictures, so there is no such split",)


def test_a_single_picture_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a" / "1.png")
    assert "pictures are read from a folder, or from a table" in message_of(path)


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"")
    imported = read(tmp_path)
    assert len(imported.tables["train"]) == 1
    assert imported.notes[0] == "2 files that are not images were left out, for example README.txt"
    (tmp_path / "README.txt").unlink()
    assert read(tmp_path).notes[0] == "1 file that is not an image was left out: a/Thumbs.db"
    (tmp_path / "a" / "1.png").unlink()
    assert "no images in its folders" in message_of(tmp_path)
    with pytest.raises(DataError, match="format was not recognised"):
        recognising.recognise([tmp_path])


def test_links_are_followed_only_within_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside" / "a" / "1.png")
    root = tmp_path / "root"
    save(root / "a" / "1.png")
    (root / "a" / "2.png").symlink_to(root / "a" / "1.png")
    assert len(read(root).tables["train"]) == 2
    (root / "a" / "3.png").symlink_to(outside)
    assert f"{root}/a/3.png: is a link to a file outside the folder" in message_of(root)
    (root / "a" / "3.png").unlink()
    (root / "b").symlink_to(outside.parent)
    assert f"{root}/b: is a link to a file outside the folder" in message_of(root)
    (root / "b").unlink()
    (root / "a" / "loop").symlink_to(root)
    assert message_of(root)


# ---- Pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp", "tiff"])
def test_formats_by_content(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / "a" / f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    path.rename(path.with_name("image"))
    np.testing.assert_array_equal(first_image(tmp_path, color="grey"), GREY)


def test_jpeg_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.jpg", np.full((4, 5), 100, np.uint8))
    assert np.abs(first_image(tmp_path).astype(int) - 100).max() <= 2


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY + shift) for shift in (0, 9)]
    save(tmp_path / "a" / "1.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(first_image(tmp_path, color="grey"), GREY)


@given(
    pixels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2)),
    is_color=st.booleans(),
)
def test_png_round_trip(
    pixels: np.ndarray, is_color: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("images")
    if is_color:
        pixels = np.stack([pixels, 255 - pixels, pixels // 2], axis=-1)
    save(root / "a" / "1.png", pixels)
    imported = read(root)
    np.testing.assert_array_equal(imported.tables["train"].pixels[0], pixels)
    if is_color:
        assert imported.pixel_convention == "ink"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_exif(tmp_path: Path, orientation: int) -> None:
    turns: dict[int, Any] = {  # the rotation for each value, from the standard's table
        1: lambda grey: grey,
        2: np.fliplr,
        3: lambda grey: np.rot90(grey, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda grey: np.rot90(grey, -1),
        7: lambda grey: np.rot90(grey, 2).T,
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a" / "1.png", exif=exif)
    np.testing.assert_array_equal(first_image(tmp_path), turns[orientation](GREY))


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(first_image(tmp_path), GREY)


def test_different_colours_and_sizes_are_reported_together(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "a" / "2.png", COLOR[:3])
    message = message_of(tmp_path)
    assert "choose --color grey or --color rgb for all, and --size" in message
    save(tmp_path / "a" / "2.png", COLOR)
    assert "--size" not in message_of(tmp_path)


def test_the_first_image_decides_on_colour(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", COLOR)
    save(tmp_path / "a" / "2.png", GREY)
    table = read(tmp_path).tables["train"]
    np.testing.assert_array_equal(table.pixels[0], COLOR)
    np.testing.assert_array_equal(table.pixels[1], np.stack([GREY] * 3, axis=-1))
    save(tmp_path / "a" / "0.png", GREY)
    message = message_of(tmp_path)
    assert message.startswith(f"{tmp_path}/a/1.png: is in colour but earlier images are grey")
    assert "--color grey or --color rgb" in message
    assert read(tmp_path, color="grey").tables["train"].pixels.shape == (3, 4, 5)
    assert read(tmp_path, color="rgb").tables["train"].pixels.shape == (3, 4, 5, 3)


def test_colour_files_without_colours_among_grey_ones(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", GREY)
    save(tmp_path / "a" / "1.png", np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(read(tmp_path).tables["train"].pixels[1], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_drawn_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((4, 5), np.uint8)
    alpha[1:] = 255
    image = Image.fromarray(np.dstack([GREY, GREY, GREY, alpha]))
    if mode == "P":
        image = Image.fromarray(GREY).convert("P")
        image.info["transparency"] = 0
        expected = np.where(GREY == 0, 255, GREY)
    else:
        image = image.convert(mode)
        expected = np.where(alpha == 0, 255, GREY)
    save(tmp_path / "a" / "1.png", image)
    np.testing.assert_array_equal(first_image(tmp_path, color="grey"), expected)
    np.testing.assert_array_equal(first_image(tmp_path, color="rgb")[..., 1], expected)


def test_sixteen_bits_become_float32(tmp_path: Path) -> None:
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    save(tmp_path / "a" / "1.png", deep)
    save(tmp_path / "a" / "2.tiff", deep)
    table = read(tmp_path).tables["train"]
    assert (table.pixels.dtype, table.scale) == (np.dtype(np.float32), 1.0)
    for image in table.pixels:
        np.testing.assert_array_equal(image, (deep / 65535).astype(np.float32))
    assert first_image(tmp_path, color="rgb").shape == (4, 5, 3)
    save(tmp_path / "a" / "3.png", GREY)
    mixed = read(tmp_path).tables["train"].pixels
    np.testing.assert_allclose(mixed[2], GREY / 255, rtol=0, atol=1.2e-7)


def test_light_borders_are_background(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 255 - GREY // 4)
    assert read(tmp_path).pixel_convention == "background"


def test_sizes_must_be_equal_or_fitted(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "a" / "2.png", GREY.T)
    message = message_of(tmp_path)
    assert message.startswith(f"{tmp_path}/a/2.png: 5 x 4 pixels but {tmp_path}/a/1.png has 4 x 5")
    assert "--size 28x28" in message
    fitted = read(tmp_path, fit=Fit((8, 8), centre=True)).tables["train"]
    assert fitted.pixels.shape == (2, 8, 8)


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    for number in range(300):
        save(tmp_path / "a" / f"{number:03}.bmp", np.full((2, 2), number % 256, np.uint8))
    told: list[tuple[int, int | None]] = []
    imported = recognising.read([tmp_path], ImportOptions(), None, lambda *each: told.append(each))
    values = imported.tables["train"].pixels[:, 0, 0].tolist()
    assert values == [number % 256 for number in range(300)]
    assert told[-1] == (300, 300)


# ---- Bad input -----------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Returns a PNG whose header declares a size that its data need not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
@pytest.mark.parametrize("share", [0, 0.2, 0.6, 0.9])
def test_truncated_images(tmp_path: Path, suffix: str, share: float) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 2654435761 >> 7
    path = save(tmp_path / "a" / f"1.{suffix}", pixels.astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = message_of(tmp_path)
    assert message.startswith(f"{path}: not a complete image (")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_garbled_images_are_read_or_refused(tmp_path: Path, suffix: str, seed: int) -> None:
    path = save(tmp_path / "a" / f"1.{suffix}", np.zeros((16, 16), np.uint8))
    content = path.read_bytes()
    generator = np.random.default_rng(seed)
    for _ in range(60):
        garbled = np.frombuffer(content, np.uint8).copy()
        garbled[generator.integers(0, len(garbled), 4)] = generator.integers(0, 256, 4)
        path.write_bytes(garbled.tobytes())
        try:
            read(tmp_path)
        except DataError as err:
            assert str(path) in str(err)  # noqa: PT017
            assert "\n" not in str(err)  # noqa: PT017


@pytest.mark.parametrize(
    ("width", "height"),
    [(5000, 10), (10, 5000), (20_000, 20_000), (10_000, 9_500), (2**31 - 1,) * 2],
)
def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = save(tmp_path / "a" / "1.png")
    path.write_bytes(png(width, height))
    message = message_of(tmp_path)
    assert str(path) in message
    assert "at most 4096 x 4096" in message


def test_a_file_that_only_has_the_name_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.png"
    path.parent.mkdir()
    path.write_text("no image")
    assert message_of(tmp_path) == (
        f"{path}: not a complete image (none of PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM); "
        "repair or remove it"
    )


def test_decoders_of_other_formats_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.png"
    path.parent.mkdir()
    content = io.BytesIO()
    Image.fromarray(GREY).save(content, "TGA")
    path.write_bytes(content.getvalue())
    assert f"{path}: not a complete image" in message_of(tmp_path)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a" / "1.tiff", GREY.astype(np.float32))
    assert f"{path}: pixels are floating-point numbers" in message_of(tmp_path)


def test_client_ids_that_no_store_can_keep(tmp_path: Path) -> None:
    root = str(tmp_path).encode()
    name = root + b"/\xff\xfe"
    Path(name.decode(errors="surrogateescape")).mkdir()
    save(Path((name + b"/a").decode(errors="surrogateescape")) / "1.png")
    save(tmp_path / "b" / "a" / "1.png")
    save(tmp_path / "b" / "b" / "1.png")
    assert "rename the client" in message_of(tmp_path).encode("utf-8", "replace").decode()


def test_without_pillow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a" / "1.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    line = "needs Pillow; run pip install 'fedcli[images]'"
    assert recognising.recognise([tmp_path]) == "images"
    assert message_of(tmp_path) == f"reading images {line}"
    with pytest.raises(ConfigError, match="--size needs Pillow"):
        Fit((28, 28), centre=False)
    Fit(None, centre=True)


def test_a_json_table_of_nothing_but_objects_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "labels.jsonl"
    table.write_text('{"of": {"file": "a.png"}}\n{"of": {"file": "b.png"}}\n')
    with pytest.raises(DataError, match=r"labels.jsonl: line 1: no field holds a text or a number"):
        picture_tables.read_table(table)


def _with_labels(folder: Path, text: str) -> Path:
    save(folder / "a.png")
    save(folder / "b.png")
    (folder / "labels.txt").write_text(f"{text}\na.png -{text}\nb.png {text}\n", "utf-8")
    return folder


@pytest.mark.parametrize("digit", ["\u00b2", "\u0663"])
def test_digits_that_int_refuses_or_reads_as_others_are_names(tmp_path: Path, digit: str) -> None:
    """isdigit() accepts a superscript 2 and an Arabic 3."""
    imported = read(_with_labels(tmp_path, digit))
    assert imported.class_names == (f"-{digit}", digit)
    assert imported.tables["train"].labels.tolist() == [0, 1]


def test_a_label_of_more_digits_than_int_reads_is_one_line(tmp_path: Path) -> None:
    message = message_of(_with_labels(tmp_path, "9" * 5000))
    assert message.startswith(f"{tmp_path}/labels.txt: line 2: class '-999")
    assert message.endswith(
        "a name must have 1 to 255 bytes of UTF-8 and no zero byte; rename the class"
    )
