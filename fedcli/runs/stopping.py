"""The best round of a run, and when a run ends early: at a target, or without improvement.

All that decides stands in metrics.jsonl, so a resumed run stops where the straight run stops. The
accuracy is that of split validation, else test, else central, else train, on the rounds that
--eval-every names, round 0 included. The curve is taken as it is, without smoothing: the
rounds to a target are those before the first evaluation that reaches it. (McMahan et al. 2017 make
theirs monotone and interpolate; that can only be less.) Of equal rounds the first is the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.settings.vocabulary import ACCURACY, JUDGES, MEASURES

_MORE_IS_BETTER = {"loss": False, ACCURACY: True}


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Attributes:
        measure: What it is best by, one of MEASURES.
        value: Its accuracy or loss; None before the first evaluation that has one.
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
        value = evaluation[deciding_split(evaluation)][MEASURES[self.measure]]
        if value is None or value != value:  # NaN
            return self
        is_better = self.value is None or (value > self.value) == _MORE_IS_BETTER[self.measure]
        if not is_better or value == self.value:
            return self
        return Best(self.measure, value, line["round"])

    def after_all(self, lines: Iterable[Mapping[str, Any]]) -> Best:
        """Returns the best after several lines."""
        best = self
        for line in lines:
            best = best.after(line)
        return best


_NONE_YET = Best(ACCURACY)


@dataclass(frozen=True)
class Progress:
    """What the evaluations of a run say about its end.

    Attributes:
        target: Accuracy to stop at, 0 to 1; None: none.
        patience: Evaluations in a row without a new best accuracy to stop at; None: any number.
        split: The split that decides; empty before the first evaluation.
        best: The best accuracy so far, and its round.
        num_without_gain: Evaluations since.
        target_round: Round of the first evaluation that reached the target; None: none has.
    """

    target: float | None = None
    patience: int | None = None
    split: str = ""
    best: Best = _NONE_YET
    num_without_gain: int = 0
    target_round: int | None = None

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
        if target_round is None and self.target is not None and best.value is not None:
            target_round = best.round_num if best.value >= self.target else None
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
            return f"{self.split} accuracy reached {self.target:g}"
        if self._is_out_of_patience:
            return f"no better {self.split} accuracy in {self.num_without_gain} evaluations"
        return None

    def summary(self) -> dict[str, Any]:
        """Returns what --json tells."""
        return {
            "split": self.split,
            "target_accuracy": self.target,
            "rounds_to_target": self.target_round,
            "patience": self.patience,
            "best_accuracy": self.best.value,
            "best_round": self.best.round_num,
            "ended_by": self.reason(),
        }


def progress_for(stop_at: str | None, patience: int | None) -> Progress | None:
    """Returns the progress of a run before its first evaluation; None if nothing stops it early.

    Args:
        stop_at: What `settings.values.parse_target` returned, None for no target.
        patience: See `Progress`.
    """
    if stop_at is None and patience is None:
        return None
    target = None if stop_at is None else float(stop_at.partition("=")[2])
    return Progress(target, patience)


def deciding_split(evaluation: Mapping[str, Any]) -> str:
    """Returns the split of an evaluation that ranks rounds: validation, if there is one."""
    splits = (each for each in JUDGES if each in evaluation)
    return next(splits, next(iter(evaluation)))
