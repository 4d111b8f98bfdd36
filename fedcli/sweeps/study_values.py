"""Reads the values of a study: option names, lists of values, seeds and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, shown
from fedcli.reports.groups import value_text
from fedcli.settings.options import did_you_mean
from fedcli.settings.run_config import OPTION_OWNERS, OPTIONS
from fedcli.settings.toml_values import toml_value
from fedcli.settings.values import MAX_SEED, check_whole

MAX_SEEDS = 1000
LOG, LINEAR, CHOICE = SCALES = ("log", "linear", "choice")
# Options that a study sets itself, with advice on what to use instead.
_OWN = {
    "seed": "a study gives seeds by --seeds, or by the key seeds",
    "threads": "each run of a study has one thread; --jobs gives the number of runs at a time",
    "engine": "the runs of a study are computed by threads, several runs at a time",
    "engine_options": "the runs of a study are computed by threads, several runs at a time",
    "preset": "a preset goes into [run]",
}


@dataclass(frozen=True)
class Range:
    """The range of values from which a search draws.

    Attributes:
        scale: LOG, LINEAR or CHOICE.
        low: The smallest value; 0 for CHOICE.
        high: The largest value; 0 for CHOICE.
        values: The values of CHOICE.
        is_whole: Whether the values are whole numbers.
    """

    scale: str
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()
    is_whole: bool = False

    def at(self, share: float) -> Any:
        """Returns the value at a share of the range, from 0 up to but not including 1."""
        if self.scale == CHOICE:
            return self.values[int(share * len(self.values))]
        if self.is_whole:
            low, high = math.floor(self.low), math.floor(self.high)
            if self.scale == LINEAR:
                return low + int(share * (high - low + 1))
            drawn = math.exp(math.log(low) + share * (math.log(high + 1) - math.log(low)))
            return min(high, max(low, int(drawn)))
        if self.scale == LOG:
            bounds = math.log(self.low), math.log(self.high)
            drawn = math.exp(bounds[0] + share * (bounds[1] - bounds[0]))
        else:
            drawn = self.low + share * (self.high - self.low)
        return self.rounded(drawn)

    def rounded(self, value: float) -> float:
        """Returns a value within the range, rounded to six digits so that a reader can copy it."""
        return min(self.high, max(self.low, float(f"{value:.6g}")))

    def text(self) -> str:
        """Returns the range as it is written in a study."""
        if self.scale == CHOICE:
            return f"{CHOICE}:{','.join(map(_toml_text, self.values))}"
        return f"{self.scale}:{self.low:.15g}..{self.high:.15g}"


def field_name(text: object, label: str, *, may_vary: bool = True) -> str:
    """Returns the dotted name of an option: `client_lr`, `server_options.momentum`.

    Args:
        text: The name; `client-lr` is also accepted.
        label: The place of the name, for messages.
        may_vary: Whether a study varies the option; if so, `preset` is refused, too. The other
            options that a study sets itself are always refused.

    Raises:
        ConfigError: There is no such option.
    """
    name, dot, key = str(text).strip().removeprefix("--").partition(".")
    name = name.replace("-", "_")
    if name not in OPTIONS:
        singular = f"{name}s" if f"{name}s" in OPTION_OWNERS else ""
        hint = f"; did you mean {singular}.{key}?" if singular else did_you_mean(name, OPTIONS)
        hint = hint or "; fedcli train -h lists all"
        raise ConfigError(f"{label}: there is no option '{shown(text)}' of fedcli train{hint}")
    if name in _OWN and (may_vary or name != "preset"):
        raise ConfigError(f"{label}: {name} cannot be set here: {_OWN[name]}")
    if dot and (name not in OPTION_OWNERS or not key):
        raise ConfigError(f"{label}: {name} has no part '{key}'; only tables of options have parts")
    return f"{name}.{key}" if dot else name


def checked(name: str, value: Any, label: str) -> Any:
    """Returns the value of an option by its dotted name, in the option's type.

    A part of a table of options, such as server_options.momentum, is checked later, when the name
    to which it belongs is known. "none" is returned as it is, because TOML has no null.

    Raises:
        ConfigError: The value is not allowed.
    """
    if "." in name:
        return value
    typed = OPTIONS[name].checked(f"{label}: {name}", value)
    return value if typed is None else typed


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of `RunConfig` from options by dotted name."""
    fields: dict[str, Any] = {}
    for dotted, value in options.items():
        name, dot, key = dotted.partition(".")
        if dot:
            fields[name] = {**fields.get(name, {}), key: value}
        elif name in OPTION_OWNERS:
            fields[name] = {**value, **fields.get(name, {})}
        else:
            fields[name] = value
    return fields


