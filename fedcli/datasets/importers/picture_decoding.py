"""Decodes picture files.

All images get the same channels. They must have the same size, unless they are resized later.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import Pixels
from fedcli.datasets.checks import MAX_SIDE
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.picture_files import DECODERS
from fedcli.datasets.importers.pillow import turn_upright
from fedcli.errors import DataError

_BLOCK_IMAGES = 256
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B"}  # modes with 16 bits per pixel
_OPAQUE = 255  # alpha
_WHITE = (255, 255, 255, 255)
_READ_WHOLE = 256 << 20  # files up to this size are read into memory before decoding


class HasPath(Protocol):
    """A picture. If it is not a file of its own, its attribute `content` has its bytes."""

    @property
    def path(self) -> Path:
        """The path, which messages show."""


FileType = TypeVar("FileType", bound=HasPath)


class Decoder:
    """Decodes images to equal channels. Sizes must be equal, unless images are resized later."""

    def __init__(self, pillow: Any, color: str | None, *, is_fitted: bool) -> None:
        """Takes Pillow, the colours to produce, and whether sizes may differ.

        `color` is "grey" or "rgb"; None means the colours of the first image.
        """
        self.num_transparent = 0  # transparent pictures so far, which are drawn on white
        self._pillow = pillow
        self._color = color
        self._has_given_color = color is not None
        self._is_fitted = is_fitted
        self._first: tuple[Path, tuple[int, ...]] | None = None

    def blocks(self, files: Sequence[FileType]) -> Iterator[tuple[list[FileType], Pixels]]:
        """Yields images [k, H, W] or [k, H, W, C] of one size and type with their files."""
        block: list[FileType] = []
        images: list[NDArray[Any]] = []
        num_bytes = 0
        for file in files:
            image = self._decode(file.path, getattr(file, "content", None))
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

    def _decode(self, path: Path, content: bytes | None) -> NDArray[Any]:
        pixels = self._read(path, content)
        if self._first is None:
            self._first = path, pixels.shape[:2]
        first, shape = self._first
        if pixels.shape[:2] != shape and not self._is_fitted:
            height, width = pixels.shape[:2]
            raise DataError(
                f"{path}: {height} x {width} pixels but {first} has {shape[0]} x {shape[1]}; "
                "resize all to one size, as in --size 28x28"
            )
        return pixels

    def _read(self, path: Path, content: bytes | None) -> NDArray[Any]:
        # Any error of Pillow (OSError, ValueError, SyntaxError, struct.error, zlib.error, …) means
        # that the file is damaged.
        try:
            if content is None and path.stat().st_size <= _READ_WHOLE:
                content = path.read_bytes()
            # In memory, a damaged length in the file cannot make Pillow read beyond the file's end.
            file = path if content is None else io.BytesIO(content)
            with self._pillow.open(file, formats=DECODERS) as image:
                width, height = image.size
                if max(width, height) <= MAX_SIDE:
                    return self._convert(image, path)
        except self._pillow.DecompressionBombError as err:
            raise DataError(
                f"{path}: is far too large; resize it to at most {MAX_SIDE} x {MAX_SIDE}"
            ) from err
        except self._pillow.UnidentifiedImageError as err:
            raise DataError(
                f"{path}: not a complete image (none of {', '.join(DECODERS)}); repair or remove it"
            ) from err
        except (DataError, MemoryError):
            raise
        except Exception as err:
            reason = str(err).partition("\n")[0].replace(str(path), "the file")[:120]
            raise DataError(
                f"{path}: not a complete image ({reason}); repair or remove it"
            ) from err
        raise DataError(
            f"{path}: {height} x {width} pixels are too many; resize it to at most {MAX_SIDE} x "
            f"{MAX_SIDE}"
        )

    def _convert(self, image: Any, path: Path) -> NDArray[Any]:
        image.load()
        turn_upright(image)
        if image.mode == "F":
            raise DataError(
                f"{path}: pixels are floating-point numbers; save them with 8 or 16 bits"
            )
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
        if not (is_grey or self._has_given_color or _has_no_color(flat)):
            raise DataError(
                f"{path}: is in colour but earlier images are grey; choose --color grey or --color "
                f"rgb for all{self._size_advice(image)}"
            )
        return np.asarray(flat.convert("L"))

    def _size_advice(self, image: Any) -> str:
        """Returns further advice if an image does not have the size of the first one."""
        if self._first is None or self._is_fitted or image.size[::-1] == self._first[1]:
            return ""
        return ", and --size, such as --size 28x28, because sizes differ, too"

    def _on_white(self, image: Any) -> Any:
        """The image without transparency."""
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            self.num_transparent += image.getchannel("A").getextrema()[0] < _OPAQUE
            background = self._pillow.new("RGBA", image.size, _WHITE)
            return self._pillow.alpha_composite(background, image).convert("RGB")
        return image


def _deep_grey(image: Any, path: Path) -> NDArray[np.float32]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path}: has more than 16 bits per pixel; save it with 8 or 16 bits")
    return (values / 65535).astype(np.float32)


def _has_no_color(image: Any) -> bool:
    channels = np.asarray(image.convert("RGB"))
    return bool((channels == channels[..., :1]).all())
