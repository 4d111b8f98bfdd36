"""The best round of a run, and early stopping: at a target, or without improvement.

The decisions depend on metrics.jsonl alone, so a resumed run stops where an uninterrupted run
stops. The metric is that of split validation, else test, else central, else train, in the rounds
that --eval-every evaluates, round 0 included. The curve is not smoothed: the number of rounds to a
target is the round of the first evaluation that reaches it. (McMahan et al. 2017 make the curve
monotone and interpolate, which can only give a smaller number.) Among equal rounds, the first is
the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.settings.tables.metrics import key_of, more_is_better
from fedcli.settings.values import split_target
from fedcli.settings.vocabulary import ACCURACY, SELECTION_SPLITS


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Attributes:
        measure: The metric that ranks the rounds: a key of SELECTION_METRICS, or a user's own.
        value: Its value in the best round; None before the first evaluation that has it.
        round_num: The best round; None if `value` is None.
    """

    measure: str
    value: float | None = None
    round_num: int | None = None

    def after(self, line: Mapping[str, Any]) -> Best:
        """Returns the best round after one more line of metrics.jsonl."""
        evaluation = line.get("evaluation")
        if not evaluation:
            return self
        value = _value(evaluation, self.measure)
        if value is None or not (self.value is None or _is_better(self.measure, value, self.value)):
            return self
        return Best(self.measure, value, line["round"])

    def after_all(self, lines: Iterable[Mapping[str, Any]]) -> Best:
        """Returns the best round after several lines."""
        best = self
        for line in lines:
            best = best.after(line)
        return best

    def summary(self) -> dict[str, Any]:
        """Returns the values for --json."""
        return {"measure": self.measure, "value": self.value, "round": self.round_num}


_NONE_YET = Best(ACCURACY)


@dataclass(frozen=True)
class Progress:
    """The state of early stopping after some evaluations of a run.

    Attributes:
        target: The run stops at this value; None for no target.
        patience: The run stops after this many evaluations in a row without a new best value; None
            for no limit.
        split: The split that decides; empty before the first evaluation.
        best: The best round so far by the metric that patience watches.
        num_without_gain: Number of evaluations since the best round.
        target_round: Round of the first evaluation that reached the target; None if none has.
        target_measure: The metric of the target.
    """

    target: float | None = None
    patience: int | None = None
    split: str = ""
    best: Best = _NONE_YET
    num_without_gain: int = 0
    target_round: int | None = None
    target_measure: str = ACCURACY

    @property
    def is_over(self) -> bool:
        """Whether the run ends here."""
        return self.target_round is not None or self._is_out_of_patience

    @property
    def _is_out_of_patience(self) -> bool:
        return self.patience is not None and self.num_without_gain >= self.patience

    def after(self, line: Mapping[str, Any]) -> Progress:
        """Returns the progress after one more line of metrics.jsonl."""
        evaluation = line.get("evaluation")
        if not evaluation:
            return self
        split = deciding_split(evaluation)
        best = self.best.after(line)
        target_round = self.target_round
        if target_round is None and self.target is not None:
            value = _value(evaluation, self.target_measure)
            is_missed = value is None or _is_better(self.target_measure, self.target, value)
            target_round = None if is_missed else line["round"]
        return replace(
            self,
            split=split,
            best=best,
            num_without_gain=0 if best != self.best else self.num_without_gain + 1,
            target_round=target_round,
        )

    def after_all(self, lines: Iterable[Mapping[str, Any]]) -> Progress:
        """Returns the progress after several lines."""
        progress = self
        for line in lines:
            progress = progress.after(line)
        return progress

    def reason(self) -> str | None:
        """Returns a text that says why the run ended early; None if it did not."""
        if self.target_round is not None:
            return f"{self.split} {self.target_measure} reached {self.target:g}"
        if self._is_out_of_patience:
            what = f"{self.split} {self.best.measure}"
            return f"no better {what} in {self.num_without_gain} evaluations in a row"
        return None

    def summary(self) -> dict[str, Any]:
        """Returns the values for --json."""
        return {
            "split": self.split,
            f"target_{self.target_measure}": self.target,
            "rounds_to_target": self.target_round,
            "patience": self.patience,
            f"best_{self.best.measure}": self.best.value,
            "best_round": self.best.round_num,
            "ended_by": self.reason(),
        }


def progress_for(
    stop_at: str | None, patience: int | None, monitor: str | None = None
) -> Progress | None:
    """Returns the progress of a run before its first evaluation; None if nothing stops it early.

    Args:
        stop_at: The target as `settings.values.parse_target` returns it; None for no target.
        patience: See `Progress`.
        monitor: The metric that patience watches; None for accuracy or, without patience, the
            metric of the target.
    """
    if stop_at is None and patience is None:
        return None
    measure, target = (ACCURACY, None) if stop_at is None else split_target(stop_at)
    if monitor is None:
        monitor = measure if patience is None else ACCURACY
    return Progress(target, patience, best=Best(monitor), target_measure=measure)


def _value(evaluation: Mapping[str, Any], measure: str) -> float | None:
    """The value of a metric on the split that ranks rounds; None if it is NaN or missing.

    It is missing in earlier rounds if a resumed run watches a new metric.
    """
    value = evaluation[deciding_split(evaluation)].get(key_of(measure))
    return None if value is None or value != value else value


def _is_better(measure: str, value: float, other: float) -> bool:
    return value > other if more_is_better(measure) else value < other


def deciding_split(evaluation: Mapping[str, Any]) -> str:
    """Returns the split of an evaluation that ranks rounds: its first of SELECTION_SPLITS."""
    splits = (each for each in SELECTION_SPLITS if each in evaluation)
    return next(splits, next(iter(evaluation)))
