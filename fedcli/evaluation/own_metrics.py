"""Metrics that users bring: the contract, and checks of what they return."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, FedcliError, PartError
from fedcli.evaluation.measuring import short_name
from fedcli.evaluation.predictions import Predicted
from fedcli.settings import tables
from fedcli.settings.options import choose, opened, resolve
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import kind
from fedcli.settings.own.parts import make

NOUN = "metric"

_PASSING = (FedcliError,)


class Metric(Protocol):
    """A number that follows from what a model predicts, over the examples of all clients.

    It is made anew for each evaluation, with `num_classes` if it has that parameter. An evaluation
    may make one for each client, too.
    """

    def add(
        self,
        labels: NDArray[np.int32],
        predicted: NDArray[np.int32],
        probabilities: NDArray[np.float32],
    ) -> None:
        """Takes some examples.

        Args:
            labels: Their classes, [n].
            predicted: The classes that the model says, [n]; -1 where its scores are NaN.
            probabilities: Of each class, [n, num_classes].
        """
        ...

    def value(self) -> float:
        """Returns the metric of all that was added, at least one example; NaN: not defined."""
        ...


@dataclass(frozen=True, eq=False)
class CheckedMetric:
    """A user's metric behind checks: its failures are one line with file and line.

    Attributes:
        metric: The user's.
        file: Where its code is.
    """

    metric: Metric
    file: str

    def add(self, predicted: Predicted) -> None:
        """Passes on what was predicted. Raises PartError: it fails."""
        with user_code.running("add", self.file, NOUN, passing=_PASSING):
            self.metric.add(predicted.labels, predicted.classes, predicted.probabilities)

    def value(self) -> float:
        """Returns its value. Raises PartError: it fails, or is no number."""
        with user_code.running("value", self.file, NOUN, passing=_PASSING):
            value: Any = self.metric.value()
            number = float(value) if isinstance(value, numbers.Real) else None
        if number is None:
            where = user_code.method_place(self.metric, "value")
            raise PartError(f"{where} returned {kind(value)}; give a number")
        return number


def makers(names: Sequence[str], num_classes: int) -> Mapping[str, Callable[[], CheckedMetric]]:
    """Returns by their short names what makes the metrics of a user's among some.

    Args:
        names: Of metrics.
        num_classes: Of the model.

    Raises:
        ConfigError: Two have one name.
        PartError: A file fails, or breaks the contract.
    """
    made: dict[str, Callable[[], CheckedMetric]] = {}
    for name in names:
        if name in tables.METRICS:
            continue
        entry = opened(choose(tables.METRICS, name, "--metrics"))
        short = short_name(name)
        if short in made or short in tables.METRICS:
            raise ConfigError(f"--metrics {name}: another metric is called {short}; rename one")

        def build(entry: Any = entry) -> CheckedMetric:
            offered = {"num_classes": num_classes}
            metric = make(entry, NOUN, offered, resolve(entry, {}), _PASSING)
            missing = [each for each in ("add", "value") if not hasattr(metric, each)]
            if missing:
                raise PartError(
                    f"{user_code.place(metric)}: {type(metric).__name__} has no "
                    f"{', no '.join(missing)}; a metric has add(labels, predicted, probabilities) "
                    "and value()"
                )
            return CheckedMetric(metric, entry.file)

        build()  # so that a fault is told before any work
        made[short] = build
    return made
