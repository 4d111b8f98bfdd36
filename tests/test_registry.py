from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping

import pytest

import fedcli
from fedcli import aggregators, algorithms, models, registry, schedules
from fedcli.errors import ConfigError
from fedcli.optimizers.rules import RULES
from fedcli.options import Entry, resolve

TABLES = {
    "models": registry.MODELS,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
    "algorithms": registry.ALGORITHMS,
    "aggregators": registry.AGGREGATORS,
    "datasets": registry.DATASETS,
    "partitions": registry.PARTITIONS,
}


@pytest.mark.parametrize(
    ("table", "code"),
    [
        (registry.MODELS, models.STACKS),
        (registry.OPTIMIZERS, RULES),
        (registry.SCHEDULES, schedules.RULES),
        (registry.ALGORITHMS, algorithms.BUILDERS),
        (registry.AGGREGATORS, aggregators.BUILDERS),
    ],
)
def test_every_row_has_code_under_its_name(
    table: Mapping[str, Entry], code: Mapping[str, object]
) -> None:
    assert table.keys() == code.keys()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_row_is_documented_and_allows_its_own_defaults(table: Mapping[str, Entry]) -> None:
    for name, entry in table.items():
        assert name == entry.name
        assert entry.doc.endswith(".")
        assert entry.source
        assert all(option.doc.endswith(".") for option in entry.options)
        defaults = {option.name: option.default for option in entry.options}
        assert resolve(entry, {}) == resolve(entry, defaults) == defaults


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^sgd: nesterov = true needs a momentum above 0; set"):
        resolve(registry.OPTIMIZERS["sgd"], {"nesterov": True})
    resolve(registry.OPTIMIZERS["sgd"], {"nesterov": True, "momentum": 0.5})


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, "fast"])
def test_a_learning_rate_must_be_finite_and_not_negative(rate: object) -> None:
    with pytest.raises(
        ConfigError, match=r"^--server-lr .*: choose a finite number from 0 to 3e\+38$"
    ):
        registry.check_learning_rate(rate, "--server-lr")
    assert registry.check_learning_rate(0) == 0.0


def test_the_tables_load_without_numpy() -> None:
    code = (
        "import sys, fedcli, fedcli.registry; fedcli.FedcliError; "
        "print(sorted({'numpy', 'h5py', 'rich', 'fedcli._core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_load_on_first_use() -> None:
    for name in fedcli.__all__:
        assert getattr(fedcli, name) is not None
    assert set(fedcli.__all__) <= set(dir(fedcli))
    with pytest.raises(AttributeError, match="module 'fedcli' has no attribute 'nonsense'"):
        _ = fedcli.nonsense
