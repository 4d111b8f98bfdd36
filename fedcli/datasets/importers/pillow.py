"""Imports Pillow, which the extra `images` installs; the error says how to install it."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType
from typing import Any

from fedcli.errors import ConfigError


def load_pillow(what: str) -> ModuleType:
    """Returns Pillow's module Image. `what` is the name of the task that needs Pillow.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as err:
        raise ConfigError(f"{what} needs Pillow; run pip install 'fedcli[images]'") from err
    return Image


def turn_upright(image: Any) -> None:
    """Turns an image in place by its EXIF orientation; damaged metadata are ignored."""
    from PIL import ImageOps

    # Damaged metadata can raise any exception, and the pixels are usable without them.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
