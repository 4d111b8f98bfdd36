"""From a source of any format to a fedcli store: read, filter, deal, hold out, write.

All steps but the first and the last are arithmetic on indices; pixels are copied once, into an
unnamed file beside the store, and gathered from there client by client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedcli.datasets.partitions.hold_out import POOLED
from fedcli.datasets.preparation.assigning import (
    choose_scheme,
    deal_examples,
    deals_anew,
    drop_small,
    set_aside,
    take_central,
)
from fedcli.datasets.preparation.places import check_place, check_test_data
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.source import (
    class_notes,
    limit_to_digits,
    pixel_notes,
    read_source,
)
from fedcli.datasets.preparation.writing import Prepared, dealt_split, describe, summarise
from fedcli.datasets.sources import store_writer
from fedcli.errors import DataError
from fedcli.progress import Tell, tell_nobody

__all__ = ["PrepareOptions", "Prepared", "prepare"]


def prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, tell: Tell = tell_nobody
) -> Prepared:
    """Writes a store made of a source, whole or not at all, and returns what it holds.

    Args:
        sources: A file or folder, or the files of one set.
        out: The store to write or replace; its folder has room for the pixels twice.
        options: What to do.
        tell: Told the examples read of each source, then those written.

    Raises:
        ConfigError: An option does not go with the source.
        DataError: The source cannot be used, or the store cannot be written.
    """
    check_place(out, [*sources, *([options.test_data] if options.test_data else [])])
    check_test_data(sources, options.test_data)
    try:
        source = read_source(sources, options, out.parent, tell)
        notes = [*source.notes, *pixel_notes(source, tell)]
        if options.digits_only:
            source = limit_to_digits(source)
        notes += class_notes(source)
        kept = {
            name: np.flatnonzero(table.labels < source.num_classes)
            for name, table in source.tables.items()
        }
        if not len(kept["train"]):
            raise DataError(f"{sources[0]}: none of its labels is a digit; drop --digits-only")
        scheme, given = choose_scheme(source, kept, options, notes)
        pooled = None
        if options.hold_out == POOLED:
            kept, pooled = take_central(source, kept, options)
        parts = deal_examples(source, kept, scheme, given, notes)
        parts = drop_small(parts, source, options, scheme, notes)
        parts = set_aside(parts, pooled, options, notes)
        source = replace(source, same_people=source.same_people or deals_anew(scheme))
        info = describe(sources, source, options, scheme, given)
        splits = {name: dealt_split(name, part, source, info) for name, part in parts.items()}
        fingerprint = store_writer.create(out, splits, info, tell)
    except OSError as err:  # of the file that pixels pass through
        raise DataError(f"cannot write {out}: {err.strerror or err}") from err
    return summarise(out, source.format, fingerprint, notes)
