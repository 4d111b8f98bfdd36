"""Users' own server optimizers: the contract, and a rule that checks their results."""

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
from fedcli.settings.own.checks import checked_state, copied_state, kind
from fedcli.settings.own.parts import make

NOUN = "server optimizer"

_PASSING = (FedcliError,)


class ServerOptimizer(Protocol):
    """Updates the global model with the mean of the clients' deltas.

    A new object is made in each round, with the round's `learning_rate` and the options. The state
    between rounds is part of the server state: arrays, ints and floats by name, which are finite
    and keep their shapes and types from round to round.
    """

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the state before the first round, for parameters [num_params]."""
        ...

    def update(
        self, gradient: NDArray[np.float32], state: Mapping[str, Any], params: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Returns the updates to add to the parameters, [num_params], and the next state.

        Args:
            gradient: Minus the mean delta, [num_params].
            state: The state returned by `init` or the last `update`.
            params: The parameters [num_params].
        """
        ...


def rule_of(entry: Entry) -> Rule:
    """Returns a rule that calls the user's optimizer; its errors name file and line.

    Raises:
        PartError: The optimizer lacks a method of the contract.
    """

    def make_optimizer(settings: Settings) -> Any:
        arguments = {"learning_rate": settings.learning_rate}
        return make(entry, NOUN, arguments, settings.options, _PASSING)

    def init(settings: Settings, params: Params) -> OptState:
        optimizer = make_optimizer(settings)
        missing = [name for name in ("init", "update") if not hasattr(optimizer, name)]
        if missing:
            raise PartError(
                f"{user_code.place(optimizer)}: {type(optimizer).__name__} has no "
                f"{', no '.join(missing)}; a server optimizer has init(params) and "
                "update(gradient, state, params)"
            )
        with user_code.running("init", entry.file, NOUN, passing=_PASSING):
            state = optimizer.init(params.copy())
        return checked_state(user_code.method_place(optimizer, "init"), state, None)

    def step(
        settings: Settings, gradient: Params, state: OptState, params: Params
    ) -> tuple[Params, OptState]:
        optimizer = make_optimizer(settings)
        with user_code.running("update", entry.file, NOUN, passing=_PASSING):
            result = optimizer.update(gradient, copied_state(state), params.copy())
        where = user_code.method_place(optimizer, "update")
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
            f"{entry.name} is an optimizer of your own, which only the server can use; choose a "
            "client optimizer that fedcli info optimizers lists"
        )

    return Rule(init, step, row)
