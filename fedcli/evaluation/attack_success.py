"""The success of an attack: how often the model predicts what the attackers want."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.evaluation import predictions
from fedcli.evaluation.by_class import ClassMeasures
from fedcli.evaluation.predictions import Mistake, WorstMistakes
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.federation.poisoning import Poisoning
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState

NAME = "attack_success_rate"  # its name among the metrics of an evaluation


@dataclass(frozen=True, eq=False)
class AttackSuccess:
    """The success of an attack on the examples of one split.

    Attributes:
        num_aimed_at: Number of examples that the attack aims at: for a backdoor, those whose true
            class is not the target.
        num_successes: Number of these for which the attackers' class is predicted.
        recall: The share of each class's clean examples that is predicted correctly, [num_classes],
            NaN without examples; None: not measured.
        shown: Some examples on which the attack succeeded, sorted by the probability of the true
            class, smallest first; None: not collected.
        probes: The clients with the examples that the attack aims at, as the model saw them.
    """

    num_aimed_at: int
    num_successes: int
    recall: NDArray[np.float64] | None
    shown: tuple[Mistake, ...] | None
    probes: ClientData

    @property
    def rate(self) -> float:
        """The share of successes; NaN if the attack aims at no example."""
        return self.num_successes / self.num_aimed_at if self.num_aimed_at else math.nan

    @property
    def values(self) -> dict[str, float]:
        """The success rate by name, as a metric."""
        return {NAME: self.rate}

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as plain values."""
        values: dict[str, Any] = {
            NAME: self.rate,
            "num_aimed_at": self.num_aimed_at,
            "num_successes": self.num_successes,
        }
        if self.recall is not None:
            values["class_recall"] = self.recall.tolist()
        return values


def measure_success(
    group: EvaluationGroup,
    poisoning: Poisoning,
    evaluator: LearningProcess,
    state: ServerState,
    *,
    has_recall: bool = False,
    num_shown: int | None = None,
    cancel: CancelFlag | None = None,
) -> AttackSuccess:
    """Predicts the examples that an attack aims at, and counts its successes.

    Args:
        group: The clients of one split.
        poisoning: The attack.
        evaluator: The process whose model and engine make the predictions.
        state: The server state that is evaluated.
        has_recall: Whether to measure also the recall of each class on the clean examples.
        num_shown: Number of successes to return; None: none.
        cancel: A flag that any thread may set to stop the work within a batch.

    Raises:
        Cancelled: `cancel` was set.
        DataError: A client's data are invalid.
        ModelError: A user's model fails.
    """
    data, client_ids = poisoning.probes(group.data, group.client_ids)
    probes = EvaluationGroup(group.split, data, client_ids, group.plan)
    model, engine, weights = evaluator.model, evaluator.engine, state.evaluated_weights
    num_aimed_at = 0
    successes = WorstMistakes(num_shown or 0)
    for predicted in predictions.predict(probes, model, engine, weights, cancel, state.starts):
        aims = poisoning.target_classes(predicted.labels)
        num_aimed_at += len(aims)
        successes.add(predicted, aims)
    measures = ClassMeasures()
    if has_recall:
        for predicted in predictions.predict(group, model, engine, weights, cancel, state.starts):
            measures.add(predicted)
    return AttackSuccess(
        num_aimed_at,
        successes.num_mistakes,
        measures.recall if has_recall and len(measures.labels) else None,
        None if num_shown is None else successes.mistakes,
        data,
    )
