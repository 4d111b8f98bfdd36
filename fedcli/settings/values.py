"""Kinds of values that options of a run take on the command line, in a file and in Python.

A kind does not depend on the option that uses it. Tables of names are loaded when a value is
checked, because help and the shell's completion need few of them.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from fedcli.errors import ConfigError, shown
from fedcli.settings import tables
from fedcli.settings.options import (
    MAX_FLOAT,
    Value,
    check_number,
    choose,
    did_you_mean,
    is_code,
    not_a_text,
    path_text,
)
from fedcli.settings.toml_values import toml_value
from fedcli.settings.vocabulary import ACCURACY, BALANCED, NONE

MAX_SEED = 2**63 - 1  # TOML integers are signed 64-bit
MAX_COUNT = 2**31 - 1  # so that epochs x examples of a client fit in 64 bits
# Range of virtual seconds and of examples per virtual second: the clock stays finite and advances.
MIN_VIRTUAL, MAX_VIRTUAL = 1e-9, 1e9
MAX_SPEEDS = 1000  # tiers of clients
_OR_OWN = "or the class name of a metric of your own that --metrics FILE.py adds"

Table = Callable[[], Mapping[str, Any]]


class Kind(NamedTuple):
    """The values that an option takes.

    Attributes:
        check: Called with a label and a value; returns the value in the option's type. Raises
            ConfigError if the value is not allowed; the message starts with the label.
        read: How the command line reads a text: as `int`, `float` or `str`; `bool` is a switch.
            Any other function raises ValueError with the reason if it cannot read the text.
        metavar: The placeholder of the value in help; empty for click's own.
        choices: The allowed words; empty if the value is not one of a few words.
        names: Returns the table whose keys are the allowed names; None if there is no table.
        is_path: Returns whether a valid value is the path of a file; None if it never is.
        takes_code: Whether a value may be FILE.py or FILE.py:NAME, a user's code.
    """

    check: Callable[[str, Any], Any]
    read: Callable[[str], Any] = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    names: Table | None = None
    is_path: Callable[[str], bool] | None = None
    takes_code: bool = False


def whole(minimum: int = 1, maximum: int = MAX_COUNT) -> Kind:
    """Returns the kind for whole numbers in a range, both ends included."""
    return Kind(partial(check_whole, minimum=minimum, maximum=maximum), int, "N")


def number(minimum: float, maximum: float, metavar: str = "X") -> Kind:
    """Returns the kind for finite numbers in a range, both ends included."""
    return Kind(partial(check_number, minimum=minimum, maximum=maximum), float, metavar)


def one_of(words: tuple[str, ...]) -> Kind:
    """Returns the kind for a choice between a few words."""
    return Kind(partial(_check_word, words=words), choices=words)


def name_in(table: Table, metavar: str = "NAME") -> Kind:
    """Returns the kind for names in a table. `RunConfig` refuses unknown names."""
    return Kind(_check_text, metavar=metavar, names=table)


def switch_of(table: Table) -> Kind:
    """Returns the kind of a switch that turns on the only row of a table, which has options."""
    return Kind(_check_switch, bool, names=table)


def name_or_path(
    table: Table,
    is_path: Callable[[str], bool],
    metavar: str = "NAME|PATH",
    *,
    takes_code: bool = False,
) -> Kind:
    """Returns the kind of names in a table and paths of files; `is_path` tells them apart."""
    return Kind(_check_text, metavar=metavar, names=table, is_path=is_path, takes_code=takes_code)


def name_or_code(
    table: Table, is_code: Callable[[str], bool] = is_code, metavar: str = "NAME|FILE.py[:NAME]"
) -> Kind:
    """Returns the kind of names in a table and of a user's own parts; `is_code` tells them apart.

    A name may also be that of a part in an installed package, which is in no table.
    """
    return Kind(_check_text, metavar=metavar, names=table, is_path=is_code, takes_code=True)


def client_selection(metavar: str = "all|N|ID,ID|@FILE") -> Kind:
    """Returns the kind for selections of clients."""
    return Kind(_check_clients, metavar=metavar)


def check_whole(label: str, value: object, *, minimum: int = 1, maximum: int = MAX_COUNT) -> int:
    """Returns a whole number as an int; NumPy's whole numbers are accepted, truth values are not.

    Raises:
        ConfigError: It is not whole or not from `minimum` to `maximum`.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not minimum <= value <= maximum:  # type: ignore[operator]
        text = repr(value) if isinstance(value, str) else value  # '3' is not a number
        raise ConfigError(
            f"{label} {shown(text)}: choose a whole number from {minimum} to {maximum}"
        )
    return int(value)  # type: ignore[call-overload, no-any-return]


