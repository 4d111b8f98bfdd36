"""`SourceDescription`: how a source of images was interpreted, and by what evidence.

An importer returns a `SourceDescription` with the examples. `fedcli preprocess` prints it before it
writes a store, and the store keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One finding about a source.

    Attributes:
        value: The finding, as in "train 40 examples, test 10".
        evidence: The evidence for it, as in "folders Training and Testing".
        option: The option that overrides it, or "" if there is none.
    """

    value: str
    evidence: str
    option: str = ""

    def line(self) -> str:
        """Returns value, evidence and option on one line."""
        override = f" [{self.option}]" if self.option else ""
        return f"{self.value}: {self.evidence}{override}"


@dataclass(frozen=True, kw_only=True)
class SourceDescription:
    """How a source was interpreted.

    Attributes:
        source: The file, folder or data set.
        format: A key of `tables.FORMATS`.
        splits: The splits with their numbers of examples.
        owners: The owners of the examples, who become clients.
        classes: The number of classes, and their names if they have any.
        shape: Height and width of an image.
        channels: Number and order of the values of a pixel.
        range: The range of the pixel values in the source.
        polarity: The meaning of 1.0: "ink" or "background".
    """

    source: str
    format: Finding
    splits: Finding
    owners: Finding
    classes: Finding
    shape: Finding
    channels: Finding
    range: Finding
    polarity: Finding

    def findings(self) -> dict[str, Finding]:
        """Returns the findings by subject."""
        names = [field.name for field in fields(self) if field.name != "source"]
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        """Returns a line for each subject, with the option that overrides it in brackets."""
        lines = [f"{name}: {finding.line()}" for name, finding in self.findings().items()]
        return [f"{self.source} is read as {lines[0]}", *lines[1:]]

    def short(self) -> str:
        """Returns the findings without their evidence, on one line."""
        values = [f"{name} {each.value}" for name, each in self.findings().items()]
        return f"{self.source} is read as " + "; ".join(values)

    def renamed(self, source: str, rename: Callable[[str], str]) -> SourceDescription:
        """Returns this description for another source, with the paths in the evidence renamed."""
        findings = {
            name: replace(each, evidence=rename(each.evidence))
            for name, each in self.findings().items()
        }
        return replace(self, source=source, **findings)

    def to_json(self) -> dict[str, Any]:
        """Returns the description as a JSON object: `from_json` is the inverse."""
        return asdict(self)


def from_json(text: str, where: str) -> SourceDescription:
    """Returns the description from the JSON text of `to_json`.

    Args:
        text: The JSON object.
        where: Prefix of error messages.

    Raises:
        DataError: The text is not the JSON object of a description.
    """
    try:
        values = json.loads(text)
        source = values.pop("source")
        findings = {name: Finding(**_texts(each)) for name, each in values.items()}
        return SourceDescription(source=source, **findings)
    except (ValueError, TypeError, AttributeError, KeyError) as err:
        raise DataError(
            f"{where}: attribute description is not in fedcli's form; write the store again"
        ) from err


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a finding. Raises TypeError if one is not text."""
    if not all(isinstance(each, str) for each in values.values()):
        raise TypeError("a field of a finding is not text")
    return dict(values)
