"""Compares a run with the published results of its preset. Pure functions over a run's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.runs.stopping import Progress
from fedcli.settings.declaration import option_name
from fedcli.settings.presets import Figure, Preset
from fedcli.settings.rules import from_options
from fedcli.settings.run_config import OPTION_OWNERS, WITHOUT_EFFECT, RunConfig
from fedcli.settings.tables.datasets import DATASETS
from fedcli.settings.vocabulary import MEASURES

# Options that count only if the preset sets them.
_NOT_COMPARED = {"preset", "seed", *WITHOUT_EFFECT}


@dataclass(frozen=True)
class Comparison:
    """The results of a run beside the published ones.

    Attributes:
        preset: The preset that it repeats.
        figures: Published numbers, each with the number of this run or None if it has none. Empty
            if the run uses another named dataset.
        differs_in: Options that change results and whose values differ from the preset's. The
            seed counts only if the preset sets it.
        has_other_data: Whether the run uses another named dataset.
    """

    preset: Preset
    figures: tuple[tuple[Figure, float | None], ...]
    differs_in: tuple[str, ...]
    has_other_data: bool

    def summary(self) -> dict[str, Any]:
        """Returns the values for --json."""
        return {
            "name": self.preset.name,
            "source": self.preset.source,
            "remark": self.preset.remark,
            "differs_in": list(self.differs_in),
            "figures": [
                {
                    "metric": figure.metric,
                    "split": figure.split or None,
                    "round": figure.round_num or None,
                    "published": figure.value,
                    "found": found,
                }
                for figure, found in self.figures
            ],
        }


def compare(
    preset: Preset,
    config: RunConfig,
    lines: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Mapping[str, Any]],
    progress: Progress | None,
) -> Comparison:
    """Compares a run with its preset.

    Args:
        preset: The preset of the run.
        config: The run's config.
        lines: The lines of its metrics.jsonl.
        evaluation: Its closing evaluation.
        progress: The state of early stopping after all lines; None for a run without a target.
    """
    expected = vars(from_options(preset.values))
    changed = [
        name
        for name, value in vars(config).items()
        if _differs(value, expected[name], preset.values.get(name))
        and (name in preset.values or name not in _NOT_COMPARED)
    ]
    # A file may hold the preset's own data, so only another named dataset counts as other data.
    has_other_data = "data" in changed and config.data in DATASETS
    rounds = {line["round"]: line for line in lines}
    figures = () if has_other_data else preset.figures
    return Comparison(
        preset,
        tuple((each, _find(each, rounds, evaluation, progress)) for each in figures),
        # If a run has another part than the preset, the options of that part are not named, too.
        tuple(option_name(name) for name in changed if OPTION_OWNERS.get(name) not in changed),
        has_other_data,
    )


def _differs(value: Any, expected: Any, given: Any) -> bool:
    """Returns whether a run's value differs from the one that the preset leads to.

    If the preset gives some keys of a table of options, only these keys are compared.
    """
    if isinstance(given, Mapping):
        return any(value.get(key) != expected[key] for key in given)
    return bool(value != expected)


def _find(
    figure: Figure,
    rounds: Mapping[int, Mapping[str, Any]],
    evaluation: Mapping[str, Mapping[str, Any]],
    progress: Progress | None,
) -> float | None:
    """Returns the run's number that corresponds to a published one; None if it has none."""
    if figure.metric == "rounds_to_target":
        return None if progress is None else progress.target_round
    if figure.round_num:
        online = rounds.get(figure.round_num, {}).get("client_work", {}).get("train", {})
        number: float | None = online.get(MEASURES[figure.metric])
        return number
    work = evaluation.get(figure.split, {}).get("client_work", {})
    scores = work.get("eval", {}).get("current_round_metrics", {})
    closing: float | None = scores.get(MEASURES[figure.metric])
    return closing
