from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.settings.run_config import RunConfig
from fedcli.settings.toml_values import toml_value

COUNTS = st.integers(1, 2**31 - 1)
RATES = st.floats(0, 1e30, allow_nan=False)
IDS = st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4)


def test_defaults_are_the_tutorials() -> None:
    config = settings.from_options({})
    assert (config.data, config.clients, config.sampling) == ("synthetic-digits", None, "fixed")
    assert (config.epochs, config.batch_size, config.shuffle_buffer) == (5, 20, 100)
    assert (config.client_optimizer, config.client_lr) == ("sgd", 0.02)
    assert (config.server_optimizer, config.server_lr, config.rounds) == ("sgd", 1.0, 10)
    assert config.client_weighting == "num-examples"


def test_validate_completes_option_maps() -> None:
    config = settings.from_options({"client_options": {"momentum": 1}})
    assert config.client_options == {"momentum": 1.0, "nesterov": False}
    assert config.data_options["clients"] == 200


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("client_lr", math.nan, "--client-lr nan"),
        ("client_lr", -0.1, "--client-lr -0.1"),
        ("server_lr", math.inf, "--server-lr inf"),
        ("server_lr", True, "--server-lr true"),
        ("batch_size", 0, "--batch-size 0"),
        ("batch_size", 2.5, "--batch-size 2.5"),
        ("epochs", True, "--epochs True"),
        ("rounds", 0, "--rounds 0"),
        ("rounds", 2**31, "--rounds 2147483648"),
        ("seed", -1, "--seed -1"),
        ("seed", 2**63, "--seed 9223372036854775808"),
        ("threads", 0, "--threads 0"),
        ("threads", 1025, "--threads 1025: choose a whole number from 1 to 1024"),
        ("shuffle_buffer", -1, "--shuffle-buffer -1"),
        ("shuffle_buffer", "half", "--shuffle-buffer half"),
        ("max_examples", 0, "--max-examples 0"),
        ("num_classes", 0, "--num-classes 0"),
        ("eval_every", 0, "--eval-every 0"),
        ("checkpoint_every", -3, "--checkpoint-every -3"),
        ("pixels", "grey", "--pixels grey"),
        ("sampling", "lottery", "unknown --sampling 'lottery'; choose one of by-size, "),
        ("pipeline", "", "--pipeline ''"),
        ("client_weighting", "equal", "--client-weighting equal"),
        ("model", "transformer", "--model 'transformer'"),
        ("algorithm", "fedmagic", "--algorithm 'fedmagic'"),
        ("client_optimizer", "lion", "--client-optimizer 'lion'"),
        ("aggregator", "sum", "--aggregator 'sum'"),
        ("client_options", {"momentun": 0.9}, "--client-option: "),
        ("server_options", {"momentum": 2.0}, "--server-option: "),
        ("client_schedule", "linear", "--client-schedule 'linear'"),
        ("server_schedule", "warmup", "--server-schedule 'warmup'"),
        ("client_schedule_options", {"decay_rounds": 3}, "--client-schedule-option: constant"),
        ("client_clip_norm", 0, "--client-clip-norm 0: choose a finite number from 1.2e-38"),
        ("client_clip_norm", math.nan, "--client-clip-norm nan"),
        ("client_clip_norm", 1e39, "--client-clip-norm 1e+39"),
        ("data", "", "--data ''"),
        ("data", "a\nb", "--data 'a\\nb'"),
        ("clients", " ", "--clients "),
        ("eval_clients", (), "--eval-clients ()"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_option(field: str, value: Any, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.from_options({field: value})
    message = str(caught.value)
    assert option in message
    assert "\n" not in message


def test_the_tff_sampler_takes_the_seeds_of_its_generator() -> None:
    assert settings.from_options({"sampling": "tff", "seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(ConfigError, match=r"--seed 4294967296 with --sampling tff: .* 4294967295"):
        settings.from_options({"sampling": "tff", "seed": 2**32})


def test_clients_drawn_by_size_have_equal_weights() -> None:
    config = settings.from_options({"sampling": "by-size"})
    assert config.client_weighting == "uniform"
    text = settings.to_toml(config, {})
    assert settings.from_options(settings.from_toml(text, "config.toml")) == config
    with pytest.raises(ConfigError, match="--client-weighting num-examples with --sampling by-si"):
        settings.from_options({"sampling": "by-size", "client_weighting": "num-examples"})


def test_merge_forgets_weights_that_followed_from_sampling_by_size() -> None:
    by_size = {"sampling": "by-size", "client_weighting": "uniform"}
    others = {"sampling": "poisson", "client_weighting": "num-examples"}
    assert settings.merge(others, {"sampling": "by-size"}) == {"sampling": "by-size"}
    assert settings.merge(by_size, {"sampling": "poisson"}) == {"sampling": "poisson"}
    weighted = {"client_weighting": "num-examples"}
    assert settings.merge(weighted, {"sampling": "by-size"}) == {"sampling": "by-size"}
    assert settings.merge(by_size, {"rounds": 3}) == {**by_size, "rounds": 3}
    assert settings.merge(others, {"sampling": "cyclic"}) == {**others, "sampling": "cyclic"}
    assert settings.merge(others, by_size) == by_size


def test_data_options_are_refused_for_a_file() -> None:
    with pytest.raises(ConfigError, match=r"--data-option clients is not for data files"):
        settings.from_options({"data": "some.h5", "data_options": {"clients": 3}})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data": st.sampled_from(["synthetic-digits", "/data/a b.h5", "é.h5"]),
            "test_data": st.text("ab/.\"'\\#é ", min_size=1).filter(str.strip),
            "clients": st.one_of(st.just("all"), COUNTS.map(str), IDS.map(tuple)),
            "rounds": COUNTS,
            "shuffle_buffer": st.one_of(st.just("full"), st.integers(0, 10**6)),
            "max_examples": COUNTS,
            "client_lr": RATES,
            "server_options": st.fixed_dictionaries(
                {"momentum": st.floats(0.01, 1), "nesterov": st.booleans()}
            ),
            "client_schedule": st.sampled_from(["linear-warmup", "exponential"]),
            "client_clip_norm": st.floats(1e-30, 1e30),
            "seed": st.integers(0, 2**63 - 1),
            "eval_every": COUNTS,
        },
    )
)
def test_toml_round_trip(values: dict[str, Any]) -> None:
    config = settings.from_options(values)
    text = settings.to_toml(config, {"fedcli": "1", "threads": 2})
    assert settings.from_options(settings.from_toml(text, "config.toml")) == config
    assert settings.read_provenance(text, "config.toml") == {"fedcli": "1", "threads": 2}


def test_toml_holds_every_set_option_and_only_those() -> None:
    config = settings.validate(RunConfig())
    set_ones = {each.name for each in fields(config) if getattr(config, each.name) is not None}
    written = settings.from_toml(settings.to_toml(config, {}), "config.toml")
    # Maps without options are left out.
    assert set_ones - written.keys() == {
        "augment_options",
        "partition_options",
        "sampling_options",
        "model_options",
        "algorithm_options",
        "aggregator_options",
        "pre_aggregator_options",
        "attack_options",
        "compress_options",
        "secure_sum_options",
        "dp_options",
        "client_schedule_options",
        "server_schedule_options",
        "engine_options",
        "metric_options",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[run]\nbatchsize = 3", "has no key 'batchsize'"),
        ("[run]\nbatch_size = '3'", "c.toml: batch_size '3'"),
        ("[run]\nclient_options = 3", "c.toml: client_options 3"),
        ("[run]\nclients = [1, 2]", "c.toml: clients [1, 2]"),
        ("[run]\nclients = 1.0", "c.toml: clients 1.0"),
        ("[run]\nclients = nan", "c.toml: clients nan"),
        ("[run]\ntest_data = true", "c.toml: test_data True"),
        ("[run]\nout = 'x'", "has no key 'out'"),
        ("rounds = 3", "needs one table [run]"),
        ("run = 3", "needs one table [run]"),
        ("[run", "c.toml is not TOML"),
        ("a = " + "[" * 5000, "c.toml is not TOML"),
    ],
)
def test_a_bad_config_file_is_one_line_that_names_file_and_key(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.from_toml(text, "c.toml")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_may_say_clients_as_a_number_or_a_list() -> None:
    assert settings.from_toml("[run]\nclients = 3", "c")["clients"] == "3"
    assert settings.from_toml("[run]\nclients = 0.1", "c")["clients"] == "0.1"
    assert settings.from_toml("[run]\nclients = 1e-5", "c")["clients"] == "1e-05"
    assert settings.from_toml("[run]\nclients = ['a', 'b,c']", "c")["clients"] == ("a", "b,c")


def test_merge_keeps_options_of_the_same_thing_only() -> None:
    base = {"client_lr": 0.5, "client_options": {"momentum": 0.9, "nesterov": True}}
    same = settings.merge(base, {"client_options": {"nesterov": False}})
    assert same == {"client_lr": 0.5, "client_options": {"momentum": 0.9, "nesterov": False}}
    other = settings.merge(base, {"client_optimizer": "adam"})
    assert other["client_options"] == {}
    again = settings.merge(base, {"client_optimizer": "sgd"})
    assert again["client_options"] == base["client_options"]


def test_options_parse_as_toml_else_text() -> None:
    texts = ["a=0.5", "b=true", "c=reddi", "d=[0.25, 0.5]", "e = 3", "f='3'", "g=1\nh=2", "i="]
    assert settings.parse_options(texts, "--x-option") == {
        "a": 0.5,
        "b": True,
        "c": "reddi",
        "d": [0.25, 0.5],
        "e": 3,
        "f": "3",
        "g": "1\nh=2",
        "i": "",
    }


@pytest.mark.parametrize("texts", [["momentum"], ["=3"], ["a=1", "a=2"]])
def test_options_of_another_form_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--client-option"):
        settings.parse_options(texts, "--client-option")


def test_paths_become_absolute_and_names_stay() -> None:
    config = RunConfig(data="a.h5", test_data="../b.h5", initial_weights="w.npz")
    moved = settings.absolute_paths(config, "/home/me")
    assert (moved.data, moved.test_data, moved.initial_weights) == (
        "/home/me/a.h5",
        "/home/b.h5",
        "/home/me/w.npz",
    )
    assert settings.absolute_paths(RunConfig(), "/home").data == "synthetic-digits"


def test_fedsgd_has_no_client_optimizer_and_a_server_rate_of_its_own() -> None:
    config = settings.from_options({"algorithm": "fedsgd"})
    assert (config.client_optimizer, config.client_lr, config.client_options) == (None, None, {})
    assert config.server_lr == 0.1
    assert settings.from_options({"algorithm": "fedsgd", "server_lr": 1.0}).server_lr == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client_optimizer", "sgd"),
        ("client_lr", 0.02),
        ("client_options", {"momentum": 0.9}),
        ("client_schedule", "constant"),
        ("client_schedule_options", {"warmup_rounds": 3}),
        ("client_clip_norm", 1.0),
    ],
)
def test_fedsgd_refuses_a_client_optimizer(name: str, value: Any) -> None:
    option = settings.option_name(name)
    with pytest.raises(ConfigError, match=f"^{option}: the clients of fedsgd take no steps"):
        settings.from_options({"algorithm": "fedsgd", name: value})


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_schedule_must_fit_the_rounds(side: str) -> None:
    values = {f"{side}_schedule": "cosine", f"{side}_schedule_options": {"warmup_rounds": 5}}
    with pytest.raises(ConfigError, match=f"^--{side}-schedule-option: cosine: .* 5 rounds"):
        settings.from_options({**values, "rounds": 5})
    config = settings.from_options({**values, "rounds": 6})
    # config.toml keeps 0, which stands for all rounds, because a continued run may have more.
    assert getattr(config, f"{side}_schedule_options")["decay_rounds"] == 0


