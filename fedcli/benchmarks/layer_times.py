"""The time of a model's local step, by stage of the core and phase (forward, backward, derive)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

from fedcli.benchmarks.limits import Peak, rates
from fedcli.benchmarks.timing import Pace, Runner, Spread, Timer, in_turn, ratio
from fedcli.core import native
from fedcli.core.native import Phase
from fedcli.dataclass import dataclass
from fedcli.models import costs
from fedcli.models.model import Model
from fedcli.progress import ProgressCallback


@dataclass(frozen=True)
class StageTime:
    """The time of one phase of one stage.

    Attributes:
        layers: Names of the stage's layers.
        phase: The phase.
        seconds: Seconds for one example on one thread.
        share_of_peak: Multiply-adds as a share of the number that a thread could do in that time;
            None for a stage without multiply-adds, for `DERIVE`, and if a turn was too short for
            the clock.
    """

    layers: tuple[str, ...]
    phase: Phase
    seconds: Spread
    share_of_peak: Spread | None

    def to_json(self) -> dict[str, Any]:
        """Returns the time as plain values."""
        return {
            "layers": list(self.layers),
            "phase": self.phase.name.lower(),
            "median_seconds": self.seconds.median,
            "min_seconds": self.seconds.least,
            "max_seconds": self.seconds.most,
            "share_of_peak": self.share_of_peak and self.share_of_peak.median,
        }


@dataclass(frozen=True)
class LayerTimes:
    """The times of all phases of all stages of a model.

    Attributes:
        model: Its name.
        batch_size: Number of examples in a batch.
        stages: The phases of each stage, in the order of a forward pass.
    """

    model: str
    batch_size: int
    stages: tuple[StageTime, ...]

    @property
    def total_seconds(self) -> float:
        """The sum of all medians."""
        return sum(each.seconds.median for each in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Returns the times as plain values; seconds are for one example."""
        stages = [each.to_json() for each in self.stages]
        return {"model": self.model, "batch_size": self.batch_size, "stages": stages}


def measure(
    model: Model, batch_size: int, pace: Pace, timer: Timer, on_progress: ProgressCallback
) -> LayerTimes:
    """Measures the time of each phase of each stage, in turns with the machine's peak speed.

    Each phase is repeated alone, so its weights may be in a faster cache than in a local step.

    Args:
        model: A model that the core trains.
        batch_size: Number of examples per batch.
        pace: Number and length of the turns.
        timer: The clock.
        on_progress: Called with the number of turns done.
    """
    layers = model.layout.layers
    starts = [*native.stages(model.layout.core_rows(), model.layout.num_params), len(layers)]
    stages = [range(first, after) for first, after in pairwise(starts)]
    parts = [(stage, phase) for stage in range(len(stages)) for phase in Phase]
    with ExitStack() as resources:
        peak = Peak(1, resources)
        runners = [
            peak.runner(timer),
            *(
                Runner(phase.name, 1, _timed(model, batch_size, stage, phase, timer))
                for stage, phase in parts
            ),
        ]
        seconds = in_turn(runners, pace, timer, on_progress)
    limit = rates(peak, seconds[0])
    each_cost = costs.layer_costs(model.layout)
    times = []
    for (stage, phase), taken in zip(parts, seconds[1:], strict=True):
        mine = [each_cost[index] for index in stages[stage]]
        counts = {Phase.FORWARD: sum(cost.forward for cost in mine)}
        counts[Phase.BACKWARD] = sum(cost.backward for cost in mine)
        operations = 2.0 * batch_size * counts.get(phase, 0)
        share = None
        if operations and taken.least > 0:
            done = Spread(tuple(operations / each for each in taken.values))
            share = ratio(done, limit)
        times.append(
            StageTime(
                tuple(layers[index].name for index in stages[stage]),
                phase,
                Spread(tuple(each / batch_size for each in taken.values)),
                share,
            )
        )
    return LayerTimes(model.name, batch_size, tuple(times))


def _timed(
    model: Model, batch_size: int, stage: int, phase: Phase, timer: Timer
) -> Callable[[int], float]:
    """The function `run` of a `Runner`, without the constant overhead of a call of the core."""

    def seconds(repeats: int) -> float:
        started = timer.now()
        native.exercise(
            model.layout.core_rows(), model.initial_params, batch_size, stage, phase, repeats
        )
        return timer.now() - started

    return lambda num_calls: max(0.0, seconds(num_calls) - seconds(0))
