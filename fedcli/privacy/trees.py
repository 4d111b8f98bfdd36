"""The sensitivity of tree aggregation: how far one client can change the sums of a tree.

A tree over n rounds releases a noised sum for every complete group of 1, 2, 4, ... rounds. A client
that takes part once is in every group that contains its round. Kairouz, McMahan, Song,
Thakkar, Thakurta and Xu, "Practical and Private (Deep) Learning Without Sampling or Shuffling",
ICML 2021, https://arxiv.org/abs/2103.00039.
"""

from __future__ import annotations

from functools import lru_cache


def height(num_rounds: int) -> int:
    """Returns the number of levels of a tree: floor(log2 n) + 1; 0 without rounds."""
    return num_rounds.bit_length()


def squared_sensitivity(num_rounds: int, participations: int) -> int:
    """Returns the squared sensitivity of a tree.

    Count, in each group, the rounds in which the client takes part. The result is the sum of the
    squares of these counts over all groups, for the worst choice of the client's rounds.

    Args:
        num_rounds: Rounds of the tree.
        participations: The largest number of different rounds in which a client takes part.
    """
    sizes = [level for level in reversed(range(height(num_rounds))) if num_rounds >> level & 1]
    best = {0: 0}  # by participations in the groups so far
    for level in sizes:
        after: dict[int, int] = {}
        for before, total in best.items():
            for count in range(min(participations - before, 1 << level) + 1):
                value = total + _in_complete_tree(level, count)
                after[before + count] = max(after.get(before + count, 0), value)
        best = after
    return max(best.values())


@lru_cache(maxsize=4096)
def _in_complete_tree(level: int, count: int) -> int:
    """Returns the squared sensitivity of a complete tree of 2^level rounds.

    The client takes part in exactly `count` of the rounds.
    """
    if count == 0 or level == 0:
        return count * count
    half = 1 << (level - 1)
    splits = range(max(0, count - half), count // 2 + 1)
    return count * count + max(
        _in_complete_tree(level - 1, part) + _in_complete_tree(level - 1, count - part)
        for part in splits
    )
