"""The attack on Krum by Fang et al."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.updates.attacks import known_updates
from fedcli.learning.updates.attacks.known_updates import DistancesFromLine
from fedcli.learning.updates.attacks.malicious import NOT_MADE
from fedcli.learning.updates.attacks.stage import AttackView

_LEAST_FACTOR = 1e-5  # below it the search has failed


@dataclass(frozen=True)
class FangKrum:
    """Minus lambda times the signs of the mean, with a lambda at which Krum chooses the attackers.

    lambda starts at the paper's upper bound. It is halved until Krum with f = a chooses an
    attacker's update, among the known updates and the updates of the a attackers. If honest updates
    lie close together, lambda falls below 1e-5 first and the attack fails. Then the attackers send
    the last vector tried.
    Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    USENIX Security 2020, https://arxiv.org/abs/1911.11815, section 4.3.
    """

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; metrics: `lambda`, and whether Krum would choose the vector.

        Krum needs three known updates, and the bound needs more than 2a + 1 updates in the cohort.
        In a round with fewer updates, the attack is not made.
        """
        num_known = len(view.known)
        if num_known < 3 or view.num_counted <= 2 * view.num_attackers + 1:
            return {}, dict(NOT_MADE)
        signs = np.sign(known_updates.mean(view))
        distances = known_updates.squared_distances(view)
        line = DistancesFromLine(view, np.zeros(view.num_params), signs)
        factor = _upper_bound(view, distances)
        while True:
            is_chosen = is_chosen_by_krum(distances, line.at(factor), view.num_attackers)
            if is_chosen or factor / 2 < _LEAST_FACTOR:
                break
            factor /= 2
        view.send_alike(-factor * signs)
        return {}, {"is_made": 1, "lambda": factor, "is_chosen_by_krum": int(is_chosen)}


def _upper_bound(view: AttackView, squared_distances: NDArray[np.float64]) -> float:
    """The paper's bound, from the smallest sum of nearest distances and the largest norm."""
    n, a = view.num_counted, view.num_attackers
    # Column 0 of a sorted row is the distance of an update to itself.
    nearest = np.sort(np.sqrt(squared_distances), axis=1)[:, 1 : max(1, n - a - 2) + 1]
    root = math.sqrt(view.num_params)
    sums = float(nearest.sum(axis=1).min()) / ((n - 2 * a - 1) * root)
    return sums + float(known_updates.norms(view).max()) / root


def is_chosen_by_krum(
    between_known: NDArray[np.float64], to_known: NDArray[np.float64], num_attackers: int
) -> bool:
    """Returns whether Krum with f = a chooses a vector that all attackers send.

    A score is the sum of the squared distances to the n - f - 2 nearest others (Blanchard et al.
    2017). A tie counts as not chosen.

    Args:
        between_known: Squared distances between the known updates, [known, known].
        to_known: Squared distances from the vector to the known updates, [known].
        num_attackers: The number of attackers, all of which send the vector; at least 1.
    """
    num_nearest = len(to_known) - 2  # n - f - 2 of n = known + a and f = a
    own = np.concatenate([np.zeros(num_attackers - 1), to_known])
    score = float(np.sort(own)[:num_nearest].sum())
    copies = np.repeat(to_known[:, np.newaxis], num_attackers, axis=1)
    others = np.sort(np.concatenate([between_known, copies], axis=1), axis=1)
    return score < float(others[:, 1 : num_nearest + 1].sum(axis=1).min())
