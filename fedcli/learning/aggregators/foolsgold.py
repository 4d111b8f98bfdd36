"""FoolsGold: clients with similar past deltas count less, because one attacker may control them.

Fung, Yoon and Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020,
https://arxiv.org/abs/1808.04866. The sum of each client's deltas is kept for the whole run: four
bytes per parameter and client. Honest clients with similar data count less, too.

Differences from the authors' code: the result is divided by the sum of the clients' factors; a
client without a history has cosine 0 with all others; and if all histories are alike, so that every
factor would be 0, all factors are 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import MatrixRows
from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule
from fedcli.learning.client_states import HISTORIES, ClientStates
from fedcli.learning.engines.deltas import mapped_rows

_ALIKE = 1e-12  # a cosine this close to 1 differs from it by rounding only
_MOST = 0.99  # the largest factor before the logarithm, as in the authors' code


@dataclass(frozen=True)
class FoolsGold(RobustRule):
    """The mean of the deltas, weighted by how different the histories of the clients are."""

    def problem(self, num_clients: int) -> str | None:
        """Returns why the deltas of fewer than two clients cannot be combined, or None."""
        if num_clients > 1:
            return None
        return f"it compares clients, but a round has {num_clients}; choose 2 clients or more"

    def init(self) -> dict[str, Any]:
        """Returns the state before the first round: no client has a history."""
        return {**super().init(), "histories": ClientStates(name=HISTORIES), "num_alike": 0}

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64] | None, dict[str, Any], dict[str, Any]]:
        """Returns the mean, the histories with this round's deltas, and the factors."""
        histories, clients, after = _extended(counted, state["histories"])
        every, deltas = np.arange(len(histories)), counted.deltas
        products = MatrixRows(histories, every, deltas.num_threads, deltas.helpers).products()
        factors = factors_of(products)
        is_alike = factors is None
        each = np.ones(len(clients)) if factors is None else factors[clients]
        combined = counted.from_rows(counted.rows.weighted_sum(each / each.sum()))
        changes = {"histories": after, "num_alike": state["num_alike"] + is_alike}
        metrics = {
            "factors": [float(factor) for factor in each],
            "num_alike": changes["num_alike"],
            **counted.kept(np.flatnonzero(each > 0.0)),
        }
        return combined, changes, metrics


def factors_of(products: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Returns each client's factor from the products of all histories; None if all are alike.

    Args:
        products: Inner products of all pairs, float64 [num_clients, num_clients].
    """
    norms = np.sqrt(np.diag(products))
    cosines = np.zeros_like(products)
    scales = norms * norms[:, np.newaxis]
    np.divide(products, scales, out=cosines, where=scales > 0.0)
    np.fill_diagonal(cosines, 0.0)
    most = cosines.max(axis=1)
    # Of two clients, the one that is less similar to others keeps more of its weight ("pardoning").
    is_pardoned = most[:, np.newaxis] < most
    ratios = np.ones_like(cosines)
    np.divide(most[:, np.newaxis], most, out=ratios, where=is_pardoned)
    factors = np.clip(1.0 - (cosines * ratios).max(axis=1), 0.0, 1.0)
    if factors.max() < _ALIKE:
        return None
    factors /= factors.max()
    factors = np.minimum(factors, _MOST)
    with np.errstate(divide="ignore"):
        logits = np.log(factors / (1.0 - factors))
    weights: NDArray[np.float64] = np.clip(logits + 0.5, 0.0, 1.0)
    return weights


def _extended(
    counted: CountedDeltas, states: ClientStates
) -> tuple[NDArray[np.float32], NDArray[np.int64], ClientStates]:
    """Adds the deltas of a round to the histories.

    Returns:
        The histories of the clients, float32 [num_clients, num_params], in a mapped file; the row
        of each delta's client; and the next version of all clients' histories.
    """
    names = list(dict.fromkeys(counted.client_ids))
    rows_of = {name: row for row, name in enumerate(names)}
    clients = np.array([rows_of[name] for name in counted.client_ids])
    histories = mapped_rows(len(names), counted.num_params)
    upcoming = states.next_version()
    for name, row in zip(names, histories, strict=True):
        row[:] = states.read(name, counted.num_params)
    for client, place in zip(clients, counted.places, strict=True):
        histories[client] += counted.from_rows(counted.matrix[place].astype(np.float64))
    for name, row in zip(names, histories, strict=True):
        upcoming.write(name, row)
    return histories, clients, upcoming.after
