"""Metrics besides loss and accuracy, over all examples and, on request, for each client.

They are computed from predictions, in a second pass over the examples. Clients and examples are
taken in order, so the results do not depend on the number of threads. Memory holds one number for
each client and metric, if metrics by client are requested.

A precision or recall whose denominator is 0 is 0, as with scikit-learn's `zero_division=0`. Macro
means are over the classes that occur among labels or predictions; other classes do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.evaluation import predictions
from fedcli.evaluation.predictions import NO_CLASS, Predicted
from fedcli.evaluation.ranking import ScoreRanks
from fedcli.evaluation.spread import GROUPS
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.lazy import load
from fedcli.learning.engines import choosing
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.models.model import Model
from fedcli.settings import tables
from fedcli.settings.options import Value

NUM_BINS = 15  # number of bins of the calibration error, as in Guo et al. 2017

_EDGES = np.arange(1, NUM_BINS) / NUM_BINS  # a bin excludes its lower edge and includes its upper


@dataclass(frozen=True)
class Measured:
    """Metrics by name, in the order of the table. NaN stands for an undefined metric.

    Attributes:
        values: The metrics over all examples.
        by_client: The metrics of each client, float64 [num_clients]; empty unless requested.
        by_group: The metrics over the examples of seen and of unseen clients, if there are both.
    """

    values: Mapping[str, float]
    by_client: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    by_group: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class PredictionMetric(Protocol):
    """A user's metric of predictions, such as `own_metrics.CheckedMetric`."""

    def add(self, predicted: Predicted) -> None:
        """Adds the predictions of some examples."""

    def value(self) -> float:
        """Returns the metric over all examples that were added."""


