"""`fedcli info`: shows the installation and all parts that can be chosen by name."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.cli.info_tables import TABLES
from fedcli.errors import ConfigError
from fedcli.settings.declaration import option_name
from fedcli.settings.options import Entry, Option, Table, did_you_mean, split_code
from fedcli.settings.presets import PRESETS
from fedcli.settings.tables.datasets import PUBLIC_DATASETS
from fedcli.settings.tables.models import ModelEntry
from fedcli.settings.tables.optimizers import OPTIMIZERS
from fedcli.version import __version__

if TYPE_CHECKING:
    from fedcli.cli.screen.render import Screen

# For each table, the option of `fedcli train` that takes the name of an entry, and the option that
# takes the entry's own options ("" if none does). Audits belong to `fedcli audit`.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "datasets": ("--data", "--data-option"),
    "partitions": ("--partition", "--partition-option"),
    "samplers": ("--sampling", "--sampling-option"),
    "models": ("--model", "--model-option"),
    "augmentations": ("--augment", "--augment-option"),
    "algorithms": ("--algorithm", "--algorithm-option"),
    "aggregators": ("--aggregator", "--aggregator-option"),
    "pre-aggregators": ("--pre-aggregator", "--pre-aggregator-option"),
    "attacks": ("--attack", "--attack-option"),
    "secure-sums": ("--secure-sum", "--secure-sum-option"),
    "privacy": ("--dp", "--dp-option"),
    "metrics": ("--metrics", "--metric-option"),
    "optimizers": ("--client-optimizer", "--client-option"),
    "schedules": ("--client-schedule", "--client-schedule-option"),
    "engines": ("--engine", "--engine-option"),
    "compressors": ("--compress", "--compress-option"),
    "presets": ("--preset", ""),
    "audits": ("fedcli audit RUN", "--option"),
}

_INFO_BATCH = 20  # examples in the batch whose memory is shown
# Counts for each layer of a model and in total: parameters, and multiply-adds of one example.
_MODEL_TOTALS = ("num_params", "forward_multiply_adds", "training_multiply_adds")

# The further facts of an entry, if it has them, and their labels.
_LABELS = {
    "licence": "Licence",
    "requirement": "Needs",
    "cost": "Costs",
    "rates": "Rates to start from",
}


@click.command(cls=opt.SectionCommand)
@click.argument(
    "name",
    required=False,
    type=opt.Name(
        lambda: [*TABLES, *(name for table in TABLES.values() for name in table)], or_path=True
    ),
)
@opt.output_options
def info(*, name: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show this installation and everything that can be chosen by name.

    With NAME, show its description, its source, its options with defaults and ranges, the learning
    rates to start from, and an example command. NAME may also be a whole table: datasets,
    partitions, samplers, models, augmentations, algorithms, aggregators, pre-aggregators, attacks,
    secure-sums, privacy, metrics, optimizers, schedules, engines, compressors, presets or audits.
    FILE.py or FILE.py:NAME shows a part of your own in the same way. The file is executed.

    \b
    Examples:
      fedcli info
      fedcli info algorithms
      fedcli info sgd
      fedcli info fedexp.py
      fedcli info synthetic-digits --json
    """  # noqa: D301 - \b keeps click from wrapping
    opt.remarks_for(quiet=quiet, verbose=verbose)
    chosen = _table_called(name)
    code = None if name is None else split_code(name)
    kind = None
    if code is not None:
        kind, entries = _entry_in(*code)
    elif chosen is not None:
        entries = {chosen: _entries(chosen, None)}
    else:
        entries = {table: _entries(table, name) for table in TABLES}
    if name is not None and not any(entries.values()):
        raise ConfigError(_unknown(name))
    if as_json:
        from fedcli.cli.screen.output import print_json

        system = {} if name else _system()
        print_json({**system, **{table: rows for table, rows in entries.items() if rows}})
        return
    from fedcli.cli.screen.render import Screen

    if name is None:
        _show_all(Screen(), entries)
    elif chosen is not None:
        _show_table(Screen(), chosen, entries[chosen])
    else:
        _show_entries(Screen(), entries, kind)


def _entry_in(file: str, name: str | None) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Returns the kind of the part in a user's file, which is executed, and its row by table."""
    from fedcli.settings.own.parts import open_part  # lazy: only a file needs it

    kind, entry = open_part(file, name)
    table = "optimizers" if kind == "server optimizer" else f"{kind}s"
    return kind, {table: [_describe(table, entry)]}


def _table_called(name: str | None) -> str | None:
    """Returns the table with this name, in the plural or the singular; None if there is none."""
    if name is None:
        return None
    word = name.lower()
    return next((table for table in TABLES if word in (table, table.removesuffix("s"))), None)


