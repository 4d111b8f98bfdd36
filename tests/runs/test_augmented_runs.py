"""Runs whose model begins with input layers: eval, export, resume and fine-tuning keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcli.models.keras import formats
from fedcli.runs.files import folder
from tests.kit.command_line import Fedcli
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
    assert kinds[:3] == ["random_crop", "random_flip", "normalization"]


@pytest.mark.parametrize("model", ["lenet5", "own"])
def test_a_resumed_run_has_its_input_layers_once(model: str, tmp_path: Path) -> None:
    values = AUGMENTED
    if model == "own":
        (tmp_path / "own.py").write_text(OWN_LAYERS)
        values = {**AUGMENTED, "model": f"{tmp_path / 'own.py'}:build"}
    straight = trained(tmp_path / "straight", **values)
    stopped = trained_with_a_stop(tmp_path / "stopped", 1, **values)
    assert results(straight) == results(stopped)
