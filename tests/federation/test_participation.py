from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.federation.participation import DROPPED_OUT, LATE, REPORTED, SURPLUS, Participation
from fedcli.runs.files import folder
from fedcli.runs.opening import open_federation
from tests.kit.training import make_config, results, train

IDS = [f"w{index:03}" for index in range(200)]
CLOCK: dict[str, Any] = {
    "sampling": "uniform",
    "client_dropout": 0.3,
    "client_speeds": (100.0, 10.0, 1.0),
    "communication_seconds": 0.25,
    "deadline": 30.0,
    "over_selection": 0.5,
    "min_reports": 2,
}


def ten(client_id: str) -> int:
    return 10


def test_the_share_that_drops_out_is_the_chance() -> None:
    participation = Participation(seed=3, dropout=0.25)
    counts = [
        participation.report(each, IDS, ten).outcomes.count(DROPPED_OUT) for each in range(100)
    ]
    # The mean of 20,000 draws has a standard deviation of 0.0031; four times this is allowed.
    assert abs(np.mean(counts) / len(IDS) - 0.25) < 0.0123
    assert len(set(counts)) > 5


@pytest.mark.parametrize(("chance", "num_reports"), [(0.0, 200), (1.0, 0)])
def test_all_or_nobody_reports(chance: float, num_reports: int) -> None:
    round_reports = Participation(seed=0, dropout=chance).report(0, IDS, ten)
    assert len(round_reports.reports) == num_reports
    assert round_reports.outcomes.count(DROPPED_OUT) == 200 - num_reports
    assert round_reports.seconds is None
    assert round_reports.round_seconds is None


def test_who_drops_out_depends_on_nobody_else() -> None:
    participation = Participation(seed=3, dropout=0.5)
    whole = {IDS[place] for place in participation.report(7, IDS, ten).reports}
    some = IDS[40:60]
    assert {some[place] for place in participation.report(7, some, ten).reports} == whole & set(
        some
    )
    assert {IDS[place] for place in participation.report(8, IDS, ten).reports} != whole


def test_copies_of_a_client_drop_out_together() -> None:
    participation = Participation(seed=1, dropout=0.5)
    twice = sorted([*IDS[:20], *IDS[:20]])
    reports = participation.report(0, twice, ten).reports
    assert 0 < len(reports) < 40
    assert {place ^ 1 for place in reports} == set(reports)


def test_tiers_are_kept_and_evenly_filled() -> None:
    participation = Participation(seed=5, speeds=(1.0, 2.0, 4.0))
    many = [participation.speed(f"c{index}") for index in range(3000)]
    assert all(abs(many.count(speed) - 1000) < 100 for speed in (1.0, 2.0, 4.0))
    again = Participation(seed=5, dropout=0.5, speeds=(1.0, 2.0, 4.0))
    assert [again.speed(f"c{index}") for index in range(3000)] == many


def test_time_is_examples_over_speed_and_communication() -> None:
    participation = Participation(seed=5, speeds=(1.0, 4.0), communication_seconds=0.5)
    for client_id in IDS[:20]:
        assert (
            participation.report_seconds(client_id, 12) == 12 / participation.speed(client_id) + 0.5
        )
    round_reports = participation.report(0, IDS, ten)
    assert round_reports.round_seconds == 10.5
    assert round_reports.metrics(2.0)["virtual_seconds"] == 12.5


def test_reports_after_the_deadline_are_late_and_the_round_lasts_until_it() -> None:
    participation = Participation(seed=5, speeds=(1.0, 4.0), deadline=5.0)
    round_reports = participation.report(0, IDS, ten)
    fast = [place for place, each in enumerate(IDS) if participation.speed(each) == 4.0]
    assert list(round_reports.reports) == fast
    assert (round_reports.outcomes.count(LATE), round_reports.round_seconds) == (
        200 - len(fast),
        5.0,
    )
    at_once = Participation(seed=5, speeds=(1.0, 4.0), deadline=10.0).report(0, IDS, ten)
    assert (len(at_once.reports), at_once.round_seconds) == (200, 10.0)


