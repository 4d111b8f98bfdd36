"""Finds users' own parts in Python files and in installed packages.

A part is a function or a class. It is called with keyword arguments. Some are values of the run
(`Family.arguments`). Every other parameter whose default is a truth value, a number, a text or a
list of numbers is an option that the user may set, of the default's type. A parameter whose default
is None is an option, too: a number that may be missing. An attribute `options` of the part, a tuple
of `Option`, may give ranges and descriptions of its options.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from fedcli.errors import FedcliError, PartError
from fedcli.lazy import load
from fedcli.settings.options import Entry, Option, Table, Value, split_code
from fedcli.settings.own import user_code

DEFAULT_NAME = "build"  # the part of FILE.py without :NAME, if the file defines this name

Row = TypeVar("Row", bound=Entry)


class Family(NamedTuple):
    """A kind of parts, such as the aggregators.

    Attributes:
        option: The command-line option that selects a part.
        group: The entry-point group of such parts in installed packages.
        arguments: Arguments that the run provides. A part receives those that its signature names.
        options: Options that every part of the family has.
    """

    option: str
    group: str
    arguments: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


# Each key is the noun that messages use for a part of the family.
FAMILIES: Mapping[str, Family] = {
    "algorithm": Family("--algorithm", "fedcli.algorithms", ("optimizer",)),
    "aggregator": Family("--aggregator", "fedcli.aggregators"),
    "server optimizer": Family(
        "--server-optimizer", "fedcli.server_optimizers", ("learning_rate",)
    ),
    "metric": Family("--metrics", "fedcli.metrics", ("num_classes",)),
    "sampler": Family(
        "--sampling",
        "fedcli.samplers",
        ("population", "size", "seed", "client_ids", "num_examples"),
    ),
    "partition": Family(
        "--partition",
        "fedcli.partitions",
        ("labels", "num_classes", "num_clients", "seed"),
        (
            Option("clients", 100, "Number of clients.", 1, 10_000_000),
            Option("seed", 0, "Seed of the partition alone.", 0, 2**63 - 1),
        ),
    ),
}


# How `open_part` recognises the kind of a part: by its methods, else by a parameter that the run
# gives. The first kind that fits counts.
_METHODS = (
    ("algorithm", ("init", "run")),
    ("aggregator", ("request", "aggregate")),
    ("server optimizer", ("init", "update")),
    ("metric", ("add", "value")),
    ("sampler", ("indices",)),
    (user_code.MODEL, ("forward_pass",)),
    (user_code.MODEL, ("forward", "parameters")),  # a torch.nn.Module
)
_PARAMETERS = (
    ("partition", ("labels",)),
    ("algorithm", ("optimizer",)),
    ("server optimizer", ("learning_rate",)),
    ("sampler", ("population", "size", "client_ids", "num_examples")),
    (user_code.MODEL, ("input_shape", "seed")),
)
# A model's function is called by `models.own.load`.
_MODELS = Family("--model", "", ("input_shape", "num_classes", "seed"))


def find(table: Table[Row], name: str) -> Row | None:
    """Returns a row for a user's own part; None if there is no such part.

    A file is not opened yet. An installed part is imported.

    Args:
        table: The table of the part's family.
        name: FILE.py, FILE.py:NAME, or the name of an entry point.

    Raises:
        PartError: The import of the installed part fails, or its options are declared wrongly.
    """
    code = split_code(name)
    if code is not None:
        file = code[0]
        return _row(table, name, f"The {table.family} in {file}.", file, table.family)
    point = entry_points_of(FAMILIES[table.family].group).get(name)
    return None if point is None else _open_installed(table, point)


def installed_names(table: Table[Row]) -> list[str]:
    """Returns the names of all installed parts of a family, without importing them."""
    return [*entry_points_of(FAMILIES[table.family].group)]


def installed(table: Table[Row]) -> list[Row]:
    """Returns the rows of all installed parts of a family.

    If the import of a part fails, the `doc` of its row gives the reason.
    """
    if not table.family:
        return []
    rows = []
    for name, point in sorted(entry_points_of(FAMILIES[table.family].group).items()):
        if name in table:
            continue
        try:
            rows.append(_open_installed(table, point))
        except FedcliError as err:
            rows.append(_row(table, name, f"Cannot be used: {err}", _origin(point), ""))
    return rows


def open_row(entry: Row) -> Row:
    """Runs the file of a row of `find` and returns the complete row, with description and options.

    Raises:
        PartError: The file cannot be read, fails, has no such part, or declares options wrongly.
    """
    noun, (_, name) = entry.family, split_code(entry.name) or ("", None)
    path = Path(entry.file).absolute()
    module = _module_of(path, noun)
    name = _name_in(module, name, path, FAMILIES[noun].option)
    return _described(entry, getattr(module, name), f"{module.__name__}:{name}", str(path), noun)


def open_part(file: str, name: str | None) -> tuple[str, Entry]:
    """Runs a user's file; returns the kind of the part in it, and a row that describes the part.

    The kind is `MODEL` or a key of `FAMILIES`. It is recognised by the methods of a class, and by
    the parameters of a function.

    Args:
        file: The file.
        name: The name of the part in it; None for `build`, or for the file's only part.

    Raises:
        PartError: The file cannot be read, fails, has no such part, or has one whose kind is not
            recognised; or the part declares options wrongly.
    """
    path = Path(file).absolute()
    module = _module_of(path, "part")
    name = _name_in(module, name, path, "fedcli info")
    part = getattr(module, name)
    noun = _kind_of(part)
    entry = Entry(f"{file}:{name}", f"The {noun} {name}.", user_code.place(part))
    if noun == user_code.MODEL:
        given = [each for each in _needed(part) if each not in _MODELS.arguments]
        needs = " ".join(f"{_MODELS.option}-option {each}=VALUE" for each in given)
        command = f"fedcli train {_MODELS.option} {shlex.quote(entry.name)} {needs}"
        entry = replace(entry, requirement=needs, example=command if needs else "")
    return noun, _described(entry, part, f"{module.__name__}:{name}", str(path), noun)


def _module_of(path: Path, noun: str) -> ModuleType:
    """Returns the module of a user's file, which is executed unless its content is loaded."""
    source = user_code.read_code(path, noun)
    module_name = user_code.module_name(path, source)
    module = sys.modules.get(module_name)
    if module is None:
        with user_code.importing_from(path.parent):
            module = user_code.load_module(path, source, module_name, noun)
    return module