def _unknown(name: str) -> str:
    """Returns the error message for an unknown name."""
    owners = [
        entry.name
        for table in TABLES.values()
        for entry in table.values()
        if name in (option.name for option in entry.options)
    ]
    if owners:
        more = ", ..." if len(owners) > 3 else ""
        return (
            f"'{name}' is an option of {', '.join(owners[:3])}{more}; fedcli info {owners[0]} "
            "shows it"
        )
    names = sorted({*TABLES, *(each for table in TABLES.values() for each in table)})
    return (
        f"there is no '{name}'{did_you_mean(name, names)}; fedcli info lists all names, "
        f"fedcli info {' | '.join(TABLES)} lists one table"
    )


def _entries(table: str, name: str | None) -> list[dict[str, Any]]:
    """Returns the rows of one table as JSON: all rows, or those with the given name."""
    known = TABLES[table]
    rows = [*known.values()]
    if isinstance(known, Table) and name not in known:
        from fedcli.settings.own.parts import installed

        rows += installed(known)
    return [_describe(table, entry) for entry in rows if name in (None, entry.name, *entry.aliases)]


def _describe(table: str, entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": entry.name,
        "doc": entry.doc,
        "source": entry.source,
        "options": [_describe_option(option) for option in entry.options],
    }
    if table == "presets":
        described["values"] = dict(PRESETS[entry.name].values)
        described["remark"] = PRESETS[entry.name].remark
    for name in _LABELS:
        if getattr(entry, name):
            described[name] = getattr(entry, name)
    described["example"] = _example(table, entry)
    if isinstance(entry, ModelEntry):
        described.update(_describe_model(entry))
    return described


def _example(table: str, entry: Entry) -> str:
    """Returns a row's example command, by default one with its name and its first option."""
    if entry.example:
        return entry.example
    if table == "optimizers":  # an optimizer from a package; only the server can use it
        option, detail_option = "--server-optimizer", "--server-option"
    else:
        option, detail_option = _OPTIONS[table]
    if table == "datasets" and entry.name in PUBLIC_DATASETS:
        return f"fedcli download {entry.name} && fedcli train --data {entry.name}"
    command = f"fedcli train {option} {shlex.quote(entry.name)}"
    if table == "samplers" and entry.name != "fixed":
        return f"{command} --clients 10 --rounds 50"
    if not entry.options or not detail_option:
        return command
    first = entry.options[0]
    value = first.default
    if value is None:  # only a user's own part has a number that may be missing
        return command
    shown = f"[{','.join(f'{each:g}' for each in value)}]" if isinstance(value, list) else value
    shown = str(shown).lower() if isinstance(shown, bool) else shown
    return f"{command} {detail_option} {first.name}={shown}"


def _describe_option(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "default": option.default,
        "allowed": option.allowed,
        "minimum": option.minimum,
        "maximum": option.maximum,
        "choices": list(option.choices),
        "doc": option.doc,
    }


def _describe_model(entry: ModelEntry) -> dict[str, Any]:
    """Returns a model's layers for examples of the row's shape, and what it costs."""
    from fedcli import models
    from fedcli.core import native
    from fedcli.models import costs

    layout = models.build_layout(entry.name, input_shape=entry.example_shape)
    layers: list[dict[str, Any]] = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "activation": layer.activation,
            "input_shape": list(layer.in_shape),
            "output_shape": list(layer.out_shape),
            "num_params": layer.num_params,
            "forward_multiply_adds": cost.forward,
            "training_multiply_adds": cost.training,
        }
        for layer, cost in zip(layout.layers, costs.layer_costs(layout), strict=True)
    ]
    rows = layout.core_rows()
    return {
        "example_shape": list(entry.example_shape),
        "layers": layers,
        **{total: sum(layer[total] for layer in layers) for total in _MODEL_TOTALS},
        "num_trained": layout.num_trained,
        "example_bytes": 4 * sum(layer.num_outputs for layer in layout.layers),
        "workspace_bytes": native.batch_bytes(rows, layout.num_params, _INFO_BATCH),
    }


