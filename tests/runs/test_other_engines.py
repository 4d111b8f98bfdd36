"""An engine with only the documented methods trains every kind of run to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.models.model import Model
from fedcli.runs import evaluating
from fedcli.runs.files import folder
from fedcli.runs.trained import load_trained
from tests.kit.toy_engine import ToyEngine
from tests.kit.training import (
    SMALL,
    VARIANTS,
    make_config,
    results,
    resume_to_end,
    train,
    train_rounds,
)

LOCAL_ONLY: dict[str, Any] = {
    "algorithm": "local-only",
    "sampling": "with-replacement",
    "clients": "7",
    "eval_every": 2,
    "eval_clients": "all",
}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[ToyEngine]:
    """Makes runs compute with toy engines; returns the list of these engines."""
    made: list[ToyEngine] = []

    def make(model: Model, num_threads: int | None = None) -> Engine:
        made.append(ToyEngine(num_threads))
        return made[-1]

    monkeypatch.setattr(choosing, "make_engine", make)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_another_engine_has_the_same_bytes(
    tmp_path: Path, variant: str, request: pytest.FixtureRequest
) -> None:
    config = make_config(**{**VARIANTS[variant], "record_clients": variant != "centralized"})
    train(tmp_path / "threads", config)
    toys = request.getfixturevalue("toys")
    train(tmp_path / "toy", config)
    assert sum(toy.num_tasks for toy in toys) > 0
    assert results(tmp_path / "toy") == results(tmp_path / "threads")


def test_a_run_may_go_on_with_another_engine(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = make_config(**VARIANTS["scaffold"])
    train(tmp_path / "straight", config)
    out = tmp_path / "changed"
    train_rounds(out, config, 1)
    toys = request.getfixturevalue("toys")
    resume_to_end(out)
    assert sum(toy.num_tasks for toy in toys) == 5 * 4
    assert results(out) == results(tmp_path / "straight")


def test_clients_models_are_the_same_on_another_engine(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = []
    for name in ("threads", "toy"):
        if name == "toy":
            request.getfixturevalue("toys")
        out = tmp_path / name
        train(out, make_config(**LOCAL_ONLY))
        files = [out / "metrics.jsonl", out / "evaluation.json", folder.latest_checkpoint(out)]
        with load_trained(out, 1) as trained:
            ids = [f"s{number:07}" for number in range(SMALL["data_options"]["clients"])]
            models = [trained.state.weights_for(each) for each in ids]
        found.append([*(each.read_bytes() for each in files), np.array(models).tobytes()])
        assert np.ptp(models, axis=0).max() > 0.001
    assert found[0] == found[1]


def test_fine_tuned_models_score_the_same_on_another_engine(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    train(tmp_path / "run", make_config(rounds=2))
    options = evaluating.FineTuningOptions(num_steps=7)
    found = []
    for name in ("threads", "toy"):
        if name == "toy":
            request.getfixturevalue("toys")
        told = evaluating.evaluate_run(tmp_path / "run", split="test", fine_tuning=options)
        found.append(json.dumps(told.metrics))
    assert found[0] == found[1]
