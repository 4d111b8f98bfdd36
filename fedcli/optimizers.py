"""Optimizers of both sides: NumPy on the server, rows of the core's step table on clients.

The two forms of one optimizer are held to the same table of values in tests/test_optimizers.py.
The order of operations is TFF's (learning/optimizers). One thing differs: in the adaptive
optimizers a coordinate that has seen no gradient stays where it is, also when epsilon is 0 and TFF
has 0/0 there.

With style `reddi`, adam, adagrad and yogi are those of Algorithm 2 in Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295: epsilon (the paper's tau)
added to the root, no bias correction. The paper's Adagrad may have momentum too; here beta_1 is 0,
as in its experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli import adafactor as factored
from fedcli import options as opt
from fedcli import registry, schedules
from fedcli.backend import FrozenSlots, StepKind, StepRow
from fedcli.errors import ConfigError
from fedcli.options import Value
from fedcli.schedules import BY_LOCAL_STEP, BY_ROUND, CONSTANT, Schedule

# Slots by name, in the order in which the core's rows keep them.
_SLOT_ORDER = ("accumulator", "preconditioner")

# A parameter vector or gradient [num_params], float32 in a run and float64 in tests.
Params = NDArray[Any]
# Slots by name, each [num_params], and step counters; empty where an optimizer remembers nothing.
OptState = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its settings; it holds no state.

    Attributes:
        name: A key of `registry.OPTIMIZERS`.
        learning_rate: Step size, >= 0.
        options: Every option of the registry row, resolved.
        schedule: Which share of the learning rate a round or a local step uses; see `at`.
        schedule_by: What the schedule counts, `round` or `local-step`: from 0 in each round.
        clip_norm: A gradient that is longer (L2, over all tensors) is scaled to this length before
            anything else sees it; None: it is taken as it is.
        shapes: Of the tensors, for an optimizer that looks at each by itself; see `for_tensors`.
            Without them the parameters are one vector.
    """

    name: str
    learning_rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = CONSTANT
    schedule_by: str = BY_ROUND
    clip_norm: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()

    def for_tensors(self, shapes: Sequence[tuple[int, ...]]) -> Optimizer:
        """Returns the optimizer for parameters that are tensors of these shapes, side by side."""
        return replace(self, shapes=tuple(shapes))

    def at(self, round_num: int) -> Optimizer:
        """Returns the optimizer of one round, after `round_num` completed ones: its rate is fixed.

        No optimizer's state depends on its rate, so one state goes through all rounds.
        """
        if self.schedule == CONSTANT or self.schedule_by == BY_LOCAL_STEP:
            return self
        rate = self.learning_rate * self.schedule.factor(round_num)
        return replace(self, learning_rate=rate, schedule=CONSTANT)

    @property
    def rate_factor(self) -> Callable[[int], float] | None:
        """Which share of the learning rate a local step uses, by its number from 0; None: all."""
        is_constant = self.schedule == CONSTANT or self.schedule_by == BY_ROUND
        return None if is_constant else self.schedule.factor

    def rate_sum(self, num_steps: int) -> float:
        """Returns the sum of the learning rates of so many local steps."""
        factor = self.rate_factor
        factors = float(num_steps) if factor is None else math.fsum(map(factor, range(num_steps)))
        return self.learning_rate * factors

    def unit_steps(self, num_steps: int) -> float:
        """Returns how far so many local steps go whose gradients are all 1, in learning rates.

        For SGD alone, with its momentum: how many gradients the steps add up, in all.
        """
        momentum, is_ahead = self.options["momentum"], self.options["nesterov"]
        factor, accumulator, total = self.rate_factor, 0.0, 0.0
        for step in range(num_steps):
            accumulator = momentum * accumulator + 1.0
            direction = 1.0 + momentum * accumulator if is_ahead else accumulator
            total += direction * (1.0 if factor is None else factor(step))
        return total

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
        if self.clip_norm is not None:
            gradient = clipped(gradient, self.clip_norm)
        decrease, state = RULES[self.name].step(self, gradient, state, params)
        return -decrease, state

    def client_rows(self, terms: Sequence[StepRow] = ()) -> list[StepRow]:
        """Returns the rows that make the core take this optimizer's local steps.

        Args:
            terms: Rows of what an algorithm adds to the gradient, once that is clipped.
        """
        clip = [] if self.clip_norm is None else [(StepKind.CLIP, (self.clip_norm,))]
        return [*clip, *terms, RULES[self.name].row(self)]


class Rule(NamedTuple):
    """The code of one optimizer; `step` returns what is *subtracted* from the parameters."""

    init: Callable[[Optimizer, Params], OptState]
    step: Callable[[Optimizer, Params, OptState, Params], tuple[Params, OptState]]
    row: Callable[[Optimizer], StepRow]


