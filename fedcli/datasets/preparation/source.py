"""The first step: reads a whole source, and collects notes on it for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedcli.datasets.client_data import CENTRAL
from fedcli.datasets.importers import recognising
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.shared import NUM_DIGITS
from fedcli.datasets.preparation import joining
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import HELD_OUT, VALIDATION

_GREATEST_PIXEL = 1.5  # a larger decoded pixel means that the range is not 0 to 1
_BLOCK = 256  # images read at a time
_LEAST_ALIKE = 10  # with fewer images, all may be equal by chance
_SHOWN = 10  # classes named in a note


def read_source(
    sources: Sequence[Path],
    options: PrepareOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the source. If the options name test data, they become its test split.

    Raises:
        ConfigError: An option does not fit the source, or the source has a test split already.
        DataError: A source cannot be used, or has no train split.
    """
    import_options = _import_options(options)
    if options.test_data is not None and options.format is None:
        recognising.recognise([options.test_data])  # report a wrong file before any work
    source = recognising.read(sources, import_options, folder, on_progress)
    if "train" not in source.tables:
        raise DataError(
            f"{sources[0]}: has no split 'train', only {', '.join(source.tables)}; give the train "
            "data as the source"
        )
    if options.test_data is not None:
        if "test" in source.tables:
            raise ConfigError(
                f"--test-data: {sources[0]} has a split 'test' of its own; leave --test-data out"
            )
        test = recognising.read([options.test_data], import_options, folder, on_progress)
        source = joining.join_test(source, test)
    if options.central_data:
        central = recognising.read(options.central_data, import_options, folder, on_progress)
        source = joining.join_central(source, central)
    joining.check_shapes(source.tables)
    return replace(
        source,
        class_names=options.class_names or source.class_names,
        same_people=source.same_people if options.same_people is None else options.same_people,
    )


def hold_out_split(source: Imported, options: PrepareOptions, notes: list[str]) -> str | None:
    """Returns the split to hold out, by default validation if there is a test split, else test.

    Raises:
        ConfigError: The source has that split already.
    """
    if options.hold_out is None:
        return None
    own = [name for name in (*HELD_OUT, VALIDATION) if name in source.tables]
    if options.central_data:
        own.remove(CENTRAL)  # a pooled test set is not a test split
    split = options.hold_out_split
    if split is None:
        tested = [name for name in own if name in HELD_OUT]
        split = VALIDATION if tested else "test"
        if tested:
            notes.append(
                f"the source has a split {tested[0]} of its own, so --hold-out makes the split "
                f"{VALIDATION}"
            )
    taken = next((name for name in own if (name == VALIDATION) == (split == VALIDATION)), None)
    if taken is not None:
        raise ConfigError(
            f"--hold-out {options.hold_out}: {source.tables['train'].source} has a split "
            f"{taken!r} of its own; leave --hold-out out, or make another split with "
            "--hold-out test= or validation="
        )
    return split


def _import_options(options: PrepareOptions) -> ImportOptions:
    fit = None
    if options.size is not None or options.centre:
        from fedcli.datasets.importers.fit import Fit

        fit = Fit(options.size, options.centre)
    return ImportOptions(
        format=options.format,
        num_classes=options.num_classes,
        label_column=options.label_column,
        id_column=options.id_column,
        file_column=options.file_column,
        splits=options.splits,
        pixel_range=options.pixel_range,
        polarity=options.polarity,
        image_shape=options.image_shape,
        folders=options.folders,
        color=options.color,
        fit=fit,
    )


def pixel_notes(source: Imported, on_progress: ProgressCallback) -> list[str]:
    """Returns notes if all images are equal, or if pixels of a store are not in 0 to 1."""
    notes = []
    for name, table in source.tables.items():
        if _are_alike(table):
            notes.append(f"all images of {name} are equal: there is nothing to learn from them")
        if table.pixels.dtype == np.uint8 or source.format != "store":
            continue  # importers of other formats decide on the range themselves
        greatest = 0.0
        for first in range(0, len(table), _BLOCK):
            block = table.pixels[first : first + _BLOCK]
            greatest = max(greatest, float(block.max()) * table.scale + table.offset)
            on_progress(first, len(table))
        if greatest > _GREATEST_PIXEL:
            notes.append(
                f"pixels of {name} reach {greatest:g}, where 0 to 1 is expected; "
                "divide grey levels by 255 in the source"
            )
    return notes


def _are_alike(table: ExampleTable) -> bool:
    """Whether there are several images, all equal. The second image usually decides."""
    if len(table) < _LEAST_ALIKE or not table.pixels.size:
        return False
    first = np.asarray(table.pixels[0])
    starts = range(1, len(table), _BLOCK)
    return all(bool((table.pixels[at : at + _BLOCK] == first).all()) for at in starts)


def class_notes(source: Imported) -> list[str]:
    """Returns notes if there is only one class, or if labels below the largest never occur."""
    if source.num_classes == 1:
        only = f" {source.class_names[0]!r}" if source.class_names else ""
        return [
            f"all examples are of one class{only}: there is nothing to learn; if that is wrong, "
            "choose the labels with --label-column, --folders or --num-classes"
        ]
    if not source.is_guessed:
        return []
    is_absent = np.ones(source.num_classes, np.bool_)
    for table in source.tables.values():
        is_absent[table.labels[table.labels < source.num_classes]] = False
    absent = np.flatnonzero(is_absent).tolist()
    if not absent:
        return []
    listed = ", ".join(map(str, absent[:_SHOWN])) + (", ..." if len(absent) > _SHOWN else "")
    return [
        f"{source.num_classes:,} classes, labels 0 to {source.num_classes - 1}, but {listed} never "
        f"{'occurs' if len(absent) == 1 else 'occur'}; if that is wrong, pass --num-classes or "
        "renumber the labels"
    ]


def limit_to_digits(source: Imported) -> Imported:
    """Returns the source with the digits as its only classes; the examples are unchanged.

    Raises:
        ConfigError: The classes have names, and the first ten are not the digits.
    """
    digits = tuple(map(str, range(NUM_DIGITS)))
    if source.class_names and source.class_names[:NUM_DIGITS] != digits:
        raise ConfigError(
            f"--digits-only: the classes of {source.tables['train'].source} begin with "
            f"{source.class_names[0]!r}, not with the ten digits; leave the option out"
        )
    return replace(
        source,
        num_classes=min(source.num_classes, NUM_DIGITS),
        class_names=source.class_names[:NUM_DIGITS],
    )
