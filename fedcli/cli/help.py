"""`fedcli help`: the pages of the manual, in the terminal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from fedcli.cli import options as opt
from fedcli.cli.screen.output import one_line, print_json
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural
from fedcli.settings.options import did_you_mean

MANUAL = Path(__file__).parents[1] / "manual"
# The pages in the order of the list. Each is a file NAME.md of `MANUAL`, whose first line is
# "# Title: what the page is about".
TOPICS = (
    *("tutorial", "coming-from", "python", "data", "own-data", "formats", "known-sets", "models"),
    *("algorithms", "robustness", "privacy", "communication", "audits", "runs", "sweeps"),
    *("reports", "metrics", "inspecting"),
    *("cluster", "extending", "numbers", "files", "limits", "changes"),
)
# For names of other programs, the page that covers them.
ALIASES = {
    **dict.fromkeys(("tff", "tensorflow", "fedjax", "flower"), "coming-from"),
    **dict.fromkeys(("keras", "pytorch", "torch"), "models"),
}
SEARCHING = "Searching"
NOTEBOOK = "Notebook"
_MAX_SHOWN = 3  # lines of a page that a search prints, and pages that a message names


@dataclass(frozen=True)
class Page:
    """A page of the manual.

    Attributes:
        name: Its topic.
        text: All of it, in Markdown.
    """

    name: str
    text: str

    @property
    def summary(self) -> str:
        """What the page is about: the part of its first line after the colon."""
        return self.text.partition("\n")[0].partition(": ")[2]

    def lines_with(self, text: str) -> list[tuple[int, str]]:
        """Returns the lines with the most words of `text`, with their numbers from 1.

        There are none if the page lacks one of the words. Upper and lower case are equal.
        """
        words = text.lower().split()
        if not words or not all(word in self.text.lower() for word in words):
            return []
        lines = [*enumerate(self.text.splitlines(), start=1)]
        counts = [sum(word in line.lower() for word in words) for _, line in lines]
        most = max(counts)
        return [line for line, count in zip(lines, counts, strict=True) if count == most]


@click.command("help", cls=opt.SectionCommand)
@click.argument("topic", required=False, type=opt.Name(lambda: TOPICS))
@opt.option(
    "--search",
    metavar="WORDS",
    help="List the pages that contain all WORDS, in upper or lower case, and the first lines with "
    "most of them. Quote several words.",
    section=SEARCHING,
)
@opt.option(
    "--notebook",
    "notebook_file",
    metavar="FILE.ipynb",
    help="Write the page of TOPIC as a Jupyter notebook, whose cells can be run one by one.",
    section=NOTEBOOK,
    type=opt.OutputFile(),
)
@opt.option("--force", help="Replace FILE.ipynb if it exists.", section=NOTEBOOK, is_flag=True)
@opt.output_options
def show_help(
    *,
    topic: str | None,
    search: str | None,
    notebook_file: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show a page of the manual; without TOPIC, list the pages.

    In a terminal the page opens in the pager (PAGER chooses it); in a pipe it is Markdown.
    The options of a command: fedcli COMMAND -h.

    \b
    Examples:
      fedcli help
      fedcli help tutorial
      fedcli help files > files.md
      fedcli help --search dirichlet
      fedcli help --search 'keras export'
      fedcli help tutorial --notebook tutorial.ipynb
    """  # noqa: D301 - \b keeps click from wrapping
    opt.remarks_for(quiet=quiet, verbose=verbose)
    if topic is not None and search is not None:
        raise click.UsageError(
            "--search looks through all pages; leave TOPIC out, or quote several words, as in "
            f"--search '{search} {topic}'",
            click.get_current_context(),
        )
    if force and notebook_file is None:
        raise click.UsageError("--force needs --notebook FILE", click.get_current_context())
    if notebook_file is not None:
        _write_notebook(topic, notebook_file, force=force, as_json=as_json, quiet=quiet)
    elif search is not None:
        _show_found(search, as_json=as_json)
    elif topic is not None:
        _show_page(_read(topic), as_json=as_json)
    else:
        _show_list(as_json=as_json)


def _read(topic: str) -> Page:
    """The page of a topic or an alias; a ConfigError if there is none."""
    topic = ALIASES.get(topic.lower(), topic)
    if topic not in TOPICS:
        raise ConfigError(f"the manual has no page '{topic}'; {_hint(topic)}")
    return Page(topic, (MANUAL / f"{topic}.md").read_text(encoding="utf-8"))


def _hint(topic: str) -> str:
    """The end of the message about an unknown page: where else the topic may be described."""
    similar = did_you_mean(topic, [*TOPICS, *ALIASES]).removeprefix("; ")
    named = _command_hint(topic) or _info_hint(topic)
    hints = [named or similar, _pages_with(topic) if named or not similar else ""]
    if not any(hints):
        return f"choose one of {', '.join(TOPICS)}, or find pages with fedcli help --search WORD"
    return "; ".join(each for each in [*hints, "fedcli help lists all pages"] if each)