def frozen_slots(state: Mapping[str, Any]) -> FrozenSlots:
    """Returns an optimizer's state as the core's rows take it: what local steps start from.

    Args:
        state: Of `Optimizer.init` or `update`.
    """
    slots = [state[name] for name in _SLOT_ORDER if name in state]
    num_params = len(slots[0]) if slots else 0
    stacked = np.array(slots, np.float32).reshape(len(slots), num_params)
    return FrozenSlots(stacked, int(state.get("step", 0)) + 1)


# ---- SGD ---------------------------------------------------------------------------------------


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
    return StepKind.SGD, (optimizer.learning_rate, momentum, float(nesterov))


# ---- Adam, AdamW, Yogi -------------------------------------------------------------------------


def _moments_init(optimizer: Optimizer, params: Params) -> OptState:
    initial = optimizer.options.get("initial_preconditioner_value", 0.0)
    return {
        "step": 0,
        "accumulator": np.zeros_like(params),
        "preconditioner": np.full_like(params, initial),
    }


def _moments_step(
    optimizer: Optimizer, gradient: Params, state: OptState, preconditioner: Params
) -> tuple[Params, OptState]:
    """Returns the step before weight decay, and the next state with this preconditioner."""
    step_num = state["step"] + 1
    accumulator = state["accumulator"]
    accumulator = accumulator + (gradient - accumulator) * (1 - optimizer.options["beta_1"])
    rate = optimizer.learning_rate * _bias_correction(optimizer, step_num)
    decrease = _scaled(rate, accumulator, np.sqrt(preconditioner) + optimizer.options["epsilon"])
    next_state = {
        "step": step_num,
        "accumulator": accumulator,
        "preconditioner": preconditioner,
    }
    return decrease, next_state


def _bias_correction(optimizer: Optimizer, step_num: int) -> float:
    if _is_reddi(optimizer):
        return 1.0
    beta_1, beta_2 = optimizer.options["beta_1"], optimizer.options["beta_2"]
    kept = 1.0 - beta_1**step_num
    return math.sqrt(1.0 - beta_2**step_num) / kept if kept else math.inf


def _mean_of_squares(gradient: Params, preconditioner: Params, share: float) -> Params:
    mean: Params = preconditioner + (np.square(gradient) - preconditioner) * share
    return mean


def _adam_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    share = 1 - optimizer.options["beta_2"]
    squares = _mean_of_squares(gradient, state["preconditioner"], share)
    return _moments_step(optimizer, gradient, state, squares)


def _adamw_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    of_rate_one = replace(optimizer, learning_rate=1.0)
    direction, state = _adam_step(of_rate_one, gradient, state, params)
    decay = optimizer.options["weight_decay"] * params
    return optimizer.learning_rate * (direction + decay), state


def _yogi_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    square, preconditioner = np.square(gradient), state["preconditioner"]
    share = 1 - optimizer.options["beta_2"]
    preconditioner = preconditioner + share * np.sign(square - preconditioner) * square
    return _moments_step(optimizer, gradient, state, preconditioner)


def _moments_options(optimizer: Optimizer) -> tuple[float, ...]:
    options = optimizer.options
    betas = options["beta_1"], options["beta_2"]
    return optimizer.learning_rate, *betas, options["epsilon"], float(_is_reddi(optimizer))


def _adam_row(optimizer: Optimizer) -> StepRow:
    return StepKind.ADAM, _moments_options(optimizer)


def _adamw_row(optimizer: Optimizer) -> StepRow:
    return StepKind.ADAMW, (*_moments_options(optimizer), optimizer.options["weight_decay"])


def _yogi_row(optimizer: Optimizer) -> StepRow:
    initial = optimizer.options["initial_preconditioner_value"]
    return StepKind.YOGI, (*_moments_options(optimizer), initial)


# ---- Adagrad, RMSprop --------------------------------------------------------------------------


def _adagrad_init(optimizer: Optimizer, params: Params) -> OptState:
    initial = optimizer.options["initial_preconditioner_value"]
    return {"preconditioner": np.full_like(params, initial)}


def _adagrad_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    epsilon = optimizer.options["epsilon"]
    squares = state["preconditioner"] + np.square(gradient)
    divisor = np.sqrt(squares) + epsilon if _is_reddi(optimizer) else np.sqrt(squares + epsilon)
    return _scaled(optimizer.learning_rate, gradient, divisor), {"preconditioner": squares}