def test_the_first_reports_are_used_and_ties_go_by_position() -> None:
    participation = Participation(seed=5, speeds=(1.0, 4.0))
    fast = [place for place, each in enumerate(IDS) if participation.speed(each) == 4.0]
    round_reports = participation.report(0, IDS, ten, 20)
    assert list(round_reports.reports) == fast[:20]
    assert (round_reports.outcomes.count(SURPLUS), round_reports.round_seconds) == (180, 2.5)
    more = participation.report(0, IDS, ten, len(fast) + 1)
    slow = next(place for place, each in enumerate(IDS) if participation.speed(each) == 1.0)
    assert list(more.reports) == sorted([*fast, slow])
    assert more.round_seconds == 10.0


def test_every_client_has_its_outcome_and_time() -> None:
    participation = Participation(seed=5, dropout=0.4, speeds=(1.0, 2.0, 4.0), deadline=8.0)
    round_reports = participation.report(3, IDS, ten, 50)
    assert set(round_reports.outcomes) == {REPORTED, DROPPED_OUT, LATE, SURPLUS}
    assert round_reports.seconds is not None
    for client_id, outcome, at in zip(
        IDS, round_reports.outcomes, round_reports.seconds, strict=True
    ):
        expected = None if outcome == DROPPED_OUT else participation.report_seconds(client_id, 10)
        assert at == expected
        assert (outcome == LATE) == (at is not None and at > 8.0)
    assert round_reports.outcomes.count(REPORTED) == 50
    assert [IDS[place] for place in round_reports.reports] == [
        each
        for each, outcome in zip(IDS, round_reports.outcomes, strict=True)
        if outcome == REPORTED
    ]


def test_a_round_with_too_few_reports_is_skipped() -> None:
    participation = Participation(seed=3, dropout=0.5, min_reports=5)
    for round_num in range(50):
        round_reports = participation.report(round_num, IDS[:8], ten)
        assert round_reports.is_skipped == (len(round_reports.reports) < 5)


def test_an_empty_cohort_has_an_outcome() -> None:
    round_reports = Participation(seed=0, speeds=(1.0,), min_reports=1).report(0, [], ten)
    assert (round_reports.reports, round_reports.round_seconds) == ((), 0.0)
    assert round_reports.is_skipped


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_counts_who_reports_and_keeps_a_clock(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(**CLOCK, rounds=8))
    clock = 0.0
    for line in lines_of(tmp_path / "run"):
        metrics = line["participation"]
        assert metrics["num_selected"] == 6  # the 4 clients wanted, and 50 % more
        parts = ("num_reports", "num_dropped_out", "num_late", "num_surplus")
        assert sum(metrics[name] for name in parts) == 6
        assert metrics["num_reports"] <= 4
        clock += metrics["round_seconds"]
        assert metrics["virtual_seconds"] == clock
        assert metrics["round_seconds"] <= 30.0


def test_without_its_options_there_is_no_participation(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(rounds=2))
    assert all("participation" not in line for line in lines_of(tmp_path / "run"))


def test_only_those_who_report_are_trained(tmp_path: Path) -> None:
    config = make_config(client_dropout=0.5, rounds=5, clients="6")
    train(tmp_path / "run", config)
    opened = open_federation(config)
    assert opened.sampled_clients.participation is not None
    assert opened.sampled_clients.cohorts.fixed is not None
    for round_num, line in enumerate(lines_of(tmp_path / "run")):
        reports = opened.sampled_clients.participation.report(
            round_num, opened.sampled_clients.cohorts.fixed, ten
        ).reports
        sizes = [
            opened.splits["train"].num_examples(opened.sampled_clients.cohorts.fixed[each])
            for each in reports
        ]
        trained = sum(map(opened.plan.num_visits, sizes))
        assert line["client_work"]["train"]["num_examples"] == trained


