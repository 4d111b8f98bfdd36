"""Implements `fedcli train`: starts or continues a run, and shows its progress and results."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fedcli.cli.screen.output import Remarks, Verbosity, one_line
from fedcli.errors import RunError, plural
from fedcli.settings.declaration import option_name
from fedcli.settings.run_config import CODE_FIELDS, DATA_FIELDS, RESUME_FIELDS, RunConfig

if TYPE_CHECKING:
    from fedcli.cli.jobs.worker import Worker
    from fedcli.core.native import CancelFlag
    from fedcli.runs.loop import Training

    Start = Callable[[CancelFlag], AbstractContextManager[Training]]


def _read_config(
    config_file: Path | None, given: Mapping[str, Any], note: Callable[[str], None]
) -> RunConfig:
    """Returns a new run's config: given options, else values of a file or preset, else defaults.

    `note` is called with a line if synthetic images replace the data of the preset.
    """
    from fedcli import settings as config
    from fedcli.runs.files import folder

    if config_file is not None and "preset" in given:
        raise click.UsageError(
            "--preset and --config contradict each other, because each sets all options; give one "
            "of them",
            click.get_current_context(),
        )
    name = given.get("preset")
    base: Mapping[str, Any] = {}
    stand_in: Mapping[str, Any] = {}
    if name is not None:
        from fedcli.datasets.stand_ins import stand_in_of
        from fedcli.settings.presets import PRESETS

        stand_in = stand_in_of(name, given)
        base = {**PRESETS[name].values, **stand_in} if name in PRESETS else {}
    if config_file is not None:
        base = folder.read_config(config_file)
    given = _with_code_allowed(base, given)
    chosen = config.from_options(config.merge(base, given))
    if stand_in:
        from fedcli.datasets.stand_ins import note_of_stand_in

        note(note_of_stand_in(str(name)))
    return chosen


def _with_code_allowed(base: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks that the user named all Python files of a config, and returns the given options.

    An option that names the same file as the config takes the config's spelling, so that the
    config's options for that part apply.

    Raises:
        ConfigError: The config names a Python file that no given option names.
    """
    if not any(".py" in str(base.get(name, "")) for name in CODE_FIELDS):
        return given  # most runs need not import `permission`
    from fedcli.settings.own import permission

    options = dict(given)
    for name in permission.code_in(base):
        text = given.get(name)
        if text is None:
            permission.allowed_code(name, base[name], None)
        elif permission.is_same_code(name, base[name], text):
            options[name] = base[name]
    return options


def new_run(
    config_file: Path | None,
    given: Mapping[str, Any],
    out: Path | None,
    *,
    force: bool,
    note: Callable[[str], None],
) -> Start:
    """Returns the function that starts a new run; `note` is called with lines for the user.

    Raises:
        ConfigError: An option is not allowed.
    """
    from datetime import datetime

    from fedcli.runs import starting
    from fedcli.runs.files import folder

    config = _read_config(config_file, given, note)
    expected_data, expected_code = None, {}
    if config_file is not None:
        origin, before = folder.read_origin(config_file), folder.read_config(config_file)
        expected_data = origin.get("data") if given.keys().isdisjoint(DATA_FIELDS) else None
        same = [name for name in CODE_FIELDS if before.get(name) == getattr(config, name)]
        expected_code = {name: origin[name] for name in same if name in origin}
    now = datetime.now().astimezone()
    path = out or folder.default_out(now, config.data, config.algorithm, config.seed)
    is_numbered = out is None
    return lambda cancel: starting.start(
        config,
        path,
        force=force,
        is_numbered=is_numbered,
        expected_data=expected_data,
        expected_code=expected_code,
        cancel=cancel,
    )


def continued_run(run: Path, given: Mapping[str, Any], others: Mapping[str, Any]) -> Start:
    """Returns the function that continues a run.

    Args:
        run: The run's folder.
        given: Given options that are fields of RunConfig.
        others: Other given options, which --resume does not allow.

    Raises:
        click.UsageError: An option is not allowed together with --resume.
    """
    from fedcli.runs import starting

    code: Any = {name: given[name] for name in CODE_FIELDS if name in given}
    allowed = {*RESUME_FIELDS, "data", "test_data", *code}
    refused = sorted(option_name(name) for name in [*(given.keys() - allowed), *others])
    if refused:
        raise click.UsageError(
            f"--resume takes all options except {', '.join(map(option_name, RESUME_FIELDS))} from "
            f"the run; leave out {', '.join(refused)}",
            click.get_current_context(),
        )
    return lambda cancel: starting.resume(
        run,
        rounds=given.get("rounds"),
        threads=given.get("threads"),
        engine=given.get("engine"),
        engine_options=given.get("engine_options"),
        data=given.get("data"),
        test_data=given.get("test_data"),
        cancel=cancel,
        **code,
    )


