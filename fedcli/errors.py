"""The errors fedcli raises on purpose: each is one line that says what is wrong and what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from fedcli.lazy import load

# What the user can do after a failed write, by errno.
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "choose another place, or get permission to write there",
    errno.EPERM: "choose another place, or get permission to write there",
    errno.EEXIST: "choose another name",
    errno.ENOTDIR: "choose another place",
}


MAX_MESSAGE = 1000  # characters of a message, which may quote a longer text from a file
_MAX_SHOWN = 60  # characters of a value in a message


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Returns the text, or its beginning and end if it has more than `most` characters."""
    if len(text) <= most:
        return text
    note = f" [... {len(text):,} characters ...] "
    end = (most - len(note)) // 3  # keep the end, which says what to do
    return text[: most - len(note) - end] + note + text[-end:]


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun, for messages: "1 client", "2,000 classes"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


class FedcliError(Exception):
    """An error that the user can correct. Its message is one line of bounded length."""

    def __str__(self) -> str:
        """Returns the message, shortened in the middle to `MAX_MESSAGE` characters."""
        return shortened(super().__str__())


class ConfigError(FedcliError):
    """An option, or a combination of options, that is not allowed."""


class DataError(FedcliError):
    """A data file, client or example that cannot be used."""


class OwnCodeError(FedcliError):
    """The user's own code fails. If it raised an exception, that is the `__cause__`."""


class ModelError(OwnCodeError):
    """The user's own model fails, or breaks the contract of models."""


class PartError(OwnCodeError):
    """Another part that the user wrote, such as an algorithm, fails or breaks its contract."""


class RunError(FedcliError):
    """A run directory that cannot be made, locked, read or continued."""


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, of another version, or not a checkpoint of fedcli."""


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by a callback to end the run after the round with which it was called."""


def why_not_written(err: OSError) -> str:
    """Returns why a write failed and, where it is known, what the user can do about it."""
    reason = err.strerror or str(err)
    remedy = _REMEDIES.get(err.errno or 0)
    return reason if remedy is None else f"{reason}; {remedy}"


def shown(value: object) -> str:
    """Returns a value as a message shows it: as `shown_repr`, but a text without quotes."""
    if isinstance(value, str) and value and value.isprintable():
        return _cut(value)
    return shown_repr(value)


def shown_repr(value: object) -> str:
    """Returns the repr of a value on one line of at most 60 characters."""
    return _cut(" ".join(repr(value).split()))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


# ---- Options as the command line names them, and as Python does ---------------------------------

Function = TypeVar("Function", bound=Callable[..., Any])

# Patterns are compiled when a message needs them.
_COMMAND = r"\bfedcli [a-z-]+(?: [^;,()]*)?"
_CODE = r"(?<![\w-])--([a-z][a-z0-9-]*) ([^\s;,]*\.py(?::\w+)?)"
# An option with its value is recognised at the start of a message, an option alone anywhere.
_GIVEN = r"^--([a-z][a-z0-9-]*) ([^\s:;,]+)(?=:| with | exceeds | and )"
_OPTION = r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)"
# Inside a message, options with values follow such a word: "; choose --algorithm fedavg".
_PAIR = r"--([a-z][a-z0-9-]*) ((?!(?:and|or|to)\b)[a-z0-9](?:[\w.+=-]*\w)?)"
_PAIRS = (
    r"\b(?P<word>write|pass|give|choose|use|in|with|or|and)"
    rf"(?P<pairs>(?: {_PAIR})+)(?=[;,.)]|$| (?:or|and) )"
    r"(?!, \w[\w-]*(?:[,;]|$| (?:or|and) ))"  # several values, as in `--algorithm fedavg, mime`
)
_SWITCHES = {"force": "force=True", "best": "best=True", "fresh-weights": "fresh_weights=True"}
_FUNCTIONS = {"resume": "fedcli.resume", "config": "RunConfig"}