def test_skipped_rounds_leave_the_model_and_are_counted(tmp_path: Path) -> None:
    values = {"client_dropout": 0.5, "rounds": 6, "server_options": {"momentum": 0.9}}
    train(tmp_path / "run", make_config(**values, min_reports=3, eval_every=1))
    lines = lines_of(tmp_path / "run")
    skipped = [line["participation"]["is_skipped"] for line in lines[1:]]
    assert 0 < sum(skipped) < 6
    for before, line in pairwise(lines):
        is_same = line["evaluation"]["train"] == before["evaluation"]["train"]
        assert is_same == bool(line["participation"]["is_skipped"])
        num_examples = line["client_work"]["train"]["num_examples"]
        assert (num_examples == 0) == bool(line["participation"]["is_skipped"])


@pytest.mark.parametrize("threads", [1, 7])
def test_threads_change_no_byte(tmp_path: Path, threads: int) -> None:
    train(tmp_path / "two", make_config(**CLOCK))
    train(tmp_path / "other", make_config(**CLOCK, threads=threads))
    name = "metrics.jsonl"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert results(tmp_path / "two")["weights"] == results(tmp_path / "other")["weights"]


def test_participation_goes_to_toml_and_back() -> None:
    config = settings.from_options(CLOCK)
    again = settings.from_options(settings.from_toml(settings.to_toml(config, {}), "config.toml"))
    assert again == config
    assert settings.from_options({"client_speeds": "100, 1e1,1"}).client_speeds == (100, 10, 1)
    assert settings.from_options({"client_speeds": 7}).client_speeds == (7.0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"client_dropout": 1.1}, "--client-dropout 1.1: choose a finite number from 0 to 1"),
        ({"client_dropout": float("nan")}, "--client-dropout nan"),
        ({"client_speeds": "10,fast"}, "--client-speeds 'fast': choose a finite number from 1e-09"),
        ({"client_speeds": "10,"}, "--client-speeds ''"),
        ({"client_speeds": [0.0]}, "--client-speeds 0.0: choose"),
        ({"client_speeds": []}, "--client-speeds: 0 speeds; choose 1 to 1000"),
        ({"deadline": 3.0}, "--deadline 3 needs a virtual clock; .* --client-speeds 100,10"),
        ({"deadline": 0.0, "client_speeds": "1"}, "--deadline 0.0: choose"),
        ({"communication_seconds": 1.0}, "--communication-seconds 1 needs a virtual clock"),
        ({"over_selection": 0.3, "sampling": "uniform"}, "--over-selection 0.3 needs a virtual"),
        ({"over_selection": 0.3, "client_speeds": "1"}, "--sampling fixed does not draw N"),
        (
            {"over_selection": 0.3, "client_speeds": "1", "sampling": "poisson"},
            "--sampling poisson does not draw N clients",
        ),
        (
            {"client_speeds": "1", "deadline": 2, "communication_seconds": 2},
            "--deadline 2 leaves no time after --communication-seconds 2",
        ),
        ({"min_reports": 0}, "--min-reports 0: choose a whole number from 1"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.from_options(values)


def test_more_reports_than_clients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--min-reports 5 exceeds the cohort of 4: .* 1 to 4"):
        train(tmp_path / "run", make_config(min_reports=5))
    assert not (tmp_path / "run").exists()


def test_more_cannot_be_drawn_than_there_are(tmp_path: Path) -> None:
    values = {**CLOCK, "clients": "10", "client_dropout": 0.0, "deadline": None, "rounds": 1}
    train(tmp_path / "run", make_config(**values))
    assert lines_of(tmp_path / "run")[0]["participation"]["num_selected"] == 12
    assert folder.read_completed(tmp_path / "run", 0) == []
