"""The rows of the tables with their `k=v` options, and the checks of values. Imports no NumPy."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from typing import Any, TypeVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, shown
from fedcli.lazy import load

T = TypeVar("T")

# The types of a TOML value.
Value = bool | int | float | str | list[Any]

# The core computes in float32. A rate must not exceed its largest number, and a positive value must
# not be flushed to 0.
MAX_FLOAT = 3e38
LEAST_POSITIVE = 1.2e-38

# Names of options in fedcli, each with its names in other tools and papers.
_PEER_OPTION_NAMES: Mapping[str, tuple[str, ...]] = {
    "proximal_strength": ("mu", "proximal_mu", "prox_mu", "proximal_weight", "lambda", "lam"),
    "beta_1": ("beta1", "b1", "betas"),
    "beta_2": ("beta2", "b2", "betas"),
    "epsilon": ("eps", "tau", "delta"),
    "weight_decay": ("wd", "l2", "decay"),
    "initial_preconditioner_value": ("initial_accumulator", "initial_accumulator_value"),
    "clients": ("num_clients", "n_clients", "num_partitions", "num_users", "parties", "k"),
    "classes": ("num_classes", "n_classes", "classes_per_client", "num_classes_per_partition"),
    "shards": ("num_shards", "shards_per_client", "num_shards_per_partition"),
    "min_examples": ("min_partition_size", "min_size", "min_samples", "min_require_size"),
    "balanced": ("balance", "self_balancing"),
    "alpha": ("beta", "dirichlet_alpha", "concentration"),
    "rate": ("noise", "noise_rate", "noise_level"),
    "std": ("noise", "noise_level", "sigma"),
    "seed": ("partition_seed", "random_state", "random_seed"),
    "boundaries": ("milestones", "steps"),
    "factors": ("gamma", "values"),
    "decay_factor": ("gamma", "decay_rate"),
    "decay_rounds": ("decay_steps", "t_max", "step_size"),
    "warmup_rounds": ("warmup", "warmup_steps"),
    "final_factor": ("alpha", "eta_min"),
    "max_norm": ("norm", "clip", "clip_norm", "threshold"),
    "dropout": ("p", "dropout_rate", "rate"),
}
_RATES = ("lr", "learning_rate", "eta", "client_lr", "server_lr")

_MAX_SIMILAR = 3  # names that a message suggests
MAX_LIST = 1000  # numbers in an option that takes a list


@dataclass(frozen=True)
class Option:
    """One `k=v` option of a row. Its type is the type of its default.

    Attributes:
        name: The key, before the equals sign.
        default: The value if the user gives none: bool, int, float, str or a list of floats. None
            for a number that may be missing.
        doc: One line for `fedcli info`.
        minimum: The smallest allowed value, for numbers.
        maximum: The largest allowed value, for numbers.
        choices: The allowed values, for text; empty for any text.
        or_number: For text, whether a number from `minimum` to `maximum` is allowed, too.
        advice: The end of the message about a value of another type: why it is not allowed, and
            what to do; empty for fedcli's own options.
    """

    name: str
    default: Value | None
    doc: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    or_number: bool = False
    advice: str = field(default="", kw_only=True, compare=False)

    @property
    def allowed(self) -> str:
        """The allowed values in words, such as `a number from 0 to 1`."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            words = " or ".join(self.choices) if self.choices else "text"
            if not self.or_number:
                return words
            return f"{words}, or {number_range('a number', self.minimum, self.maximum)}"
        if isinstance(self.default, list):
            noun = "a number or a list of numbers"
            example = ",".join(map(_plain, self.default[:2]))
            return (
                f"{number_range(noun, self.minimum, self.maximum)}, as in {self.name}=[{example}]"
            )
        noun = "a whole number" if isinstance(self.default, int) else "a number"
        return number_range(noun, self.minimum, self.maximum)


@dataclass(frozen=True)
class Entry:
    """One row of a table: something that a user can choose by name.

    Attributes:
        name: The name.
        doc: One line for `fedcli info`.
        source: The paper or file whose definition is followed.
        options: The `k=v` options it takes.
        check: Returns what is wrong with a complete set of options, or None.
        licence: For a dataset, the licence under which it is published.
        code: Where the row is implemented, as `lazy.load` takes it: "module" or "module:name".
        example: A command that uses it; empty for the command of its table (see `fedcli info`).
        rates: Learning rates to start from, in words; empty if it does not determine them.
        requirement: What the part needs, in words, such as a number of clients; empty if nothing.
        cost: What it costs in time and memory, in words; empty if hardly anything.
        aliases: Other names that also find the row.
        file: The file of a part from outside the package, for messages; empty for fedcli's rows.
        family: The kind of part, such as "algorithm", in a file that has not been run yet; empty if
            the row is complete. See `opened`.
    """

    name: str
    doc: str
    source: str
    options: tuple[Option, ...] = ()
    check: Callable[[Mapping[str, Value]], str | None] | None = None
    licence: str = ""
    code: str = field(default="", kw_only=True)
    example: str = field(default="", kw_only=True)
    rates: str = field(default="", kw_only=True)
    requirement: str = field(default="", kw_only=True)
    cost: str = field(default="", kw_only=True)
    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    file: str = field(default="", kw_only=True)
    family: str = field(default="", kw_only=True)


