"""Learning-rate schedules: factors of the learning rate by round.

A schedule is a pure function of the round index r, from 0, so a run's state needs only its round
number. A client's schedule may count the local steps of a round instead, from 0 in each round. The
schedules are those of Google Research's federated code (utils/optimizers/optimizer_utils.py), plus
a step and a cosine schedule. Google's inverse square root has a second constant that scales
r / decay_rounds; it is left out here, because decay_rounds has the same effect. In W rounds of
warm-up the factor is (r + 1) / W. Afterwards the schedule starts from 0: decay(r - W).
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
        options: The values of all options of the row.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def factor(self, round_num: int) -> float:
        """Returns the factor of the learning rate, 0 to 1, after `round_num` completed rounds."""
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
    """Returns the factor of the last boundary up to this round; 1 before the first boundary."""
    num_passed = bisect_right(options["boundaries"], round_num)
    return float(options["factors"][num_passed - 1]) if num_passed else 1.0


def exponential(options: Mapping[str, Any], round_num: int) -> float:
    """Returns decay_factor ** (r / decay_rounds); with `staircase` the exponent is rounded down."""
    exponent = round_num / options["decay_rounds"]
    if options["staircase"]:
        exponent = math.floor(exponent)
    return float(options["decay_factor"] ** exponent)


def cosine(options: Mapping[str, Any], round_num: int) -> float:
    """Returns a cosine decay from 1 to final_factor over decay_rounds; then final_factor."""
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
    """Returns the schedule called `name` in the table of schedules.

    Args:
        name: A key of `tables.SCHEDULES`.
        options: Its options; missing ones take their defaults.
        num_rounds: Rounds of the run, after which a decay without `decay_rounds` ends. None if the
            number is not known.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, or the warm-up leaves
            no round for the decay.
    """
    schedule = Schedule(name, tables.resolve_schedule(name, options or {}, num_rounds))
    # `Optimizer.at` compares with CONSTANT in every round, which is fast for the same object.
    return CONSTANT if schedule == CONSTANT else schedule
