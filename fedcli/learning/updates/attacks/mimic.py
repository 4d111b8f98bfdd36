"""The attack that copies an honest client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.updates.attacks import known_updates
from fedcli.learning.updates.attacks.malicious import NOT_MADE
from fedcli.learning.updates.attacks.stage import AttackView


@dataclass(frozen=True)
class Mimic:
    """The attackers copy the known update that lies farthest along a direction of large variance.

    The copied client then counts several times, and clients that differ from it count too little.
    No rule can tell a copy from an honest update. The direction is found by power iteration: one
    step in each of the first `warmup` rounds with attackers, and none afterwards. The first step
    starts at the known update that is farthest from the mean. The copied client is chosen anew in
    each round, because cohorts change. Karimireddy, He and Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing", ICLR 2022, https://arxiv.org/abs/2006.09365.
    """

    warmup: int

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns a direction of zeros, float64 [num_params], and no steps."""
        return {"direction": np.zeros(num_params), "num_steps": 0}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; the metric `copied` is a cohort position."""
        if len(view.known) < 2:
            return dict(state), dict(NOT_MADE)
        center = known_updates.mean(view)
        direction, num_steps = state["direction"], state["num_steps"]
        if num_steps < self.warmup:
            if not direction.any():
                direction = _farthest(view, center)
            direction = _power_step(view, center, direction)
            num_steps += 1
        place = int(view.known[np.argmax(_projections(view, center, direction))])
        view.updates.rows[view.attackers] = view.updates.rows[place]
        metrics = {"is_made": 1, "copied": place}
        return {"direction": direction, "num_steps": num_steps}, metrics


def _projections(
    view: AttackView, center: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The components of the known updates, minus their mean, along a direction: [known]."""
    total = np.zeros(len(view.known))
    for chosen, values in view.slices():
        total += np.einsum("ij,j->i", values - center[chosen], direction[chosen])
    return total


def _farthest(view: AttackView, center: NDArray[np.float64]) -> NDArray[np.float64]:
    """The known update farthest from the mean, minus the mean: [num_params]."""
    squares = np.zeros(len(view.known))
    for chosen, values in view.slices():
        squares += np.einsum("ij,ij->i", values - center[chosen], values - center[chosen])
    row = view.updates.rows[view.known[np.argmax(squares)]]
    difference: NDArray[np.float64] = row.astype(np.float64) - center
    return difference


def _power_step(
    view: AttackView, center: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The covariance of the known updates times a direction, as a unit vector: [num_params]."""
    along = _projections(view, center, direction)
    moved = np.empty(view.num_params)
    for chosen, values in view.slices():
        moved[chosen] = np.einsum("ij,i->j", values - center[chosen], along)
    norm = float(np.sqrt(np.sum(np.square(moved))))
    return moved / norm if norm else direction
