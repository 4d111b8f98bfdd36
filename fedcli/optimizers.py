"""Optimizers of both sides: NumPy on the server, rows of the core's step table on clients.

The two forms of one optimizer are held to the same table of values in tests/test_optimizers.py.
The order of operations is TFF's (learning/optimizers), to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli import options as opt
from fedcli import registry
from fedcli.backend import StepRow
from fedcli.options import Value

# A parameter vector or gradient [num_params], float32 in a run and float64 in tests.
Params = NDArray[Any]
# Slots by name, each [num_params], and step counters; empty where an optimizer remembers nothing.
OptState = dict[str, Any]

# Kinds of rows of the core's client-step table (enum fed_step_kind).
_STEP_SGD = 0


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its settings; it holds no state.

    Attributes:
        name: A key of `registry.OPTIMIZERS`.
        learning_rate: Step size, >= 0.
        options: Every option of the registry row, resolved.
    """

    name: str
    learning_rate: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def init(self, params: Params) -> OptState:
        """Returns the state before the first step for parameters [num_params]."""
        return RULES[self.name].init(self, params)

    def update(self, gradient: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        """Returns the updates to *add* to `params`, and the next state; changes no argument.

        Args:
            gradient: A gradient or pseudo-gradient [num_params], in the dtype of `params`.
            state: What `init` or the last `update` returned.
            params: Parameters [num_params].
        """
        decrease, state = RULES[self.name].step(self, gradient, state, params)
        return -decrease, state

    def client_rows(self) -> list[StepRow]:
        """Returns the rows that make the core take this optimizer's local steps."""
        return [RULES[self.name].row(self)]


class Rule(NamedTuple):
    """The code of one optimizer; `step` returns what is *subtracted* from the parameters."""

    init: Callable[[Optimizer, Params], OptState]
    step: Callable[[Optimizer, Params, OptState, Params], tuple[Params, OptState]]
    row: Callable[[Optimizer], StepRow]


def _sgd_init(optimizer: Optimizer, params: Params) -> OptState:
    return {"accumulator": np.zeros_like(params)} if optimizer.options["momentum"] else {}


def _sgd_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    momentum = optimizer.options["momentum"]
    if not momentum:
        return optimizer.learning_rate * gradient, {}
    accumulator = momentum * state["accumulator"] + gradient
    direction = accumulator
    if optimizer.options["nesterov"]:
        direction = gradient + momentum * accumulator
    return optimizer.learning_rate * direction, {"accumulator": accumulator}


def _sgd_row(optimizer: Optimizer) -> StepRow:
    momentum, nesterov = optimizer.options["momentum"], optimizer.options["nesterov"]
    return _STEP_SGD, (optimizer.learning_rate, momentum, float(nesterov))


# The code behind each row of registry.OPTIMIZERS.
RULES: dict[str, Rule] = {"sgd": Rule(_sgd_init, _sgd_step, _sgd_row)}


def build(name: str, learning_rate: float, options: Mapping[str, Value] | None = None) -> Optimizer:
    """Returns the optimizer of the registry called `name`.

    Raises:
        ConfigError: The name or an option is unknown, or a value (the learning rate too) is not
            allowed.
    """
    entry = opt.choose(registry.OPTIMIZERS, name, "optimizer")
    rate = registry.check_learning_rate(learning_rate, f"{name} learning rate")
    return Optimizer(name, rate, opt.resolve(entry, options or {}))


def sgd(learning_rate: float, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Returns gradient descent.

    With momentum m: `a = m*a + g`, then `w -= learning_rate * a`, or with Nesterov
    `w -= learning_rate * (g + m*a)`.

    Args:
        learning_rate: Step size, >= 0.
        momentum: m, from 0 to 1; 0 keeps no state.
        nesterov: Look ahead along the momentum, which must then be above 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    return build("sgd", learning_rate, {"momentum": momentum, "nesterov": nesterov})
