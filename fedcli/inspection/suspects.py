"""Examples that are likely mislabeled or broken, and the clients that hold many: from images alone.

Images are shrunk to at most `MAX_FEATURES` values by averaging squares of pixels, and every label's
images become a density (`fedcli.inspection.densities`). The score of an example is the log density
of its image under the best other label less that under its own, in nats: 5 means that another label
explains the image 148 times as well. The densities are then estimated once more without the
examples that score so high, so that a mistake made often does not become the rule.

An image far from the densities of all labels is broken, or of another kind. That finds lone ones:
where one image in a hundred is inverted, inverted ones are ordinary.

Time is linear in the number of examples; memory holds the moments of the labels, a block of images
and a few numbers an example.
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
from fedcli.progress import Tell, tell_nobody

DEFAULT_TOP = 20

SUSPICIOUS_NATS = 5.0

BLANK_RANGE = 0.02  # of what is 1.0: five grey levels
FAR_DISTANCE = 8.0  # of `LabelScores.distances`; MNIST's strangest digit has 6, an inverted one 60

MAX_FEATURES = 256  # MNIST at 14 x 14 ranks nearly as well as at 28 x 28, in a tenth of the time
MAX_MOMENT_BYTES = 256 << 20
LUCK = 0.001  # how rarely a client may be listed that holds no more than others in the long run

_BLOCK_EXAMPLES = 2048  # read and judged at a time,
_BLOCK_BYTES = 64 << 20  # or as many as take so much
_MAX_DOUBTFUL = 0.5  # of a label's examples; were there more, too little would be left of it
_BISECTIONS = 50
_NUM_PASSES = 5  # over all images: survey, and twice moments and scores

Features = NDArray[np.float64]
_Floats = NDArray[np.float64]
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Suspect:
    """An example whose label is doubted.

    Attributes:
        client_id: Who holds it.
        index: Its place among the client's examples.
        label: What it is said to be.
        likelier_label: What it is likelier to be.
        score: How doubtful it is, in the unit of the measure.
    """

    client_id: str
    index: int
    label: int
    likelier_label: int
    score: float


@dataclass(frozen=True)
class Broken:
    """An example that is hardly what it should be, whatever its label.

    Attributes:
        client_id: Who holds it.
        index: Its place among the client's examples.
        label: What it is said to be.
        fault: "blank" (all pixels alike), "far" (unlike any label's images) or "copy".
        original: Of a copy, the index of the client's first such image.
        distance: Of a far one, `LabelScores.distances`.
    """

    client_id: str
    index: int
    label: int
    fault: str
    original: int | None = None
    distance: float | None = None


@dataclass(frozen=True)
class SuspectClient:
    """A client with more suspicious examples than luck explains.

    Attributes:
        client_id: The client.
        num_examples: What it holds.
        num_suspicious: How many of them are suspicious.
        least_share: Lower bound of the share it would have in the long run, see `least_shares`:
            far below the share of a small client, so that none is first by luck.
    """

    client_id: str
    num_examples: int
    num_suspicious: int
    least_share: float


@dataclass(frozen=True)
class Suspects:
    """What is doubtful in a population.

    Attributes:
        measure: What scores are.
        criterion: When an example is suspicious.
        num_examples: Examples looked at.
        num_suspicious: How many are suspicious, listed or not.
        examples: The most doubtful ones, first the worst; scores are positive.
        clients: Those whose least share exceeds that of all, first the worst.
        fault_counts: Broken examples by fault, listed or not; empty if none were sought.
        broken: The first ones of each fault, the farthest of the far.
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
    """All examples of some clients, one after the other.

    Attributes:
        client_ids: Whose.
        ends: Where each client's end, int64 [num_clients].
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
        """Returns who holds an example, its index there, and its label."""
        client = int(np.searchsorted(self.ends, row, side="right"))
        first = int(self.ends[client - 1]) if client else 0
        return self.client_ids[client], row - first, int(self.labels[row])


def rank_examples(
    data: ClientData,
    client_ids: Sequence[str],
    tell: Tell = tell_nobody,
    *,
    top: int = DEFAULT_TOP,
) -> Suspects:
    """Returns the examples and clients that the images make doubtful, and those that are broken.

    A label is doubted if two examples bear it, proposed if `densities.MIN_RIVAL_EXAMPLES` do. A
    blank image says nothing about its label and scores 0.

    Args:
        data: The split.
        client_ids: Whose examples are looked at and compared, each id once.
        tell: Told the clients read; each is read five times.
        top: At most so many examples, clients, and broken ones of each fault are listed.

    Raises:
        DataError: A client cannot be read, or there are too many labels to compare.
    """
    reading = _Reading(data, client_ids, tell)
    index, blank, originals = _survey(reading)
    label_scores = _judge(reading, index.labels, ~blank)
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
    """The first `top` of each fault [n], the farthest of the far; originals as `_survey` says."""
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
    """Returns the clients whose least share of suspicious examples exceeds that of all.

    Args:
        index: The examples.
        is_suspicious: Which of them are, [n].
        top: At most so many.
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
    """Returns for each client the share below which luck gives `parts` of `wholes` too rarely.

    Chernoff's bound (Annals of Mathematical Statistics, 1952): with a share p below s, the chance
    of a part s or more of n is at most exp(-n D(s, p)), D the relative entropy. Returned is the p
    where that is `LUCK`; 0 of nothing.
    """
    n = np.maximum(wholes, 1).astype(np.float64)
    shares = parts / n
    low, high = np.zeros(len(n)), shares.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        is_rare = n * _relative_entropy(shares, middle) >= -math.log(LUCK)
        low, high = np.where(is_rare, middle, low), np.where(is_rare, high, middle)
    return low


def _relative_entropy(shares: NDArray[np.float64], others: NDArray[np.float64]) -> _Floats:
    """D(s, p) of shares and positive shares below them; 0 where a share is 0."""
    held = shares > 0.0
    p = np.where(held, others, 0.5)
    s = np.where(held, shares, 0.5)
    left = 1.0 - s
    logs = np.log(np.where(left > 0.0, left, 1.0) / (1.0 - p))
    return np.where(held, s * np.log(s / p) + left * logs, 0.0)


class _Reading:
    """Some clients, read in the same order as often as is needed."""

    def __init__(self, data: ClientData, client_ids: Sequence[str], tell: Tell) -> None:
        self.data = data
        self.client_ids = client_ids
        self._tell = tell
        self._num_read = 0

    def clients(self) -> Iterator[ClientDataset]:
        """Yields all clients once."""
        for client_id in self.client_ids:
            yield self.data.client(client_id)
            self._num_read += 1
            self._tell(self._num_read, _NUM_PASSES * len(self.client_ids))

    def blocks(self, factor: int, num_labels: int) -> Iterator[tuple[slice, Features]]:
        """Yields the features of all examples in blocks, with the rows they stand in.

        Args:
            factor: What images are shrunk by.
            num_labels: How many labels the block will be compared with.
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
    """All examples, which of them are blank, and the index each is a copy of, -1 for none."""
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
    """Which images hold next to one value only, [n]."""
    axes = tuple(range(1, client.pixels.ndim))
    if not len(client):
        return np.empty(0, np.bool_)
    highest = client.pixels.max(axis=axes).astype(np.float64)
    lowest = client.pixels.min(axis=axes)
    is_blank: NDArray[np.bool_] = (highest - lowest) * abs(client.scale) <= BLANK_RANGE
    return is_blank


def _find_originals(pixels: Pixels) -> _Rows:
    """The index of the first equal image where that is not the image itself, else -1: [n].

    Images are told apart by 64-bit digests: of a million, two differing ones agree with a chance
    of 3e-8.
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


def _judge(
    reading: _Reading, example_labels: NDArray[np.int32], is_member: NDArray[np.bool_]
) -> LabelScores:
    """The scores of all examples by densities of the members; others score 0.

    Its `likelier` are labels, not their places among those that occur.
    """
    if not is_member.any():
        zeros = np.zeros(len(is_member))
        return LabelScores(zeros, example_labels.astype(np.int64), zeros)
    labels, codes = np.unique(example_labels.astype(np.int64), return_inverse=True)
    factor = _shrink_factor(reading.data, len(labels))
    densities = _estimate(reading, factor, codes, is_member, len(labels))
    scores = _compare(reading, factor, codes, is_member, densities).scores
    is_trusted = is_member & ~_spare(scores > SUSPICIOUS_NATS, codes)
    densities = _estimate(reading, factor, codes, is_trusted, len(labels))
    label_scores = _compare(reading, factor, codes, is_trusted, densities)
    return LabelScores(
        np.where(is_member, label_scores.scores, 0.0),
        labels[label_scores.likelier],
        label_scores.distances,
    )


def _spare(is_doubtful: NDArray[np.bool_], codes: _Rows) -> NDArray[np.bool_]:
    """Which doubtful examples can be left out, [n]: unless too little of a label were left."""
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
    """The least factor at which images and the moments of all labels are small enough."""
    for factor in range(1, max(data.pixel_shape[:2]) + 1):
        num_features = _num_features(data.pixel_shape, factor)
        num_bytes = 8 * num_labels * num_features**2
        if num_features <= MAX_FEATURES and num_bytes <= MAX_MOMENT_BYTES:
            return factor
    raise DataError(
        f"{data.source}: {num_labels} labels of images of shape {list(data.pixel_shape)} are too "
        "many to compare; look for suspects among fewer clients"
    )


def _num_features(pixel_shape: tuple[int, ...], factor: int) -> int:
    height, width, *channels = pixel_shape
    return -(-height // factor) * -(-width // factor) * math.prod(channels)
