"""Suspects by a run: losses under its model, for either meaning of the pixel value 1.0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcli.core.native import Cancelled
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.errors import DataError, RunError
from fedcli.inspection import suspects_by_loss
from fedcli.inspection.suspects_by_loss import rank_with_run
from fedcli.runs.trained import load_trained
from fedcli.settings.run_config import RunConfig
from tests.kit.training import train

NUM_CLIENTS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twenty rounds on writers with correct labels."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(
        data_options={"clients": NUM_CLIENTS, "label_noise": 0.0},
        rounds=20,
        epochs=3,
        clients="all",
        client_lr=0.1,
        threads=1,
    )
    train(path, config)
    return path


def open_data(pixels: str = "source") -> ClientData:
    noisy = {"clients": NUM_CLIENTS, "label_noise": 0.1}
    return open_splits(DataSource("synthetic-digits", data_options=noisy, pixels=pixels))["train"]


def is_flipped(client_id: str, index: int) -> bool:
    right = open_splits(
        DataSource("synthetic-digits", data_options={"clients": NUM_CLIENTS, "label_noise": 0.0})
    )["train"]
    noisy = open_data()
    return bool(right.labels(client_id)[index] != noisy.labels(client_id)[index])


def test_a_run_finds_flipped_labels(run: Path) -> None:
    data = open_data()
    found = rank_with_run(data, data.client_ids, run, top=30)
    # A random choice has 0.1. The share is not near 1, because under softmax regression some digits
    # with correct labels also have high losses.
    assert np.mean([is_flipped(each.client_id, each.index) for each in found.examples]) > 0.5
    assert 0 < found.num_suspicious < found.num_examples == data.total_examples()
    assert found.fault_counts == {}
    assert found.measure.startswith("loss after round 20 of ")


def test_scores_and_labels_are_the_models(run: Path) -> None:
    data = open_data()
    found = rank_with_run(data, data.client_ids, run, top=10**6, threads=1)
    weights = load_trained(run, 1).state.global_model_weights
    kernel, bias = weights[:7840].reshape(784, 10), weights[7840:]
    assert [each.score for each in found.examples] == sorted(
        (each.score for each in found.examples), reverse=True
    )
    num_wrong = 0
    for each in found.examples:
        image = data.client(each.client_id).images()[each.index].reshape(784)
        logits = (image @ kernel + bias).astype(np.float64)
        loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[each.label]
        # float32 sums of 784 products, in another order
        assert each.score == pytest.approx(loss, rel=1e-3, abs=1e-5)
        num_wrong += logits.argmax() != each.label
        logits[each.label] = -np.inf
        assert logits.max() - logits[each.likelier_label] < 1e-3
    assert num_wrong == found.num_suspicious


def test_pixels_are_shown_as_in_training(run: Path) -> None:
    found = [
        rank_with_run(data, data.client_ids, run, threads=1).examples
        for data in (open_data(pixels="ink"), open_data(pixels="background"))
    ]
    assert found[0] == found[1]


def test_the_number_of_threads_changes_nothing(run: Path) -> None:
    data = open_data()
    one, two = (rank_with_run(data, data.client_ids, run, threads=n) for n in (1, 2))
    assert one == two


def test_no_client_gives_no_suspect(run: Path) -> None:
    assert rank_with_run(open_data(), [], run).examples == ()


def test_a_broken_model_gives_infinite_scores(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(run, 1)
    weights = np.full_like(trained.state.global_model_weights, np.nan)
    broken = replace(trained, state=replace(trained.state, global_model_weights=weights))
    monkeypatch.setattr(suspects_by_loss, "load_trained", lambda *_: broken)
    data = open_data()
    found = rank_with_run(data, data.client_ids[:1], run, top=3)
    assert [each.score for each in found.examples] == [np.inf] * 3
    assert all(each.label != each.likelier_label for each in found.examples)


def test_data_of_another_kind_are_refused_in_one_line(run: Path) -> None:
    data = open_data()
    data.num_classes = 11
    with pytest.raises(
        DataError, match=r"synthetic-digits has 11 classes, but the model has 10; choose a mo"
    ):
        rank_with_run(data, data.client_ids, run)
    data.num_classes, data.pixel_shape = 10, (32, 32, 3)
    with pytest.raises(
        DataError, match=r"images of shape \[32, 32, 3\], but the model takes \[28, 28"
    ):
        rank_with_run(data, data.client_ids, run)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run or checkpoint .*nowhere"):
        rank_with_run(open_data(), ["s0000000"], tmp_path / "nowhere")


def test_tells_clients_and_can_be_ended(run: Path) -> None:
    data = open_data()
    told: list[tuple[int, int | None]] = []
    rank_with_run(data, data.client_ids, run, lambda *each: told.append(each), top=1)
    assert told == [(n, NUM_CLIENTS) for n in range(1, 13)]

    def refuse(done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        rank_with_run(data, data.client_ids, run, refuse)
