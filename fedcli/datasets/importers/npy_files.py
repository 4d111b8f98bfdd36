"""NumPy's .npy files side by side: x.npy and y.npy, or x_train.npy, y_train.npy and so on.

They are read as one .npz archive with these names is.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fedcli.datasets.importers import split_names
from fedcli.datasets.importers.npz import IMAGES, LABELS, read_arrays
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.errors import DataError
from fedcli.files import open_regular
from fedcli.progress import Tell

_SIGNATURE = b"\x93NUMPY"


class NpyFiles:
    """Files of arrays that look like the members of an archive."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Takes the files; the name of each without its ending is the key of its array.

        Where all of them name one client, as x_ann.npy and y_ann.npy do, that is no part of it.
        """
        roles = {path: role_of(path.stem) for path in files}
        rests = {role[1] for role in roles.values() if role is not None}
        is_client = len(rests) == 1 and not any(map(split_names.kind_of, rests))
        keys = {
            path: role[0] if role is not None and is_client else path.stem
            for path, role in roles.items()
        }
        self._files = {f"{key}.npy": path for path, key in keys.items()}

    def infolist(self) -> list[zipfile.ZipInfo]:
        """Returns what is known of each file."""
        infos = []
        for name, path in self._files.items():
            info = zipfile.ZipInfo(name)
            info.file_size = info.compress_size = path.stat().st_size
            infos.append(info)
        return infos

    def open(self, name: zipfile.ZipInfo) -> IO[bytes]:
        """Returns the open file. Raises OSError."""
        return open_regular(self._files[name.filename])


def has_signature(path: Path) -> bool:
    """Returns whether a file is one of NumPy's arrays."""
    return start_of(path, len(_SIGNATURE)) == _SIGNATURE


def role_of(stem: str) -> tuple[str, str] | None:
    """Returns whether a file's name says images or labels, and what else it says.

    Returns:
        ("x" or "y", the name without that word), as ("x", "client_3") for "client_3_x"; None where
        the name says neither.
    """
    words = re.split(r"[-_ .]", stem)
    for place in (0, len(words) - 1):
        for role, names in (("x", IMAGES), ("y", LABELS)):
            if words[place].lower() in names:
                return role, "_".join(words[:place] + words[place + 1 :])
    return None


def recognises(path: Path) -> bool:
    """Returns whether a path is a .npy file or a folder that directly holds images and labels."""
    if path.is_file():
        return has_signature(path)
    if not path.is_dir() or not any_file(path, has_signature):
        return False
    roles = [role_of(each.stem) for each in files_of([path]) if has_signature(each)]
    rests = [role[1] for role in roles if role is not None]
    return bool(rests) and all(not rest or split_names.kind_of(rest) for rest in rests)


def read(
    sources: Sequence[Path], options: ImportOptions, folder: Path | None, tell: Tell
) -> Imported:
    """Returns the splits that the files of a folder hold.

    Args:
        sources: A folder, or the files.
        options: As `npz.read`.
        folder: Where pixels are kept meanwhile.
        tell: Called with the number of examples read.

    Raises:
        ConfigError: An option names no array.
        DataError: A file is damaged, or the arrays cannot be used.
        OSError: A file cannot be read, or the disk is full.
    """
    files = [path for path in files_of(sources) if has_signature(path)]
    if not files:
        raise DataError(f"{sources[0]}: holds no .npy files; give images and labels")
    where = sources[0] if len(sources) == 1 else files[0].parent
    return read_arrays(NpyFiles(files), where, options, folder, tell)
