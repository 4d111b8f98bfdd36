"""An optimizer with its settings, as both sides use it: on the server, and as the core's rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, fields, replace
from functools import cache
from typing import Any

import numpy as np

from fedcli.core.native import FrozenSlots, StepKind, StepRow
from fedcli.dataclass import dataclass
from fedcli.lazy import load
from fedcli.learning.optimizers.rules import OptState, Params, Rule, Settings
from fedcli.learning.optimizers.schedules import CONSTANT, Schedule
from fedcli.settings.tables import OPTIMIZERS
from fedcli.settings.vocabulary import BY_LOCAL_STEP, BY_ROUND

# What other libraries call arguments, with what they are called here.
_HABITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "eta", "rate", "step_size"), ("learning_rate",)),
    **dict.fromkeys(("beta1", "b1"), ("beta_1",)),
    **dict.fromkeys(("beta2", "b2"), ("beta_2",)),
    **dict.fromkeys(("eps", "tau"), ("epsilon",)),
    **dict.fromkeys(("wd", "l2"), ("weight_decay",)),
    **dict.fromkeys(("alpha", "rho"), ("decay",)),
}

# Slots by name, in the order in which the core's rows keep them.
_SLOT_ORDER = ("accumulator", "preconditioner")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its settings; it holds no state.

    Attributes:
        name: A key of `tables.OPTIMIZERS`.
        learning_rate: Step size, >= 0.
        options: Every option of the registry row, resolved.
        schedule: Which share of the learning rate a round or a local step uses; see `at`.
        schedule_by: What the schedule counts, `round` or `local-step`: from 0 in each round.
        clip_norm: A gradient that is longer (L2, over all tensors) is scaled to this length before
            anything else sees it; None: it is taken as it is.
        shapes: Of the tensors, for an optimizer that looks at each by itself; see `for_tensors`.
            Without them the parameters are one vector.
        rule: What it does, of one that is none of the table's; None: the table's.
    """

    name: str
    learning_rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = CONSTANT
    schedule_by: str = BY_ROUND
    clip_norm: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    rule: Rule | None = field(default=None, compare=False, repr=False)

    def __new__(cls, *args: Any, **named: Any) -> Optimizer:
        """Refuses arguments that there are none of, and says what to write."""
        refuse_unknown("Optimizer", named, [each.name for each in fields(cls)])
        return super().__new__(cls)

    def __repr__(self) -> str:
        """Returns the call that makes it, but for what is as usual."""
        options = {"learning_rate": self.learning_rate, **self.options}
        told = [f"{name}={value!r}" for name, value in options.items()]
        if self.schedule != CONSTANT:
            told.append(f"schedule={self.schedule.name!r}")
        if self.clip_norm is not None:
            told.append(f"clip_norm={self.clip_norm!r}")
        return f"{self.name}({', '.join(told)})"

    @property
    def _rule(self) -> Rule:
        return _rule(self.name) if self.rule is None else self.rule

    @property
    def _settings(self) -> Settings:
        return Settings(self.learning_rate, self.options, self.shapes)

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
    def local_schedule(self) -> Schedule | None:
        """Which share of the learning rate a local step uses, by its number from 0; None: all."""
        is_constant = self.schedule == CONSTANT or self.schedule_by == BY_ROUND
        return None if is_constant else self.schedule

    def rate_sum(self, num_steps: int) -> float:
        """Returns the sum of the learning rates of so many local steps."""
        schedule = self.local_schedule
        if schedule is None:
            return self.learning_rate * float(num_steps)
        return self.learning_rate * math.fsum(map(schedule.factor, range(num_steps)))

    def unit_steps(self, num_steps: int) -> float:
        """Returns how far so many local steps go whose gradients are all 1, in learning rates.

        For SGD alone, with its momentum: how many gradients the steps add up, in all.
        """
        momentum, is_ahead = self.options["momentum"], self.options["nesterov"]
        schedule, accumulator, total = self.local_schedule, 0.0, 0.0
        for step in range(num_steps):
            accumulator = momentum * accumulator + 1.0
            direction = 1.0 + momentum * accumulator if is_ahead else accumulator
            total += direction * (1.0 if schedule is None else schedule.factor(step))
        return total

    def init(self, params: Params) -> OptState:
        """Returns the state before the first step for parameters [num_params]."""
        return self._rule.init(self._settings, params)

    def update(self, gradient: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        """Returns the updates to *add* to `params`, and the next state; changes no argument.

        Args:
            gradient: A gradient or pseudo-gradient [num_params], in the dtype of `params`.
            state: What `init` or the last `update` returned.
            params: Parameters [num_params].
        """
        if self.clip_norm is not None:
            gradient = clipped(gradient, self.clip_norm)
        decrease, state = self._rule.step(self._settings, gradient, state, params)
        return -decrease, state

    def client_rows(self, terms: Sequence[StepRow] = ()) -> list[StepRow]:
        """Returns the rows that make the core take this optimizer's local steps.

        Args:
            terms: Rows of what an algorithm adds to the gradient, once that is clipped.
        """
        clip = [] if self.clip_norm is None else [(StepKind.CLIP, (self.clip_norm,))]
        return [*clip, *terms, self._rule.row(self._settings)]


def refuse_unknown(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Raises TypeError about an argument that there is none of, with what it is called here."""
    for name in given:
        if name not in known:
            usual = [each for each in _HABITS.get(name, ()) if each in known]
            hint = f"write {usual[0]}=" if usual else f"it takes {', '.join(known)}"
            raise TypeError(f"{function} has no argument {name!r}; {hint}")


@cache
def _rule(name: str) -> Rule:
    rule: Rule = load(OPTIMIZERS[name].code)
    return rule


def frozen_slots(state: Mapping[str, Any]) -> FrozenSlots:
    """Returns an optimizer's state as the core's rows take it: what local steps start from.

    Args:
        state: Of `Optimizer.init` or `update`.
    """
    slots = [state[name] for name in _SLOT_ORDER if name in state]
    num_params = len(slots[0]) if slots else 0
    stacked = np.array(slots, np.float32).reshape(len(slots), num_params)
    return FrozenSlots(stacked, int(state.get("step", 0)) + 1)


def clipped(gradient: Params, clip_norm: float) -> Params:
    """Returns the gradient, no longer than that; one that holds a NaN or infinity has a NaN."""
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    return gradient * gradient.dtype.type(clip_norm / norm) if norm > clip_norm else gradient
