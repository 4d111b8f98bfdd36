"""Runs code that users wrote. A failure in it becomes one line that names file and line."""

from __future__ import annotations

import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from fedcli.digest import blake2b
from fedcli.errors import FedcliError, ModelError, OwnCodeError, PartError
from fedcli.files import read_bounded

MODEL = "model"
MAX_CODE_BYTES = 16 << 20  # of a Python file

_PACKAGE = Path(__file__).parents[2]
# Where code is that users did not write: of Python itself, and what was installed.
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")


@contextmanager
def running(
    what: str, file: str, noun: str = MODEL, *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turns an exception of a user's code into an `OwnCodeError`, whose cause it becomes.

    Args:
        what: What runs, for the message: the name of a function.
        file: Where the code is; see `where`.
        noun: What the code makes: "model", "algorithm", ...
        passing: Exceptions that are not the code's own and pass through as they are.
    """
    try:
        yield
    except OwnCodeError:
        raise
    except passing:
        raise
    except FedcliError as err:
        raise error_of(noun)(f"{where(err, file)}: {what}: {err}") from err
    except (Exception, SystemExit) as err:
        text = f"{where(err, file)}: {what}: {reason(err)}; mend the {noun}"
        raise error_of(noun)(text) from err


def error_of(noun: str) -> type[OwnCodeError]:
    """Returns the error of a user's model, or of another part."""
    return ModelError if noun == MODEL else PartError


def read_code(path: Path, noun: str = MODEL) -> bytes:
    """Returns what stands in a file of a user's code.

    Raises:
        OwnCodeError: It cannot be read.
    """
    try:
        return read_bounded(path, MAX_CODE_BYTES)
    except OSError as err:
        raise error_of(noun)(f"cannot read the {noun} {path}: {err.strerror or err}") from err


def fingerprint(path: Path, noun: str = MODEL) -> str:
    """Returns the BLAKE2b of a file of a user's code, in hexadecimal.

    Raises:
        OwnCodeError: It cannot be read.
    """
    return blake2b(read_code(path, noun), digest_size=32).hexdigest()


def module_name(path: Path, source: bytes) -> str:
    """Returns what the module of a file is called: another name for another content or place."""
    return f"fedcli_own_{blake2b(source + str(path).encode(), digest_size=8).hexdigest()}"


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Has imports look in a folder first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have removed it itself
            sys.path.remove(str(folder))


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


def method_place(part: object, method: str) -> str:
    """Returns "file:line: method" of a method that an object has, perhaps of its own."""
    return f"{place(getattr(part, method))}: {method}"


def source_file(thing: Any) -> str:
    """Returns the file that a class, function or an object's class was written in, or nothing."""
    target = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    try:
        return inspect.getsourcefile(target) or ""
    except TypeError:
        return ""


def load_module(path: Path, source: bytes, name: str, noun: str = MODEL) -> ModuleType:
    """Returns the module that some source makes; no file is written.

    Args:
        path: The file it is of, for messages.
        source: Its content.
        name: Of the module.
        noun: What the code makes.

    Raises:
        OwnCodeError: The source does not compile, or fails as it runs.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses, and messages, look for a class's module
    try:
        with running("importing the file", str(path), noun):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def defined_in(module: ModuleType) -> list[str]:
    """Returns the public functions and classes that a module defines itself, in their order."""
    return [
        name
        for name, each in vars(module).items()
        if (inspect.isfunction(each) or inspect.isclass(each))
        and each.__module__ == module.__name__
        and not name.startswith("_")
    ]


def call_with(
    function: Callable[..., Any],
    offered: Mapping[str, Any],
    wanted: Mapping[str, Any],
    file: str,
    noun: str = MODEL,
    *,
    passing: tuple[type[BaseException], ...] = (),
) -> Any:
    """Returns what a function returns, called by name.

    Args:
        function: The function, or class.
        offered: Arguments of which it is given those that it has.
        wanted: Arguments that it must have: the options of the user.
        file: Where its code is, for messages.
        noun: What the code makes.
        passing: See `running`.

    Raises:
        OwnCodeError: It needs others, does not have one of `wanted`, or fails.
    """
    option = f"--{noun.replace(' ', '-')}-option"
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
        raise error_of(noun)(
            f"{place(function)}: {name} needs {', '.join(missing)}; it is called with "
            f"{', '.join(offered)}: give the others defaults, or pass {option} {missing[0]}="
        )
    if unknown and not takes_any:
        raise error_of(noun)(
            f"{place(function)}: {option} {unknown[0]}: {name} has no such parameter; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    with running(name, file, noun, passing=passing):
        return function(**given)


def trace_lines(error: OwnCodeError) -> list[str]:
    """Returns the traceback of a user's exception, from their code on; nothing without one."""
    cause = error.__cause__
    if cause is None:
        return []
    trace = cause.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        trace = trace.tb_next
    lines = traceback.format_exception(type(cause), cause, trace)
    return [line for text in lines for line in text.rstrip("\n").split("\n")]


def where(err: BaseException, file: str, otherwise: str = "") -> str:
    """Returns "file:line" of the user's code that an exception comes from.

    Args:
        err: The exception.
        file: Where the code is: the line is the innermost one there, or else the innermost one in
            another file of the user's.
        otherwise: What is returned if no line of the user's is in it; empty: `file`, or if that is
            empty, too, the innermost line of all.
    """
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if file and frame.filename == file]
    own = own or [frame for frame in frames if _is_user_s(frame.filename)]
    if not own and (otherwise or file):
        return otherwise or file
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _is_user_s(file: str) -> bool:
    """Whether a file is neither ours nor Python's, nor was installed."""
    folders = [_PACKAGE, *(Path(sysconfig.get_path(name)) for name in _INSTALLED)]
    path = Path(file)
    return path.is_absolute() and not any(path.is_relative_to(each) for each in folders)


def reason(err: BaseException) -> str:
    """Returns what kind of exception it is, and what it says, on one line."""
    text = err.msg if isinstance(err, SyntaxError) else " ".join(str(err).split())
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
