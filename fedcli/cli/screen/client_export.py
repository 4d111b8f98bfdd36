"""The output of `inspect-clients` for programs: JSON and CSV, written client by client."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcli.csv_text import CsvWriter
from fedcli.datasets.client_data import CENTRAL
from fedcli.files import json_text
from fedcli.inspection.population import Population, num_distinct_clients
from fedcli.inspection.statistics import SplitCounts, summarize, summarize_sizes
from fedcli.outputs import output_file

if TYPE_CHECKING:
    from fedcli.datasets.client_data import ClientData

_BLOCK_CLIENTS = 4096  # formatted at a time
_FIGURES = (
    *("tv", "tv_floor", "js", "effective_classes", "classes_present", "max_share"),
    "mean_ink",
)


def print_json(populations: Mapping[str, Population], more: Mapping[str, Any]) -> None:
    """Prints one JSON object; memory holds the text of some clients at a time.

    In the totals a client of several splits counts once. The split `central` does not belong to
    the federation and does not count.

    Args:
        populations: The splits.
        more: Further members of the object.
    """
    data = next(iter(populations.values())).data
    splits = [population.counts for population in populations.values()]
    federated = [each for each in splits if each.split != CENTRAL] or splits
    head = {
        "data": data.source,
        "num_clients": num_distinct_clients(federated),
        "num_classes": data.num_classes,
        "num_examples": sum(each.num_examples for each in federated),
        "class_names": list(data.class_names) if data.class_names else None,
        "pixel_shape": list(data.pixel_shape),
        "pixel_convention": data.pixel_convention,
        "partition": data.partition,
    }
    write = sys.stdout.write
    write(f'{json_text(head)[:-1]}, "splits": {{')
    for index, (name, population) in enumerate(populations.items()):
        write(", " if index else "")
        write(f'{json_text(name)}: {json_text(_split_json(population))[:-1]}, "clients": [')
        for place, block in enumerate(_client_blocks(population.counts)):
            write((", " if place else "") + json_text(block)[1:-1])
        write("]}")
    write("}")
    for name, value in more.items():
        write(f", {json_text(name)}: {json_text(value)}")
    write("}\n")


def write_csv(path: Path, populations: Mapping[str, Population]) -> None:
    """Writes a CSV file atomically, with one row for each client and split.

    Raises:
        RunError: The file cannot be written.
    """
    with output_file(path) as file:
        for text in _csv_texts(populations):
            file.write(text.encode())


def _split_json(population: Population) -> dict[str, Any]:
    counts = population.counts
    sizes = counts.sizes
    return {
        "num_clients": len(counts.client_ids),
        "num_examples": counts.num_examples,
        "label_counts": counts.class_totals.tolist(),
        "sizes": asdict(summarize_sizes(sizes)) if len(sizes) else None,
        "heterogeneity": _heterogeneity(counts),
        "compared_with": {
            "num_clients": len(population.compared.client_ids),
            "label_counts": population.compared.class_totals.tolist(),
        },
    }


def _heterogeneity(counts: SplitCounts) -> dict[str, Any]:
    columns = zip(_FIGURES, _columns(counts, slice(None)), strict=True)
    spreads = {
        name: None if np.isnan(values).all() else summarize(values, counts.sizes)
        for name, values in columns
    }
    return {name: spread and asdict(spread) for name, spread in spreads.items()}


def _columns(counts: SplitCounts, rows: slice) -> list[Any]:
    skew = counts.skew
    figures = (skew.tv, skew.tv_floor, skew.js, skew.effective_classes, skew.num_present)
    ink = np.full(len(counts.label_counts), np.nan) if counts.mean_ink is None else counts.mean_ink
    return [*(each[rows] for each in figures), skew.max_share[rows], ink[rows]]


def _client_blocks(counts: SplitCounts) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of some clients at a time."""
    for ids, sizes, labels, figures in _record_blocks(counts):
        yield [
            {
                "client_id": client_id,
                "num_examples": size,
                "label_counts": row,
                **dict(zip(_FIGURES, values, strict=True)),
            }
            for client_id, size, row, values in zip(ids, sizes, labels, figures, strict=True)
        ]


def _csv_texts(populations: Mapping[str, Population]) -> Iterator[str]:
    """Yields the lines of the table, the header with the first ones."""
    data = next(iter(populations.values())).data
    buffer = io.StringIO()
    writer = CsvWriter(buffer)
    writer.row(["split", "client_id", "num_examples", *_FIGURES, *_label_names(data)])
    for population in populations.values():
        name = population.counts.split
        for ids, sizes, labels, figures in _record_blocks(population.counts):
            for client_id, size, row, values in zip(ids, sizes, labels, figures, strict=True):
                shown = ["" if value is None else value for value in values]
                writer.row([name, client_id, size, *shown, *row])
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _record_blocks(
    counts: SplitCounts,
) -> Iterator[tuple[Sequence[str], list[int], list[list[int]], list[tuple[Any, ...]]]]:
    """Yields blocks of ids, sizes, label counts and statistics; None for a missing number."""
    for first in range(0, len(counts.client_ids), _BLOCK_CLIENTS):
        rows = slice(first, min(first + _BLOCK_CLIENTS, len(counts.client_ids)))
        columns = [_plain(values) for values in _columns(counts, rows)]
        yield (
            counts.client_ids[rows],
            counts.sizes[rows].tolist(),
            counts.label_counts[rows].tolist(),
            list(zip(*columns, strict=True)),
        )


def _plain(values: Any) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]  # NaN


def _label_names(data: ClientData) -> list[str]:
    """A column name for each class: its name, or its number if names are not unique."""
    names = [data.class_name(label) for label in range(data.num_classes)]
    if len(set(names)) < len(names):
        names = list(map(str, range(data.num_classes)))
    return [f"label {name}" for name in names]
