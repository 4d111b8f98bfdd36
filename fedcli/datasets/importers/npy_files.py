"""Several .npy files of NumPy: x.npy and y.npy, or x_train.npy, y_train.npy and so on.

They are read like one .npz archive whose arrays have these names.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from copy import copy
from pathlib import Path
from typing import IO

from fedcli.datasets.importers import split_names
from fedcli.datasets.importers.npz import IMAGES, LABELS, read_arrays
from fedcli.datasets.importers.npz_file import (
    has_arrays,
    members_of,
    open_archive,
    read_header,
)
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.errors import DataError
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback

_SIGNATURE = b"\x93NUMPY"


class NpyFiles:
    """Files with one array each, with the interface of an .npz archive.

    A file is a .npy file, or an archive with one array, whose name in the archive is ignored. Use
    it as a context manager: the end of the context closes the archives.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Opens the files. The key of an array is the name of its file without the ending.

        If all names contain the same client, as x_ann.npy and y_ann.npy do, the client is not part
        of the key. The key of an archive such as kmnist-train-imgs.npz is made from its role and
        split: x_train.
        """
        roles = {path: role_of(path.stem) for path in files}
        rests = {role[1] for role in roles.values() if role is not None}
        is_client = len(rests) == 1 and not any(map(split_names.kind_of, rests))
        self._stack = ExitStack()
        self._files: dict[str, Path] = {}
        self._archives: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for path in files:
            role = roles[path]
            key = role[0] if role is not None and is_client else path.stem
            if has_signature(path):
                self._files[f"{key}.npy"] = path
                continue
            kind = split_names.kind_of(role[1]) if role is not None else None
            if role is not None and kind is not None:
                key = f"{role[0]}_{kind}"
            archive = self._stack.enter_context(open_archive(path))
            (member,) = members_of(archive, path).values()
            self._archives[f"{key}.npy"] = archive, member

    def __enter__(self) -> NpyFiles:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the archives."""
        self._stack.close()

    def infolist(self) -> list[zipfile.ZipInfo]:
        """Returns the name and size of each file."""
        infos = []
        for name, path in self._files.items():
            info = zipfile.ZipInfo(name)
            info.file_size = info.compress_size = path.stat().st_size
            infos.append(info)
        for name, (_, member) in self._archives.items():
            info = copy(member)
            info.filename = name
            infos.append(info)
        return infos

    def open(self, name: zipfile.ZipInfo) -> IO[bytes]:
        """Returns the open file. Raises OSError."""
        if name.filename in self._archives:
            archive, member = self._archives[name.filename]
            return archive.open(member)
        return open_regular(self._files[name.filename])


def holds_one_array(path: Path) -> bool:
    """Returns whether a file is an archive of one array, named like images or labels."""
    if role_of(path.stem) is None or not has_arrays(path):
        return False
    with suppress(DataError), open_archive(path) as archive:
        members = members_of(archive, path)
        if len(members) == 1:
            ((key, info),) = members.items()
            header = read_header(archive, info, key, path, may_hold_objects=True)
            return not header.dtype.hasobject
    return False


def has_signature(path: Path) -> bool:
    """Returns whether a file begins like a .npy file."""
    return start_of(path, len(_SIGNATURE)) == _SIGNATURE


def role_of(stem: str) -> tuple[str, str] | None:
    """Returns whether a file's name says images or labels, and the rest of the name.

    Returns:
        ("x" or "y", the name without that word), such as ("x", "client_3") for "client_3_x"; None
        if the name says neither.
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
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the splits that the files of a folder hold.

    Args:
        sources: A folder, or the files.
        options: See `npz.read`.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: An option names an array that does not exist.
        DataError: A file is damaged, or the arrays cannot be used.
        OSError: A file cannot be read, or the disk is full.
    """
    files = [path for path in files_of(sources) if has_signature(path) or holds_one_array(path)]
    if not files:
        raise DataError(f"{sources[0]}: holds no .npy files; give files of images and of labels")
    where = sources[0] if len(sources) == 1 else files[0].parent
    with NpyFiles(files) as arrays:
        return read_arrays(arrays, where, options, folder, on_progress)
