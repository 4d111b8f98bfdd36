"""Runs users' own code. If it fails, the error is one line that names the file and the line."""

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
# Folders of code that the user did not write: Python's own and that of installed packages.
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
# Names of folders of installed packages, wherever they are.
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@contextmanager
def running(
    what: str, file: str, noun: str = MODEL, *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Re-raises an exception of the user's code as an `OwnCodeError` with that exception as cause.

    Args:
        what: The name of the function that runs, for the message.
        file: The file of the code; see `where`.
        noun: The kind of part: "model", "algorithm", ...
        passing: Exceptions that do not come from the user's code and are not wrapped.
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
        remedy = _how_to_install(err) or f"correct the code of the {noun}"
        text = f"{where(err, file)}: {what}: {reason(err)}; {remedy}"
        raise error_of(noun)(text) from err


def _how_to_install(err: BaseException) -> str:
    """Returns how to install the package that an import did not find; empty for another error."""
    if not isinstance(err, ModuleNotFoundError) or not err.name:
        return ""
    package = err.name.partition(".")[0]
    if package == "torch":
        return "run pip install 'fedcli[torch]'"
    return f"install the package that has {package}, or correct the import"


def error_of(noun: str) -> type[OwnCodeError]:
    """Returns the error class: `ModelError` for models, `PartError` for other parts."""
    return ModelError if noun == MODEL else PartError


def read_code(path: Path, noun: str = MODEL) -> bytes:
    """Returns the content of a user's Python file.

    Raises:
        OwnCodeError: The file cannot be read.
    """
    try:
        return read_bounded(path, MAX_CODE_BYTES)
    except OSError as err:
        raise error_of(noun)(
            f"cannot read the {noun} {path}: {err.strerror or err}; check the path"
        ) from err


def fingerprint(path: Path, noun: str = MODEL) -> str:
    """Returns the BLAKE2b hash of a user's Python file, in hexadecimal.

    Raises:
        OwnCodeError: The file cannot be read.
    """
    return blake2b(read_code(path, noun), digest_size=32).hexdigest()


def module_name(path: Path, source: bytes) -> str:
    """Returns a module name for a file, derived from a hash of its path and content."""
    return f"fedcli_own_{blake2b(source + str(path).encode(), digest_size=8).hexdigest()}"


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Puts a folder first on the import path while the context is open."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have removed it itself
            sys.path.remove(str(folder))


def place(function: Any) -> str:
    """Returns "file:line" of a function, method, class or an object's class; else its name."""
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
    """Returns "file:line: method" of a method of an object."""
    return f"{place(getattr(part, method))}: {method}"


def source_file(thing: Any) -> str:
    """Returns the source file of a class, function or an object's class; empty if unknown."""
    target = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    try:
        return inspect.getsourcefile(target) or ""
    except TypeError:
        return ""


def load_module(path: Path, source: bytes, name: str, noun: str = MODEL) -> ModuleType:
    """Executes source code as a new module and returns it. No bytecode file is written.

    Args:
        path: The file of the source, for messages.
        source: The file's content.
        name: The module's name.
        noun: The kind of part; see `running`.

    Raises:
        OwnCodeError: The source does not compile, or fails while it runs.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and our messages look up a class's module here
    try:
        with running("importing the file", str(path), noun):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def defined_in(module: ModuleType) -> list[str]:
    """Returns the names of public functions and classes that a module defines, in source order."""
    return [
        name
        for name, each in vars(module).items()
        if (inspect.isfunction(each) or inspect.isclass(each))
        and each.__module__ == module.__name__
        and not name.startswith("_")
    ]


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments of a function or class that have no default."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        each.name
        for each in _parameters(function)
        if each.default is each.empty and each.kind not in several
    ]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []  # functions written in C may have no signature


def call_with(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    file: str,
    noun: str = MODEL,
    *,
    passing: tuple[type[BaseException], ...] = (),
) -> Any:
    """Calls a user's function with keyword arguments and returns its result.

    Args:
        function: The function or class.
        arguments: Arguments of the run. The function receives those that its signature names.
        options: The user's options. The function must have a parameter for each.
        file: The file of the code, for messages.
        noun: The kind of part; see `running`.
        passing: Exceptions that are not wrapped; see `running`.

    Raises:
        OwnCodeError: The function needs further arguments, has no parameter for an option, or
            fails.
    """
    option = f"--{noun.replace(' ', '-')}-option"
    parameters = _parameters(function)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {each.name for each in parameters if each.kind in by_name}
    passed = {name: each for name, each in arguments.items() if takes_any or name in names}
    passed.update(options)
    missing = sorted({*needed_arguments(function)} - passed.keys())
    unknown = sorted(options.keys() - names)
    name = getattr(function, "__name__", "the function")
    if missing:
        raise error_of(noun)(
            f"{place(function)}: {name} needs {', '.join(missing)}; it is called with "
            f"{', '.join(arguments)}; give {missing[0]} a default, or pass {option} "
            f"{missing[0]}=VALUE"
        )
    if unknown and not takes_any:
        raise error_of(noun)(
            f"{place(function)}: {option} {unknown[0]}: {name} has no such parameter; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    with running(name, file, noun, passing=passing):
        return function(**passed)


def trace_lines(error: OwnCodeError) -> list[str]:
    """Returns the traceback of the user's exception as lines, without fedcli's outer frames.

    The list is empty if the error has no cause.
    """
    cause = error.__cause__
    if cause is None:
        return []
    trace = cause.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        trace = trace.tb_next
    lines = traceback.format_exception(type(cause), cause, trace)
    return [line for text in lines for line in text.rstrip("\n").split("\n")]


def where(err: BaseException, file: str, otherwise: str = "") -> str:
    """Returns "file:line" of the user's code in which an exception arose.

    Args:
        err: The exception.
        file: The file of the user's code. The innermost frame in this file is preferred, then the
            innermost frame in another file that the user wrote.
        otherwise: The result if no frame is the user's. If it is empty, the result is `file`; if
            that is empty, too, the place of the innermost frame.
    """
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if file and frame.filename == file]
    own = own or [frame for frame in frames if _is_users_own(frame.filename)]
    if not own and (otherwise or file):
        return otherwise or file
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _is_users_own(file: str) -> bool:
    """Tells whether a file belongs neither to fedcli, nor to Python or an installed package."""
    folders = [_PACKAGE, *(Path(sysconfig.get_path(name)) for name in _INSTALLED)]
    path = Path(file)
    if not path.is_absolute() or _PACKAGE_FOLDERS & set(path.parts):
        return False
    return not any(path.is_relative_to(each) for each in folders)


def reason(err: BaseException) -> str:
    """Returns an exception's type and message on one line."""
    text = err.msg if isinstance(err, SyntaxError) else " ".join(str(err).split())
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
