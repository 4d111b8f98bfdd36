"""The run loop: a config becomes rounds of training, written to a run's folder as they end.

    data -> cohort -> process.next -> metrics.jsonl -> checkpoint -> closing evaluation

Everything a round draws is keyed by its number, so stopping and resuming changes no byte.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from fedcli import (
    __version__,
    backend,
    checkpoint,
    engines,
    model_sources,
    run_dir,
    run_logs,
    stopping,
)
from fedcli import config as configs
from fedcli.backend import CancelFlag, Engine
from fedcli.batches import BatchedDataset
from fedcli.best_round import Best
from fedcli.checkpoint import Checkpoint
from fedcli.client_states import ClientStates
from fedcli.config import RunConfig
from fedcli.datasets import ClientData
from fedcli.errors import ConfigError, RunError
from fedcli.evaluation import Evaluation, evaluate_panel
from fedcli.federation import (
    Federation,
    fingerprinting,
    model_of,
    note_of_change,
    note_of_changed_model,
    open_federation,
    to_state,
)
from fedcli.learning import ServerState
from fedcli.options import Value
from fedcli.run_dir import RunDirectory
from fedcli.run_logs import LoggedRound, RunLog

# Options with other values of which a run may go on: they change no weight, or say where data lie.
_MAY_CHANGE = frozenset(
    {
        *("rounds", "threads", "data", "test_data", "initial_weights", "preset"),
        *("eval_every", "eval_clients", "stop_at", "patience"),
        *("checkpoint_every", "keep_checkpoints", "keep_best"),
        *("csv", "tensorboard", "histograms", "record_clients"),
    }
)

# Without --checkpoint-every: at most this much work is lost, and saving stays below 0.1 %.
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class RoundResult:
    """One round, after its line is in metrics.jsonl.

    Attributes:
        round_num: Its number; 0 for the evaluation of the initial model.
        metrics: The line of metrics.jsonl, with NaN where that has null.
        timings: Seconds by part: data, train, aggregate, evaluate, save.
        evaluation: By split, the four metrics of the weights after the round; None if not due.
        num_clients: Clients whose reports were taken.
        num_examples: Examples processed in training.
    """

    round_num: int
    metrics: dict[str, Any]
    timings: dict[str, float]
    evaluation: dict[str, dict[str, Any]] | None
    num_clients: int
    num_examples: int


class Training:
    """A run that this process holds: make one with `start` or `resume`, iterate `run`, `finish`.

    Attributes:
        config: Every option, resolved.
        notes: What a reader should know, a line each.
        splits: The data by split.
        process: The learning process.
        state: The server state after the last completed round.
    """

    def __init__(
        self,
        federation: Federation,
        state: ServerState,
        run: RunDirectory,
        config_text: str,
        cancel: CancelFlag | None,
    ) -> None:
        """Takes over `run`, whose newest checkpoint is `state`."""
        self.config = federation.config
        self.notes = federation.notes
        self.splits = federation.splits
        self.process = federation.process
        self.state = state
        self._federation = federation
        self._run = run
        self._config_text = config_text
        self._cancel = cancel
        self._saved_round = state.round_num
        self._saved_at = monotonic()
        self._evaluations: dict[str, Evaluation] = {}
        self._logs: tuple[RunLog, ...] = ()
        self._virtual_seconds = 0.0
        self._progress = stopping.progress_for(self.config.stop_at, self.config.patience)
        self._best = None if self.config.keep_best is None else Best(self.config.keep_best)
        if federation.participation or self._progress or self._best:
            for line in run_dir.read_completed(run.path, state.round_num):
                self._note(line)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._run.path

    @property
    def round_num(self) -> int:
        """Rounds completed."""
        return self.state.round_num

    @property
    def num_rounds(self) -> int:
        """Rounds in total."""
        return self.config.rounds

    @property
    def num_threads(self) -> int:
        """Threads that compute."""
        return self._federation.engine.num_threads

    @property
    def code(self) -> str | None:
        """What --model must be beside the run from now on; None: its checkpoints have it all."""
        return self.config.model if engines.is_python(self.process.model) else None

    @property
    def train(self) -> ClientData:
        """The training split."""
        return self.splits["train"]

    @property
    def is_finished(self) -> bool:
        """Whether the last round is done and the closing evaluation of the last is written."""
        return self._stored_evaluation() is not None

    def run(self) -> Generator[RoundResult, None, None]:
        """Trains the rounds that are left and yields each once its metrics are written.

        With `eval_every`, the evaluation of the initial model comes first, as round 0. However the
        iteration ends, the last completed round is saved.

        Raises:
            Cancelled: The flag was raised.
            DataError: A client's data are bad.
            RunError: The run's folder cannot be written.
        """
        try:
            if not self.is_finished:
                self._logs = run_logs.open_logs(
                    self.config,
                    self.path,
                    self.state.round_num,
                    self.process.model.layout,
                )
            if self.state.round_num == 0 and self.config.eval_every:
                yield self._evaluate_initial_model()
            while not self._is_last_round_done():
                yield self._train_round()
        finally:
            self._save_if_behind()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Evaluates the last round's weights on every split and writes evaluation.json.

        If that has been done, nothing is computed or written.

        Returns:
            By split, what `fedcli eval --json` prints.

        Raises:
            Cancelled: The flag was raised; the run itself is saved.
        """
        stored = self._stored_evaluation()
        if stored is not None:
            return stored
        closing = {
            split: evaluation.metrics for split, evaluation in self._evaluate(self.state).items()
        }
        if not self.config.eval_every or self.state.round_num % self.config.eval_every:
            values = {split: each.values for split, each in self._evaluations.items()}
            line = {"round": self.state.round_num, "evaluation": values}
            self._log(line, self.state, is_closing=True)
        self._close_logs()
        self._run.write_evaluation(closing)  # last: what has it is finished
        return closing

    def close(self) -> None:
        """Saves the last completed round if that has not been done, gives up lock and files.

        Raises:
            RunError: The checkpoint cannot be written.
        """
        with ExitStack() as stack:  # all of it, whatever of it fails
            stack.callback(self._run.close)
            for states in _client_states(self.state):
                stack.callback(states.close)
            stack.callback(self._close_logs)
            self._save_if_behind()

    def __enter__(self) -> Training:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    def _train_round(self) -> RoundResult:
        timings = {"data": 0.0}
        cohort = self._federation.cohort_data(self.state.round_num)
        clients = cohort.batches
        if not isinstance(clients, tuple):  # read while the round runs
            clients = _Timed(clients, timings)
        output = self.process.next(self.state, clients, cancel=self._cancel)
        timings.update(output.timings, train=output.timings["train"] - timings["data"])
        round_num = output.state.round_num
        line = {"round": round_num, **output.metrics}
        if cohort.attendance is not None:
            line["participation"] = cohort.attendance.metrics(self._virtual_seconds)
        evaluation = None
        if self.config.eval_every and round_num % self.config.eval_every == 0:
            evaluation = self._evaluate_into(line, timings, output.state)
        self._run.append_metrics(line)
        self._log(
            line,
            output.state,
            client_ids=cohort.client_ids,
            client_stats=output.client_stats,
            attendance=cohort.attendance,
        )
        self.state = output.state  # now that every record has the round
        self._note(line)
        if self._is_save_due():
            started = perf_counter()
            self._save()
            timings["save"] = perf_counter() - started
        self._run.append_timings({"round": round_num, **timings, **_peak_memory()})
        num_examples = line["client_work"]["train"]["num_examples"]
        return RoundResult(round_num, line, timings, evaluation, cohort.num_clients, num_examples)

    def _note(self, line: dict[str, Any]) -> None:
        """Takes from a line of metrics.jsonl what later rounds go on from."""
        told = line.get("participation", {})
        self._virtual_seconds = told.get("virtual_seconds", self._virtual_seconds)
        if self._progress is not None:
            self._progress = self._progress.after(line)
        if self._best is not None:
            self._best = self._best.after(line)

    def _is_last_round_done(self) -> bool:
        has_ended = self._progress is not None and self._progress.is_over
        return has_ended or self.state.round_num >= self.config.rounds

    def _evaluate_initial_model(self) -> RoundResult:
        line: dict[str, Any] = {"round": 0}
        timings: dict[str, float] = {}
        evaluation = self._evaluate_into(line, timings, self.state)
        self._run.append_metrics(line)
        self._note(line)
        self._log(line, self.state)
        self._run.append_timings({"round": 0, **timings})
        return RoundResult(0, line, timings, evaluation, 0, 0)

    def _evaluate_into(
        self, line: dict[str, Any], timings: dict[str, float], state: ServerState
    ) -> dict[str, dict[str, Any]]:
        """Evaluates `state`, adds the values to a metrics line and the seconds to `timings`."""
        started = perf_counter()
        evaluation = {split: each.values for split, each in self._evaluate(state).items()}
        line["evaluation"] = evaluation
        timings["evaluate"] = perf_counter() - started
        return evaluation

    def _evaluate(self, state: ServerState) -> dict[str, Evaluation]:
        """The evaluation of `state` by split; that of the round just evaluated is kept."""
        known = self._evaluations.values()
        if not known or any(each.round_num != state.round_num for each in known):
            self._evaluations = {
                panel.split: evaluate_panel(panel, self._federation.evaluator, state, self._cancel)
                for panel in self._federation.panels
            }
        return self._evaluations

    def _log(self, line: dict[str, Any], state: ServerState, **more: Any) -> None:
        """Passes a round on to what was asked for: its state, and `more` as in LoggedRound."""
        done = LoggedRound(line, state.global_model_weights, **more)
        for log in self._logs:
            log.add(done)

    def _close_logs(self) -> None:
        logs, self._logs = self._logs, ()
        with ExitStack() as stack:  # each, also if another cannot be written
            for log in reversed(logs):
                stack.callback(log.close)

    def _is_save_due(self) -> bool:
        is_best = self._best is not None and self._best.round_num == self.state.round_num
        if self._is_last_round_done() or is_best:
            return True
        if self.config.checkpoint_every:
            return self.state.round_num % self.config.checkpoint_every == 0
        return monotonic() - self._saved_at >= CHECKPOINT_SECONDS

    def _save(self) -> None:
        kept = run_dir.checkpoint_rounds(self._run.path)
        for states in _client_states(self.state):
            states.save(kept)
        for log in self._logs:
            log.flush()
        content = self._federation.encode(self.state, self._config_text)
        self._run.save_checkpoint(self.state.round_num, content)
        self._drop_checkpoints()
        self._saved_round = self.state.round_num
        self._saved_at = monotonic()

    def _drop_checkpoints(self) -> None:
        """Deletes those that are not to be kept."""
        best_round = None if self._best is None else self._best.round_num
        self._run.drop_checkpoints(num_kept=self.config.keep_checkpoints, best_round=best_round)

    def _save_if_behind(self) -> None:
        if self._saved_round < self.state.round_num:
            self._save()

    def _stored_evaluation(self) -> dict[str, Any] | None:
        """evaluation.json, if the last round is done and it is that of the last."""
        if not self._is_last_round_done():
            return None
        stored = run_dir.read_evaluation(self.path)
        last = self.state.round_num
        if not stored or any(each.get("round") != last for each in stored.values()):
            return None
        return stored


