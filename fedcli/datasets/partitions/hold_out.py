"""Hold-out: sets aside a share of each client's examples, whole clients, or a pooled test set.

Each client has its own random stream, so the result for a client does not depend on the other
clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.partitions.assignment import Assignment
from fedcli.errors import DataError
from fedcli.settings.vocabulary import HOLD_OUTS

WITHIN, CLIENTS, POOLED = HOLD_OUTS
DEFAULT_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class HeldOut:
    """An assignment that was split in two.

    Attributes:
        train: The examples that are left for training.
        test: The examples that were set aside.
        num_whole: Number of clients that have a single example, which stays in `train`.
    """

    train: Assignment
    test: Assignment
    num_whole: int = 0


def within(assignment: Assignment, fraction: float, seed: int) -> HeldOut:
    """Sets aside a random share of each client's examples.

    The number to set aside is rounded, but each side gets at least one. A client with a single
    example is only in train. Examples keep their order. Time is linear in the number of examples,
    except for sorting each client's draws.

    Args:
        assignment: The clients and their examples.
        fraction: Share of each client's examples to set aside, above 0 and below 1.
        seed: Equal seeds set the same examples aside.

    Raises:
        DataError: No client has two examples.
    """
    is_test = np.zeros(len(assignment.order), np.bool_)
    sizes = assignment.sizes
    for index in np.flatnonzero(sizes >= 2).tolist():
        size, first = int(sizes[index]), int(assignment.offsets[index])
        drawn = _stream(seed, assignment.client_ids[index]).permutation(size)
        is_test[first + drawn[: _share(size, fraction)]] = True
    if not is_test.any():
        raise DataError(
            "--hold-out within: no client has two examples; choose --hold-out clients instead"
        )
    test = assignment.keep(is_test)
    return HeldOut(assignment.keep(~is_test), test.choose(test.sizes > 0), int((sizes == 1).sum()))


def clients(assignment: Assignment, fraction: float, seed: int) -> HeldOut:
    """Sets aside whole clients: those with the smallest random numbers.

    Each side gets at least one client.

    Args:
        assignment: The clients and their examples.
        fraction: Share of the clients to set aside, above 0 and below 1, rounded.
        seed: A client's random number depends only on the seed and its id.

    Raises:
        DataError: There is only one client.
    """
    if len(assignment.client_ids) < 2:
        raise DataError(
            "--hold-out clients: there is only one client; choose --hold-out within instead"
        )
    drawn = np.concatenate([_stream(seed, each).uniform(1) for each in assignment.client_ids])
    is_test = np.zeros(len(drawn), np.bool_)
    is_test[np.argsort(drawn, kind="stable")[: _share(len(drawn), fraction)]] = True
    return HeldOut(assignment.choose(~is_test), assignment.choose(is_test))


def central(
    labels: NDArray[np.int32], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of the training examples and of a pooled test set, stratified by label.

    The test set has the share `fraction` of each label, rounded so that the total is also right.
    The owners of examples are ignored. Each side has at least one example.

    Args:
        labels: int32 [n], at least 0.
        fraction: Share of the examples to set aside, above 0 and below 1.
        seed: Equal seeds set the same examples aside.

    Returns:
        Two ascending arrays of indices, int64, together 0 to n - 1.

    Raises:
        DataError: There is only one example.
    """
    if len(labels) < 2:
        raise DataError("--hold-out central: there is only one example; give more")
    drawn = _stream(seed).permutation(len(labels))
    by_label = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.bincount(labels)
    ends = np.cumsum(counts)
    # Rounding the cumulative total keeps each label within one example of its share.
    totals = np.rint(ends * (_share(len(labels), fraction) / len(labels))).astype(np.int64)
    taken = np.diff(totals, prepend=0)
    rank_in_label = np.arange(len(labels)) - np.repeat(ends - counts, counts)
    is_test = np.zeros(len(labels), np.bool_)
    is_test[by_label[rank_in_label < np.repeat(taken, counts)]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _share(size: int, fraction: float) -> int:
    """How many of `size` (at least 2) to set aside: rounded, with at least one on each side."""
    return min(max(1, round(size * fraction)), size - 1)


def _stream(seed: int, client_id: str | None = None) -> Stream:
    key = 0 if client_id is None else client_key(client_id)
    return Stream(stream_key(seed, Purpose.HOLD_OUT, client=key))
