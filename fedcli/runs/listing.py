"""Lists the runs below a folder with their state, progress, last metrics and size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, RunError
from fedcli.locks import is_locked
from fedcli.runs.files import folder as run_dir
from fedcli.runs.record import ONLINE, RunRecord, load_run

MAX_DEPTH = 6  # levels of folders that are searched

# The states of a run.
TRAINING, FINISHED, STOPPED, DAMAGED = "training", "finished", "stopped", "damaged"


@dataclass(frozen=True, eq=False)
class ListedRun:
    """One run of a list.

    Attributes:
        path: Its folder.
        state: TRAINING: a process writes to it now. FINISHED: its last round has a closing
            evaluation. STOPPED: neither; `fedcli train --resume` continues it. DAMAGED: see
            `problem`.
        options: The options of its config by dotted name; empty if the config cannot be read.
        round_num: Rounds completed.
        num_rounds: Rounds that its config requests.
        judged_by: The series to which `loss` and `accuracy` belong; empty if there is none.
        loss: The last loss; None if there is none, or if it is not finite.
        accuracy: The last accuracy; None if there is none, or if it is not finite.
        num_bytes: Total size of the files in the folder.
        changed_at: Time of the last change of metrics.jsonl, in seconds since 1970.
        problem: Why the run is DAMAGED; otherwise empty.
    """

    path: Path
    state: str
    options: dict[str, Any]
    round_num: int = 0
    num_rounds: int = 0
    judged_by: str = ""
    loss: float | None = None
    accuracy: float | None = None
    num_bytes: int = 0
    changed_at: float = 0.0
    problem: str = ""


def find_runs(folder: Path) -> list[Path]:
    """Returns the runs in a folder and below, sorted by name; the folder itself if it is a run.

    Links are not followed, and the folders of runs are not searched for further runs.

    Raises:
        RunError: There is no such folder.
    """
    if not folder.is_dir():
        if folder.exists():
            raise RunError(f"{folder} is a file; give a folder that holds runs, or unpack it first")
        raise RunError(
            f"there is no folder {folder}; give one that holds runs, or make one with fedcli train"
        )
    return sorted(_below(folder, MAX_DEPTH))


def list_run(path: Path) -> ListedRun:
    """Returns the list entry of one run."""
    num_bytes = sum(size for _, size in files_with_sizes(path))
    try:
        record = load_run(path)
        return _listed(record, num_bytes)
    except (ConfigError, RunError) as err:
        return ListedRun(path, DAMAGED, {}, num_bytes=num_bytes, problem=str(err))


def files_with_sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields the regular files in a folder and below, with their sizes. Links are skipped."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_with_sizes(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # a run that trains replaces its files
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_size


def is_finished(record: RunRecord) -> bool:
    """Returns whether a run has a closing evaluation of its last round."""
    closing = record.evaluation
    return bool(closing) and all(each["round"] == record.round_num for each in closing.values())


def is_in_use(path: Path) -> bool:
    """Returns whether a process writes to a run."""
    return is_locked(path / run_dir.LOCK)


def _listed(record: RunRecord, num_bytes: int) -> ListedRun:
    name = record.judged_by
    state = TRAINING if is_in_use(record.path) else FINISHED if is_finished(record) else STOPPED
    has_figures = name != ONLINE or bool(record.series(ONLINE, "loss"))
    return ListedRun(
        record.path,
        state,
        record.options,
        record.round_num,
        int(record.options.get("rounds", 0)),
        judged_by=name if has_figures else "",
        loss=record.final(name, "loss"),
        accuracy=record.final(name, "accuracy"),
        num_bytes=num_bytes,
        changed_at=(record.path / run_dir.METRICS).stat().st_mtime,
    )


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if run_dir.looks_like_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _below(folder / entry.name, depth - 1)
