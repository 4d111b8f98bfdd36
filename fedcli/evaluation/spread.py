"""The spread of metrics over clients.

All clients with examples have the same weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Groups of clients: those that took part in the training, and those that never did.
GROUPS = ("seen", "unseen")

_PERCENTILES = (10, 50, 90)
_WORST_SHARE = 0.1


def client_means(stats: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns accuracy and mean loss of each client, float64 [num_clients]; NaN without examples.

    Args:
        stats: One row for each client, as the engine returns them.
    """
    counts = np.asarray(stats["num_examples"], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return stats["num_correct"] / counts, stats["loss_sum"] / counts


def over_clients(stats: Any) -> dict[str, Any]:
    """Returns the spread of accuracy and loss over the clients that have examples.

    Each has mean, std (with divisor n), p10, p50, p90 and `worst_decile`, the mean over the worst
    tenth of the clients (at least one client). Accuracy also has Jain's index, (sum of a)^2 / (n *
    sum of a^2), which is 1 if all clients have the same accuracy and 1/n if all but one have 0.
    Jain, Chiu and Hawe, "A Quantitative Measure of Fairness", DEC-TR-301, 1984.

    Args:
        stats: One row for each client, as the engine returns them.
    """
    has_examples = np.asarray(stats["num_examples"]) > 0
    accuracy, loss = (each[has_examples] for each in client_means(stats))
    return {
        "num_clients": len(accuracy),
        "sparse_categorical_accuracy": {
            **_spread(accuracy, -1),
            "jain_index": jain_index(accuracy),
        },
        "loss": _spread(loss, 1),
    }


def metric_over_clients(values: NDArray[np.float64], *, more_is_better: bool) -> dict[str, Any]:
    """Returns the spread of a metric over the clients for which it is defined.

    Args:
        values: The metric of each client, float64 [num_clients]; NaN where it is not defined.
        more_is_better: Whether high values are good, so that the lowest are the worst.
    """
    known = values[~np.isnan(values)]
    return {"num_clients": len(known), **_spread(known, -1 if more_is_better else 1)}


def gain_over_clients(before: Any, after: Any) -> dict[str, Any]:
    """Returns the spread over clients of the differences, after minus before, of accuracy and loss.

    Clients without examples are left out. The worst clients are those with the lowest difference
    in accuracy and the highest in loss. `share_better` is the share of clients whose metric is
    better than before, `share_worse` that of clients whose metric is worse.

    Args:
        before: One row for each client, as the engine returns them.
        after: The rows of the same clients after fine-tuning, in the same order.
    """
    has_examples = np.asarray(before["num_examples"]) > 0
    gains = {}
    names = ("sparse_categorical_accuracy", "loss")
    for name, worst, old, new in zip(
        names, (-1, 1), client_means(before), client_means(after), strict=True
    ):
        gain = (new - old)[has_examples]
        gains[name] = {
            **_spread(gain, worst),
            "share_better": _share(worst * gain < 0),
            "share_worse": _share(~(worst * gain <= 0)),  # NaN counts as worse
        }
    return {"num_clients": int(has_examples.sum()), **gains}


def jain_index(values: NDArray[np.float64]) -> float:
    """Returns Jain's index of numbers that are not negative; 1 if all are 0, NaN for no numbers."""
    if not len(values):
        return math.nan
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else 1.0


def _share(is_one: NDArray[np.bool_]) -> float:
    return float(is_one.mean()) if len(is_one) else math.nan


def _spread(values: NDArray[np.float64], worst: int) -> dict[str, float]:
    """The spread of one metric; `worst` is 1 if large values are bad, -1 if small ones are."""
    names = [f"p{each}" for each in _PERCENTILES]
    if not len(values) or not np.isfinite(values).all():
        return dict.fromkeys(["mean", "std", *names, "worst_decile"], math.nan)
    num_worst = math.ceil(_WORST_SHARE * len(values))
    ascending = np.sort(values)
    worst_first = ascending[::-worst]
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        **{
            name: _percentile(ascending, percent)
            for name, percent in zip(names, _PERCENTILES, strict=True)
        },
        "worst_decile": float(worst_first[:num_worst].mean()),
    }


def _percentile(ascending: NDArray[np.float64], percent: float) -> float:
    """Computes np.percentile without its import of numpy.ma, which takes 7 ms."""
    place = (len(ascending) - 1) * (percent / 100)
    index = math.floor(place)
    below, above = ascending[index], ascending[min(index + 1, len(ascending) - 1)]
    share, gap = place - index, above - below
    return float(above - gap * (1 - share) if share >= 0.5 else below + gap * share)
