"""FLTrust: the weight of a client's delta grows with its similarity to the server's own delta.

Cao, Fang, Liu and Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
NDSS 2021, https://arxiv.org/abs/2012.13995. The server has a small set of clean examples, the root
set, and trains on it as a client does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule
from fedcli.learning.engines.deltas import DeltaRequest


@dataclass(frozen=True)
class FLTrust(RobustRule):
    """The mean of the deltas, each scaled to the norm of the root set's delta, weighted by trust.

    The trust in a delta is its cosine with the root set's delta, or 0 if the cosine is negative. A
    round in which every trust is 0 is skipped.

    Attributes:
        root_examples: The number of examples of the root set.
    """

    root_examples: int = 100

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas and the delta of the root set."""
        return DeltaRequest(all_rows=True, root_examples=self.root_examples)

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64] | None, dict[str, Any], dict[str, Any]]:
        """Returns the mean; None if every trust is 0."""
        deltas = counted.deltas
        if deltas.root is None:  # the root set's delta is not finite
            return None, {}, {}
        root = counted.from_rows(deltas.root)
        root_norm = float(np.linalg.norm(root))
        row_norms, products = counted.rows.measure(root, counted.origin)
        norms = row_norms * deltas.scale
        cosines = np.zeros(counted.num)
        np.divide(
            products * deltas.scale, norms * root_norm, out=cosines, where=norms * root_norm > 0.0
        )
        trust = np.maximum(cosines, 0.0)
        if not trust.sum() > 0.0:
            return None, {}, {}
        factors = np.zeros(counted.num)
        np.divide(trust * root_norm, norms * trust.sum(), out=factors, where=trust > 0.0)
        combined = counted.rows.weighted_sum(factors) * deltas.scale
        if deltas.shift is not None:
            combined += factors.sum() * deltas.shift
        trusted = np.flatnonzero(trust > 0.0)
        metrics = {"trust": [float(each) for each in trust], "root_norm": root_norm}
        return combined, {}, {**metrics, **counted.kept(trusted)}
