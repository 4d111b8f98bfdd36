from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcli import learning, models, optimizers, settings
from fedcli.errors import CheckpointError, ConfigError
from fedcli.models import sources
from fedcli.models.layers import Conv2D, Dense, MaxPool2D
from fedcli.models.model import Model
from fedcli.runs.files.checkpoint import COMPONENTS, Checkpoint
from fedcli.runs.files.saved_states import model_of
from fedcli.settings import tables
from tests.kit.keras_samples import image_input, layer, sequential


def a_model() -> Model:
    return models.sequential([Conv2D(2, 3, activation="relu"), MaxPool2D(), Dense(3)], (6, 6), 3)


def content_of(model: Model) -> Checkpoint:
    layout = model.layout
    names = [tensor.name for tensor in layout.tensors]
    weights = dict(zip(names, layout.split(model.initial_params), strict=True))
    components = {**{name: {} for name in COMPONENTS}, "global_model_weights": weights}
    text = sources.to_text(layout)
    shape, classes = layout.input_shape, layout.num_classes
    return Checkpoint(0, components, "", shape, classes, "ink", "0.0", text)  # type: ignore[arg-type]


FROM_A_FILE = replace(settings.RunConfig(), model="/nowhere/model.py:build")
PATH = Path("round.h5")


def test_names_are_built_with_their_options() -> None:
    model = sources.open_model(
        "cnn-reddi", input_shape=(28, 28), num_classes=62, options={"dropout": 0}, seed=3
    )
    assert model.layout.num_params == 1_206_590
    assert {layer.kind for layer in model.layout.layers} == {"conv2d", "max_pooling2d", "dense"}
    expected = models.build("cnn-reddi", num_classes=62, seed=3)
    np.testing.assert_array_equal(model.initial_params, expected.initial_params)


@pytest.mark.parametrize(
    ("text", "is_file", "parts"),
    [
        ("mlp-2nn", False, ("mlp-2nn", None)),
        ("model.keras", True, ("model.keras", None)),
        ("models/mine", True, ("models/mine", None)),
        ("mine.py", True, ("mine.py", None)),
        ("mine.py:build", True, ("mine.py", "build")),
        ("a:b/mine.py:build", True, ("a:b/mine.py", "build")),
        ("a:b.keras", True, ("a:b.keras", None)),
    ],
)
def test_names_files_and_functions_are_distinguished(
    text: str, is_file: bool, parts: tuple[str, str | None]
) -> None:
    assert tables.is_model_file(text) is is_file
    assert tables.split_model_file(text) == parts


def test_no_name_of_the_registry_reads_as_a_file() -> None:
    assert not any(map(tables.is_model_file, tables.MODELS))


def test_a_model_s_path_is_kept_absolute_in_the_config() -> None:
    for given, kept in (
        ("mine.py:build", "/there/mine.py:build"),
        ("../model.keras", "/model.keras"),
        ("mlp-2nn", "mlp-2nn"),
    ):
        config = settings.from_options({"model": given})
        assert settings.absolute_paths(config, "/there").model == kept


def test_fresh_weights_are_only_for_files() -> None:
    assert settings.from_options({"model": "m.keras", "fresh_weights": True}).fresh_weights
    with pytest.raises(ConfigError, match="--fresh-weights is for models from files; mlp-2nn alw"):
        settings.from_options({"model": "mlp-2nn", "fresh_weights": True})


def test_a_checkpoint_gives_its_model_back_without_the_file() -> None:
    model = a_model()
    found = model_of(content_of(model), FROM_A_FILE, PATH)
    assert found.layout == model.layout
    assert found.name == FROM_A_FILE.model
    np.testing.assert_array_equal(found.initial_params, model.initial_params)


def test_a_described_model_never_runs_the_file_that_its_config_names(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('run')\n")
    content = content_of(a_model())
    found = model_of(content, replace(FROM_A_FILE, model=str(trap)), PATH)
    assert found.layout == a_model().layout


def test_a_model_of_a_keras_file_is_described_in_its_checkpoint() -> None:
    content = replace(content_of(a_model()), description=None)
    with pytest.raises(CheckpointError, match=r"round.h5 does not describe its model, m.keras; it"):
        model_of(content, replace(FROM_A_FILE, model="m.keras"), PATH)


def test_a_checkpoint_s_description_must_fit_its_weights_and_the_rest() -> None:
    content = content_of(a_model())
    assert content.description is not None
    described = json.loads(content.description)
    described["layers"][-1]["units"] = 4
    for changed, message in (
        ({"description": "{"}, "round.h5 is not a usable checkpoint: .* is not JSON"),
        ({"description": "[" * 100_000}, "round.h5 is not a usable checkpoint: .* is not JSON"),
        ({"description": "3"}, "round.h5 is not a usable checkpoint: .* must have two keys"),
        (
            {"description": json.dumps(described)},
            r"weights have shapes .* \[8, 3\], \[3\], but the m",
        ),
        ({"num_classes": 4}, "has 3 classes, but it claims .* and 4"),
        ({"input_shape": (6, 6, 1)}, r"its model takes \[6, 6\] .* claims \[6, 6, 1\]"),
        (
            {"components": {**content.components, "global_model_weights": {}}},
            "needs conv2d/kernel, .* but the weights are ",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            model_of(replace(content, **changed), FROM_A_FILE, PATH)


def keras_file(folder: Path, *shape: int) -> Path:
    """A file without weights, of a model for images of this shape and three classes."""
    flat = [] if len(shape) == 1 else [layer("Flatten", "flat")]
    end = layer("Dense", "logits", units=3, activation="softmax", use_bias=True)
    file = folder / "m.json"
    file.write_text(json.dumps(sequential(image_input(*shape), *flat, end)))
    return file


@pytest.mark.parametrize("shape", [(16,), (4, 4), (4, 4, 1)])
def test_a_keras_file_is_loaded_for_a_process(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = models.load(keras_file(tmp_path, *shape), seed=3)
    assert (model.layout.input_shape, model.layout.num_classes) == (shape, 3)
    opened = sources.open_model(model.name, input_shape=(4, 4), num_classes=3, seed=3)
    np.testing.assert_array_equal(model.initial_params, opened.initial_params)
    images, labels = np.ones((5, 4, 4), np.float32), np.arange(5, dtype=np.int32) % 3
    process = learning.build_weighted_fed_avg(model, optimizers.sgd(0.1), optimizers.sgd(1.0))
    output = process.next(process.initialize(), [(images, labels)])
    assert output.metrics["client_work"]["train"]["num_examples"] == 5


def test_a_keras_file_is_loaded_for_images_of_a_given_shape(tmp_path: Path) -> None:
    file = keras_file(tmp_path, 16)
    assert models.load(str(file), (2, 8)).layout.input_shape == (2, 8)
    with pytest.raises(ConfigError, match=r"m\.json takes vectors of 16 values, but .* 25 values"):
        models.load(file, (5, 5))
    with pytest.raises(ConfigError, match=r"none\.keras"):
        models.load(tmp_path / "none.keras")


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.json"])
def test_the_name_of_a_keras_file_leads_to_load(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown model '{name}'; .* models\.load\('{name}'\)"):
        learning.build_weighted_fed_avg(name, optimizers.sgd(0.1), optimizers.sgd(1.0))
