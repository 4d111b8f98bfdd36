from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedcli.reports import comparison, tables
from fedcli.reports.comparison import Estimate
from fedcli.runs import record
from fedcli.runs.record import RunRecord
from tests.kit.runs import write_run

MOMENTUM = "[run.server_options]\nmomentum = 0.9\n"


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    """Returns two seeds of one configuration, then one of another."""
    configs = ["seed = 1\nthreads = 1", "seed = 2\nthreads = 2", f"seed = 1\n{MOMENTUM}"]
    finals = [0.7, 0.8, 0.9]
    return [
        record.load_run(write_run(tmp_path / f"run{index}", [0.3, final], config=config))
        for index, (config, final) in enumerate(zip(configs, finals, strict=True))
    ]


def test_estimate_is_mean_and_student_interval() -> None:
    # Worked by hand: the std of 1, 2, 3 is 1; Student's t for 2 degrees of freedom is 4.3027.
    found = comparison.estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3))
    assert comparison.estimate([0.5]) == Estimate(0.5, None, 1)
    assert comparison.estimate([]) is None


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (30, 2.0423), (31, 2.0395), (60, 2.0003), (1000, 1.9623)],
)
def test_t_quantile_as_tabled(degrees: int, quantile: float) -> None:
    assert comparison.t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_differences_are_options_not_the_same_everywhere(runs: list[RunRecord]) -> None:
    assert comparison.differences(runs) == {
        "seed": [1, 2, 1],
        "threads": [1, 2, None],
        "server_options.momentum": [None, None, 0.9],
    }
    assert comparison.differences(runs[:1]) == {}
    assert comparison.provenance_differences(runs) == {}


def test_seeds_of_one_configuration_are_put_together(runs: list[RunRecord]) -> None:
    groups = comparison.group_by_config(runs)
    assert [[run.path.name for run in group.runs] for group in groups] == [
        ["run0", "run1"],
        ["run2"],
    ]
    assert [group.options for group in groups] == [
        {"server_options.momentum": None},
        {"server_options.momentum": 0.9},
    ]


def test_table_over_seeds(runs: list[RunRecord]) -> None:
    table = tables.over_seeds(runs, [0.85])
    assert table is not None
    assert table.headers[0] == "--server-option momentum"
    cells = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    half = 12.7062 * math.sqrt(0.005) / math.sqrt(2)
    assert cells[0]["online accuracy"] == f"0.7500 ± {half:.4f}"
    assert (cells[0]["seeds"], cells[0]["rounds to 0.85"]) == ("2", "2.0 (1 of 2)")
    assert cells[1]["test accuracy"] == "1.0000"
    assert tables.over_seeds([runs[0], runs[2]], []) is None


def test_useful_targets_are_those_that_are_reached(runs: list[RunRecord]) -> None:
    assert comparison.useful_targets(runs) == [0.8, 0.9, 0.95]
    assert comparison.useful_targets(runs[1:2]) == [0.8, 0.9]


def test_rounds_as_csv_have_every_metric_by_its_path(runs: list[RunRecord]) -> None:
    table = tables.rounds_csv(runs[:2])
    assert table.headers[:3] == [
        "run",
        "round",
        "client_work/train/sparse_categorical_accuracy",
    ]
    assert table.headers[-1] == "evaluation/test/num_batches"
    assert [row[:3] for row in table.rows] == [
        [str(run.path), str(number), str(accuracy)]
        for run, final in zip(runs, [0.7, 0.8], strict=False)
        for number, accuracy in ((1, 0.3), (2, final))
    ]


def test_runs_are_grouped_whatever_else_was_written_of_them(tmp_path: Path) -> None:
    configs = [
        "seed = 1\nthreads = 1\ncsv = true",
        "seed = 2\neval_every = 1\ncheckpoint_every = 3",
    ]
    runs = [
        record.load_run(write_run(tmp_path / f"run{index}", [0.5], config=config))
        for index, config in enumerate(configs)
    ]
    assert len(comparison.group_by_config(runs)) == 1


def test_how_often_is_evaluated_matters_where_it_ends_the_run(tmp_path: Path) -> None:
    configs = [f'stop_at = "accuracy=0.9"\neval_every = {every}' for every in (1, 2)]
    runs = [
        record.load_run(write_run(tmp_path / f"run{index}", [0.5], config=config))
        for index, config in enumerate(configs)
    ]
    groups = comparison.group_by_config(runs)
    assert [group.options for group in groups] == [{"eval_every": 1}, {"eval_every": 2}]


def of_data(path: Path, name: str, fingerprint: str, seed: int = 1, options: str = "") -> RunRecord:
    """Returns a run whose data have the given name and fingerprint."""
    write_run(path, [0.5], config=f"seed = {seed}\n{options}")
    file = path / "config.toml"
    text = file.read_text().replace('data = "made"', f'data = "{name}"')
    file.write_text(f'{text}data = "{fingerprint}"\n')
    return record.load_run(path)