EntryType = TypeVar("EntryType", bound=Entry)


class Table(dict[str, EntryType]):
    """Rows by name; `table[name]` also finds parts from outside the package.

    Such a part is not a row: iteration, `in` and `len` cover only the rows.

    Attributes:
        family: The kind of part that can be added from outside, such as "algorithm"; empty if none.
    """

    family: str = ""

    def __missing__(self, name: str) -> EntryType:
        """Returns the row with this alias, or the row of a part from outside the package.

        Raises:
            KeyError: There is none.
        """
        for row in self.values():
            if name in row.aliases:
                return row
        if not self.family:
            raise KeyError(name)
        entry: EntryType | None = load("fedcli.settings.own.parts:find")(self, name)
        if entry is None:
            raise KeyError(name)
        return entry

    def names(self) -> list[str]:
        """Returns the names of the rows and of parts in installed packages, sorted."""
        installed = load("fedcli.settings.own.parts:installed_names")(self) if self.family else ()
        return sorted({*self, *installed})

    def find(self, name: str) -> EntryType | None:
        """Returns a row, or that of a part from outside; None if there is neither."""
        try:
            return self[name]
        except KeyError:
            return None


def table(*entries: EntryType, family: str = "") -> Table[EntryType]:
    """Returns the rows by name, in the given order.

    Args:
        entries: The rows.
        family: See `Table`.
    """
    rows: Table[EntryType] = Table((entry.name, entry) for entry in entries)
    rows.family = family
    return rows


def opened(entry: EntryType) -> EntryType:
    """Returns a row that knows its options and its code; runs a user's file if necessary.

    Raises:
        PartError: The file cannot be read, fails, or has no such part.
    """
    if not entry.family:
        return entry
    whole: EntryType = load("fedcli.settings.own.parts:open_row")(entry)
    return whole


def split_code(text: str) -> tuple[str, str | None] | None:
    """Returns the file and the name in FILE.py:NAME; the name is None in FILE.py.

    Returns:
        None if the text names no Python file.
    """
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        return file, name
    return (text, None) if text.endswith(".py") else None


def is_code(text: str) -> bool:
    """Tells whether a text is FILE.py or FILE.py:NAME."""
    return split_code(text) is not None


def number_range(noun: str, minimum: float | None, maximum: float | None) -> str:
    """Returns `noun` with a range: `a number from 0 to 1`, `a number of at least 0`."""
    if minimum is not None and maximum is not None:
        return f"{noun} from {_plain(minimum)} to {_plain(maximum)}"
    if minimum is not None:
        return f"{noun} of at least {_plain(minimum)}"
    if maximum is not None:
        return f"{noun} of at most {_plain(maximum)}"
    return noun


def check_number(
    label: str, value: object, minimum: float | None = None, maximum: float | None = None
) -> float:
    """Returns `value` as a float; whole numbers are accepted.

    Raises:
        ConfigError: `value` is not a number, is NaN or infinite, or lies outside the range; the
            message starts with `label` and the value.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and _within(value, minimum, maximum):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    allowed = number_range("a finite number", minimum, maximum)
    raise ConfigError(f"{label} {_written(value)}: choose {allowed}")


def check_option(owner: str, option: Option, value: object) -> Value:
    """Returns `value` in the type of `option`.

    Raises:
        ConfigError: The value has another type or lies outside what the option allows.
    """
    default = option.default
    label = f"{owner} option {option.name}"
    is_number = option.or_number and isinstance(value, numbers.Real)
    is_number = is_number and not isinstance(value, bool)
    if default is None or isinstance(default, float) or is_number:
        return check_number(label, value, option.minimum, option.maximum)
    if isinstance(default, list):
        return _check_list(label, option, value)
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int):
        fits = _is_whole(value) and _within(value, option.minimum, option.maximum)  # type: ignore[arg-type]
    else:
        fits = isinstance(value, str) and (not option.choices or value in option.choices)
    if not fits:
        raise ConfigError(f"{label} {_written(value)}: choose {option.allowed}{option.advice}")
    return type(default)(value)  # type: ignore[call-overload]


def resolve(entry: Entry, values: Mapping[str, Value]) -> dict[str, Value]:
    """Returns all options of `entry`: checked values, and defaults for options without a value.

    If the part's file has not been run yet, the values are returned unchecked.

    Raises:
        ConfigError: An option is unknown, has a value that is not allowed, or contradicts another.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"options {_written(values)}: give a dict, such as {{'epsilon': 0.1}}")
    if entry.family:
        return dict(values)
    known = {option.name for option in entry.options}
    for name in values:
        if name not in known:
            names = ", ".join(option.name for option in entry.options)
            has = f"its options are {names}" if names else "it takes none"
            raise ConfigError(f"{entry.name} has no option '{name}'; {has}{_hint(name, known)}")
    resolved = {
        option.name: check_option(entry.name, option, value)
        for option in entry.options
        if (value := values.get(option.name, option.default)) is not None
    }
    problem = entry.check(resolved) if entry.check else None
    if problem:
        raise ConfigError(f"{entry.name}: {problem}")
    return resolved


