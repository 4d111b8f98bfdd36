"""The exact area under the ROC curve, also for more scores than fit in memory.

Consider all pairs of an example of the class and an example of another class. The area is the
share of pairs in which the first has the greater score; a tie counts half. The counts are whole
numbers (a pair counts 2, a tie 1), so the result does not depend on the order of the examples.
(Hanley and McNeil 1982, Radiology 143(1).)

If there are more than a few million scores, they are written to a temporary file without a name.
The scores of a class are then sorted in parts: a first pass makes a histogram of the upper 16 bits
of all scores; each further pass gathers the scores of one range that is small enough to sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import RunError, why_not_written
from fedcli.files import nameless_file

MAX_HELD = 1 << 21  # number of scores kept in memory before they are written to the file
MAX_SORTED = 1 << 22  # number of scores of one class that are sorted at a time
_HALF_BITS = 16
_NUM_HALVES = 1 << _HALF_BITS


class _Block(NamedTuple):
    """Examples in the file: scores float32 [num_columns, num], then labels int32 [num]."""

    offset: int
    num: int


# Yields the scores of one class as keys uint32 [n] that sort as the scores do, and whether each
# example is of that class.
_Keys = Callable[[], Iterator[tuple[NDArray[np.uint32], NDArray[np.bool_]]]]


class ScoreRanks:
    """Collects the scores of examples and computes each class's area under the ROC curve."""

    def __init__(
        self, num_classes: int, *, max_held: int = MAX_HELD, max_sorted: int = MAX_SORTED
    ) -> None:
        """Starts without examples.

        Args:
            num_classes: Number of classes. With two classes, only the second one is ranked.
            max_held: Number of scores kept in memory before they are written to the file.
            max_sorted: Number of scores of one class that are sorted at a time.
        """
        self._first = 1 if num_classes == 2 else 0
        self._num_columns = num_classes - self._first
        self._counts: NDArray[np.int64] = np.zeros(num_classes, np.int64)
        self._held: list[tuple[NDArray[np.float32], NDArray[np.int32]]] = []
        self._num_held = 0
        self._max_held, self._max_sorted = max_held, max_sorted
        self._has_nan = False
        self._file: Any = None
        self._blocks: list[_Block] = []

    def add(self, scores: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
        """Adds examples.

        Args:
            scores: The score of each class, float32 [n, num_classes], at least 0.
            labels: int32 [n].

        Raises:
            RunError: The temporary file cannot be written.
        """
        self._counts += np.bincount(labels, minlength=len(self._counts))
        kept = scores[:, self._first :] + np.float32(0)  # turns -0 into 0
        self._has_nan = self._has_nan or bool(np.isnan(kept).any())
        self._held.append((kept, labels))
        self._num_held += kept.size
        if self._num_held > self._max_held:
            self._write()

    def areas(self) -> NDArray[np.float64]:
        """Returns the area of each class, float64 [num_classes], or [1] for two classes.

        The area is NaN for a class that has no example or all examples. If any score is NaN, all
        areas are NaN.

        Raises:
            RunError: The file cannot be read.
        """
        areas: NDArray[np.float64] = np.full(self._num_columns, np.nan)
        total = int(self._counts.sum())
        for column in range(self._num_columns if not self._has_nan else 0):
            class_ = self._first + column
            num_inside = int(self._counts[class_])
            num_pairs = num_inside * (total - num_inside)
            if num_pairs:
                areas[column] = self._num_half_pairs(column, total) / (2 * num_pairs)
        return areas

    def mean_area(self) -> float:
        """Returns the mean area over the classes whose area is not NaN; NaN if there is none.

        Raises:
            RunError: The file cannot be read.
        """
        areas = self.areas()
        known = areas[~np.isnan(areas)]
        return float(known.mean()) if len(known) else float("nan")

    def close(self) -> None:
        """Closes the temporary file, if there is one, which removes it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _num_half_pairs(self, column: int, total: int) -> int:
        def keys() -> Iterator[tuple[NDArray[np.uint32], NDArray[np.bool_]]]:
            for scores, labels in self._column(column):
                yield scores.view(np.uint32), labels == self._first + column

        if total <= self._max_sorted:
            return _half_pairs(*_gathered(keys))
        return _half_pairs_by_range(keys, self._max_sorted)

    def _column(self, column: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
        """Yields the scores of one class and the labels, block by block."""
        with _faults(self._num_columns):
            for block in self._blocks:
                self._file.seek(block.offset + 4 * column * block.num)
                scores = np.frombuffer(self._file.read(4 * block.num), np.float32)
                self._file.seek(block.offset + 4 * self._num_columns * block.num)
                yield scores, np.frombuffer(self._file.read(4 * block.num), np.int32)
        for held, labels in self._held:
            yield np.ascontiguousarray(held[:, column]), labels

    def _write(self) -> None:
        """Moves the examples in memory to the file, as one block."""
        scores = np.concatenate([each for each, _ in self._held])
        labels = np.concatenate([each for _, each in self._held])
        with _faults(self._num_columns):
            if self._file is None:
                self._file = nameless_file()
            self._file.seek(0, 2)
            self._blocks.append(_Block(self._file.tell(), len(labels)))
            self._file.write(np.ascontiguousarray(scores.T).data)
            self._file.write(np.ascontiguousarray(labels).data)
            self._file.flush()
        self._held, self._num_held = [], 0


def _gathered(
    keys: _Keys, first: int = 0, last: int = _NUM_HALVES
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the keys with upper half in first..last-1: those of the class, and the others."""
    inside, outside = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for values, is_inside in keys():
        halves = values >> _HALF_BITS
        in_range = (halves >= first) & (halves < last)
        inside.append(values[in_range & is_inside])
        outside.append(values[in_range & ~is_inside])
    return np.concatenate(inside), np.concatenate(outside)


def _half_pairs(inside: NDArray[np.uint32], outside: NDArray[np.uint32]) -> int:
    """Returns twice the number of pairs in which `inside` is greater, plus the number of ties."""
    ascending = np.sort(outside)
    below = np.searchsorted(ascending, inside, "left")
    not_above = np.searchsorted(ascending, inside, "right")
    return int(below.sum()) + int(not_above.sum())


def _half_pairs_by_range(keys: _Keys, max_sorted: int) -> int:
    """Returns the same as `_half_pairs`, computed in ranges of at most `max_sorted` keys.

    A range of one upper half may have more keys; it is counted without sorting.
    """
    counts = np.zeros((2, _NUM_HALVES), np.int64)  # row 0: other classes, row 1: the class
    for values, is_inside in keys():
        halves = (values >> _HALF_BITS).astype(np.int64)
        counts[0] += np.bincount(halves[~is_inside], minlength=_NUM_HALVES)
        counts[1] += np.bincount(halves[is_inside], minlength=_NUM_HALVES)
    total = num_below = 0
    for first, last in _ranges(counts.sum(axis=0), max_sorted):
        num_others, num_inside = (int(each) for each in counts[:, first:last].sum(axis=1))
        if num_inside and num_others:
            if num_inside + num_others > max_sorted:
                total += _half_pairs_of_one(keys, first)
            else:
                total += _half_pairs(*_gathered(keys, first, last))
        total += 2 * num_below * num_inside
        num_below += num_others
    return total


def _ranges(counts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of upper halves in order, each of at most `most` keys or of one upper half."""
    first = last = held = 0
    for half in np.flatnonzero(counts).tolist():
        count = int(counts[half])
        if held and held + count > most:
            yield first, last
            held = 0
        first = first if held else half
        last, held = half + 1, held + count
    if held:
        yield first, last


def _half_pairs_of_one(keys: _Keys, half: int) -> int:
    """Returns the same as `_half_pairs` for all keys with one upper half, without sorting."""
    counts = np.zeros((2, _NUM_HALVES), np.int64)
    for values, is_inside in keys():
        has_half = values >> _HALF_BITS == half
        lower = (values & (_NUM_HALVES - 1)).astype(np.int64)
        counts[0] += np.bincount(lower[has_half & ~is_inside], minlength=_NUM_HALVES)
        counts[1] += np.bincount(lower[has_half & is_inside], minlength=_NUM_HALVES)
    others, inside = counts
    below = np.cumsum(others) - others
    return sum(
        int(inside[each]) * (2 * int(below[each]) + int(others[each]))
        for each in np.flatnonzero(inside).tolist()
    )


@contextmanager
def _faults(num_columns: int) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise RunError(
            "the scores of an evaluation cannot be written to a temporary file: "
            f"{why_not_written(err)}; set TMPDIR to another folder, with room for "
            f"{4 * (num_columns + 1):,} bytes per example, or leave auc out of --metrics"
        ) from err
