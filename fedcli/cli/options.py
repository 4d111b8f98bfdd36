"""Options that several commands share: their help, types and shell completion.

Defaults are not kept here: help shows those of `RunConfig`, and an option that was not given is
None (or an empty mapping), so that it cannot override a config file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fedcli.cli.screen.output import Remarks, Verbosity, print_trace
from fedcli.errors import ModelError
from fedcli.settings.options import Value
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.datasets import DATASETS, PUBLIC_DATASETS
from fedcli.settings.tables.partitions import PARTITIONS
from fedcli.settings.toml_values import parse_options
from fedcli.settings.vocabulary import PIXELS

Function = TypeVar("Function", bound=Callable[..., object])
Decorator = Callable[[Any], Any]

# Headings of the help text.
DATA = "Data"
COHORT = "Clients and rounds"
LOCAL = "Local training"
MODEL = "Model"
ALGORITHM = "Algorithm"
EVALUATION = "Evaluation"
FINE_TUNING = "Fine-tuning"
PICTURES = "Tables and pictures"
RUN = "Run"
OUTPUT = "Output"

DATA_HELP = "A named dataset, or a TFF HDF5 file or fedcli store."
CLIENTS_SYNTAX = "all|N|ID,ID|@FILE"
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RunConfig)}


class SectionOption(click.Option):
    """An option that knows under which heading of the help text it stands."""

    def __init__(self, *args: Any, section: str, **attributes: Any) -> None:
        """Passes everything but the heading on to click."""
        super().__init__(*args, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help lists its options under headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses, and makes sure that a usage error knows which command it is about."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as err:
            err.ctx = err.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; -v shows where in their own code a user's model failed."""
        try:
            return super().invoke(ctx)
        except ModelError as err:
            if ctx.params.get("verbose"):
                from fedcli.models.own.user_code import trace_lines

                print_trace(trace_lines(err))
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one block of options for each heading, in the order in which they were added."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", OUTPUT), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Name(click.ParamType[str]):
    """A name from a registry table: the library checks it, the shell completes it."""

    name = "name"

    def __init__(self, table: Iterable[str], *, or_path: bool = False) -> None:
        """Offers the names of the table and, if a path may stand there too, file names."""
        self.table = tuple(table)
        self.or_path = or_path

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Returns what stands for the value in the help text."""
        return "NAME|PATH" if self.or_path else "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the names that begin as the user's word does."""
        items = [CompletionItem(name) for name in self.table if name.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="file")] if self.or_path else items


class ShuffleBuffer(click.ParamType["int | str"]):
    """A number of examples, or `full` for a buffer that holds all of a client's data."""

    name = "N|full"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Returns the number, or the word `full`."""
        if value == "full":
            return "full"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor 'full'.", param, ctx)


def option(*names: str, help: str, section: str, **attributes: Any) -> Decorator:
    """Returns an option under a heading of the help text."""
    return click.option(*names, help=help, section=section, cls=SectionOption, **attributes)


def run_option(flag: str, help_text: str, *, section: str, **attributes: Any) -> Decorator:
    """Returns the option of one field of `RunConfig`, whose help ends with the default there."""
    default = _DEFAULTS[_field_name(flag)]
    has_default = default not in (None, dataclasses.MISSING)
    shown = f"  [default: {default}]" if has_default else ""
    return option(flag, help=help_text + shown, section=section, **attributes)


def switch(flag: str, help_text: str, *, section: str) -> Decorator:
    """Returns the option of a field of `RunConfig` that is off unless it is given."""
    return option(flag, help=help_text, section=section, is_flag=True, default=None)


def pairs_option(flag: str, help_text: str, *, section: str, name: str | None = None) -> Decorator:
    """Returns a repeatable `k=v` option whose values arrive as one mapping.

    They do so under a name, by default that of the field of `RunConfig`.
    """
    return option(
        flag,
        name or _field_name(flag),
        help=help_text,
        section=section,
        multiple=True,
        metavar="K=V",
        callback=_parse_pairs,
    )


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that stand on the command line, to lay over a config or a run."""
    return {name: value for name, value in values.items() if value is not None and value != {}}


