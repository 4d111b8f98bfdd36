"""Checks where a store may be written, and that test data are not the train data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedcli.errors import DataError, RunError
from fedcli.outputs import resolve_output


def check_place(out: Path, sources: Sequence[Path]) -> None:
    """Checks, before any work, that a store can be written at a path.

    Raises:
        DataError: The folder does not exist or is not writable, something other than a file has
            that name, or the path is a source or inside one.
    """
    folder = out.parent
    try:
        if not folder.is_dir():
            raise DataError(f"--out {out}: there is no folder {folder}; create it first")
        resolve_output(out)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DataError(f"--out {out}: no permission to write in {folder}; choose another")
        if out.exists() and any(each.exists() and each.samefile(out) for each in sources):
            raise DataError(f"--out {out} is a source itself; choose another name")
        inside = next((each for each in sources if _holds(each, folder)), None)
        if inside is not None:
            raise DataError(
                f"--out {out} lies in the source {inside}; choose a place outside that folder"
            )
    except OSError as err:
        where = f"--out {out}" if str(err.filename) == str(out) else err.filename
        raise DataError(f"{where}: cannot be accessed ({err.strerror}); check the path") from err
    except RunError as err:
        raise DataError(f"--out {err}") from err


def _holds(source: Path, folder: Path) -> bool:
    """Whether a source is the folder or one of its parents, after following links."""
    return source.is_dir() and folder.resolve().is_relative_to(source.resolve())


def check_test_data(sources: Sequence[Path], test_data: Path | None) -> None:
    """Checks that test data are not the train data. Raises DataError."""
    if test_data is None or not test_data.exists():  # a missing file is reported when it is read
        return
    same = next((each for each in sources if each.exists() and each.samefile(test_data)), None)
    if same is not None:
        raise DataError(
            f"--test-data {test_data} is the source {same} itself; give other data, or hold out a "
            "share of the source with --hold-out within"
        )
