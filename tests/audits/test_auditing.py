"""Audits of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.audits.auditing import audit_run
from fedcli.audits.canary import Canary
from fedcli.audits.likelihood_ratio import LikelihoodRatio
from fedcli.audits.loss_threshold import LossThreshold
from fedcli.datasets.batch_plan import plan_of
from fedcli.errors import ConfigError, DataError
from fedcli.evaluation.predictions import predict_client
from fedcli.federation.opened_data import open_data
from fedcli.federation.sampled_clients import open_sampled_clients
from fedcli.runs.files import folder
from fedcli.runs.trained import load_trained
from tests.kit.own_parts import write_example
from tests.kit.stores import write_counted_store
from tests.kit.training import move_to_a_lost_cluster, trained

SMALL: dict[str, Any] = {"data_options": {"clients": 12}, "rounds": 2, "max_examples": 60}


def report_privacy(run: Path, epsilon: float) -> None:
    """Adds an epsilon to the last line of metrics.jsonl, as a private run has it."""
    file = run / folder.METRICS
    lines = [json.loads(each) for each in file.read_text().splitlines()]
    lines[-1]["aggregator"] = {"epsilon": epsilon, "delta": 1e-5}
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_loss_threshold_compares_the_examples_that_were_trained_on(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", clients="4", **SMALL)
    result = audit_run(run, "loss-threshold", {"others": "unseen"}, threads=1)
    assert isinstance(result, LossThreshold)
    losses: list[list[float]] = [[], []]
    with load_trained(run, 1) as model:
        train = open_data(model.config.data_source)["train"]
        for place, client_id in enumerate(train.client_ids):
            weights = model.state.evaluated_weights
            for each in predict_client(train.client(client_id), model.model, model.engine, weights):
                losses[place >= 4] += each.losses.tolist()
    assert result.separation.num_members == len(losses[0])
    assert result.separation.num_others == len(losses[1])
    assert result.threshold == pytest.approx(np.mean(losses[0]))
    assert result.rates[1] == np.mean(np.array(losses[1]) <= np.mean(losses[0]))
    test = audit_run(run, "loss-threshold", threads=1)
    assert isinstance(test, LossThreshold)
    assert test.separation.num_members == len(losses[0])
    assert test.others == "test examples"


# After many local steps on few examples, a model fits each of them.
FITTED: dict[str, Any] = {**SMALL, "epochs": 20, "max_examples": None, "client_lr": 0.1}


def lira(run: Path, threads: int = 1, **options: Any) -> LikelihoodRatio:
    result = audit_run(run, "lira", options, threads=threads)
    assert isinstance(result, LikelihoodRatio)
    return result


def test_lira_distinguishes_clients_of_a_small_cohort(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", clients="4", **FITTED)
    result = lira(run, shadows=8)
    assert result.separation.auc > 0.7
    assert (result.separation.num_members, result.separation.num_others) == (4, 4)
    assert len(result.members) == 4
    for threads in (2, 7):
        assert lira(run, threads, shadows=8).scores == result.scores
    assert all(0.0 <= each <= 1.0 for each in lira(run, shadows=8, offline=True).scores.values())


def test_lira_knows_who_took_part_where_cohorts_are_drawn(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", clients="4", sampling="uniform", **FITTED)
    result = lira(run, shadows=16)
    with load_trained(run, 1) as model:
        train = open_data(model.config.data_source)["train"]
        config = model.config
    _, sampled = open_sampled_clients(config, train, plan_of(config), [])
    seen = sampled.seen(config.rounds)
    assert 4 <= len(seen) < 12
    assert result.members <= seen
    assert not (result.scores.keys() - result.members) & seen


def test_a_canary_is_recognised_and_bounds_epsilon(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", clients="3", **FITTED)
    report_privacy(run, 0.01)
    result = audit_run(run, "canary", {"shadows": 12}, threads=1)
    assert isinstance(result, Canary)
    assert result.with_canary[0] > 4
    assert result.without == (0, 9)
    assert result.with_canary[1] == 9
    assert result.privacy == (0.01, 1e-5)
    assert result.proves_fault  # a run without noise is not 0.01-private
    report_privacy(run, 8.0)
    honest = audit_run(run, "canary", {"shadows": 4}, threads=1)
    assert isinstance(honest, Canary)
    assert not honest.proves_fault


def test_shadows_do_not_measure_the_run_s_own_metric(tmp_path: Path) -> None:
    code = tmp_path / "scaled.py"
    code.write_text(
        "class Scaled:\n"
        "    def __init__(self, num_classes, scale=1.0):\n        self.scale = scale\n\n"
        "    def add(self, labels, predicted, probabilities):\n        pass\n\n"
        "    def value(self):\n        return self.scale\n"
    )
    own = {"metrics": (str(code),), "metric_options": {"scale": 2.0}}
    plain = trained(tmp_path / "plain", clients="4", **SMALL)
    measured = trained(tmp_path / "measured", clients="4", **SMALL, **own)
    found = [audit_run(run, "canary", {"shadows": 4}, threads=1) for run in (plain, measured)]
    assert found[0].to_json() == found[1].to_json()


@pytest.mark.parametrize("name", ["canary", "lira", "gradient-inversion"])
@pytest.mark.parametrize(
    ("word", "field"),
    [("FedExP", "algorithm"), ("Median", "aggregator"), ("Lion", "server_optimizer")],
)
def test_code_of_a_run_is_refused_and_not_run(
    tmp_path: Path, name: str, word: str, field: str
) -> None:
    code = write_example(tmp_path, word, "part.py")
    run = trained(tmp_path / "run", clients="4", **SMALL, **{field: str(code)})
    code.write_text("raise SystemExit('this must not run')\n")
    with pytest.raises(ConfigError, match="code of yours, which an audit does not run"):
        audit_run(run, name, {}, threads=1)
    assert isinstance(audit_run(run, "loss-threshold", {}, threads=1), LossThreshold)


def test_shadows_of_a_run_on_a_cluster_are_computed_by_threads(tmp_path: Path) -> None:
    near = trained(tmp_path / "near", clients="4", **SMALL)
    far = trained(tmp_path / "far", clients="4", **SMALL)
    move_to_a_lost_cluster(far)
    assert lira(far, shadows=6).scores == lira(near, shadows=6).scores
    found = [audit_run(run, "canary", {"shadows": 4}, threads=1) for run in (near, far)]
    assert found[0].to_json() == found[1].to_json()


def test_the_epsilon_of_a_private_run_is_found(tmp_path: Path) -> None:
    private = {"dp": "gaussian", "dp_options": {"noise_multiplier": 1.0, "delta": 1e-3}}
    run = trained(tmp_path / "run", clients="4", sampling="poisson", **SMALL, **private)
    result = audit_run(run, "loss-threshold", threads=1)
    assert isinstance(result, LossThreshold)
    reported = folder.read_metrics(run)[-1]["aggregator"]
    assert result.privacy == (reported["epsilon"], 1e-3)


def test_an_audit_changes_nothing_in_the_run(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", clients="3", **SMALL)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    audit_run(run, "canary", {"shadows": 4}, threads=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("values", "name", "options", "words"),
    [
        ({"clients": "all"}, "lira", {}, "every client took part"),
        ({"clients": "all"}, "loss-threshold", {"others": "unseen"}, "choose others=test"),
        ({"clients": "3"}, "canary", {"canary": "nobody"}, "no such client may take part"),
        ({"clients": "3"}, "canary", {"shadows": 3}, "a whole number from 4 to"),
        ({"clients": "3"}, "lirra", {}, "did you mean lira"),
        ({"clients": "3", "algorithm": "local-only"}, "lira", {}, "send no updates"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, values: dict[str, Any], name: str, options: dict[str, Any], words: str
) -> None:
    run = trained(tmp_path / "run", **{**SMALL, "rounds": 1}, **values)
    with pytest.raises(ConfigError, match=words):
        audit_run(run, name, options, threads=1)


def test_a_run_whose_data_are_gone_is_refused(tmp_path: Path) -> None:
    store = write_counted_store(tmp_path / "data.h5", train={"a": 5, "b": 6})
    run = trained(tmp_path / "run", data=str(store), data_options={}, rounds=1, clients="1")
    store.unlink()
    with pytest.raises(DataError, match="does not exist; an audit"):
        audit_run(run, "loss-threshold", {"others": "unseen"}, threads=1)