def _adagrad_row(optimizer: Optimizer) -> StepRow:
    options = optimizer.options
    initial = options["initial_preconditioner_value"]
    reddi = float(_is_reddi(optimizer))
    return StepKind.ADAGRAD, (optimizer.learning_rate, options["epsilon"], reddi, initial)


def _rmsprop_init(optimizer: Optimizer, params: Params) -> OptState:
    return {"preconditioner": np.zeros_like(params)}


def _rmsprop_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    share = 1 - optimizer.options["decay"]
    squares = _mean_of_squares(gradient, state["preconditioner"], share)
    divisor = np.sqrt(squares) + optimizer.options["epsilon"]
    return _scaled(optimizer.learning_rate, gradient, divisor), {"preconditioner": squares}


def _rmsprop_row(optimizer: Optimizer) -> StepRow:
    options = optimizer.options
    return StepKind.RMSPROP, (optimizer.learning_rate, options["decay"], options["epsilon"])


# ---- Adafactor -----------------------------------------------------------------------------------


def _adafactor_init(optimizer: Optimizer, params: Params) -> OptState:
    return factored.init(optimizer.shapes or (params.shape,), params)


def _adafactor_step(
    optimizer: Optimizer, gradient: Params, state: OptState, params: Params
) -> tuple[Params, OptState]:
    shapes = optimizer.shapes or (params.shape,)
    rate, options = optimizer.learning_rate, optimizer.options
    return factored.step(shapes, rate, options, gradient, state, params)


def _adafactor_row(optimizer: Optimizer) -> StepRow:
    names = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
    return StepKind.ADAFACTOR, (
        optimizer.learning_rate,
        *(float(optimizer.options[name]) for name in names),
    )


# ---- What they share ---------------------------------------------------------------------------


def _is_reddi(optimizer: Optimizer) -> bool:
    return bool(optimizer.options.get("style") == "reddi")


def clipped(gradient: Params, clip_norm: float) -> Params:
    """Returns the gradient, no longer than that; one that holds a NaN or infinity has a NaN."""
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    return gradient * gradient.dtype.type(clip_norm / norm) if norm > clip_norm else gradient


def _scaled(rate: float, values: Params, divisor: Params) -> Params:
    """Returns rate * values / divisor, and 0 where a value is 0, whatever the divisor."""
    has_value = values != 0
    product = np.multiply(rate, values, out=np.zeros_like(values), where=has_value)
    return np.divide(product, divisor, out=product, where=has_value)


# The code behind each row of registry.OPTIMIZERS.
RULES: dict[str, Rule] = {
    "sgd": Rule(_sgd_init, _sgd_step, _sgd_row),
    "adam": Rule(_moments_init, _adam_step, _adam_row),
    "adamw": Rule(_moments_init, _adamw_step, _adamw_row),
    "adagrad": Rule(_adagrad_init, _adagrad_step, _adagrad_row),
    "yogi": Rule(_moments_init, _yogi_step, _yogi_row),
    "rmsprop": Rule(_rmsprop_init, _rmsprop_step, _rmsprop_row),
    "adafactor": Rule(_adafactor_init, _adafactor_step, _adafactor_row),
}


def build(name: str, learning_rate: float, options: Mapping[str, Value] | None = None) -> Optimizer:
    """Returns the optimizer of the registry called `name`.

    Raises:
        ConfigError: The name or an option is unknown, or a value (the learning rate too) is not
            allowed.
    """
    entry = opt.choose(registry.OPTIMIZERS, name, "optimizer")
    rate = registry.check_learning_rate(learning_rate, f"{name} learning rate")
    return Optimizer(name, rate, opt.resolve(entry, options or {}))


def schedule_learning_rate(
    optimizer: Optimizer,
    name: str,
    options: Mapping[str, Value] | None = None,
    *,
    by: str = BY_ROUND,
) -> Optimizer:
    """Returns the optimizer with a learning rate that changes from round to round.

    What counts is the rounds of the process, on clients too, whose rate is then one and the same
    within a round; and a round whose update is rejected counts. With `by` of `local-step` it is a
    client's steps, from 0 in each round, as in TFF, whose function of this name counts the calls of
    an optimizer.

    Args:
        optimizer: Of either side; its learning rate is what the schedule takes shares of.
        name: A key of `registry.SCHEDULES`.
        options: The schedule's options; those not given take their defaults.
        by: `round`, or on clients `local-step`.

    Raises:
        ConfigError: See `schedules.build`, or `by` is another.
    """
    if by not in schedules.COUNTED:
        raise ConfigError(f"unknown schedule by '{by}'; choose {' or '.join(schedules.COUNTED)}")
    return replace(optimizer, schedule=schedules.build(name, options), schedule_by=by)


