"""When a run ends before its last round: at a target accuracy, or when it no longer improves.

All that decides stands in metrics.jsonl, so a resumed run stops where the straight run stops. The
accuracy is that of the held-out data (split test, else central; without both, train), on the rounds
that --eval-every names, round 0 included. The curve is taken as it is, without smoothing: the
rounds to a target are those before the first evaluation that reaches it. (McMahan et al. 2017 make
theirs monotone and interpolate; that can only be less.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedcli.best_round import Best, deciding_split
from fedcli.errors import ConfigError
from fedcli.options import check_number

ACCURACY = "accuracy"
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


def parse_target(label: str, value: object) -> str:
    """Returns `accuracy=X` in one spelling.

    Raises:
        ConfigError: It is of another form, or X is not a number above 0 and up to 1.
    """
    name, equals, text = str(value).partition("=")
    if name.strip() != ACCURACY or not equals:
        raise ConfigError(f"{label} {str(value)[:60]!r}: give {ACCURACY}=X, as in accuracy=0.97")
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(
            f"{label} {ACCURACY}={text.strip()[:60]}: choose a share above 0 and up to 1, as in "
            "accuracy=0.97"
        ) from None
    number = check_number(f"{label} {ACCURACY}", number, 1e-9, 1.0)
    return f"{ACCURACY}={number!r}"


def progress_for(stop_at: str | None, patience: int | None) -> Progress | None:
    """Returns the progress of a run before its first evaluation; None if nothing stops it early.

    Args:
        stop_at: What `parse_target` returned, None for no target.
        patience: See `Progress`.
    """
    if stop_at is None and patience is None:
        return None
    target = None if stop_at is None else float(stop_at.partition("=")[2])
    return Progress(target, patience)
