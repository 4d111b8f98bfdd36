"""Calls a user's model, checks its results against the contract, and locates failures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ModelError, shown_repr
from fedcli.models.metrics import are_probabilities, predicted_classes
from fedcli.models.own.contract import MEMBERS, METHODS, OwnModel
from fedcli.settings.own import user_code

_OUTPUT_ADVICE = "give a BatchOutput(loss, predictions, gradients)"
_SPEC_ADVICE = (
    'give {"x": ArraySpec((None, 784), "float32"), "y": ArraySpec((None, 1), "int32")}, with '
    "own_models.ArraySpec and x shaped as the images"
)
_WEIGHTS = "sample_weight"  # entry in the spec of a model that weights examples itself


@dataclass(frozen=True)
class BatchResult:
    """The checked results of a batch.

    Attributes:
        loss_sum: Sum of the examples' losses, each multiplied by the example's weight.
        num_correct: Number of examples whose prediction is their label.
        gradient: Gradient of `loss_sum` divided by the number of examples, float32 [num_params];
            None outside training.
    """

    loss_sum: float
    num_correct: int
    gradient: NDArray[np.float32] | None


class Network:
    """Calls a user's model, checks its results against the contract, and locates failures."""

    def __init__(self, model: OwnModel, file: str, num_classes: int | None) -> None:
        """Checks the model's members and reads its variables and its input spec.

        Args:
            model: The user's model.
            file: The file of its code, for messages.
            num_classes: Number of classes; None: not known.

        Raises:
            ModelError: A member is missing, or is of a type that the contract does not allow.
        """
        self.model = model
        self.file = file
        self.num_classes = num_classes
        self._check_members()
        self.variables = self._read_variables()
        self.initial_params = self.params()
        self._is_loss_checked = False
        self.x_shape, self.y_shape, self.takes_weights = self._read_input_spec()

    def params(self) -> NDArray[np.float32]:
        """Returns a copy of the weights as they are now, float32 [num_params]."""
        return np.concatenate([each.ravel() for each in self.variables])

    def set_params(self, params: NDArray[np.float32]) -> None:
        """Writes float32 [num_params] into the variables.

        Raises:
            ModelError: `trainable_variables` are no longer the same arrays.
        """
        with self._running("trainable_variables"):
            now = list(self.model.trainable_variables)
        if [id(each) for each in now] != [id(each) for each in self.variables]:
            raise self.fault(
                "trainable_variables",
                "returned other arrays than before; always return the same ones, because the "
                "engine writes the weights into them",
            )
        start = 0
        for variable in self.variables:
            variable[...] = params[start : start + variable.size].reshape(variable.shape)
            start += variable.size

    def start_client(self, seed: int) -> None:
        """Resets the metrics; calls `set_random_seed` if the model has it."""
        with self._running("reset_metrics"):
            self.model.reset_metrics()
        set_random_seed = getattr(self.model, "set_random_seed", None)
        if set_random_seed is not None:
            with self._running("set_random_seed"):
                set_random_seed(seed)

    def forward(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.int32],
        *,
        training: bool,
        weights: NDArray[np.float32] | None = None,
    ) -> BatchResult:
        """Runs the forward pass on a batch with the current weights.

        Args:
            images: float32 [b, ...], with as many values per example as the model takes.
            labels: int32 [b].
            training: Whether the gradient is computed.
            weights: Factors of the examples' losses, float32 [b]; None: all are 1. A model without
                `sample_weight` in its spec is called once for each distinct weight.

        Raises:
            ModelError: The model fails, or its result breaks the contract.
        """
        if weights is not None and not self.takes_weights:
            return self._forward_by_weight(images, labels, weights)
        size = len(labels)
        output = self._run(images, labels, training=training, weights=weights)
        loss = self._loss(output.loss)
        if training and weights is None and not self._is_loss_checked:
            self._refuse_softmax_twice(loss, np.asarray(output.predictions), labels)
        num_correct = int(np.count_nonzero(self._classes(output.predictions, size) == labels))
        gradient = self._gradient(getattr(output, "gradients", None)) if training else None
        return BatchResult(loss * size, num_correct, gradient)

    def _forward_by_weight(
        self, images: NDArray[np.float32], labels: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> BatchResult:
        """Runs a weighted training batch: one call for each distinct weight, in ascending order.

        The model returns only the gradient of the mean loss, and the gradients of single examples
        cannot be recovered from it.
        """
        loss_sum, num_correct = 0.0, 0
        gradient: NDArray[np.float64] = np.zeros(len(self.initial_params))
        for weight in np.unique(weights):
            rows = weights == weight
            part = self.forward(images[rows], labels[rows], training=True)
            assert part.gradient is not None
            loss_sum += float(weight) * part.loss_sum
            num_correct += part.num_correct
            with np.errstate(over="ignore", invalid="ignore"):  # as in `_run`
                share = float(weight) * np.count_nonzero(rows) / len(labels)
                gradient += share * part.gradient.astype(np.float64)
        with np.errstate(over="ignore"):
            return BatchResult(loss_sum, num_correct, gradient.astype(np.float32))

    def predict(
        self, images: NDArray[np.float32], labels: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """Returns a score of each class for each example of a batch, floats [b, K].

        Scores are returned as the model gives them. If the model gives classes, the score is 1 for
        the predicted class and 0 for the others; the row is NaN if the predicted class does not
        exist.

        Raises:
            ModelError: The model fails, or its result breaks the contract.
        """
        size = len(labels)
        output = self._run(images, labels, training=False)
        predictions: NDArray[Any] = np.asarray(output.predictions)
        classes = self._classes(predictions, size)
        if predictions.dtype.kind == "f":
            scores: NDArray[np.floating] = predictions.copy()  # the model may reuse its array
            return scores
        assert self.num_classes is not None
        certain: NDArray[np.float32] = (classes[:, None] == np.arange(self.num_classes)).astype(
            np.float32
        )
        certain[~certain.any(axis=1)] = np.nan
        return certain

    def _run(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.int32],
        *,
        training: bool,
        weights: NDArray[np.float32] | None = None,
    ) -> Any:
        """Calls `forward_pass` on a batch and checks that the output has its members."""
        size = len(labels)
        batch = {"x": images.reshape(size, *self.x_shape), "y": labels.reshape(size, *self.y_shape)}
        if weights is not None:
            batch[_WEIGHTS] = weights
        # Overflow in a diverging run is not an error here: the engine handles non-finite results.
        with self._running("forward_pass"), np.errstate(all="ignore"):
            output = self.model.forward_pass(batch, training=training)
        for name in ("loss", "predictions"):
            if not hasattr(output, name):
                kind = type(output).__name__
                raise self.fault(
                    "forward_pass", f"returned {kind} without {name}; {_OUTPUT_ADVICE}"
                )
        num_examples = getattr(output, "num_examples", None)
        if num_examples is not None and num_examples != size:
            raise self.fault(
                "forward_pass",
                f"num_examples is {num_examples!r}, but the batch has {size}; correct it",
            )
        return output

    def report(self) -> dict[str, NDArray[np.float64]]:
        """Returns the sums of each metric, float64 [k].

        Raises:
            ModelError: The model fails, or does not return lists of numbers by name.
        """
        what = "report_local_unfinalized_metrics"
        with self._running(what):
            reported: Any = self.model.report_local_unfinalized_metrics()
        if not isinstance(reported, Mapping):
            raise self.fault(what, f"returned {type(reported).__name__}; give a dict of lists")
        sums = {}
        for name, values in reported.items():
            if not isinstance(name, str) or not name.isprintable() or not name.strip():
                raise self.fault(what, f"a metric is named {name!r}; give it a plain name")
            sums[name] = self._sums(name, values)
        return sums

    def finalizers(self) -> dict[str, Callable[[list[Any]], Any]]:
        """Returns the finalizer of each metric, which raises `ModelError` if the user's code fails.

        Raises:
            ModelError: The model fails, or a finalizer is not callable.
        """
        with self._running("metric_finalizers"):
            finalizers: Any = self.model.metric_finalizers()
        if not isinstance(finalizers, Mapping):
            kind = type(finalizers).__name__
            raise self.fault("metric_finalizers", f"returned {kind}; give a dict of functions")
        for name, function in finalizers.items():
            if not callable(function):
                raise self.fault(
                    "metric_finalizers",
                    f"the finalizer of metric {name!r} is {function!r}; give a function",
                )
        return {name: self._guarded(name, function) for name, function in finalizers.items()}

    def _guarded(
        self, name: str, function: Callable[[list[Any]], Any]
    ) -> Callable[[list[Any]], Any]:
        def finalize(sums: list[Any]) -> Any:
            with (
                user_code.running(f"finalizer of metric {name!r}", self.file),
                np.errstate(all="ignore"),
            ):
                value = function(sums)
            array = np.asarray(value)
            if array.size != 1 or array.dtype.kind not in "biuf":
                raise ModelError(
                    f"{user_code.place(function)}: the finalizer of metric {name!r} returned "
                    f"{shown_repr(value)}; give a number"
                )
            return array.reshape(()).item()

        return finalize

    def _running(self, name: str) -> AbstractContextManager[None]:
        return user_code.running(name, self.file)

    def fault(self, name: str, text: str) -> ModelError:
        """Returns an error about a member of the model; its message names place and member."""
        cls = type(self.model)
        member = getattr(cls, name, None)
        member = getattr(member, "fget", member)
        where = getattr(self.model, "place", None)  # set by `TorchNetwork`: the user's module
        if where is None:
            where = user_code.place(member if inspect.isroutine(member) else cls)
        return ModelError(f"{where}: {name}: {text}")

    def _check_members(self) -> None:
        for name in MEMBERS:
            with self._running(name):
                is_there = hasattr(self.model, name)
            if not is_there:
                raise ModelError(
                    f"{user_code.place(type(self.model))}: {type(self.model).__name__} has no "
                    f"{name}; a model needs {', '.join(MEMBERS)}"
                )
            if name in METHODS and not callable(getattr(self.model, name)):
                raise self.fault(name, "is not a method; make it one")
        self._refuse_non_trainable()

    def _refuse_non_trainable(self) -> None:
        """Refuses variables of TFF's contract that neither the server nor a checkpoint keeps."""
        name = "non_trainable_variables"
        with self._running(name):
            num_variables = len(getattr(self.model, name, None) or ())
        if num_variables:
            raise self.fault(
                name, "are not supported; keep constants in other attributes, or leave them out"
            )

    def _read_variables(self) -> list[NDArray[np.float32]]:
        name = "trainable_variables"
        with self._running(name):
            variables = list(self.model.trainable_variables)
        if not variables:
            raise self.fault(name, "is empty; give at least one variable")
        for index, each in enumerate(variables):
            if not isinstance(each, np.ndarray) or each.dtype != np.float32 or not each.size:
                raise self.fault(name, f"[{index}] is {_kind(each)}; give float32 arrays")
            if not each.flags.writeable:
                raise self.fault(
                    name,
                    f"[{index}] is read-only, but the engine writes the weights into it; give a "
                    "writable array",
                )
            if not np.isfinite(each).all():
                raise self.fault(name, f"[{index}] holds NaN or infinity; give finite weights")
        return variables

    def _read_input_spec(self) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Returns the shapes of one example's x and y, and whether batches may contain weights."""
        with self._running("input_spec"):
            spec: Any = self.model.input_spec
            if not isinstance(spec, Mapping) or set(spec) - {_WEIGHTS} != {"x", "y"}:
                raise self.fault("input_spec", f"is {shown_repr(spec)}; {_SPEC_ADVICE}")
            for name, each in spec.items():
                if not (hasattr(each, "shape") and hasattr(each, "dtype")):
                    raise self.fault(
                        "input_spec",
                        f"[{name!r}] is {shown_repr(each)}, which has no shape and dtype; "
                        f"{_SPEC_ADVICE}",
                    )
            shapes = {name: tuple(each.shape) for name, each in spec.items()}
            dtypes = {name: _numpy_type(each.dtype) for name, each in spec.items()}
        x, y = shapes["x"], shapes["y"]
        has_x = len(x) >= 2 and all(isinstance(size, int) and size > 0 for size in x[1:])
        has_types = dtypes["x"] == np.float32 and dtypes["y"] == np.int32
        if not has_x or x[0] is not None or y not in ((None,), (None, 1)) or not has_types:
            raise self.fault(
                "input_spec", f"has x {dtypes['x']} {x} and y {dtypes['y']} {y}; {_SPEC_ADVICE}"
            )
        takes_weights = _WEIGHTS in spec
        if takes_weights and (shapes[_WEIGHTS] != (None,) or dtypes[_WEIGHTS] != np.float32):
            raise self.fault(
                "input_spec",
                f"has {_WEIGHTS} {dtypes[_WEIGHTS]} {shapes[_WEIGHTS]}; give "
                'ArraySpec((None,), "float32"), or leave it out',
            )
        return x[1:], y[1:], takes_weights

    def _loss(self, loss: Any) -> float:
        array = np.asarray(loss)
        if array.size != 1 or array.dtype.kind not in "iuf":
            raise self.fault(
                "forward_pass", f"the loss is {_kind(array)}; give one number, the batch's mean"
            )
        return float(array.reshape(()))

    def _refuse_softmax_twice(
        self, loss: float, predictions: NDArray[Any], labels: NDArray[np.int32]
    ) -> None:
        """Refuses a loss that applies another softmax to probabilities.

        If all probabilities are equal, for example because all weights are 0, a second softmax does
        not change the cross-entropy. Then nothing is decided, and the next batch is checked.
        """
        is_scores = predictions.dtype.kind == "f" and predictions.ndim == 2
        if is_scores and not np.isfinite(predictions).all():
            return
        if not is_scores or predictions.shape[1] < 2 or not are_probabilities(predictions):
            self._is_loss_checked = True
            return
        shares = predictions.astype(np.float64)
        of_labels = np.take_along_axis(shares, labels[:, np.newaxis].astype(np.int64), axis=1)[:, 0]
        with np.errstate(divide="ignore"):
            once = float(-np.log(of_labels).mean())
        twice = float((np.log(np.exp(shares).sum(axis=1)) - of_labels).mean())
        if abs(once - twice) < 0.01 * twice:
            return
        self._is_loss_checked = True
        if abs(loss - twice) < 1e-4 * twice:
            raise self.fault(
                "forward_pass",
                "the predictions are probabilities, but the loss applies a second softmax to them, "
                "so that the model would hardly learn; compute the loss from the logits, or as "
                "minus the logarithm of the label's probability",
            )

    def _classes(self, predictions: Any, size: int) -> NDArray[Any]:
        array: NDArray[Any] = np.asarray(predictions)
        is_column = array.shape == (size, 1)
        if array.dtype.kind in "iu" and (array.shape == (size,) or is_column):
            return array.reshape(size)
        is_scores = array.dtype.kind == "f" and array.ndim == 2 and len(array) == size
        if is_scores and array.shape[1] == (self.num_classes or array.shape[1]):
            return predicted_classes(array)
        num_classes = "K" if self.num_classes is None else self.num_classes
        raise self.fault(
            "forward_pass",
            f"predictions of {size} examples are {_kind(array)}; give classes, integers [{size}], "
            f"or scores, floats [{size}, {num_classes}]",
        )

    def _gradient(self, gradients: Any) -> NDArray[np.float32]:
        if gradients is None:
            raise self.fault(
                "forward_pass", "gradients are None in training; give one for each variable"
            )
        if not isinstance(gradients, list | tuple):
            raise self.fault("forward_pass", f"gradients are {_kind(gradients)}; give a list")
        if len(gradients) != len(self.variables):
            raise self.fault(
                "forward_pass",
                f"returned {len(gradients)} gradients for {len(self.variables)} variables; give "
                "one per variable",
            )
        for index, (gradient, variable) in enumerate(zip(gradients, self.variables, strict=True)):
            is_right = isinstance(gradient, np.ndarray) and gradient.dtype == np.float32
            if not is_right or gradient.shape != variable.shape:
                raise self.fault(
                    "forward_pass",
                    f"gradient {index} is {_kind(gradient)}, but its variable is "
                    f"{_kind(variable)}; give the same shape and type",
                )
        return np.concatenate([each.ravel() for each in gradients])

    def _sums(self, name: str, values: Any) -> NDArray[np.float64]:
        what = "report_local_unfinalized_metrics"
        if isinstance(values, list | tuple) and values:
            numbers = [np.asarray(each) for each in values]
            if all(each.size == 1 and each.dtype.kind in "biuf" for each in numbers):
                return np.array([each.item() for each in numbers], np.float64)
        raise self.fault(what, f"metric {name!r} is {shown_repr(values)}; give a list of numbers")


def _numpy_type(dtype: Any) -> np.dtype[Any]:
    """Returns NumPy's type for a type of NumPy, TensorFlow (tf.float32) or PyTorch."""
    dtype = getattr(dtype, "as_numpy_dtype", dtype)
    return np.dtype(str(dtype).removeprefix("torch.") if "torch." in str(dtype) else dtype)


def _kind(value: Any) -> str:
    """Returns the type of a value.

    For an array this is dtype and shape, as in float32 [784, 10].
    """
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
