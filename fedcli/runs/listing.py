"""The runs below a folder: what each is, how far it is, what it has come to, how large it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, RunError
from fedcli.files import open_regular
from fedcli.runs.files import folder as run_dir
from fedcli.runs.record import ONLINE, RunRecord, load_run

MAX_DEPTH = 6  # folders below the one that is looked through

# The states of a run.
TRAINING, FINISHED, STOPPED, DAMAGED = "training", "finished", "stopped", "damaged"


@dataclass(frozen=True, eq=False)
class ListedRun:
    """One run of a list.

    Attributes:
        path: Its folder.
        state: TRAINING: a process writes to it now. FINISHED: its closing evaluation is that of its
            last round. STOPPED: neither; `fedcli train --resume` goes on. DAMAGED: see `problem`.
        options: Of its config, by dotted name; empty if that cannot be read.
        round_num: Rounds completed.
        num_rounds: Rounds that its config asks for.
        judged_by: The series that `loss` and `accuracy` are of; empty: there is none.
        loss: The last of them; None: none, or not finite.
        accuracy: The same.
        num_bytes: Of all files in the folder.
        changed_at: When metrics.jsonl was written last, in seconds since 1970.
        problem: Why it is DAMAGED; else empty.
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
    """Returns the runs in a folder and below, by name; the folder itself if it is one.

    Links are not followed, and nothing is looked for inside a run.

    Raises:
        RunError: There is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}; give one that holds runs, or a run")
    return sorted(_below(folder, MAX_DEPTH))


def list_run(path: Path) -> ListedRun:
    """Returns what there is to say of one run."""
    num_bytes = sum(size for _, size in files_with_sizes(path))
    try:
        record = load_run(path)
        return _listed(record, num_bytes)
    except (ConfigError, RunError) as err:
        return ListedRun(path, DAMAGED, {}, num_bytes=num_bytes, problem=str(err))


def files_with_sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields the regular files in a folder and below, with their bytes; links are passed over."""
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
    """Returns whether the closing evaluation of a run is there and is that of its last round."""
    closing = record.evaluation
    return bool(closing) and all(each["round"] == record.round_num for each in closing.values())


def is_in_use(path: Path) -> bool:
    """Returns whether a process writes to a run."""
    try:
        with open_regular(path / run_dir.LOCK) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)  # given up at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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
