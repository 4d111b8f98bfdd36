from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.datasets.batches import decode
from fedcli.datasets.partitions import partitioning
from fedcli.reports import html, prediction_summary
from fedcli.reports.prediction_summary import PredictionSummary, summarize_predictions
from fedcli.runs import evaluating, starting
from fedcli.runs.record import load_run
from fedcli.runs.trained import load_trained
from fedcli.settings.run_config import RunConfig
from tests.kit.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictions") / "run"
    config = RunConfig(data_options={"clients": 12}, clients="6", rounds=4, threads=2)
    train(path, config)
    return path


@pytest.fixture(scope="module")
def summary(run: Path) -> PredictionSummary:
    return summarize_predictions(run)


def test_predictions_are_the_largest_logits(run: Path, summary: PredictionSummary) -> None:
    trained = load_trained(run, threads=1)
    kernel, bias = trained.model.layout.split(trained.state.global_model_weights)
    for sample in summary.samples:
        client = sample.client
        images = decode(client.pixels, client.scale, client.offset)
        logits = images.reshape(len(images), -1) @ kernel + bias
        assert sample.predicted.tolist() == logits.argmax(axis=1).tolist()


def test_confusion_agrees_with_the_accuracy(run: Path, summary: PredictionSummary) -> None:
    metrics = evaluating.evaluate_run(run).values
    assert summary.confusion is not None
    assert summary.num_counted == summary.confusion.sum() == metrics["num_examples"]
    share = np.trace(summary.confusion) / summary.num_counted
    assert share == pytest.approx(metrics["sparse_categorical_accuracy"])


def test_a_page_says_that_the_confusion_matrix_is_of_a_part(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = html.page([load_run(run)], summarize_predictions(run), [])
    num_examples = evaluating.evaluate_run(run).values["num_examples"]
    assert f">{num_examples:,} examples (test)" in page
    assert page.count("online: measured in training, on each batch before its step") == 1
    monkeypatch.setattr(prediction_summary, "_MAX_EXAMPLES", num_examples // 2)
    part = summarize_predictions(run)
    assert 0 < part.num_counted < num_examples
    page = html.page([load_run(run)], part, [])
    assert f">{part.num_counted:,} of {num_examples:,} examples (test)" in page


def test_each_client_has_its_accuracy(summary: PredictionSummary) -> None:
    assert len(summary.client_ids) == len(summary.accuracies) == 6
    assert ((summary.accuracies >= 0) & (summary.accuracies <= 1)).all()
    assert sum(len(each.predicted) for each in summary.samples) == 40


def test_the_data_are_opened_and_dealt_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(
        data_options={"clients": 12},
        partition="iid",
        partition_options={"clients": 5},
        rounds=1,
        epochs=1,
    )
    with starting.start(config, tmp_path / "run") as training:
        training.complete()
    num_deals = 0
    original = partitioning.apply

    def count(*given: Any, **named: Any) -> Any:
        nonlocal num_deals
        num_deals += 1
        return original(*given, **named)

    monkeypatch.setattr(partitioning, "apply", count)
    summary = summarize_predictions(tmp_path / "run")
    assert num_deals == 1
    assert summary.num_counted > 0
    assert len(summary.client_ids) == 5
