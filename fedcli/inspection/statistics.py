"""Statistics of the clients of a population: sizes, labels, mean images.

The measures of label skew are those in common use. Hsieh et al. 2020 (arXiv:1910.00189) and Zhao et
al. 2018 (arXiv:1806.00582, whose EMD is twice the TV here) show how label skew affects training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import DataError

__all__ = [
    "Bin",
    "LabelSkew",
    "MeanImages",
    "SizeSummary",
    "SplitCounts",
    "Spread",
    "count_labels",
    "gini",
    "label_skew",
    "sampling_floor",
    "size_histogram",
    "summarize",
    "summarize_sizes",
]


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__


MAX_CELLS = 1 << 30  # largest table of counts, clients x classes, 4 bytes each
MAX_MEAN_BYTES = 256 << 20  # largest size of the sums for mean images

_BLOCK_CELLS = 1 << 17  # clients x classes computed at a time: a megabyte of float64
_BLOCK_PIXELS = 1 << 20  # pixels of one client added at a time


@dataclass(frozen=True, eq=False)
class SplitCounts:
    """The label counts of the clients of one split.

    Attributes:
        split: Its name.
        client_ids: The clients, in the order of the rows; may be generated on demand.
        label_counts: int32 [num_clients, num_classes].
        population: Number of examples of each class in the population with which the clients are
            compared, int64 [num_classes]; None: the clients themselves are that population.
        mean_ink: Mean of all pixels of each client, 0 to 1 for full ink, float64 [num_clients]; NaN
            for clients without examples; None if pixels were not read.
    """

    split: str
    client_ids: Sequence[str]
    label_counts: NDArray[np.integer]
    population: NDArray[np.int64] | None = None
    mean_ink: NDArray[np.float64] | None = None

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each client, int64 [num_clients]."""
        sizes: NDArray[np.int64] = self.label_counts.sum(axis=1, dtype=np.int64)
        return sizes

    @cached_property
    def class_totals(self) -> NDArray[np.int64]:
        """Examples of each class, summed over all counted clients, int64 [num_classes]."""
        totals: NDArray[np.int64] = self.label_counts.sum(axis=0, dtype=np.int64)
        return totals

    @property
    def num_examples(self) -> int:
        """Examples of all clients."""
        return int(self.class_totals.sum())

    @cached_property
    def skew(self) -> LabelSkew:
        """The label skew of each client, compared with the population."""
        totals = self.class_totals if self.population is None else self.population
        return label_skew(self.label_counts, totals)

    def order_by(self, key: str) -> NDArray[np.int64]:
        """Returns the rows in an order, int64 [num_clients]; equal ones keep their order.

        Args:
            key: "id" is the order of the rows. For "size", "tv", "js" and "classes" (number of
                classes, then effective classes), the largest come first and clients without
                examples last.
        """
        if key == "id":
            return np.arange(len(self.label_counts))
        if key == "size":
            return np.argsort(-self.sizes, kind="stable")
        if key == "classes":
            effective = -np.nan_to_num(self.skew.effective_classes)
            return np.lexsort((effective, -self.skew.num_present))
        values = {"tv": self.skew.tv, "js": self.skew.js}[key]
        return np.argsort(-values, kind="stable")  # NumPy sorts NaN behind all numbers


@dataclass(frozen=True, eq=False)
class LabelSkew:
    """The difference of each client's labels from a population's. NaN without examples.

    Attributes:
        tv: Total variation distance, half of the EMD of Zhao et al.; 0 (equal) to 1. float64
            [num_clients], as all others except `num_present`.
        tv_floor: The mean TV of the same number of examples, drawn at random from the population.
        js: Jensen-Shannon divergence in bits, 0 to 1.
        effective_classes: exp of the entropy of the client's labels, 1 to the number of classes.
        num_present: Classes of which the client has an example, int64.
        max_share: Share of its commonest class.
    """

    tv: NDArray[np.float64]
    tv_floor: NDArray[np.float64]
    js: NDArray[np.float64]
    effective_classes: NDArray[np.float64]
    num_present: NDArray[np.int64]
    max_share: NDArray[np.float64]


@dataclass(frozen=True)
class SizeSummary:
    """The distribution of the number of examples of a client.

    Attributes:
        minimum: The smallest number.
        p5: The 5th percentile, by linear interpolation.
        p25: See `p5`.
        median: See `p5`.
        p75: See `p5`.
        p95: See `p5`.
        maximum: The largest number.
        mean: The mean.
        std: The standard deviation (of a population, not an estimate).
        std_over_mean: The coefficient of variation; NaN if all are 0.
        skewness: Third standardised moment; NaN if all are equal.
        gini: Gini coefficient: 0 if all are equal, near 1 if one client holds everything; NaN if
            all are 0.
    """

    minimum: int
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    maximum: int
    mean: float
    std: float
    std_over_mean: float
    skewness: float
    gini: float


