"""The points of a study: combinations of options, each with a config for each seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from fedcli import settings
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig
from fedcli.sweeps.study import MAX_POINTS, Case, Study
from fedcli.sweeps.study_values import nested, options_text

_MAX_RUNS = 1_000_000
NO_CASE = Case("", {})


@dataclass(frozen=True, eq=False)
class Point:
    """One combination of options.

    Attributes:
        number: Its number in the order of the study, from 1.
        case: The name of its case; empty if the study has none.
        options: The options that the study varies, by dotted name, with this point's values.
        configs: A valid config for each seed of the study, in the order of the seeds.
    """

    number: int
    case: str
    options: dict[str, Any]
    configs: tuple[RunConfig, ...]

    @property
    def text(self) -> str:
        """The point in words, such as `FedProx, client_lr=0.1`."""
        parts = [self.case, options_text(self.options)]
        return ", ".join(each for each in parts if each) or "all options as given"


def grid_points(study: Study) -> list[Point]:
    """Returns all points of a grid, case by case; the last option varies fastest.

    Raises:
        ConfigError: A combination is not allowed; the message names the first such point.
    """
    cases = study.cases or (NO_CASE,)
    count = sum(math.prod(map(len, _grid_of(study, case).values())) for case in cases)
    check_size(study, count)
    combinations = (
        (case, dict(zip(grid, values, strict=True)))
        for case in cases
        for grid in [_grid_of(study, case)]
        for values in itertools.product(*grid.values())
    )
    return [
        make_point(study, number, case, each) for number, (case, each) in enumerate(combinations, 1)
    ]


def drawn_points(study: Study, drawn: list[dict[str, Any]], first: int = 1) -> list[Point]:
    """Returns the points with drawn options; each draw is combined with each case.

    Raises:
        ConfigError: See `grid_points`.
    """
    cases = study.cases or (NO_CASE,)
    pairs = itertools.product(drawn, cases)
    return [
        make_point(study, number, case, options)
        for number, (options, case) in enumerate(pairs, first)
    ]


def check_size(study: Study, num_points: int) -> None:
    """Refuses a study with too many runs. Raises ConfigError."""
    if num_points > MAX_POINTS or num_points * len(study.seeds) > _MAX_RUNS:
        raise ConfigError(
            f"the study has {plural(num_points, 'point')} with {plural(len(study.seeds), 'seed')} "
            f"each; choose at most {MAX_POINTS:,} points and {_MAX_RUNS:,} runs"
        )


def make_point(study: Study, number: int, case: Case, options: Mapping[str, Any]) -> Point:
    """Returns a point with its configs.

    Raises:
        ConfigError: The combination is not allowed.
    """
    try:
        configs = tuple(_config(study, case, options, seed) for seed in study.seeds)
    except ConfigError as err:
        where = Point(number, case.name, dict(options), ()).text
        raise ConfigError(f"point {number} ({where}): {err}") from err
    return Point(number, case.name, dict(options), configs)


def _grid_of(study: Study, case: Case) -> dict[str, tuple[Any, ...]]:
    return {**study.grid, **case.grid}


def _config(study: Study, case: Case, options: Mapping[str, Any], seed: int) -> RunConfig:
    base: Mapping[str, Any] = study.run
    name = base.get("preset")
    if name is not None:
        from fedcli.settings.presets import PRESETS

        base = settings.merge(PRESETS[name].values if name in PRESETS else {}, base)
    merged = settings.merge(settings.merge(base, nested(case.options)), nested(options))
    merged.update(seed=seed, threads=1)
    if study.redraw_partition:
        if merged.get("partition", RunConfig.partition) == RunConfig.partition:
            raise ConfigError(
                "redraw_partition: there is no partition; give a partition, or leave this key out"
            )
        merged["partition_options"] = {**merged.get("partition_options", {}), "seed": seed}
    config = settings.from_options(merged)
    if study.halving is not None:
        check_can_continue(config)
    return config


def check_can_continue(config: RunConfig) -> None:
    """Refuses schedules that end with the run: a longer run would have different first rounds."""
    for side in ("client", "server"):
        options = getattr(config, f"{side}_schedule_options") or {}
        if options.get("decay_rounds") == tables.ROUNDS_OF_RUN:
            raise ConfigError(
                f"halving: --{side}-schedule {getattr(config, f'{side}_schedule')} ends with the "
                f"run; set its length, as in {side}_schedule_options.decay_rounds = 100"
            )
