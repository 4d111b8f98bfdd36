"""A search for the best point by TPE, the tree-structured Parzen estimator of Optuna.

Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS. No state of Optuna is
stored. For each generation, a new Optuna study is filled with all results so far and proposes the
next points. Its seed depends only on the study, the case and the generation, so an interrupted
search continues with the same points, for any number of processes.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.digest import blake2b
from fedcli.errors import ConfigError
from fedcli.settings.tables.metrics import more_is_better
from fedcli.sweeps.choice import value_of
from fedcli.sweeps.plans import Lines, Plan, planned_runs
from fedcli.sweeps.points import NO_CASE, Point, check_size, make_point
from fedcli.sweeps.study import Case, Select, Study
from fedcli.sweeps.study_values import CHOICE, LOG, Range

# The options of each point, with the value of its metric; None if a run failed or diverged.
_History = list[tuple[dict[str, Any], float | None]]


def search_plan(study: Study) -> Plan:
    """Yields generations of points, with all seeds. Each case has a separate search.

    Raises:
        ConfigError: Optuna is not installed, or a point is not allowed.
    """
    optuna = _optuna()
    assert study.search is not None
    cases = study.cases or (NO_CASE,)
    check_size(study, study.search * len(cases))
    return _generations(optuna, study, study.search, cases)


def _generations(optuna: Any, study: Study, num_points: int, cases: Sequence[Case]) -> Plan:
    histories: list[_History] = [[] for _ in cases]
    number = 1
    for generation, first in enumerate(range(0, num_points, study.generation)):
        count = min(study.generation, num_points - first)
        points: list[Point] = []
        for case, history in zip(cases, histories, strict=True):
            seed = _seed_of(study.search_seed, generation, case.name)
            for options in _propose(optuna, study, history, seed, count):
                points.append(make_point(study, number, case, options))
                number += 1
        lines = yield planned_runs(points)
        for index, point in enumerate(points):
            history = histories[index // count]
            history.append((point.options, _mean(study.select, lines, point.number)))


def _propose(
    optuna: Any, study: Study, history: _History, seed: int, count: int
) -> list[dict[str, Any]]:
    """Returns the next points, proposed from all results so far."""
    is_more_better = more_is_better(study.select.metric)
    distributions = {name: _distribution(optuna, each) for name, each in study.ranges.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=study.generation
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if is_more_better else "minimize"
    optuna_study = optuna.create_study(direction=direction, sampler=sampler)
    known = [value for _, value in history if value is not None]
    worst = (min if is_more_better else max)(known, default=0.0)
    for options, value in history:
        params = {name: _to_param(study.ranges[name], each) for name, each in options.items()}
        optuna_study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=distributions,
                value=worst if value is None else value,
            )
        )
    trials = [optuna_study.ask(distributions) for _ in range(count)]
    return [
        {name: _to_value(study.ranges[name], each) for name, each in trial.params.items()}
        for trial in trials
    ]


def _mean(select: Select, lines: Lines, point: int) -> float | None:
    """The mean over all seeds of a point; None if a run failed or diverged."""
    values = [value_of(select, line) for line in lines if line["point"] == point]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _distribution(optuna: Any, range_: Range) -> Any:
    classes: Mapping[str, Any] = vars(optuna.distributions)
    if range_.scale == CHOICE:
        return classes["CategoricalDistribution"](range(len(range_.values)))
    is_log = range_.scale == LOG
    if range_.is_whole:
        return classes["IntDistribution"](int(range_.low), int(range_.high), log=is_log)
    return classes["FloatDistribution"](range_.low, range_.high, log=is_log)


def _to_param(range_: Range, value: Any) -> Any:
    return range_.values.index(value) if range_.scale == CHOICE else value


def _to_value(range_: Range, param: Any) -> Any:
    if range_.scale == CHOICE:
        return range_.values[param]
    return param if range_.is_whole else range_.rounded(param)


def _seed_of(seed: int, generation: int, case: str) -> int:
    """The seed of a generation, in the 32 bits that Optuna takes."""
    text = f"{seed} {generation} {case}"
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as err:
        raise ConfigError(
            "--search needs Optuna: pip install 'fedcli[sweep]'; --random works without it"
        ) from err
