"""Folders of image files: one folder a class, or one a client with one a class in each.

With --folders client there is one folder a client, and a file's name up to its first "_" or "-" is
its class. Folders train and test (or val) at the top are splits. Pillow decodes the files.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import Pixels
from fedcli.datasets.checks import MAX_SIDE
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.pillow import load_pillow, turn_upright
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.table import TableWriter
from fedcli.errors import ConfigError, DataError
from fedcli.progress import Tell

_LAYOUTS = {
    "class": "one folder a class",
    "client": "one folder a client",
    "client/class": "one folder a client with one a class in each",
}
FOLDERS = tuple(_LAYOUTS)
COLORS = ("grey", "rgb")

_DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
_MAX_DEPTH = 3  # folders above an image: split, client and class
_LOOKED_AT = 1000  # entries looked at to recognise a folder
_BLOCK_IMAGES = 256
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B"}  # 16 bits a pixel
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class _File:
    """An image and what its place says of it."""

    path: Path
    class_name: str
    client_id: str | None


def recognises(path: Path) -> bool:
    """Returns whether there are images among the first files of a folder's folders."""
    if not path.is_dir():
        return False
    with suppress(DataError):  # `read` says what is wrong
        return any(map(_looks_like_image, islice(_walk(path, path.resolve()), _LOOKED_AT)))
    return False


def read(
    sources: Sequence[Path], options: ImportOptions, folder: Path | None, tell: Tell
) -> Imported:
    """Returns the images of a folder, classes numbered as their names sort (numbers by value).

    Grey or colour is what the first image is, unless `options.color` says. What is transparent
    lies on white; what EXIF says lies on its side is turned; 16-bit greys become float32. Of an
    animation the first frame is read. Files that are no images by content and by name are left
    out, and counted in a note.

    Args:
        sources: One folder.
        options: `folders`, `color`, `num_classes` and `fit` apply.
        folder: Where pixels are kept meanwhile.
        tell: Called with the number of images read.

    Raises:
        ConfigError: Pillow is not installed, or an option is not allowed.
        DataError: The layout is unclear, or an image cannot be used: names the file.
        OSError: A file cannot be read, or the disk is full.
    """
    pillow = load_pillow("reading images")
    _check_options(sources, options)
    root = sources[0]
    splits, num_left_out = _find_files(root, options.folders)
    names = {file.class_name for files in splits.values() for file in files}
    class_names = sorted(names, key=_class_key)
    labels = {name: label for label, name in enumerate(class_names)}
    total = sum(map(len, splits.values()))
    decoder = _Decoder(pillow, options.color, is_fitted=options.fit is not None)
    tables = {}
    done = 0
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, on files that it reads nevertheless
        for split, files in splits.items():
            source = str(root if len(splits) == 1 else root / split)
            writer = stack.enter_context(TableWriter(source, folder, fit=options.fit))
            for block, pixels in decoder.blocks(files):
                owners = [file.client_id for file in block if file.client_id is not None]
                writer.add(
                    pixels,
                    np.array([labels[file.class_name] for file in block], np.int64),
                    scale=1 / 255 if pixels.dtype == np.uint8 else 1.0,
                    offset=0.0,
                    owners=owners or None,
                    where=str(block[0].path),
                )
                done += len(block)
                tell(done, total)
            tables[split] = writer.table()
    left_out = (f"{num_left_out} files that are no images were left out",) if num_left_out else ()
    return shared.imported(
        tables,
        options,
        source=str(root),
        pixel_convention=shared.convention_of(tables),
        class_names=class_names,
        notes=left_out,
    )


def _check_options(sources: Sequence[Path], options: ImportOptions) -> None:
    if len(sources) != 1 or not sources[0].is_dir():
        raise ConfigError(f"{sources[-1]}: images are read from one folder; give it alone")
    for option, value, allowed in (
        ("--folders", options.folders, FOLDERS),
        ("--color", options.color, COLORS),
    ):
        if value not in (None, *allowed):
            raise ConfigError(f"{option} {value}: choose one of {', '.join(allowed)}")


# ---- Which files, and what their places say ------------------------------------------------------


