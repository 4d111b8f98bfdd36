"""Options of commands: their types, help and shell completion, and options that commands share.

The declarations of `RunConfig` become click options here. `RunConfig` is imported by the commands
that have such options. An option that was not given is None (or an empty mapping), so that it does
not override a config file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedcli.cli.screen.output import Remarks, Verbosity, print_trace
from fedcli.errors import OwnCodeError
from fedcli.settings.sections import DATA as DATA
from fedcli.settings.sections import EVALUATION as EVALUATION
from fedcli.settings.sections import MODEL as MODEL
from fedcli.settings.sections import RUN as RUN
from fedcli.settings.sections import SECTIONS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from fedcli.settings.options import Value
    from fedcli.settings.values import Kind

Function = TypeVar("Function", bound=Callable[..., object])
Decorator = Callable[[Any], Any]

# The options of train whose allowed names are listed in the help text. Other tables are too long.
_LISTED = (
    *("algorithm", "aggregator", "client_optimizer", "server_optimizer"),
    *("client_schedule", "server_schedule"),
)
_NEAR = 0.75  # the least similarity of a suggestion to the typed word, from 0 to 1
# Headings of the help text, besides those of train.
FINE_TUNING = "Fine-tuning"
PICTURES = "Tables and pictures"
OUTPUT = "Output"


class SectionOption(click.Option):
    """An option with a heading in the help text and, if it takes names, a list of these."""

    def __init__(
        self,
        *args: Any,
        section: str,
        names: Callable[[], Iterable[str]] | None = None,
        **attributes: Any,
    ) -> None:
        """Stores the heading and the names, and passes the other arguments on to click.

        `names` is called when the help text is shown: the tables are imported then.
        """
        super().__init__(*args, **attributes)
        self.section = section
        self.names = names

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns flag and help text, with the names before the default."""
        record = super().get_help_record(ctx)
        if record is None or self.names is None:
            return record
        text, gap, default = record[1].partition("  [default: ")
        return record[0], f"{text} One of {', '.join(self.names())}.{gap}{default}"


class SectionCommand(click.Command):
    """A command whose help lists its options under headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments, and adds the command to usage errors that lack it."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        self._check_values(ctx, args)
        ctx.allow_extra_args = True  # refused below
        words = list(args)
        try:
            extra = super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            raise self._advised(err, ctx) from err
        except click.UsageError as err:
            err.ctx = err.ctx or ctx
            raise
        if extra:
            raise self._refused(extra, words, ctx)
        return extra

    def _refused(
        self, extra: Sequence[str], words: Sequence[str], ctx: click.Context
    ) -> click.UsageError:
        """The error about arguments that the command does not take, with a hint for the first."""
        from fedcli.cli.peer_options import advice_on_argument

        params = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        flags = [name for each in params if each.is_flag for name in each.opts]
        known = [name for each in params for name in each.opts]
        place = list(words).index(extra[0]) if extra[0] in words else 0
        advice = advice_on_argument(extra[0], words[place - 1] if place else None, flags, known)
        noun = "argument" if len(extra) == 1 else "arguments"
        hint = f"; {advice}" if advice else ""
        return click.UsageError(f"Got unexpected extra {noun} ({' '.join(extra)}){hint}", ctx)

    def _check_values(self, ctx: click.Context, args: list[str]) -> None:
        """Refuses an option as the value of another, such as `--out` in `--keep-best --out run`."""
        params = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        names = {name: each for each in params for name in each.opts if name.startswith("--")}
        words = iter(args[: args.index("--")] if "--" in args else args)
        for word in words:
            option = names.get(word)
            if option is None or option.is_flag or option.count:
                continue
            value = next(words, None)
            if value in names:
                raise click.UsageError(
                    f"Option {word!r} requires an argument, but {value!r} follows; "
                    f"if that is the value, write {word}={value}",
                    ctx,
                )

    def _advised(self, err: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
        """The error with a suggestion: a similar option, or fedcli's name for another tool's."""
        import difflib  # lazy: few commands need it

        from fedcli.cli.peer_options import advice_on

        known = [name for param in self.get_params(ctx) for name in param.opts]
        advice = advice_on(err.option_name, known) or self._file_argument(err.option_name, ctx)
        if advice:
            return click.UsageError(f"No such option {err.option_name!r}: {advice}", ctx)
        near = difflib.get_close_matches(err.option_name, err.possibilities or (), cutoff=_NEAR)
        return click.NoSuchOption(err.option_name, possibilities=near, ctx=ctx)

    def _file_argument(self, option: str, ctx: click.Context) -> str:
        """A hint for an option such as --out of a command that takes the file as an argument."""
        names = [each.make_metavar(ctx) for each in self.params if isinstance(each, click.Argument)]
        files = [name for name in names if name.startswith("FILE")]
        if option not in ("--out", "--output", "--file") or not files:
            return ""
        return f"{files[0]} is an argument; write {ctx.command_path} {' '.join(names)}"

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; -v shows where a user's own code failed."""
        try:
            return super().invoke(ctx)
        except OwnCodeError as err:
            if ctx.params.get("verbose"):
                from fedcli.settings.own.user_code import trace_lines

                print_trace(trace_lines(err))
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a block for each heading: those of train first, others in order of definition."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", OUTPUT), []).append(record)
        for title in (each for each, records in sections.items() if records):
            with formatter.section(title):
                formatter.write_dl(sections[title])


