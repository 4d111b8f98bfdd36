"""Options that break the guarantee of --dp are refused, with the reason and a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.settings import tables

DP: dict[str, Any] = {
    "dp": "gaussian",
    "dp_options": {"noise_multiplier": 1.0},
    "sampling": "poisson",
}


def config(**values: Any) -> Any:
    return settings.from_options({**DP, **values})


def test_a_private_run_has_uniform_weights_and_its_options_are_complete() -> None:
    found = config()
    assert found.client_weighting == "uniform"
    assert found.dp_options == {
        "clip": 0.1,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "accountant": "pld",
    }
    again = settings.validate(found)
    assert again == found
    assert settings.from_options(settings.from_toml(settings.to_toml(found, {}), "x")) == found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"aggregator": "median"}, "--aggregator median: only the mean has a known bound"),
        ({"aggregator": "norm-bound"}, "choose --aggregator mean"),
        ({"pre_aggregator": "nnm"}, "--pre-aggregator nnm: each update that it returns"),
        ({"compress": "sketch"}, "--compress sketch: one update is decoded together"),
        ({"compress": "powersgd"}, "choose --compress uniform"),
        ({"secure_sum": True, "client_dropout": 0.1}, "then no client counts, which no accountant"),
        ({"client_weighting": "num-examples"}, "choose --client-weighting uniform"),
        ({"sampling": "with-replacement"}, "several times in one round; choose --sampling poisson"),
        ({"sampling": "by-size"}, "depends on its number of examples, which is private"),
        ({"sampling": "./mine.py"}, "how often a client takes part is not known"),
        ({"dp": "tree"}, "must not be drawn at random; choose --sampling cyclic"),
        ({"dp": "tree", "sampling": "fixed"}, "choose --sampling cyclic"),
        (
            {"sampling": "uniform", "over_selection": 0.3, "client_speeds": (5.0,)},
            "--over-selection 0.3: whether a client counts would depend on the others",
        ),
        ({"min_reports": 2}, "--min-reports 2: whether a client counts"),
        ({"class_weights": "balanced"}, "the labels of all clients are counted"),
        (
            {"dp_options": {"noise_multiplier": 1e-6}},
            "noise_multiplier 1e-06 is too small to compute epsilon; choose 0 (no noise, not "
            "private) or at least 0.05",
        ),
        ({"dp": "laplace"}, "unknown --dp 'laplace'; choose one of gaussian"),
        ({"dp": None}, "--dp-option noise_multiplier is for --dp"),
        ({"dp_options": {}}, "neither is given: give one of them"),
        (
            {"dp_options": {"noise_multiplier": 1.0, "target_epsilon": 2.0}},
            "both are given: give one of them",
        ),
        ({"dp_options": {"noise_multiplier": -1.0}}, "a finite number from 0 to"),
        ({"dp_options": {"noise_multiplier": "1"}}, "choose a finite number"),
        ({"dp_options": {"target_epsilon": 0.0}}, "choose a finite number from 0.001"),
        ({"dp_options": {"noise_multiplier": 1.0, "delta": 1e-11}}, "from 1e-10 to 0.5"),
        ({"dp_options": {"noise_multiplier": 1.0, "clip": 0.0}}, "clip 0.0"),
        ({"dp_options": {"noise_multiplier": 1.0, "accountant": "gdp"}}, "pld or rdp"),
        ({"dp_options": {"noise_multiplier": 1.0, "restart_every": 3}}, "no option 'restart_ever"),
    ],
)
def test_what_breaks_the_guarantee_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", tables.ALGORITHMS)
def test_algorithms_that_tell_more_than_one_mean_are_refused(algorithm: str) -> None:
    """Control variates, full gradients, numbers of steps and own models would get no noise."""
    values: dict[str, Any] = {"algorithm": algorithm}
    if algorithm in ("fedavg", "fedprox", "fedsgd", "fedavgm", "fedadagrad", "fedadam", "fedyogi"):
        assert config(**values).dp == "gaussian"
        return
    with pytest.raises(ConfigError, match=r"choose fedavg, |share nothing"):
        config(**values)


@pytest.mark.parametrize("sampling", ["poisson", "fixed", "uniform", "tff", "cyclic"])
def test_samplings_with_an_accountant(sampling: str) -> None:
    for mechanism in ("gaussian", "gaussian-adaptive"):
        assert config(sampling=sampling, dp=mechanism).sampling == sampling
