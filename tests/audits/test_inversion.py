"""Pixels reconstructed from an update: exact for one example, mixtures for several."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import models
from fedcli.audits.auditing import audit_run
from fedcli.audits.inversion import Inversion, read_images, read_label
from fedcli.errors import ConfigError
from fedcli.models.keras import formats
from fedcli.models.layers import BatchNorm, Dense
from tests.kit.training import trained


def invert(path: Path, **options: Any) -> Inversion:
    result = audit_run(path, "gradient-inversion", options, threads=1)
    assert isinstance(result, Inversion)
    return result


def test_the_quotient_of_a_small_example_is_the_input() -> None:
    """The update is the gradient (a rate of -1) for x with label 1 and made-up probabilities."""
    x = np.array([0.2, 0.0, 0.9, 0.5])
    bias = np.array([0.161572, -0.299392, 0.137820])
    images, psnr = read_images(np.outer(x, bias), bias, x[np.newaxis].astype(np.float32))
    np.testing.assert_allclose(images[0], x, rtol=1e-12)
    assert np.argmin(bias) == 1  # the label
    assert psnr[0] > 140.0  # the original has float32 pixels


def softmax_steps(
    images: np.ndarray, labels: np.ndarray, num_steps: int, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the update of softmax regression, trained in float64 on all examples at once."""
    kernel, bias = np.zeros((images.shape[1], 3)), np.zeros(3)
    for _ in range(num_steps):
        logits = images @ kernel + bias
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = chances / chances.sum(axis=1, keepdims=True) - np.eye(3)[labels]
        kernel -= rate * images.T @ errors / len(images)
        bias -= rate * errors.mean(axis=0)
    return kernel, bias


def test_one_example_is_exact_after_any_number_of_steps() -> None:
    x = np.array([[0.2, 0.0, 0.9, 0.5]])
    for num_steps in (1, 5, 200):
        kernel, bias = softmax_steps(x, np.array([1]), num_steps, 0.5)
        images, _ = read_images(kernel, bias, x.astype(np.float32))
        np.testing.assert_allclose(images, x, rtol=1e-11, atol=1e-14)
        assert np.argmax(bias) == 1


def test_several_examples_are_read_as_mixtures() -> None:
    x = np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5]])
    kernel, bias = softmax_steps(x, np.array([0, 1]), 1, 0.5)
    images, psnr = read_images(kernel, bias, x.astype(np.float32))
    assert (psnr < 40).all()
    # Class 2 is the label of neither example: its quotient is their mean.
    np.testing.assert_allclose(kernel[:, 2] / bias[2], x.mean(axis=0))
    assert images.shape == x.shape


def test_a_bias_that_does_not_change_reveals_nothing() -> None:
    with pytest.raises(ConfigError, match="changes no bias"):
        read_images(np.zeros((4, 3)), np.zeros(3), np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("model", ["softmax-regression", "mlp-2nn"])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold"])
def test_a_run_of_five_steps_reveals_one_example(
    tmp_path: Path, model: str, algorithm: str
) -> None:
    run = trained(
        tmp_path / "run", model=model, algorithm=algorithm, rounds=2, batch_size=1, epochs=5
    )
    result = invert(run, first=2)
    assert result.num_steps == 5
    assert result.label_read == result.labels[0]
    assert result.psnr[0] > 80.0  # an error of 1e-4 of the range; weights are float32
    assert not result.notes
    several = invert(run, examples=3)
    assert several.notes
    assert len(several.psnr) == 3


def test_labels_are_read_through_batch_normalization(tmp_path: Path) -> None:
    specs = [Dense(12, "tanh"), Dense(8), BatchNorm(), Dense(10)]
    model = models.sequential(specs, (28, 28), seed=3)
    file = tmp_path / "model.keras"
    formats.write_keras(file, model.layout, model.initial_params)
    run = trained(
        tmp_path / "run", model=str(file), batch_norm="frozen", rounds=1, batch_size=1, epochs=1
    )
    result = invert(run)
    assert result.label_read == result.labels[0]
    assert result.psnr[0] > 60.0  # float32 weights as above, but only one step


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("epochs", [1, 5])
def test_labels_are_read_from_weights_without_a_bias(
    tmp_path: Path, activation: str, epochs: int
) -> None:
    model = models.sequential([Dense(50, activation), Dense(10, use_bias=False)], (28, 28), seed=3)
    file = tmp_path / "model.keras"
    formats.write_keras(file, model.layout, model.initial_params)
    values = {"model": str(file), "batch_size": 1, "epochs": epochs, "client_lr": 0.002}
    run = trained(tmp_path / "run", rounds=1, **values)
    for first in range(8):
        result = invert(run, first=first)
        assert result.num_steps == epochs
        assert result.label_read == result.labels[0]


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_label_s_weights_are_opposite_to_all_others(num_classes: int) -> None:
    random = np.random.default_rng(4)
    for inputs in (random.normal(size=7), random.random(7), -random.random(7)):
        for label in range(num_classes):
            errors = random.dirichlet(np.ones(num_classes)) - np.eye(num_classes)[label]
            change = np.outer(inputs, -errors)
            expected = label if num_classes > 2 else None
            assert read_label("dense_1/kernel", change) == expected
            assert read_label("dense_1/bias", -errors) == label
            assert read_label("norm/gamma", -errors) is None


def test_the_label_among_very_many_classes_needs_little_memory() -> None:
    num_classes, label = 10_000, 9_876
    errors = np.full(num_classes, 1 / num_classes) - np.eye(num_classes)[label]
    change = np.outer([0.5, -0.25], -errors)
    tracemalloc.start()
    try:
        assert read_label("dense_1/kernel", change) == label
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100e6  # the products of all classes at a time would take 800 MB


def test_two_labels_are_not_one() -> None:
    """Classes 0 and 1 rise, each for its own example; the inputs share no unit."""
    change = np.array([[0.7, -0.3, -0.2, -0.2], [-0.3, 0.7, -0.2, -0.2]])
    assert read_label("dense_1/kernel", change) is None
    assert read_label("dense_1/kernel", np.zeros((2, 4))) is None


def test_threads_change_no_result(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", rounds=1)
    images = [
        audit_run(run, "gradient-inversion", {"examples": 2}, threads=threads).images  # type: ignore[attr-defined]
        for threads in (1, 2, 7)
    ]
    assert images[0].tobytes() == images[1].tobytes() == images[2].tobytes()


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ({"model": "lenet5"}, {}, "of kind conv2d"),
        ({"algorithm": "local-only"}, {}, "whose clients send no updates"),
        ({"algorithm": "centralized"}, {}, "whose clients send no updates"),
        ({}, {"client": "nobody"}, "no such client may take part"),
        ({}, {"first": 9_000}, "choose fewer"),
        ({}, {"examples": 0}, "a whole number from 1 to 64"),
        ({}, {"shadows": 3}, "has no option 'shadows'"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, values: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    run = trained(tmp_path / "run", rounds=1, max_examples=20, **values)
    with pytest.raises(ConfigError, match=words):
        invert(run, **options)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, ""),
        ({"secure_sum": True}, "the run has --secure-sum, so its server sees no individual update"),
        ({"compress": "top-k"}, "the run has --compress top-k, so its server sees a lossy"),
    ],
)
def test_updates_that_the_server_does_not_see_are_noted(
    tmp_path: Path, options: dict[str, Any], note: str
) -> None:
    notes = invert(trained(tmp_path / "run", rounds=1, **options)).notes
    assert len(notes) == bool(note)
    assert all(each.startswith(note) for each in notes)
