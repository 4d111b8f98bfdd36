from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.settings import run_config
from fedcli.settings.declaration import GLOBAL_MODEL, LOCAL_STEPS, option_name
from fedcli.settings.run_config import OPTIONS, RunConfig
from fedcli.settings.sections import SECTIONS

# Values other than the default, for options that need another option or that not all algorithms
# have. For options that are not listed, 0.5 is used.
_VALUES: dict[str, Any] = {
    "attack": "alie",
    **{"communication_seconds": 1.0, "deadline": 2.5, "over_selection": 0.3},
    **{"eval_split": "train", "stop_at": "accuracy=0.9", "patience": 3, "keep_best": "loss"},
    **{"monitor": "auc"},
    **{"client_optimizer": "adam", "client_lr": 0.5, "client_options": {"momentum": 0.9}},
    **{"client_schedule": "cosine", "client_schedule_options": {"final_factor": 0.1}},
    **{"client_schedule_by": "local-step", "client_clip_norm": 1.0},
    **{"server_lr": 0.5, "server_options": {"momentum": 0.9}, "server_schedule": "cosine"},
    **{"server_ema": 0.9, "aggregator": "tff-robust", "pre_aggregator": "nnm", "histograms": True},
    **{"compress": "uniform", "compress_options": {"bits": 4}},
    **{"secure_sum": True, "dp": "gaussian"},
}


def test_every_field_is_declared_and_documented() -> None:
    assert list(OPTIONS) == [each.name for each in fields(RunConfig)]
    assert {declared.section for declared in OPTIONS.values()} == set(SECTIONS)
    assert RunConfig.__doc__ is not None
    for name, declared in OPTIONS.items():
        assert f"\n        {name}: {declared.help}" in RunConfig.__doc__


def test_a_config_is_built_and_read_as_any_dataclass() -> None:
    config = RunConfig(rounds=3, server_options={"momentum": 0.9})
    assert (config.rounds, config.server_options) == (3, {"momentum": 0.9})
    assert (RunConfig.data, RunConfig.rounds) == ("synthetic-digits", 10)
    assert RunConfig() == RunConfig()
    assert RunConfig().data_options is not RunConfig().data_options


@pytest.mark.parametrize("name", OPTIONS)
def test_every_default_is_allowed(name: str) -> None:
    declared = OPTIONS[name]
    assert declared.checked(option_name(name), declared.default) == declared.default


def test_groups_of_options_follow_from_their_declarations() -> None:
    assert set(run_config.WITHOUT_EFFECT) == {
        *(
            "preset",
            "threads",
            "engine",
            "engine_options",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_best",
            "eval_split",
        ),
        *("csv", "tensorboard", "histograms", "record_clients", "metrics", "metric_options"),
    }
    assert OPTIONS.keys() - set(run_config.KEPT_FIELDS) == {
        *run_config.WITHOUT_EFFECT,
        *("rounds", "data", "test_data", "initial_weights"),
        *("eval_every", "eval_clients", "stop_at", "patience", "monitor", "class_weights"),
    }
    assert run_config.RESUME_FIELDS == ("rounds", "threads", "engine", "engine_options")
    data_fields = (
        *("data", "data_options", "test_data", "partition", "partition_options"),
        "validation",
    )
    assert data_fields == run_config.DATA_FIELDS
    assert (*data_fields, "num_classes", "pixels", "clients") == run_config.READING_FIELDS


def test_each_map_has_the_options_of_what_its_owner_names() -> None:
    for name, owner in run_config.OPTION_OWNERS.items():
        table = OPTIONS[owner].kind.names
        assert table is not None
        named = OPTIONS[owner].default or OPTIONS[owner].usual
        if owner == "metrics":  # there is no default; fedcli's metrics have no options
            assert named is None
            assert name == "metric_options"
            continue
        assert named is None or named in table(), name
        assert name in (f"{owner}_options", f"{owner.removesuffix('_optimizer')}_options")


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].needs])
def test_an_option_that_needs_another_is_refused_alone(name: str) -> None:
    needs = OPTIONS[name].needs
    assert needs is not None
    with pytest.raises(ConfigError, match=f"^{option_name(name)} ") as caught:
        settings.from_options({name: _VALUES.get(name, 0.5)})
    assert str(caught.value).endswith(needs.why)
    assert option_name(needs.option) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].acts_on])
def test_an_option_without_effect_on_the_algorithm_is_refused(name: str) -> None:
    algorithm = {LOCAL_STEPS: "fedsgd", GLOBAL_MODEL: "local-only"}[OPTIONS[name].acts_on]
    with pytest.raises(ConfigError, match=f"^{option_name(name)}: the clients of {algorithm} "):
        settings.from_options({"algorithm": algorithm, name: _VALUES.get(name, 0.5)})
    default = OPTIONS[name].default
    settings.from_options({"algorithm": algorithm, name: default})


def test_whole_numbers_of_numpy_become_ints() -> None:
    config = settings.from_options({"rounds": np.int64(3), "seed": np.uint8(7)})
    assert (type(config.rounds), type(config.seed)) == (int, int)
    assert "rounds = 3\n" in settings.to_toml(config, {})
    with pytest.raises(ConfigError, match="--epochs"):
        settings.from_options({"epochs": np.bool_(True)})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rounds": "3"}, "rounds='3': choose a whole number from 1"),
        ({"client_lr": -1}, "client_lr=-1: choose a finite number from 0"),
        ({"client_lr": None, "epochs": None}, "epochs=None: choose a whole number"),
        ({"pixels": "paper"}, "pixels=paper: choose one of source, ink, background"),
        ({"algorithm": "fedprx"}, "unknown algorithm 'fedprx'; .*did you mean fedprox"),
        ({"client_optimizer": "adma"}, "unknown client_optimizer 'adma'; .*did you mean adam"),
        (
            {"algorithm": "unweighted-fed-avg"},
            'unknown .*, write algorithm="fedavg", client_weighting="uniform"$',
        ),
        ({"sampling": "unifrm"}, "unknown sampling 'unifrm'; .*did you mean uniform"),
        ({"partition": "idd"}, "unknown partition 'idd'; .*did you mean iid"),
        ({"data": {}}, r"data is of type dict; .*fedcli.train\(config, out, data=...\) takes"),
        ({"model": object()}, r"model is of type object; .* out, model=...\) takes objects"),
    ],
)
def test_values_are_checked_when_a_config_is_made(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RunConfig(**values)
    assert "--" not in str(caught.value)


def test_an_unknown_option_has_a_hint() -> None:
    wrong: Any = {"client_rate": 0.1}
    with pytest.raises(TypeError, match="no option 'client_rate'; did you mean client_lr"):
        RunConfig(**wrong)
    wrong = {"lr": 0.1}
    with pytest.raises(TypeError, match="no option 'lr'; write client_lr= or server_lr="):
        RunConfig(**wrong)


def test_a_class_in_place_of_a_name_is_led_to_its_file() -> None:
    wrong: Any = {"algorithm": int}
    with pytest.raises(ConfigError, match=r"algorithm .*: give the path of its file, 'FILE.py:int"):
        RunConfig(**wrong)


def test_values_take_their_own_types() -> None:
    config = RunConfig(rounds=np.int64(3), client_lr=1, clients=5)  # type: ignore[arg-type]
    assert type(config.rounds) is int
    assert (type(config.client_lr), config.clients) == (float, "5")
