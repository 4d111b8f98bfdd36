"""The weighted mean of clipped deltas: with a fixed norm, or with TFF's adaptive bounds.

TFF's chain (learning/model_update_aggregator.py: robust_aggregator) replaces a delta by zeros if
the largest magnitude of its entries is above a bound; the client's weight stays. It then clips each
delta to an L2 norm over all tensors, and takes the mean. Both bounds follow quantiles of the
clients' deltas (Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with
Adaptive Clipping", NeurIPS 2021, https://arxiv.org/abs/1905.03871; TFF
aggregators/quantile_estimation.py, without noise).
After each round an estimate C becomes

    C * exp(-rate * (share of clients at or below C - target))

and applies to the next round. Every client counts once in the share. If a client's delta was not
finite, or the client had no example, its delta counts as zeros.

The engine measures and clips each delta while it adds it, so no delta is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import NO_BOUNDS, DeltaBounds, DeltaRequest, Deltas


class Quantile(NamedTuple):
    """An estimate of a quantile that is updated by geometric steps.

    Attributes:
        initial: The estimate before the first round.
        target: The quantile, 0 to 1.
        rate: Step size of the logarithm of the estimate.
    """

    initial: float
    target: float
    rate: float

    def after(self, estimate: float, values: NDArray[np.float64]) -> float:
        """Returns the next estimate; `values` [num_clients] are those of the round's clients."""
        if not len(values):
            return estimate
        share_below = float(np.mean(values <= estimate))
        return estimate * math.exp(-self.rate * (share_below - self.target))


# TFF's defaults. A delta becomes zeros if an entry's magnitude is above 2 * zeroing estimate + 1.
ZEROING = Quantile(initial=10.0, target=0.98, rate=math.log(10.0))
CLIPPING = Quantile(initial=1.0, target=0.8, rate=0.2)


@dataclass(frozen=True)
class AdaptiveRobust:
    """TFF's robust aggregator with all its defaults."""

    def init(self) -> dict[str, Any]:
        """Returns the first estimate of each of the two quantiles."""
        return {"zeroing": ZEROING.initial, "clipping": CLIPPING.initial}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the sum of the deltas, each with the bounds of the coming round applied."""
        return DeltaRequest(_bounds(state))

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta, the next estimates, and metrics with this round's bounds."""
        bounds = _bounds(state)
        sizes, norms = deltas.stats["max_abs"], deltas.stats["norm"]
        next_state = {
            "zeroing": ZEROING.after(state["zeroing"], sizes),
            "clipping": CLIPPING.after(state["clipping"], norms),
        }
        clipping = {
            "clipping": {"mean_value": {}, "mean_weight": {}},
            "clipping_norm": bounds.norm,
            "clipped_count": int(np.count_nonzero(norms > bounds.norm)),
        }
        metrics = {
            "zeroing": clipping,
            "zeroing_norm": bounds.max_abs,
            "zeroed_count": int(np.count_nonzero(sizes > bounds.max_abs)),
        }
        return deltas.weighted_mean(), next_state, metrics


def _bounds(state: Mapping[str, Any]) -> DeltaBounds:
    return DeltaBounds(max_abs=2.0 * state["zeroing"] + 1.0, norm=state["clipping"])


@dataclass(frozen=True)
class NormBound:
    """The weighted mean of deltas that are clipped to one fixed L2 norm.

    A defence against a few clients with large deltas (Sun, Kairouz, Suresh and McMahan, "Can You
    Really Backdoor Federated Learning?", 2019, https://arxiv.org/abs/1911.07963).

    Attributes:
        max_norm: The largest L2 norm of a delta, over all tensors.
    """

    max_norm: float

    def init(self) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the sum of the deltas, each clipped to the bound."""
        return DeltaRequest(NO_BOUNDS._replace(norm=self.max_norm))

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta, the state, and the number of clipped deltas."""
        metrics = {
            "clipping": {"mean_value": {}, "mean_weight": {}},
            "clipping_norm": self.max_norm,
            "clipped_count": int(np.count_nonzero(deltas.stats["norm"] > self.max_norm)),
        }
        return deltas.weighted_mean(), dict(state), metrics
