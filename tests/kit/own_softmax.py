"""Softmax regression in NumPy, as a user's own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ArraySpec
from fedcli.models.own.contract import BatchOutput
from tests.kit.clients import NUM_CLASSES, SHAPE


class Softmax:
    """Softmax regression in NumPy, as a user writes it: the loss is a plain mean of examples."""

    num_classes = NUM_CLASSES

    def __init__(self) -> None:
        num_inputs = SHAPE[0] * SHAPE[1]
        self.trainable_variables = [
            np.zeros((num_inputs, NUM_CLASSES), np.float32),
            np.zeros(NUM_CLASSES, np.float32),
        ]
        self.input_spec = {
            "x": ArraySpec((None, num_inputs), "float32"),
            "y": ArraySpec((None,), "int32"),
        }

    def scored(self, batch: Mapping[str, Any], weights: NDArray[Any]) -> BatchOutput:
        x, labels = batch["x"].astype(np.float64), batch["y"]
        kernel, bias = self.trainable_variables
        logits = x @ kernel + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        rows, size = np.arange(len(labels)), len(labels)
        loss = -(weights * np.log(shares[rows, labels])).sum() / size
        error = shares.copy()
        error[rows, labels] -= 1
        error *= weights[:, np.newaxis] / size
        gradients = [(x.T @ error).astype(np.float32), error.sum(axis=0).astype(np.float32)]
        return BatchOutput(loss=loss, predictions=shares, gradients=gradients)

    def forward_pass(self, batch: Mapping[str, Any], training: bool = True) -> BatchOutput:
        return self.scored(batch, np.ones(len(batch["y"])))

    def report_local_unfinalized_metrics(self) -> dict[str, Sequence[Any]]:
        return {}

    def metric_finalizers(self) -> dict[str, Callable[[list[Any]], Any]]:
        return {}

    def reset_metrics(self) -> None:
        pass