def _kind_of(part: Callable[..., Any]) -> str:
    """Returns the kind of a part: `MODEL` or a key of `FAMILIES`. Raises PartError."""
    needed = _needed(part)
    kinds = [
        *(noun for noun, names in _METHODS if all(callable(getattr(part, n, None)) for n in names)),
        *(noun for noun, names in _PARAMETERS if any(name in names for name in needed)),
    ]
    if kinds:
        return kinds[0]
    raise PartError(
        f"{user_code.place(part)}: {getattr(part, '__name__', part)} has neither the methods nor "
        "the parameters of a part of fedcli; fedcli help extending lists them for each kind"
    )


def _needed(part: Callable[..., Any]) -> list[str]:
    """Returns the names of a part's parameters that have no default."""
    return [each.name for each in _parameters(part)[0] if each.default is each.empty]


def row_of(table: Table[Row], part: Callable[..., Any]) -> Row:
    """Returns the row of a part that a program gives as a class or function, without a name.

    The row has no `code`: `make` takes the part itself.

    Raises:
        PartError: Its options are declared wrongly.
    """
    name = getattr(part, "__name__", type(part).__name__)
    file = user_code.source_file(part) or getattr(part, "__module__", "") or name
    entry = _row(table, name, f"The {table.family} {name}.", file, "")
    return _described(entry, part, "", file, table.family)


def make(
    entry: Entry,
    noun: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Value],
    passing: tuple[type[BaseException], ...] = (),
    part: Callable[..., Any] | None = None,
) -> Any:
    """Calls a part with keyword arguments and returns its result.

    Args:
        entry: The complete row of the part.
        noun: Its family: a key of `FAMILIES`.
        arguments: Arguments of the run. The part receives those that its signature names.
        options: All options of the row, resolved.
        passing: Exceptions that are not wrapped; see `user_code.running`.
        part: The part, if the row was made by `row_of`.

    Raises:
        PartError: The part fails.
    """
    function = load(entry.code) if part is None else part
    file = Path(entry.file)
    has_file = file.suffix == ".py" and file.is_file()  # a notebook's cell has none
    with user_code.importing_from(file.parent) if has_file else nullcontext():
        return user_code.call_with(function, arguments, options, entry.file, noun, passing=passing)


def options_for(entry: Entry, options: Mapping[str, Value]) -> dict[str, Value]:
    """Returns those of the user's options that a part declares."""
    declared = {option.name for option in entry.options}
    return {name: value for name, value in options.items() if name in declared}


def _row(table: Table[Row], name: str, doc: str, source: str, family: str) -> Row:
    make_row = type(next(iter(table.values())))
    return make_row(name, doc, source, file=source, family=family)


