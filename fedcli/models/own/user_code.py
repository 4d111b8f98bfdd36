"""Runs code that users wrote. A failure in it becomes one line that names file and line."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fedcli.errors import FedcliError, ModelError

_PACKAGE = Path(__file__).parents[2]


@contextmanager
def running(what: str, file: str) -> Iterator[None]:
    """Turns an exception of a user's code into a `ModelError`, whose cause it becomes.

    Args:
        what: What runs, for the message: the name of a function.
        file: Where the code is; the line is the innermost one there, or else the innermost of all,
            and none if that is ours.
    """
    try:
        yield
    except ModelError:
        raise
    except FedcliError as err:
        raise ModelError(f"{_where(err, file)}: {what}: {err}") from err
    except (Exception, SystemExit) as err:
        raise ModelError(f"{_where(err, file)}: {what}: {_reason(err)}; mend the model") from err


def place(function: Any) -> str:
    """Returns "file:line" of a function, method, class or object, or what kind of thing it is."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    target = getattr(function, "__func__", function)
    if not hasattr(target, "__code__") and not isinstance(target, type):
        target = type(target)
    try:
        file = inspect.getsourcefile(target)
        line = inspect.getsourcelines(target)[1]
    except (OSError, TypeError):
        return getattr(target, "__qualname__", type(target).__name__)
    return f"{file}:{line}"


def source_file(thing: Any) -> str:
    """Returns the file that a class, function or an object's class was written in, or nothing."""
    target = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    try:
        return inspect.getsourcefile(target) or ""
    except TypeError:
        return ""


def load_module(path: Path, source: bytes, name: str) -> ModuleType:
    """Returns the module that some source makes; no file is written.

    Args:
        path: The file it is of, for messages.
        source: Its content.
        name: Of the module.

    Raises:
        ModelError: The source does not compile, or fails as it runs.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses, and messages, look for a class's module
    with running("importing the file", str(path)):
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def call_with(
    function: Callable[..., Any], offered: Mapping[str, Any], wanted: Mapping[str, Any], file: str
) -> Any:
    """Returns what a function returns, called by name.

    Args:
        function: The function, or class.
        offered: Arguments of which it is given those that it has.
        wanted: Arguments that it must have.
        file: Where its code is, for messages.

    Raises:
        ModelError: It needs others, does not have one of `wanted`, or fails.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []  # of C code, which tells nothing
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {each.name for each in parameters if each.kind in by_name}
    given = {name: each for name, each in offered.items() if takes_any or name in names}
    given.update(wanted)
    single = (inspect.Parameter.POSITIONAL_ONLY, *by_name)
    needed = {
        each.name for each in parameters if each.default is each.empty and each.kind in single
    }
    missing, unknown = sorted(needed - given.keys()), sorted(wanted.keys() - names)
    name = getattr(function, "__name__", "the function")
    if missing:
        raise ModelError(
            f"{place(function)}: {name} needs {', '.join(missing)}; it is called with "
            f"{', '.join(offered)}: give the others defaults, or pass --model-option {missing[0]}="
        )
    if unknown and not takes_any:
        raise ModelError(
            f"{place(function)}: --model-option {unknown[0]}: {name} has no such parameter; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    with running(name, file):
        return function(**given)


def trace_lines(error: ModelError) -> list[str]:
    """Returns the traceback of a user's exception, from their code on; nothing without one."""
    cause = error.__cause__
    if cause is None:
        return []
    trace = cause.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        trace = trace.tb_next
    lines = traceback.format_exception(type(cause), cause, trace)
    return [line for text in lines for line in text.rstrip("\n").split("\n")]


def _where(err: BaseException, file: str) -> str:
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if file and frame.filename == file]
    frame = (own or frames)[-1]
    if Path(frame.filename).is_relative_to(_PACKAGE):
        return file  # our call never got into the user's code
    return f"{frame.filename}:{frame.lineno}"


def _reason(err: BaseException) -> str:
    text = err.msg if isinstance(err, SyntaxError) else " ".join(str(err).split())
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
