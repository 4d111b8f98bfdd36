"""The optimizers of both sides, made by name or by a function of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from fedcli.errors import ConfigError
from fedcli.learning.optimizers import schedules
from fedcli.learning.optimizers.optimizer import Optimizer, refuse_unknown
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import BY_ROUND, COUNTED

__all__ = [
    "Optimizer",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "build",
    "clip_gradients",
    "rmsprop",
    "schedule_learning_rate",
    "sgd",
    "yogi",
]


Function = TypeVar("Function", bound=Callable[..., Optimizer])


def _explains_names(function: Function) -> Function:
    """Returns the function; called with an argument of another library, it says what to write."""

    @wraps(function)
    def checked(*args: Any, **named: Any) -> Optimizer:
        refuse_unknown(function.__name__, named, signature(function).parameters)
        return function(*args, **named)

    return checked  # type: ignore[return-value]


def build(name: str, learning_rate: float, options: Mapping[str, Value] | None = None) -> Optimizer:
    """Returns the optimizer of the table called `name`.

    Args:
        name: A key of `tables.OPTIMIZERS`; for the server also FILE.py or FILE.py:NAME, which is
            run, or the name of one in an installed package.
        learning_rate: Step size, >= 0.
        options: Its options; those not given take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, or a value (the learning rate too) is not
            allowed.
        PartError: A file of the user's fails, or breaks the contract.
    """
    entry = opt.opened(opt.choose(tables.OPTIMIZERS, name, "optimizer"))
    rate = tables.check_learning_rate(learning_rate, f"{name} learning rate")
    rule = None
    if entry.file:
        from fedcli.learning.optimizers import own  # late: few runs have one

        rule = own.rule_of(entry)
    return Optimizer(name, rate, opt.resolve(entry, options or {}), rule=rule)


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
        name: A key of `tables.SCHEDULES`.
        options: The schedule's options; those not given take their defaults.
        by: `round`, or on clients `local-step`.

    Raises:
        ConfigError: See `schedules.build`, or `by` is another.
    """
    if by not in COUNTED:
        raise ConfigError(f"unknown schedule by '{by}'; choose {' or '.join(COUNTED)}")
    return replace(optimizer, schedule=schedules.build(name, options), schedule_by=by)


def clip_gradients(optimizer: Optimizer, clip_norm: float) -> Optimizer:
    """Returns the optimizer for gradients of at most that length (L2, over all tensors).

    Longer ones are scaled to it: Pascanu, Mikolov and Bengio 2013, https://arxiv.org/abs/1211.5063.

    Raises:
        ConfigError: The norm is not a positive number.
    """
    return replace(optimizer, clip_norm=tables.check_clip_norm(clip_norm))


@_explains_names
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


@_explains_names
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


@_explains_names
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


@_explains_names
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


@_explains_names
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


@_explains_names
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


@_explains_names
def adafactor(
    learning_rate: float,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3,
    clip_threshold: float = 1.0,
    relative_step: bool = True,
) -> Optimizer:
    """Returns Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235).

    What it keeps of each tensor, and its step, are in `fedcli.optimizers.factored`.

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