def split_values(text: str, name: str = "") -> list[Any]:
    """Returns the values of a text such as `0.01,0.1` or `["a,b", "c"]`, as TOML reads each.

    Args:
        text: The text.
        name: The option to which the values belong. Its values may have commas, as in
            `train,0.5,0.5,0.5:0.2,0.2,0.2` for normalize.
    """
    if text.lstrip().startswith("["):
        whole = toml_value(text)
        if isinstance(whole, list):
            return whole
    parts = [each.strip() for each in text.split(",")]
    values = []
    while parts:
        joined = (",".join(parts[:end]) for end in range(1, len(parts) + 1))
        value = next((each for each in joined if _is_valid(name, toml_value(each))), parts[0])
        del parts[: value.count(",") + 1]
        values.append(toml_value(value))
    return values


def read_seeds(value: Any, label: str) -> tuple[int, ...]:
    """Returns the seeds of `5` (0 to 4), `"0..4"`, `"1,7"` or `[0, 1]`.

    Raises:
        ConfigError: It has another form, or a seed is given twice.
    """
    seeds_or_number = toml_value(value) if isinstance(value, str) and ".." not in value else value
    if isinstance(seeds_or_number, str) and ".." in seeds_or_number:
        ends: list[Any] = [toml_value(each.strip()) for each in seeds_or_number.split("..", 1)]
        first, last = ends
        if not isinstance(first, int) or not isinstance(last, int) or last < first:
            raise ConfigError(
                f"{label} {shown(value)}: give the first and the last seed, as in 0..4"
            )
        if last - first >= MAX_SEEDS:
            raise ConfigError(f"{label} {value}: choose at most {MAX_SEEDS} seeds")
        seeds_or_number = list(range(first, last + 1))
    elif isinstance(seeds_or_number, str):
        seeds_or_number = split_values(seeds_or_number)
    elif isinstance(seeds_or_number, int) and not isinstance(seeds_or_number, bool):
        if not 1 <= seeds_or_number <= MAX_SEEDS:
            raise ConfigError(f"{label} {seeds_or_number}: choose 1 to {MAX_SEEDS} seeds")
        seeds_or_number = list(range(seeds_or_number))
    if not isinstance(seeds_or_number, list | tuple) or not 0 < len(seeds_or_number) <= MAX_SEEDS:
        raise ConfigError(f"{label} {shown(value)}: give a number of seeds, 0..4, or a list")
    seeds = tuple(check_whole(label, each, minimum=0, maximum=MAX_SEED) for each in seeds_or_number)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{label} {shown(value)}: a seed is given twice; give each once")
    return seeds


def read_range(name: str, value: Any, label: str) -> Range:
    """Returns the range of an option: `log:1e-3..1`, `linear:0..1`, `choice:a,b`.

    Raises:
        ConfigError: It has another form, or a value is not allowed.
    """
    scale, colon, rest = str(value).partition(":")
    if not isinstance(value, str) or not colon or scale not in SCALES:
        raise ConfigError(
            f"{label} {name} {shown(value)}: give log:LOW..HIGH, linear:LOW..HIGH or choice:A,B"
        )
    if scale == CHOICE:
        values = tuple(checked(name, each, label) for each in split_values(rest, name))
        return Range(CHOICE, values=values)
    ends: list[Any] = [toml_value(each.strip()) for each in rest.split("..")]
    if len(ends) != 2 or not all(map(_is_finite, ends)) or not ends[0] < ends[1]:
        raise ConfigError(
            f"{label} {name} {value}: give two numbers, the smaller first, as in {scale}:0.001..1"
        )
    if scale == LOG and ends[0] <= 0:
        raise ConfigError(f"{label} {name} {value}: give two numbers above 0 for a log range")
    low, high = (checked(name, each, label) for each in ends)
    is_whole = all(isinstance(each, int) for each in (low, high))
    return Range(scale, float(low), float(high), is_whole=is_whole)


def options_text(options: Mapping[str, Any]) -> str:
    """Returns options as text: `client_lr=0.1, server_options.momentum=0.9`."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in options.items())


def as_list(value: Any, label: str) -> Sequence[Any]:
    """Returns a list of values of a study. Raises ConfigError if it is not a list or is empty."""
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f"{label} {shown(value)}: give a list of values, as in [0.01, 0.1]")
    return value


def _is_valid(name: str, value: Any) -> bool:
    if name not in OPTIONS:
        return True
    try:
        OPTIONS[name].checked(name, value)
    except ConfigError:
        return False
    return True


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _toml_text(value: Any) -> str:
    text = value_text(value)
    return text if toml_value(text) == value else repr(value)