def test_schedules_with_lists_go_to_toml_and_back() -> None:
    options = {"boundaries": [2, 5], "factors": [0.5, 0.25], "warmup_rounds": 1}
    values = {"server_schedule": "step", "server_schedule_options": options}
    config = settings.from_options({"client_schedule": "linear-warmup", **values})
    again = settings.from_options(settings.from_toml(settings.to_toml(config, {}), "config.toml"))
    assert again == config
    assert again.server_schedule_options["boundaries"] == [2.0, 5.0]


def test_merge_keeps_options_of_the_same_schedule_only() -> None:
    base = {"client_schedule": "cosine", "client_schedule_options": {"final_factor": 0.1}}
    assert settings.merge(base, {"rounds": 3})["client_schedule_options"] == {"final_factor": 0.1}
    assert settings.merge(base, {"client_schedule": "step"})["client_schedule_options"] == {}


def test_a_fedsgd_run_is_read_back_as_it_was() -> None:
    config = settings.from_options({"algorithm": "fedsgd"})
    again = settings.from_options(settings.from_toml(settings.to_toml(config, {}), "config.toml"))
    assert again == config


def test_another_algorithm_leaves_behind_what_fedsgd_has_no_use_for() -> None:
    base = {"algorithm": "fedavg", "client_optimizer": "adam", "client_lr": 0.1, "server_lr": 1.0}
    merged = settings.merge(base, {"algorithm": "fedsgd"})
    assert settings.from_options(merged) == settings.from_options({"algorithm": "fedsgd"})
    kept = settings.merge(base, {"algorithm": "fedprox"})
    assert settings.from_options(kept).client_optimizer == "adam"
    with pytest.raises(ConfigError, match="--client-lr"):
        settings.from_options(settings.merge(base, {"algorithm": "fedsgd", "client_lr": 0.5}))


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "mime-lite"])
def test_another_algorithm_leaves_behind_the_server_rate_of_fedsgd(name: str) -> None:
    base = {"algorithm": "fedsgd", "server_lr": 0.1}
    assert settings.from_options(settings.merge(base, {"algorithm": name})).server_lr == 1.0
    given = {"algorithm": name, "server_lr": 0.3}
    assert settings.from_options(settings.merge(base, given)).server_lr == 0.3
    assert settings.merge({"server_lr": 0.5}, {"algorithm": name})["server_lr"] == 0.5


