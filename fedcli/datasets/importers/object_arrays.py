"""Reads a dictionary of arrays that `numpy.savez` pickled, such as PFLlib's `data`.

No code is executed: `plain_pickle` interprets the pickle and refuses anything but plain values.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedcli.datasets.importers import plain_pickle
from fedcli.datasets.importers.npz_file import Members, members_of, read_header, reading
from fedcli.errors import DataError


class PickledArrays:
    """The arrays of a dictionary, with the interface of an archive."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        """Takes the arrays by name."""
        self._contents: dict[str, bytes] = {}
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
            self._contents[f"{name}.npy"] = buffer.getvalue()

    def infolist(self) -> list[zipfile.ZipInfo]:
        """Returns the name and size of each array."""
        infos = []
        for name, content in self._contents.items():
            info = zipfile.ZipInfo(name)
            info.file_size = info.compress_size = len(content)
            infos.append(info)
        return infos

    def open(self, name: zipfile.ZipInfo) -> IO[bytes]:
        """Opens the bytes of one array."""
        return io.BytesIO(self._contents[name.filename])


def unpickled(archive: Members, path: Path) -> Members:
    """Returns the arrays of the pickled dictionary in an archive, or the archive if it has none.

    Args:
        archive: The archive.
        path: The file.

    Raises:
        DataError: The only array is pickled, and its pickle holds more than plain values. The
            message says how to convert it.
    """
    members = members_of(archive, path)
    if len(members) != 1:
        return archive
    ((key, info),) = members.items()
    if info.file_size > plain_pickle.MAX_BYTES:
        return archive
    array = read_header(archive, info, key, path, may_hold_objects=True)
    if not array.dtype.hasobject:
        return archive
    where = f"{path}: array {key!r}"
    try:
        with reading(where), archive.open(info) as member:
            content = member.read(plain_pickle.MAX_BYTES + 1)
        found = plain_pickle.read_stream(io.BytesIO(content[array.start :]), has_object=True)
        return PickledArrays(_arrays(found))
    except ValueError as err:
        raise DataError(
            f"{where}: holds Python objects, which are never unpickled, and {err}; convert it "
            f"where it was made: python -c \"import numpy; numpy.savez('converted.npz', "
            f"**numpy.load('{path.name}', allow_pickle=True)['{key}'].item())\""
        ) from err


def _arrays(found: Any) -> dict[str, Any]:
    """The items of a dictionary as arrays. Raises ValueError for anything but numbers and texts."""
    if not isinstance(found, dict):
        raise ValueError("its only object is not a dictionary of arrays")  # noqa: TRY004
    arrays = {name: np.asarray(value) for name, value in found.items()}
    wrong = next((name for name, each in arrays.items() if each.dtype.kind not in "biufUS"), None)
    if wrong is not None:
        raise ValueError(f"{str(wrong)[:40]!r} in it is not an array of numbers")
    return {str(name): each for name, each in arrays.items()}