class PredictionCounts:
    """Counts over the added predictions, from which the metrics are computed.

    Attributes:
        labels: Number of examples of each class, int64 [num_classes].
        predicted: Number of predictions of each class, without examples whose prediction is NaN.
        right: Number of correct predictions of each class.
    """

    def __init__(
        self,
        num_classes: int,
        names: Sequence[str],
        own: Mapping[str, Callable[[], PredictionMetric]] = MappingProxyType({}),
    ) -> None:
        """Starts without examples.

        Args:
            num_classes: Number of the model's classes.
            names: Names of the metrics to compute; users' own metrics have their short names.
            own: Functions that make the users' own metrics, by short name.
        """
        self.labels, self.predicted, self.right = np.zeros((3, num_classes), np.int64)
        self._names = names
        self._own = {name: make() for name, make in own.items()}
        self._ranks = ScoreRanks(num_classes) if "auc" in names else None
        self._bins: NDArray[np.float64] = np.zeros((2, NUM_BINS))  # rows: correct, confidence

    def add(self, predicted: Predicted) -> None:
        """Counts predictions.

        Raises:
            PartError: A user's metric fails.
            RunError: The temporary file for scores cannot be written.
        """
        classes, labels = predicted.classes, predicted.labels
        num_classes = len(self.labels)
        self.labels += np.bincount(labels, minlength=num_classes)
        has_class = classes != NO_CLASS
        self.predicted += np.bincount(classes[has_class], minlength=num_classes)
        self.right += np.bincount(labels[classes == labels], minlength=num_classes)
        if self._ranks is not None:
            self._ranks.add(predicted.probabilities, labels)
        if "ece" in self._names:
            self._add_confidences(predicted, has_class)
        for metric in self._own.values():
            metric.add(predicted)

    def values(self) -> dict[str, float]:
        """Returns the metrics by name; without examples all are NaN.

        Raises:
            PartError: A user's metric fails, or returns no number.
            RunError: The temporary file cannot be read.
        """
        if not self.labels.any():
            return dict.fromkeys(self._names, math.nan)
        return {name: self._value(name) for name in self._names}

    def _value(self, name: str) -> float:
        own = self._own.get(name)
        return own.value() if own is not None else float(getattr(self, name)())

    def close(self) -> None:
        """Removes the temporary file, if there is one."""
        if self._ranks is not None:
            self._ranks.close()

    def _add_confidences(self, predicted: Predicted, has_class: NDArray[np.bool_]) -> None:
        rows = np.arange(len(predicted.classes))
        confidences = predicted.probabilities[rows, predicted.classes].astype(np.float64)
        confidences[~has_class] = np.nan
        bins = np.searchsorted(_EDGES, confidences, "left")
        is_right = (predicted.classes == predicted.labels).astype(np.float64)
        for row, weights in enumerate((is_right, confidences)):
            self._bins[row] += np.bincount(bins, weights, NUM_BINS)

    # Each metric of `tables.METRICS` is computed by the method of its name.

    def macro_precision(self) -> float:
        """Returns the mean precision of the classes that occur."""
        return self._mean(self._precisions())

    def macro_recall(self) -> float:
        """Returns the mean recall of the classes that occur."""
        return self._mean(self._recalls())

    def macro_f1(self) -> float:
        """Returns the mean F1 of the classes that occur."""
        return self._mean(self._f1s())

    def weighted_precision(self) -> float:
        """Returns the mean precision; classes are weighted by their numbers of examples."""
        return self._weighted(self._precisions())

    def weighted_recall(self) -> float:
        """Returns the mean recall; classes are weighted by their numbers of examples."""
        return self._weighted(self._recalls())

    def weighted_f1(self) -> float:
        """Returns the mean F1; classes are weighted by their numbers of examples."""
        return self._weighted(self._f1s())

    def balanced_accuracy(self) -> float:
        """Returns the mean recall of the classes that have examples."""
        return float(self._recalls()[self.labels > 0].mean())

    def auc(self) -> float:
        """Returns the mean area under the ROC curve; see `ScoreRanks`."""
        assert self._ranks is not None
        return self._ranks.mean_area()

    def ece(self) -> float:
        """Returns the sum over bins of |right - confidence| / n: Guo et al. 2017, equation 3."""
        right, confidences = self._bins
        return float(np.abs(right - confidences).sum() / self.labels.sum())

    def _precisions(self) -> NDArray[np.float64]:
        return _shares(self.right, self.predicted)

    def _recalls(self) -> NDArray[np.float64]:
        return _shares(self.right, self.labels)

    def _f1s(self) -> NDArray[np.float64]:
        return _shares(2 * self.right, self.predicted + self.labels)

    def _mean(self, by_class: NDArray[np.float64]) -> float:
        return float(by_class[(self.labels + self.predicted) > 0].mean())

    def _weighted(self, by_class: NDArray[np.float64]) -> float:
        return float((self.labels * by_class).sum() / self.labels.sum())


def check_names(names: Sequence[str], model: Model) -> None:
    """Refuses a metric if the model has its own metric of that name. Raises ConfigError."""
    own = set(choosing.own_metrics(model).names)
    for name in map(tables.short_name, names):
        if name in own:
            raise ConfigError(
                f"--metrics {name}: the model {model.name} has a metric of that name; leave {name} "
                "out of --metrics, or rename the model's metric"
            )


def check_metrics(names: Sequence[str], model: Model, options: Mapping[str, Value]) -> None:
    """Checks before any work that metrics can be computed. Makes the users' own metrics once.

    Raises:
        ConfigError: See `check_names`; or an option of an own metric is not allowed.
        PartError: An own metric fails, or breaks its contract.
    """
    check_names(names, model)
    _own_makers(names, model.layout.num_classes, options)


