"""Whole files or none: text and bytes appear under their name only when they are safely written."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedcli.errors import ConfigError, RunError, why_not_written


def check_is_no_input(path: Path, inputs: Iterable[Path], label: str) -> None:
    """Refuses to write to what is read; `label` is what the user gave `path` as.

    Raises:
        ConfigError: `path` is one of the inputs, perhaps under another name, or in one of them.
    """
    for each in inputs:
        with contextlib.suppress(OSError):  # one of them is not there
            if path.samefile(each) or each.resolve() in path.resolve(strict=True).parents:
                raise ConfigError(f"{label} is what is read ({each}); choose another name")


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file that is either the old one or the whole new one, also after a power cut.

    Raises:
        RunError: The folder does not exist or is not writable, the disk is full, or `path` names
            something that is not a regular file.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is not a regular file; choose another name")
        write_synced(temporary, content)
        os.replace(temporary, path)  # noqa: PTH105
        sync_folder(path.parent)
    except OSError as err:
        raise RunError(f"cannot write {path}: {why_not_written(err)}") from err
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def text_bytes(text: str) -> bytes:
    r"""Returns text as UTF-8; of a file's name that is not UTF-8, the bytes as `\udcff`."""
    return text.encode(errors="backslashreplace")


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new file and waits until the disk has it. Raises OSError."""
    with path.open("xb", buffering=0) as file:
        write_all(file, content)
        os.fsync(file.fileno())


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Writes all of it, however many bytes the system takes at a time. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in `folder`. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LINE = json.JSONEncoder(allow_nan=False)  # made once: two lines a round are written with it
_INDENTED = json.JSONEncoder(allow_nan=False, indent=2)


def json_text(value: Any, *, indented: bool = False) -> str:
    """Returns JSON, in one line or indented, with null for every number that is not finite."""
    encoder = _INDENTED if indented else _LINE
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    is_finite = not isinstance(value, float) or value - value == 0
    return value if is_finite else None
