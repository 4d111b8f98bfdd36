"""Results by class: precision and recall, the confusion matrix, and top-k accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError, plural
from fedcli.evaluation.predictions import Predicted


class ClassMeasures:
    """Counts over all added predictions. Every example counts the same.

    Attributes:
        confusion: Number of examples by label and predicted class, int64 [K, K]; [0, 0] before the
            first call of `add`. An example without a prediction is in no cell.
        labels: Number of examples of each label, int64 [K], including those without a prediction.
    """

    def __init__(self, ks: Sequence[int] = ()) -> None:
        """Starts without examples; `ks` lists each k, at least 1, of the top-k accuracies."""
        self.confusion: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.labels: NDArray[np.int64] = np.zeros(0, np.int64)
        self._num_right = dict.fromkeys(ks, 0)

    def add(self, predicted: Predicted) -> None:
        """Counts predictions.

        Raises:
            ConfigError: There are fewer classes than one of `ks`.
        """
        num_classes = predicted.probabilities.shape[1]
        if not len(self.labels):
            most = max(self._num_right, default=1)
            if most > num_classes:
                raise ConfigError(
                    f"--top-k {most}: the model has {plural(num_classes, 'class')}; choose 1 to "
                    f"{num_classes}"
                )
            self.confusion = np.zeros((num_classes, num_classes), np.int64)
            self.labels = np.zeros(num_classes, np.int64)
        has_class = predicted.classes >= 0
        labels = predicted.labels
        self.labels += np.bincount(labels, minlength=num_classes)
        np.add.at(self.confusion, (labels[has_class], predicted.classes[has_class]), 1)
        if self._num_right:
            ranks = _ranks(predicted.probabilities, labels)
            for k in self._num_right:
                self._num_right[k] += int(np.count_nonzero(has_class & (ranks < k)))

    @property
    def top_k(self) -> dict[int, float]:
        """The share of examples whose label is among the k most probable classes, by k."""
        total = int(self.labels.sum())
        return {k: right / total if total else math.nan for k, right in self._num_right.items()}

    @property
    def precision(self) -> NDArray[np.float64]:
        """The share of correct predictions of each class; NaN for a class never predicted."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """The share of each class's examples that is predicted correctly; NaN without examples."""
        return _shares(self.confusion.diagonal(), self.labels)

    def to_json(self) -> dict[str, Any]:
        """Returns all measures as plain values."""
        return {
            "top_k_accuracy": {str(k): share for k, share in self.top_k.items()},
            "confusion": self.confusion.tolist(),
            "precision": self.precision.tolist(),
            "recall": self.recall.tolist(),
        }


def _ranks(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """The number of classes that rank before each label.

    Of equal scores, the lower class ranks first.
    """
    own = np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=1)
    is_lower = np.arange(probabilities.shape[1]) < labels[:, None]
    before = (probabilities > own) | ((probabilities == own) & is_lower)
    ranks: NDArray[np.int64] = before.sum(axis=1)
    return ranks


def _shares(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: NDArray[np.float64] = counts / totals
    return shares
