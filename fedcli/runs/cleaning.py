"""Finds and removes files that finished runs no longer need.

Two checkpoints of a finished run are kept: the newest, which `eval`, `export` and `--resume` use,
and that of the best round, which `--best` uses. Client states (SCAFFOLD, FedDyn, local-only, local
batch normalization, error feedback, foolsgold) are kept unless their removal is requested, because
the run cannot be resumed without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedcli.errors import ConfigError, RunError, why_not_written
from fedcli.learning import client_states
from fedcli.runs import listing
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.folder import RunDirectory
from fedcli.runs.record import RunRecord, load_run
from fedcli.settings.tables.algorithms import ALGORITHMS
from fedcli.settings.vocabulary import LOCAL_NORMS

CHECKPOINTS, CLIENT_STATES, LEFT_OVERS = "old checkpoints", "client states", "temporary files"


class Removal(NamedTuple):
    """Files of one kind that can be removed from one run.

    Attributes:
        run: The run's folder.
        what: CHECKPOINTS, CLIENT_STATES or LEFT_OVERS.
        files: The files.
        num_bytes: Their total size.
        consequence: What will be impossible for the run afterwards, as a text without its
            subject, such as "cannot be resumed"; empty if nothing.
    """

    run: Path
    what: str
    files: tuple[Path, ...]
    num_bytes: int
    consequence: str = ""


class Plan(NamedTuple):
    """The files to remove and the files to keep.

    Attributes:
        removals: The files to remove.
        kept: Client states that would be removed with `has_client_states`.
        notes: One line for each run that is damaged, in use or not finished, and so stays as it is.
    """

    removals: list[Removal]
    kept: list[Removal]
    notes: list[str]


def plan(runs: Iterable[Path], *, has_client_states: bool = False) -> Plan:
    """Returns which files of runs can be removed. Nothing is removed yet.

    Args:
        runs: The runs' folders.
        has_client_states: Whether to remove client states as well.
    """
    result = Plan([], [], [])
    for run in runs:
        try:
            record = load_run(run)
            is_finished = listing.is_finished(record)
        except (ConfigError, RunError) as err:
            result.notes.append(f"{run} stays as it is: {err}")
            continue
        if listing.is_in_use(run):
            result.notes.append(f"{run} stays as it is: a process writes to it")
        elif not is_finished:
            result.notes.append(f"{run} stays as it is: it is not finished")
        else:
            _add(result, record, has_client_states=has_client_states)
    return result


def carry_out(removals: Sequence[Removal]) -> int:
    """Removes the files of a plan and returns the number of bytes freed.

    Each run is locked meanwhile. Files that no longer exist are skipped.

    Raises:
        RunError: A run is in use, or a file cannot be removed.
    """
    num_bytes = 0
    for run in dict.fromkeys(removal.run for removal in removals):
        with RunDirectory.open(run):
            for removal in removals:
                if removal.run == run:
                    num_bytes += sum(map(_remove, removal.files))
    return num_bytes


def _add(result: Plan, record: RunRecord, *, has_client_states: bool) -> None:
    """Adds the files of a finished run to a plan."""
    path = record.path
    files = run_dir.find_checkpoints(path)
    old = [file for file in files[:-1] if run_dir.round_of_checkpoint(file) != record.best_round]
    left = [*path.glob(".*.tmp"), *(path / run_dir.CHECKPOINTS).glob(".*.tmp")]
    for what, removable in ((CHECKPOINTS, old), (LEFT_OVERS, left)):
        if removable:
            result.removals.append(_removal(path, what, removable))
    states = [path / name for name in client_states.FILES if (path / name).is_file()]
    if states:
        entry = ALGORITHMS.get(str(record.options.get("algorithm")))
        is_evaluated = (entry is not None and entry.has_own_models) or (
            record.options.get("batch_norm") in LOCAL_NORMS
        )
        then = "can neither be resumed nor evaluated" if is_evaluated else "cannot be resumed"
        removal = _removal(path, CLIENT_STATES, states, then)
        (result.removals if has_client_states else result.kept).append(removal)


def _removal(run: Path, what: str, files: Sequence[Path], consequence: str = "") -> Removal:
    num_bytes = sum(file.lstat().st_size for file in files)
    return Removal(run, what, tuple(files), num_bytes, consequence)


def _remove(file: Path) -> int:
    try:
        num_bytes = file.lstat().st_size
        os.unlink(file)  # noqa: PTH108
    except FileNotFoundError:
        return 0
    except OSError as err:
        raise RunError(f"cannot remove {file}: {why_not_written(err)}") from err
    return num_bytes
