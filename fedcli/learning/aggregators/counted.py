"""The individual deltas of a cohort that count, for robust rules.

A delta counts if it is finite and its client has an example. Client weights are ignored unless a
rule says otherwise, because an attacker may report any weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import MatrixRows
from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import Deltas


@dataclass(frozen=True, eq=False)
class CountedDeltas:
    """The deltas that count, as rows of the cohort's memory-mapped file.

    A delta is `scale * row + shift`. Most rules combine the rows, and apply this map only to the
    result. This is cheaper and gives the same result.

    Attributes:
        deltas: The deltas of the cohort.
        places: The positions in the cohort of the deltas that count, int64 [num].
    """

    deltas: Deltas
    places: NDArray[np.int64]

    @classmethod
    def of(cls, deltas: Deltas) -> CountedDeltas | None:
        """Returns the deltas that count; None if there are none."""
        places = np.flatnonzero(deltas.stats["weight"] > 0.0)
        return cls(deltas, places) if deltas.rows is not None and len(places) else None

    @property
    def num(self) -> int:
        """The number of deltas."""
        return len(self.places)

    @property
    def num_params(self) -> int:
        """The length of a delta."""
        return len(self.deltas.delta_sum)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The rows of the whole cohort, float32 [num_clients, num_params]."""
        assert self.deltas.rows is not None
        return self.deltas.rows

    @cached_property
    def rows(self) -> MatrixRows:
        """The rows of the deltas that count."""
        deltas = self.deltas
        return MatrixRows(self.matrix, self.places, deltas.num_threads, deltas.helpers)

    @property
    def client_ids(self) -> list[str]:
        """The ids of the deltas' clients; if there are no ids, the positions in the cohort."""
        context = self.deltas.round
        if context is None or not context.client_ids:
            return [str(place) for place in self.places]
        return [context.client_ids[place] for place in self.places]

    @property
    def weights(self) -> NDArray[np.float64]:
        """The client weights, float64 [num]."""
        weights: NDArray[np.float64] = self.deltas.stats["weight"][self.places]
        return weights

    @property
    def origin(self) -> NDArray[np.float64] | None:
        """The row whose delta is 0, float64 [num_params]; None if it consists of zeros."""
        shift = self.deltas.shift
        return None if shift is None else -shift / self.deltas.scale

    def some(self, chosen: NDArray[np.int64]) -> CountedDeltas:
        """Returns the deltas at these ascending indices [num_chosen]."""
        return CountedDeltas(self.deltas, self.places[chosen])

    def from_rows(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the delta of a row [num_params]."""
        scaled = row if self.deltas.scale == 1.0 else row * self.deltas.scale
        return scaled if self.deltas.shift is None else scaled + self.deltas.shift

    @property
    def are_rows(self) -> bool:
        """Whether each delta is its row: it is neither scaled nor shifted."""
        return self.deltas.scale == 1.0 and self.deltas.shift is None

    def to_rows(self, delta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the row of a delta [num_params]."""
        shifted = delta if self.deltas.shift is None else delta - self.deltas.shift
        return shifted / self.deltas.scale

    def mean_of(self, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Returns the mean of all deltas, or of the chosen ones: float64 [num_params]."""
        indices = np.arange(self.num) if chosen is None else chosen
        factors = np.zeros(self.num)
        factors[indices] = 1.0 / len(indices)
        return self.from_rows(self.rows.weighted_sum(factors))

    def kept(self, chosen: Sequence[int] | NDArray[np.int64]) -> dict[str, Any]:
        """Returns the metrics of a rule that kept some deltas: the clients of these deltas."""
        ids = self.client_ids
        return {"num_kept": len(chosen), "kept": [ids[index] for index in sorted(chosen)]}
