"""Runs a study: finds or trains the runs of its plan, and writes trials.jsonl and table.csv."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedcli import datasets
from fedcli.core.machine import num_processors
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, FedcliError, RunError
from fedcli.outputs import write_atomic
from fedcli.reports.groups import remedy_without
from fedcli.settings.options import is_code
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import NATURAL
from fedcli.sweeps.code import resume_command
from fedcli.sweeps.keys import Keys
from fedcli.sweeps.outcomes import find_outcome, goes_beyond
from fedcli.sweeps.planning import plan_of
from fedcli.sweeps.plans import Plan, PlannedRun
from fedcli.sweeps.pool import Event, Pool
from fedcli.sweeps.reuse import find_by_key, take_copy
from fedcli.sweeps.study import Study
from fedcli.sweeps.study_folder import RUNS, TABLE, StudyFolder
from fedcli.sweeps.study_progress import StudyProgress, trial_text
from fedcli.sweeps.study_tables import points_csv
from fedcli.sweeps.trials import FAILED, Outcome, Trial, TrialLog

if TYPE_CHECKING:
    from fedcli.sweeps.ray_pool import RayPool

_POLL_SECONDS = 0.1
_MAX_JOBS = 1024
_TRIES = 2  # the number of attempts at a run whose process dies


@dataclass(frozen=True)
class SweepOptions:
    """How a study is run. None of these options changes a result.

    Attributes:
        jobs: Number of processes; None for one per processor.
        reuse: Folders from which finished runs with equal keys are copied.
        fail_fast: Whether the first failure stops the study.
        cluster: The address of a Ray cluster that trains the runs; None for processes of this
            machine.
    """

    jobs: int | None = None
    reuse: tuple[Path, ...] = ()
    fail_fast: bool = False
    cluster: str | None = None

    def __post_init__(self) -> None:
        """Checks the number of processes."""
        if self.jobs is not None and not 1 <= self.jobs <= _MAX_JOBS:
            raise ConfigError(f"--jobs {self.jobs}: choose 1 to {_MAX_JOBS}")


def run_study(
    folder: StudyFolder,
    options: SweepOptions,
    *,
    cancel: CancelFlag | None = None,
    study_progress: StudyProgress | None = None,
) -> list[dict[str, Any]]:
    """Runs a new or interrupted study to its end; returns the lines of trials.jsonl.

    Args:
        folder: The study's folder.
        options: How it is run.
        cancel: A flag that any thread may set to make all runs save and stop.
        study_progress: The object that receives the progress, or None.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: A point is not allowed, or the data have no split to choose on.
        DataError: The data are missing or cannot be read.
        OwnCodeError: A file of the user's code cannot be read.
        RunError: A file of the study or of a run cannot be written; or, with `fail_fast`, a run
            failed.
    """
    study = folder.study
    plan = plan_of(study)
    planned_runs = next(plan)
    check_selection(study, planned_runs[0].config)
    cancel = cancel or CancelFlag()
    with TrialLog(folder.path) as log, _open_pool(options, folder, cancel) as pool:
        sweep = _Sweep(folder, options, log, pool, cancel, study_progress or StudyProgress())
        try:
            log.cut(sweep.run_plan(plan, planned_runs))
        except KeyboardInterrupt:  # in a Python program; the command line sets `cancel`
            pool.stop()
            raise
        lines = list(log.lines)
    write_atomic(folder.path / TABLE, points_csv(study, lines).encode())
    return lines


def _open_pool(options: SweepOptions, folder: StudyFolder, cancel: CancelFlag) -> Pool | RayPool:
    """Returns the pool that trains the runs."""
    if options.cluster is None:
        return Pool(options.jobs or num_processors(), (folder.lock,))
    from fedcli.sweeps.ray_pool import RayPool  # lazy: few studies use a cluster

    return RayPool(options.cluster, options.jobs, cancel)


def check_selection(study: Study, config: RunConfig) -> None:
    """Checks that the data have the split whose results decide the course of a study.

    Raises:
        ConfigError: The data lack the split, or the runs do not compute the metric.
        DataError: The data cannot be opened.
    """
    metric = study.select.metric
    built_in = ("loss", "accuracy")
    if metric not in built_in and metric not in (config.metrics or ()):
        raise ConfigError(
            f'[select] metric {metric}: the runs do not compute it; add metrics = ["{metric}"] to '
            "[run]"
        )
    if study.must_choose and not has_split(config, study.select.on):
        raise ConfigError(
            f"halving and search choose by the split {study.select.on}, which the data lack; "
            f"{remedy_without(study.select.on)}"
        )


def has_split(config: RunConfig, name: str) -> bool:
    """Returns whether the data of a config have a split. No partition is computed for it."""
    source = replace(config.data_source, partition=NATURAL, partition_options={})
    return name in datasets.open_splits(source)


class _Sweep:
    """The execution of a study by one command."""

    def __init__(
        self,
        folder: StudyFolder,
        options: SweepOptions,
        log: TrialLog,
        pool: Pool | RayPool,
        cancel: CancelFlag,
        study_progress: StudyProgress,
    ) -> None:
        self._path = folder.path
        self._study = folder.study
        self._options = options
        self._log = log
        self._pool = pool
        self._cancel = cancel
        self._study_progress = study_progress
        self._keys = Keys(cancel)
        self._reusable = find_by_key(options.reuse, self._keys)

    def number(self, planned_runs: Sequence[PlannedRun], first: int) -> list[Trial]:
        """The trials of a stage, numbered from `first` on."""
        self._study_progress.total += len(planned_runs)
        return [self._trial(number, each) for number, each in enumerate(planned_runs, first)]

    def run_plan(self, plan: Plan, planned_runs: list[PlannedRun]) -> int:
        """Runs the given first stage of a plan, and then all others; returns the number of runs."""
        first = 1
        while planned_runs:
            lines = self.run_stage(self.number(planned_runs, first))
            first += len(planned_runs)
            try:
                planned_runs = plan.send(lines)
            except StopIteration:
                break
        return first - 1

    def run_stage(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Finds or trains the runs of some trials; writes and returns their lines in order."""
        first = trials[0].number
        known = self._known_lines(trials)
        self._study_progress.earlier += known
        for line in self._log.lines[first - 1 :]:
            self._study_progress.note_line(line, self._result_text(line), is_new=False)
        rest = trials[known:]
        stage = _Stage(rest, self._write)
        for trial in stage.of_each_run():
            outcome = self._find(trial)
            if outcome is not None:
                stage.end(trial, outcome)
        self._train(stage)
        return self._log.lines[first - 1 :]

    def _trial(self, number: int, planned: PlannedRun) -> Trial:
        key = self._keys.of(planned.config)
        is_final = planned.config.rounds == planned.final_config.rounds
        name = key if is_final else self._keys.of(planned.final_config)
        point = planned.point
        run = f"{RUNS}/{name}"
        return Trial(number, point.number, point.case, point.options, planned.config, key, run)

    def _known_lines(self, trials: Sequence[Trial]) -> int:
        """Returns how many of these trials, from the first on, have valid lines in trials.jsonl.

        If a line belongs to another run than planned, the data or the program have changed. That
        line and all after it are dropped.
        """
        for place, trial in enumerate(trials):
            if trial.number > len(self._log.lines):
                return place
            line = self._log.lines[trial.number - 1]
            is_same = (line["key"], line["run"]) == (trial.key, trial.run)
            if not is_same or not (self._path / trial.run).is_dir():
                self._log.cut(trial.number - 1)
                return place
        return len(trials)

    def _find(self, trial: Trial) -> Outcome | None:
        """Returns a run's outcome if it is complete here or in a reusable folder; else None."""
        path = self._path / trial.run
        outcome = find_outcome(path, trial.config.rounds)
        if outcome is not None:
            self._study_progress.earlier += 1
            return outcome
        source = self._reusable.get(trial.key)
        if source is None or path.exists() or not take_copy(source, path):
            return None
        self._study_progress.reused += 1
        return find_outcome(path, trial.config.rounds)

    def _train(self, stage: _Stage) -> None:
        """Trains all runs without an outcome, the longest first."""
        queue = sorted(stage.of_each_run(), key=_expected_cost)
        by_number = {trial.number: trial for trial in queue}
        tries = dict.fromkeys(by_number, 0)
        while queue or self._study_progress.running:
            if self._cancel.is_set():
                self._pool.stop()
                raise Cancelled
            while queue and self._pool.num_free:
                share = self._pool.num_free // len(queue)  # above 1 only for the last runs
                trial = queue.pop(0)
                tries[trial.number] += 1
                self._study_progress.begin(trial)
                self._pool.submit(trial.number, self._task(trial, max(1, share)))
            for event in self._pool.wait(_POLL_SECONDS):
                trial = by_number[event.task]
                if event.message.get("ended") == "died" and tries[event.task] < _TRIES:
                    self._study_progress.end(event.task)
                    queue.insert(0, trial)
                    continue
                outcome = self._outcome(trial, event)
                if outcome is not None:
                    stage.end(trial, outcome)
                    self._check_fail_fast(trial, outcome)

    def _outcome(self, trial: Trial, event: Event) -> Outcome | None:
        """Returns the outcome of a trial if a message is about its end, else None."""
        message = event.message
        if "ended" not in message:
            self._study_progress.note_round(trial.number, message)
            return None
        self._study_progress.end(trial.number)
        for note in message.get("notes", ()):
            self._study_progress.note(note)
        if message["ended"] == "stopped":
            raise Cancelled
        if message["ended"] == "trouble":
            self._give_up(trial, message["error"])
        if message["ended"] != "done":
            twice = ", twice" if message["ended"] == "died" else ""
            return Outcome(FAILED, {}, error=f"{message['error']}{twice}")
        try:
            outcome = find_outcome(self._path / trial.run, trial.config.rounds)
        except FedcliError as err:
            return Outcome(FAILED, {}, error=str(err))
        problem = f"its files are damaged; delete {self._path / trial.run} to train it again"
        return outcome or Outcome(FAILED, {}, error=problem)

    def _check_fail_fast(self, trial: Trial, outcome: Outcome) -> None:
        if outcome.state == FAILED and self._options.fail_fast:
            self._give_up(trial, outcome.error)

    def _give_up(self, trial: Trial, error: str) -> NoReturn:
        """Stops all runs because one has failed. Raises RunError."""
        self._pool.stop()
        raise RunError(
            f"run {trial.number} ({trial_text(trial)}) failed: {error}; the others were stopped, "
            f"and {resume_command(self._path, self._study)} continues the study"
        )

    def _task(self, trial: Trial, num_threads: int) -> dict[str, Any]:
        path = self._path / trial.run
        most = 1 if is_code(trial.config.model) else self._pool.max_threads
        return {
            "threads": min(num_threads, most),
            "path": str(path),
            "config": {name: _plain(value) for name, value in vars(trial.config).items()},
            "anew": goes_beyond(path, trial.config.rounds),
        }

    def _write(self, trial: Trial, outcome: Outcome) -> None:
        line = trial.line(outcome)
        self._log.append(line)
        self._study_progress.note_line(line, self._result_text(line), is_new=True)

    def _result_text(self, line: Mapping[str, Any]) -> str:
        """Returns the result of a trial in words."""
        select = self._study.select
        splits = [select.on, *line["result"]]
        split = next((each for each in splits if each in line["result"]), "")
        value = line["result"].get(split, {}).get(select.metric)
        text = "not finite" if value is None else f"{value:.4f}"
        return f"{split} {select.metric} {text}, {line['seconds']:.3g} s"


