"""Plain output: JSON on stdout, remarks on stderr. It imports no rich, so `--json` is quick."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterable, Mapping

from fedcli.errors import shortened


class Verbosity(enum.IntEnum):
    """How much a command writes to stderr beside its results."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Remarks:
    """Writes remarks of one line to stderr; -q and -v decide which.

    Attributes:
        verbosity: The verbosity of the command.
        write: Writes one line; a live display replaces it while it is shown.
    """

    def __init__(self, verbosity: int) -> None:
        """Keeps the verbosity of one command."""
        self.verbosity = Verbosity(verbosity)
        self.write: Callable[[str], None] = _write_line

    def note(self, text: str) -> None:
        """Writes a remark that the user should know; -q hides it."""
        if self.verbosity >= Verbosity.NORMAL:
            self.write("fedcli: " + one_line(shortened(text)))

    def detail(self, text: str) -> None:
        """Writes a remark that only -v shows."""
        if self.verbosity >= Verbosity.VERBOSE:
            self.write("fedcli: " + one_line(shortened(text)))


def _write_line(text: str) -> None:
    print(text, file=sys.stderr)


def print_trace(lines: Iterable[str]) -> None:
    """Prints the traceback of a user's own code to stderr."""
    for line in lines:
        print(one_line(line), file=sys.stderr)


def print_json(result: Mapping[str, object]) -> None:
    """Prints one JSON object on one line of stdout, null for numbers that are not finite."""
    from fedcli.files import json_text  # lazy: it loads json, which --help does not need

    print(json_text(result))


def printable(text: str) -> str:
    """Returns text of several lines in which every code that is not a character is escaped.

    Therefore text from a file cannot move the cursor, set the title or change colours.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )


def one_line(text: str) -> str:
    """Returns text with line breaks as spaces and other unprintable characters escaped.

    Names in messages come from files; they must not move the cursor or fail to encode.
    """
    joined = " ".join(text.splitlines())
    if joined.isprintable():
        return joined
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in joined)


_IN_ASCII = {"±": "+-", "…": "..."}


def stdout_line(text: str) -> str:
    """Returns `one_line` of a text; signs that stdout cannot encode are written in ASCII."""
    line = one_line(text)
    for sign, in_ascii in _IN_ASCII.items():
        if sign in line and not _can_encode(sign):
            line = line.replace(sign, in_ascii)
    return line


def _can_encode(char: str) -> bool:
    try:
        char.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