def _system() -> dict[str, Any]:
    from importlib.metadata import version

    from fedcli.core import native

    return {
        "version": __version__,
        "isa": native.isa_name(),
        "isas": list(native.isa_names()),
        "openmp": native.has_openmp(),
        "threads": native.resolve_threads(None),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "h5py": version("h5py"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _show_all(screen: Screen, entries: Mapping[str, list[dict[str, Any]]]) -> None:
    system = _system()
    available = ", ".join(system["isas"])
    screen.line(f"fedcli {system['version']}", style="bold")
    screen.prose(
        [
            ("instruction set", f"{system['isa']} (available: {available}; FEDCLI_ISA overrides)"),
            ("OpenMP", "yes" if system["openmp"] else "no: fedcli uses one thread"),
            ("threads", str(system["threads"])),
            ("Python", f"{system['python']}, NumPy {system['numpy']}, h5py {system['h5py']}"),
            ("platform", system["platform"]),
        ]
    )
    screen.title("Choices for the options of fedcli train, and for fedcli audit")
    screen.prose(row for table, rows in entries.items() for row in _choices(table, rows))
    screen.console.print()
    screen.line("fedcli info NAME shows one entry with its options and an example;")
    screen.line("fedcli info algorithms (or another table) shows a whole table with its papers.")


def _choices(table: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The option of a table, and the names that it takes."""
    names = [row["name"] for row in rows]
    if table != "optimizers":
        return [(f"  {_OPTIONS[table][0]}", ", ".join(names))]
    common = [name for name in names if name in OPTIMIZERS]
    own = [name for name in names if name not in OPTIMIZERS]
    return [
        ("  --client-optimizer", ", ".join(common)),
        ("  --server-optimizer", ", ".join(["the same", *own])),
    ]


def _show_table(screen: Screen, table: str, entries: list[dict[str, Any]]) -> None:
    # --secure-sum is a switch: its table has one entry.
    name = "" if table == "secure-sums" else " NAME"
    screen.line(f"{table.capitalize()}: {_OPTIONS[table][0]}{name}", style="bold")
    screen.prose(
        row
        for entry in entries
        for row in ((f"  {entry['name']}", entry["doc"]), ("", f"Source: {entry['source']}"))
    )
    screen.line("")
    last = entries[-1]["name"]
    screen.line(f"fedcli info {last} shows this entry with its options and an example.")


def _show_entries(
    screen: Screen, entries: Mapping[str, list[dict[str, Any]]], kind: str | None
) -> None:
    """Shows some rows by table. `kind` is the kind of a user's part; None for fedcli's rows."""
    for table, rows in entries.items():
        for entry in rows:
            screen.line(f"{entry['name']} ({kind or table.removesuffix('s')})", style="bold")
            screen.prose([("", entry["doc"]), ("", f"Source: {entry['source']}")])
            for key, label in _LABELS.items():
                if key in entry:
                    screen.prose([("", f"{label}: {entry[key]}")])
            if "values" in entry:
                _show_values(screen, entry)
            if "layers" in entry:
                _show_layers(screen, entry)
            if entry["options"]:
                _show_options(screen, entry["options"])
            elif "values" not in entry and not (kind and "requirement" in entry):
                screen.prose([("", "It has no options.")])
            screen.line("")
            screen.line(f"Example: {entry['example']}")


def _show_values(screen: Screen, entry: Mapping[str, Any]) -> None:
    screen.prose([("", entry["remark"])] if entry["remark"] else [])
    screen.title("Sets these options")
    for name, value in entry["values"].items():
        pairs = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else []
        for each in pairs or [value]:
            screen.line(f"  {option_name(name)} {each}")


def _show_layers(screen: Screen, entry: Mapping[str, Any]) -> None:
    shape = " x ".join(map(str, entry["example_shape"]))
    screen.title(f"Layers for {shape} pixels and 10 classes; multiply-adds of one example")
    rows = [
        (layer["name"], layer["activation"], _show_shape(layer["output_shape"]), layer)
        for layer in entry["layers"]
    ]
    screen.table(
        ["layer", "activation", "outputs", "parameters", "forward", "training"],
        [
            [*texts, *(f"{numbers[total]:,}" for total in _MODEL_TOTALS)]
            for *texts, numbers in [*rows, ("in all", "", "", entry)]
        ],
        left=3,
    )
    if entry["num_trained"] < entry["num_params"]:
        moving = entry["num_params"] - entry["num_trained"]
        screen.line(f"{entry['num_trained']:,} parameters are trained; the other {moving:,} are")
        screen.line("the moving statistics of batch normalization; see fedcli train --batch-norm.")
    of_example, workspace = (entry[key] / 2**20 for key in ("example_bytes", "workspace_bytes"))
    screen.line(f"The outputs of all layers for one example take {of_example:,.1f} MiB.")
    screen.line(
        f"For batches of {_INFO_BATCH}, each thread needs {workspace:,.1f} MiB, beside parameters "
        "and optimizer state."
    )


def _show_shape(shape: list[int]) -> str:
    """Returns an image's shape as height x width x channels, a vector's as its length."""
    return str(shape[2]) if shape[:2] == [1, 1] else " x ".join(map(str, shape))


def _show_default(value: object) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show_options(screen: Screen, options: list[dict[str, Any]]) -> None:
    screen.title("Options")
    screen.table(
        ["option", "default", "allowed", "meaning"],
        [
            [
                option["name"],
                _show_default(option["default"]),
                option["allowed"],
                option["doc"],
            ]
            for option in options
        ],
        left=4,
    )
