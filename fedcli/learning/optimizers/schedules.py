"""Learning-rate schedules: which share of the learning rate a round uses.

Pure functions of the round's index r, from 0, so that a run's state needs no more than its round
number; a client's schedule may count its local steps in the round instead, from 0 again. They are
those of Google Research's federated code (utils/optimizers/optimizer_utils.py), with a step and a
cosine schedule besides; there r/T is scaled by a further number c in the inverse root, which T does
as well. After W rounds of warm-up, in which the share is (r+1)/W, the schedule starts at its own 0:
decay(r - W).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cache
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.lazy import load
from fedcli.settings import tables
from fedcli.settings.options import Value


@dataclass(frozen=True)
class Schedule:
    """A schedule with its settings.

    Attributes:
        name: A key of `tables.SCHEDULES`.
        options: Every option of the registry row, resolved.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def factor(self, round_num: int) -> float:
        """Returns the share of the learning rate, 0 to 1, after `round_num` completed rounds."""
        num_warmup_rounds = self.options.get("warmup_rounds", 0)
        if round_num < num_warmup_rounds:
            return float((round_num + 1) / num_warmup_rounds)
        return _rule(self.name)(self.options, round_num - num_warmup_rounds)


@cache
def _rule(name: str) -> Callable[[Mapping[str, Any], int], float]:
    rule: Callable[[Mapping[str, Any], int], float] = load(tables.SCHEDULES[name].code)
    return rule


def constant(options: Mapping[str, Any], round_num: int) -> float:
    """Returns 1."""
    return 1.0


def step(options: Mapping[str, Any], round_num: int) -> float:
    """Returns the factor of the last boundary that the round has passed; 1 before the first."""
    num_passed = bisect_right(options["boundaries"], round_num)
    return float(options["factors"][num_passed - 1]) if num_passed else 1.0


def exponential(options: Mapping[str, Any], round_num: int) -> float:
    """Returns decay_factor to the power of the share of decay_rounds that is over."""
    exponent = round_num / options["decay_rounds"]
    if options["staircase"]:
        exponent = math.floor(exponent)
    return float(options["decay_factor"] ** exponent)


def cosine(options: Mapping[str, Any], round_num: int) -> float:
    """Returns half a wave of the cosine from 1 to final_factor, which then stays."""
    final = options["final_factor"]
    progress = min(round_num / options["decay_rounds"], 1.0)
    return float(final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0)


def inverse_sqrt(options: Mapping[str, Any], round_num: int) -> float:
    """Returns 1 / sqrt(1 + r / decay_rounds)."""
    return 1.0 / math.sqrt(1.0 + round_num / options["decay_rounds"])


CONSTANT = Schedule(tables.CONSTANT)


def build(
    name: str, options: Mapping[str, Value] | None = None, *, num_rounds: int | None = None
) -> Schedule:
    """Returns the schedule of the table called `name`.

    Args:
        name: A key of `tables.SCHEDULES`.
        options: Its options; those not given take their defaults.
        num_rounds: Rounds of the run, None if that is not known: what a decay ends with unless
            `decay_rounds` says otherwise.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, or the rounds leave
            none for the decay.
    """
    return Schedule(name, tables.resolve_schedule(name, options or {}, num_rounds))
