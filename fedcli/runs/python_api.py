"""Runs from Python: `train` and `resume` train a run to its end and return its record.

They do what `fedcli train` does. In place of a progress bar, callbacks get the result of each
round.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcli.datasets.sources.given import as_given
from fedcli.errors import ConfigError, parameters_of, refuse_unknown, speaks_python, worded
from fedcli.learning.engines import choosing
from fedcli.runs import record, starting
from fedcli.runs.loop import Callback, Training
from fedcli.runs.record import RunRecord
from fedcli.settings.data_source import IN_MEMORY, OpenedData
from fedcli.settings.run_config import CODE_FIELDS, RunConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fedcli.settings.own.permission import CodeOptions

_LOGGER = logging.getLogger(__name__)


@speaks_python()
def train(
    config: RunConfig,
    out: str | Path,
    *,
    data: Any = None,
    model: Any = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
    force: bool = False,
) -> RunRecord:
    """Trains a new run to its end, evaluates it, and returns its record.

    After an interrupt or an error the last completed round is saved; `resume` continues from there.
    The text of a KeyboardInterrupt says which round that is, and how to continue. Notes on the run
    are logged as warnings.

    Args:
        config: The options, such as `RunConfig(rounds=100, csv=True)`. The config of a `RunRecord`
            repeats its run.
        out: The run's folder.
        data: Data in memory in place of those that the config names: the result of
            `datasets.from_arrays`, `from_examples` or `load`, splits by name, or {client_id:
            (pixels, labels)}. The run records their fingerprint, and `resume` and `evaluate_run`
            need them again.
        model: A model in place of the one that the config names: one of `fedcli.models`, an object
            that implements `fedcli.own_models.OwnModel`, a `torch.nn.Module`, or a function that
            makes one of these. Models of fedcli's layers are written to the checkpoints; any other
            must be given to `resume` again.
        callbacks: Called after each round; see `Training.complete`. They change no byte of the run.
        progress: Show round, loss and accuracy on stderr: one changing line in a terminal or
            notebook, else a new line at most every 10 s.
        force: Replace an existing run at `out`.

    Raises:
        ConfigError: An option is not allowed or does not fit the data, or `callbacks` is not a
            list.
        DataError: The data are missing or bad.
        ModelError: `model` is not a model, or fails.
        PartError: Your own code for another part, such as an algorithm, fails.
        RunError: The folder exists or cannot be written.
    """
    functions = _listed(callbacks)
    config, data = _with_data(config, data)
    config, model = _with_model(config, model)
    training = starting.start(config, out, data=data, model=model, force=force)
    return _completed(training, functions, progress=progress)


@speaks_python(*CODE_FIELDS, rounds="num_rounds")
def resume(
    path: str | Path,
    *,
    num_rounds: int | None = None,
    threads: int | None = None,
    data: Any = None,
    model: Any = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
    **code: Unpack[CodeOptions],
) -> RunRecord:
    """Continues a run from its newest checkpoint to its end, and returns its record.

    Args:
        path: Its folder.
        num_rounds: Total number of rounds; None for the number in its config.
        threads: Number of threads; None for the number in its config.
        data: If the run's data were in memory, those data. Otherwise the new path of its data, if
            they were moved.
        model: If the run's model is code, FILE.py or FILE.py:FUNCTION. If it was an object that is
            not made of fedcli's layers, that object.
        callbacks: As for `train`; they are called for the remaining rounds.
        progress: As for `train`.
        code: FILE.py or FILE.py:NAME for each other part of the run that is code, which runs only
            if it is named here: `algorithm`, `aggregator`, `server_optimizer`, `sampling`,
            `partition`, `metrics` (several files are separated by commas).

    Raises:
        ConfigError: See `starting.resume`.
        DataError: The data are missing or bad.
        OwnCodeError: Your own code fails.
        RunError: There is no run, it is in use, or its files do not fit together.
    """
    functions = _listed(callbacks)
    refuse_unknown("resume", code, [*parameters_of(resume), *CODE_FIELDS])
    if isinstance(model, Path):
        model = str(model)
    if data is not None and not isinstance(data, str):
        data = str(data) if isinstance(data, Path) else as_given(data)
    training = starting.resume(
        path, rounds=num_rounds, threads=threads, data=data, model=model, **code
    )
    return _completed(training, functions, progress=progress)


def _with_data(config: RunConfig, data: Any) -> tuple[RunConfig, OpenedData | None]:
    """The config with the name of the given data, and the data if they are in memory."""
    if data is None:
        return config, None
    if config.data != RunConfig.data and not config.data.startswith(IN_MEMORY):
        raise ConfigError(
            f"data is given twice: in RunConfig(data={config.data!r}) and as data=; leave out one"
        )
    if isinstance(data, str | Path):
        return replace(config, data=str(data)), None
    opened = as_given(data)
    return replace(config, data=str(opened)), opened


def _with_model(config: RunConfig, model: Any) -> tuple[RunConfig, Any]:
    """The config with the name of the given model, and the object."""
    if model is None:
        return config, None
    if config.model != RunConfig.model and not config.model.startswith(IN_MEMORY):
        raise ConfigError(
            f"model is given twice: in RunConfig(model={config.model!r}) and as model=; leave one "
            "out"
        )
    if isinstance(model, str | Path):
        return replace(config, model=str(model)), None
    name = getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)
    return replace(config, model=f"{IN_MEMORY}{name}"), model


def _listed(callbacks: Iterable[Callback]) -> list[Callback]:
    """Checks callbacks before any work. Raises ConfigError if they are not a list of functions."""
    functions = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    if not all(map(callable, functions)):
        raise ConfigError(f"callbacks={callbacks!r}: give a list of functions, such as [f]")
    return functions


def _completed(opened: Training, callbacks: Sequence[Callback], *, progress: bool) -> RunRecord:
    try:
        with opened as training:
            for note in training.notes:
                _LOGGER.warning(worded(note))
            if progress:
                from fedcli.runs.progress_line import ProgressLine  # lazy: few programs want one

                with ProgressLine(training.num_rounds) as line:
                    training.complete([line, *callbacks])
            else:
                training.complete(callbacks)
    except KeyboardInterrupt as interrupt:
        interrupt.args = interrupt.args or (_stop_text(opened),)  # the last line of the traceback
        raise
    return record.load_run(training.path)


def _stop_text(training: Training) -> str:
    """One line that says what an interrupted run has saved, and how to continue it."""
    repeated = {name.removeprefix("--"): repr(text) for name, text in training.code.items()}
    if training.config.data.startswith(IN_MEMORY):
        repeated["data"] = "..."
    if training.config.model.startswith(IN_MEMORY) and choosing.is_python(training.process.model):
        repeated["model"] = "..."
    arguments = [repr(str(training.path))]
    arguments += [f"{name.replace('-', '_')}={value}" for name, value in repeated.items()]
    number, total = training.round_num, training.num_rounds
    when = f"after round {number} of {total}" if number else f"before the first of {total} rounds"
    return f"stopped {when} and saved; fedcli.resume({', '.join(arguments)}) continues"
