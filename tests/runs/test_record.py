from __future__ import annotations

from pathlib import Path

import pytest

from fedcli.errors import RunError
from fedcli.runs import record
from tests.kit.runs import write_run


def test_series_are_online_and_each_split(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [0.2, 0.4, 0.6], eval_every=2, closing=0.9)
    run = record.load_run(path)
    assert run.series_names == ["online", "test"]
    assert run.series("online", "accuracy") == [(1, 0.2), (2, 0.4), (3, 0.6)]
    assert run.series("test", "accuracy") == [(2, 0.5), (3, 0.9)]
    assert run.judged_by == "test"
    assert (run.final("online", "loss"), run.final("test", "accuracy")) == (0.4, 0.9)
    assert (run.round_num, run.peak_memory_bytes) == (3, 2**26)
    assert run.seconds() == {"train": pytest.approx(0.09), "save": pytest.approx(0.03)}


def test_rounds_to_a_target_are_read_from_the_held_out_split(tmp_path: Path) -> None:
    run = record.load_run(write_run(tmp_path / "a", [0.2, 0.4, 0.6]))
    assert [run.rounds_to(each) for each in (0.25, 0.5, 0.75)] == [1, 2, None]


def test_numbers_that_are_not_finite_are_no_points(tmp_path: Path) -> None:
    run = record.load_run(write_run(tmp_path / "a", [0.2, None]))
    assert run.series("online", "loss") == [(1, 0.8)]
    assert run.final("online", "loss") is None


def test_run_without_a_round_has_nothing_to_show(tmp_path: Path) -> None:
    run = record.load_run(write_run(tmp_path / "a", [], config="seed = 1"))
    assert (run.round_num, run.series("online", "loss"), run.judged_by) == (0, [], "online")
    assert run.final("online", "loss") is None


def test_config_is_flat(tmp_path: Path) -> None:
    config = "seed = 3\n[run.server_options]\nmomentum = 0.9\n"
    run = record.load_run(write_run(tmp_path / "a", [0.5], config=config))
    assert run.options["server_options.momentum"] == 0.9
    assert run.options["seed"] == 3
    assert run.provenance == {"isa": "generic"}


@pytest.mark.parametrize(
    "text",
    [
        '{"round": 1, "client_work": {"train": {}}}\n',
        '{"round": 1, "client_work": 5}\n',
        '{"round": 1, "client_work": {"train": {"loss": "x"}}}\n',
        '{"round": 1, "evaluation": {"test": {"loss": 1.0}}}\n',
        '{"round": 1, "evaluation": 3}\n',
        '{"round": 1, "client_work"',
        "[1]\n",
    ],
)
def test_damaged_metrics_are_one_error(tmp_path: Path, text: str) -> None:
    path = write_run(tmp_path / "a", [0.5])
    (path / "metrics.jsonl").write_text(text)
    run = record.load_run(path)
    with pytest.raises(RunError, match="/a"):
        run.metrics  # noqa: B018 - read when asked for


def test_foreign_evaluation_is_an_error(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [0.5])
    (path / "evaluation.json").write_text('{"test": {"round": 1}}')
    run = record.load_run(path)
    with pytest.raises(RunError, match="holds no evaluation by split; delete it"):
        run.evaluation  # noqa: B018 - read when asked for


def test_damaged_timings_are_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [0.5])
    (path / "timings.jsonl").write_text('{"round": 1, "train": 2.0, "data": "x"}\n{"round"\n[]\n')
    assert record.load_run(path).seconds() == {"train": 2.0}