def test_a_file_that_gives_fedsgd_a_client_rate_is_refused_with_fedsgd_named_again() -> None:
    base = {"algorithm": "fedsgd", "client_lr": 0.5}
    with pytest.raises(ConfigError, match="--client-lr"):
        settings.from_options(settings.merge(base, {"algorithm": "fedsgd"}))


# ---- Algorithms that prescribe server optimizer, weights or schedule -----------------------------


def test_a_named_server_optimizer_brings_its_options_and_takes_others() -> None:
    config = settings.from_options({"algorithm": "fedyogi", "server_options": {"epsilon": 1e-4}})
    assert (config.server_optimizer, config.server_lr) == ("yogi", 0.01)
    assert config.server_options == {
        **{"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-4},
        **{"initial_preconditioner_value": 0.0, "style": "reddi"},
    }
    assert settings.from_options({"algorithm": "fedavgm"}).server_options["momentum"] == 0.9
    with pytest.raises(ConfigError, match="--server-optimizer sgd: fedadam uses adam"):
        settings.from_options({"algorithm": "fedadam", "server_optimizer": "sgd"})


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "scaffold", "feddyn", "fedavg"])
def test_what_an_algorithm_resolved_is_read_back_and_left_behind(name: str) -> None:
    config = settings.from_options({"algorithm": name, "server_lr": 0.5})
    stored = settings.from_toml(settings.to_toml(config, {}), "config.toml")
    assert settings.from_options(stored) == config
    for other in ("fedavg", "fedyogi", "scaffold", "fedavgm"):
        if other == name:
            continue
        merged = settings.from_options(settings.merge(stored, {"algorithm": other}))
        fresh = settings.from_options({"algorithm": other})
        for field in ("server_optimizer", "server_options", "client_weighting"):
            assert getattr(merged, field) == getattr(fresh, field), (other, field)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_weights_by_examples_are_refused_where_weights_are_equal(name: str) -> None:
    assert settings.from_options({"algorithm": name}).client_weighting == "uniform"
    with pytest.raises(ConfigError, match=f"--client-weighting num-examples with {name}: choose u"):
        settings.from_options({"algorithm": name, "client_weighting": "num-examples"})


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5, math.nan, "much"])
def test_a_running_mean_keeps_a_share(decay: object) -> None:
    with pytest.raises(ConfigError, match="--server-ema"):
        settings.from_options({"server_ema": decay})
    with pytest.raises(ConfigError, match="--server-ema with feddyn"):
        settings.from_options({"server_ema": 0.9, "algorithm": "feddyn"})


