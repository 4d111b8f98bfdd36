"""`DataSource`: the values of `--data` and of the options that belong to it, in one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

from fedcli.dataclass import dataclass
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import NATURAL

# The prefix of the names of data that a Python program has in memory.
IN_MEMORY = "memory:"
UNNAMED = "data"  # the name after the prefix, if the program gave none
_FORMERLY_UNNAMED = "memory"  # the same in runs of earlier versions


def shown_data(data: str) -> str:
    """Returns the name of data for messages: "digits in memory" for "memory:digits"."""
    if not data.startswith(IN_MEMORY):
        return data
    name = data.removeprefix(IN_MEMORY)
    return f"{UNNAMED if name == _FORMERLY_UNNAMED else name} in memory"


class OpenedData(Protocol):
    """Data that a program has already opened; `str` returns their name in a config."""

    def open(self, pixels: str, num_classes: int | None) -> Mapping[str, Any]:
        """Returns the splits by name; see `DataSource` for the arguments."""
        ...

    def fingerprint(self, is_cancelled: Callable[[], bool]) -> str | None:
        """Returns the fingerprint of the examples, or None if `is_cancelled` returned true."""
        ...


@dataclass(frozen=True)
class DataSource:
    """Names federated data and says how to read them. Nothing is opened or checked here.

    Attributes:
        data: Name of an embedded or downloaded dataset, path of a file, or data that are already
            open. A TFF file has a single split, "train".
        data_options: Options of an embedded dataset.
        test_data: A name or file whose examples become the split "test": its split "test" if it
            is a store that has one, else its split "train". It replaces a split "test" of `data`.
            None for the split "test" of `data`, if it has one.
        partition: How the examples are divided among clients and changed; see
            `tables.find_partition`.
        partition_options: Options of the partition.
        num_classes: Labels are 0 to num_classes - 1; None for the number in the data, 10 for TFF.
        pixels: What the pixel value 1.0 means in the model's input: "ink", "background", or
            "source" for its meaning in the source.
        validation: Share of each client's train examples that becomes the split "validation"; None
            for the split of the data, if they have one.
    """

    data: str | OpenedData = "synthetic-digits"
    data_options: Mapping[str, Value] = field(default_factory=dict, kw_only=True)
    test_data: str | None = field(default=None, kw_only=True)
    partition: str = field(default=NATURAL, kw_only=True)
    partition_options: Mapping[str, Value] = field(default_factory=dict, kw_only=True)
    num_classes: int | None = field(default=None, kw_only=True)
    pixels: str = field(default="source", kw_only=True)
    validation: float | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, options: Any) -> DataSource:
        """Returns the source that a `RunConfig` describes by its fields of the same names."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})

    @property
    def names(self) -> list[str]:
        """The one or two names or files from which the examples are read."""
        name = str(self.data)
        return [name] if self.test_data is None else [name, self.test_data]

    @property
    def paths(self) -> list[Path]:
        """`names` as paths. They include names of known datasets, which are not files."""
        return [Path(each) for each in self.names if not each.startswith(IN_MEMORY)]

    @property
    def given(self) -> dict[str, Any]:
        """`data` and the fields that differ from their defaults, by name."""
        default = DataSource()
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: value
            for name, value in values.items()
            if name == "data" or value != getattr(default, name)
        }


def source_of(options: Any, data: OpenedData | None) -> DataSource:
    """Returns the source that a `RunConfig` describes; `data`, if given, replaces its data."""
    source = DataSource.of(options)
    return source if data is None else replace(source, data=data)


class DataOptions(TypedDict, total=False):
    """The fields of a `DataSource` except `data`, as keyword arguments; None if not given."""

    data_options: Mapping[str, Value] | None
    test_data: str | None
    partition: str | None
    partition_options: Mapping[str, Value] | None
    num_classes: int | None
    pixels: str | None
    validation: float | None