def test_runs_of_different_data_are_not_put_together(tmp_path: Path) -> None:
    runs = [
        of_data(tmp_path / "a", "x.h5", "blake2b:1"),
        of_data(tmp_path / "b", "x.h5", "blake2b:2"),
    ]
    groups = comparison.group_by_config(runs)
    assert [group.options for group in groups] == [
        {"(data)": "blake2b:1"},
        {"(data)": "blake2b:2"},
    ]
    runs = [
        of_data(tmp_path / "c", "x.h5", "blake2b:1"),
        of_data(tmp_path / "d", "y.h5", "blake2b:2"),
    ]
    groups = comparison.group_by_config(runs)
    assert [group.options for group in groups] == [{"data": "x.h5"}, {"data": "y.h5"}]


def test_runs_of_an_algorithm_whose_file_has_changed_are_not_put_together(tmp_path: Path) -> None:
    runs = []
    for seed, digest in ((1, "aa"), (2, "aa"), (3, "bb")):
        write_run(tmp_path / digest / str(seed), [0.5], config=f"seed = {seed}")
        file = tmp_path / digest / str(seed) / "config.toml"
        file.write_text(f'{file.read_text()}algorithm = "{digest}"\nmetrics = "{seed}"\n')
        runs.append(record.load_run(file.parent))
    groups = comparison.group_by_config(runs)
    assert [len(group.runs) for group in groups] == [2, 1]
    assert [group.options for group in groups] == [{"(algorithm)": "aa"}, {"(algorithm)": "bb"}]


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    runs = [
        of_data(tmp_path / "a", "here/x.h5", "blake2b:1", seed=1),
        of_data(tmp_path / "b", "there/x.h5", "blake2b:1", seed=2),
    ]
    assert [len(group.runs) for group in comparison.group_by_config(runs)] == [2]


def dealt(path: Path, seed: int, partition_seed: int) -> RunRecord:
    """Returns a run with the given seed, and the given seed of its partition."""
    data = f"blake2b:{'1' * 64}; partition shards clients=10 seed={partition_seed} shards=2"
    options = f"[run.partition_options]\nseed = {partition_seed}\n"
    return of_data(path, "x.h5", data, seed, options)


def test_a_partition_drawn_anew_for_each_seed_is_a_repetition(tmp_path: Path) -> None:
    runs = [dealt(tmp_path / f"run{seed}", seed, partition_seed=10 + seed) for seed in (1, 2, 3)]
    (group,) = comparison.group_by_config(runs)
    assert group.runs == runs
    # If one seed has two partitions, the seed of the partition belongs to the configuration.
    more = [*runs, dealt(tmp_path / "again", 1, partition_seed=12)]
    groups = comparison.group_by_config(more)
    assert [[run.path.name for run in group.runs] for group in groups] == [
        ["run1"],
        ["run2", "again"],
        ["run3"],
    ]


def test_long_values_show_where_they_differ(tmp_path: Path) -> None:
    table = tables.what_differs([dealt(tmp_path / f"run{each}", 1, each) for each in (1, 2)])
    assert table is not None
    (values,) = [row[1:] for row in table.rows if row[0] == "(data)"]
    assert [value[-15:] for value in values] == ["seed=1 shards=2", "seed=2 shards=2"]


def test_json_of_groups_has_rounds_to_targets(runs: list[RunRecord]) -> None:
    groups = tables.as_json(runs, [0.75, 0.85])["groups"]
    assert groups[0]["rounds_to_accuracy"] == {
        "0.75": {"mean": 2.0, "half_width_95": 0.0, "count": 2},
        "0.85": {"mean": 2.0, "half_width_95": None, "count": 1},
    }


def test_runs_of_one_seed_narrow_no_interval(runs: list[RunRecord], tmp_path: Path) -> None:
    twin = record.load_run(write_run(tmp_path / "twin", [0.3, 0.7], config="seed = 1"))
    table = tables.over_seeds([runs[0], twin], [])
    assert table is not None
    assert table.rows[0][:3] == ["all runs", "1 (of 2 runs)", "0.3000"]
    assert tables.over_seeds([runs[0], runs[0]], []) == table
    alone, more = (tables.over_seeds(each, []) for each in (runs[:2], [runs[0], twin, runs[1]]))
    assert alone is not None
    assert more is not None
    assert more.rows[0][1] == "2 (of 3 runs)"
    assert more.rows[0][2:] == alone.rows[0][2:]
    told = tables.as_json([runs[0], twin], [])["groups"][0]
    assert told["final"]["online"]["accuracy"] == {
        "mean": 0.7,
        "half_width_95": None,
        "count": 1,
    }
    assert told["averaged"] == [str(runs[0].path)]