@dataclass(frozen=True)
class Spread:
    """The spread of a statistic over clients."""

    minimum: float
    mean: float
    weighted_mean: float  # weights are the clients' numbers of examples
    median: float
    p90: float
    maximum: float


@dataclass(frozen=True)
class Bin:
    """A bin of a histogram: clients with `low` to `high` examples, both included."""

    low: int
    high: int
    num_clients: int


class MeanImages:
    """Mean image of each label, over the examples added so far.

    Attributes:
        counts: Examples of each label, int64 [num_classes].
    """

    def __init__(self, num_classes: int, pixel_shape: tuple[int, ...]) -> None:
        """Starts without examples. Call `fits` first to check the size in memory."""
        self.counts = np.zeros(num_classes, np.int64)
        self._sums = np.zeros((num_classes, *pixel_shape))

    @staticmethod
    def fits(num_classes: int, pixel_shape: tuple[int, ...]) -> bool:
        """Returns whether the sums for so many classes take at most `MAX_MEAN_BYTES`."""
        return num_classes * math.prod(pixel_shape) * 8 <= MAX_MEAN_BYTES

    def add(
        self,
        pixels: NDArray[np.uint8] | NDArray[np.float32],
        labels: NDArray[np.int32],
        scale: float,
        offset: float,
    ) -> None:
        """Adds examples.

        Args:
            pixels: [n, ...], decoded by `scale * pixels + offset`.
            labels: int32 [n], 0 to num_classes - 1.
            scale: See `pixels`.
            offset: See `pixels`.
        """
        step = max(1, _BLOCK_PIXELS // math.prod(pixels.shape[1:]))
        for first in range(0, len(labels), step):
            block, block_labels = pixels[first : first + step], labels[first : first + step]
            counts = np.bincount(block_labels)
            for label in np.flatnonzero(counts).tolist():
                chosen = block[block_labels == label]
                # Sums of a block's grey levels are far below 2**32.
                kind = np.uint32 if chosen.dtype == np.uint8 else np.float64
                self._sums[label] += scale * chosen.sum(axis=0, dtype=kind)
                self._sums[label] += offset * int(counts[label])
            self.counts[: len(counts)] += counts

    def image(self, label: int) -> NDArray[np.float32]:
        """Returns the mean image of a label that has examples, float32 of the pixel shape."""
        mean: NDArray[np.float32] = (self._sums[label] / self.counts[label]).astype(np.float32)
        return mean


def count_labels(
    split: str, client_ids: Sequence[str], labels: Iterable[NDArray[np.int32]], num_classes: int
) -> SplitCounts:
    """Returns the counts of clients.

    Args:
        split: Its name.
        client_ids: The clients.
        labels: For each client, the labels of its examples: int32 [n], 0 to num_classes - 1.
        num_classes: Columns of the counts.

    Raises:
        DataError: Clients times classes are too many to count.
    """
    if len(client_ids) * num_classes > MAX_CELLS:
        raise DataError(
            f"split {split!r}: label counts of {len(client_ids):,} clients x {num_classes:,} "
            f"classes exceed the {MAX_CELLS:,} that are kept; choose fewer --clients"
        )
    counts = np.zeros((len(client_ids), num_classes), np.int32)
    for row, client_labels in zip(counts, labels, strict=True):
        row[:] = np.bincount(client_labels, minlength=num_classes)
    return SplitCounts(split, client_ids, counts)


def summarize_sizes(sizes: NDArray[np.int64]) -> SizeSummary:
    """Returns the distribution of sizes int64 [num_clients] of at least one client."""
    p5, p25, median, p75, p95 = np.percentile(sizes, (5, 25, 50, 75, 95)).tolist()
    mean, std = float(sizes.mean()), float(sizes.std())
    third = float(((sizes - mean) ** 3).mean())
    return SizeSummary(
        minimum=int(sizes.min()),
        p5=p5,
        p25=p25,
        median=median,
        p75=p75,
        p95=p95,
        maximum=int(sizes.max()),
        mean=mean,
        std=std,
        std_over_mean=std / mean if mean else math.nan,
        skewness=third / std**3 if std else math.nan,
        gini=gini(sizes),
    )


def gini(sizes: NDArray[np.int64]) -> float:
    """Returns the Gini coefficient of sizes int64 [num_clients]; NaN if all are 0."""
    num_clients, total = len(sizes), int(sizes.sum())
    if not total:
        return math.nan
    ranks = 2 * np.arange(1, num_clients + 1) - num_clients - 1
    return float((ranks * np.sort(sizes).astype(np.float64)).sum() / (num_clients * total))


def summarize(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> Spread | None:
    """Returns the spread of values [num_clients] over the clients that have examples.

    Args:
        values: The value of each client.
        sizes: Its number of examples, int64 [num_clients]; None is returned if all are 0.
    """
    has_examples = sizes > 0
    if not has_examples.any():
        return None
    kept = values[has_examples]
    return Spread(
        minimum=float(kept.min()),
        mean=float(kept.mean()),
        weighted_mean=float(np.average(kept, weights=sizes[has_examples])),
        median=float(np.median(kept)),
        p90=float(np.percentile(kept, 90)),
        maximum=float(kept.max()),
    )


def size_histogram(sizes: NDArray[np.int64], max_bins: int = 10) -> list[Bin]:
    """Returns bins of equal round width (1, 2 or 5 times a power of ten) that hold all sizes.

    Args:
        sizes: int64 [num_clients], of at least one client.
        max_bins: Largest number of bins.
    """
    lowest, highest = int(sizes.min()), int(sizes.max())
    width = _bin_width(lowest, highest, max_bins)
    first = lowest // width
    counts = np.bincount(sizes // width - first, minlength=highest // width - first + 1)
    return [
        Bin((first + index) * width, (first + index + 1) * width - 1, int(count))
        for index, count in enumerate(counts)
    ]


def label_skew(label_counts: NDArray[np.integer], totals: NDArray[np.int64]) -> LabelSkew:
    """Returns the label skew of clients, compared with a population.

    Args:
        label_counts: Integers [num_clients, num_classes].
        totals: Number of examples of each class in the population, int64 [num_classes].
    """
    num_clients, num_classes = label_counts.shape
    p = totals / max(1, int(totals.sum()))
    columns = np.full((5, num_clients), np.nan)
    num_present = np.zeros(num_clients, np.int64)
    for rows in _blocks(num_clients, num_classes):
        counts = label_counts[rows]
        sizes = counts.sum(axis=1, dtype=np.int64)
        num_present[rows] = np.count_nonzero(counts, axis=1)
        filled = sizes > 0
        block = columns[:, rows]
        q = counts[filled] / sizes[filled, None]
        block[0, filled] = np.abs(q - p).sum(axis=1) / 2
        block[1, filled] = sampling_floor(sizes[filled], p)
        block[2, filled] = _jensen_shannon(q, p)
        block[3, filled] = np.exp(-_x_log_y(q, q).sum(axis=1))
        block[4, filled] = q.max(axis=1)
    tv, tv_floor, js, effective, max_share = columns
    return LabelSkew(tv, tv_floor, js, effective, num_present, max_share)


def sampling_floor(sizes: NDArray[np.int64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean TV between p and the shares of n examples drawn from p independently.

    A class's count X is binomial. The mean TV is half the sum of the mean absolute deviations of
    all classes, divided by n. De Moivre's closed form of a mean absolute deviation is, with m =
    floor(np) + 1 (see Diaconis and Zabell 1991, "Closed form summation for classical
    distributions"):

        E|X - np| = 2 m C(n, m) p^m (1 - p)^(n - m + 1)

    Args:
        sizes: n of each client, at least 1, int64 [num_clients].
        p: The population's shares, float64 [num_classes].

    Returns:
        float64 [num_clients].
    """
    unique, places = np.unique(sizes, return_inverse=True)
    inner = p[(p > 0) & (p < 1)]  # other classes do not deviate
    floors = np.empty(len(unique))
    for rows in _blocks(len(unique), len(inner)):
        n = unique[rows, None].astype(np.float64)
        m = np.minimum(np.floor(n * inner) + 1, n)  # rounding may give n p = n
        log_choose = _log_factorial(n) - _log_factorial(m) - _log_factorial(n - m)
        log_mean = log_choose + m * np.log(inner) + (n - m + 1) * np.log1p(-inner)
        floors[rows] = (m * np.exp(log_mean) / n).sum(axis=1)
    by_client: NDArray[np.float64] = floors[places.reshape(-1)]
    return by_client


def _jensen_shannon(q: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence, in bits, of each row of shares q [n, K] and p [K]: float64 [n]."""
    middle = (q + p) / 2
    both = _x_log_y(q, q) - _x_log_y(q, middle) + _x_log_y(p, p) - _x_log_y(p, middle)
    bits: NDArray[np.float64] = both.sum(axis=1) / (2 * math.log(2))
    return np.maximum(0.0, bits)


def _x_log_y(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns x log y, or 0 where x is 0."""
    product: NDArray[np.float64] = x * np.log(np.where(x > 0, y, 1.0))
    return product


def _log_factorial(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of n! for whole n >= 0, from a small table and by Stirling's series beyond it."""
    table = np.array([math.lgamma(k + 1) for k in range(16)])
    large = np.maximum(n, len(table))
    series = 1 / (12 * large) - 1 / (360 * large**3) + 1 / (1260 * large**5)
    stirling = large * np.log(large) - large + np.log(2 * math.pi * large) / 2 + series
    small = np.minimum(n, len(table) - 1).astype(np.intp)
    return np.where(n < len(table), table[small], stirling)


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yields slices of rows that cut a table into pieces of bounded size."""
    step = max(1, _BLOCK_CELLS // max(1, num_columns))
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))


def _bin_width(lowest: int, highest: int, max_bins: int) -> int:
    power = 1
    while True:
        for factor in (1, 2, 5):
            width = factor * power
            if highest // width - lowest // width < max_bins:
                return width
        power *= 10
