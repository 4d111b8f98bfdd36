"""Makes a model from a user's file or object, and tries it on a small batch."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import MAX_LABEL
from fedcli.errors import ModelError, plural, shown_repr
from fedcli.models.image_shapes import for_images, misfit, takes
from fedcli.models.layers.contract import Node, Spec
from fedcli.models.layout import ParamLayout, Tensor
from fedcli.models.metrics import OwnMetrics
from fedcli.models.model import Model
from fedcli.models.own import torch_modules
from fedcli.models.own.contract import MEMBERS
from fedcli.models.own.network import Network
from fedcli.settings.options import Value
from fedcli.settings.own import user_code

DEFAULT_FUNCTION = "build"

_NAME = re.compile(r"[\w-][\w.-]*")
# Modules that define Keras's classes, in all versions and in TensorFlow.
_KERAS = re.compile(r"(tensorflow\.(python\.)?keras|tf_keras|keras)\.")
# Types that people give by mistake, and what to give instead.
_NO_MODELS = (bool, Real, str, bytes, list, tuple, dict, type(None), Spec, Node)
_WANTED = (
    "a fedcli.models model, such as models.sequential(layers, input_shape, num_classes, seed), an "
    f"object with {', '.join(MEMBERS)}, or a torch.nn.Module"
)
_TRIAL_EXAMPLES = 2


@dataclass(frozen=True, eq=False)
class PythonModel(Model):
    """A model whose gradients Python computes, on one thread.

    Attributes:
        network: Calls the user's object and checks its results.
        metrics: The object's own metrics.
    """

    network: Network
    metrics: OwnMetrics

    def __repr__(self) -> str:
        """Returns name and number of parameters."""
        return f"<{type(self).__name__} {self.name}: {self.layout.num_params:,} parameters>"


def load(
    path: Path,
    function: str | None,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    options: Mapping[str, Value] | None = None,
    seed: int = 0,
    fresh_weights: bool = False,
) -> Model:
    """Runs a user's file and returns the model that its function makes.

    The function or class is called with keyword arguments: all `options`, and `input_shape` (a
    tuple), `num_classes` and `seed` as far as its signature names them. If the file imports
    PyTorch, PyTorch's generator is seeded with `seed` during the call. Imports of the file are
    looked up in the file's folder first.

    Args:
        path: The file.
        function: Name of the function or class; None: build.
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        options: Further keyword arguments of the function.
        seed: Seed of the initial weights.
        fresh_weights: Refused if true, because the function itself initialises the weights.

    Returns:
        The function's result if it is a stack of fedcli's layers, else a `PythonModel`.

    Raises:
        ModelError: The file cannot be read or fails, has no such function, or returns no model for
            images of this shape and this number of classes. The message names the place.
    """
    function = function or DEFAULT_FUNCTION
    if fresh_weights:
        raise ModelError(
            f"--fresh-weights cannot be used with {path}, because its {function} makes the initial "
            "weights itself; leave the option out"
        )
    file = path.absolute()
    source = user_code.read_code(file)
    with user_code.importing_from(file.parent):
        module = user_code.load_module(file, source, user_code.module_name(file, source))
        offered = {"input_shape": tuple(input_shape), "num_classes": num_classes, "seed": seed}
        made = _call(_function(module, function, file), str(file), offered, options or {})
    where = f"{file}: {function}"
    if isinstance(made, Model):
        return _fitted(made, input_shape, num_classes, where)
    return _python_model(made, str(file), tuple(input_shape), num_classes, where)


def wrap(
    model: Any, *, input_shape: Sequence[int] | None = None, num_classes: int | None = None
) -> Model:
    """Wraps a user's object as a model for `fedcli.learning`. A `Model` needs no wrapping.

    An object that was wrapped without `num_classes` is wrapped again if `num_classes` is given.

    Args:
        model: An `OwnModel`, a `torch.nn.Module`, or a class or function without arguments that
            makes one.
        input_shape: Shape of one example; None for the shape in `input_spec`. It is required for a
            `torch.nn.Module`.
        num_classes: Number of classes; None for the model's `num_classes`. If the model has no such
            attribute, labels are not checked.

    Raises:
        ConfigError: A `Model` does not take examples of this shape.
        ModelError: The object is of another type, or breaks the contract. The message names the
            place.
    """
    if isinstance(model, _NO_MODELS):
        raise ModelError(f"model is {shown_repr(model)}; give {_WANTED}")
    if isinstance(model, PythonModel) and model.network.num_classes is None and num_classes:
        model = model.network.model  # it was wrapped before its number of classes was known
    file, where = user_code.source_file(model), type(model).__name__
    if isinstance(model, type) or inspect.isroutine(model):
        where = getattr(model, "__name__", "model")
        needed = user_code.needed_arguments(model)
        if needed:
            raise ModelError(
                f"the model {where} needs {', '.join(needed)}; give a function without arguments, "
                f"such as lambda: {where}(...)"
            )
        with user_code.running(where, file):
            model = model()
        file = user_code.source_file(model)
    if isinstance(model, Model):
        return model if input_shape is None else for_images(model, input_shape)
    shape = None if input_shape is None else tuple(input_shape)
    return _python_model(model, file, shape, num_classes, where)


def _function(module: ModuleType, name: str, file: Path) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    own = [
        each.__name__
        for each in vars(module).values()
        if (inspect.isfunction(each) or isinstance(each, type))
        and each.__module__ == module.__name__
    ]
    raise ModelError(
        f"{file} has no function or class '{name}'; it has {', '.join(own) or 'none'}: give "
        f"--model {file.name}:NAME, or define '{name}'"
    )


def _call(
    function: Callable[..., Any], file: str, offered: dict[str, Any], options: Mapping[str, Value]
) -> Any:
    clash = sorted(offered.keys() & options.keys())
    if clash:
        raise ModelError(f"--model-option {clash[0]} is set by the run itself; leave it out")
    with torch_modules.seeded(offered["seed"]):
        made = user_code.call_with(function, offered, options, file)
        if torch_modules.is_module(made):  # the weights of lazy layers follow the seed, too
            torch_modules.fix_shapes(made, offered["input_shape"], file)
    return made


def _fitted(model: Model, input_shape: Sequence[int], num_classes: int, where: str) -> Model:
    """Returns the model of a user's function for images of the data."""
    layout = model.layout
    if not takes(layout.input_shape, input_shape):
        raise ModelError(
            f"{where}: the model {misfit(layout.input_shape, input_shape)}; the function's "
            "argument input_shape is the shape of the data"
        )
    if layout.num_classes != num_classes:
        raise ModelError(
            f"{where}: the model has {layout.num_classes} outputs, but the data have "
            f"{plural(num_classes, 'class')}; use the function's argument num_classes"
        )
    return for_images(model, input_shape)


