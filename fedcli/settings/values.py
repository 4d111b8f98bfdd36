"""What is allowed as the value of each option, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings import presets, tables
from fedcli.settings.options import Value, check_number, choose
from fedcli.settings.run_config import OPTION_OWNERS, RunConfig
from fedcli.settings.toml_values import toml_value
from fedcli.settings.vocabulary import (
    ACCURACY,
    COUNTED,
    EVAL_SPLITS,
    MAX_CLASSES,
    MAX_THREADS,
    MEASURES,
    PIPELINES,
    PIXELS,
    SAMPLINGS,
    WEIGHTINGS,
)

# TOML integers are signed 64-bit; visits of one client (epochs x examples) must stay countable too.
_MAX_SEED = 2**63 - 1
_MAX_COUNT = 2**31 - 1
# Of virtual seconds and examples a virtual second, so that clocks stay finite and move.
_MIN_VIRTUAL, _MAX_VIRTUAL = 1e-9, 1e9
_MAX_OVER_SELECTION = 100.0
MAX_SPEEDS = 1000  # tiers of clients


def checked(label: str, name: str, value: Any) -> Any:
    """Returns the value of one field in its own type; None stands only where the default is None.

    Raises:
        ConfigError: It is not allowed; the message starts with `label`.
    """
    if value is None and name in _OPTIONAL:
        return None
    return _CHECKS[name](label, value)


def parse_target(label: str, value: object) -> str:
    """Returns `accuracy=X` in one spelling.

    Raises:
        ConfigError: It is of another form, or X is not a number above 0 and up to 1.
    """
    name, equals, text = str(value).partition("=")
    if name.strip() != ACCURACY or not equals:
        raise ConfigError(f"{label} {str(value)[:60]!r}: give {ACCURACY}=X, as in accuracy=0.97")
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(
            f"{label} {ACCURACY}={text.strip()[:60]}: choose a share above 0 and up to 1, as in "
            "accuracy=0.97"
        ) from None
    number = check_number(f"{label} {ACCURACY}", number, 1e-9, 1.0)
    return f"{ACCURACY}={number!r}"


def _count(label: str, value: object, *, minimum: int = 1, maximum: int = _MAX_COUNT) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ConfigError(
            f"{label} {_shown(value)}: choose a whole number from {minimum} to {maximum}"
        )
    return value


def _buffer(label: str, value: object) -> int | str:
    if value == "full":
        return "full"
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        raise ConfigError(
            f"{label} {_shown(value)}: choose a whole number of examples (0 or 1: no shuffling) "
            "or full"
        )
    return value


def _choice(label: str, value: object, *, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{label} {_shown(value)}: choose one of {', '.join(choices)}")
    return str(value)


def _rate(label: str, value: object) -> float:
    return tables.check_learning_rate(value, label)


def _norm(label: str, value: object) -> float:
    return tables.check_clip_norm(value, label)


def _decay(label: str, value: object) -> float:
    return tables.check_ema_decay(value, label)


def _number(label: str, value: object, *, minimum: float = 0.0, maximum: float) -> float:
    return check_number(label, value, minimum, maximum)


def _speeds(label: str, value: object) -> tuple[float, ...]:
    """Numbers with commas as on the command line; in a file also a number or a list of them."""
    if isinstance(value, str):
        value = [toml_value(each.strip()) for each in value.split(",")]
    given = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(given) <= MAX_SPEEDS:
        raise ConfigError(f"{label}: {len(given)} tiers; choose 1 to {MAX_SPEEDS}")
    return tuple(check_number(label, each, _MIN_VIRTUAL, _MAX_VIRTUAL) for each in given)


def _text(label: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{label} {_shown(value)}: give a name or a path")
    if not value.isprintable():  # a name that a terminal, TOML or UTF-8 cannot hold
        raise ConfigError(f"{label} {_shown(value)} holds characters that cannot be printed")
    return value


def _flag(label: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {_shown(value)}: choose true or false")
    return value


def _clients(label: str, value: object) -> str | tuple[str, ...]:
    """Text as on the command line; in a file also a bare number or share, or a list of ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, float) and 0.0 < value < 1.0:
        value = str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{label} {_shown(value)}: give all, a number, id,id,... or @file")
    return value


def _preset(label: str, value: object) -> str:
    return choose(presets.PRESETS, str(value), label.partition(" ")[0]).name


def _map(label: str, value: object) -> dict[str, Value]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {_shown(value)}: give a table of options")
    return dict(value)


def _shown(value: object) -> str:
    """`value` on one short line."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "preset": _preset,
    "data": _text,
    "test_data": _text,
    "partition": _text,
    "num_classes": partial(_count, maximum=MAX_CLASSES),
    "pixels": partial(_choice, choices=PIXELS),
    "clients": _clients,
    "sampling": partial(_choice, choices=SAMPLINGS),
    "client_dropout": partial(_number, maximum=1.0),
    "client_speeds": _speeds,
    "communication_seconds": partial(_number, maximum=_MAX_VIRTUAL),
    "deadline": partial(_number, minimum=_MIN_VIRTUAL, maximum=_MAX_VIRTUAL),
    "over_selection": partial(_number, maximum=_MAX_OVER_SELECTION),
    "min_reports": _count,
    "rounds": _count,
    "epochs": _count,
    "batch_size": _count,
    "shuffle_buffer": _buffer,
    "pipeline": partial(_choice, choices=PIPELINES),
    "max_examples": _count,
    "model": _text,
    "fresh_weights": _flag,
    "initial_weights": _text,
    "algorithm": _text,
    "client_optimizer": _text,
    "client_lr": _rate,
    "client_schedule": _text,
    "client_schedule_by": partial(_choice, choices=COUNTED),
    "client_clip_norm": _norm,
    "server_optimizer": _text,
    "server_lr": _rate,
    "server_schedule": _text,
    "server_ema": _decay,
    "client_weighting": partial(_choice, choices=WEIGHTINGS),
    "aggregator": _text,
    "seed": partial(_count, minimum=0, maximum=_MAX_SEED),
    "threads": partial(_count, maximum=MAX_THREADS),
    "eval_every": _count,
    "eval_clients": _clients,
    "eval_split": partial(_choice, choices=EVAL_SPLITS),
    "stop_at": parse_target,
    "patience": _count,
    "checkpoint_every": _count,
    "keep_checkpoints": _count,
    "keep_best": partial(_choice, choices=tuple(MEASURES)),
    **dict.fromkeys(("csv", "tensorboard", "histograms", "record_clients"), _flag),
    **dict.fromkeys(OPTION_OWNERS, _map),
}

_OPTIONAL = frozenset(each.name for each in fields(RunConfig) if each.default is None)
