"""Client and server optimizers, made by name or by a function for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedcli.errors import ConfigError, speaks_python
from fedcli.learning.optimizers import schedules
from fedcli.learning.optimizers.optimizer import Optimizer
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


@speaks_python()
def build(
    name: str | Path, learning_rate: float, options: Mapping[str, Value] | None = None
) -> Optimizer:
    """Returns the optimizer called `name` in the table of optimizers.

    Args:
        name: A key of `tables.OPTIMIZERS`; for the server also FILE.py or FILE.py:NAME, which is
            run, or the name of an optimizer in an installed package.
        learning_rate: Step size, >= 0.
        options: Its options; those not given take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, or a value (the learning rate too) is not
            allowed.
        PartError: The user's file fails, or breaks the contract.
    """
    chosen = opt.path_text(name)
    entry = opt.opened(opt.choose(tables.OPTIMIZERS, chosen, "optimizer"))
    rate = tables.check_learning_rate(learning_rate, f"{chosen} learning rate")
    rule = None
    if entry.file:
        from fedcli.learning.optimizers import own  # lazy: few runs have one

        rule = own.rule_of(entry)
    return Optimizer(chosen, rate, opt.resolve(entry, options or {}), rule=rule)


def schedule_learning_rate(
    optimizer: Optimizer,
    name: str,
    options: Mapping[str, Value] | None = None,
    *,
    by: str = BY_ROUND,
) -> Optimizer:
    """Returns the optimizer with a learning-rate schedule.

    By default the schedule counts rounds, on the server and on clients; a client's rate is then
    constant within a round. Rounds with a rejected update are counted, too. With `by="local-step"`
    the schedule counts a client's local steps, from 0 in each round. TFF's function of the same
    name behaves in this way: it counts the calls of an optimizer.

    Args:
        optimizer: A client or server optimizer; the schedule multiplies its learning rate.
        name: A key of `tables.SCHEDULES`.
        options: The schedule's options; missing ones take their defaults.
        by: `round`, or for a client optimizer `local-step`.

    Raises:
        ConfigError: `by` is neither of the two, or as for `schedules.build`.
    """
    if by not in COUNTED:
        raise ConfigError(f"a schedule cannot count '{by}'; choose by={' or by='.join(COUNTED)}")
    return replace(optimizer, schedule=schedules.build(name, options), schedule_by=by)


def clip_gradients(optimizer: Optimizer, clip_norm: float) -> Optimizer:
    """Returns the optimizer with gradient clipping.

    A gradient whose L2 norm over all tensors exceeds `clip_norm` is scaled to that norm (Pascanu,
    Mikolov and Bengio 2013, https://arxiv.org/abs/1211.5063).

    Raises:
        ConfigError: The norm is not a positive number.
    """
    return replace(optimizer, clip_norm=tables.check_clip_norm(clip_norm))


@speaks_python()
def sgd(learning_rate: float, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Returns SGD, `w -= learning_rate * g`.

    With momentum m it is `a = m*a + g`, then `w -= learning_rate * a`, or with Nesterov's momentum
    `w -= learning_rate * (g + m*a)`.

    Args:
        learning_rate: Step size, >= 0.
        momentum: m, from 0 to 1; 0 keeps no state.
        nesterov: Whether to use Nesterov's momentum; then `momentum` must be above 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    return build("sgd", learning_rate, {"momentum": momentum, "nesterov": nesterov})


@speaks_python()
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
    As in TFF, and unlike the paper, epsilon is added to the root before its bias correction.

    Args:
        learning_rate: Step size, >= 0.
        beta_1: Decay of the mean of gradients, from 0 to 1.
        beta_2: Decay of the mean of squared gradients, from 0 to 1.
        epsilon: Added to the divisor, >= 0.
        style: `tff`, or `reddi` for no bias correction (the factor that depends on t).

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    return build("adam", learning_rate, {**options, "style": style})


@speaks_python()
def adamw(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.004,
) -> Optimizer:
    """Returns AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    It is Adam, and also subtracts `learning_rate * weight_decay * w`, with w before the step.

    Args:
        learning_rate: Step size, >= 0.
        beta_1: As in `adam`.
        beta_2: As in `adam`.
        epsilon: As in `adam`.
        weight_decay: The factor of the weights that are subtracted, >= 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    return build("adamw", learning_rate, {**options, "weight_decay": weight_decay})


@speaks_python()
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
        epsilon: Added to s under the root, or with style `reddi` to the root, >= 0.
        style: `tff`, or `reddi` for the divisor `sqrt(s) + epsilon`.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"epsilon": epsilon, "style": style}
    options["initial_preconditioner_value"] = initial_preconditioner_value
    return build("adagrad", learning_rate, options)


@speaks_python()
def yogi(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-3,
    initial_preconditioner_value: float = 1e-6,
    style: str = "tff",
) -> Optimizer:
    """Returns Yogi (Zaheer, Reddi, Sachan, Kale and Kumar, NeurIPS 2018).

    It is Adam with `s += (1 - beta_2) * sign(g*g - s) * g*g`, as in the paper and in TFF's code.
    (TFF's documentation says sign(g - s).)

    Args:
        learning_rate: Step size, >= 0.
        beta_1: As in `adam`.
        beta_2: As in `adam`.
        epsilon: As in `adam`.
        initial_preconditioner_value: s before the first step, >= 0.
        style: As in `adam`.

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    options["initial_preconditioner_value"] = initial_preconditioner_value
    return build("yogi", learning_rate, {**options, "style": style})


@speaks_python()
def rmsprop(learning_rate: float, decay: float = 0.9, epsilon: float = 1e-7) -> Optimizer:
    """Returns RMSprop (Tieleman and Hinton 2012).

    `s += (g*g - s)*(1 - decay)`, then `w -= learning_rate * g / (sqrt(s) + epsilon)`.

    Args:
        learning_rate: Step size, >= 0.
        decay: Decay of the mean of squared gradients, from 0 to 1.
        epsilon: Added to the divisor, >= 0.

    Raises:
        ConfigError: A value is not allowed.
    """
    return build("rmsprop", learning_rate, {"decay": decay, "epsilon": epsilon})


@speaks_python()
def adafactor(
    learning_rate: float,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3,
    clip_threshold: float = 1.0,
    relative_step: bool = True,
) -> Optimizer:
    """Returns Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235).

    See `fedcli.optimizers.factored` for the formula and the state.

    Args:
        learning_rate: Step size relative to the root mean square of a tensor's weights, >= 0; TFF's
            default is 0.001.
        beta_2_decay: The decay of the mean of squares in step t is 1 - t^beta_2_decay; below 0.
        epsilon_1: Added to squared gradients, > 0.
        epsilon_2: Lower bound of the root mean square of a tensor's weights, >= 0.
        clip_threshold: Upper bound of the root mean square of a tensor's update, > 0.
        relative_step: Whether the rate is at most 1 / sqrt(t).

    Raises:
        ConfigError: A value is not allowed.
    """
    options: dict[str, Value] = {"beta_2_decay": beta_2_decay, "epsilon_1": epsilon_1}
    options |= {"epsilon_2": epsilon_2, "clip_threshold": clip_threshold}
    return build("adafactor", learning_rate, {**options, "relative_step": relative_step})
