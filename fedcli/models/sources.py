"""Opens the model that --model names: a built-in model, a Keras file, or a Python function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedcli.errors import ConfigError
from fedcli.models import zoo
from fedcli.models.layout import ParamLayout, from_description
from fedcli.models.model import Model, sequential
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import FROZEN


def open_model(
    text: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    options: Mapping[str, Value] | None = None,
    seed: int = 0,
    fresh_weights: bool = False,
) -> Model:
    """Returns the model that a user named.

    Args:
        text: A key of `tables.MODELS`, the path of a Keras file, FILE.py:FUNCTION, or FILE.py for
            its function `build`.
        input_shape: Shape of one example of the data, [H, W] or [H, W, C].
        num_classes: Number of classes of the data.
        options: The `k=v` options of a model of the table or of a function.
        seed: Seed of the initial weights.
        fresh_weights: Draw initial weights even if the Keras file has some; not allowed for a
            Python file.

    Raises:
        ConfigError: There is no such model, a Keras file cannot be read or is given options, or the
            model does not fit the data.
        ModelError: As for `own.load`, for a Python file.
    """
    if not tables.is_model_file(text):
        return zoo.build(
            text, input_shape=input_shape, num_classes=num_classes, options=options, seed=seed
        )
    file, function = tables.split_model_file(text)
    if file.endswith(".py"):
        from fedcli.models import own

        return own.load(
            Path(file),
            function,
            input_shape=input_shape,
            num_classes=num_classes,
            options=options or {},
            seed=seed,
            fresh_weights=fresh_weights,
        )
    if options:
        raise ConfigError(
            f"--model-option {next(iter(options))} cannot be used with a Keras file; leave it out, "
            f"or choose {', '.join(tables.MODELS)} or a Python function"
        )
    return _open_keras(text, input_shape, num_classes, seed, fresh_weights=fresh_weights)


def with_batch_norms(model: Model, batch_norm: str) -> Model:
    """Returns the model, with frozen moving statistics if the option --batch-norm is `frozen`.

    Raises:
        ConfigError: The option is `frozen`, but the model has no batch norm.
    """
    if batch_norm != FROZEN:
        return model
    from fedcli.models.batch_norms import with_frozen_statistics  # lazy: few runs freeze statistics

    return with_frozen_statistics(model)


def load(
    path: str | Path | Model, input_shape: Sequence[int] | None = None, *, seed: int = 0
) -> Model:
    """Returns the model of a Keras file, with the file's weights if it has some.

    Args:
        path: A `.keras`, whole-model `.h5` or `.json` file. Neither Keras nor TensorFlow is needed.
            A model of fedcli is also accepted.
        input_shape: Shape of one example of the data, [H, W] or [H, W, C]; None: the shape in the
            file. A model of flattened images takes every shape with the same number of pixels.
        seed: Seed of the initial weights, if the file has none.

    Raises:
        ConfigError: The file cannot be read, holds no model that fedcli supports, or its model
            takes images of another shape; or `path` is of another type. The message names the file.
    """
    if isinstance(path, Model):
        return _for_images(path, input_shape)
    if not isinstance(path, str | Path):
        raise ConfigError(
            f"path is of type {type(path).__name__}; give the path of a Keras file: save a "
            'Keras model with .save("model.keras") first, and pass an object of your own to '
            "own_models.wrap"
        )
    return _open_keras(str(path), input_shape, None, seed, fresh_weights=False)


def to_text(layout: ParamLayout) -> str | None:
    """Returns a model's description as JSON; `from_text` undoes it.

    The result is None for a Python model, which only its own file describes.
    """
    return json.dumps(layout.description()) if layout.specs else None


def from_text(text: str, name: str, tensors: Mapping[str, Any]) -> Model:
    """Returns the model that an untrusted text describes, with the given initial tensors.

    Args:
        text: What `to_text` wrote.
        name: The model's name.
        tensors: Arrays with Keras's shapes, by name.

    Raises:
        ConfigError: The text is not a description of a model, or the tensors do not fit it.
    """
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"the model's description is not JSON: {err}") from err
    layout = from_description(description)
    names = [tensor.name for tensor in layout.tensors]
    if sorted(names) != sorted(tensors):
        raise ConfigError(
            f"the model's description needs {', '.join(names)}, but the weights are "
            f"{', '.join(tensors)}"
        )
    return Model(name, layout, layout.join([np.asarray(tensors[each]) for each in names]))


def _open_keras(
    text: str,
    input_shape: Sequence[int] | None,
    num_classes: int | None,
    seed: int,
    *,
    fresh_weights: bool,
) -> Model:
    """Returns the model of a Keras file for data of the given shape and number of classes.

    If either is None, the file's own value is used.
    """
    from fedcli.models.keras import formats

    found = formats.read_model(Path(text))
    model = sequential(found.specs, found.input_shape, num_classes, seed, text)
    if found.weights is None or fresh_weights:
        params = found.fresh_params(model.initial_params)
    else:
        params = model.layout.join(found.weights)
    return _for_images(Model(text, model.layout, params), input_shape)


def _for_images(model: Model, input_shape: Sequence[int] | None) -> Model:
    """Returns a model for images of a shape; None: for those of its own shape."""
    if input_shape is None:
        return model
    from fedcli.models.image_shapes import for_images  # lazy: models by name fit the images

    return for_images(model, input_shape)
