"""Statistics of clients whose sizes of deltas were not measured, for users' own parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.learning.engines.deltas import Deltas

_SIZES = ("norm", "max_abs")


class _StatsWithoutSizes(np.ndarray[Any, np.dtype[np.void]]):
    """`Deltas.stats` in which reading the size of a delta, which would be 0, is an error."""

    advice = ""

    def __array_finalize__(self, base: NDArray[Any] | None) -> None:
        """Takes over the advice of the array of which this one is a part."""
        self.advice = getattr(base, "advice", "")

    def __getitem__(self, key: Any) -> Any:
        """Returns a field as a plain array, or a part of the records."""
        if isinstance(key, str) and key in _SIZES:
            raise ValueError(f'stats["{key}"] is not measured; {self.advice}')
        found = super().__getitem__(key)
        return found.view(np.ndarray) if isinstance(key, str) else found


def without_sizes(deltas: Deltas, advice: str) -> Deltas:
    """Returns deltas whose stats raise ValueError if `norm` or `max_abs` is read.

    Args:
        deltas: Deltas that were not measured.
        advice: The end of the message: how they are measured.
    """
    stats = deltas.stats.view(_StatsWithoutSizes)
    stats.advice = advice
    return replace(deltas, stats=stats)


def with_all_stats(deltas: Deltas) -> Deltas:
    """Returns the deltas with plain stats again."""
    return replace(deltas, stats=deltas.stats.view(np.ndarray))
