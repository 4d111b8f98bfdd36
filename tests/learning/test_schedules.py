from __future__ import annotations

import math
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.learning.optimizers import schedules
from fedcli.settings import tables

pytestmark = pytest.mark.numeric

ROUNDS = 40

# Each schedule with its factors, written out round by round.
ROWS: list[tuple[str, dict[str, Any], list[float]]] = [
    ("constant", {}, [1.0] * ROUNDS),
    ("step", {"boundaries": 7, "factors": 0.5}, [1.0] * 7 + [0.5] * (ROUNDS - 7)),
    (
        "step",
        {"boundaries": [1, 5, 20], "factors": [0.5, 1.0, 0.0], "warmup_rounds": 2},
        [0.5, 1.0, 1.0] + [0.5] * 4 + [1.0] * 15 + [0.0] * (ROUNDS - 22),
    ),
    (
        "exponential",
        {"decay_rounds": 10, "decay_factor": 0.25},
        [0.25 ** (r / 10) for r in range(ROUNDS)],
    ),
    (
        "exponential",
        {"decay_rounds": 10, "decay_factor": 0.5, "staircase": True},
        [1.0] * 10 + [0.5] * 10 + [0.25] * 10 + [0.125] * 10,
    ),
    (
        "cosine",
        {"decay_rounds": 20},
        [0.5 + 0.5 * math.cos(math.pi * r / 20) for r in range(20)] + [0.0] * 20,
    ),
    (
        "cosine",
        {"decay_rounds": 10, "final_factor": 0.2, "warmup_rounds": 4},
        [0.25, 0.5, 0.75, 1.0]
        + [0.2 + 0.8 * math.cos(math.pi * r / 20) ** 2 for r in range(10)]
        + [0.2] * (ROUNDS - 14),
    ),
    ("linear-warmup", {"warmup_rounds": 5}, [0.2, 0.4, 0.6, 0.8] + [1.0] * (ROUNDS - 4)),
    ("inverse-sqrt", {"decay_rounds": 4}, [(1 + r / 4) ** -0.5 for r in range(ROUNDS)]),
    (
        "inverse-sqrt",
        {"decay_rounds": 1, "warmup_rounds": 3},
        [1 / 3, 2 / 3, 1.0] + [(1 + r) ** -0.5 for r in range(ROUNDS - 3)],
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "expected"), ROWS, ids=[f"{name}-{options}" for name, options, _ in ROWS]
)
def test_each_round_has_its_factor(
    name: str, options: dict[str, Any], expected: list[float]
) -> None:
    schedule = schedules.build(name, options)
    factors = [schedule.factor(round_num) for round_num in range(ROUNDS)]
    assert factors == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_every_schedule_has_a_row() -> None:
    assert {name for name, _, _ in ROWS} == set(tables.SCHEDULES)


@pytest.mark.parametrize("name", tables.SCHEDULES)
def test_factors_stay_between_0_and_1_in_runs_of_any_length(name: str) -> None:
    schedule = schedules.build(name, num_rounds=100)
    for round_num in (0, 1, 99, 100, 101, 10**6, 2**31):
        assert 0.0 <= schedule.factor(round_num) <= 1.0


@pytest.mark.parametrize(
    ("options", "decay_rounds"), [({}, 30), ({"warmup_rounds": 10}, 20), ({"decay_rounds": 5}, 5)]
)
def test_cosine_ends_with_the_run_unless_decay_rounds_is_set(
    options: dict[str, Any], decay_rounds: int
) -> None:
    schedule = schedules.build("cosine", options, num_rounds=30)
    assert schedule.options["decay_rounds"] == decay_rounds
    warmup_rounds = options.get("warmup_rounds", 0)
    assert schedule.factor(warmup_rounds + decay_rounds - 1) > 0.0
    assert schedule.factor(warmup_rounds + decay_rounds) == 0.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosinus", {}, r"^unknown schedule 'cosinus'; choose one of constant, cosine, expon"),
        ("constant", {"decay_rounds": 3}, "^constant has no option 'decay_rounds'; it takes none"),
        ("cosine", {"decay_rounds": -1}, "decay_rounds -1: choose a whole number from 0 to"),
        ("cosine", {"final_factor": 1.5}, "final_factor 1.5: choose .* from 0 to 1"),
        ("cosine", {"warmup_rounds": 10}, "^cosine: warmup_rounds = 10 leaves none of .* 10 round"),
        ("linear-warmup", {"warmup_rounds": 2.5}, "warmup_rounds 2.5: choose a whole number"),
        ("inverse-sqrt", {"decay_rounds": 0}, "decay_rounds 0: choose a whole number from 1"),
        ("exponential", {"decay_factor": 0.0}, "decay_factor 0.0: choose a"),
        ("exponential", {"staircase": 1}, "staircase 1: choose true or false"),
        ("step", {"boundaries": [5, 9]}, r"^step: boundaries = \[5.0, 9.0\] but factors = \[0.1\]"),
        ("step", {"boundaries": [5, 5], "factors": [0.5, 0.1]}, "do not ascend"),
        ("step", {"boundaries": [9, 5], "factors": [0.5, 0.1]}, "do not ascend"),
        ("step", {"boundaries": 5.5}, "are not whole numbers of rounds"),
        ("step", {"boundaries": 0}, "step option boundaries 0: choose"),
        ("step", {"boundaries": []}, "the list has 0 numbers"),
        ("step", {"factors": 1.5}, "step option factors 1.5: choose .* from 0 to 1"),
    ],
)
def test_a_schedule_with_missing_or_contradictory_options_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        schedules.build(name, options, num_rounds=10)
    assert "\n" not in str(error.value)


def test_without_a_run_a_decay_needs_its_rounds() -> None:
    with pytest.raises(ConfigError, match=r"^cosine: the number of rounds is not known here; give"):
        schedules.build("cosine")
