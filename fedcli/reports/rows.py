"""Converts results to the rows of tables. Pure functions.

The rounds of a run are the dictionaries of metrics.jsonl; an evaluation is the dictionary that
`fedcli eval --json` prints. Numbers that are not finite are None if they come from a file, and NaN
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

from fedcli.dataclass import dataclass
from fedcli.evaluation.spread import GROUPS
from fedcli.models.metrics import BUILT_IN

MAX_ROUND_ROWS = 20

# Why a round was skipped; see `RoundRow`.
MIN_REPORTS, THRESHOLD, AGGREGATOR = "min-reports", "threshold", "aggregator"

_EPSILONS = ("epsilon", "epsilon_rdp")


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy over some examples; None or NaN if they are not finite.

    Attributes:
        loss: Mean cross-entropy of the examples.
        accuracy: Share of examples whose most probable class is the label.
        num_examples: Number of examples processed.
        num_batches: Number of batches.
        own: Further metrics by name; None or NaN if they are not finite.
    """

    loss: float | None
    accuracy: float | None
    num_examples: int
    num_batches: int
    own: Mapping[str, float | None] = field(default_factory=dict)


class PrivacySpent(NamedTuple):
    """The differential privacy that a run has spent, and its last clipping norm.

    Attributes:
        epsilon: Epsilon by the run's accountant; None if it is infinite because there was no noise.
        epsilon_rdp: Epsilon by Renyi divergences; None as for `epsilon`.
        delta: The probability with which the guarantee may fail.
        clip_norm: The clipping norm of the round.
    """

    epsilon: float | None
    epsilon_rdp: float | None
    delta: float
    clip_norm: float

    @property
    def sentence(self) -> str:
        """The guarantee in words."""
        if self.epsilon is None:
            return "none: there was no noise"
        return (
            f"epsilon {self.epsilon:.4f} (Renyi {self.epsilon_rdp:.4f}), delta {self.delta:g}, "
            "simulated"
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the figures by name; an infinite epsilon is null."""
        return {"private": self.epsilon is not None, **self._asdict()}


@dataclass(frozen=True)
class RoundRow:
    """One round of training.

    Attributes:
        round_num: Number of the round, from 1; 0 for the evaluation of the initial model.
        online: Training metrics, measured before each local step; None for round 0.
        num_non_finite_clients: Number of clients dropped because their delta was not finite.
        is_rejected: Whether the model was left unchanged because the mean delta was not finite.
        evaluation: Scores of the model after the round by split, on rounds that were evaluated.
        skip_reason: Why the model was left unchanged: `MIN_REPORTS` or `THRESHOLD` if too few
            clients reported for `--min-reports` or for the secure sum, `AGGREGATOR` if there were
            too few deltas for the aggregator or it trusted none. Empty if the round was not
            skipped.
        num_reports: Number of clients that reported in time; None if all clients always do.
        virtual_seconds: Seconds on the virtual clock after the round; None if the run has no clock.
        privacy: The privacy spent so far; None for a run without --dp.
    """

    round_num: int
    online: Scores | None
    num_non_finite_clients: int
    is_rejected: bool
    evaluation: dict[str, Scores]
    skip_reason: str = ""
    num_reports: int | None = None
    virtual_seconds: float | None = None
    privacy: PrivacySpent | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether the model was left unchanged by intention."""
        return self.skip_reason != ""


@dataclass(frozen=True)
class EvaluationRow:
    """Scores of one split, or of a group of its clients, before or after fine-tuning.

    Attributes:
        split: The name of the split or part.
        scores: The scores.
        num_clients: Number of evaluated clients.
        num_absent_clients: Number of selected clients that have no data in the split.
        num_seen_clients: Number of evaluated clients that took part in the training; None if it is
            not known.
    """

    split: str
    scores: Scores
    num_clients: int
    num_absent_clients: int = 0
    num_seen_clients: int | None = None


def scores(metrics: Mapping[str, Any]) -> Scores:
    """Returns the scores in one group of metrics, whose names are those of TFF."""
    return Scores(
        metrics["loss"],
        metrics["sparse_categorical_accuracy"],
        int(metrics["num_examples"]),
        int(metrics["num_batches"]),
        {name: value for name, value in metrics.items() if name not in BUILT_IN},
    )


def round_row(line: Mapping[str, Any]) -> RoundRow:
    """Returns the row of one line of metrics.jsonl."""
    online = line.get("client_work", {}).get("train")
    participation = line.get("participation", {})
    aggregated = line.get("aggregator", {})
    skips = {
        MIN_REPORTS: participation.get("is_skipped"),
        THRESHOLD: aggregated.get("secure_sum", {}).get("is_skipped"),
        AGGREGATOR: aggregated.get("skipped"),
    }
    # Without reports the aggregator gets no deltas, either, so the first reason is the cause.
    skip_reason = next((reason for reason, is_true in skips.items() if is_true), "")
    return RoundRow(
        line["round"],
        scores(online) if online else None,
        int(online["num_non_finite_clients"]) if online else 0,
        bool(line.get("finalizer", {}).get("update_non_finite")) and not skip_reason,
        {split: scores(group) for split, group in line.get("evaluation", {}).items()},
        skip_reason,
        participation.get("num_reports"),
        participation.get("virtual_seconds"),
        privacy_spent(line),
    )


def privacy_spent(line: Mapping[str, Any]) -> PrivacySpent | None:
    """Returns the privacy in one line of metrics.jsonl; None for a run without --dp."""
    metrics = line.get("aggregator", {})
    if "private" not in metrics:
        return None
    epsilon, epsilon_rdp = (metrics[name] if metrics["private"] else None for name in _EPSILONS)
    return PrivacySpent(epsilon, epsilon_rdp, metrics["delta"], metrics["clip_norm"])


def round_rows(
    lines: Sequence[Mapping[str, Any]], max_rows: int = MAX_ROUND_ROWS
) -> list[RoundRow]:
    """Returns the rows of the evaluated rounds of a run or, if at most one is, of all rounds.

    If there are too many, only the first, every k-th and the last are returned. k is
    `thinning_step` times the distance between two rounds.
    """
    evaluated = [line for line in lines if "evaluation" in line]
    candidates = evaluated if len(evaluated) > 1 else list(lines)
    if len(candidates) <= max_rows:
        return list(map(round_row, candidates))
    distance = max(1, candidates[1]["round"] - candidates[0]["round"])
    step = distance * thinning_step(len(candidates), max_rows)
    chosen = [
        line
        for index, line in enumerate(candidates)
        if index in (0, len(candidates) - 1) or line["round"] % step == 0
    ]
    return [round_row(line) for line in chosen]


def thinning_step(num_rounds: int, max_rows: int) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, 50, ... that leaves at most `max_rows` rounds."""
    if num_rounds <= max_rows:
        return 1
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if num_rounds // step + 2 <= max_rows:
                return step
        power *= 10


def evaluation_rows(evaluation: Mapping[str, Mapping[str, Any]]) -> list[EvaluationRow]:
    """Returns the rows of evaluations by split, one for each of their `parts`."""
    return [
        EvaluationRow(
            part.name,
            scores(part.metrics),
            part.num_clients,
            int(metrics["num_absent_clients"]) if part.name == split else 0,
            part.num_seen_clients,
        )
        for split, metrics in evaluation.items()
        for part in parts(split, metrics)
    ]


@dataclass(frozen=True)
class EvaluationPart:
    """The results of an evaluation for all its clients, or for some of them.

    Attributes:
        name: Its name: the split, whether fine-tuned, and the group of clients.
        metrics: Loss, accuracy and counts.
        num_clients: Number of clients.
        num_seen_clients: Number of them that took part in the training; None if it is not known.
        over_clients: The spread of loss and accuracy over them.
        gain_over_clients: The spread of the gain by fine-tuning; None if they did not fine-tune.
    """

    name: str
    metrics: Mapping[str, Any]
    num_clients: int
    num_seen_clients: int | None
    over_clients: Mapping[str, Any]
    gain_over_clients: Mapping[str, Any] | None = None


def parts(split: str, metrics: Mapping[str, Any]) -> list[EvaluationPart]:
    """Returns the parts of the evaluation of one split.

    The parts are all clients, seen clients and unseen clients, then the same after fine-tuning.
    """
    whole = {
        "metrics": metrics["client_work"]["eval"]["current_round_metrics"],
        "num_clients": metrics["num_clients"],
        "over_clients": metrics.get("over_clients", {}),
        **{name: metrics[name] for name in GROUPS if name in metrics},
    }
    num_seen = metrics.get("num_seen_clients")
    parts_of_split = _grouped(split, whole, num_seen)
    if "fine_tuned" in metrics:
        parts_of_split += _grouped(f"{split}, fine-tuned", metrics["fine_tuned"], num_seen)
    return parts_of_split


def _grouped(name: str, whole: Mapping[str, Any], num_seen: int | None) -> list[EvaluationPart]:
    """Returns the part of all clients, then those of seen and of unseen clients."""
    named = [(name, whole, num_seen)]
    for group in GROUPS:
        if group in whole:
            part = whole[group]
            named.append((f"{name}, {group}", part, part["num_clients"] * (group == "seen")))
    return [
        EvaluationPart(
            label,
            part["metrics"],
            int(part["num_clients"]),
            seen,
            part["over_clients"],
            part.get("gain_over_clients"),
        )
        for label, part, seen in named
    ]
