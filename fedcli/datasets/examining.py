"""Checks a few clients for common problems of data before the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.errors import DataError

_NUM_SAMPLED = 8  # clients whose pixels are read, evenly spaced
_MAX_CLIENTS = 4096  # clients whose labels are read to find all classes
_MIN_EXAMPLES = 50  # with fewer examples, missing classes are not reported
_MIN_EQUAL = 20  # with fewer images, equal images are not reported
_TOLERANCE = 0.5  # decoded pixels may leave the range 0 to 1 by this much
_DARK = 16.5 / 255  # if all grey levels are below this, the source may have 1 or 4 bits per pixel


@dataclass
class _Summary:
    """A summary of the examined clients.

    Attributes:
        least: The least decoded pixel.
        most: The greatest decoded pixel.
        num_examples: Number of examples.
        are_equal: Whether all images are equal.
        highest: The greatest stored grey level divided by 255.
        first: The first image.
        labels: The labels that occur.
    """

    least: float = 0.0
    most: float = 0.0
    num_examples: int = 0
    are_equal: bool = True
    highest: float = 0.0
    first: Any = None
    labels: set[int] = field(default_factory=set)


def sampled_ids(client_ids: Sequence[str]) -> list[str]:
    """Returns a few evenly spaced ids, starting with the first one."""
    step = max(1, -(-len(client_ids) // _NUM_SAMPLED))
    return [client_ids[place] for place in range(0, len(client_ids), step)]


def examine(
    data: ClientData, *, has_default_classes: bool, is_scaled: bool, are_bytes: bool = False
) -> tuple[str, ...]:
    """Returns notes if pixels are out of range, classes are missing, or all images are equal.

    Args:
        data: One split.
        has_default_classes: Whether the number of classes is a default, perhaps larger than needed.
        is_scaled: Whether the pixels are known to be in the range 0 to 1.
        are_bytes: Whether the source has 8-bit grey levels of unknown scale.
    """
    summary = _summarise(data)
    notes = []
    if not is_scaled and (summary.most > 1 + _TOLERANCE or summary.least < -_TOLERANCE):
        notes.append(range_note(data, summary.least, summary.most))
    if are_bytes and summary.num_examples >= _MIN_EQUAL and 0 < summary.highest <= _DARK:
        notes.append(dark_note(data, round(255 * summary.highest)))
    if summary.num_examples >= _MIN_EQUAL and summary.are_equal:
        notes.append(f"all examined images of {data.source} are equal: there is nothing to learn")
    if data.split != "train" or not summary.num_examples:
        return tuple(notes)
    labels = summary.labels
    num_examples = summary.num_examples
    if len(labels) < 2 or (has_default_classes and max(labels) < data.num_classes - 1):
        labels, num_examples = _all_labels(data, labels, at_least=0 if has_default_classes else 2)
    if num_examples < _MIN_EXAMPLES:
        return tuple(notes)
    if len(labels) == 1:
        notes.append(
            f"all labels of {data.source} are {next(iter(labels))}: with one class there is "
            "nothing to learn"
        )
    elif has_default_classes and max(labels) < data.num_classes - 1:
        most = max(labels) + 1
        notes.append(
            f"{data.source} is read with {data.num_classes} classes, the default for TFF "
            f"files, but its largest label is {most - 1}; pass --num-classes {most} if it has "
            f"{most} classes"
        )
    return tuple(notes)


def range_note(data: ClientData, least: float, most: float) -> str:
    """Returns the note on pixels that are not in the range 0 to 1."""
    return (
        f"pixels of {data.split} ({data.source}) go from {least:.4g} to {most:.4g} where 0 to 1 is "
        f"expected: models learn badly from them; {data.range_remedy}"
    )


def dark_note(data: ClientData, most: int) -> str:
    """Returns the note on 8-bit grey levels that are all small."""
    return (
        f"pixels of {data.split} ({data.source}) reach only {most} of 255: if {most} is white, "
        "'fedcli "
        f"preprocess {data.source} --out FILE' makes a store with scaled pixels"
    )


def _summarise(data: ClientData) -> _Summary:
    """Reads a few clients and summarises them."""
    summary = _Summary()
    lows, highs = [], []
    for client_id in sampled_ids(data.client_ids):
        try:
            client = data.client(client_id)
        except DataError:
            continue  # the error is reported when the client is used
        if not len(client.labels):
            continue
        images = np.asarray(client.pixels)
        summary.highest = max(summary.highest, float(images.max()) / 255)
        ends = [float(each) * client.scale + client.offset for each in (images.min(), images.max())]
        lows.append(min(ends))
        highs.append(max(ends))
        if summary.first is None:
            summary.first = images[0]
        summary.are_equal = summary.are_equal and bool((images == summary.first).all())
        summary.num_examples += len(client.labels)
        summary.labels.update(np.unique(client.labels).tolist())
    summary.least, summary.most = min(lows, default=0.0), max(highs, default=0.0)
    return summary


def _all_labels(data: ClientData, known: set[int], at_least: int) -> tuple[set[int], int]:
    """Returns the labels of the first `_MAX_CLIENTS` clients and the number of examples read.

    Reading stops early when `at_least` different labels, or the last class, have occurred.
    """
    labels = set(known)
    num_examples = 0
    for client_id in _first(data.client_ids):
        if len(labels) >= at_least > 0 or data.num_classes - 1 in labels:
            break
        try:
            labels_of_client = data.labels(client_id)
        except DataError:
            continue  # the error is reported when the client is used
        num_examples += len(labels_of_client)
        labels.update(np.unique(labels_of_client).tolist())
    return labels, num_examples


def _first(client_ids: Sequence[str]) -> Iterator[str]:
    return (client_ids[place] for place in range(min(len(client_ids), _MAX_CLIENTS)))