class OneValueCommand(SectionCommand):
    """A command that refuses a list of values for an option that takes one, and suggests a sweep.

    Attributes:
        sweep: The command that is suggested, before --grid; empty in `fedcli sweep` itself.
        named: Options whose value never has a comma in this command, besides choices and numbers.
    """

    sweep = ""
    named: Collection[str] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments, after a check for lists of values."""
        names = {name: each for each in self.params for name in each.opts}
        for word, value in _words_and_values(args):
            option = names.get(word)
            if "," in value and isinstance(option, SectionOption) and self._takes_one(option):
                key = f"--seeds {value}" if word == "--seed" else f"--grid {option.name}={value}"
                raise click.UsageError(
                    f"{word} takes one value; {self.sweep}{key} runs each of them", ctx
                )
        return super().parse_args(ctx, args)

    def _takes_one(self, option: SectionOption) -> bool:
        """Whether an option belongs to a run, and its value never has a comma."""
        from fedcli.settings.run_config import RunConfig  # lazy: only mistakes need it

        if option.name not in RunConfig.__dataclass_fields__:
            return False
        is_choice = option.names is not None or isinstance(option.type, click.Choice)
        return is_choice or option.type in (click.INT, click.FLOAT) or option.name in self.named


def _words_and_values(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word with the next word, and the two halves of each word with an equals sign."""
    yield from pairwise(args)
    for each in args:
        word, has_value, value = each.partition("=")
        if has_value:
            yield word, value


class Name(click.ParamType[str]):
    """A name from a table. The shell completes it; the library checks it."""

    name = "name"

    def __init__(self, table: Callable[[], Iterable[str]], *, or_path: bool = False) -> None:
        """Completes names of the table and, if `or_path`, file names.

        `table` is called on completion.
        """
        self.table = table
        self.or_path = or_path

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Returns the placeholder of the value in the help text."""
        return "NAME|PATH" if self.or_path else "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the names that start with the typed word."""
        from click.shell_completion import CompletionItem  # lazy: only completion needs it

        items = [CompletionItem(name) for name in self.table() if name.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="file")] if self.or_path else items


class RunFolder(click.Path):
    """The path of a run. The shell completes it to the folders of runs."""

    def __init__(self, *, or_parent: bool = False) -> None:
        """Completes runs and, if `or_parent`, folders that hold some."""
        super().__init__(path_type=Path)
        self.or_parent = or_parent

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the folders whose paths start with the typed text."""
        from click.shell_completion import CompletionItem  # lazy: only completion needs these

        from fedcli.cli import run_folders

        found = run_folders.find(incomplete, has_parents=self.or_parent)
        return list(map(CompletionItem, found))


class OutputFile(click.Path):
    """The path of a file to write. A path that ends in a slash names a folder and is refused."""

    def __init__(self) -> None:
        """Makes paths of `pathlib`, which drops a slash at the end."""
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path; raises a usage error if it is a folder's."""
        if isinstance(value, str) and value.endswith(("/", "/.", "/..")):
            self.fail(f"{value!r} is the name of a folder; give the name of a file", param, ctx)
        return super().convert(value, param, ctx)


