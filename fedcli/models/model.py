"""`Model`, and `sequential`, which makes one from layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, refuse_unknown, speaks_python
from fedcli.lazy import ExplainsNames
from fedcli.models.layers.contract import GLOROT_UNIFORM, Node, Spec, checked_shape
from fedcli.models.layout import ParamLayout, Tensor, lay_out


@dataclass(frozen=True, eq=False)
class Model(ExplainsNames):
    """A model that the core can train.

    Attributes:
        name: Its name in the table of models, or a name that the user chose.
        layout: Its layers and the places of their tensors.
        initial_params: The initial parameters, float32 [num_params].
    """

    name: str
    layout: ParamLayout
    initial_params: NDArray[np.float32]

    def __new__(cls, *values: object, **given: object) -> Model:
        """Refuses what Keras's `Model` takes, and says which function takes it."""
        keras = {"inputs": None} if any(isinstance(each, Node) for each in values) else {}
        refuse_unknown(cls.__name__, {**given, **keras}, [each.name for each in fields(cls)])
        return super().__new__(cls)

    def __repr__(self) -> str:
        """Returns name, shapes and number of parameters."""
        layout = self.layout
        return (
            f"<{type(self).__name__} {self.name}: {list(layout.input_shape)} to "
            f"{layout.num_classes} classes, {layout.num_params:,} parameters>"
        )

    def _repr_html_(self) -> str:
        """Returns a table of the layers, or of the weights if the model is computed in Python."""
        from fedcli.settings import notebooks  # lazy: notebooks alone need it

        layout = self.layout
        rows: list[tuple[object, ...]] = [
            (each.name, each.kind, list(each.out_shape), f"{each.num_params:,}")
            for each in layout.layers
        ] or [(each.name, "", list(each.shape), f"{each.size:,}") for each in layout.tensors]
        note = f"{list(layout.input_shape)} to {layout.num_classes} classes"
        rows.append(("in all", "", "", f"{layout.num_params:,}"))
        headers = ("layer", "kind", "shape", "parameters")
        return notebooks.table(f"Model {self.name}", headers, rows, note)


@speaks_python()
def sequential(
    specs: Sequence[Spec | Node],
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    name: str = "sequential",
) -> Model:
    """Returns a model of a stack of layers, as `tf.keras.Sequential`, with Keras's initial weights.

    Args:
        specs: The layers from pixels to logits, made by `fedcli.layers`. A softmax at the end is
            left out, because the loss contains one. Before the layers there may be
            `layers.Input(shape)`, which then gives `input_shape`.
        input_shape: Shape of one example: [H, W], [H, W, C], or [H * W * C] for a vector, which
            takes images flattened row by row with the channels of a pixel together.
        num_classes: Number of logits that the last layer must have; None: any number.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        name: Name of the model in messages.

    Raises:
        ConfigError: The layers do not fit each other, the image or the number of classes; or no
            shape of an example is given.
    """
    layout = lay_out(*_without_input(specs, input_shape))
    if num_classes is not None and layout.num_classes != num_classes:
        more = ""
        if layout.num_classes > num_classes:
            more = (
                ", or, if the data's classes are the first ones of the model, set --num-classes to "
                f"{layout.num_classes}"
            )
        raise ConfigError(
            f"model {name} has {layout.num_classes} outputs, but there are {num_classes} classes; "
            f"give its layer {layout.layers[-1].name} {num_classes} outputs{more}"
        )
    return Model(name, layout, glorot_uniform(layout, seed))


def _without_input(
    specs: Any, input_shape: Sequence[int] | None
) -> tuple[Sequence[Spec], tuple[int, ...]]:
    """Returns the layers that follow an `Input` at the start, and the shape of one example."""
    first = specs[0] if isinstance(specs, Sequence) and specs else None
    if isinstance(first, Node) and first.spec is None:
        return specs[1:], shape_of_input([first], input_shape)
    return specs, shape_of_input([], input_shape)


def shape_of_input(images: Iterable[Node], input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the shape of one example.

    Args:
        images: The results of `layers.Input` from which a model starts.
        input_shape: The shape that the caller gave; None for none.

    Raises:
        ConfigError: Neither states the shape, or they differ.
    """
    given = [
        shape for shape in (input_shape, *(each.shape for each in images)) if shape is not None
    ]
    shapes = {checked_shape(shape) for shape in given}
    if not shapes:
        raise ConfigError(
            "input_shape is missing; give the shape of one example, such as input_shape=(28, 28), "
            "or start from layers.Input((28, 28))"
        )
    if len(shapes) > 1:
        raise ConfigError(
            f"input_shape is given as {' and as '.join(map(str, sorted(shapes)))}; leave one out"
        )
    return shapes.pop()


def glorot_uniform(layout: ParamLayout, seed: int) -> NDArray[np.float32]:
    """Returns initial parameters float32 [num_params] as Keras draws them.

    A kernel is uniform within ±sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), unless its
    layer states another initializer. The fans of a convolution are its numbers of channels times
    the size of its window. Gammas are 1, biases and betas 0. Each kernel has its own random stream,
    which depends on the seed and on the kernel's position in the model.
    """
    params = np.zeros(layout.num_params, np.float32)
    for place, tensor in enumerate(layout.tensors):
        within = slice(tensor.offset, tensor.offset + tensor.size)
        if tensor.start == GLOROT_UNIFORM:
            from fedcli.core.draws import Stream  # lazy: some models start from zeros

            stream = Stream(stream_key(seed, Purpose.INITIAL_WEIGHTS, occurrence=place))
            params[within] = (2 * stream.uniform(tensor.size) - 1) * _glorot_limit(tensor)
        else:
            params[within] = tensor.start
    return params


def _glorot_limit(tensor: Tensor) -> float:
    """The limit of a kernel's uniform distribution.

    The kernel's last two dimensions are inputs and outputs.
    """
    places = math.prod(tensor.shape[:-2])
    return math.sqrt(6 / (places * (tensor.shape[-2] + tensor.shape[-1])))