def start(
    config: RunConfig,
    out: str | Path,
    *,
    force: bool = False,
    expected_data: str | None = None,
    expected_model: str | None = None,
    cancel: CancelFlag | None = None,
) -> Training:
    """Opens everything a config names, a user's code too, and makes the folder of a new run.

    Args:
        config: What to do; it is validated here.
        out: The run's folder.
        force: Replace a run that stands there.
        expected_data: The fingerprint of the data that the config was used with; None: any.
        expected_model: That of the file of a model in Python; None: any.
        cancel: Once raised, from any thread, the training stops within a local step.

    Raises:
        ConfigError: An option is not allowed, or does not fit the data.
        DataError: The data are missing or bad.
        RunError: The folder exists or cannot be made.
    """
    path = Path(out)
    config = configs.absolute_paths(configs.validate(config), str(Path.cwd()))
    run_dir.check_target(path, force=force)
    run_logs.require(config)
    with fingerprinting(config, cancel) as fingerprint:
        federation = open_federation(config, cancel)
        state = federation.initial_state()
        found = fingerprint.result()
    consequence = "a new run with its config does not repeat it"
    federation.notes.extend(note_of_change(config, expected_data, found, consequence))
    federation.notes.extend(note_of_changed_model(config.model, expected_model))
    provenance = _provenance(federation.engine, found, federation.config.model)
    config_text = configs.to_toml(federation.config, provenance)
    content = federation.encode(state, config_text)
    run = RunDirectory.create(path, config_text, content, force=force)
    state = _with_client_states(state, run)
    return Training(federation, state, run, config_text, cancel)


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    threads: int | None = None,
    model: str | None = None,
    cancel: CancelFlag | None = None,
) -> Training:
    """Opens a run where its newest checkpoint left it.

    Args:
        path: The run's folder.
        rounds: A new total; None keeps it.
        threads: Number of threads; None: what the config says.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here.
        cancel: See `start`.

    Raises:
        ConfigError: config.toml is bad, `rounds` is below the rounds completed, or the model is
            code and `model` does not name it.
        DataError: The data are missing or bad.
        RunError: There is no run, it is in use, or its files do not fit together.
    """
    run = RunDirectory.open(Path(path))
    try:
        return _resume(run, rounds, threads, model, cancel)
    except BaseException:
        run.close()
        raise


