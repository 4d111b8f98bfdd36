"""Converts a source of any format to a fedcli store: read, filter, assign, hold out, write.

All steps except the first and the last work on indices. Pixels are copied once, to an unnamed file
beside the store, and gathered from there client by client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import CENTRAL
from fedcli.datasets.description import SourceDescription
from fedcli.datasets.importers.recognising import Imported
from fedcli.datasets.partitions.hold_out import POOLED
from fedcli.datasets.preparation.assigning import (
    Part,
    assign_examples,
    choose_scheme,
    drop_small,
    reassigns_examples,
    set_aside,
    take_central,
)
from fedcli.datasets.preparation.places import check_place, check_test_data
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.source import (
    class_notes,
    hold_out_split,
    limit_to_digits,
    pixel_notes,
    read_source,
)
from fedcli.datasets.preparation.writing import Prepared, describe, partitioned_split, summarise
from fedcli.datasets.sources import store_writer
from fedcli.errors import DataError, why_not_written
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings.vocabulary import VALIDATION

__all__ = ["Interpretation", "PrepareOptions", "Prepared", "interpret", "prepare"]


@dataclass(frozen=True)
class Interpretation:
    """How a source would be interpreted (`fedcli preprocess` without writing a store).

    Attributes:
        description: The findings and their evidence.
        num_examples: Number of examples of each split.
        num_owners: Number of owners of each split; 0 if the source names none.
        notes: Notes for the user, one sentence each.
    """

    description: SourceDescription
    num_examples: dict[str, int]
    num_owners: dict[str, int]
    notes: tuple[str, ...]


def interpret(
    sources: Sequence[Path],
    options: PrepareOptions,
    on_progress: ProgressCallback = ignore_progress,
) -> Interpretation:
    """Reads a source as `prepare` does and returns its interpretation; writes no store.

    Pixels are copied to an unnamed file in the system's folder for temporary files.

    Args:
        sources: As `prepare`.
        options: As `prepare`.
        on_progress: Called with the number of examples read of each source.

    Raises:
        ConfigError: As `prepare`.
        DataError: As `prepare`.
    """
    check_test_data(sources, options.test_data)
    source, notes = _read(sources, options, None, on_progress)
    hold_out_split(source, options, notes)
    return Interpretation(
        source.description,
        {name: len(table) for name, table in source.tables.items()},
        {name: len(table.owner_ids) for name, table in source.tables.items()},
        tuple(notes),
    )


def prepare(
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions,
    on_progress: ProgressCallback = ignore_progress,
) -> Prepared:
    """Converts a source to a store, which is written atomically, and returns its summary.

    Args:
        sources: A file or folder, or the files of one set.
        out: The store to write or replace. Its folder needs room for the pixels twice.
        options: The options.
        on_progress: Called with the number of examples read of each source, then with the number of
            examples written.

    Raises:
        ConfigError: An option does not suit the source.
        DataError: The source cannot be used, or the store cannot be written.
    """
    check_place(out, [*sources, *([options.test_data] if options.test_data else [])])
    check_test_data(sources, options.test_data)
    try:
        source, notes = _read(sources, options, out.parent, on_progress)
        held_out = hold_out_split(source, options, notes)
        kept = {
            name: np.flatnonzero(table.labels < source.num_classes)
            for name, table in source.tables.items()
        }
        if not len(kept["train"]):
            raise DataError(f"{sources[0]}: {_why_empty(source)}")
        scheme, given = choose_scheme(source, kept, options, notes)
        pooled: dict[str, Part] = {}
        if options.hold_out == POOLED:
            pool = CENTRAL if held_out == "test" else VALIDATION
            kept, pooled[pool] = take_central(source, kept, options, pool)
        parts = assign_examples(source, kept, scheme, given, notes)
        parts = drop_small(parts, source, options, scheme, notes)
        parts = {**parts, **pooled} if pooled else set_aside(parts, held_out, options, notes)
        source = replace(source, same_people=source.same_people or reassigns_examples(scheme))
        info = describe(sources, source, options, scheme, given, held_out)
        splits = {name: partitioned_split(name, part, source, info) for name, part in parts.items()}
        fingerprint = store_writer.create(out, splits, info, on_progress)
    except OSError as err:  # an error of the temporary file of pixels
        raise DataError(f"cannot write {out}: {why_not_written(err)}") from err
    return summarise(out, source, fingerprint, notes)


def _read(
    sources: Sequence[Path],
    options: PrepareOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> tuple[Imported, list[str]]:
    """Reads the whole source, and returns it with notes for the user."""
    source = read_source(sources, options, folder, on_progress)
    notes = [*source.notes, *pixel_notes(source, on_progress)]
    if options.digits_only:
        source = limit_to_digits(source)
    return source, notes + class_notes(source)


def _why_empty(source: Imported) -> str:
    """The reason why a source has no examples left."""
    if len(source.tables["train"].labels):  # only --digits-only removes examples
        return "none of its labels is a digit; drop --digits-only"
    return "holds no train examples; give data with train examples"
