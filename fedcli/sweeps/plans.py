"""The plan of a study: the runs of each stage.

A plan is a generator. It yields the runs of a stage, and receives their lines of trials.jsonl in
the order of the runs. The next stage depends only on the study and on these lines, so an
interrupted study continues with the same runs.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.digest import blake2b
from fedcli.settings.run_config import RunConfig
from fedcli.sweeps.points import Point, check_size, drawn_points, grid_points
from fedcli.sweeps.study import Study

Lines = Sequence[Mapping[str, Any]]


class PlannedRun(NamedTuple):
    """A run that a plan requests.

    Attributes:
        point: Its point.
        config: The run's config.
        final_config: The config of the run with all its rounds. Its key names the run's folder.
    """

    point: Point
    config: RunConfig
    final_config: RunConfig


Plan = Generator[list[PlannedRun], Lines, None]


def first_points(study: Study) -> list[Point]:
    """Returns the points of a grid or a random search, which depend on no result.

    Raises:
        ConfigError: A point is not allowed.
    """
    if study.random is None:
        return grid_points(study)
    check_size(study, study.random * max(1, len(study.cases)))
    drawn = [
        {
            name: each.at(draw_share(study.search_seed, number, name))
            for name, each in study.ranges.items()
        }
        for number in range(study.random)
    ]
    return drawn_points(study, drawn)


def planned_runs(points: Sequence[Point], rounds: int | None = None) -> list[PlannedRun]:
    """Returns the runs of some points: all seeds of the first point, then of the second, ...

    Args:
        points: The points.
        rounds: Rounds of each run; None for the number in the run's config.
    """
    return [
        PlannedRun(point, config if rounds is None else replace(config, rounds=rounds), config)
        for point in points
        for config in point.configs
    ]


def draw_share(seed: int, number: int, name: str) -> float:
    """Returns a draw from [0, 1) that depends only on the arguments.

    Args:
        seed: The study's `search_seed`.
        number: The number of the draw.
        name: The name of the option.
    """
    option = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    key = stream_key(seed, Purpose.SEARCH, round_num=number, client=option)
    return float(Stream(key).uniform(1)[0])
