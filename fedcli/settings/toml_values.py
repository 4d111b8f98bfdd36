"""Reads options that are written in TOML: one value, or a whole document."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.options import Value

# Numbers with no digit on one side of the point, which TOML does not allow.
_BARE_POINT = re.compile(r"[+-]?([0-9]+\.|\.[0-9]+)(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)


def _toml() -> Any:
    """The TOML reader, in the standard library from Python 3.11 on. Its import takes 12 ms."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Returns a whole document; `source` names it in errors.

    Raises:
        ConfigError: The text is not TOML.
    """
    toml = _toml()
    try:
        document: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as err:  # a number of 5,000 digits is a plain ValueError
        raise ConfigError(f"{source} is not TOML: {str(err) or 'nested too deeply'}") from err
    return document


def toml_value(text: str) -> Value:
    """Returns a TOML boolean, number, string or list; any other text is returned unchanged.

    So `style=reddi` gives text, and every text is accepted. Python's True and False, and numbers
    such as .5 and 2. are also read.
    """
    if text in ("True", "False"):
        return text == "True"
    toml = _toml()
    try:
        document = toml.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return float(text) if _BARE_POINT.fullmatch(text) else text
    value = document["value"]
    if len(document) == 1 and isinstance(value, bool | int | float | str | list):
        return value
    return text


def parse_options(texts: Iterable[str], option: str) -> dict[str, Value]:
    """Returns the map of the `k=v` texts given to `option`, with values as in `toml_value`.

    Raises:
        ConfigError: A text has no key or no equals sign, or a key is given twice.
    """
    parsed: dict[str, Value] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not key or not equals:
            raise ConfigError(f"{option} {text!r} is not of the form key=value")
        if key in parsed:
            raise ConfigError(f"{option} {key} is given twice; give it once")
        parsed[key] = toml_value(value.strip())
    return parsed