def _find_files(root: Path, folders: str | None) -> tuple[dict[str, list[_File]], int]:
    """The images of each split, and how many other files there are."""
    splits: dict[str, list[_File]] = {}
    num_left_out = 0
    first: dict[int, Path] = {}  # image of each depth, over all splits
    depths: Counter[int] = Counter()
    for split, place in _split_folders(root).items():
        files = []
        num_before = depths.total()
        for path in _walk(place, root.resolve()):
            if not _looks_like_image(path) and path.suffix.lower() not in _SUFFIXES:
                num_left_out += 1
                continue
            parts = path.relative_to(place).parts
            first.setdefault(len(parts), path)
            depths[len(parts)] += 1
            if len(parts) > 1:
                files.append(_describe(path, parts, folders))
        if depths.total() == num_before:
            raise DataError(
                f"{place}: no images in its folders ({', '.join(_DECODERS)} are read); "
                "put them into one folder a class"
            )
        splits[split] = files
    _check_depths(depths, first, folders)
    return splits, num_left_out


def _too_deep(path: Path) -> DataError:
    return DataError(
        f"{path}: lies too deep; only class folders, client folders or class folders within client "
        "folders are read"
    )


def _check_depths(depths: Counter[int], first: dict[int, Path], folders: str | None) -> None:
    """Checks that all images lie as deep as one another, and as --folders says.

    Raises:
        DataError: They do not; the message counts them.
    """
    if 1 in depths:
        one = "client" if folders == "client" else "class"
        raise DataError(
            f"{first[1].parent}: pictures lie directly in it ({first[1].name}, {depths[1]:,} in "
            f"all); put them into one folder a {one}"
        )
    if len(depths) > 1:
        listed = ", ".join(
            f"{depths[each]:,} at depth {each - 1} ({first[each]})" for each in sorted(depths)
        )
        raise DataError(
            f"pictures lie at several depths: {listed}; lay all in class folders (depth 1), or all "
            "in class folders within client folders (depth 2)"
        )
    (depth,) = depths
    if depth > 3:
        raise _too_deep(first[depth].parent)
    if folders is None:
        return
    if (depth == 3) != (folders == "client/class"):
        raise DataError(
            f"{first[depth]}: does not lie in {_LAYOUTS[folders]}, as --folders {folders} says; "
            f"choose {'--folders client/class' if depth == 3 else '--folders class or client'}"
        )


