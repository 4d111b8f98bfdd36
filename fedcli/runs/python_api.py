"""Runs from Python: train one, or go on with it, and have its record.

What `fedcli train` does, with functions that are told each round in place of a progress bar.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcli.errors import ConfigError
from fedcli.runs import record, starting
from fedcli.runs.loop import Callback, Training
from fedcli.runs.record import RunRecord
from fedcli.settings.run_config import RunConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fedcli.settings.own.permission import CodeOptions

_LOGGER = logging.getLogger(__name__)


def train(
    config: RunConfig, out: str | Path, *, callbacks: Iterable[Callback] = (), force: bool = False
) -> RunRecord:
    """Trains a new run to its end, evaluates it, and returns its record.

    An interrupt saves the last completed round, as does an error; `resume` goes on from there.
    What a reader should know is logged as warnings.

    Args:
        config: What to do, such as `RunConfig(rounds=100, csv=True)`; that of a record repeats it.
        out: The run's folder.
        callbacks: Told each round; see `Training.complete`. They change no byte of the run.
        force: Replace a run that stands there.

    Raises:
        ConfigError: An option is not allowed, or does not fit the data; or `callbacks` is no list.
        DataError: The data are missing or bad.
        RunError: The folder exists or cannot be written.
    """
    told = _listed(callbacks)
    return _completed(starting.start(config, out, force=force), told)


def resume(
    path: str | Path,
    *,
    num_rounds: int | None = None,
    threads: int | None = None,
    callbacks: Iterable[Callback] = (),
    **code: Unpack[CodeOptions],
) -> RunRecord:
    """Continues a run from its newest checkpoint to its end, and returns its record.

    Args:
        path: Its folder.
        num_rounds: Rounds in total; None: as many as its config says.
        threads: Number of threads; None: as its config says.
        callbacks: As for `train`; they are told the rounds that were left.
        code: FILE.py or FILE.py:NAME for each part of the run that is code, which runs only if it
            is named here: `model`, `algorithm`, `aggregator`, `server_optimizer`.

    Raises:
        ConfigError: See `starting.resume`.
        DataError: The data are missing or bad.
        RunError: There is no run, it is in use, or its files do not fit together.
    """
    told = _listed(callbacks)
    training = starting.resume(path, rounds=num_rounds, threads=threads, **code)
    return _completed(training, told)


def _listed(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks, before any work. Raises ConfigError if they are none."""
    told = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    if not all(map(callable, told)):
        raise ConfigError(f"callbacks={callbacks!r}: give a list of functions, such as [f]")
    return told


def _completed(opened: Training, callbacks: Sequence[Callback]) -> RunRecord:
    with opened as training:
        for note in training.notes:
            _LOGGER.warning(note)
        training.complete(callbacks)
    return record.load_run(training.path)