class FinishedRun(NamedTuple):
    """A run that this command has trained: its folder, config, and Python files by option."""

    path: Path
    config: RunConfig
    code: dict[str, str]


def carry_out(start: Start, remarks: Remarks, *, shows_tables: bool) -> FinishedRun:
    """Trains in one worker thread. At a signal, the training saves its state and ends."""
    from fedcli.cli.jobs import bars as progress
    from fedcli.cli.jobs.worker import run_stoppable
    from fedcli.cli.screen.text_screen import needs_rich
    from fedcli.core.native import CancelFlag

    cancel = CancelFlag()
    monitor = progress.Monitor()
    trainings: list[Training] = []

    def job() -> FinishedRun:
        with start(cancel) as training:
            trainings.append(training)
            monitor.begin(training, cancel)
            _follow(training, monitor, remarks)
            return FinishedRun(training.path, training.config, training.code)

    def attend(worker: Worker[FinishedRun]) -> None:
        if shows_tables:  # import the modules that print them while the worker trains
            from fedcli.cli.screen import run_tables  # noqa: F401
            from fedcli.reports import verdict  # noqa: F401

            if needs_rich():
                from fedcli.cli.screen import render  # noqa: F401
        progress.attend(worker, monitor, remarks)

    def describe_stop() -> str:
        if not trainings:
            return "stopped before the first round of this command; nothing was changed"
        number = trainings[0].round_num
        when = f"after round {number}" if number else "before the first round"
        done = f"stopped {when} and saved"
        code = trainings[0].code.items()
        more = "".join(f" {option} {shlex.quote(text)}" for option, text in code)
        path = shlex.quote(str(trainings[0].path))
        return f"{done}; fedcli train --resume {path}{more} continues"

    return run_stoppable(job, cancel=cancel, describe_stop=describe_stop, attend=attend)


def _follow(training: Training, monitor: Any, remarks: Remarks) -> None:
    """Runs all rounds and the closing evaluation, and reports notes and progress."""
    threads = plural(training.num_threads, "thread")
    remarks.detail(threads)
    if training.batch_bytes:
        remarks.detail(f"memory for batches: {training.batch_bytes / 2**20:,.1f} MiB")
    for note in training.notes:
        remarks.note(note)
    training.complete([monitor.update])
    cache = training.train.cache
    if cache is not None:
        kept = f"{cache.bytes / 2**20:.1f} of {cache.max_bytes / 2**20:.0f} MiB"
        remarks.detail(f"client cache: {plural(len(cache), 'client')}, {kept}, {cache.hits:,} hits")


def show(run: FinishedRun, remarks: Remarks, *, as_json: bool) -> None:
    """Prints the results from the run's files, so that a resumed run shows all of its rounds."""
    from fedcli.cli.screen.output import print_json
    from fedcli.reports.verdict import verdict
    from fedcli.runs import stopping
    from fedcli.runs.files import folder

    path = run.path
    lines, evaluation = folder.read_metrics(path), folder.read_evaluation(path) or {}
    if not lines:
        raise RunError(f"{path / folder.METRICS} holds no round; restore it, or start a new run")
    config = run.config
    progress = stopping.progress_for(config.stop_at, config.patience, config.monitor)
    if progress is not None:
        progress = progress.after_all(lines)
    measure = config.keep_best
    best = None if measure is None else stopping.Best(measure).after_all(lines)
    name = config.preset
    comparison = None
    if name is not None:
        from fedcli.reports.published import compare
        from fedcli.settings.presets import PRESETS

        comparison = compare(PRESETS[name], config, lines, evaluation, progress)
    failure = verdict(lines, evaluation, config)
    if remarks.verbosity == Verbosity.QUIET and not as_json:
        print(one_line(str(path)))
        return
    if failure is not None:
        remarks.note(failure)
    if as_json:
        failed = {} if failure is None else {"failure": failure}
        beside = {} if comparison is None else {"preset": comparison.summary()}
        ended = {} if progress is None else {"stopping": progress.summary()}
        if best is not None:
            ended["kept"] = best.summary()
        result = {"run": str(path), "rounds": lines, "evaluation": evaluation}
        print_json({**result, **ended, **beside, **failed})
        return
    from fedcli.cli.screen.run_tables import show_run
    from fedcli.cli.screen.text_screen import open_text_screen

    screen = open_text_screen()
    show_run(screen, path, lines, evaluation, progress, comparison, run.code, best)
