"""The contents of a folder, split into parts so that two folders can be compared.

Files are compared byte by byte. Containers are compared part by part: each member of a zip archive
(.npz, .keras), each dataset (type, shape, bytes) and attribute of an HDF5 file, each row of an
SQLite file. How a container stores its parts (compression, order on disk, time stamps) is not
compared.

These are left out, because they differ between two runs of the same program: the files
`timings.jsonl` and `lock`; in `config.toml` all of [provenance] except the data's fingerprint and
the instruction set; and in printed JSON the values of VOLATILE.
"""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SKIPPED_FILES = frozenset({"timings.jsonl", "lock"})
VOLATILE = frozenset({"seconds", "peak_memory_bytes"})
_KEPT_PROVENANCE = ("data", "test_data", "isa")
_SQLITE = b"SQLite format 3\0"

Contents = dict[str, bytes]


def of_folder(folder: Path, skipped: frozenset[str] = frozenset()) -> Contents:
    """Returns the contents of all files below `folder`, by name; parts are named `file:part`.

    Args:
        folder: The folder to read; links are not followed.
        skipped: Names of entries of `folder` to leave out.
    """
    found: Contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in skipped or path.name in SKIPPED_FILES or not path.is_file():
            continue
        if path.read_bytes()[: len(_SQLITE)] == _SQLITE:
            found |= _of_sqlite(str(name), path)
        elif not path.name.endswith((".sqlite-wal", ".sqlite-shm")):
            found |= _of_file(str(name), path.read_bytes())
    return found


def of_printed(text: str) -> bytes:
    """Returns the JSON that a command printed, without the values that differ from run to run."""
    return json.dumps(_without_volatile(json.loads(text)), indent=1).encode()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(each) for key, each in value.items() if key not in VOLATILE}
    return [_without_volatile(each) for each in value] if isinstance(value, list) else value


def _of_file(name: str, content: bytes) -> Contents:
    if content.startswith(b"\x89HDF\r\n\x1a\n"):
        return _of_hdf5(name, content)
    if content.startswith(b"PK\3\4"):
        return _of_archive(name, content)
    if Path(name).name == "config.toml":
        return {name: _config(content)}
    return {name: content}


def _of_archive(name: str, content: bytes) -> Contents:
    found: Contents = {f"{name}:": b"zip archive"}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.namelist():
            found |= _of_file(f"{name}:{member}", archive.read(member))
    return found


def _of_hdf5(name: str, content: bytes) -> Contents:
    found: Contents = {}

    def take(path: str, item: Any) -> None:
        found[f"{name}:{path}"] = b"group"
        if isinstance(item, h5py.Dataset):
            found[f"{name}:{path}"] = _value(item[()], item.dtype)
        for key in item.attrs:
            found[f"{name}:{path}@{key}"] = _value(item.attrs[key], item.attrs.get_id(key).dtype)

    with h5py.File(io.BytesIO(content), "r") as file:
        take("", file)
        file.visititems(take)
    return found


def _value(value: Any, dtype: np.dtype) -> bytes:
    """Returns a line with type and shape, then the bytes, or the text if its length varies."""
    if isinstance(value, h5py.Empty):
        return f"{dtype} empty".encode()
    array = np.asarray(value)
    raw = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    return f"{dtype} {array.shape}\n".encode() + raw


def _of_sqlite(name: str, path: Path) -> Contents:
    found: Contents = {}
    connection = sqlite3.connect(path)
    try:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
        for table, sql in connection.execute(query).fetchall():
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
            found[f"{name}:{table}"] = "\n".join([sql, *sorted(map(repr, rows))]).encode()
    finally:
        connection.close()
    return found


def _config(content: bytes) -> bytes:
    """Returns a config.toml without what [provenance] says about the program and the machine."""
    head, mark, tail = content.decode().partition("[provenance]\n")
    kept = [line for line in tail.splitlines() if line.partition(" = ")[0] in _KEPT_PROVENANCE]
    return (head + mark + "\n".join(kept)).encode()


def differences(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the differences in words, by name; empty if both are the same."""
    found = {}
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            found[name] = "only made before"
        elif name not in before:
            found[name] = "only made after"
        elif before[name] != after[name]:
            found[name] = _difference(before[name], after[name])
    return found


def _difference(before: bytes, after: bytes) -> str:
    try:
        old, new = before.decode().splitlines(), after.decode().splitlines()
    except UnicodeDecodeError:
        old, new = [], []
    for number, (a, b) in enumerate(zip(old, new, strict=False), 1):
        if a != b:
            at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            start = max(at - 40, 0)
            return f"line {number}: {a[start : at + 40]!r}, now {b[start : at + 40]!r}"
    if len(before) != len(after):
        return f"{len(before):,} bytes, now {len(after):,}"
    count = sum(a != b for a, b in zip(before, after, strict=True))
    return f"{count:,} of {len(before):,} bytes differ"