def _command_hint(topic: str) -> str:
    """A hint if a topic is the name of a command; else empty."""
    context = click.get_current_context().find_root()
    group = context.command
    if not isinstance(group, click.Group) or topic not in group.list_commands(context):
        return ""
    return f"'fedcli {topic} -h' shows the options of that command"


def _info_hint(topic: str) -> str:
    """A hint if a topic is something that can be chosen by name; else empty."""
    table = _table_of(topic)
    return "" if table is None else f"fedcli info {topic} describes it"


def _table_of(topic: str) -> str | None:
    """The first table of `fedcli info` that has a row with this name or alias; None if none has."""
    from fedcli.cli.info_tables import TABLES  # lazy: only mistakes need it

    for name, table in TABLES.items():
        if any(topic in (row.name, *row.aliases) for row in table.values()):
            return name
    return None


def _pages_with(topic: str) -> str:
    """A hint that names the pages with most lines that contain a word; else empty.

    The page on the table that has this name comes first.
    """
    word = re.compile(rf"(?<![\w-]){re.escape(topic)}(?![\w-])", re.IGNORECASE)
    counts = {
        name: sum(word.search(line) is not None for line in _read(name).text.splitlines())
        for name in TOPICS
        if topic.strip()
    }
    found = sorted(filter(counts.get, counts), key=lambda name: -counts[name])
    table = _table_of(topic)
    found = [*(name for name in found if name == table), *(name for name in found if name != table)]
    if not found:
        return ""
    noun = "page" if len(found) == 1 else "pages"
    shown = f"{noun} with '{topic}': {', '.join(found[:_MAX_SHOWN])}"
    if len(found) <= _MAX_SHOWN:
        return shown
    more = len(found) - _MAX_SHOWN
    return f"{shown} and {more} more (fedcli help --search {shlex.quote(topic)})"


def _show_page(page: Page, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": page.name, "summary": page.summary, "text": page.text})
        return
    from fedcli.cli.screen.text_screen import needs_rich

    if not needs_rich():
        click.echo(page.text, nl=False)
        return
    from fedcli.cli.screen.render import Screen

    click.echo_via_pager(Screen().markdown(page.text))


def _write_notebook(
    topic: str | None, file: Path, *, force: bool, as_json: bool, quiet: bool
) -> None:
    """Writes the page of a topic as a notebook. An existing one may hold the user's own cells."""
    if topic is None:
        raise click.UsageError(
            "--notebook writes one page: give its TOPIC", click.get_current_context()
        )
    from fedcli.cli.screen.notebook import MODEL_FILE, notebook_of
    from fedcli.files import text_bytes
    from fedcli.outputs import write_output

    if file.suffix != ".ipynb":
        raise ConfigError(f"--notebook {file}: choose a name that ends in .ipynb")
    opt.check_outputs(file)
    if file.exists() and not force:
        raise ConfigError(
            f"--notebook {file} exists; choose another name, or add --force to replace it"
        )
    text = notebook_of(_read(topic).text, {MODEL_FILE: _read("models").text})
    if text is None:
        raise ConfigError(f"the page '{topic}' has no Python code; choose tutorial or models")
    write_output(file, text_bytes(text))
    if as_json:
        print_json({"file": str(file)})
    elif not quiet:
        click.echo(f"Wrote {one_line(str(file))}; to open it: jupyter lab {one_line(str(file))}")


def _show_list(*, as_json: bool) -> None:
    pages = [_read(topic) for topic in TOPICS]
    if as_json:
        print_json({"pages": [{"name": page.name, "summary": page.summary} for page in pages]})
        return
    from fedcli.cli.screen.text_screen import open_text_screen

    screen = open_text_screen()
    screen.title("The manual")
    screen.prose((f"  {page.name}", page.summary) for page in pages)
    screen.line("")
    screen.line("fedcli help TOPIC shows a page, fedcli help --search WORDS finds pages.")


def _show_found(words: str, *, as_json: bool) -> None:
    pages = [_read(topic) for topic in TOPICS]
    found = [(page, lines) for page in pages if (lines := page.lines_with(words))]
    if not found:
        raise ConfigError(
            f"no page of the manual contains {_quoted(words)}; try fewer or shorter words, or "
            "fedcli info, which lists all that can be chosen by name"
        )
    if as_json:
        print_json({"word": words, "pages": [_describe(page, lines) for page, lines in found]})
        return
    from fedcli.cli.screen.text_screen import open_text_screen

    screen = open_text_screen()
    for page, lines in found:
        count = plural(len(lines), "line")
        screen.title(f"{page.name}: {count}")
        for _, line in lines[:_MAX_SHOWN]:
            screen.line(f"  {line.strip()}")


def _quoted(words: str) -> str:
    """The words of a search, each in quotes."""
    return " and ".join(f"'{word}'" for word in words.split() or [words])


def _describe(page: Page, lines: list[tuple[int, str]]) -> dict[str, Any]:
    """A page and its lines as JSON."""
    return {
        "name": page.name,
        "summary": page.summary,
        "lines": [{"line": number, "text": line} for number, line in lines],
    }