def is_plain(text: str) -> bool:
    """Whether a text can be a file name: it has no zero byte and can be encoded as one."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def parse_target(label: str, value: object) -> str:
    """Returns `NAME=X` in a canonical spelling.

    Raises:
        ConfigError: It has another form, or X is not a number in the range: above 0 for the loss,
            above 0 and up to 1 for other metrics of fedcli.
    """
    name, equals, text = (each.strip() for each in str(value).rpartition("="))
    is_known = name in tables.SELECTION_METRICS
    if not equals or not (is_known or name.isidentifier()):
        raise ConfigError(_not_a_target(label, value))
    low, high = (1e-9, MAX_FLOAT if name == "loss" else 1.0) if is_known else (None, None)
    try:
        target = float(text)
    except ValueError:
        what = "a number above 0" if name == "loss" else "a share above 0 and up to 1"
        what = what if is_known else "a number"
        raise ConfigError(f"{label} {name}={text[:60]}: choose {what}, as in {name}=0.97") from None
    return f"{name}={check_number(f'{label} {name}', target, low, high)!r}"


def check_selection_metrics(values: Mapping[str, Any]) -> None:
    """Checks the names of the metrics by which rounds are ranked.

    They are fedcli's metrics, and the user's own by their short names. If `values` names only the
    file of an own metric, its short name is not known yet, and nothing is checked.

    Raises:
        ConfigError: There is no such metric.
    """
    stop_at = values["stop_at"]
    target = None if stop_at is None else split_target(stop_at)[0]
    metrics = {"--monitor": values["monitor"], "--keep-best": values["keep_best"]}
    metrics = {**metrics, "--stop-at": target}
    named = {label: name for label, name in metrics.items() if name is not None}
    own = tables.own_names(values["metrics"]) if named else []
    if any(map(is_code, own)):
        return
    for label, name in named.items():
        if name not in tables.SELECTION_METRICS and name not in own:
            of_target = label == "--stop-at"
            fault = (
                _not_a_target(label, stop_at, own)
                if of_target
                else _unknown_metric(label, name, own)
            )
            raise ConfigError(fault + did_you_mean(name, (*tables.SELECTION_METRICS, *own)))


def _unknown_metric(label: str, name: object, own: Collection[str] = ()) -> str:
    """Returns the message about an unknown metric."""
    known = ", ".join((*tables.SELECTION_METRICS, *own))
    return f"{label} {shown(name)}: choose one of {known}, {_OR_OWN}"


def _not_a_target(label: str, target: object, own: Collection[str] = ()) -> str:
    """Returns the message about a target whose metric is unknown or whose form is wrong."""
    others = ", ".join(each for each in (*tables.SELECTION_METRICS, *own) if each != ACCURACY)
    return (
        f"{label} {str(target)[:60]!r}: give {ACCURACY}=X, as in {ACCURACY}=0.97, or another "
        f"metric ({others}), {_OR_OWN}"
    )


def split_target(target: str) -> tuple[str, float]:
    """Returns the name and the number of a target that `parse_target` returned."""
    name, _, text = target.rpartition("=")
    return name, float(text)


def _check_metrics(label: str, value: object) -> tuple[str, ...]:
    """Returns metric names from a list or from text with commas, in the order of the table."""
    value = path_text(value)
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        listed = [listed]
    parts = [path_text(each) for each in listed]
    for each in parts:
        if not isinstance(each, str):
            raise ConfigError(not_a_text(label, each, "names, or all"))
    names = {str(each).strip() for each in parts}
    if names == {"all"}:
        return tuple(tables.METRICS)
    for name in sorted(names):
        choose(tables.METRICS, name, label)
    return in_order(names)


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Returns metric names in the order of the table, a user's own after them."""
    own = sorted(name for name in names if name not in tables.METRICS)
    return (*(name for name in tables.METRICS if name in names), *own)


