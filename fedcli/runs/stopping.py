"""The best round of a run, and when a run ends early: at a target, or without improvement.

All that decides stands in metrics.jsonl, so a resumed run stops where the straight run stops. The
metric is that of split validation, else test, else central, else train, on the rounds that
--eval-every names, round 0 included. The curve is taken as it is, without smoothing: the
rounds to a target are those before the first evaluation that reaches it. (McMahan et al. 2017 make
theirs monotone and interpolate; that can only be less.) Of equal rounds the first is the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.settings.tables.metrics import JUDGING, more_is_better
from fedcli.settings.values import split_target
from fedcli.settings.vocabulary import ACCURACY, JUDGES


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Attributes:
        measure: What it is best by, a key of JUDGING.
        value: What that is there; None before the first evaluation that has it.
        round_num: Its number, None likewise.
    """

    measure: str
    value: float | None = None
    round_num: int | None = None

    def after(self, line: Mapping[str, Any]) -> Best:
        """Returns the best after one more line of metrics.jsonl."""
        evaluation = line.get("evaluation")
        if not evaluation:
            return self
        value = _value(evaluation, self.measure)
        if value is None or not (self.value is None or _is_better(self.measure, value, self.value)):
            return self
        return Best(self.measure, value, line["round"])

    def after_all(self, lines: Iterable[Mapping[str, Any]]) -> Best:
        """Returns the best after several lines."""
        best = self
        for line in lines:
            best = best.after(line)
        return best

    def summary(self) -> dict[str, Any]:
        """Returns what --json tells."""
        return {"measure": self.measure, "value": self.value, "round": self.round_num}


_NONE_YET = Best(ACCURACY)


@dataclass(frozen=True)
class Progress:
    """What the evaluations of a run say about its end.

    Attributes:
        target: Value to stop at; None: none.
        patience: Evaluations in a row without a new best value to stop at; None: any number.
        split: The split that decides; empty before the first evaluation.
        best: The best value so far of the metric that patience watches, and its round.
        num_without_gain: Evaluations since.
        target_round: Round of the first evaluation that reached the target; None: none has.
        target_measure: What the target is a value of, a key of JUDGING.
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
        """Whether the run is to end here."""
        return self.target_round is not None or self._is_out_of_patience

    @property
    def _is_out_of_patience(self) -> bool:
        return self.patience is not None and self.num_without_gain >= self.patience

    def after(self, line: Mapping[str, Any]) -> Progress:
        """Returns what is known after one more line of metrics.jsonl."""
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
        """Returns what is known after several lines."""
        progress = self
        for line in lines:
            progress = progress.after(line)
        return progress

    def reason(self) -> str | None:
        """Returns why the run ended early, in words; None if it did not."""
        if self.target_round is not None:
            return f"{self.split} {self.target_measure} reached {self.target:g}"
        if self._is_out_of_patience:
            what = f"{self.split} {self.best.measure}"
            return f"no better {what} in {self.num_without_gain} evaluations"
        return None

    def summary(self) -> dict[str, Any]:
        """Returns what --json tells."""
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
        stop_at: What `settings.values.parse_target` returned, None for no target.
        patience: See `Progress`.
        monitor: The metric that patience watches; None: that of the target where there is no
            patience, else accuracy.
    """
    if stop_at is None and patience is None:
        return None
    measure, target = (ACCURACY, None) if stop_at is None else split_target(stop_at)
    if monitor is None:
        monitor = measure if patience is None else ACCURACY
    return Progress(target, patience, best=Best(monitor), target_measure=measure)


def _value(evaluation: Mapping[str, Any], measure: str) -> float | None:
    """What an evaluation says of a metric on the split that ranks rounds; None where it is NaN.

    Also where it does not have it: a run may be asked for another metric when it is resumed.
    """
    value = evaluation[deciding_split(evaluation)].get(JUDGING[measure])
    return None if value is None or value != value else value


def _is_better(measure: str, value: float, other: float) -> bool:
    return value > other if more_is_better(measure) else value < other


def deciding_split(evaluation: Mapping[str, Any]) -> str:
    """Returns the split of an evaluation that ranks rounds: validation, if there is one."""
    splits = (each for each in JUDGES if each in evaluation)
    return next(splits, next(iter(evaluation)))
