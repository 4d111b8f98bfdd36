"""The contract of models that users write in NumPy: which members they have, and what for."""

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
    """What `forward_pass` returns; any object with these attributes will do.

    Attributes:
        loss: Mean loss over the batch, a number.
        predictions: Class of each example, integers [b], or a score of each class, floats [b, K],
            of which the largest counts; they make `sparse_categorical_accuracy`.
        gradients: In training, of that mean loss by each variable: float32 arrays of the shapes of
            `trainable_variables`, in that order. Not looked at otherwise.
        num_examples: Examples of the batch; None: as many as it has.
    """

    loss: Any
    predictions: Any
    gradients: Sequence[NDArray[np.float32]] | None = None
    num_examples: int | None = None


class OwnModel(Protocol):
    """A model in NumPy: TFF's `VariableModel`, whose forward pass also gives the gradients.

    The engine writes the weights into `trainable_variables`, calls `reset_metrics`, then
    `forward_pass` once a batch of a client, then `report_local_unfinalized_metrics`; one client
    after the other, on one thread. A forward pass must be a function of the weights, the batch and
    `training` alone, and must not change the weights: the client optimizer does.

    With class weights the loss of each example counts as often as its label's weight says. A model
    whose `input_spec` has "sample_weight": ArraySpec((None,), "float32") then gets that in training
    batches, float32 [b], and returns loss and gradients of sum(weight * loss) / b; it is not there
    in other batches. Any other model is called once for the examples of each weight in a batch, and
    what it returns is put together.

    It may have three things more: `num_classes`; `variable_names`, a name for each variable in
    checkpoints and exported files (else variable_0, variable_1, ...); and, if it draws random
    numbers, `set_random_seed(seed: int)`, called before each client with a seed that is a function
    of the run's seed, the client and the round, so that a resumed run draws the same.

    Attributes:
        trainable_variables: float32 arrays, always the same ones, which the engine writes into;
            what they hold at first are the initial weights.
        input_spec: {"x": ArraySpec((None, ...), "float32"), "y": ArraySpec((None, 1), "int32")}:
            how a batch is to be shaped. x is the flat image (None, H*W*C), or (None, H, W), or
            (None, H, W, C); y is (None, 1) or (None,). Any object with `shape` and `dtype` will do
            for a spec.
    """

    @property
    def trainable_variables(self) -> Sequence[NDArray[np.float32]]:
        """See above."""
        ...

    @property
    def input_spec(self) -> Mapping[str, Any]:
        """See above."""
        ...

    def forward_pass(self, batch: Mapping[str, NDArray[Any]], training: bool = True) -> BatchOutput:
        """Returns loss, predictions and gradients of {"x": ..., "y": ...}; counts its metrics."""
        ...

    def report_local_unfinalized_metrics(self) -> Mapping[str, Sequence[Any]]:
        """Returns by metric the sums, one or more numbers, over the batches since the reset."""
        ...

    def metric_finalizers(self) -> Mapping[str, Callable[[list[Any]], Any]]:
        """Returns by metric the function of those sums, added up over clients, that is its value.

        It is given a list of numpy.float64, and returns a number.
        """
        ...

    def reset_metrics(self) -> None:
        """Sets the sums to zero."""
        ...