def _python_model(
    made: Any, file: str, input_shape: tuple[int, ...] | None, num_classes: int | None, where: str
) -> PythonModel:
    """Wraps an object as a model and tests it on a trial batch."""
    if _is_keras(made):
        raise ModelError(
            f"{where}: this is a Keras model, but fedcli reads Keras models only from files; save "
            'it with .save("model.keras") and give fedcli.models.load("model.keras")'
        )
    if torch_modules.is_module(made):
        if input_shape is None:
            raise ModelError(
                f"{where}: a torch module does not state the shape of its images; pass it, as in "
                "fedcli.own_models.wrap(module, input_shape=(28, 28))"
            )
        with user_code.running("torch module", file):
            made = torch_modules.TorchNetwork(made, input_shape, file)
    if isinstance(made, _NO_MODELS):
        raise ModelError(f"{where} returned {shown_repr(made)}; return {_WANTED}")
    if isinstance(made, type):
        raise ModelError(
            f"{where} returned the class {made.__name__}; return an object of it, "
            f"{made.__name__}(...)"
        )
    known = getattr(made, "num_classes", None) if num_classes is None else num_classes
    network = Network(made, file, known)
    _check_spec(network, input_shape)
    layout = _lay_out(network, input_shape or network.x_shape, known)
    metrics = _try(network)
    return PythonModel(type(made).__name__, layout, network.initial_params, network, metrics)


def _is_keras(made: object) -> bool:
    """Returns whether an object is of a Keras class and has no `forward_pass`."""
    modules = [f"{each.__module__}." for each in type(made).__mro__]
    return not hasattr(made, "forward_pass") and any(map(_KERAS.match, modules))


