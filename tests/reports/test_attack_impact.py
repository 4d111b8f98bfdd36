"""Reports of attacked runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcli.reports import attack_impact, tables
from fedcli.runs import record
from fedcli.runs.record import RunRecord
from tests.kit.runs import write_run

ATTACKED = 'attack = "label-flip"\nattackers = "20"\nseed = {}\n[run.attack_options]\nstart = 2\n'


def _attacked(
    path: Path, accuracies: list[float | None], attacks: list[dict[str, int]], seed: int = 1
) -> RunRecord:
    """Returns a run whose lines record the number of attackers."""
    write_run(path, accuracies, config=ATTACKED.format(seed), closing=0.5)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line, attack in zip(lines, attacks, strict=True):
        line["updates"] = {"attack": attack}
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    evaluation: dict[str, Any] = json.loads((path / "evaluation.json").read_text())
    evaluation["test"]["attack"] = {
        "attack_success_rate": 0.75,
        "num_aimed_at": 8,
        "num_successes": 6,
        "class_recall": [0.9, None, 0.1],
    }
    evaluation["test"]["client_work"]["eval"]["current_round_metrics"]["loss"] = 0.5
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    return record.load_run(path)


@pytest.fixture
def attacked(tmp_path: Path) -> RunRecord:
    attacks = [
        {"attackers_in_cohort": 9, "attackers_kept": 9},  # before the attack starts
        {"attackers_in_cohort": 2, "attackers_kept": 1},
        {"attackers_in_cohort": 0, "attackers_kept": 0},
        {"attackers_in_cohort": 4, "attackers_kept": 2},
    ]
    return _attacked(tmp_path / "attacked", [0.1, 0.6, 0.3, 0.4], attacks)


def test_the_figures_of_an_attack(attacked: RunRecord) -> None:
    found = attack_impact.figures_of(attacked)
    assert found.attackers_mean == 2.0
    assert found.attackers_max == 4
    assert found.kept_share == 0.5
    assert found.accuracy == 0.5  # that of the closing evaluation
    assert found.worst_accuracy == pytest.approx(0.4)
    assert found.worst_round == 3
    assert found.success_rate == 0.75


def test_a_run_is_paired_with_the_same_run_without_attack(
    attacked: RunRecord, tmp_path: Path
) -> None:
    others = {
        "same": "seed = 1\n",
        "seed": "seed = 2\n",
        "other": "seed = 1\nclient_lr = 0.5\n",
        "none": 'seed = 1\nattack = "alie"\nattackers = "0"\n',
    }
    runs = {
        name: record.load_run(
            write_run(tmp_path / name, [0.1, 0.6, 0.7, 0.8], config=config, closing=0.9)
        )
        for name, config in others.items()
    }
    assert attack_impact.partner_of(attacked, list(runs.values())) is runs["same"]
    assert attack_impact.partner_of(attacked, [runs["other"], runs["none"]]) is runs["none"]
    assert attack_impact.partner_of(attacked, [runs["seed"], runs["other"], attacked]) is None
    table = attack_impact.of_several([runs["seed"], attacked, runs["same"]])
    assert table is not None
    (row,) = [dict(zip(table.headers, each, strict=True)) for each in table.rows]
    assert row["same without attack"] == str(runs["same"].path)
    assert (row["accuracy without"], row["with"], row["impact"]) == ("0.9000", "0.5000", "0.4000")
    assert (row["worst (round)"], row["success rate"]) == ("0.4000 (3)", "0.7500")
    assert (row["attackers per round"], row["kept"]) == ("2.00", "0.5000")
    assert table in tables.of_several([attacked, runs["same"]], [])
    (told,) = tables.as_json([attacked, runs["same"]], [])["attacks"]
    assert told["accuracy_without_attack"] == 0.9
    assert told["success_rate"] == 0.75


def test_one_attacked_run_has_tables_of_its_attack(attacked: RunRecord) -> None:
    figures, recall = attack_impact.of_one(attacked)
    assert ["attack success rate", "0.7500"] in [list(row) for row in figures.rows]
    assert recall.rows == [["recall", "0.9000", "-", "0.1000"]]
    assert ("attack", "label-flip (attackers 20, start=2)") in tables.summary(attacked)


def test_runs_without_attack_have_no_attack_tables(tmp_path: Path) -> None:
    run = record.load_run(write_run(tmp_path / "run", [0.1, 0.2]))
    assert attack_impact.of_one(run) == []
    assert attack_impact.of_several([run, run]) is None
    assert "attacks" not in tables.as_json([run], [])
    assert all(name != "attack" for name, _ in tables.summary(run))
