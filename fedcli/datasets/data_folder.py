"""The folder of downloaded files and of the stores made from them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedcli.errors import DataError
from fedcli.files import make_folders

VARIABLE = "FEDCLI_DATA_DIR"


def find_data_folder(given: Path | None = None) -> Path:
    """Returns the folder of all downloads, which need not exist.

    The package platformdirs determines the user's cache folder, by the rules of freedesktop.org and
    macOS. It is imported inside this function, because few commands need it.

    Args:
        given: The value of `--data-dir`; None: FEDCLI_DATA_DIR, or else the user's cache folder.
    """
    set_folder = os.environ.get(VARIABLE)
    if given is None and set_folder:
        given = Path(set_folder)
    if given is None:
        import platformdirs

        given = Path(platformdirs.user_cache_dir("fedcli", appauthor=False))
    return given.absolute()


def store_path(data_folder: Path, name: str) -> Path:
    """Returns the path of the store of a public dataset."""
    return data_folder / "datasets" / f"{name}.h5"


def download_path(data_folder: Path, folder: str, name: str) -> Path:
    """Returns the path of a downloaded file."""
    return data_folder / "downloads" / folder / name


def make_folder(folder: Path) -> None:
    """Makes a folder below the data folder, with its parents.

    Raises:
        DataError: It cannot be made or written to. The message says which variable or option to
            set.
    """
    try:
        make_folders(folder)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "no permission to write there"
    except OSError as err:
        reason = err.strerror or str(err)
    if reason:
        raise DataError(
            f"{folder}: {reason}; set {VARIABLE} to a folder for datasets, or give --data-dir"
        )


@contextlib.contextmanager
def leaving_no_empty_folders(data_folder: Path) -> Iterator[None]:
    """Removes the empty folders that were made within this context, if an exception ends it.

    This includes folders above the data folder.
    """
    there = set(_folders(data_folder))
    above = [each for each in data_folder.parents if not each.exists()]
    try:
        yield
    except BaseException:
        for each in [*sorted(_folders(data_folder), reverse=True), *above]:
            if each not in there:
                with contextlib.suppress(OSError):  # something is in it
                    each.rmdir()
        raise


def remove_empty_folders(data_folder: Path) -> None:
    """Removes the empty folders in a data folder, and then the data folder if it is empty."""
    for each in sorted(_folders(data_folder), reverse=True):
        with contextlib.suppress(OSError):  # something is in it
            each.rmdir()


def _folders(data_folder: Path) -> list[Path]:
    """A data folder, and the folders that fedcli makes in it."""
    found = [data_folder, data_folder / "datasets", data_folder / "downloads"]
    found += (data_folder / "downloads").glob("*")
    return [each for each in found if each.is_dir() and not each.is_symlink()]