def test_a_schedule_by_local_step_does_not_end_with_the_run() -> None:
    by_step = {"client_schedule": "cosine", "client_schedule_by": "local-step"}
    with pytest.raises(ConfigError, match=r"--client-schedule-option: .* give decay_rounds"):
        settings.from_options(by_step)
    options = {"decay_rounds": 50}
    config = settings.from_options({**by_step, "client_schedule_options": options})
    assert config.client_schedule_by == "local-step"
    assert settings.from_options({}).client_schedule_by == "round"
    with pytest.raises(ConfigError, match="--client-schedule-by: the clients of fedsgd take no"):
        settings.from_options({"algorithm": "fedsgd", "client_schedule_by": "local-step"})


def test_records_of_clients_that_are_pooled_are_refused() -> None:
    with pytest.raises(ConfigError, match="--record-clients with --algorithm centralized"):
        settings.from_options({"algorithm": "centralized", "record_clients": True})


@pytest.mark.parametrize("name", ["clients", "eval_clients", "data", "test_data", "model"])
def test_a_text_that_cannot_name_a_file_is_reported(name: str) -> None:
    with pytest.raises(ConfigError, match="has a zero byte or an invalid character; leave it out"):
        settings.from_toml(f'[run]\n{name} = "@a\\u0000b"\n', "config.toml")


@pytest.mark.parametrize(
    "text", ["a = " + "9" * 5000, "a = " + "[" * 9000, "a." * 3000 + "a = 1", '"\\uD800" = 1']
)
def test_toml_that_breaks_its_reader_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not TOML|it needs one table") as raised:
        settings.from_toml(text, "config.toml")
    assert len(str(raised.value)) <= 1000


@pytest.mark.parametrize(
    ("text", "value"), [(".5", 0.5), ("-.25", -0.25), ("2.", 2.0), (".5e-1", 0.05), (".", ".")]
)
def test_numbers_may_lack_digits_on_a_side_of_the_point(text: str, value: object) -> None:
    assert toml_value(text) == value
