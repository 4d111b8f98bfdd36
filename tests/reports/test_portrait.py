from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcli.datasets.batches import decode
from fedcli.reports import html, portrait
from fedcli.reports.portrait import Portrait
from fedcli.runs import evaluating, starting
from fedcli.runs.record import load_run
from fedcli.runs.trained import load_trained
from fedcli.settings.run_config import RunConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "run"
    config = RunConfig(data_options={"clients": 12}, clients="6", rounds=4, threads=2)
    with starting.start(config, path) as training:
        list(training.run())
        training.finish()
    return path


@pytest.fixture(scope="module")
def drawn(run: Path) -> Portrait:
    return portrait.portray(run)


def test_predictions_are_the_greatest_logits(run: Path, drawn: Portrait) -> None:
    trained = load_trained(run, threads=1)
    kernel, bias = trained.model.layout.split(trained.state.global_model_weights)
    for sample in drawn.samples:
        client = sample.client
        images = decode(client.pixels, client.scale, client.offset)
        logits = images.reshape(len(images), -1) @ kernel + bias
        assert sample.predicted.tolist() == logits.argmax(axis=1).tolist()


def test_confusion_agrees_with_the_accuracy(run: Path, drawn: Portrait) -> None:
    metrics = evaluating.evaluate_run(run).values
    assert drawn.confusion is not None
    assert drawn.num_counted == drawn.confusion.sum() == metrics["num_examples"]
    share = np.trace(drawn.confusion) / drawn.num_counted
    assert share == pytest.approx(metrics["sparse_categorical_accuracy"])


def test_a_page_says_that_the_confusion_matrix_is_of_a_part(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = html.page([load_run(run)], portrait.portray(run), [])
    num_examples = evaluating.evaluate_run(run).values["num_examples"]
    assert f">{num_examples:,} examples (test)" in page
    assert page.count("online: measured in training, on each batch before its step") == 1
    monkeypatch.setattr(portrait, "_MAX_EXAMPLES", num_examples // 2)
    part = portrait.portray(run)
    assert 0 < part.num_counted < num_examples
    page = html.page([load_run(run)], part, [])
    assert f">{part.num_counted:,} of {num_examples:,} examples (test)" in page


def test_each_client_has_its_accuracy(drawn: Portrait) -> None:
    assert len(drawn.client_ids) == len(drawn.accuracies) == 6
    assert ((drawn.accuracies >= 0) & (drawn.accuracies <= 1)).all()
    assert sum(len(each.predicted) for each in drawn.samples) == 40