def _read_buffer(text: str) -> int | str:
    if text == "full":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor 'full'.") from None


def _check_buffer(label: str, value: object) -> int | str:
    if value == "full":
        return "full"
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise ConfigError(
            f"{label} {shown(value)}: choose a whole number of examples (0 or 1: no shuffling) "
            "or full"
        )
    return value


def _check_word(label: str, value: object, *, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ConfigError(f"{label} {shown(value)}: choose one of {', '.join(words)}")
    return str(value)


def _check_selection_metric(label: str, value: object) -> str:
    if isinstance(value, str) and (value in tables.SELECTION_METRICS or value.isidentifier()):
        return value  # `check_selection_metrics` knows whether the run has such a metric
    raise ConfigError(_unknown_metric(label, value))


def _check_rate(label: str, value: object) -> float:
    return tables.check_learning_rate(value, label)


def _check_norm(label: str, value: object) -> float:
    return tables.check_clip_norm(value, label)


def _check_decay(label: str, value: object) -> float:
    return tables.check_ema_decay(value, label)


def _check_speeds(label: str, value: object) -> tuple[float, ...]:
    """Returns speeds from text with commas (command line), or from a number or list (file)."""
    if isinstance(value, str):
        value = [toml_value(each.strip()) for each in value.split(",")]
    speeds = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(speeds) <= MAX_SPEEDS:
        raise ConfigError(f"{label}: {len(speeds)} speeds; choose 1 to {MAX_SPEEDS}")
    return tuple(check_number(label, each, MIN_VIRTUAL, MAX_VIRTUAL) for each in speeds)


def _check_text(label: str, value: object) -> str:
    """Returns a name or a path as a text; a `pathlib.Path` is accepted, too."""
    value = path_text(value)
    if not isinstance(value, str):
        raise ConfigError(not_a_text(label, value))
    if not value.strip():
        raise ConfigError(f"{label} {shown(value)}: give a name or a path")
    if not value.isprintable():  # terminals, TOML or UTF-8 cannot represent it
        raise ConfigError(f"{label} {shown(value)} holds characters that cannot be printed")
    return value


def _check_normalization(label: str, value: object) -> str | None:
    text = _check_text(label, value)
    if text == NONE:
        return None
    tables.moments_in(text)
    return text


def _check_switch(label: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {shown(value)}: choose true or false")
    return value


def _check_clients(label: str, value: object) -> str | tuple[str, ...]:
    """Returns a selection of clients from text, or in a file from a number, share or ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, float) and 0.0 < value < 1.0:
        value = str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{label} {shown(value)}: give all, a number, id,id,... or @file")
    return value


def _presets() -> Mapping[str, Any]:
    from fedcli.settings.presets import PRESETS  # lazy: few runs use a preset

    return PRESETS


def _check_preset(label: str, value: object) -> str:
    name: str = choose(_presets(), str(value), label).name
    return name


def _check_pairs(label: str, value: object) -> dict[str, Value]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {shown(value)}: give a table of options")
    return dict(value)


COUNT = whole()
LEARNING_RATE = Kind(_check_rate, float, "X")
CLIP_NORM = Kind(_check_norm, float, "X")
EMA_DECAY = Kind(_check_decay, float, "DECAY")
SHUFFLE_BUFFER = Kind(_check_buffer, _read_buffer, "N|full")
SPEEDS = Kind(_check_speeds, metavar="X,X,...")
TARGET = Kind(parse_target, metavar="METRIC=X")
METRIC_NAMES = Kind(
    _check_metrics, metavar="all|NAME,FILE.py[:NAME]", names=lambda: tables.METRICS, takes_code=True
)
SELECTION_METRIC = Kind(
    _check_selection_metric, metavar="METRIC", names=lambda: tables.SELECTION_METRICS
)
PATH = Kind(_check_text, is_path=lambda _: True)
NORMALIZATION = Kind(_check_normalization, metavar="train|published|image|MEAN,..:STD,..")
CLASS_WEIGHTS = Kind(
    _check_text,
    metavar=f"{BALANCED}|FILE",
    names=lambda: {BALANCED: None},
    is_path=lambda text: text != BALANCED,
)
PRESET = Kind(_check_preset, metavar="NAME", names=_presets)
SWITCH = Kind(_check_switch, bool)
PAIRS = Kind(_check_pairs)
