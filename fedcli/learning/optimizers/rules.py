"""The rule of each optimizer: NumPy on the server, a row of the core's step table on clients.

tests/learning/test_optimizers.py checks both implementations against the same table of values. The
order of operations is TFF's (learning/optimizers), with one difference: in the adaptive optimizers
a coordinate whose gradients were all 0 does not change, even if epsilon is 0 (TFF computes 0/0).

With style `reddi`, adam, adagrad and yogi follow Algorithm 2 of Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295: epsilon (the paper's tau) is added to
the root, and there is no bias correction. The paper's Adagrad may have momentum; here beta_1 is 0,
as in its experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepKind, StepRow

# A parameter vector or gradient [num_params], float32 in a run and float64 in tests.
Params = NDArray[Any]
# Slots by name, each [num_params], and step counters; empty for an optimizer without state.
OptState = dict[str, Any]


class Settings(NamedTuple):
    """The settings that a rule depends on; see `Optimizer`."""

    learning_rate: float
    options: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]


class Rule(NamedTuple):
    """The code of one optimizer; `step` returns what to *subtract* from the parameters."""

    init: Callable[[Settings, Params], OptState]
    step: Callable[[Settings, Params, OptState, Params], tuple[Params, OptState]]
    row: Callable[[Settings], StepRow]


# ---- SGD ----------------------------------------------------------------------------------------


def _sgd_init(settings: Settings, params: Params) -> OptState:
    return {"accumulator": np.zeros_like(params)} if settings.options["momentum"] else {}


def _sgd_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    momentum = settings.options["momentum"]
    if not momentum:
        return settings.learning_rate * gradient, {}
    accumulator = momentum * state["accumulator"] + gradient
    direction = accumulator
    if settings.options["nesterov"]:
        direction = gradient + momentum * accumulator
    return settings.learning_rate * direction, {"accumulator": accumulator}


def _sgd_row(settings: Settings) -> StepRow:
    momentum, nesterov = settings.options["momentum"], settings.options["nesterov"]
    return StepKind.SGD, (settings.learning_rate, momentum, float(nesterov))


# ---- Adam, AdamW, Yogi --------------------------------------------------------------------------


def _moments_init(settings: Settings, params: Params) -> OptState:
    initial = settings.options.get("initial_preconditioner_value", 0.0)
    return {
        "step": 0,
        "accumulator": np.zeros_like(params),
        "preconditioner": np.full_like(params, initial),
    }


def _moments_step(
    settings: Settings, gradient: Params, state: OptState, preconditioner: Params
) -> tuple[Params, OptState]:
    """Returns the decrease without weight decay, and the next state with this preconditioner."""
    step_num = state["step"] + 1
    accumulator = state["accumulator"]
    accumulator = accumulator + (gradient - accumulator) * (1 - settings.options["beta_1"])
    rate = settings.learning_rate * _bias_correction(settings, step_num)
    decrease = _scaled(rate, accumulator, np.sqrt(preconditioner) + settings.options["epsilon"])
    next_state = {
        "step": step_num,
        "accumulator": accumulator,
        "preconditioner": preconditioner,
    }
    return decrease, next_state


def _bias_correction(settings: Settings, step_num: int) -> float:
    if _is_reddi(settings):
        return 1.0
    beta_1, beta_2 = settings.options["beta_1"], settings.options["beta_2"]
    correction = 1.0 - beta_1**step_num
    return math.sqrt(1.0 - beta_2**step_num) / correction if correction else math.inf


def _mean_of_squares(gradient: Params, preconditioner: Params, share: float) -> Params:
    mean: Params = preconditioner + (np.square(gradient) - preconditioner) * share
    return mean


def _adam_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    share = 1 - settings.options["beta_2"]
    squares = _mean_of_squares(gradient, state["preconditioner"], share)
    return _moments_step(settings, gradient, state, squares)


def _adamw_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    of_rate_one = settings._replace(learning_rate=1.0)
    direction, state = _adam_step(of_rate_one, gradient, state, params)
    decay = settings.options["weight_decay"] * params
    return settings.learning_rate * (direction + decay), state


def _yogi_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    square, preconditioner = np.square(gradient), state["preconditioner"]
    share = 1 - settings.options["beta_2"]
    preconditioner = preconditioner + share * np.sign(square - preconditioner) * square
    return _moments_step(settings, gradient, state, preconditioner)


def _moments_options(settings: Settings) -> tuple[float, ...]:
    options = settings.options
    betas = options["beta_1"], options["beta_2"]
    return settings.learning_rate, *betas, options["epsilon"], float(_is_reddi(settings))


def _adam_row(settings: Settings) -> StepRow:
    return StepKind.ADAM, _moments_options(settings)


def _adamw_row(settings: Settings) -> StepRow:
    return StepKind.ADAMW, (*_moments_options(settings), settings.options["weight_decay"])


def _yogi_row(settings: Settings) -> StepRow:
    initial = settings.options["initial_preconditioner_value"]
    return StepKind.YOGI, (*_moments_options(settings), initial)


# ---- Adagrad, RMSprop ---------------------------------------------------------------------------


def _adagrad_init(settings: Settings, params: Params) -> OptState:
    initial = settings.options["initial_preconditioner_value"]
    return {"preconditioner": np.full_like(params, initial)}


def _adagrad_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    epsilon = settings.options["epsilon"]
    squares = state["preconditioner"] + np.square(gradient)
    divisor = np.sqrt(squares) + epsilon if _is_reddi(settings) else np.sqrt(squares + epsilon)
    return _scaled(settings.learning_rate, gradient, divisor), {"preconditioner": squares}


def _adagrad_row(settings: Settings) -> StepRow:
    options = settings.options
    initial = options["initial_preconditioner_value"]
    reddi = float(_is_reddi(settings))
    return StepKind.ADAGRAD, (settings.learning_rate, options["epsilon"], reddi, initial)


def _rmsprop_init(settings: Settings, params: Params) -> OptState:
    return {"preconditioner": np.zeros_like(params)}


def _rmsprop_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    share = 1 - settings.options["decay"]
    squares = _mean_of_squares(gradient, state["preconditioner"], share)
    divisor = np.sqrt(squares) + settings.options["epsilon"]
    return _scaled(settings.learning_rate, gradient, divisor), {"preconditioner": squares}


def _rmsprop_row(settings: Settings) -> StepRow:
    options = settings.options
    return StepKind.RMSPROP, (settings.learning_rate, options["decay"], options["epsilon"])


# ---- Adafactor ----------------------------------------------------------------------------------


def _adafactor_init(settings: Settings, params: Params) -> OptState:
    from fedcli.learning.optimizers import factored  # lazy: Adafactor alone needs it

    return factored.init(settings.shapes or (params.shape,), params)


def _adafactor_step(
    settings: Settings, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    shapes = settings.shapes or (params.shape,)
    rate, options = settings.learning_rate, settings.options
    from fedcli.learning.optimizers import factored

    return factored.step(shapes, rate, options, gradient, state, params)


def _adafactor_row(settings: Settings) -> StepRow:
    names = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
    options = (float(settings.options[name]) for name in names)
    return StepKind.ADAFACTOR, (settings.learning_rate, *options)


# ---- Shared by several optimizers ---------------------------------------------------------------


def _is_reddi(settings: Settings) -> bool:
    return bool(settings.options.get("style") == "reddi")


def _scaled(rate: float, values: Params, divisor: Params) -> Params:
    """Returns rate * values / divisor, and 0 where a value is 0, even if the divisor is 0."""
    has_value = values != 0
    product = np.multiply(rate, values, out=np.zeros_like(values), where=has_value)
    return np.divide(product, divisor, out=product, where=has_value)


# ---- The optimizers, named by the rows of tables.OPTIMIZERS ------------------------------------

SGD = Rule(_sgd_init, _sgd_step, _sgd_row)
ADAM = Rule(_moments_init, _adam_step, _adam_row)
ADAMW = Rule(_moments_init, _adamw_step, _adamw_row)
ADAGRAD = Rule(_adagrad_init, _adagrad_step, _adagrad_row)
YOGI = Rule(_moments_init, _yogi_step, _yogi_row)
RMSPROP = Rule(_rmsprop_init, _rmsprop_step, _rmsprop_row)
ADAFACTOR = Rule(_adafactor_init, _adafactor_step, _adafactor_row)
