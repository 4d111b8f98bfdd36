"""The training loop of a run. Each round is written to the run's folder when it ends.

data -> cohort -> process.next -> metrics.jsonl -> checkpoint -> closing evaluation
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, OwnCodeError, StopTraining
from fedcli.learning.algorithms.evaluated import NO_COMMON_MODEL
from fedcli.learning.engines import choosing
from fedcli.learning.state import ModelWeights, ServerState
from fedcli.models.layout import ParamLayout
from fedcli.runs.files import folder
from fedcli.runs.files import logs as run_logs
from fedcli.runs.files.folder import RunDirectory
from fedcli.runs.files.logs import LoggedRound, RunLog
from fedcli.runs.files.saved_states import client_states_of
from fedcli.runs.opening import Federation
from fedcli.runs.round_evaluations import RoundEvaluations
from fedcli.runs.saving import CheckpointWriter
from fedcli.settings.run_config import may_have_code


@dataclass(frozen=True, eq=False)
class RoundResult:
    """One round, after its line is in metrics.jsonl.

    Attributes:
        round_num: Its number; 0 for the evaluation of the initial model.
        metrics: The line of metrics.jsonl, with NaN for null.
        timings: Seconds by part: data, train, aggregate, evaluate, save.
        evaluation: By split, the metrics of the weights after the round: loss, accuracy, numbers of
            examples and batches, and the config's further metrics. None if the round was not
            evaluated.
        num_clients: Number of clients whose reports were used.
        num_examples: Number of examples processed in training.
        params: The weights that are evaluated after the round, float32 [num_params]; read-only.
            None if each client has its own model.
        layout: The layout of `params`.
    """

    round_num: int
    metrics: dict[str, Any]
    timings: dict[str, float]
    evaluation: dict[str, dict[str, Any]] | None
    num_clients: int
    num_examples: int
    params: NDArray[np.float32] | None
    layout: ParamLayout

    def weights(self) -> ModelWeights:
        """Returns a copy of `params`, tensor by tensor.

        Raises:
            ConfigError: Each client has its own model.
        """
        if self.params is None:
            raise ConfigError(NO_COMMON_MODEL)
        return ModelWeights.of(self.layout, self.params)


# Called with the result of each round; see `Training.complete`.
Callback = Callable[[RoundResult], object]


class Training:
    """A run whose folder this process has locked.

    Make one with `start` or `resume`, iterate over `run`, then call `finish`.

    Attributes:
        config: The options, all resolved.
        notes: Notes for the user, one line each.
        splits: The data by split.
        process: The learning process.
        state: The server state after the last completed round.
        num_trained_in_round: Number of client trainings in the current round; a client that trains
            twice counts twice. `CancelFlag.num_trained` counts up to this number. 0 if trainings
            are not counted.
    """

    def __init__(
        self,
        federation: Federation,
        state: ServerState,
        run: RunDirectory,
        config_text: str,
        cancel: CancelFlag | None,
        *,
        have_data_changed: bool = False,
        is_new: bool = False,
    ) -> None:
        """Takes over `run`, whose newest checkpoint is `state`.

        If data have changed since the run began, the earlier cohorts are not known. If the run is
        new and the user's code fails before the end of round 1, the run's folder is deleted.
        """
        self.config = federation.config
        self.notes = list(dict.fromkeys(federation.notes))
        self.splits = federation.splits
        self.process = federation.process
        self.state = state
        self.num_trained_in_round = 0
        self._federation = federation
        self._run = run
        self._cancel = cancel
        self._have_data_changed = have_data_changed
        self._is_new = is_new
        self._checkpoints = CheckpointWriter(federation, run, config_text, state.round_num)
        self._evaluations = RoundEvaluations(federation, cancel)
        self._logs: tuple[RunLog, ...] = ()
        self._virtual_seconds = 0.0
        if federation.sampled_clients.participation or self._evaluations.needs_lines:
            for line in folder.read_completed(run.path, state.round_num):
                self._note(line)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._run.path

    @property
    def round_num(self) -> int:
        """Number of completed rounds."""
        return self.state.round_num

    @property
    def num_rounds(self) -> int:
        """Total number of rounds."""
        return self.config.rounds

    @property
    def num_threads(self) -> int:
        """Number of threads of the run."""
        return self._federation.engine.num_threads

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batches that all threads process at a time; see `Federation.batch_bytes`."""
        return self._federation.batch_bytes

    @property
    def code(self) -> dict[str, str]:
        """The user's code that must be named again to continue the run, by option.

        A model of layers need not be named, because the checkpoints hold it.
        """
        if not may_have_code(self.config):
            return {}
        from fedcli.settings.own import permission  # lazy: few runs have code

        named = permission.named_again(self.config)
        if not choosing.is_python(self.process.model):
            named.pop("--model", None)
        return named

    @property
    def train(self) -> ClientData:
        """The training split."""
        return self.splits["train"]

    @property
    def is_finished(self) -> bool:
        """Whether the last round is done and its closing evaluation is written."""
        return self._stored_evaluation() is not None

    def run(self) -> Generator[RoundResult, None, None]:
        """Trains the remaining rounds and yields the result of each when its metrics are written.

        With `eval_every`, the evaluation of the initial model comes first, as round 0. However the
        iteration ends, the last completed round is saved.

        Raises:
            Cancelled: The flag was set.
            DataError: A client's data are bad.
            OwnCodeError: The user's own code fails.
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
                with self._naming_round(0):
                    result = self._evaluate_initial_model()
                yield result
            while not self._is_last_round_done():
                with self._naming_round(self.round_num + 1):
                    result = self._train_round()
                yield result
        finally:
            self._save_if_behind()

    def complete(self, callbacks: Iterable[Callback] = ()) -> dict[str, dict[str, Any]]:
        """Trains the remaining rounds, calls the callbacks after each, then evaluates.

        Args:
            callbacks: Each is called with each `RoundResult`, including that of round 0, when its
                line is in metrics.jsonl. They cannot change the run. If a callback raises
                `StopTraining`, that round is the last (`resume` can continue the run). Any other
                exception is raised again after the round is saved.

        Returns:
            See `finish`.

        Raises:
            See `run` and `finish`.
        """
        functions = list(callbacks)
        with closing(self.run()) as results:
            for result in results:
                go_on = [_call(callback, result) for callback in functions]
                if not all(go_on):
                    break
        return self.finish()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Evaluates the last round's weights on every split and writes evaluation.json.

        If that has been done, nothing is computed or written.

        Returns:
            By split, the values that `fedcli eval --json` prints.

        Raises:
            Cancelled: The flag was set; the run itself is saved.
            DataError: A client's data are bad.
            OwnCodeError: The user's own model or metric fails.
            RunError: The run's folder cannot be written.
        """
        stored = self._stored_evaluation()
        if stored is not None:
            return stored
        started = perf_counter()
        seen = None
        if not self._have_data_changed:
            seen = self._federation.sampled_clients.seen(self.state.round_num, self._cancel)
        evaluations = self._evaluations.close(self.state, seen)
        seconds = perf_counter() - started
        evaluation = {split: each.metrics for split, each in evaluations.items()}
        logged = self._evaluations.due_splits(self.state.round_num)
        values = {split: each.values for split, each in evaluations.items() if split not in logged}
        if values:
            self._run.append_timings({"evaluate": seconds})  # without a round, see `cut_back`
            line = {"round": self.state.round_num, "evaluation": values}
            self._log(line, self.state, is_closing=True)
        self._close_logs()
        self._run.write_evaluation(evaluation)  # last, because it marks the run as finished
        return evaluation

    def close(self) -> None:
        """Saves the last completed round if necessary, releases the lock and closes the files.

        Raises:
            RunError: The checkpoint cannot be written.
        """
        self._close(is_useless=False)

    def _close(self, *, is_useless: bool) -> None:
        """See `close`; deletes the run's folder, too, if it is useless."""
        with ExitStack() as stack:  # all of these run, even if one fails
            if self._federation.workers is not None:  # closed last: no result depends on it
                stack.callback(self._federation.workers.close)
            stack.callback(self._run.close)
            if is_useless:
                from fedcli.runs.files.discarding import discard  # lazy: few runs fail at once

                stack.callback(discard, self.path)
            for states in client_states_of(self.state):
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
        """Closes the run; deletes a new one whose round 1 failed in the user's code."""
        is_useless = self._is_new and self.round_num == 0 and isinstance(error, OwnCodeError)
        self._close(is_useless=is_useless)

    @contextmanager
    def _naming_round(self, round_num: int) -> Iterator[None]:
        """Adds to an error of the user's code the round and, if a round is saved, which one."""
        try:
            yield
        except OwnCodeError as err:
            saved = ""
            if self.round_num:
                saved = f"; {self.path} is saved after round {self.round_num} and can be resumed"
            raise type(err)(f"round {round_num}: {err.args[0]}{saved}") from err.__cause__

    def _train_round(self) -> RoundResult:
        timings = {"data": 0.0}
        cohort = self._federation.cohort_data(self.state.round_num)
        if self._cancel is not None:
            self._cancel.num_trained = 0
            self.num_trained_in_round = self.process.num_trainings(cohort.num_clients)
        clients = cohort.batches
        is_read_here = self._federation.workers is None and not isinstance(clients, tuple)
        if is_read_here:  # the round reads its clients while it runs
            clients = _Timed(clients, timings)
        attack, distances = self._federation.attack, None
        if attack is not None:
            distances = attack.max_distances(self.round_num, cohort.training_ids)
        output = self.process.next(
            self.state,
            clients,
            cancel=self._cancel,
            num_absent=cohort.num_absent,
            max_distances=distances,
        )
        timings.update(output.timings, train=output.timings["train"] - timings["data"])
        round_num = output.state.round_num
        line = {"round": round_num, **output.metrics}
        if attack is not None:
            attack.note(line, cohort.training_ids)
        if cohort.round_reports is not None:
            line["participation"] = cohort.round_reports.metrics(self._virtual_seconds)
        evaluation = None
        if self._evaluations.due_splits(round_num):
            evaluation = self._evaluate_into(line, timings, output.state)
        self._run.append_metrics(line)
        self._log(
            line,
            output.state,
            client_ids=cohort.client_ids,
            client_stats=output.client_stats,
            round_reports=cohort.round_reports,
            payloads=output.payloads,
        )
        self.state = output.state  # only after all logs have the round
        self._note(line)
        if self._is_save_due():
            started = perf_counter()
            self._save()
            timings["save"] = perf_counter() - started
        counts = {"num_clients": cohort.num_clients, **_peak_memory()}
        self._run.append_timings({"round": round_num, **timings, **counts})
        num_examples = line["client_work"]["train"]["num_examples"]
        return self._result(line, timings, evaluation, cohort.num_clients, num_examples)

    def _result(
        self,
        line: dict[str, Any],
        timings: dict[str, float],
        evaluation: dict[str, dict[str, Any]] | None,
        num_clients: int,
        num_examples: int,
    ) -> RoundResult:
        """The result of the last completed round. Callers cannot change the run through it."""
        params = None
        if self.state.has_common_model:
            params = self.state.evaluated_weights.view()
            params.flags.writeable = False
        return RoundResult(
            round_num=self.state.round_num,
            metrics=line,
            timings=timings,
            evaluation=evaluation,
            num_clients=num_clients,
            num_examples=num_examples,
            params=params,
            layout=self.process.model.layout,
        )

    def _note(self, line: dict[str, Any]) -> None:
        """Updates the virtual clock and the early stopping from a line of metrics.jsonl."""
        participation = line.get("participation", {})
        self._virtual_seconds = participation.get("virtual_seconds", self._virtual_seconds)
        self._evaluations.note(line)

    def _is_last_round_done(self) -> bool:
        return self._evaluations.is_over or self.state.round_num >= self.config.rounds

    def _evaluate_initial_model(self) -> RoundResult:
        line: dict[str, Any] = {"round": 0}
        timings: dict[str, float] = {}
        evaluation = self._evaluate_into(line, timings, self.state)
        self._run.append_metrics(line)
        self._note(line)
        self._log(line, self.state)
        self._run.append_timings({"round": 0, **timings})
        return self._result(line, timings, evaluation, 0, 0)

    def _evaluate_into(
        self, line: dict[str, Any], timings: dict[str, float], state: ServerState
    ) -> dict[str, dict[str, Any]]:
        """Evaluates `state`, adds the values to a metrics line and the seconds to `timings`."""
        started = perf_counter()
        due = self._evaluations.due_splits(state.round_num)
        evaluations = self._evaluations.evaluate(state, due)
        evaluation = {split: dict(each.values) for split, each in evaluations.items()}
        line["evaluation"] = evaluation
        timings["evaluate"] = perf_counter() - started
        return evaluation

    def _log(self, line: dict[str, Any], state: ServerState, **more: Any) -> None:
        """Adds a round to all logs; `more` are further fields of LoggedRound."""
        logged = LoggedRound(line, state.global_model_weights, **more)
        for log in self._logs:
            log.add(logged)

    def _close_logs(self) -> None:
        logs, self._logs = self._logs, ()
        with ExitStack() as stack:  # all logs are closed, even if one fails
            for log in reversed(logs):
                stack.callback(log.close)

    def _is_save_due(self) -> bool:
        round_num = self.state.round_num
        if self._is_last_round_done() or self._evaluations.best_round == round_num:
            return True
        return self._checkpoints.is_due(round_num)

    def _save(self) -> None:
        self._checkpoints.save(self.state, self._logs, self._evaluations.best_round)

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints that are no longer kept."""
        self._checkpoints.drop_old(self._evaluations.best_round)

    def _save_if_behind(self) -> None:
        if self._checkpoints.is_behind(self.state.round_num):
            self._save()

    def _stored_evaluation(self) -> dict[str, Any] | None:
        """The content of evaluation.json if the last round is done and was evaluated; else None."""
        if not self._is_last_round_done():
            return None
        stored = folder.read_evaluation(self.path)
        last = self.state.round_num
        if not stored or any(each.get("round") != last for each in stored.values()):
            return None
        return stored


def _call(callback: Callback, result: RoundResult) -> bool:
    """Calls a callback; returns False if it raises StopTraining."""
    try:
        callback(result)
    except StopTraining:
        return False
    return True


@dataclass(frozen=True, eq=False)
class _Timed:
    """Iterates over clients. The seconds that it takes to read them are added to `timings`."""

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
    """The peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_bytes": peak if sys.platform == "darwin" else 1024 * peak}