def _resume(
    run: RunDirectory,
    rounds: int | None,
    threads: int | None,
    code: str | None,
    cancel: CancelFlag | None,
) -> Training:
    file = run_dir.latest_checkpoint(run.path)
    content = checkpoint.load(file)
    config, config_text = _continued_config(run, content, rounds)
    if threads is not None:
        config = configs.validate(replace(config, threads=threads))
    run_logs.require(config)
    origin = configs.read_provenance(config_text, str(run.path))
    model = model_of(content, config, file, code)
    with fingerprinting(config, cancel) as fingerprint:
        federation = open_federation(config, cancel, model)
        state = to_state(content, federation.process, file)
        found = fingerprint.result()
    consequence = "its rounds no longer repeat"
    federation.notes.extend(note_of_change(config, origin.get("data"), found, consequence))
    federation.notes.extend(note_of_changed_model(code, origin.get("model")))
    training = Training(federation, _with_client_states(state, run), run, config_text, cancel)
    if not training.is_finished:
        run.cut_back(state.round_num)
        training._drop_checkpoints()  # a process may have been killed before it did
        run.write_config(config_text)
    return training


def _client_states(state: ServerState) -> list[ClientStates]:
    """What the clients keep, of each kind that an algorithm has."""
    return [each for each in state.client_work.values() if isinstance(each, ClientStates)]


