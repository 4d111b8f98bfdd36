from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.learning.optimizers.rules import Rule
from fedcli.settings import tables
from fedcli.settings.options import Entry, Value, resolve

TABLES = {
    "models": tables.MODELS,
    "optimizers": tables.OPTIMIZERS,
    "schedules": tables.SCHEDULES,
    "algorithms": tables.ALGORITHMS,
    "aggregators": tables.AGGREGATORS,
    "compressors": tables.COMPRESSORS,
    "privacy": tables.PRIVACY,
    "datasets": tables.DATASETS,
    "partitions": tables.PARTITIONS,
    "formats": tables.FORMATS,
}


@pytest.mark.parametrize(
    "table",
    [
        *(tables.ALGORITHMS, tables.AGGREGATORS, tables.OPTIMIZERS, tables.SCHEDULES),
        *(tables.COMPRESSORS, tables.PRIVACY),
    ],
)
def test_every_row_names_its_code(table: Mapping[str, Entry]) -> None:
    for entry in table.values():
        assert callable(load(entry.code)) or isinstance(load(entry.code), Rule)


def test_every_model_s_row_names_its_layers() -> None:
    for row in tables.MODELS.values():
        *_, last = load(row.code)(7)
        assert last.units == 7


def test_every_format_s_row_names_a_module_that_reads_it() -> None:
    for row in tables.FORMATS.values():
        module = load(row.code)
        assert callable(module.recognises)
        assert callable(module.read)


def is_one_line(doc: str) -> bool:
    """Returns whether a text is one line, as `fedcli info` and --help print it."""
    return bool(doc.strip()) and "\n" not in doc


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_row_is_documented_and_allows_its_own_defaults(table: Mapping[str, Entry]) -> None:
    for name, entry in table.items():
        assert name == entry.name
        assert is_one_line(entry.doc)
        assert entry.source
        assert all(is_one_line(option.doc) for option in entry.options)
        defaults = {option.name: option.default for option in entry.options}
        # Of its options that have no default, privacy requires one.
        given: dict[str, Value] = {"noise_multiplier": 1.0} if table is tables.PRIVACY else {}
        held = {name: value for name, value in defaults.items() if value is not None}
        assert resolve(entry, given) == resolve(entry, {**held, **given}) == {**held, **given}


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^sgd: nesterov = true needs a momentum above 0; set"):
        resolve(tables.OPTIMIZERS["sgd"], {"nesterov": True})
    resolve(tables.OPTIMIZERS["sgd"], {"nesterov": True, "momentum": 0.5})


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, "fast"])
def test_a_learning_rate_must_be_finite_and_not_negative(rate: object) -> None:
    with pytest.raises(
        ConfigError, match=r"^--server-lr .*: choose a finite number from 0 to 3e\+38$"
    ):
        tables.check_learning_rate(rate, "--server-lr")
    assert tables.check_learning_rate(0) == 0.0
