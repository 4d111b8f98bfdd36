"""The interface of models that users write in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass

METHODS = (
    *("forward_pass", "report_local_unfinalized_metrics", "metric_finalizers", "reset_metrics"),
)
MEMBERS = ("trainable_variables", "input_spec", *METHODS)


@dataclass(frozen=True, eq=False)
class BatchOutput:
    """The result of `forward_pass`. Any object with these attributes can be returned instead.

    Attributes:
        loss: Mean loss over the batch, a number.
        predictions: Class of each example, integers [b], or a score of each class, floats [b, K],
            of which the largest is the prediction. `sparse_categorical_accuracy` is computed from
            them.
        gradients: The gradients of the mean loss: float32 arrays with the shapes and in the order
            of `trainable_variables`. They are ignored outside training.
        num_examples: Number of examples in the batch; None: not checked.
    """

    loss: Any
    predictions: Any
    gradients: Sequence[NDArray[np.float32]] | None = None
    num_examples: int | None = None


class OwnModel(Protocol):
    """A model in NumPy.

    It is TFF's `VariableModel`, except that a forward pass also returns gradients.

    Clients are processed one after the other, on one thread. For each client the engine writes the
    weights into `trainable_variables`, calls `reset_metrics`, calls `forward_pass` for each batch,
    and finally calls `report_local_unfinalized_metrics`. The result of a forward pass must depend
    only on the weights, the batch and `training`. A forward pass must not change the weights; the
    client optimizer changes them.

    With class weights, the loss of each example is multiplied by the weight of its label. If
    `input_spec` has "sample_weight": ArraySpec((None,), "float32"), training batches then contain
    the weights, float32 [b], and the model returns loss and gradients of sum(weight * loss) / b;
    other batches do not contain them. A model without this entry is called once for each distinct
    weight in a batch, with the examples of that weight, and the engine combines the results.

    Three further members are optional: `num_classes`; `variable_names`, the names of the variables
    in checkpoints and exported files (by default variable_0, variable_1, ...); and, for a model
    that draws random numbers, `set_random_seed(seed: int)`. It is called before each client. The
    seed depends only on the run's seed, the client and the round, so that a resumed run draws the
    same numbers. `non_trainable_variables`, which TFF's models have, must be empty or missing.

    Attributes:
        trainable_variables: float32 arrays that hold the initial weights at first. The engine
            writes into them, so the property must always return the same arrays.
        input_spec: {"x": ArraySpec((None, ...), "float32"), "y": ArraySpec((None, 1), "int32")}:
            shapes and types of a batch. x is the flat image (None, H*W*C), or (None, H, W), or
            (None, H, W, C); y is (None, 1) or (None,). Any object with `shape` and `dtype` can
            replace an `ArraySpec`.
    """

    @property
    def trainable_variables(self) -> Sequence[NDArray[np.float32]]:
        """The weights; see the attributes of the class."""
        ...

    @property
    def input_spec(self) -> Mapping[str, Any]:
        """Shapes and types of a batch; see the attributes of the class."""
        ...

    def forward_pass(self, batch: Mapping[str, NDArray[Any]], training: bool = True) -> BatchOutput:
        """Returns the results for a batch {"x": ..., "y": ...} and updates the metrics' sums."""
        ...

    def report_local_unfinalized_metrics(self) -> Mapping[str, Sequence[Any]]:
        """Returns the sums of each metric, one or more numbers, since the last reset."""
        ...

    def metric_finalizers(self) -> Mapping[str, Callable[[list[Any]], Any]]:
        """Returns for each metric the function that computes its value from its sums.

        The function takes a list of numpy.float64, the sums added up over clients, and returns a
        number.
        """
        ...

    def reset_metrics(self) -> None:
        """Sets the metrics' sums to zero."""
        ...
