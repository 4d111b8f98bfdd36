"""The description of a source, derived from the tables that an importer made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcli.datasets.description import Finding, SourceDescription
from fedcli.datasets.importers.recognising import ImportOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import plural

# The option that overrides each subject, and the evidence, unless an importer gives others.
_USUAL = {
    "splits": ("--test-data", "stated in the source"),
    "owners": ("--partition", "stated in the source"),
    "classes": ("--num-classes", "stated in the source"),
    "shape": ("--size", "the same for all images"),
    "channels": ("", "the same for all images"),
    "range": ("", "defined by the format"),
    "polarity": ("--polarity", "defined by the format"),
}
_SHOWN = 10  # class names in a description


def describe(
    source: str,
    tables: Mapping[str, ExampleTable],
    *,
    classes: str,
    pixel_convention: str,
    pixel_range: str,
    evidence: Mapping[str, str],
    overrides: Mapping[str, str],
) -> SourceDescription:
    """Returns the description of a source, without its format, which `recognising.read` adds.

    Args:
        source: The file or folder.
        tables: Its splits.
        classes: The result of `count_classes`.
        pixel_convention: Meaning of 1.0.
        pixel_range: The range of pixels in the source; empty: the range of the tables.
        evidence: The evidence for each subject; subjects left out have a default text.
        overrides: The option that overrides each subject, or "" for none; subjects left out have a
            default.
    """
    first = next(iter(tables.values()))
    height, width, *channels = first.pixels.shape[1:]
    owners = ", ".join(
        f"{name} {plural(len(table.owner_ids), 'client')}"
        for name, table in tables.items()
        if len(table.owner_ids)
    )
    values = {
        "splits": ", ".join(
            f"{name} {plural(len(table), 'example')}" for name, table in tables.items()
        ),
        "owners": owners or "none",
        "classes": classes,
        "shape": f"{height} x {width}",
        "channels": _name_channels(*channels),
        "range": pixel_range or ("0 to 255" if first.pixels.dtype == np.uint8 else "0 to 1"),
        "polarity": f"1.0 is {pixel_convention}",
    }
    usual = {name: why for name, (_, why) in _USUAL.items()}
    if not owners:
        usual["owners"] = "the source names no owners"
    if len(tables) == 1:
        usual["splits"] = "the source is one split"
    findings = {
        name: Finding(value, evidence.get(name, usual[name]), overrides.get(name, _USUAL[name][0]))
        for name, value in values.items()
    }
    return SourceDescription(source=source, format=Finding("", ""), **findings)


def count_classes(num_classes: int, names: Sequence[str]) -> str:
    """Returns the number of classes with the first of their names."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{num_classes:,} ({shown})" if names else f"{num_classes:,}"


def why_classes(
    options: ImportOptions, own_classes: int | None, names: Sequence[str], is_emnist: bool
) -> str:
    """Returns the evidence for the number of classes."""
    if options.num_classes:
        return "given by --num-classes"
    if own_classes:
        return "stated in the source"
    if names:
        return "one for each label that occurs"
    return "EMNIST's characters" if is_emnist else "one more than the largest label"


def _name_channels(count: int = 1) -> str:
    names = {1: "1, grey", 3: "3, red, green and blue, last in the shape"}
    return names.get(count, f"{count}, last in the shape")
