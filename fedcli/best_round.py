"""Which round of a run is the best so far, by its evaluations of the held-out data.

All that decides stands in metrics.jsonl: the evaluations of split test, else central, else train,
on the rounds that --eval-every names, round 0 included. Of equal rounds the first is the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What a round is judged by, with its name in metrics.jsonl.
MEASURES = {"loss": "loss", "accuracy": "sparse_categorical_accuracy"}
_MORE_IS_BETTER = {"loss": False, "accuracy": True}
# What a model is judged by rather than train: the first of these splits that there are.
HELD_OUT = ("test", "central")


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


def deciding_split(evaluation: Mapping[str, Any]) -> str:
    """Returns the split of an evaluation that tells best how good a model is."""
    splits = (each for each in (*HELD_OUT, "train") if each in evaluation)
    return next(splits, next(iter(evaluation)))