def _hint(name: str, known: Collection[str]) -> str:
    """Returns the end of a message about an unknown option: its name in fedcli, if it has one."""
    word = name.lower().replace("-", "_")
    if word in _RATES:
        return "; learning rates are --client-lr and --server-lr"
    called = [ours for ours, theirs in _PEER_OPTION_NAMES.items() if word in (ours, *theirs)]
    here = [ours for ours in called if ours in known]
    if here:
        return f"; {name} is called {' and '.join(here)} here"
    if "proximal_strength" in called:
        return f"; {name} is proximal_strength of --algorithm fedprox"
    if word == "weight_decay":
        return "; --client-weight-decay sets that of the clients"
    return did_you_mean(name, known)


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns the row of `table` with this name.

    Raises:
        ConfigError: There is none. The message says `unknown WHAT 'NAME'` and lists the names. Or
            `name` is not a text.
    """
    if not isinstance(name, str):
        raise ConfigError(not_a_text(what, name))
    try:
        return table[name]
    except KeyError:
        names = table.names() if isinstance(table, Table) else sorted(table)
        hint = load("fedcli.settings.tables.peer_names:about_value")(what, name, names)
        raise ConfigError(
            f"unknown {what} '{name}'; choose one of {', '.join(names)}{hint}"
        ) from None


def path_text(value: Any) -> Any:
    """Returns the text of a `pathlib.Path`; any other value unchanged."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def not_a_text(label: str, value: object, wanted: str = "a name or a path") -> str:
    """Returns the message about a value that is no text. For a user's class it asks for its file.

    Args:
        label: What messages call the value.
        value: The value.
        wanted: What to give in place of a number, a list or another value of Python's own types.
    """
    kind = value if callable(value) else type(value)
    if kind is not value and kind.__module__ == "builtins":
        return f"{label} {shown(value)}: give {wanted}"
    name = getattr(kind, "__name__", "")
    name = name if name.isidentifier() else "NAME"
    itself = f"; learning.build_own({name}, model, client_optimizer) takes the class itself"
    more = itself if kind is value and label.endswith("algorithm") else ""
    return f"{label} {shown(value)}: give the path of its file, 'FILE.py:{name}'{more}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the names similar to a wrong one; "" if there are none.

    If a name differs only in upper case, hyphens or underscores, only this one is named. Otherwise
    at most three are; those that begin with the wrong name come first. If no name is similar, they
    are names that end with `_` and the wrong one.
    """
    import difflib  # lazy: only mistakes need it

    known = list(names)
    for each in known:
        if letters_of(each) == letters_of(name):
            return f"; did you mean {each}?"
    begun = [each for each in known if name and each.startswith(name)]
    close = difflib.get_close_matches(name, known)
    similar = [*dict.fromkeys([*begun, *close])]
    similar = similar or [each for each in known if each.endswith(f"_{name}")]
    similar = similar[:_MAX_SIMILAR]
    is_hint = 0 < len(similar) < len(known)
    return f"; did you mean {' or '.join(similar)}?" if is_hint else ""


def letters_of(name: str) -> str:
    """Returns the letters and digits of a name, in lower case: fedavg for Fed_Avg."""
    return "".join(filter(str.isalnum, name.lower()))


def _check_list(label: str, option: Option, value: object) -> list[float]:
    """Returns a list of numbers as floats; one number becomes a list of one."""
    values = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(values) <= MAX_LIST:
        raise ConfigError(f"{label}: the list has {len(values)} numbers; choose 1 to {MAX_LIST}")
    if any(isinstance(each, str | bool) for each in values):
        raise ConfigError(f"{label} {_written(value)}: choose {option.allowed}")
    return [check_number(label, each, option.minimum, option.maximum) for each in values]


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _within(value: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _written(value: object) -> str:
    """Returns `value` as TOML writes it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value).replace("\n", " ")