def _with_client_states(state: ServerState, run: RunDirectory) -> ServerState:
    """The state with what its clients keep opened in the run's folder."""
    kept = run_dir.checkpoint_rounds(run.path)
    client_work = {
        name: each.open_in(run.path, kept) if isinstance(each, ClientStates) else each
        for name, each in state.client_work.items()
    }
    return replace(state, client_work=client_work)


def _continued_config(
    run: RunDirectory, content: Checkpoint, rounds: int | None
) -> tuple[RunConfig, str]:
    """The config of a run with its new total of rounds, and the text that says so."""
    config_file = run.path / run_dir.CONFIG
    text = run_dir.read_text(config_file)
    values = configs.from_toml(text, str(config_file))
    try:
        config = configs.from_options(values)
    except ConfigError as err:  # which names options alone
        raise ConfigError(f"{config_file}: {err}") from err
    _check_is_same(config, content, config_file)
    if rounds is not None and rounds < content.round_num:
        raise ConfigError(
            f"--rounds {rounds}: {run.path} has completed {content.round_num} rounds; give that "
            "many or more"
        )
    if config.rounds < content.round_num and rounds is None:
        raise RunError(
            f"{config_file} asks for {config.rounds} rounds but {content.round_num} are completed; "
            f"give --rounds {content.round_num} or more"
        )
    if rounds in (None, config.rounds):
        return config, text
    config = configs.validate(replace(config, rounds=rounds))
    return config, configs.to_toml(config, configs.read_provenance(text, str(config_file)))


def _check_is_same(config: RunConfig, content: Checkpoint, config_file: Path) -> None:
    """Refuses a config.toml edited so that later rounds would be of another run than those done."""
    before = configs.from_options(configs.from_toml(content.config, "the checkpoint's config"))
    for field in fields(RunConfig):
        now, then = getattr(config, field.name), getattr(before, field.name)
        if now != then and field.name not in _MAY_CHANGE and content.round_num:
            raise ConfigError(
                f"{config_file}: {field.name} is {now!r}, but the rounds so far were trained "
                f"with {then!r}; put that back, or start another run with --config"
            )


@dataclass(frozen=True, eq=False)
class _Timed:
    """Clients; the seconds that each takes to read are added to `timings`, whenever it is read."""

    batches: Iterable[BatchedDataset]
    timings: dict[str, float]

    def __iter__(self) -> Iterator[BatchedDataset]:
        iterator = iter(self.batches)
        while True:
            started = perf_counter()
            dataset = next(iterator, None)
            self.timings["data"] += perf_counter() - started
            if dataset is None:
                return
            yield dataset


def _peak_memory() -> dict[str, int]:
    """The most memory that this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_bytes": peak if sys.platform == "darwin" else 1024 * peak}


def _provenance(engine: Engine, fingerprint: str, model: str) -> dict[str, Value]:
    code = model_sources.code_fingerprint(model)
    of_model: dict[str, Value] = {} if code is None else {"model": code}
    return {
        "fedcli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": checkpoint.H5PY_VERSION,
        "cpu": _cpu_model(),
        "isa": backend.isa_name(),
        "openmp": backend.has_openmp(),
        "threads": engine.num_threads,
        "data": fingerprint,
        **of_model,
    }


def _cpu_model() -> str:
    """The processor's name as Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
