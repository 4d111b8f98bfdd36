"""Compares runs: differences of their options, means over seeds, targets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.runs.record import RunRecord, is_of_data
from fedcli.settings.run_config import CODE_FIELDS, WITHOUT_EFFECT

# Options that change results; runs that differ only in them are repetitions of each other.
REPEATS = ("seed",)
_EARLY_STOPPING_OPTIONS = ("stop_at", "patience")  # with one of these, eval_every changes results
# Fingerprints in the provenance: those of the files that options name. Metrics change no result.
_FINGERPRINTS = ("data", *(name for name in CODE_FIELDS if name not in WITHOUT_EFFECT))
_PARTITION_SEED_OPTION = "partition_options.seed"
# The partition's seed, at the end of the data's fingerprint, which describes the partition.
_PARTITION_SEED = re.compile(r"(; partition [^\";]*?) seed=\d+")
CHIEF = ("case", "algorithm")  # options that often determine others
DEFAULT_TARGETS = (0.8, 0.9, 0.95)

# Quantiles 0.975 of Student's t for 1 to 30 degrees of freedom.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        mean: The mean.
        half_width: Half the width of its 95 % confidence interval; None for one run.
        count: Number of runs.
        std: Standard deviation of the runs, with divisor count - 1; None for one run.
    """

    mean: float
    half_width: float | None
    count: int
    std: float | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration, which differ in their seed.

    Attributes:
        runs: The runs in the order of the call, at least one.
        options: The options that differ between groups, by dotted name, with this group's values.
    """

    runs: list[RunRecord]
    options: dict[str, Any]

    @property
    def repeats(self) -> list[RunRecord]:
        """The first run of each seed. Another run of the same seed is not an independent sample."""
        by_seed: dict[int, RunRecord] = {}
        for run in self.runs:
            by_seed.setdefault(run.options.get("seed", 0), run)
        return list(by_seed.values())


def estimate(values: Sequence[float]) -> Estimate | None:
    """Returns the mean of independent values with its 95 % interval; None without values."""
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half_width = t_quantile(count - 1) * math.sqrt(variance / count)
    return Estimate(mean, half_width, count, math.sqrt(variance))


def t_quantile(degrees: int) -> float:
    """Returns the 0.975 quantile of Student's t distribution.

    Above 30 degrees of freedom it is computed by Cornish and Fisher's series (Abramowitz and
    Stegun, "Handbook of Mathematical Functions", 26.7.5).
    """
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Returns the options that differ between runs, in the order of the configs.

    Each has one value per run, which is None if the run does not set the option.
    """
    names = dict.fromkeys(name for run in runs for name in run.options)
    by_name = {name: [run.options.get(name) for run in runs] for name in names}
    return {name: values for name, values in by_name.items() if len(set(map(_key, values))) > 1}


def provenance_differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Returns the entries of the provenance (versions, machine, data) that differ, by name.

    Each has one value per run, which is None if the run does not record it.
    """
    names = dict.fromkeys(name for run in runs for name in run.provenance)
    by_name = {name: [run.provenance.get(name) for run in runs] for name in names}
    return {name: values for name, values in by_name.items() if len(set(map(_key, values))) > 1}


def group_by_config(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups runs that differ only in the seed and in options without effect.

    Data count as equal if their fingerprints are equal, wherever the files lie. Two runs with the
    same seed are both kept; see `Group.repeats`. The seed of the partition is ignored, too, if it
    changes with the run's seed, as in a study that draws a new partition for each seed.
    """
    groups: dict[str, list[RunRecord]] = {}
    for alike in _by_key(runs, lambda run: _PARTITION_SEED.sub(r"\1", _key(setting(run)))):
        seeds = {run.options.get("seed", 0) for run in alike}
        seed_pairs = {
            (run.options.get("seed", 0), run.options.get(_PARTITION_SEED_OPTION)) for run in alike
        }
        parts = [alike] if len(seeds) == len(seed_pairs) else _by_key(alike, _strict_key)
        groups.update({_strict_key(part[0]): part for part in parts})
    firsts = [members[0] for members in groups.values()]
    has_effect = {name for run in firsts for name in setting(run)}
    differing = [name for name in differences(firsts) if name in has_effect or is_of_data(name)]
    files = [name for name in provenance_differences(firsts) if name in _FINGERPRINTS]
    if any(map(is_of_data, differing)):
        files = [name for name in files if name != "data"]  # the options name the data
    return [
        Group(
            members,
            {
                **{name: members[0].options.get(name) for name in differing},
                **{f"({name})": members[0].provenance.get(name) for name in files},
            },
        )
        for members in groups.values()
    ]


def _by_key(runs: Iterable[RunRecord], key: Callable[[RunRecord], str]) -> list[list[RunRecord]]:
    """Returns one list for each key, with the runs that have it, in the order of `runs`."""
    by_key: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_key.setdefault(key(run), []).append(run)
    return list(by_key.values())


def _strict_key(run: RunRecord) -> str:
    return _key(setting(run))


def setting(run: RunRecord) -> dict[str, Any]:
    """Returns the options and fingerprints that determine a run's results, without its seed."""
    left_out = {*REPEATS, *WITHOUT_EFFECT}
    if not any(name in run.options for name in _EARLY_STOPPING_OPTIONS):
        left_out.add("eval_every")
    files = {f"({name})": run.provenance[name] for name in _FINGERPRINTS if name in run.provenance}
    options = {
        name: value
        for name, value in run.options.items()
        if name not in left_out and not ("(data)" in files and is_of_data(name))
    }
    return {**options, **files}


def essential(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the options that distinguish rows, without those that are determined by others.

    For example, an algorithm's own options are determined by `algorithm` if each algorithm has the
    same options in all rows.

    Args:
        names: Options. Of options that determine each other, the first is kept; `case` and
            `algorithm` come before all others.
        rows: The options of each row.
    """
    chosen: list[str] = []
    for name in dict.fromkeys([*(each for each in CHIEF if each in names), *names]):
        if not chosen or not _follows(name, chosen, rows):
            chosen.append(name)
    return chosen


def _follows(name: str, others: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether rows with equal values of `others` also have equal values of `name`."""
    value_by_others: dict[str, str] = {}
    for row in rows:
        value = _key(row.get(name))
        if value_by_others.setdefault(_key([row.get(each) for each in others]), value) != value:
            return False
    return True


def setting_key(run: RunRecord) -> str:
    """Returns a text that is equal for runs that differ only in their seeds.

    The seeds are those of the run and of the partition. Options without effect are ignored, too.
    """
    options = {
        name: value for name, value in setting(run).items() if name != _PARTITION_SEED_OPTION
    }
    return _PARTITION_SEED.sub(r"\1", _key(options))


def options_with_effect(run: RunRecord) -> dict[str, Any]:
    """Returns the options that define a configuration: no seeds, and none without effect."""
    left_out = {*REPEATS, *WITHOUT_EFFECT, _PARTITION_SEED_OPTION}
    return {name: value for name, value in run.options.items() if name not in left_out}


def repeat_of(run: RunRecord) -> tuple[Any, ...]:
    """Returns the seeds of a run and of its partition, which distinguish its repetitions."""
    return run.options.get("seed", 0), run.options.get(_PARTITION_SEED_OPTION)


def useful_targets(runs: Iterable[RunRecord]) -> list[float]:
    """Returns the usual targets of accuracy that at least one run reaches."""
    all_runs = list(runs)
    return [
        target
        for target in DEFAULT_TARGETS
        if any(run.rounds_to(target) is not None for run in all_runs)
    ]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
