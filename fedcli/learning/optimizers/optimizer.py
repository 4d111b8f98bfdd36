"""An optimizer with its settings, for the server and (as rows of the step table) for clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from functools import cache
from typing import Any

import numpy as np

from fedcli.core.native import FrozenSlots, StepKind, StepRow
from fedcli.dataclass import dataclass
from fedcli.errors import refuse_unknown
from fedcli.lazy import load
from fedcli.learning.optimizers.rules import OptState, Params, Rule, Settings
from fedcli.learning.optimizers.schedules import CONSTANT, Schedule
from fedcli.settings.tables import OPTIMIZERS
from fedcli.settings.vocabulary import BY_LOCAL_STEP, BY_ROUND

# Names of the slots in the order of the core's step table.
_SLOT_ORDER = ("accumulator", "preconditioner")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its settings; it holds no state.

    Attributes:
        name: A key of `tables.OPTIMIZERS`.
        learning_rate: Step size, >= 0.
        options: The values of all options of the row.
        schedule: The factor of the learning rate by round or local step; see `at`.
        schedule_by: What the schedule counts: `round`, or `local-step` from 0 in each round.
        clip_norm: A gradient with a larger L2 norm over all tensors is first scaled to this norm.
            None if gradients are not clipped.
        weight_decay: This factor times the parameters is added to the clipped gradient. PyTorch's
            SGD applies weight decay in this way: it is an L2 penalty of half the factor.
        shapes: Shapes of the tensors, for an optimizer that treats each separately; see
            `for_tensors`. If empty, the parameters are one vector.
        rule: The rule of a user's own optimizer; None for the rule in the table.
    """

    name: str
    learning_rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = CONSTANT
    schedule_by: str = BY_ROUND
    clip_norm: float | None = None
    weight_decay: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ()
    rule: Rule | None = field(default=None, compare=False, repr=False)

    def __new__(cls, *args: Any, **named: Any) -> Optimizer:
        """Rejects unknown arguments with a hint."""
        refuse_unknown("Optimizer", named, [each.name for each in fields(cls)])
        return super().__new__(cls)

    def __repr__(self) -> str:
        """Returns name and settings; schedule, clip norm and weight decay only if they are set."""
        options = {"learning_rate": self.learning_rate, **self.options}
        arguments = [f"{name}={value!r}" for name, value in options.items()]
        if self.schedule != CONSTANT:
            arguments.append(f"schedule={self.schedule.name!r}")
        if self.clip_norm is not None:
            arguments.append(f"clip_norm={self.clip_norm!r}")
        if self.weight_decay:
            arguments.append(f"weight_decay={self.weight_decay!r}")
        return f"{self.name}({', '.join(arguments)})"

    @property
    def _rule(self) -> Rule:
        return _rule(self.name) if self.rule is None else self.rule

    @property
    def _settings(self) -> Settings:
        return Settings(self.learning_rate, self.options, self.shapes)

    def for_tensors(self, shapes: Sequence[tuple[int, ...]]) -> Optimizer:
        """Returns the optimizer for a parameter vector that consists of tensors of these shapes."""
        return replace(self, shapes=tuple(shapes))

    def at(self, round_num: int) -> Optimizer:
        """Returns the optimizer with the learning rate that applies after `round_num` rounds.

        No optimizer's state depends on its learning rate, so the state can be used in all rounds.
        """
        if self.schedule == CONSTANT or self.schedule_by == BY_LOCAL_STEP:
            return self
        rate = self.learning_rate * self.schedule.factor(round_num)
        return replace(self, learning_rate=rate, schedule=CONSTANT)

    @property
    def local_schedule(self) -> Schedule | None:
        """The schedule by local step, from 0; None if the rate is constant within a round."""
        is_constant = self.schedule == CONSTANT or self.schedule_by == BY_ROUND
        return None if is_constant else self.schedule

    def rate_sum(self, num_steps: int) -> float:
        """Returns the sum of the learning rates of the first `num_steps` local steps."""
        schedule = self.local_schedule
        if schedule is None:
            return self.learning_rate * float(num_steps)
        return self.learning_rate * math.fsum(map(schedule.factor, range(num_steps)))

    def unit_steps(self, num_steps: int) -> float:
        """Returns the sum of the weights of the gradients in `num_steps` local steps of SGD.

        With gradients that are all 1, these steps move a parameter by this many learning rates.
        Momentum and a schedule by local step are included. Only for SGD.
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
        """Returns the updates to *add* to `params`, and the next state.

        It does not change its arguments.

        Args:
            gradient: A gradient or pseudo-gradient [num_params], in the dtype of `params`.
            state: The state returned by `init` or the last `update`.
            params: Parameters [num_params].
        """
        if self.clip_norm is not None:
            gradient = clipped(gradient, self.clip_norm)
        if self.weight_decay:
            gradient = gradient + gradient.dtype.type(self.weight_decay) * params
        decrease, state = self._rule.step(self._settings, gradient, state, params)
        return -decrease, state

    def client_rows(self, terms: Sequence[StepRow] = ()) -> list[StepRow]:
        """Returns the rows of the core's step table for this optimizer's local steps.

        Args:
            terms: Rows of the terms that an algorithm adds to the clipped gradient.
        """
        clip = [] if self.clip_norm is None else [(StepKind.CLIP, (self.clip_norm,))]
        decay = [(StepKind.DECAY, (self.weight_decay,))] if self.weight_decay else []
        return [*clip, *decay, *terms, self._rule.row(self._settings)]


@cache
def _rule(name: str) -> Rule:
    rule: Rule = load(OPTIMIZERS[name].code)
    return rule


def frozen_slots(state: Mapping[str, Any]) -> FrozenSlots:
    """Returns an optimizer's state in the form from which the core's local steps start.

    Args:
        state: The state returned by `Optimizer.init` or `update`.
    """
    slots = [state[name] for name in _SLOT_ORDER if name in state]
    num_params = len(slots[0]) if slots else 0
    stacked = np.array(slots, np.float32).reshape(len(slots), num_params)
    return FrozenSlots(stacked, int(state.get("step", 0)) + 1)


def clipped(gradient: Params, clip_norm: float) -> Params:
    """Returns the gradient, scaled to `clip_norm` if its L2 norm is larger.

    If it contains a NaN or an infinity, the result contains a NaN.
    """
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    return gradient * gradient.dtype.type(clip_norm / norm) if norm > clip_norm else gradient
