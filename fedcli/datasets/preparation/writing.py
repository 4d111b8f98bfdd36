"""The last step: the metadata of a store, and its summary after it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.description import SourceDescription
from fedcli.datasets.importers.recognising import Imported
from fedcli.datasets.partitions.hold_out import CLIENTS, WITHIN
from fedcli.datasets.partitions.partitioned_split import PartitionedSplit
from fedcli.datasets.preparation.assigning import Part, least_examples, reassigns_examples
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.sources import store
from fedcli.datasets.sources.store import StoreInfo
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import PIXEL_CONVENTIONS, VALIDATION


@dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """One split of a store that was written.

    Attributes:
        name: train, test, validation or central.
        num_clients: Number of clients.
        num_examples: Number of examples of all clients.
        smallest: Number of examples of the smallest client.
        median: Median number of examples of a client.
        largest: Number of examples of the largest client.
        pixels: "uint8" or "float32".
    """

    name: str
    num_clients: int
    num_examples: int
    smallest: int
    median: float
    largest: int
    pixels: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The summary of a store that was written.

    Attributes:
        path: The file.
        format: Format of the source.
        description: How the source was interpreted.
        info: The metadata of the store.
        splits: The splits, train first.
        pixel_shape: (H, W) or (H, W, C).
        fingerprint: Fingerprint of the data.
        num_bytes: Size of the file.
        notes: Notes for the user, one sentence each.
    """

    path: Path
    format: str
    description: SourceDescription
    info: StoreInfo
    splits: tuple[PreparedSplit, ...]
    pixel_shape: tuple[int, ...]
    fingerprint: str
    num_bytes: int
    notes: tuple[str, ...]


def describe(
    sources: Sequence[Path],
    source: Imported,
    options: PrepareOptions,
    scheme: str,
    given: Mapping[str, Value],
    held_out: str | None,
) -> StoreInfo:
    """Returns the metadata of a store; `held_out` is the split that was held out from train."""
    convention = source.pixel_convention
    same_people = source.same_people
    if held_out == "test":
        same_people = {WITHIN: True, CLIENTS: False}.get(options.hold_out or "", same_people)
    if options.invert:
        convention = next(each for each in PIXEL_CONVENTIONS if each != convention)
    parameters: dict[str, object] = {**given, **_steps(options, held_out)}
    if source.format == "store" and not reassigns_examples(scheme):
        scheme, parameters = _continue_history(store.read_info(sources[0]), scheme, parameters)
    return StoreInfo(
        num_classes=source.num_classes,
        pixel_convention=convention,
        class_names=source.class_names,
        same_people=same_people,
        source=options.source if options.source is not None else _title(sources, source.source),
        licence=options.licence if options.licence is not None else source.licence,
        partition=scheme,
        partition_parameters=json.dumps(parameters, sort_keys=True),
        description=_recorded_description(sources, source),
    )


def _recorded_description(sources: Sequence[Path], source: Imported) -> SourceDescription | None:
    """How a source was interpreted; for a store, its recorded description."""
    if source.format == "store":
        return store.read_info(sources[0]).description
    return replace(source.description, source=_title(sources, source.description.source))


def _steps(options: PrepareOptions, held_out: str | None) -> dict[str, object]:
    """The steps other than the partition, each with its parameters."""
    steps: dict[str, object] = {}
    if options.digits_only or options.min_examples:
        steps["filter"] = {
            "digits_only": options.digits_only,
            "min_examples": least_examples(options),
        }
    if options.hold_out is not None:
        steps["hold_out"] = {
            "kind": options.hold_out,
            "fraction": options.hold_out_fraction,
            "seed": options.seed,
            **({"split": VALIDATION} if held_out == VALIDATION else {}),
        }
    return steps


def _continue_history(
    info: StoreInfo, scheme: str, parameters: Mapping[str, object]
) -> tuple[str, dict[str, object]]:
    """The partition and parameters of a store whose clients are kept.

    The earlier parameters are nested under "before", so that new parameters of the same names
    do not replace them.
    """
    changes = tables.split_partition(scheme)[1]
    names = [info.partition] * (info.partition != tables.NATURAL or not changes)
    before = json.loads(info.partition_parameters)
    steps = {"before": before} if before else {}
    return "+".join([*names, *changes]), {**parameters, **steps} if parameters else before


def _title(sources: Sequence[Path], source: str) -> str:
    """The name of a source without its folder, so that equal data make equal stores.

    If the source is a store, the name that it records is used unchanged: that name is not a path.
    """
    path = next((each for each in sources if str(each) == source), None)
    if path is None:
        return source
    return os.fsencode(path.resolve().name).decode(errors="replace")


def partitioned_split(name: str, part: Part, source: Imported, info: StoreInfo) -> PartitionedSplit:
    """Returns a split in the form that `store_writer` writes."""
    return PartitionedSplit(
        part.table,
        part.assignment,
        split=name,
        num_classes=info.num_classes,
        class_names=info.class_names or None,
        pixel_convention=source.pixel_convention,
        pixels=info.pixel_convention,
        changes=part.changes,
    )


def summarise(path: Path, source: Imported, fingerprint: str, notes: list[str]) -> Prepared:
    """Returns the summary of a store that was written."""
    splits = store.open_store(path)
    return Prepared(
        path=path,
        format=source.format,
        description=source.description,
        info=store.read_info(path),
        splits=tuple(_figures(split) for split in splits.values()),
        pixel_shape=next(iter(splits.values())).pixel_shape,
        fingerprint=fingerprint,
        num_bytes=path.stat().st_size,
        notes=tuple(notes),
    )


def _figures(split: store.StoreSplit) -> PreparedSplit:
    sizes = [split.num_examples(client_id) for client_id in split.client_ids]
    return PreparedSplit(
        name=split.split,
        num_clients=len(sizes),
        num_examples=sum(sizes),
        smallest=min(sizes),
        median=float(np.median(sizes)),
        largest=max(sizes),
        pixels=str(split.client(split.client_ids[0]).pixels.dtype),
    )
