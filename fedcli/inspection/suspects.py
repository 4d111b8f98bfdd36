"""Finds examples that are probably mislabeled or broken, and clients that hold many of them.

Only images and labels are used; no model is needed. Images are shrunk to at most `MAX_FEATURES`
values by averaging square blocks of pixels, and a density is estimated for each label
(`fedcli.inspection.densities`). The score of an example is the log density of its image under the
best other label minus that under its own, in nats: 5 means that another label explains the image
148 times as well. The densities are then estimated again without the examples with high scores, so
that frequent mistakes do not distort them.

An image far from all labels' densities is broken, or of another kind. This finds only rare cases:
if one image in a hundred is inverted, the densities include inverted images.

Time is linear in the number of examples. Memory holds the moments of the labels, a block of images
and a few numbers for each example.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset, Pixels, decode
from fedcli.datasets.client_data import ClientData
from fedcli.errors import DataError
from fedcli.inspection.densities import Densities, LabelScores, Moments, fit
from fedcli.progress import ProgressCallback, ignore_progress

DEFAULT_TOP = 20

SUSPICIOUS_NATS = 5.0

BLANK_RANGE = 0.02  # range of the pixels of a blank image: five of 255 grey levels
FAR_DISTANCE = 8.0  # in `LabelScores.distances`; MNIST's strangest digit has 6, an inverted one 60

MAX_FEATURES = 256  # MNIST at 14 x 14 ranks nearly as well as at 28 x 28, in a tenth of the time
MAX_MOMENT_BYTES = 256 << 20
CHANCE = 0.001  # the probability with which a client may be listed by chance

_BLOCK_EXAMPLES = 2048  # largest number of examples processed at a time
_BLOCK_BYTES = 64 << 20  # and largest number of bytes of their features
_MAX_DOUBTFUL = 0.5  # largest share of a label's examples that may be left out
_BISECTIONS = 50
_NUM_PASSES = 5  # over all images: one survey, then moments and scores, both twice

Features = NDArray[np.float64]
_Floats = NDArray[np.float64]
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Suspect:
    """An example whose label is doubted.

    Attributes:
        client_id: The client that holds it.
        index: Its index in the client.
        label: Its label.
        likelier_label: A label that is more likely.
        score: Its score, in the unit of the measure.
    """

    client_id: str
    index: int
    label: int
    likelier_label: int
    score: float


@dataclass(frozen=True)
class Broken:
    """An example with a broken image, independent of its label.

    Attributes:
        client_id: The client that holds it.
        index: Its index in the client.
        label: Its label.
        fault: "blank" (all pixels equal), "far" (unlike any label's images) or "copy".
        original: For a copy, the index of the client's first image that is equal.
        distance: For a far one, its value in `LabelScores.distances`.
    """

    client_id: str
    index: int
    label: int
    fault: str
    original: int | None = None
    distance: float | None = None


@dataclass(frozen=True)
class SuspectClient:
    """A client with significantly many suspicious examples.

    Attributes:
        client_id: The client.
        num_examples: Its number of examples.
        num_suspicious: Number of suspicious ones among them.
        least_share: Lower confidence bound of its suspicious share, see `least_shares`. For a small
            client it is far below the observed share, so that small clients do not come first by
            chance.
    """

    client_id: str
    num_examples: int
    num_suspicious: int
    least_share: float


@dataclass(frozen=True)
class Suspects:
    """The suspicious examples and clients of a population.

    Attributes:
        measure: Describes the scores, with their unit.
        criterion: The condition for an example to be suspicious.
        num_examples: Number of examined examples.
        num_suspicious: Number of suspicious ones, listed or not.
        examples: The examples with the highest positive scores, highest first.
        clients: The clients whose least share exceeds the overall share, highest first.
        fault_counts: Number of broken examples by fault, listed or not; empty if not searched for.
        broken: The first broken examples of each fault; of fault "far", the farthest.
    """

    measure: str
    criterion: str
    num_examples: int
    num_suspicious: int
    examples: tuple[Suspect, ...]
    clients: tuple[SuspectClient, ...]
    fault_counts: dict[str, int] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True, eq=False)
class ExampleIndex:
    """The examples of some clients, numbered consecutively.

    Attributes:
        client_ids: The clients.
        ends: The number after each client's last example, int64 [num_clients].
        labels: int32 [n].
    """

    client_ids: Sequence[str]
    ends: _Rows
    labels: NDArray[np.int32]

    @property
    def sizes(self) -> _Rows:
        """Examples of each client, int64 [num_clients]."""
        return np.diff(self.ends, prepend=0)

    def place(self, row: int) -> tuple[str, int, int]:
        """Returns the client of an example, its index in the client, and its label."""
        client = int(np.searchsorted(self.ends, row, side="right"))
        first = int(self.ends[client - 1]) if client else 0
        return self.client_ids[client], row - first, int(self.labels[row])


def rank_examples(
    data: ClientData,
    client_ids: Sequence[str],
    on_progress: ProgressCallback = ignore_progress,
    *,
    top: int = DEFAULT_TOP,
) -> Suspects:
    """Returns the suspicious examples and clients by their images, and the broken examples.

    Labels with at least two examples are examined. Labels with at least
    `densities.MIN_RIVAL_EXAMPLES` are proposed as alternatives. A blank image has score 0.

    Args:
        data: The split.
        client_ids: The clients to examine, each id once.
        on_progress: Called with the number of clients read; each is read five times.
        top: Largest number of listed examples, clients, and broken examples of each fault.

    Raises:
        DataError: A client cannot be read, or there are too many labels to compare.
    """
    reading = _Reading(data, client_ids, on_progress)
    index, blank, originals = _survey(reading)
    label_scores = _score_labels(reading, index.labels, ~blank)
    faults = {
        "blank": blank,
        "far": (label_scores.distances > FAR_DISTANCE) & ~blank,
        "copy": originals >= 0,
    }
    is_suspicious = label_scores.scores > SUSPICIOUS_NATS
    return Suspects(
        measure="nats by which another label explains the image better",
        criterion=f"a score above {SUSPICIOUS_NATS:g}",
        num_examples=len(index.labels),
        num_suspicious=int(np.count_nonzero(is_suspicious)),
        examples=tuple(
            Suspect(
                *index.place(row), int(label_scores.likelier[row]), float(label_scores.scores[row])
            )
            for row in worst(label_scores.scores, top)
        ),
        clients=rank_clients(index, is_suspicious, top),
        fault_counts={fault: int(np.count_nonzero(has)) for fault, has in faults.items()},
        broken=_list_broken(index, faults, label_scores.distances, originals, top),
    )


def _list_broken(
    index: ExampleIndex,
    faults: Mapping[str, NDArray[np.bool_]],
    distances: NDArray[np.float64],
    originals: _Rows,
    top: int,
) -> tuple[Broken, ...]:
    """The first `top` examples of each fault; for the fault "far", the farthest ones."""
    blank, copies = (np.flatnonzero(faults[name])[:top].tolist() for name in ("blank", "copy"))
    far = worst(np.where(faults["far"], distances, 0.0), top)
    return (
        *(Broken(*index.place(row), "blank") for row in blank),
        *(Broken(*index.place(row), "far", distance=float(distances[row])) for row in far),
        *(Broken(*index.place(row), "copy", original=int(originals[row])) for row in copies),
    )


def worst(scores: NDArray[np.float64], top: int) -> list[int]:
    """Returns the rows of the `top` highest positive scores [n], highest first, ties in order."""
    positive = np.flatnonzero(scores > 0.0)
    order = np.argsort(-scores[positive], kind="stable")[:top]
    rows: list[int] = positive[order].tolist()
    return rows


def rank_clients(
    index: ExampleIndex, is_suspicious: NDArray[np.bool_], top: int
) -> tuple[SuspectClient, ...]:
    """Returns the clients whose least share of suspicious examples exceeds the overall share.

    Args:
        index: The examples.
        is_suspicious: Whether each is suspicious, [n].
        top: Largest number of clients.
    """
    if not len(is_suspicious):
        return ()
    running = np.concatenate([[0], np.cumsum(is_suspicious)])
    suspicious = np.diff(running[index.ends], prepend=0)
    bounds = least_shares(suspicious, index.sizes)
    over = np.where(bounds > is_suspicious.mean(), bounds, 0.0)
    return tuple(
        SuspectClient(
            index.client_ids[row], int(index.sizes[row]), int(suspicious[row]), float(bounds[row])
        )
        for row in worst(over, top)
    )


def least_shares(parts: _Rows, wholes: _Rows) -> NDArray[np.float64]:
    """Returns for each client a lower confidence bound of its share, given `parts` of `wholes`.

    Chernoff's bound (Annals of Mathematical Statistics, 1952): if the true share p is below s, the
    probability of an observed share of s or more among n is at most exp(-n D(s, p)), with the
    relative entropy D. The result is the p whose bound is `CHANCE`; 0 if `parts` is 0.

    Args:
        parts: int64 [num_clients].
        wholes: int64 [num_clients].

    Returns:
        float64 [num_clients].
    """
    n = np.maximum(wholes, 1).astype(np.float64)
    shares = parts / n
    low, high = np.zeros(len(n)), shares.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        is_rare = n * _relative_entropy(shares, middle) >= -math.log(CHANCE)
        low, high = np.where(is_rare, middle, low), np.where(is_rare, high, middle)
    return low


def _relative_entropy(shares: NDArray[np.float64], others: NDArray[np.float64]) -> _Floats:
    """D(s, p) of shares s and positive shares p below them; 0 if s is 0."""
    held = shares > 0.0
    p = np.where(held, others, 0.5)
    s = np.where(held, shares, 0.5)
    left = 1.0 - s
    logs = np.log(np.where(left > 0.0, left, 1.0) / (1.0 - p))
    return np.where(held, s * np.log(s / p) + left * logs, 0.0)


class _Reading:
    """Reads the same clients several times, in the same order, and reports progress."""

    def __init__(
        self, data: ClientData, client_ids: Sequence[str], on_progress: ProgressCallback
    ) -> None:
        self.data = data
        self.client_ids = client_ids
        self._on_progress = on_progress
        self._num_read = 0

    def clients(self) -> Iterator[ClientDataset]:
        """Yields all clients once."""
        for client_id in self.client_ids:
            yield self.data.client(client_id)
            self._num_read += 1
            self._on_progress(self._num_read, _NUM_PASSES * len(self.client_ids))

    def blocks(self, factor: int, num_labels: int) -> Iterator[tuple[slice, Features]]:
        """Yields the features of all examples in blocks, each with the slice of its examples.

        Args:
            factor: Factor by which images are shrunk.
            num_labels: Number of labels with which a block will be compared.
        """
        bytes_each = max(4 * math.prod(self.data.pixel_shape), 8 * num_labels)
        size = max(1, min(_BLOCK_EXAMPLES, _BLOCK_BYTES // bytes_each))
        first = num_held = 0
        held: list[Features] = []
        for client in self.clients():
            for start in range(0, len(client), size):
                pixels = client.pixels[start : start + size]
                held.append(shrink(decode(pixels, client.scale, client.offset), factor))
                num_held += len(pixels)
                if num_held >= size:
                    yield slice(first, first + num_held), np.concatenate(held)
                    first, num_held, held = first + num_held, 0, []
        if held:
            yield slice(first, first + num_held), np.concatenate(held)


def _survey(reading: _Reading) -> tuple[ExampleIndex, NDArray[np.bool_], _Rows]:
    """Reads all examples once; returns their index and two arrays [n].

    The first array says whether an image is blank. The second has, for each copy, the index of its
    original in the client, and -1 for other images.
    """
    labels, blanks, originals = [], [], []
    for client in reading.clients():
        blank = _is_blank(client)
        labels.append(client.labels)
        blanks.append(blank)
        originals.append(np.where(blank, -1, _find_originals(client.pixels)))
    ends = np.cumsum([len(each) for each in labels], dtype=np.int64)
    index = ExampleIndex(reading.client_ids, ends, np.concatenate([np.empty(0, np.int32), *labels]))
    return (
        index,
        np.concatenate([np.empty(0, np.bool_), *blanks]),
        np.concatenate([np.empty(0, np.int64), *originals]),
    )


def _is_blank(client: ClientDataset) -> NDArray[np.bool_]:
    """Which images are blank: the range of their pixels is at most `BLANK_RANGE`, [n]."""
    axes = tuple(range(1, client.pixels.ndim))
    if not len(client):
        return np.empty(0, np.bool_)
    highest = client.pixels.max(axis=axes).astype(np.float64)
    lowest = client.pixels.min(axis=axes)
    is_blank: NDArray[np.bool_] = (highest - lowest) * abs(client.scale) <= BLANK_RANGE
    return is_blank


def _find_originals(pixels: Pixels) -> _Rows:
    """The index of the first equal image, or -1 if that is the image itself: [n].

    Images are compared by 64-bit digests: among a million different images, the probability that
    two digests agree is 3e-8.
    """
    digests = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")
            for image in pixels
        ),
        np.uint64,
        len(pixels),
    )
    _, firsts, codes = np.unique(digests, return_index=True, return_inverse=True)
    originals = firsts[codes]
    return np.where(originals < np.arange(len(pixels)), originals, -1)


def _score_labels(
    reading: _Reading, example_labels: NDArray[np.int32], is_member: NDArray[np.bool_]
) -> LabelScores:
    """Scores all members by the densities of the labels. Other examples get score 0.

    The field `likelier` has labels, not indices among the labels that occur.
    """
    if not is_member.any():
        zeros = np.zeros(len(is_member))
        return LabelScores(zeros, example_labels.astype(np.int64), zeros)
    labels, codes = np.unique(example_labels.astype(np.int64), return_inverse=True)
    factor = _shrink_factor(reading.data, len(labels))
    densities = _estimate(reading, factor, codes, is_member, len(labels))
    scores = _compare(reading, factor, codes, is_member, densities).scores
    is_trusted = is_member & ~_left_out(scores > SUSPICIOUS_NATS, codes)
    densities = _estimate(reading, factor, codes, is_trusted, len(labels))
    label_scores = _compare(reading, factor, codes, is_trusted, densities)
    return LabelScores(
        np.where(is_member, label_scores.scores, 0.0),
        labels[label_scores.likelier],
        label_scores.distances,
    )


def _left_out(is_doubtful: NDArray[np.bool_], codes: _Rows) -> NDArray[np.bool_]:
    """Returns the doubtful examples that are left out of the densities, bool [n].

    If more than the share `_MAX_DOUBTFUL` of a label's examples is doubtful, all of them are kept.
    """
    shares = np.bincount(codes, is_doubtful) / np.bincount(codes)
    return is_doubtful & (shares <= _MAX_DOUBTFUL)[codes]


def _estimate(
    reading: _Reading, factor: int, codes: _Rows, is_member: NDArray[np.bool_], num_labels: int
) -> Densities:
    moments = Moments(num_labels, _num_features(reading.data.pixel_shape, factor))
    for rows, features in reading.blocks(factor, num_labels):
        chosen = is_member[rows]
        moments.add(features[chosen], codes[rows][chosen])
    return fit(moments)


def _compare(
    reading: _Reading,
    factor: int,
    codes: _Rows,
    is_member: NDArray[np.bool_],
    densities: Densities,
) -> LabelScores:
    parts = [
        densities.score(features, codes[rows], is_member[rows])
        for rows, features in reading.blocks(factor, len(densities.counts))
    ]
    return LabelScores(
        np.concatenate([each.scores for each in parts]),
        np.concatenate([each.likelier for each in parts]),
        np.concatenate([each.distances for each in parts]),
    )


def shrink(images: NDArray[np.float32], factor: int) -> Features:
    """Returns the means of squares of `factor` x `factor` pixels, float64 [n, num_features].

    Args:
        images: [n, H, W] or [n, H, W, C]; squares at the right and lower edge may be incomplete.
        factor: 1 leaves images as they are.
    """
    height, width = images.shape[1:3]
    rows, columns = np.arange(0, height, factor), np.arange(0, width, factor)
    sums = images.astype(np.float64)
    if factor > 1:
        sums = np.add.reduceat(np.add.reduceat(sums, columns, axis=2), rows, axis=1)
        areas = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
        sums /= areas.reshape(*areas.shape, *[1] * (images.ndim - 3))
    return sums.reshape(len(images), -1)


def _shrink_factor(data: ClientData, num_labels: int) -> int:
    """The smallest factor at which images and the moments of all labels are small enough."""
    for factor in range(1, max(data.pixel_shape[:2]) + 1):
        num_features = _num_features(data.pixel_shape, factor)
        num_bytes = 8 * num_labels * num_features**2
        if num_features <= MAX_FEATURES and num_bytes <= MAX_MOMENT_BYTES:
            return factor
    raise DataError(
        f"{data.source}: {num_labels} labels are too many to compare for images of shape "
        f"{list(data.pixel_shape)}; choose fewer --clients"
    )


def _num_features(pixel_shape: tuple[int, ...], factor: int) -> int:
    height, width, *channels = pixel_shape
    return -(-height // factor) * -(-width // factor) * math.prod(channels)
