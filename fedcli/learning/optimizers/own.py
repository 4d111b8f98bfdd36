"""Server optimizers that users bring: the contract, and a rule that checks their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepRow
from fedcli.errors import ConfigError, FedcliError, PartError
from fedcli.learning.optimizers.rules import OptState, Params, Rule, Settings
from fedcli.settings.options import Entry
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import checked_state, kind
from fedcli.settings.own.parts import make

NOUN = "server optimizer"

_PASSING = (FedcliError,)


class ServerOptimizer(Protocol):
    """Applies the mean of the clients' deltas to the model.

    It is made with `learning_rate`, that of the round, and its options, anew in each round: what it
    remembers is part of the server state, by name, arrays, ints and floats, which keep their shapes
    and types from round to round.
    """

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns its state before the first round, for parameters [num_params]."""
        ...

    def update(
        self, gradient: NDArray[np.float32], state: Mapping[str, Any], params: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Returns what is added to the parameters, [num_params], and the next state.

        Args:
            gradient: Minus the mean delta, [num_params].
            state: What `init` or the last `update` returned.
            params: The parameters [num_params].
        """
        ...


def rule_of(entry: Entry) -> Rule:
    """Returns the rule of a whole row, whose failures are one line with file and line.

    Raises:
        PartError: It lacks what the contract has.
    """

    def made(settings: Settings) -> Any:
        offered = {"learning_rate": settings.learning_rate}
        return make(entry, NOUN, offered, settings.options, _PASSING)

    def init(settings: Settings, params: Params) -> OptState:
        optimizer = made(settings)
        missing = [name for name in ("init", "update") if not hasattr(optimizer, name)]
        if missing:
            raise PartError(
                f"{user_code.place(optimizer)}: {type(optimizer).__name__} has no "
                f"{', no '.join(missing)}; a server optimizer has init(params) and "
                "update(gradient, state, params)"
            )
        with user_code.running("init", entry.file, NOUN, passing=_PASSING):
            state = optimizer.init(params.copy())
        return checked_state(_where(optimizer, "init"), state, None)

    def step(
        settings: Settings, gradient: Params, state: OptState, params: Params
    ) -> tuple[Params, OptState]:
        optimizer = made(settings)
        with user_code.running("update", entry.file, NOUN, passing=_PASSING):
            result = optimizer.update(gradient, dict(state), params.copy())
        where = _where(optimizer, "update")
        if not isinstance(result, tuple) or len(result) != 2:
            raise PartError(f"{where} returned {kind(result)}; give (updates, state)")
        updates, after = result
        is_vector = isinstance(updates, np.ndarray) and updates.shape == params.shape
        if not is_vector or updates.dtype.kind != "f":
            raise PartError(
                f"{where} returned {kind(updates)} for the updates; give {params.dtype} "
                f"{list(params.shape)}"
            )
        return -updates.astype(params.dtype), checked_state(where, after, state)

    def row(settings: Settings) -> StepRow:
        raise ConfigError(
            f"{entry.name} is an optimizer of your own, which the server alone can use; choose "
            "another client optimizer"
        )

    return Rule(init, step, row)


def _where(optimizer: Any, method: str) -> str:
    return f"{user_code.place(getattr(type(optimizer), method))}: {method}"