class Readable(click.ParamType[Any]):
    """The click type of a kind of values."""

    def __init__(self, kind: Kind) -> None:
        """Takes the kind, whose metavar names the type."""
        self.name = kind.metavar
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the value that the kind reads; raises a usage error if it cannot."""
        try:
            return self.kind.read(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


def option(*names: str, help: str, section: str, **attributes: Any) -> Decorator:
    """Returns an option under a heading of the help text."""
    return click.option(*names, help=help, section=section, cls=SectionOption, **attributes)


def run_option(name: str, *, help: str | None = None, metavar: str | None = None) -> Decorator:
    """Returns the option that a field of `RunConfig` declares.

    Args:
        name: The field.
        help: Help text in a command other than train; None: as declared, with the default.
        metavar: Placeholder of the value there; None: as declared.
    """
    from fedcli.settings.declaration import option_name
    from fedcli.settings.run_config import OPTIONS

    declared = OPTIONS[name]
    flag, kind, section = option_name(name), declared.kind, declared.section
    text = declared.help_with_default if help is None else help
    if declared.owner:
        complete = partial(_complete_pair, declared.owner)
        return pairs_option(flag, name, help=text, section=section, shell_complete=complete)
    if kind.read is bool:
        return option(flag, name, help=text, section=section, is_flag=True, default=None)
    shown = metavar or kind.metavar or None
    return option(
        flag,
        name,
        help=text,
        section=section,
        type=_click_type(kind),
        metavar=shown,
        names=kind.names if name in _LISTED else None,
    )


def run_options(function: Function) -> Function:
    """Adds an option for each field of `RunConfig`."""
    from fedcli.settings.run_config import OPTIONS

    decorated: Function = stack(*map(run_option, OPTIONS))(function)
    return decorated


def _complete_pair(
    owner: str, ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes `k=` for the options of the row that the value or default of `owner` names."""
    from click.shell_completion import CompletionItem

    from fedcli.settings.run_config import OPTIONS

    declared = OPTIONS[owner]
    chosen = str(ctx.params.get(owner) or declared.default or declared.usual)
    table: Mapping[str, Any] = declared.kind.names() if declared.kind.names else {}
    is_switch = declared.kind.read is bool
    rows = [table[name] for name in (table if is_switch else chosen.split("+")) if name in table]
    return [
        CompletionItem(f"{option.name}=", help=option.doc)
        for row in rows
        for option in row.options
        if option.name.startswith(incomplete)
    ]


def pairs_option(flag: str, name: str, *, help: str, section: str, **attributes: Any) -> Decorator:
    """Returns a repeatable `k=v` option whose values arrive as one mapping, under a name."""
    return option(
        flag,
        name,
        help=help,
        section=section,
        multiple=True,
        metavar="K=V",
        callback=_parse_pairs,
        **attributes,
    )


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, to override those of a config or a run."""
    return {name: value for name, value in values.items() if value is not None and value != {}}


def data_options(*, clients_metavar: str | None = None, **helps: str) -> Decorator:
    """Returns the options that name the data, for commands other than train.

    Args:
        clients_metavar: Placeholder of --clients; None: that of --eval-clients.
        helps: Help texts by field, if they differ from those of train.
    """
    from fedcli.settings.run_config import OPTIONS, READING_FIELDS

    metavars = {"clients": clients_metavar or OPTIONS["eval_clients"].kind.metavar}
    return stack(
        *(
            run_option(name, help=helps.get(name, OPTIONS[name].help), metavar=metavars.get(name))
            for name in READING_FIELDS
        )
    )


def code_option(*, section: str) -> Decorator:
    """Returns --model of the commands that take a model from a run."""
    return option(
        "--model",
        help="The Python file of the run's model, if it is Python code. No code runs unless you "
        "name it.",
        section=section,
        metavar="FILE.py[:FUNCTION]",
    )


def best_option(*, section: str) -> Decorator:
    """Returns --best of the commands that take a model from a run."""
    return option(
        "--best",
        help="Use the checkpoint of the best round, if the run had --keep-best. Default: the "
        "newest.",
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
            help="Print only results and errors.",
            section=OUTPUT,
            is_flag=True,
        ),
        option(
            "-v", "--verbose", help="Print more details on stderr.", section=OUTPUT, is_flag=True
        ),
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
    """Returns the writer of remarks for -q and -v; both together are a usage error."""
    if quiet and verbose:
        raise click.UsageError("-q and -v contradict each other", click.get_current_context())
    if quiet:
        return Remarks(Verbosity.QUIET)
    return Remarks(Verbosity.VERBOSE if verbose else Verbosity.NORMAL)


def _click_type(kind: Kind) -> Any:
    """The click type that reads and completes a kind of values."""
    if kind.choices:
        return click.Choice(kind.choices)
    if kind.names is not None:
        return Name(kind.names, or_path=kind.is_path is not None)
    if kind.is_path is not None:
        return click.Path()
    return kind.read if kind.read in (int, float, str) else Readable(kind)


def check_outputs(*files: Path | None) -> None:
    """Checks, before any work, that files can be written."""
    from fedcli.outputs import check_output

    for file in files:
        if file is not None:
            check_output(file)


def note_links(remarks: Remarks, *files: Path | None) -> None:
    """Writes a remark for each written file that was given as a link."""
    from fedcli.outputs import link_note

    for note in [link_note(file) for file in files if file is not None]:
        if note is not None:
            remarks.note(note)


def _parse_pairs(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Value]:
    from fedcli.settings.toml_values import parse_options

    return parse_options(texts, param.opts[0]) if texts else {}
