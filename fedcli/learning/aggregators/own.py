"""A user's own aggregator, with checks of its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, FedcliError, PartError
from fedcli.learning.engines.deltas import DeltaRequest, Deltas
from fedcli.learning.engines.unmeasured import without_sizes
from fedcli.settings.options import Entry, Value, path_text
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import checked_metrics, checked_state, copied_state, kind
from fedcli.settings.own.parts import make

NOUN = "aggregator"

_METHODS = ("init", "request", "aggregate")
_CONTRACT = "an aggregator has init(), request(state) and aggregate(state, deltas)"
_PASSING = (FedcliError,)
_MEASURING = "a request of DeltaRequest(bounds=DeltaBounds(math.inf, math.inf)) measures it"


@dataclass(frozen=True, eq=False)
class OwnAggregator:
    """Calls the user's aggregator and checks its results; errors name file and line.

    Attributes:
        aggregator: The user's aggregator, a `fedcli.aggregators.Aggregator`.
        file: The file of its code.
    """

    aggregator: Any
    file: str

    @classmethod
    def of(cls, entry: Entry, options: Mapping[str, Value]) -> OwnAggregator:
        """Makes the aggregator of a row of the table of aggregators.

        Raises:
            PartError: The user's code fails, or lacks a method of the contract.
        """
        aggregator = make(entry, NOUN, {}, options, _PASSING)
        missing = _missing(aggregator)
        if missing:
            raise PartError(
                f"{user_code.place(aggregator)}: {type(aggregator).__name__} has no "
                f"{', no '.join(missing)}; {_CONTRACT}"
            )
        return cls(aggregator, entry.file)

    @classmethod
    def around(cls, aggregator: Any) -> OwnAggregator:
        """Returns an aggregator that calls and checks an object that a program made.

        Raises:
            ConfigError: It is a class, a name, or an object that lacks a method of the contract.
        """
        if isinstance(aggregator, type):
            name = aggregator.__name__
            raise ConfigError(f"aggregator is the class {name}; give an object, such as {name}()")
        if isinstance(path_text(aggregator), str):
            raise ConfigError(
                f"aggregator is the name '{aggregator}'; give the object that "
                f"fedcli.aggregators.build('{aggregator}') returns"
            )
        missing = _missing(aggregator)
        if missing:
            raise ConfigError(
                f"aggregator is of type {type(aggregator).__name__}, which has no "
                f"{', no '.join(missing)}; {_CONTRACT}"
            )
        return cls(aggregator, user_code.source_file(aggregator))

    @property
    def averages_coordinates(self) -> bool:
        """The attribute of the user's aggregator, by default False; see the contract."""
        return bool(getattr(self.aggregator, "averages_coordinates", False))

    @property
    def selected_by(self) -> str:
        """What messages call the user's aggregator, by default its class; see the contract."""
        default = f"the aggregator {type(self.aggregator).__name__}"
        return str(getattr(self.aggregator, "selected_by", default))

    def init(self) -> dict[str, Any]:
        """Returns the state before the first round, for a model without parameters.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        return self.init_for(0)

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the state before the first round, for a model of `num_params`.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        name = "init_for" if self._has("init_for") else "init"
        with user_code.running(name, self.file, NOUN, passing=_PASSING):
            own = self.aggregator
            state = own.init() if name == "init" else own.init_for(num_params)
        return checked_state(self._where(name), state, None)

    def problem(self, num_clients: int) -> str | None:
        """Returns why `num_clients` deltas cannot be combined; None if the user's code allows it.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        if not self._has("problem"):
            return None
        with user_code.running("problem", self.file, NOUN, passing=_PASSING):
            why = self.aggregator.problem(num_clients)
        if why is not None and not isinstance(why, str):
            raise PartError(
                f"{self._where('problem')} returned {kind(why)}; give a text that says why "
                f"{num_clients} deltas cannot be combined, or None"
            )
        return why

    def for_cohort(self, num_clients: int) -> OwnAggregator:
        """Returns the aggregator for cohorts of `num_clients`, by default this one.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        if not self._has("for_cohort"):
            return self
        with user_code.running("for_cohort", self.file, NOUN, passing=_PASSING):
            chosen = self.aggregator.for_cohort(num_clients)
        missing = _missing(chosen)
        if missing:
            raise PartError(
                f"{self._where('for_cohort')} returned {kind(chosen)}, which has no "
                f"{', no '.join(missing)}; {_CONTRACT}"
            )
        return OwnAggregator(chosen, self.file)

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Returns the aggregator's request for the coming round.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        with user_code.running("request", self.file, NOUN, passing=_PASSING):
            request = self.aggregator.request(copied_state(state))
        if not isinstance(request, DeltaRequest):
            raise PartError(
                f"{self._where('request')} returned {kind(request)}; give fedcli.aggregators.SUM, "
                "ALL_ROWS or a DeltaRequest"
            )
        return request

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state and the metrics.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        given = deltas
        if not deltas.stats["max_abs"].any() and self.request(state).bounds is None:
            given = without_sizes(deltas, _MEASURING)
        with user_code.running("aggregate", self.file, NOUN, passing=_PASSING):
            result = self.aggregator.aggregate(copied_state(state), given)
        where = self._where("aggregate")
        if not isinstance(result, tuple) or len(result) != 3:
            raise PartError(f"{where} returned {kind(result)}; give (mean_delta, state, metrics)")
        mean, after, metrics = result
        num_params = len(deltas.delta_sum)
        is_vector = isinstance(mean, np.ndarray) and mean.shape == (num_params,)
        if not is_vector or mean.dtype.kind != "f":
            raise PartError(
                f"{where} returned {kind(mean)} for the mean delta; give float32 [{num_params}]"
            )
        with np.errstate(over="ignore"):
            single = mean.astype(np.float32)
        return single, checked_state(where, after, state), checked_metrics(where, metrics)

    def _has(self, method: str) -> bool:
        return getattr(self.aggregator, method, None) is not None

    def _where(self, method: str) -> str:
        return user_code.method_place(self.aggregator, method)


def _missing(aggregator: object) -> list[str]:
    """Returns the methods that an aggregator lacks; with `init_for` it needs no `init`."""
    has = {name for name in _METHODS if callable(getattr(aggregator, name, None))}
    if callable(getattr(aggregator, "init_for", None)):
        has.add("init")
    return [name for name in _METHODS if name not in has]