def _open_installed(table: Table[Row], point: EntryPoint) -> Row:
    noun, origin = table.family, _origin(point)
    with user_code.running(f"importing {point.value} of {origin}", "", noun):
        part = point.load()
    entry = _row(table, point.name, "", origin, "")
    file = user_code.source_file(part) or origin
    return _described(entry, part, point.value, file, noun)


@cache
def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Returns the entry points of a group by name; looked up once."""
    return {point.name: point for point in entry_points(group=group)}


def _origin(point: EntryPoint) -> str:
    """Returns name and version of the package that declares an entry point."""
    package = point.dist
    return point.value if package is None else f"{package.name} {package.version}"


def _name_in(module: ModuleType, name: str | None, path: Path, option: str) -> str:
    """Returns the name of the part in a file: `name`, else `build`, else the file's only part.

    `option` is the option that selects the part, for the message.
    """
    defined = user_code.defined_in(module)
    if name is None and DEFAULT_NAME not in defined and len(defined) == 1:
        return defined[0]
    name = DEFAULT_NAME if name is None else name
    if callable(getattr(module, name, None)):
        return name
    raise PartError(
        f"{path} has no function or class '{name}'; it has {', '.join(defined) or 'none'}; give "
        f"{option} {path.name}:NAME"
    )


def _described(entry: Row, part: Callable[..., Any], code: str, file: str, noun: str) -> Row:
    """Completes a row with the part's options and the first paragraph of its docstring."""
    doc = (inspect.getdoc(part) or "").strip().partition("\n\n")[0]
    return replace(
        entry,
        doc=" ".join(doc.split()) or entry.doc,
        options=_declared(part, noun),
        code=code,
        file=file,
        family="",
    )


def _declared(part: Callable[..., Any], noun: str) -> tuple[Option, ...]:
    """Returns a part's options, from its attribute `options` and its parameters' defaults."""
    family = _MODELS if noun == user_code.MODEL else FAMILIES[noun]
    where = user_code.place(part)
    stated = getattr(part, "options", ())
    if not isinstance(stated, tuple | list) or not all(isinstance(each, Option) for each in stated):
        raise PartError(
            f"{where}: options are {stated!r}; give a tuple of fedcli.Option(name, default, text)"
        )
    by_name = {each.name: each for each in stated}
    parameters, takes_any = _parameters(part)
    declared = {each.name: each for each in family.options}
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if name in family.arguments or name in declared:
            continue
        if name in by_name:
            _check_default(where, by_name[name], default)
            declared[name] = by_name[name]
        elif default is parameter.empty and noun == user_code.MODEL:
            continue  # --model-option gives it
        elif default is parameter.empty:
            raise PartError(
                f"{where}: {getattr(part, '__name__', noun)} needs {name}; give it a default, "
                f"which makes it an option (a run gives {', '.join(family.arguments) or 'nothing'})"
            )
        elif (option := _option_of(where, parameter)) is not None:
            declared[name] = option
    unknown = [name for name in by_name if name not in declared]
    if unknown and not takes_any:
        raise PartError(f"{where}: options declare {unknown[0]}, which is not a parameter")
    return (*declared.values(), *(by_name[name] for name in unknown))


def _check_default(where: str, option: Option, default: Any) -> None:
    """Refuses a stated option whose default is not that of the parameter, if it has one."""
    same = (default, list(default) if isinstance(default, tuple) else default)
    if default is inspect.Parameter.empty or option.default in same:
        return
    raise PartError(
        f"{where}: options give {option.name} the default {option.default!r}, but the parameter "
        f"has {default!r}; give both the same"
    )


def _option_of(where: str, parameter: inspect.Parameter) -> Option | None:
    """Returns the option that a parameter's default makes; None if it makes none."""
    name, default = parameter.name, parameter.default
    is_int = isinstance(default, int) and not isinstance(default, bool)
    if is_int and parameter.annotation in (float, "float"):
        return Option(name, float(default), "")
    if _is_numbers(default):
        return Option(name, [float(each) for each in default], "")
    if default is not None and not isinstance(default, bool | int | float | str):
        return None
    advice = f"; its type is that of the default {default!r} in {where}"
    if is_int:
        advice += f", where {name}={default}.0 would allow every number"
    return Option(name, default, "", advice=advice)


def _is_numbers(default: Any) -> bool:
    """Tells whether a default is a list of numbers, which an option may have as its value."""
    return (
        isinstance(default, list | tuple)
        and bool(default)
        and all(isinstance(each, int | float) for each in default)
    )


def _parameters(part: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """Returns the parameters that can be passed by keyword, and whether there is a **kwargs."""
    try:
        parameters = list(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):
        return [], True  # functions written in C may have no signature
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return [each for each in parameters if each.kind in kinds], takes_any
