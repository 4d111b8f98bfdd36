"""Assigns examples to clients by label mixes (Dirichlet schemes over classes).

A label mix is a client's distribution over the classes. Clients take turns, in a new random order
in each round, so that the last client is not left with the remainder (Google's `use_rotate_draw`).
At its turn a client draws a class from its mix and takes the next example of that class. A class
without examples left is removed from all mixes. If no class of a client's mix is left, it draws
from the remaining examples, in proportion to their classes (Flower divides 0 by 0 here).

The result is the same as with one turn after the other, but turns are computed in bulk, up to the
one that takes the last example of a class. Time is proportional to examples x classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream

LEAST_TOTAL = 1e-290  # a smaller sum of probabilities has lost its precision

_CELLS = 1 << 18  # largest number of turns x classes computed at a time

Counts = NDArray[np.int64]


def assign_by_mixes(
    mixes: NDArray[np.float64], class_sizes: Counts, sizes: Counts, stream: Stream
) -> Counts:
    """Returns the client of each example, with the examples ordered by class: int64 [n].

    Args:
        mixes: Weights of the classes for each client, float64 [K, C], at least 0.
        class_sizes: Number of examples of each class, int64 [C], n in all.
        sizes: Number of examples of each client, int64 [K], n in all.
        stream: The random stream.
    """
    left = class_sizes.copy()
    spare = class_sizes.copy()  # examples of each class that were left when a class last ran out
    ends = np.cumsum(class_sizes)
    holders = np.empty(int(ends[-1]), np.int64)
    at_a_time = max(1, _CELLS // len(left))
    for turns in _turns(sizes, at_a_time, stream):
        drawn = stream.uniform(len(turns))
        done = 0
        while done < len(turns):
            clients = turns[done : done + at_a_time]
            chosen = _choose(mixes[clients], spare, drawn[done : done + at_a_time])
            num_valid = _num_valid(chosen, left)
            chosen, clients = chosen[:num_valid], clients[:num_valid]
            taken = np.bincount(chosen, minlength=len(left))
            # The k-th client that drew a class takes its k-th remaining example.
            firsts = np.repeat(ends - left - np.cumsum(taken) + taken, taken)
            by_class = np.argsort(chosen, kind="stable")
            holders[firsts + np.arange(num_valid)] = clients[by_class]
            left -= taken
            if ((left == 0) & (spare > 0)).any():
                spare = left.copy()
            done += num_valid
    return holders


def _turns(sizes: Counts, at_a_time: int, stream: Stream) -> Iterator[Counts]:
    """Yields the clients that draw next. If there are few clients, several rounds are joined."""
    num_clients, num_rounds = len(sizes), int(sizes.max())
    step = max(1, at_a_time // num_clients)
    for first in range(0, num_rounds, step):
        num = min(step, num_rounds - first)
        words = stream.words(num * num_clients).reshape(num, num_clients)
        turns = np.argsort(words, axis=1, kind="stable")
        yield turns[sizes[turns] > np.arange(first, first + num)[:, None]]


def _choose(mixes: NDArray[np.float64], spare: Counts, drawn: NDArray[np.float64]) -> Counts:
    """The class that each row of mixes [k, C] draws with its number in [0, 1): int64 [k].

    Only classes with examples left are drawn.
    """
    chances = np.cumsum(np.where(spare > 0, mixes, 0.0), axis=1)
    chances[chances[:, -1] < LEAST_TOTAL] = np.cumsum(spare.astype(np.float64))
    chosen: Counts = (chances <= (drawn * chances[:, -1])[:, None]).sum(axis=1)
    return chosen


def _num_valid(chosen: Counts, left: Counts) -> int:
    """How many of the choices [k] are valid: all up to the first that uses up a class."""
    requested = np.bincount(chosen, minlength=len(left))
    places = [
        int(np.flatnonzero(chosen == each)[left[each] - 1])
        for each in np.flatnonzero((requested >= left) & (requested > 0)).tolist()
    ]
    return min(places) + 1 if places else len(chosen)
