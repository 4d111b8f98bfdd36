"""Pillow, which the extra `images` brings: the one place that says how to get it."""

from __future__ import annotations

from types import ModuleType

from fedcli.errors import ConfigError


def load_pillow(what: str) -> ModuleType:
    """Returns Pillow's module Image, or an error that starts with `what` needs it.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as err:
        raise ConfigError(f"{what} needs Pillow; run pip install 'fedcli[images]'") from err
    return Image
