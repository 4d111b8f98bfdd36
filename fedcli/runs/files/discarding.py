"""Deletes the folder of a new run that has completed no round."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fedcli.learning import client_states
from fedcli.runs.files import client_records, folder

_FILES = {
    *(folder.CONFIG, folder.METRICS, folder.METRICS_CSV, folder.TIMINGS, folder.LOCK),
    *(client_records.FILE, client_records.JOURNAL),
}
# The folders in a run's folder, with a pattern of their files before the end of round 1.
_FOLDERS = {folder.CHECKPOINTS: r"round-0+\.h5", folder.EVENT_FILES: r".*tfevents.*"}


def discard(path: Path) -> None:
    """Deletes a run's folder if it holds only what a run writes before its first round ends.

    An error is ignored, because the folder is then like that of a run that was killed.

    Args:
        path: The folder, which this process has locked.
    """
    if all(_is_of_run(each, path) for each in path.rglob("*")):
        shutil.rmtree(path, ignore_errors=True)


def _is_of_run(each: Path, path: Path) -> bool:
    """Tells whether a run without a round makes such a file or folder in its folder `path`."""
    parts = each.relative_to(path).parts
    if each.is_symlink() or len(parts) > 2:
        return False
    if each.is_dir():
        return len(parts) == 1 and each.name in _FOLDERS
    if len(parts) == 1:
        return each.name in _FILES or each.name.startswith(client_states.FILES)  # also -journal
    return re.fullmatch(_FOLDERS[parts[0]], each.name) is not None
