"""Reads from a run's folder whether the run is complete, and its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcli.errors import RunError
from fedcli.reports.verdict import has_diverged
from fedcli.runs import stopping
from fedcli.runs.files import folder as run_dir
from fedcli.runs.record import RunRecord, load_run
from fedcli.sweeps.trials import DIVERGED, DONE, Outcome


def is_complete(record: RunRecord) -> bool:
    """Returns whether a run has done all its rounds, or stopped early, and was evaluated.

    Raises:
        RunError: A file of the run is damaged.
    """
    closing = record.evaluation
    done = record.round_num
    if not closing or any(each["round"] != done for each in closing.values()):
        return False
    if done >= int(record.options.get("rounds", 0)):
        return True
    options = record.options
    progress = stopping.progress_for(
        options.get("stop_at"), options.get("patience"), options.get("monitor")
    )
    return progress is not None and progress.after_all(record.metrics).is_over


def find_outcome(path: Path, rounds: int) -> Outcome | None:
    """Returns the outcome of a complete run with this number of rounds; None if there is none.

    A run whose process was killed may have a half-written line. Such a run is not complete and is
    continued.

    Raises:
        ConfigError: config.toml of the run cannot be read.
    """
    if not run_dir.looks_like_run(path):
        return None
    record = load_run(path)
    try:
        is_done = record.options.get("rounds") == rounds and is_complete(record)
        return outcome_of(record) if is_done else None
    except RunError:
        return None


def goes_beyond(path: Path, rounds: int) -> bool:
    """Returns whether a run was continued beyond this number of rounds."""
    return run_dir.looks_like_run(path) and int(load_run(path).options.get("rounds", 0)) > rounds


def outcome_of(record: RunRecord) -> Outcome:
    """Returns the outcome of a complete run."""
    result = {split: _metrics(each) for split, each in record.evaluation.items()}
    state = DIVERGED if has_diverged(record) else DONE
    return Outcome(state, result, sum(record.seconds().values()))


def _metrics(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one split, by their names in options."""
    from fedcli.settings.tables.metrics import SELECTION_METRICS

    values = evaluation["client_work"]["eval"]["current_round_metrics"]
    metrics = {name: values[key] for name, key in SELECTION_METRICS.items() if key in values}
    return {"round": evaluation["round"], **metrics}
