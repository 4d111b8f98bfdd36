"""Attacks in which all attackers send one vector, made from the updates that they know."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.updates.attacks import known_updates
from fedcli.learning.updates.attacks.stage import AttackView
from fedcli.settings.vocabulary import AUTO

Made = tuple[NDArray[np.float64], dict[str, Any]]

# Metrics of a round in which the attack could not be made: the attackers sent their own updates.
NOT_MADE: Mapping[str, Any] = {"is_made": 0}


class MaliciousUpdate:
    """The base of these attacks, which have no state.

    If the attackers know no update, each sends its own update unchanged.
    """

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`."""
        made = self.make(view) if len(view.known) else None
        if made is None:
            return {}, dict(NOT_MADE)
        update, metrics = made
        view.send_alike(update)
        return {}, {"is_made": 1, **metrics}

    def make(self, view: AttackView) -> Made | None:
        """Returns the update [num_params] and its metrics; None if it cannot be made."""
        raise NotImplementedError


@dataclass(frozen=True)
class LittleIsEnough(MaliciousUpdate):
    """The mean minus z standard deviations by coordinate.

    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", NeurIPS 2019, https://arxiv.org/abs/1902.06156. Implementations differ in the sign of
    z; with either sign the vector is equally far from the mean. If at least half of the updates of
    a round come from attackers, z is not defined and the attack is not made in this round.

    Attributes:
        z: The number of deviations, or `auto` for `hiding_deviations`.
    """

    z: str | float

    def make(self, view: AttackView) -> Made | None:
        """See `MaliciousUpdate.make`; the metric `z` is the number of deviations."""
        if self.z != AUTO:
            z = float(self.z)
        elif 2 * view.num_attackers < view.num_counted:
            z = hiding_deviations(view.num_counted, view.num_attackers)
        else:
            return None
        center, std = known_updates.mean_and_std(view)
        return center - z * std, {"z": z}


def hiding_deviations(num_updates: int, num_attackers: int) -> float:
    """Returns the z of Baruch et al., the largest deviation that hides the attackers; at least 0.

    The number of honest updates that the attackers need for a majority is s = floor(n / 2 + 1) - a.
    z is the quantile (n - a - s) / (n - a) of the normal distribution.

    Args:
        num_updates: Updates of the cohort that count, n.
        num_attackers: The number a of attackers among them, fewer than half.
    """
    supporters = num_updates // 2 + 1 - num_attackers
    honest = num_updates - num_attackers
    share = (honest - supporters) / honest
    if share <= 0.5:
        return 0.0
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True)
class InnerProduct(MaliciousUpdate):
    """Minus `epsilon` times the mean of the known updates.

    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2020, https://arxiv.org/abs/1903.03936.
    """

    epsilon: float

    def make(self, view: AttackView) -> Made | None:
        """See `MaliciousUpdate.make`."""
        return -self.epsilon * known_updates.mean(view), {}


@dataclass(frozen=True)
class FangTrimmed(MaliciousUpdate):
    """Values just beyond the extremes of the known updates, opposite to the sign of their mean.

    In each coordinate, lo is the smallest known value. Where the mean is positive, the value is
    drawn uniformly between lo and lo / factor if lo > 0, else between lo and factor * lo. Where the
    mean is negative, it is drawn above the largest known value in the same way. All attackers send
    the same vector of such values, drawn anew in each round. Fang, Cao, Jia and Gong, "Local Model
    Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    https://arxiv.org/abs/1911.11815.
    """

    factor: float

    def make(self, view: AttackView) -> Made | None:
        """See `MaliciousUpdate.make`."""
        drawn = view.noise_of()
        sent = np.empty(view.num_params)
        for chosen, values in view.slices():
            is_positive = values.mean(axis=0) >= 0.0
            near = np.where(is_positive, values.min(axis=0), values.max(axis=0))
            is_shrunk = (near > 0.0) == is_positive
            far = np.where(is_shrunk, near / self.factor, near * self.factor)
            sent[chosen] = near + drawn.uniform(len(near)) * (far - near)
        return sent, {}
