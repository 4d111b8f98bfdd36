"""The evaluations during a run: when one is due, its results, and whether they end the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedcli.core.native import CancelFlag
from fedcli.evaluation.result import Evaluation, evaluate_group, seen_in
from fedcli.federation.evaluated_splits import due_splits
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.learning.state import ServerState
from fedcli.runs import stopping
from fedcli.runs.opening import Federation
from fedcli.runs.stopping import Best


class RoundEvaluations:
    """Evaluates rounds of one run, and decides which is the best and whether the run ends early."""

    def __init__(self, federation: Federation, cancel: CancelFlag | None) -> None:
        """Starts before the first evaluation."""
        config = federation.config
        self._config = config
        self._federation = federation
        self._cancel = cancel
        self._evaluations: dict[str, Evaluation] = {}
        self._progress = stopping.progress_for(config.stop_at, config.patience, config.monitor)
        self._best = None if config.keep_best is None else Best(config.keep_best)

    @property
    def needs_lines(self) -> bool:
        """Whether `note` must be called with the lines of all earlier rounds."""
        return self._progress is not None or self._best is not None

    @property
    def is_over(self) -> bool:
        """Whether the evaluations so far end the run."""
        return self._progress is not None and self._progress.is_over

    @property
    def best_round(self) -> int | None:
        """The best round, whose checkpoint is kept; None if no best round is kept."""
        return None if self._best is None else self._best.round_num

    @property
    def splits(self) -> list[str]:
        """The splits of the closing evaluation."""
        return [group.split for group in self._federation.groups]

    def due_splits(self, round_num: int) -> list[str]:
        """Returns the splits that are evaluated after `round_num` rounds, by `eval_every`."""
        every = self._config.eval_every
        if not every or round_num % every:
            return []
        return due_splits(self._config.eval_split, self.splits)

    def evaluate(self, state: ServerState, splits: Sequence[str]) -> dict[str, Evaluation]:
        """Returns the evaluation of `state` by split.

        The evaluations of the last evaluated round are cached.

        Raises:
            Cancelled: The run is cancelled.
            DataError: A client's data are bad.
        """
        self._evaluations = {
            split: each
            for split, each in self._evaluations.items()
            if each.round_num == state.round_num
        }
        for group in self._federation.groups:
            if group.split in splits and group.split not in self._evaluations:
                evaluation = self._attacked(self._scored(group, state), group, state)
                self._evaluations[group.split] = self._measured(evaluation, group, state)
        return {split: self._evaluations[split] for split in splits}

    def close(self, state: ServerState, seen: frozenset[str] | None) -> dict[str, Evaluation]:
        """Returns the closing evaluation by split. Further metrics also have values by client.

        Args:
            state: The state to evaluate.
            seen: The clients that took part in the training; None if they are not known.

        Raises:
            Cancelled: The run is cancelled.
            DataError: A client's data are bad.
        """
        closing = {}
        for group in self._federation.groups:
            evaluation = self._evaluations.get(group.split)
            if evaluation is None or evaluation.round_num != state.round_num:
                evaluation = self._scored(group, state)
            if seen is not None:
                is_seen = seen_in(evaluation.data, evaluation.client_ids, seen)
                evaluation = replace(evaluation, is_seen=is_seen)
            evaluation = self._attacked(evaluation, group, state, has_recall=True)
            closing[group.split] = self._measured(evaluation, group, state, by_client=True)
        return closing

    def _scored(self, group: EvaluationGroup, state: ServerState) -> Evaluation:
        return evaluate_group(group, self._federation.evaluator, state, self._cancel)

    def _is_held_out(self, group: EvaluationGroup) -> bool:
        return group.split in due_splits("held-out", self.splits)

    def _attacked(
        self,
        evaluation: Evaluation,
        group: EvaluationGroup,
        state: ServerState,
        *,
        has_recall: bool = False,
    ) -> Evaluation:
        """Adds the success of an attack on examples to an evaluation of a held-out split."""
        attack = self._federation.attack
        if attack is None or attack.poisoning is None or not self._is_held_out(group):
            return evaluation
        from fedcli.evaluation.attack_success import measure_success  # lazy: few runs need it

        success = measure_success(
            group,
            attack.poisoning,
            self._federation.evaluator,
            state,
            has_recall=has_recall,
            cancel=self._cancel,
        )
        return replace(evaluation, attack=success)

    def _measured(
        self,
        evaluation: Evaluation,
        group: EvaluationGroup,
        state: ServerState,
        *,
        by_client: bool = False,
    ) -> Evaluation:
        """The evaluation with the config's further metrics."""
        if self._config.metrics is None:
            return evaluation
        from fedcli.evaluation.measuring import measure  # lazy: few runs have further metrics

        measured = measure(
            group,
            self._federation.evaluator,
            state,
            self._config.metrics,
            options=self._config.metric_options,
            by_client=by_client,
            is_seen=evaluation.is_seen,
            cancel=self._cancel,
        )
        return replace(evaluation, measured=measured)

    def note(self, line: Mapping[str, Any]) -> None:
        """Updates the best round and the early stop from a line of metrics.jsonl."""
        if self._progress is not None:
            self._progress = self._progress.after(line)
        if self._best is not None:
            self._best = self._best.after(line)