_num_command_lines = 0


@contextmanager
def on_command_line() -> Iterator[None]:
    """Records, until the context is left, that the reader of the messages typed a command."""
    global _num_command_lines
    _num_command_lines += 1
    try:
        yield
    finally:
        _num_command_lines -= 1


def in_python(text: str, renamed: dict[str, str] | None = None) -> str:
    """Returns a message with the options of the command line as Python names them.

    `--client-lr -1: choose ...` becomes `client_lr=-1: choose ...`. Whole commands stay.

    Args:
        text: The message.
        renamed: Names of options in the called function, if they differ.
    """
    names = renamed or {}

    def name(option: str) -> str:
        if option in names:
            return names[option]
        plural = f"{option}s" if option.endswith("-option") else option
        return plural.replace("-", "_")

    def alone(found: re.Match[str]) -> str:
        option = found[1]
        return _SWITCHES.get(option) or _FUNCTIONS.get(option) or name(option)

    def argument(option: str, value: str) -> str:
        key, equals, inner = value.partition("=")
        if equals and option.endswith("-option"):
            return f'{name(option)}={{"{key}": {_python_value(inner)}}}'
        return f"{name(option)}={_python_value(value)}"

    def arguments(found: re.Match[str]) -> str:
        pairs = re.findall(_PAIR, found["pairs"])
        return f"{found['word']} {', '.join(argument(*pair) for pair in pairs)}"

    def translated(piece: str) -> str:
        piece = re.sub(_CODE, lambda found: f"{name(found[1])}={found[2]!r}", piece)
        piece = re.sub(_PAIRS, arguments, piece)
        return re.sub(_OPTION, alone, piece)

    pieces, end = [], 0
    text = re.sub(_GIVEN, lambda found: f"{name(found[1])}={found[2]}", text)
    for command in re.finditer(_COMMAND, text):
        pieces += [translated(text[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*pieces, translated(text[end:])])


def _python_value(text: str) -> str:
    """Returns a value of an option as Python code: a number, or a text in quotes."""
    return text if re.fullmatch(r"[0-9.]+(?:e-?[0-9]+)?", text) else f'"{text}"'


def worded(text: str) -> str:
    """Returns a message that names options as its reader does: in a command or in Python."""
    return text if _num_command_lines else in_python(text)


def speaks_python(*more: str, **renamed: str) -> Callable[[Function], Function]:
    """Returns a decorator that makes errors name options as Python does, unless a command runs.

    An error about an unknown argument says what to write instead.

    Args:
        more: Names of arguments that the function takes as `**named`.
        renamed: For each option whose name differs in the function, the name of its parameter.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def speaking(*args: Any, **named: Any) -> Any:
            try:
                return function(*args, **named)
            except FedcliError as err:
                if not _num_command_lines and err.args:
                    err.args = (in_python(str(err.args[0]), renamed), *err.args[1:])
                raise
            except TypeError:
                refuse_unknown(function.__name__, named, [*parameters_of(function), *more])
                raise

        return speaking  # type: ignore[return-value]

    return decorate


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Returns the names of a function's arguments, without those that it takes as `**named`."""
    from inspect import Parameter, signature  # lazy: only errors need it

    parameters = signature(function).parameters.values()
    return [each.name for each in parameters if each.kind != Parameter.VAR_KEYWORD]


def refuse_unknown(
    function: str, given: Collection[str], known: Collection[str], noun: str = "argument"
) -> None:
    """Raises TypeError for unknown arguments. The message says which names fedcli uses, if known.

    Args:
        function: The function or class.
        given: Names of the given keyword arguments.
        known: Names of the arguments that the function has.
        noun: What messages call an argument.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        about = load("fedcli.settings.tables.peer_names:about_argument")
        each = "; no ".join(f"{noun} {name!r}{about(name, known)}" for name in unknown)
        raise TypeError(f"{function} has no {each}") from None