class _Stage:
    """The trials of a stage that have no line yet. Trials of the same run share its outcome."""

    def __init__(self, trials: Sequence[Trial], write: Callable[[Trial, Outcome], None]) -> None:
        self._waiting = list(trials)
        self._outcomes: dict[str, Outcome] = {}
        self._write = write

    def of_each_run(self) -> list[Trial]:
        """The first trial of each run that has no outcome yet."""
        firsts: dict[str, Trial] = {}
        for trial in self._waiting:
            if trial.run not in self._outcomes:
                firsts.setdefault(trial.run, trial)
        return list(firsts.values())

    def end(self, trial: Trial, outcome: Outcome) -> None:
        """Stores an outcome. Writes the lines of all trials before the first without an outcome."""
        self._outcomes[trial.run] = outcome
        while self._waiting and self._waiting[0].run in self._outcomes:
            first = self._waiting.pop(0)
            self._write(first, self._outcomes[first.run])


def failures(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each failed trial."""
    return [
        f"run {line['number']} failed: {line['error']}" for line in lines if line["state"] == FAILED
    ]


def _expected_cost(trial: Trial) -> tuple[float, int]:
    """The sort key of trials: the longest first, estimated from options; then by number."""
    return -trial.config.rounds * trial.config.epochs, trial.number


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
