"""Runs an audit by its name in the table of audits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedcli.audits.audited_run import open_audited_run
from fedcli.core.native import CancelFlag
from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings.options import Value, choose, resolve
from fedcli.settings.tables.audits import AUDITS


class AuditResult(Protocol):
    """The result of an audit."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        ...


def audit_run(
    path: str | Path,
    name: str,
    options: Mapping[str, Value] | None = None,
    on_progress: ProgressCallback = ignore_progress,
    *,
    threads: int | None = None,
    model: str | None = None,
    best: bool = False,
    cancel: CancelFlag | None = None,
) -> AuditResult:
    """Attacks the privacy of a run and returns the result.

    Args:
        path: A run's folder, or a checkpoint.
        name: A key of `AUDITS`.
        options: Its options; those not given take their defaults.
        on_progress: Called with the number of shadow runs or clients done so far, for progress.
        threads: Number of threads; None for as many as the machine has.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here.
        best: Take the checkpoint of the run's best round, not the newest.
        cancel: A flag that any thread may set to stop the audit.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: The name or an option is not allowed, or the audit does not fit the run.
        DataError: The run's data are missing or bad.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    entry = choose(AUDITS, name, "audit")
    try:
        resolved = resolve(entry, options or {})
    except ConfigError as err:
        raise ConfigError(f"--option: {err}") from err
    flag = cancel or CancelFlag()
    with open_audited_run(Path(path), threads=threads, model=model, best=best, cancel=flag) as run:
        result: AuditResult = load(entry.code)(run, on_progress, **resolved)
    return result