def data_options(
    *,
    data_help: str,
    clients_help: str,
    clients_syntax: str = CLIENTS_SYNTAX,
    partition_default: str = f" [default: {RunConfig.partition}]",
) -> Decorator:
    """Returns the options that say which data: those of `train`, `eval` and `inspect-clients`."""
    return stack(
        option("--data", help=data_help, section=DATA, type=Name(DATASETS, or_path=True)),
        pairs_option(
            "--data-option", "Option of a named dataset, such as clients=1000.", section=DATA
        ),
        option(
            "--test-data",
            help="File or public dataset that holds the test split.",
            section=DATA,
            type=Name(PUBLIC_DATASETS, or_path=True),
        ),
        option(
            "--partition",
            help="Deal the examples to clients anew (iid, shards, dirichlet-class, ...), change "
            "them (label-noise, ...), or both, joined by +. fedcli info lists the schemes. "
            f"{partition_default}",
            section=DATA,
            type=Name(PARTITIONS),
            metavar="NAME[+NAME]",
        ),
        pairs_option(
            "--partition-option",
            "Option of the partition, such as clients=50, alpha=0.1 or seed=1.",
            section=DATA,
        ),
        option(
            "--num-classes",
            help="Number of classes. Default: as the data says, 10 for a TFF file.",
            section=DATA,
            type=int,
            metavar="N",
        ),
        option(
            "--pixels",
            help="What 1.0 means in what the model sees. Default: the same as in the source.",
            section=DATA,
            type=click.Choice(PIXELS),
        ),
        option("--clients", help=clients_help, section=DATA, metavar=clients_syntax),
    )


def code_option(*, section: str) -> Decorator:
    """Returns --model of the commands that take a model from a run."""
    return option(
        "--model",
        help="Where the run's model is code: the file to run. No code runs without it.",
        section=section,
        metavar="FILE.py[:FUNCTION]",
    )


def best_option(*, section: str) -> Decorator:
    """Returns --best of the commands that take a model from a run."""
    return option(
        "--best",
        help="Take the best round's checkpoint, of a run with --keep-best. Default: the newest.",
        section=section,
        is_flag=True,
    )


def output_options(function: Function) -> Function:
    """Adds --json, -q and -v, which every command has."""
    add = stack(
        option(
            "--json",
            "as_json",
            help="Print the result as one JSON object.",
            section=OUTPUT,
            is_flag=True,
        ),
        option(
            "-q",
            "--quiet",
            help="Say nothing but results and errors.",
            section=OUTPUT,
            is_flag=True,
        ),
        option("-v", "--verbose", help="Say more on stderr.", section=OUTPUT, is_flag=True),
    )
    decorated: Function = add(function)
    return decorated


def stack(*decorators: Decorator) -> Decorator:
    """Returns one decorator that adds several options, in the order of the help text."""

    def add(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def remarks_for(*, quiet: bool, verbose: bool) -> Remarks:
    """Returns the writer of remarks that -q and -v ask for; both together are a usage error."""
    if quiet and verbose:
        raise click.UsageError("-q and -v contradict each other", click.get_current_context())
    if quiet:
        return Remarks(Verbosity.QUIET)
    return Remarks(Verbosity.VERBOSE if verbose else Verbosity.NORMAL)


def _field_name(flag: str) -> str:
    """The field of `RunConfig` that an option fills: `--data-option` fills `data_options`."""
    name = flag.removeprefix("--").replace("-", "_")
    return next(field for field in (name, f"{name}s") if field in _DEFAULTS)


def _parse_pairs(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Value]:
    return parse_options(texts, param.opts[0]) if texts else {}
