"""Finds finished runs in other folders by their keys, and copies them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from fedcli.errors import ConfigError, RunError, why_not_written
from fedcli.outputs import locked_folder, temporary_name
from fedcli.runs.listing import find_runs, is_in_use
from fedcli.runs.record import load_run
from fedcli.sweeps.keys import Keys
from fedcli.sweeps.outcomes import is_complete


def find_by_key(folders: Iterable[Path], keys: Keys) -> dict[str, Path]:
    """Returns the complete runs in folders and their subfolders, by key. Leaves out damaged runs.

    Raises:
        RunError: One of the folders does not exist.
    """
    runs_by_key: dict[str, Path] = {}
    for path in (run for folder in folders for run in find_runs(folder)):
        key = _key_of(path, keys)
        if key is not None:
            runs_by_key.setdefault(key, path)
    return runs_by_key


def _key_of(path: Path, keys: Keys) -> str | None:
    """The key of a run; None if it is damaged or not complete."""
    try:
        record = load_run(path)
        return keys.of_record(record.config, record.provenance) if is_complete(record) else None
    except (ConfigError, RunError):
        return None


def take_copy(run: Path, path: Path) -> bool:
    """Copies a finished run. The copy gets its name when it is complete.

    Returns:
        False if a process writes to the run, or it has vanished.

    Raises:
        RunError: The copy cannot be written.
    """
    if is_in_use(run) or not run.is_dir():
        return False
    temporary = temporary_name(path)
    try:
        with locked_folder(temporary):
            shutil.copytree(run, temporary, dirs_exist_ok=True)
            temporary.rename(path)
    except (OSError, shutil.Error) as err:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = why_not_written(err) if isinstance(err, OSError) else str(err)
        raise RunError(f"cannot copy {run} to {path}: {reason}") from err
    return True
