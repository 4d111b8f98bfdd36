"""The client work of a user's own algorithm, with checks of its results."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import Cancelled
from fedcli.dataclass import dataclass
from fedcli.errors import FedcliError, PartError
from fedcli.learning.algorithms.client_work import ClientWork, CohortCall, WorkResult
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.engines.unmeasured import with_all_stats, without_sizes
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings.options import Entry, Value
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import checked_metrics, checked_state, copied_state, kind
from fedcli.settings.own.parts import make

NOUN = "algorithm"

# Exceptions of the engine. They are passed on, because the user's code did not cause them.
_PASSING = (FedcliError, Cancelled)


@dataclass(frozen=True, eq=False)
class OwnWork:
    """Calls the user's client work and checks its results; errors name file and line.

    Attributes:
        work: The user's client work.
        file: The file of its code.
    """

    work: ClientWork
    file: str

    @classmethod
    def of(
        cls,
        entry: Entry,
        optimizer: Optimizer | None,
        options: Mapping[str, Value],
        part: Callable[..., Any] | None = None,
    ) -> OwnWork:
        """Makes the client work of a row of the table of algorithms.

        Args:
            entry: The row.
            optimizer: The client optimizer.
            options: All options of the row, resolved.
            part: The user's class, if the row has no code; see `parts.row_of`.

        Raises:
            PartError: The user's code fails, or lacks a method of the contract.
        """
        work = make(entry, NOUN, {"optimizer": optimizer}, options, _PASSING, part)
        missing = [name for name in ("init", "run") if not callable(getattr(work, name, None))]
        if missing:
            raise PartError(
                f"{user_code.place(work)}: {type(work).__name__} has no {', no '.join(missing)}; "
                "an algorithm has init(params) and run(call, state)"
            )
        return cls(work, entry.file)

    @property
    def num_passes(self) -> int:
        """The number of passes over the cohort's data; 1 unless the user's code sets it.

        Raises:
            PartError: It is not a whole number above 0.
        """
        return self._count("num_passes", 1)

    @property
    def amounts(self) -> dict[str, Any]:
        """What a client receives and sends, by the name of the field of `AlgorithmEntry`.

        By default a client sends one vector for each pass over the data: the delta of `train`, or
        the gradient of `take_gradients`.

        Raises:
            PartError: An attribute of the user's code is not a whole number above 0.
        """
        defaults = {"vectors_down": 1, "vectors_up": self.num_passes, "numbers_up": 1}
        return {name: self._count(name, default) for name, default in defaults.items()}

    def _count(self, name: str, default: int) -> int:
        """Returns a number that the user's code may set as an attribute. Raises PartError."""
        count: Any = getattr(self.work, name, default)
        if not isinstance(count, int) or count < 1:
            raise PartError(
                f"{user_code.place(self.work)}: {name} is {count!r}; give a whole number of "
                "at least 1"
            )
        return count

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the state before the first round, for initial parameters [num_params].

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        with user_code.running("init", self.file, NOUN, passing=_PASSING):
            state = self.work.init(params.copy())
        return checked_state(self._where("init"), state, None)

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Does the work of a cohort; returns the deltas and the next state.

        Raises:
            PartError: The user's code fails, or breaks the contract.
        """
        params = call.params.view()
        params.flags.writeable = False  # they are the global model's
        own_call = _OwnCall(**{**vars(call), "params": params})
        with user_code.running("run", self.file, NOUN, passing=_PASSING):
            result = self.work.run(own_call, copied_state(state))
        where = self._where("run")
        if not isinstance(result, tuple) or not 2 <= len(result) <= len(WorkResult._fields):
            raise PartError(f"{where} returned {kind(result)}; give WorkResult(deltas, state)")
        deltas, after, evaluated, metrics = WorkResult(*result)
        if not isinstance(deltas, Deltas):
            raise PartError(
                f"{where} returned {kind(deltas)} for the deltas; give what call.train returned, "
                "scaled or shifted"
            )
        _check_changes(where, deltas)
        if evaluated is not None:
            raise PartError(f"{where} returned evaluated weights; only fedcli's own algorithms may")
        return WorkResult(
            with_all_stats(deltas),
            checked_state(where, after, state),
            metrics=None if metrics is None else checked_metrics(where, metrics),
        )

    def _where(self, method: str) -> str:
        return user_code.method_place(self.work, method)


@dataclass(frozen=True)
class _OwnCall(CohortCall):
    """A call whose deltas refuse to give sizes that were not measured."""

    def _run(self, *args: Any, **named: Any) -> Deltas:
        deltas = super()._run(*args, **named)
        if self.request.bounds is not None:
            return deltas
        return without_sizes(deltas, "call.measuring().train(optimizer) measures it")


def _check_changes(where: str, deltas: Deltas) -> None:
    """Refuses a factor or a vector that would make the mean delta meaningless.

    Without a client that has weight there is no mean delta, so nothing is checked.

    Raises:
        PartError: The factor is not a finite number above 0, or the vector is not [num_params] or
            has a NaN or an infinity.
    """
    if deltas.weight_sum == 0.0:
        return
    scale: Any = deltas.scale
    if not isinstance(scale, numbers.Real) or not 0.0 < float(scale) < np.inf:
        value = scale if isinstance(scale, numbers.Real) else kind(scale)
        raise PartError(
            f"{where} returned deltas that are scaled by {value}; give a finite number above 0"
        )
    shift: Any = deltas.shift
    num_params = len(deltas.delta_sum)
    if shift is None:
        return
    if not isinstance(shift, np.ndarray) or shift.shape != (num_params,):
        raise PartError(
            f"{where} returned deltas that are shifted by {kind(shift)}; give a vector "
            f"[{num_params}]"
        )
    if not np.isfinite(shift).all():
        raise PartError(
            f"{where} returned deltas that are shifted by a vector with a NaN or an infinity; give "
            "finite numbers"
        )
