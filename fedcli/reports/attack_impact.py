"""Measures the impact of an attack: compares a run with the same run without the attack.

The functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.reports import comparison
from fedcli.reports.text import Table
from fedcli.runs.record import RunRecord
from fedcli.settings.vocabulary import ACCURACY

_UNSET = "-"
_OF_ATTACK = ("attack", "attackers", "attack_options")
_NO_ATTACKERS = ("0", 0)


@dataclass(frozen=True)
class AttackFigures:
    """The figures of one attacked run; None where they are not known.

    Attributes:
        attackers_mean: Mean number of attackers in the cohorts of attacked rounds.
        attackers_max: Largest number of attackers in one of these cohorts.
        kept_share: Share of the attackers' updates that the aggregator kept; None if it does not
            report this.
        accuracy: Accuracy on clean examples after the last round, on the split
            `RunRecord.judged_by`.
        worst_accuracy: The lowest accuracy on that split since the first attacked round.
        worst_round: The round of `worst_accuracy`.
        success_rate: Share of the targeted examples that get the class that the attackers aim at.
    """

    attackers_mean: float | None
    attackers_max: int | None
    kept_share: float | None
    accuracy: float | None
    worst_accuracy: float | None
    worst_round: int | None
    success_rate: float | None


def is_attacked(run: RunRecord) -> bool:
    """Returns whether a run has an attack with at least one attacker."""
    return "attack" in run.options and run.options.get("attackers") not in _NO_ATTACKERS


def figures_of(run: RunRecord) -> AttackFigures:
    """Returns the figures of an attacked run."""
    start = int(run.options.get("attack_options.start", 1))
    lines = [
        line["updates"]["attack"]
        for line in run.metrics
        if "attack" in line.get("updates", {}) and line["round"] >= start
    ]
    counts = [int(line["attackers_in_cohort"]) for line in lines]
    kept = [line for line in lines if "attackers_kept" in line]
    num_sent = sum(line["attackers_in_cohort"] for line in kept)
    after = [(at, value) for at, value in run.series(run.judged_by, ACCURACY) if at >= start]
    worst = min(after, key=lambda point: point[1], default=None)
    return AttackFigures(
        sum(counts) / len(counts) if counts else None,
        max(counts, default=None),
        sum(line["attackers_kept"] for line in kept) / num_sent if num_sent else None,
        run.final(run.judged_by, ACCURACY),
        None if worst is None else worst[1],
        None if worst is None else worst[0],
        success_rate_of(run),
    )


def success_rate_of(run: RunRecord) -> float | None:
    """Returns the attack success rate of the newest evaluation; None if it was never measured."""
    for evaluation in run.newest_evaluation.values():
        if "attack" in evaluation:
            rate: float | None = evaluation["attack"]["attack_success_rate"]
            return rate
    for line in reversed(run.metrics):
        for values in line.get("evaluation", {}).values():
            if "attack_success_rate" in values:
                earlier_rate: float | None = values["attack_success_rate"]
                return earlier_rate
    return None


def partner_of(run: RunRecord, runs: Sequence[RunRecord]) -> RunRecord | None:
    """Returns the first run without attack that otherwise equals `run`; None if there is none."""
    setting = _without_attack(run)
    for other in runs:
        if not is_attacked(other) and _without_attack(other) == setting:
            return other
    return None


def _without_attack(run: RunRecord) -> dict[str, Any]:
    """The options and data that determine the results of a run, without those of the attack."""
    setting = comparison.setting(run)
    others = {name: value for name, value in setting.items() if _root(name) not in _OF_ATTACK}
    return {**others, "seed": run.options.get("seed", 0)}


def _root(name: str) -> str:
    return name.partition(".")[0]


def of_one(run: RunRecord) -> list[Table]:
    """Returns the tables of an attacked run; none for any other run."""
    if not is_attacked(run):
        return []
    figures = figures_of(run)
    rows = [
        ["attackers in a cohort, mean", _number(figures.attackers_mean, 2)],
        ["attackers in a cohort, most", _number(figures.attackers_max, 0)],
        ["attackers' updates kept", _number(figures.kept_share)],
        ["clean accuracy", _number(figures.accuracy)],
        ["worst clean accuracy", _at(figures.worst_accuracy, figures.worst_round)],
        ["attack success rate", _number(figures.success_rate)],
    ]
    title = f"Attack {run.options['attack']}"
    tables = [Table(title, ["figure", "value"], [row for row in rows if row[1] != _UNSET])]
    recall = _recall(run)
    return [*tables, recall] if recall is not None else tables


def _recall(run: RunRecord) -> Table | None:
    """The recall of each class on clean examples, where it was measured."""
    for split, evaluation in run.newest_evaluation.items():
        recall = evaluation.get("attack", {}).get("class_recall")
        if recall is not None:
            headers = ["class", *map(str, range(len(recall)))]
            return Table(f"Recall by class ({split})", headers, [["recall", *map(_number, recall)]])
    return None


def of_several(runs: Sequence[RunRecord]) -> Table | None:
    """Compares each attacked run with the same run without attack; None if there is none."""
    rows = []
    for run in runs:
        if not is_attacked(run):
            continue
        figures = figures_of(run)
        partner = partner_of(run, runs)
        without = None if partner is None else partner.final(run.judged_by, ACCURACY)
        impact = None
        if without is not None and figures.accuracy is not None:
            impact = without - figures.accuracy
        rows.append(
            [
                str(run.path),
                _UNSET if partner is None else str(partner.path),
                *(_number(value) for value in (without, figures.accuracy, impact)),
                _at(figures.worst_accuracy, figures.worst_round),
                _number(figures.success_rate),
                _number(figures.attackers_mean, 2),
                _number(figures.kept_share),
            ]
        )
    if not rows:
        return None
    headers = ["attacked run", "same without attack", "accuracy without", "with", "impact"]
    headers += ["worst (round)", "success rate", "attackers per round", "kept"]
    return Table("Impact of attacks on clean accuracy", headers, rows, 2)


def as_json(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns the figures of the attacked runs as plain values."""
    figures = []
    for run in runs:
        if not is_attacked(run):
            continue
        partner = partner_of(run, runs)
        without = None if partner is None else partner.final(run.judged_by, ACCURACY)
        figures.append(
            {
                "run": str(run.path),
                "without_attack": None if partner is None else str(partner.path),
                "accuracy_without_attack": without,
                **vars(figures_of(run)),
            }
        )
    return figures


def _number(value: float | None, digits: int = 4) -> str:
    return _UNSET if value is None else f"{value:.{digits}f}"


def _at(value: float | None, round_num: int | None) -> str:
    return _UNSET if value is None else f"{value:.4f} ({round_num})"
