"""Users' own metrics: their interface, and checks of their results."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, FedcliError, PartError
from fedcli.evaluation.predictions import Predicted
from fedcli.models.metrics import RESERVED
from fedcli.settings import tables
from fedcli.settings.options import Value, choose, opened, resolve
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import kind
from fedcli.settings.own.parts import make, options_for

NOUN = "metric"

_PASSING = (FedcliError,)


class Metric(Protocol):
    """Computes a number from a model's predictions for the examples of all clients.

    Each evaluation makes a new object; if metrics by client are requested, also one per client. The
    constructor gets the options that the user gave, and `num_classes` if it has this parameter.
    """

    def add(
        self,
        labels: NDArray[np.int32],
        predicted: NDArray[np.int32],
        probabilities: NDArray[np.float32],
    ) -> None:
        """Adds some examples. The arrays are read-only.

        Args:
            labels: The classes of the examples, [n].
            predicted: The predicted classes, [n]; -1 where the model's scores are NaN.
            probabilities: The predicted probability of each class, [n, num_classes].
        """
        ...

    def value(self) -> float:
        """Returns the metric of all added examples; there is at least one. NaN: not defined."""
        ...


@dataclass(frozen=True, eq=False)
class CheckedMetric:
    """Calls a user's metric. Its exceptions become one-line messages that name file and line.

    Attributes:
        metric: The user's object.
        file: The file of its code.
    """

    metric: Metric
    file: str

    def add(self, predicted: Predicted) -> None:
        """Passes predictions to the metric, as read-only arrays because other metrics share them.

        Raises:
            PartError: The metric fails.
        """
        arrays = (predicted.labels, predicted.classes, predicted.probabilities)
        with user_code.running("add", self.file, NOUN, passing=_PASSING):
            self.metric.add(*map(_read_only, arrays))

    def value(self) -> float:
        """Returns the metric's value. Raises PartError if it fails or is not a number."""
        with user_code.running("value", self.file, NOUN, passing=_PASSING):
            value: Any = self.metric.value()
            number = float(value) if isinstance(value, numbers.Real) else None
        if number is None:
            where = user_code.method_place(self.metric, "value")
            raise PartError(f"{where} returned {kind(value)}; give a number")
        return number


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def makers(
    names: Sequence[str], num_classes: int, options: Mapping[str, Value]
) -> Mapping[str, Callable[[], CheckedMetric]]:
    """Returns a mapping from the short name of each own metric to a function that makes it.

    Built-in metrics among `names` are left out.

    Args:
        names: Names of metrics.
        num_classes: Number of the model's classes.
        options: Options of the own metrics. Each metric takes those that it declares.

    Raises:
        ConfigError: Two metrics have the same name.
        PartError: A file fails, or breaks the contract.
    """
    made: dict[str, Callable[[], CheckedMetric]] = {}
    for name in names:
        if name in tables.METRICS:
            continue
        entry = opened(choose(tables.METRICS, name, "--metrics"))
        short = tables.short_name(name)
        given = options_for(entry, options)
        if short in made or short in tables.METRICS or short in RESERVED:
            raise ConfigError(f"--metrics {name}: another metric is called {short}; rename one")

        def build(
            entry: tables.MetricEntry = entry, given: Mapping[str, Value] = given
        ) -> CheckedMetric:
            offered = {"num_classes": num_classes}
            metric = make(entry, NOUN, offered, resolve(entry, given), _PASSING)
            missing = [each for each in ("add", "value") if not hasattr(metric, each)]
            if missing:
                raise PartError(
                    f"{user_code.place(metric)}: {type(metric).__name__} has no "
                    f"{', no '.join(missing)}; define add(labels, predicted, probabilities) and "
                    "value()"
                )
            return CheckedMetric(metric, entry.file)

        build()  # so that a fault is reported before any work
        made[short] = build
    return made
