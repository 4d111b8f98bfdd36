"""How well a score distinguishes members from others.

A score is higher for members. At a threshold t, the true positive rate (TPR) is the share of
members whose score is at least t, and the false positive rate (FPR) is the share of others whose
score is at least t.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass

LOW_RATES = (0.001, 0.01)  # the false positive rates at which Carlini et al. 2022 report the TPR
MAX_CONFIDENCE = 100.0  # reached if p or 1 - p is e^-100; the authors add 1e-45 (e^-104) to both


@dataclass(frozen=True)
class Separation:
    """How well members are distinguished from others.

    Attributes:
        num_members: Number of members.
        num_others: Number of others.
        auc: Area under the curve of TPR against FPR: the probability that a member has a higher
            score than a non-member, where a tie counts half.
        advantage: The largest TPR - FPR.
        tpr: For each of `LOW_RATES`, the largest TPR with at most this FPR.
    """

    num_members: int
    num_others: int
    auc: float
    advantage: float
    tpr: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers by name."""
        return {
            "num_members": self.num_members,
            "num_others": self.num_others,
            "auc": self.auc,
            "advantage": self.advantage,
            **{f"tpr_at_fpr_{rate:g}": tpr for rate, tpr in zip(LOW_RATES, self.tpr, strict=True)},
        }


def separation(members: NDArray[np.float64], others: NDArray[np.float64]) -> Separation:
    """Returns how well the scores distinguish members from others.

    Args:
        members: The scores of members, [m], at least one; infinite ones are allowed, NaN is not.
        others: The scores of others, [n], at least one.
    """
    thresholds = np.unique(np.concatenate([members, others]))[::-1]  # from strict to lax
    tpr = _share_from(members, thresholds)
    fpr = _share_from(others, thresholds)
    heights = np.concatenate([[0.0], tpr])
    widths = np.diff(np.concatenate([[0.0], fpr]))
    return Separation(
        num_members=len(members),
        num_others=len(others),
        auc=float(np.sum(widths * (heights[1:] + heights[:-1]) / 2.0)),
        advantage=float(max(0.0, np.max(tpr - fpr))),
        tpr=tuple(float(np.max(tpr[fpr <= rate], initial=0.0)) for rate in LOW_RATES),
    )


def _share_from(
    scores: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share of scores that are at least each threshold."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    shares: NDArray[np.float64] = (len(scores) - below) / len(scores)
    return shares


def mean_scores(losses: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns the mean confidence of each client: float64 [num_clients].

    The confidence of an example is ln(p / (1 - p)) for the probability p of its label (Carlini et
    al. 2022), kept within +-`MAX_CONFIDENCE`.

    Args:
        losses: For each client, the losses -ln(p) of its examples, float64 [n], n at least 1.
    """
    return np.array([float(np.mean(confidence(each))) for each in losses])


def confidence(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns ln(p / (1 - p)) for losses -ln(p), [n], within +-`MAX_CONFIDENCE`."""
    with np.errstate(divide="ignore"):
        odds = -losses - np.log(-np.expm1(-losses))
    return np.clip(odds, -MAX_CONFIDENCE, MAX_CONFIDENCE)