def clip_gradients(optimizer: Optimizer, clip_norm: float) -> Optimizer:
    """Returns the optimizer for gradients of at most that length (L2, over all tensors).

    Longer ones are scaled to it: Pascanu, Mikolov and Bengio 2013, https://arxiv.org/abs/1211.5063.

    Raises:
        ConfigError: The norm is not a positive number.
    """
    return replace(optimizer, clip_norm=registry.check_clip_norm(clip_norm))


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


def adam(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    style: str = "tff",
) -> Optimizer:
    """Returns Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

    `a += (g - a)*(1 - beta_1)`, `s += (g*g - s)*(1 - beta_2)`, then
    `w -= learning_rate * sqrt(1 - beta_2^t)/(1 - beta_1^t) * a / (sqrt(s) + epsilon)` in step t.
    Unlike in the paper, and as in TFF, epsilon is added to the root before its correction.

    Args:
        learning_rate: Step size, >= 0.
        beta_1: Share of the mean of gradients that is kept, from 0 to 1.
        beta_2: Share of the mean of squares that is kept, from 0 to 1.
        epsilon: >= 0.
        style: `tff`, or `reddi`: without the factor that depends on t.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    return build("adam", learning_rate, {**options, "style": style})


def adamw(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.004,
) -> Optimizer:
    """Returns AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Adam that also takes `learning_rate * weight_decay * w` off the weights, by their old value.

    Args:
        learning_rate: Step size, >= 0.
        beta_1: As in `adam`, and so are beta_2 and epsilon.
        beta_2: See there.
        epsilon: See there.
        weight_decay: >= 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    return build("adamw", learning_rate, {**options, "weight_decay": weight_decay})


def adagrad(
    learning_rate: float,
    initial_preconditioner_value: float = 0.1,
    epsilon: float = 1e-7,
    style: str = "tff",
) -> Optimizer:
    """Returns Adagrad (Duchi, Hazan and Singer, JMLR 12, 2011).

    `s += g*g`, then `w -= learning_rate * g / sqrt(s + epsilon)`.

    Args:
        learning_rate: Step size, >= 0.
        initial_preconditioner_value: s before the first step, >= 0.
        epsilon: >= 0.
        style: `tff`, or `reddi`: the divisor is `sqrt(s) + epsilon`.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"epsilon": epsilon, "style": style}
    options["initial_preconditioner_value"] = initial_preconditioner_value
    return build("adagrad", learning_rate, options)


def yogi(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-3,
    initial_preconditioner_value: float = 1e-6,
    style: str = "tff",
) -> Optimizer:
    """Returns Yogi (Zaheer, Reddi, Sachan, Kale and Kumar, NeurIPS 2018).

    Adam with `s += (1 - beta_2) * sign(g*g - s) * g*g`. TFF's documentation has sign(g - s) there;
    its code, and this, have the paper's.

    Args:
        learning_rate: Step size, >= 0.
        beta_1: As in `adam`, and so are beta_2, epsilon and style.
        beta_2: See there.
        epsilon: See there.
        initial_preconditioner_value: s before the first step, >= 0.
        style: See there.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    options["initial_preconditioner_value"] = initial_preconditioner_value
    return build("yogi", learning_rate, {**options, "style": style})


def rmsprop(learning_rate: float, decay: float = 0.9, epsilon: float = 1e-7) -> Optimizer:
    """Returns RMSprop (Tieleman and Hinton 2012).

    `s += (g*g - s)*(1 - decay)`, then `w -= learning_rate * g / (sqrt(s) + epsilon)`.

    Args:
        learning_rate: Step size, >= 0.
        decay: Share of the mean of squares that is kept, from 0 to 1.
        epsilon: >= 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    return build("rmsprop", learning_rate, {"decay": decay, "epsilon": epsilon})


def adafactor(
    learning_rate: float,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3,
    clip_threshold: float = 1.0,
    relative_step: bool = True,
) -> Optimizer:
    """Returns Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235).

    What it keeps of each tensor, and its step, are in `fedcli.adafactor`.

    Args:
        learning_rate: Step size relative to the weights', >= 0; TFF's is 0.001.
        beta_2_decay: Exponent of the step number that says how fast squares are forgotten, below 0.
        epsilon_1: Is added to squared gradients, > 0.
        epsilon_2: Least size that a tensor's weights are taken for, >= 0.
        clip_threshold: What the root mean square of a tensor's update is held to, > 0.
        relative_step: Whether the rate is at most 1 / sqrt(step).

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_2_decay": beta_2_decay, "epsilon_1": epsilon_1}
    options |= {"epsilon_2": epsilon_2, "clip_threshold": clip_threshold}
    return build("adafactor", learning_rate, {**options, "relative_step": relative_step})
