"""What can be removed of finished runs, and removing it.

Of a finished run the newest checkpoint stays, which `eval`, `export` and `--resume` take, and that
of the best round, which `--best` takes. What its clients keep (SCAFFOLD, FedDyn, local-only) stays,
too, unless somebody says otherwise: without it the run cannot be gone on from.
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

CHECKPOINTS, CLIENT_STATES, LEFT_OVERS = "old checkpoints", "client states", "temporary files"


class Removal(NamedTuple):
    """Files of one run that can go together.

    Attributes:
        run: The run.
        what: CHECKPOINTS, CLIENT_STATES or LEFT_OVERS.
        files: The files.
        num_bytes: Of all of them.
        consequence: What cannot be done afterwards; empty: nothing.
    """

    run: Path
    what: str
    files: tuple[Path, ...]
    num_bytes: int
    consequence: str = ""


class Plan(NamedTuple):
    """What goes, and why other things stay.

    Attributes:
        removals: What goes.
        kept: What would go if `has_client_states` were said.
        notes: Runs that are left alone, a line each.
    """

    removals: list[Removal]
    kept: list[Removal]
    notes: list[str]


def plan(runs: Iterable[Path], *, has_client_states: bool = False) -> Plan:
    """Returns what can be removed of runs; nothing is removed yet.

    Args:
        runs: Their folders.
        has_client_states: Whether what clients keep goes, too.
    """
    made = Plan([], [], [])
    for run in runs:
        try:
            record = load_run(run)
            is_finished = listing.is_finished(record)
        except (ConfigError, RunError) as err:
            made.notes.append(f"{run} is left alone: {err}")
            continue
        if listing.is_in_use(run):
            made.notes.append(f"{run} is left alone: a process writes to it")
        elif not is_finished:
            made.notes.append(f"{run} is left alone: it is not finished")
        else:
            _add(made, record, has_client_states=has_client_states)
    return made


def carry_out(removals: Sequence[Removal]) -> int:
    """Removes what a plan names, each run locked meanwhile; returns the bytes.

    What is gone already is passed over.

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


def _add(made: Plan, record: RunRecord, *, has_client_states: bool) -> None:
    """Adds what there is of a finished run."""
    path = record.path
    files = run_dir.find_checkpoints(path)
    old = [file for file in files[:-1] if run_dir.round_of_checkpoint(file) != record.best_round]
    left = [*path.glob(".*.tmp"), *(path / run_dir.CHECKPOINTS).glob(".*.tmp")]
    for what, found in ((CHECKPOINTS, old), (LEFT_OVERS, left)):
        if found:
            made.removals.append(_removal(path, what, found))
    states = path / client_states.FILE
    if states.is_file():
        entry = ALGORITHMS.get(str(record.options.get("algorithm")))
        is_evaluated = entry is not None and entry.has_own_models
        then = "can neither be resumed nor evaluated" if is_evaluated else "cannot be resumed"
        removal = _removal(path, CLIENT_STATES, [states], f"the run {then}")
        (made.removals if has_client_states else made.kept).append(removal)


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
