"""Private runs from start to report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.privacy.accountant import Accountant
from fedcli.privacy.schemes import FixedSize, PoissonSampled, scheme_of, tree_scheme
from fedcli.reports import tables as report_tables
from fedcli.runs import evaluating, starting
from fedcli.runs.files import folder
from fedcli.runs.record import load_run
from tests.kit.command_line import Fedcli
from tests.kit.training import SMALL, make_config, results, train

DP: dict[str, Any] = {
    "dp": "gaussian",
    "dp_options": {"noise_multiplier": 1.2, "clip": 0.3, "delta": 1e-3},
    "sampling": "poisson",
    "rounds": 3,
}
ONE_LINE = ["--data-option", "clients=12", "--rounds", "3", "--epochs", "1", "--clients", "3"]


def private(**values: Any) -> Any:
    options = {**DP["dp_options"], **values.pop("dp_options", {})}
    return make_config(**{**DP, **values, "dp_options": options})


def spent(path: Path) -> list[tuple[float, float]]:
    lines = [line["aggregator"] for line in folder.read_metrics(path)]
    return [(line["epsilon"], line["epsilon_rdp"]) for line in lines]


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ({}, PoissonSampled(4 / 12)),
        ({"sampling": "uniform"}, FixedSize(4 / 12)),
        ({"sampling": "tff"}, FixedSize(4 / 12)),
        ({"sampling": "fixed"}, scheme_of("fixed", 4, 4)),
        ({"sampling": "uniform", "clients": "12"}, scheme_of("fixed", 4, 4)),
        ({"sampling": "cyclic"}, scheme_of("cyclic", 12, 4)),
        ({"sampling": "cyclic", "dp": "tree"}, tree_scheme(12, 4, 3)),
        ({"client_dropout": 0.5}, PoissonSampled(4 / 12)),
    ],
)
def test_each_round_has_the_epsilon_of_its_sampling(
    tmp_path: Path, values: dict[str, Any], scheme: Any
) -> None:
    train(tmp_path / "run", private(**values))
    accountant = Accountant(scheme, 1.2, 1e-3)
    assert spent(tmp_path / "run") == [accountant.spent(n) for n in (1, 2, 3)]


def test_a_target_is_met_and_noted(tmp_path: Path) -> None:
    config = make_config(**{**DP, "dp_options": {"target_epsilon": 2.0, "delta": 1e-3}})
    with starting.start(config, tmp_path / "run") as training:
        training.complete()
        notes = " ".join(training.notes)
    last = folder.read_metrics(tmp_path / "run")[-1]["aggregator"]
    assert 1.99 < last["epsilon"] <= 2.0
    told = f"noise_multiplier {last['noise_multiplier']:g} spends epsilon {last['epsilon']:.4f}"
    assert told in notes
    assert "simulated" in notes


def test_more_rounds_keep_the_noise_and_spend_more(tmp_path: Path) -> None:
    train(tmp_path / "long", private(rounds=5))
    train(tmp_path / "short", private())
    with starting.resume(tmp_path / "short", rounds=5) as training:
        training.complete()
    assert spent(tmp_path / "short") == spent(tmp_path / "long")
    assert (
        results(tmp_path / "short")["metrics.jsonl"]
        == (results(tmp_path / "long")["metrics.jsonl"])
    )


def test_more_rounds_than_a_target_was_set_for_are_refused(tmp_path: Path) -> None:
    config = make_config(**{**DP, "dp_options": {"target_epsilon": 2.0, "delta": 1e-3}})
    train(tmp_path / "run", config)
    files = [each for each in (tmp_path / "run").rglob("*") if each.is_file()]
    before = {each: each.read_bytes() for each in files}
    with pytest.raises(ConfigError, match="the first 3 rounds had noise multiplier"):
        starting.resume(tmp_path / "run", rounds=30)
    assert {each: each.read_bytes() for each in files} == before


@pytest.mark.numeric
def test_noise_moves_the_model_by_what_it_should(tmp_path: Path) -> None:
    """Softmax regression has 7,850 parameters; with a tiny clipping norm only noise moves them."""
    quiet, noisy = (private(rounds=1, dp_options={"noise_multiplier": z}) for z in (0.0, 50.0))
    models = []
    for name, config in (("quiet", quiet), ("noisy", noisy)):
        train(tmp_path / name, config)
        models.append(load_run(tmp_path / name).weights().trainable)
    moved = np.concatenate(
        [(b - a).ravel() for a, b in zip(*models, strict=True)], dtype=np.float64
    )
    expected = 50 * 0.3 / 4
    assert np.std(moved) == pytest.approx(expected, rel=5 / math.sqrt(2 * len(moved)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dp_options": {"delta": 0.1}}, "with 12 clients it must be below 0.0833333"),
        ({"sampling": "cyclic", "clients": "5"}, "choose a --clients that divides 12"),
        (
            {"sampling": "cyclic", "dp": "tree", "dp_options": {"restart_every": 2}},
            "a pass over all clients takes 3 rounds",
        ),
        ({"dp": "gaussian-adaptive"}, "choose more than 12 --clients, or a count_stddev above 0.6"),
    ],
)
def test_populations_that_do_not_fit_are_refused_before_there_is_a_run(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        starting.start(private(**values), tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_stored_private_run_is_evaluated(tmp_path: Path) -> None:
    closing = train(tmp_path / "run", private(sampling="cyclic", dp="tree"))
    found = evaluating.evaluate_run(tmp_path / "run", split="test")
    assert found.metrics == closing["test"]


def test_tables_json_and_report_show_the_spent_epsilon(fedcli: Fedcli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dp = ["--dp", "gaussian", "--dp-option", "delta=1e-3", "--sampling", "poisson"]
    told = fedcli("train", *ONE_LINE, *dp, "--dp-option", "noise_multiplier=1", "--out", str(run))
    epsilons = [f"{each:.4f}" for each, _ in spent(run)]
    rows = [line.split() for line in told.out.splitlines()]
    assert [row[-2:] for row in rows if row[:1] in (["1"], ["2"], ["3"])] == [
        [epsilon, "0.1"] for epsilon in epsilons
    ]
    epsilon, by_renyi = spent(run)[-1]
    sentence = f"epsilon {epsilon:.4f} (Renyi {by_renyi:.4f}), delta 0.001, simulated"
    assert f"Privacy  {sentence}" in told.out
    assert f"gaussian: {sentence}" in fedcli("report", str(run)).out
    reported = json.loads(fedcli("report", "--json", str(run)).out)["runs"][0]["privacy"]
    assert reported == {
        "private": True,
        "epsilon": epsilon,
        "epsilon_rdp": by_renyi,
        "delta": 1e-3,
        "clip_norm": 0.1,
    }


def test_an_infinite_epsilon_is_null(fedcli: Fedcli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dp = ["--dp", "gaussian", "--dp-option", "noise_multiplier=0", "--dp-option", "delta=1e-3"]
    options = [*ONE_LINE, *dp, "--sampling", "poisson", "--out", str(run)]
    told = fedcli("train", "--json", *options)
    assert "the run is not private" in told.err
    last = json.loads(told.out)["rounds"][-1]["aggregator"]
    assert (last["epsilon"], last["epsilon_rdp"], last["private"]) == (None, None, False)
    reported = json.loads(fedcli("report", "--json", str(run)).out)["runs"][0]["privacy"]
    assert (reported["private"], reported["epsilon"]) == (False, None)
    assert "none: there was no noise" in fedcli("report", str(run)).out


def test_several_runs_are_compared_by_epsilon(tmp_path: Path) -> None:
    train(tmp_path / "private", private())
    train(tmp_path / "plain", make_config(rounds=1))
    runs = [load_run(tmp_path / name) for name in ("private", "plain")]
    table = report_tables.side_by_side(runs)
    place = table.headers.index("epsilon")
    assert [row[place] for row in table.rows] == [f"{spent(tmp_path / 'private')[-1][0]:.4f}", "-"]


def test_tensorboard_has_epsilon_by_round(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", private(tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train")).Reload()
    for tag, place in (("privacy/epsilon", 0), ("privacy/epsilon_rdp", 1)):
        values = [each.value for each in events.Scalars(tag)]
        assert values == pytest.approx([each[place] for each in spent(tmp_path / "run")], rel=1e-6)
    assert [each.value for each in events.Scalars("privacy/clip_norm")] == pytest.approx([0.3] * 3)


def test_the_same_seed_has_the_same_noise_and_another_seed_another(tmp_path: Path) -> None:
    config = settings.validate(private())
    for name, changed in (("a", config), ("b", config), ("c", replace(config, seed=1))):
        train(tmp_path / name, changed)
    a, b, c = (results(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    assert SMALL["threads"] == 2
    with starting.start(replace(config, threads=7), tmp_path / "seven") as training:
        training.complete()
    seven = results(tmp_path / "seven")
    assert seven["metrics.jsonl"] == a["metrics.jsonl"]
