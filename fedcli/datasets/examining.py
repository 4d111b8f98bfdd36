"""Looks for common problems of data before training, in a few clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.errors import DataError

_SAMPLED = 8  # clients, evenly spaced
_MOST_READ = 4096  # clients whose labels are read to find one more class
_LEAST_SEEN = 50  # examples that are expected to show all classes
_LEAST_ALIKE = 20  # images that are not alike by chance
_BEYOND = 0.5  # decoded pixels may leave 0 to 1 by so much
_DARK = 16.5 / 255  # grey levels of 8 bits that all lie below it were perhaps of 1 or 4 bits


@dataclass
class _Seen:
    """What some clients hold."""

    least: float = 0.0
    most: float = 0.0
    num_examples: int = 0
    are_alike: bool = True
    highest: float = 0.0  # of levels / 255, whatever 1.0 is
    first: Any = None
    labels: set[int] = field(default_factory=set)


def sampled_ids(client_ids: Sequence[str]) -> list[str]:
    """Returns a few ids, evenly spaced, the first among them."""
    step = max(1, -(-len(client_ids) // _SAMPLED))
    return [client_ids[place] for place in range(0, len(client_ids), step)]


def examine(
    data: ClientData, *, has_default_classes: bool, is_scaled: bool, are_bytes: bool = False
) -> tuple[str, ...]:
    """Returns lines where pixels do not go from 0 to 1, classes are missing, or all is alike.

    Args:
        data: One split.
        has_default_classes: Whether the number of classes is a default that labels may not fill.
        is_scaled: Whether the pixels are known to go from 0 to 1.
        are_bytes: Whether they are grey levels of 8 bits in the source, of which nobody knows that.
    """
    seen = _look(data)
    notes = []
    if not is_scaled and (seen.most > 1 + _BEYOND or seen.least < -_BEYOND):
        notes.append(range_note(data, seen.least, seen.most))
    if are_bytes and seen.num_examples >= _LEAST_ALIKE and 0 < seen.highest <= _DARK:
        notes.append(dark_note(data, round(255 * seen.highest)))
    if seen.num_examples >= _LEAST_ALIKE and seen.are_alike:
        notes.append(f"all images of {data.source} looked at are alike: nothing can be learnt")
    if data.split != "train" or not seen.num_examples:
        return tuple(notes)
    labels = seen.labels
    num_seen = seen.num_examples
    if len(labels) < 2 or (has_default_classes and max(labels) < data.num_classes - 1):
        labels, num_seen = _all_labels(data, labels, at_least=0 if has_default_classes else 2)
    if num_seen < _LEAST_SEEN:
        return tuple(notes)  # too few to miss a class
    if len(labels) == 1:
        notes.append(
            f"all labels of {data.source} are {next(iter(labels))}: there is one class, and "
            "nothing to tell apart"
        )
    elif has_default_classes and max(labels) < data.num_classes - 1:
        most = max(labels) + 1
        notes.append(
            f"{data.source} has {data.num_classes} classes, as TFF files have unless "
            f"--num-classes says otherwise, but its labels end at {most - 1}; pass --num-classes "
            f"{most} if it has {most}"
        )
    return tuple(notes)


def range_note(data: ClientData, least: float, most: float) -> str:
    """Returns the note on pixels that are not in the range 0 to 1."""
    return (
        f"pixels of {data.split} ({data.source}) go from {least:.4g} to {most:.4g} where 0 to 1 is "
        f"expected: models learn badly from them; {data.range_remedy}"
    )


def dark_note(data: ClientData, most: int) -> str:
    """Returns the line for grey levels of 8 bits that all are small."""
    return (
        f"pixels of {data.split} ({data.source}) end at {most} of 255: if {most} is white, 'fedcli "
        f"preprocess {data.source} --out FILE' makes a store that is scaled"
    )


def _look(data: ClientData) -> _Seen:
    """Reads a few clients."""
    seen = _Seen()
    lows, highs = [], []
    for client_id in sampled_ids(data.client_ids):
        try:
            client = data.client(client_id)
        except DataError:
            continue  # the error is reported when the client is used
        if not len(client.labels):
            continue
        images = np.asarray(client.pixels)
        seen.highest = max(seen.highest, float(images.max()) / 255)
        ends = [float(each) * client.scale + client.offset for each in (images.min(), images.max())]
        lows.append(min(ends))
        highs.append(max(ends))
        if seen.first is None:
            seen.first = images[0]
        seen.are_alike = seen.are_alike and bool((images == seen.first).all())
        seen.num_examples += len(client.labels)
        seen.labels.update(np.unique(client.labels).tolist())
    seen.least, seen.most = min(lows, default=0.0), max(highs, default=0.0)
    return seen


def _all_labels(data: ClientData, known: set[int], at_least: int) -> tuple[set[int], int]:
    """The labels of all clients, and the number of examples read.

    Reading stops early when `at_least` labels, or the last class, are found.
    """
    labels = set(known)
    num_seen = 0
    for client_id in _first(data.client_ids):
        if len(labels) >= at_least > 0 or data.num_classes - 1 in labels:
            break
        try:
            mine = data.labels(client_id)
        except DataError:
            continue  # the error is reported when the client is used
        num_seen += len(mine)
        labels.update(np.unique(mine).tolist())
    return labels, num_seen


def _first(client_ids: Sequence[str]) -> Iterator[str]:
    return (client_ids[place] for place in range(min(len(client_ids), _MOST_READ)))