def _check_spec(network: Network, input_shape: tuple[int, ...] | None) -> None:
    """Refuses an `input_spec` that does not fit the images; axes of length 1 do not matter."""
    classes = network.num_classes
    if classes is not None and not (isinstance(classes, int | np.integer) and classes > 0):
        raise network.fault("num_classes", f"is {shown_repr(classes)}; give a whole number from 1")
    x_shape = network.x_shape
    if input_shape is None or x_shape == (prod(input_shape),):
        return
    if [size for size in x_shape if size > 1] != [size for size in input_shape if size > 1]:
        raise network.fault(
            "input_spec",
            f"says that x has shape {list(x_shape)} per example, but the data have "
            f"{list(input_shape)}; give that shape, or [{prod(input_shape)}] for flat images",
        )


def _lay_out(
    network: Network, input_shape: tuple[int, ...], num_classes: int | None
) -> ParamLayout:
    names = getattr(network.model, "variable_names", None)
    if names is None:
        names = [f"variable_{index}" for index in range(len(network.variables))]
    names = list(names)
    is_right = all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    if not is_right or len(set(names)) != len(network.variables) or len(names) != len(set(names)):
        raise network.fault(
            "variable_names", f"are {shown_repr(names)}; give each variable a name of letters and _"
        )
    tensors, offset = [], 0
    for name, variable in zip(names, network.variables, strict=True):
        tensors.append(Tensor(name, variable.shape, offset))
        offset += variable.size
    return ParamLayout(
        specs=(),
        layers=(),
        tensors=tuple(tensors),
        num_params=offset,
        input_shape=tuple(input_shape),
        num_classes=MAX_LABEL + 1 if num_classes is None else num_classes,
    )


def _try(network: Network) -> OwnMetrics:
    """Calls every method of the contract on a trial batch and returns the metrics.

    Thus a wrong model is refused before training starts. The pixels of the batch rise evenly from 0
    to 1. Afterwards the metrics are reset.
    """
    num_values = _TRIAL_EXAMPLES * prod(network.x_shape)
    images = np.linspace(0, 1, num_values, dtype=np.float32).reshape(_TRIAL_EXAMPLES, -1)
    labels = np.arange(_TRIAL_EXAMPLES, dtype=np.int32) % (network.num_classes or 1)
    network.start_client(0)
    result = network.forward(images, labels.astype(np.int32), training=True)
    assert result.gradient is not None
    if not np.array_equal(network.params(), network.initial_params):
        raise network.fault(
            "forward_pass", "changed the weights; leave that to the client optimizer"
        )
    if not np.isfinite(result.loss_sum):
        raise network.fault(
            "forward_pass", "the loss of a trial batch is NaN or infinite; correct it"
        )
    if not np.isfinite(result.gradient).all():
        raise network.fault(
            "forward_pass", "a gradient of a trial batch holds NaN or infinity; correct it"
        )
    if network.takes_weights:
        ones = np.ones(_TRIAL_EXAMPLES, np.float32)
        network.forward(images, labels, training=True, weights=ones)
    network.forward(images, labels, training=False)
    sums = network.report()
    metrics = _own_metrics(network, sums)
    metrics.finalize(dict(zip(metrics.columns, sums.values(), strict=True)))
    network.start_client(0)
    return metrics


def _own_metrics(network: Network, sums: Mapping[str, NDArray[np.float64]]) -> OwnMetrics:
    finalizers = network.finalizers()
    for name in sums:
        if name not in finalizers:
            raise network.fault("metric_finalizers", f"has no entry for metric {name!r}; add it")
    for name in finalizers:
        if name not in sums:
            raise network.fault(
                "metric_finalizers",
                f"has an entry for {name!r}, but report_local_unfinalized_metrics has none; "
                "remove it",
            )
    metrics = OwnMetrics.of(
        {name: len(values) for name, values in sums.items()},
        {name: finalizers[name] for name in sums},
    )
    twice = [name for name, count in Counter(metrics.names).items() if count > 1]
    if twice:
        raise network.fault(
            "metric_finalizers", f"two metrics would be shown as {twice[0]}; rename one"
        )
    return metrics