def _describe(path: Path, parts: tuple[str, ...], folders: str | None) -> _File:
    if len(parts) == 3:
        class_name = shared.check_class_name(parts[1], str(path.parent))
        return _File(path, class_name, shared.check_id(parts[0], str(path.parent.parent)))
    if folders != "client":
        return _File(path, shared.check_class_name(parts[0], str(path.parent)), None)
    name = path.name
    ends = [place for place in (name.find("_"), name.find("-")) if place > 0]
    if not ends:
        raise DataError(
            f"{path}: --folders client takes the class from the name up to its first '_' or '-', "
            "and there is none; rename it, as in cat_001.png"
        )
    class_name = shared.check_class_name(name[: min(ends)], str(path))
    return _File(path, class_name, shared.check_id(parts[0], str(path.parent)))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, train first; the root itself where it holds no splits alone."""
    names = [each.name for each in _entries(root) if each.is_dir()]
    splits: dict[str, Path] = {}
    for name in names:
        split = _SPLITS.get(name.lower())
        if split is None:
            return {"train": root}
        if split in splits:
            raise DataError(
                f"{root}: {splits[split].name} and {name} would both be split {split!r}; "
                "move one away"
            )
        splits[split] = root / name
    if "train" not in splits:
        return {"train": root}
    return {split: splits[split] for split in ("train", "test") if split in splits}


def _walk(folder: Path, root: Path, depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """Yields the files below a folder, sorted; hidden ones and those too deep are left alone.

    Raises:
        DataError: There is a link that leads out of `root`, or folders are nested too deep.
    """
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{path}: is a link out of the folder; copy what it leads to")
        if entry.is_file():
            yield path
        elif entry.is_dir():
            if not depth:
                raise _too_deep(path)
            yield from _walk(path, root, depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _looks_like_image(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(12)
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _class_key(name: str) -> tuple[int, str]:
    """Numbers sort by value, before names."""
    is_number = name.isascii() and name.isdigit() and len(name) < 10
    return (int(name) if is_number else 10**10, name)


# ---- Decoding ------------------------------------------------------------------------------------


class _Decoder:
    """Decodes images to one kind of pixels, and without a fit to one size: those of the first."""

    def __init__(self, pillow: Any, color: str | None, *, is_fitted: bool) -> None:
        self._pillow = pillow
        self._color = color
        self._is_asked = color is not None
        self._is_fitted = is_fitted
        self._first: tuple[Path, tuple[int, ...]] | None = None

    def blocks(self, files: Sequence[_File]) -> Iterator[tuple[list[_File], Pixels]]:
        """Yields images [k, H, W] or [k, H, W, C] of one size and type with their files."""
        block: list[_File] = []
        images: list[NDArray[Any]] = []
        num_bytes = 0
        for file in files:
            image = self._decode(file.path)
            is_full = len(block) == _BLOCK_IMAGES or num_bytes > shared.BLOCK_BYTES
            is_alike = not images or (image.shape, image.dtype) == (
                images[0].shape,
                images[0].dtype,
            )
            if is_full or not is_alike:
                yield block, np.stack(images)
                block, images, num_bytes = [], [], 0
            block.append(file)
            images.append(image)
            num_bytes += image.nbytes
        yield block, np.stack(images)

    def _decode(self, path: Path) -> NDArray[Any]:
        pixels = self._read(path)
        if self._first is None:
            self._first = path, pixels.shape[:2]
        first, shape = self._first
        if pixels.shape[:2] != shape and not self._is_fitted:
            height, width = pixels.shape[:2]
            raise DataError(
                f"{path}: {height} x {width} pixels but {first} has {shape[0]} x {shape[1]}; "
                "bring all to one size, as with --size 28x28"
            )
        return pixels

    def _read(self, path: Path) -> NDArray[Any]:
        # Whatever damaged bytes make Pillow raise (OSError, ValueError, SyntaxError, struct.error,
        # zlib.error, …) means that the file is damaged.
        try:
            with self._pillow.open(path, formats=_DECODERS) as image:
                width, height = image.size
                if max(width, height) <= MAX_SIDE:
                    return self._convert(image, path)
        except self._pillow.DecompressionBombError as err:
            raise DataError(f"{path}: far too large; at most {MAX_SIDE} a side is read") from err
        except self._pillow.UnidentifiedImageError as err:
            raise DataError(
                f"{path}: no whole image (none of {', '.join(_DECODERS)}); mend or remove it"
            ) from err
        except (DataError, MemoryError):
            raise
        except Exception as err:
            reason = str(err).partition("\n")[0].replace(str(path), "the file")[:120]
            raise DataError(f"{path}: no whole image ({reason}); mend or remove it") from err
        raise DataError(
            f"{path}: {height} x {width} pixels are too large; at most {MAX_SIDE} a side is read"
        )

    def _convert(self, image: Any, path: Path) -> NDArray[Any]:
        image.load()
        turn_upright(image)
        if image.mode == "F":
            raise DataError(f"{path}: pixels are floating-point numbers; save them as 8 or 16 bits")
        if image.mode in _DEEP_MODES and self._color in (None, "grey"):
            self._color = "grey"
            return _deep_grey(image, path)
        if image.mode in _DEEP_MODES:
            grey = self._pillow.fromarray((_deep_grey(image, path) * 255).round().astype(np.uint8))
            return np.asarray(grey.convert("RGB"))
        is_grey = image.mode in _GREY_MODES
        flat = self._on_white(image)
        if self._color is None:
            self._color = "grey" if is_grey else "rgb"
        if self._color == "rgb":
            return np.asarray(flat.convert("RGB"))
        if not (is_grey or self._is_asked or _has_no_color(flat)):
            raise DataError(
                f"{path}: has colours but the images before have none; choose --color grey or "
                f"--color rgb for all{self._size_advice(image)}"
            )
        return np.asarray(flat.convert("L"))

    def _size_advice(self, image: Any) -> str:
        """What to do beside where an image is not of the first one's size."""
        if self._first is None or self._is_fitted or image.size[::-1] == self._first[1]:
            return ""
        return ", and --size, as with --size 28x28, as sizes differ, too"

    def _on_white(self, image: Any) -> Any:
        """The image without transparency."""
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            sheet = self._pillow.new("RGBA", image.size, _WHITE)
            return self._pillow.alpha_composite(sheet, image).convert("RGB")
        return image


def _deep_grey(image: Any, path: Path) -> NDArray[np.float32]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path}: has more than 16 bits a pixel; save it as 8 or 16 bits")
    return (values / 65535).astype(np.float32)


def _has_no_color(image: Any) -> bool:
    channels = np.asarray(image.convert("RGB"))
    return bool((channels == channels[..., :1]).all())
