"""Runs whose model begins with input layers: eval, export, resume and fine-tuning keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcli import train as fedcli_train
from fedcli.errors import ConfigError
from fedcli.models.keras import formats
from fedcli.runs.files import folder
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.training import make_config, results, trained, trained_with_a_stop

pytestmark = pytest.mark.numeric

AUGMENTED: dict[str, Any] = {
    "data": "synthetic-shapes",
    "model": "lenet5",
    "augment": "crop+flip",
    "augment_options": {"size": 28},
    "normalize": "train",
    "rounds": 3,
    "max_examples": 20,
}
OWN_LAYERS = """
from fedcli import layers, models


def build(input_shape, num_classes):
    return models.sequential(
        [layers.Conv2D(2, 3, strides=3), layers.Flatten(), layers.Dense(num_classes)], input_shape
    )
"""


def test_eval_and_export_see_what_training_saw(fedcli: Fedcli, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **AUGMENTED)
    evaluation = folder.read_evaluation(run)
    assert evaluation is not None
    done = fedcli("eval", run, "--clients", make_config(**AUGMENTED).clients, "--json")
    assert done.code == 0, done.err
    (line,) = [each for each in map(json.loads, done.out.splitlines()) if each["split"] == "test"]
    assert line["client_work"] == evaluation["test"]["client_work"]
    assert fedcli("export", run, tmp_path / "model.keras").code == 0
    kinds = [spec.kind for spec in formats.read_model(tmp_path / "model.keras").specs]
    assert kinds[:3] == ["center_crop", "random_flip", "normalization"]


def test_an_export_of_weights_says_what_happened_to_images_before_them(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", **{**AUGMENTED, "rounds": 1})
    done = fedcli("export", run, tmp_path / "weights.npz")
    assert done.code == 0
    assert "weights.npz holds only weights; transform each image first, as the" in done.err
    assert "RandomCrop(height=28, width=28, padding=4" in done.err
    assert ", then Normalization(mean=(" in done.err
    assert "RandomFlip" not in done.err
    assert fedcli("export", run, tmp_path / "model.keras").err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augment": "crop", "augment_options": {"padding": 33}},
            "augment=crop: padding 33 exceeds the size of 32 x 32 images; choose at most 32",
        ),
        (
            {"augment": "shift", "augment_options": {"pixels": 40}},
            "augment=shift: pixels 40 exceeds the size of 32 x 32 images; choose at most 32",
        ),
        (
            {"augment": "crop", "augment_options": {"size": 41}},
            "augment=crop: size 41 exceeds images of 32 x 32 with padding 4; choose at most 40",
        ),
    ],
)
def test_an_augmentation_beyond_the_image_says_the_bound(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {"data": "synthetic-shapes", "model": "softmax-regression", **options}
    with pytest.raises(ConfigError) as caught:
        fedcli_train(make_config(**values), tmp_path / "run")
    assert str(caught.value) == message


def test_images_are_not_normalised_twice(fedcli: Fedcli, tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", **{**AUGMENTED, "augment": None, "augment_options": {}, "rounds": 1}
    )
    assert fedcli("export", run, tmp_path / "model.keras").code == 0
    again = fedcli(
        *("train", "--data", "synthetic-shapes", "--model", tmp_path / "model.keras"),
        *("--normalize", "train"),
    )
    assert_is_one_line(
        again, "--normalize would normalise images twice: ", "in its layer normalization; leave"
    )


@pytest.mark.parametrize("model", ["lenet5", "own"])
def test_a_resumed_run_has_its_input_layers_once(model: str, tmp_path: Path) -> None:
    values = AUGMENTED
    if model == "own":
        (tmp_path / "own.py").write_text(OWN_LAYERS)
        values = {**AUGMENTED, "model": f"{tmp_path / 'own.py'}:build"}
    straight = trained(tmp_path / "straight", **values)
    stopped = trained_with_a_stop(tmp_path / "stopped", 1, **values)
    assert results(straight) == results(stopped)