class Measuring:
    """Computes metrics over the clients of one split, which are added one after the other.

    It is a context manager, because it may keep scores in a temporary file.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        num_clients: int,
        *,
        options: Mapping[str, Value] = MappingProxyType({}),
        by_client: bool = False,
        is_seen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Starts without examples.

        Args:
            model: The model that predicts.
            names: Keys of `tables.METRICS`, names of metrics in installed packages, or
                FILE.py:NAME; such files are executed.
            num_clients: Number of clients in the split.
            options: Options of the users' own metrics.
            by_client: Whether to compute also the metrics of each client.
            is_seen: Which clients took part in the training, bool [num_clients]; None: not known.

        Raises:
            ConfigError: See `check_metrics`.
            PartError: See `check_metrics`.
        """
        check_names(names, model)
        self._num_classes = model.layout.num_classes
        self._own = _own_makers(names, self._num_classes, options)
        names = [tables.short_name(each) for each in names]
        self._names = names
        self._by_client = {
            name: np.full(num_clients, np.nan) for name in (names if by_client else ())
        }
        has_groups = is_seen is not None and 0 < is_seen.sum() < num_clients
        self._is_seen = is_seen if has_groups else None
        self._all = self._counts()
        self._groups = {name: self._counts() for name in (GROUPS if has_groups else ())}

    def __enter__(self) -> Measuring:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the temporary files."""
        for each in (self._all, *self._groups.values()):
            each.close()

    def add(self, place: int, pieces: Iterable[Predicted]) -> None:
        """Counts all predictions of one client.

        Args:
            place: The client's position in the split.
            pieces: Its predictions.

        Raises:
            PartError: A user's metric fails, or returns no number.
            RunError: The temporary file for scores cannot be written.
        """
        counts = [self._all]
        if self._is_seen is not None:
            counts.append(self._groups[GROUPS[0] if self._is_seen[place] else GROUPS[1]])
        of_client = self._counts() if self._by_client else None
        if of_client is not None:
            counts.append(of_client)
        for piece in pieces:
            for each in counts:
                each.add(piece)
        if of_client is not None:
            for name, value in of_client.values().items():
                self._by_client[name][place] = value
            of_client.close()

    def result(self) -> Measured:
        """Returns the metrics of all added clients. Raises as `PredictionCounts.values` does."""
        groups = {name: each.values() for name, each in self._groups.items()}
        return Measured(self._all.values(), self._by_client, groups)

    def _counts(self) -> PredictionCounts:
        return PredictionCounts(self._num_classes, self._names, self._own)


def _own_makers(
    names: Sequence[str], num_classes: int, options: Mapping[str, Value]
) -> Mapping[str, Callable[[], PredictionMetric]]:
    """Returns functions that make the users' own metrics among the named ones, by short name."""
    if all(name in tables.METRICS for name in names):
        return {}
    load_makers = load("fedcli.evaluation.own_metrics:makers")
    made: Mapping[str, Callable[[], PredictionMetric]] = load_makers(names, num_classes, options)
    return made


def measure(
    group: EvaluationGroup,
    evaluator: LearningProcess,
    state: ServerState,
    names: Sequence[str],
    *,
    options: Mapping[str, Value] = MappingProxyType({}),
    by_client: bool = False,
    is_seen: NDArray[np.bool_] | None = None,
    cancel: CancelFlag | None = None,
) -> Measured:
    """Computes further metrics of a state on the clients of one split.

    Args:
        group: The clients.
        evaluator: The process whose model and engine make the predictions.
        state: The server state that is evaluated.
        names: See `Measuring`.
        options: See `Measuring`.
        by_client: See `Measuring`.
        is_seen: See `Measuring`.
        cancel: A flag that any thread may set to stop the work within a batch.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: See `check_metrics`.
        DataError: A client's data are invalid.
        ModelError: A user's model fails.
        PartError: A user's metric fails, or breaks its contract.
        RunError: The temporary file for scores cannot be written.
    """
    model, engine = evaluator.model, evaluator.engine
    starts = state.starts
    weights = state.global_model_weights if starts else state.evaluated_weights
    num_clients = len(group.client_ids)
    with Measuring(
        model, names, num_clients, options=options, by_client=by_client, is_seen=is_seen
    ) as measuring:
        by_client_predictions = predictions.predict_by_client(
            group, model, engine, weights, cancel, starts
        )
        for place, pieces in by_client_predictions:
            measuring.add(place, pieces)
        return measuring.result()


def _shares(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the quotients; 0 where a total is 0."""
    shares: NDArray[np.float64] = np.zeros(len(counts))
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares
