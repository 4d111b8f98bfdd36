from __future__ import annotations

from typing import Any

import pytest

from fedcli.reports import rows as report
from fedcli.reports.rows import EvaluationRow, RoundRow, Scores

FOUR = {"sparse_categorical_accuracy": 0.5, "loss": 1.25, "num_examples": 40, "num_batches": 2}


def line(round_num: int, *, evaluation: bool = False, **train: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "round": round_num,
        "client_work": {"train": {**FOUR, "num_non_finite_clients": 0, **train}},
        "finalizer": {"update_non_finite": 0},
    }
    return made | ({"evaluation": {"test": FOUR}} if evaluation else {})


def test_round_row_of_an_ordinary_round() -> None:
    assert report.round_row(line(3)) == RoundRow(3, Scores(1.25, 0.5, 40, 2), 0, False, {})


def test_round_row_of_the_initial_model_has_only_an_evaluation() -> None:
    row = report.round_row({"round": 0, "evaluation": {"test": FOUR}})
    assert row == RoundRow(0, None, 0, False, {"test": Scores(1.25, 0.5, 40, 2)})


def test_round_row_tells_what_was_dropped() -> None:
    bad = line(1, loss=None, sparse_categorical_accuracy=None, num_non_finite_clients=2)
    bad["finalizer"]["update_non_finite"] = 1
    assert report.round_row(bad) == RoundRow(1, Scores(None, None, 40, 2), 2, True, {})


@pytest.mark.parametrize(
    ("num_rounds", "step"),
    [(0, 1), (1, 1), (20, 1), (21, 2), (36, 2), (37, 2), (38, 5), (100, 10), (10_000, 1000)],
)
def test_thinning_step(num_rounds: int, step: int) -> None:
    assert report.thinning_step(num_rounds, 20) == step
    assert num_rounds <= 20 or num_rounds // step + 2 <= 20


def test_few_rounds_are_all_shown() -> None:
    rows = report.round_rows([line(number) for number in range(1, 21)])
    assert [row.round_num for row in rows] == list(range(1, 21))


def test_many_rounds_show_first_every_kth_and_last() -> None:
    rows = report.round_rows([line(number) for number in range(1, 54)])
    assert [row.round_num for row in rows] == [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 53]


def test_of_a_run_with_evaluations_those_rounds_alone_are_shown() -> None:
    lines = [line(number, evaluation=number % 25 == 12) for number in range(1, 101)]
    assert [row.round_num for row in report.round_rows(lines)] == [12, 37, 62, 87]
    # One evaluation alone is no curve.
    lines = [line(number, evaluation=number == 12) for number in range(1, 21)]
    assert len(report.round_rows(lines)) == 20


def test_many_evaluated_rounds_are_thinned() -> None:
    lines = [line(number, evaluation=True) for number in range(1, 101)]
    assert [row.round_num for row in report.round_rows(lines)] == [1, *range(10, 101, 10)]
    lines = [line(number, evaluation=number % 5 == 0) for number in range(201)]
    shown = [row.round_num for row in report.round_rows(lines)]
    assert shown == [*range(0, 201, 25)]


def test_evaluation_rows_are_one_a_split() -> None:
    evaluation = {
        "split": "test",
        "client_work": {"eval": {"current_round_metrics": FOUR}},
        "num_clients": 9,
        "num_absent_clients": 1,
    }
    rows = report.evaluation_rows({"test": evaluation})
    assert rows == [EvaluationRow("test", Scores(1.25, 0.5, 40, 2), 9, 1)]
