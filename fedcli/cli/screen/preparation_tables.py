"""The output of `fedcli preprocess`, as tables or JSON."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcli.datasets.preparation.preparing import Interpretation
    from fedcli.datasets.preparation.writing import Prepared

_KINDS = {"uint8": "grey levels, uint8", "float32": "float32"}
_RGB = 3  # channels of colour images


def show(prepared: Prepared, *, has_replaced: bool, as_json: bool) -> None:
    """Prints the summary of a store, and the next command.

    `has_replaced` tells whether it has replaced an existing file.
    """
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json(to_json(prepared))
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    replaced = "; the file that was there is replaced" if has_replaced else ""
    screen.line(f"Wrote {prepared.path} from {prepared.format}{replaced}")
    screen.title("Splits")
    screen.table(
        ["split", "clients", "examples", "smallest", "median", "largest"],
        [
            (
                each.name,
                f"{each.num_clients:,}",
                f"{each.num_examples:,}",
                f"{each.smallest:,}",
                f"{each.median:,g}",
                f"{each.largest:,}",
            )
            for each in prepared.splits
        ],
    )
    screen.title("Data")
    screen.prose(_facts(prepared))
    screen.line("")
    screen.line(f"Next: fedcli train --data {shlex.quote(str(prepared.path))}")


def show_interpretation(interpretation: Interpretation, *, as_json: bool) -> None:
    """Prints how a source would be interpreted, and the evidence."""
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json(
            {
                "description": interpretation.description.to_json(),
                "splits": {
                    name: {"num_examples": count, "num_clients": interpretation.num_owners[name]}
                    for name, count in interpretation.num_examples.items()
                },
                "notes": list(interpretation.notes),
            }
        )
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    screen.line(
        f"{interpretation.description.source} would be read as follows; nothing was written"
    )
    screen.line("")
    findings = interpretation.description.findings()
    screen.prose([(name, finding.line()) for name, finding in findings.items()])


def to_json(prepared: Prepared) -> dict[str, object]:
    """Returns the summary as a JSON object."""
    info = prepared.info
    return {
        "file": str(prepared.path),
        "format": prepared.format,
        "num_classes": info.num_classes,
        "class_names": list(info.class_names),
        "pixel_shape": list(prepared.pixel_shape),
        "pixel_convention": info.pixel_convention,
        "partition": info.partition,
        "partition_parameters": json.loads(info.partition_parameters),
        "same_people": info.same_people,
        "fingerprint": prepared.fingerprint,
        "num_bytes": prepared.num_bytes,
        "splits": {
            each.name: {
                name: value for name, value in dataclasses.asdict(each).items() if name != "name"
            }
            for each in prepared.splits
        },
        "description": prepared.description.to_json(),
        "notes": list(prepared.notes),
    }


def _facts(prepared: Prepared) -> list[tuple[str, str]]:
    info = prepared.info
    parameters = json.loads(info.partition_parameters)
    return [
        ("classes", _classes(info.num_classes, info.class_names)),
        ("pixels", _pixels(prepared)),
        ("partition", " ".join([info.partition, *_pairs(parameters)])),
        ("size", f"{prepared.num_bytes / 1e6:,.1f} MB"),
        ("fingerprint", prepared.fingerprint),
    ]


def _pixels(prepared: Prepared) -> str:
    shape = " x ".join(map(str, prepared.pixel_shape))
    kind = prepared.splits[0].pixels
    if prepared.pixel_shape[2:] == (_RGB,):
        return f"{shape}, RGB, {kind}"
    return f"{shape}, {_KINDS[kind]}, 1.0 is {prepared.info.pixel_convention}"


def _classes(num_classes: int, names: tuple[str, ...]) -> str:
    if not names:
        return f"{num_classes:,}"
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{num_classes:,}: {shown}"


def _pairs(parameters: dict[str, object]) -> list[str]:
    """`k=v` of each parameter; parameters of a step are in brackets after its name."""
    return [
        f"{name}({', '.join(_pairs(value))})"
        if isinstance(value, dict)
        else f"{name}={_plain(value)}"
        for name, value in parameters.items()
    ]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
