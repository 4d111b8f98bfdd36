"""Groups of runs as rows: their options, the choice of the best, and their differences."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.reports import group_tables, html, text
from fedcli.reports.comparison import t_quantile
from fedcli.reports.group_curves import MOST_RUNS, figure_of, of_many
from fedcli.reports.groups import Groups, Member, group, members_of, parse_column
from fedcli.reports.significance import sign_flip_p
from fedcli.runs.record import load_run
from tests.kit.runs import write_run


def member(
    options: dict[str, Any],
    seed: int,
    validation: float,
    test: float,
    *,
    diverged: bool = False,
) -> Member:
    results = {
        "validation": {"accuracy": validation, "loss": 1 - validation},
        "test": {"accuracy": test, "loss": 1 - test},
    }
    setting = repr(sorted(options.items()))
    return Member(setting, options, (seed, None), results, diverged, False, Path("none"))


# The validation and test accuracy of seed 0, by algorithm and rate. Each next seed has 0.01 more.
FIGURES = {
    ("fedavg", 0.1): (0.80, 0.90),
    ("fedavg", 0.3): (0.85, 0.70),
    ("fedprox", 0.1): (0.75, 0.75),
    ("fedprox", 0.3): (0.60, 0.95),
}


def members(num_seeds: int = 6) -> list[Member]:
    found = []
    for (algorithm, rate), (validation, test) in FIGURES.items():
        options: dict[str, Any] = {"algorithm": algorithm, "client_lr": rate}
        if algorithm == "fedprox":
            options["algorithm_options.proximal_strength"] = 0.1
        found += [
            member(options, seed, validation + seed / 100, test + seed / 100)
            for seed in range(num_seeds)
        ]
    return found


def rows_of(groups: Groups) -> list[dict[str, Any]]:
    return [{**row.by, **row.best} for row in groups.rows]


def test_options_that_follow_from_others_are_no_columns() -> None:
    assert group(members()).by == ("algorithm", "client_lr")


def test_the_best_is_chosen_by_validation_and_never_by_test() -> None:
    found = group(members(), by=["algorithm"], best=["client_lr"])
    assert rows_of(found) == [
        {"algorithm": "fedavg", "client_lr": 0.3},
        {"algorithm": "fedprox", "client_lr": 0.1},
    ]
    assert [row.num_candidates for row in found.rows] == [2, 2]
    on_test = group(
        members(), by=["algorithm"], best=["client_lr"], select=parse_column("test.accuracy")
    )
    assert rows_of(on_test) == [
        {"algorithm": "fedprox", "client_lr": 0.3},
        {"algorithm": "fedavg", "client_lr": 0.1},
    ]
    said = group_tables.notes_on(found)
    assert (
        "client_lr 0.1 of fedprox is the smallest value that was tried; smaller values may be "
        "better" in said
    )
    notes = group_tables.notes_on(on_test)
    assert any("chosen by test.accuracy, not by validation data" in note for note in notes)
    by_loss = group(
        members(), by=["algorithm"], best=["client_lr"], select=parse_column("validation.loss")
    )
    assert rows_of(by_loss) == rows_of(found)


def test_without_validation_data_nothing_is_chosen() -> None:
    without = [
        Member(each.setting, each.options, each.repeat, {"test": each.results["test"]}, *rest)
        for each in members()
        for rest in [(each.has_diverged, each.has_failed, each.path)]
    ]
    with pytest.raises(ConfigError, match=r"no validation data to choose by.*--select-on test"):
        group(without, by=["algorithm"], best=["client_lr"])
    by_test = group(without, best=["client_lr"], select=parse_column("test.accuracy"))
    assert [dict(row.best) for row in by_test.rows]
    for split, remedy in (
        ("validation", "train with --validation 0.1"),
        ("central", "train on data that have this split"),
    ):
        fault = f"--best client_lr: these runs have no {split} data to choose by; {remedy}"
        with pytest.raises(ConfigError, match=fault):
            group(without, best=["client_lr"], select=parse_column(f"{split}.accuracy"))
    found = group(without)
    assert found.select is None
    means = [cell.mean for row in found.rows for cell in [row.cells["test.accuracy"]] if cell]
    wanted = sorted((test + 0.025 for _, test in FIGURES.values()), reverse=True)
    assert means == pytest.approx(wanted)


def test_means_intervals_and_paired_differences() -> None:
    rng = [0.013, -0.02, 0.031, 0.006, -0.011, 0.024]
    runs = [member({"algorithm": "a"}, seed, 0.9, 0.8 + rng[seed]) for seed in range(6)]
    runs += [
        member({"algorithm": "b"}, seed, 0.5, 0.7 + rng[seed] ** 2) for seed in reversed(range(5))
    ]
    first, second = group(runs, columns=[parse_column("test.accuracy")]).rows
    values = [0.8 + each for each in rng]
    found = first.cells["test.accuracy"]
    assert found is not None
    assert found.mean == pytest.approx(mean(values))
    assert found.std == pytest.approx(stdev(values))
    assert found.half_width == pytest.approx(t_quantile(5) * stdev(values) / math.sqrt(6))
    differences = [0.7 + rng[seed] ** 2 - values[seed] for seed in range(5)]
    assert second.difference is not None
    assert second.difference.estimate.mean == pytest.approx(mean(differences))
    assert second.difference.estimate.count == 5
    assert second.difference.p == sign_flip_p(differences) == 2 / 2**5
    assert second.difference.p_holm == second.difference.p
    notes = group_tables.notes_on(group(runs))
    text = (
        "with 5 seeds p is at least 0.0625, so no difference can be significant at 5 %; "
        "6 seeds are needed"
    )
    assert any(note.endswith(text) for note in notes)
    # The smallest p of three rows by Holm is 3 * 2 / 2^seeds: with 7 seeds it is below 0.05.
    endings = {
        5: "for 3 rows 0.188, so no difference can be significant at 5 %; 7 seeds are needed",
        7: "adjusted for 3 rows 0.0469",
    }
    for num_seeds, ending in endings.items():
        said = group_tables.notes_on(group(members(num_seeds)))
        assert any(note.endswith(ending) for note in said)


def test_a_diverged_run_is_left_out_and_its_row_is_last() -> None:
    runs = [member({"client_lr": 0.1}, seed, 0.5, 0.5) for seed in range(3)]
    runs += [member({"client_lr": 9.0}, seed, 0.9, 0.9, diverged=seed == 1) for seed in range(3)]
    found = group(runs)
    assert rows_of(found) == [{"client_lr": 0.1}, {"client_lr": 9.0}]
    table = group_tables.to_table(found)
    assert [row[2] for row in table.rows] == ["-", "1 diverged"]
    note = "1 run of these rows diverged and is left out of the means"
    assert note in group_tables.notes_on(found)
    cell = found.rows[1].cells["test.accuracy"]
    assert cell is not None
    assert (cell.mean, cell.count) == (0.9, 2)
    assert any(each.endswith("(2 of 3)") for each in table.rows[1])
    assert rows_of(group(runs, by=[], best=["client_lr"])) == [{"client_lr": 0.1}]


def test_rows_with_further_differences_are_refused() -> None:
    with pytest.raises(ConfigError, match="some runs of one row differ in client_lr; add it to"):
        group(members(), by=["algorithm"])
    with pytest.raises(ConfigError, match=r"no run has the option 'x'; they differ in .*client_lr"):
        group(members(), by=["x"])
    with pytest.raises(ConfigError, match=r"no run has the option 'client_rl'; did you mean"):
        group(members(), by=["client_rl"])


@pytest.mark.parametrize("name", ["test", "test.acc", "valid.loss", "rounds@2", "rounds@x", "time"])
def test_unknown_columns_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--columns "):
        parse_column(name)


def test_latex_prints_the_best_in_bold() -> None:
    groups = group(members(), by=["algorithm"], best=["client_lr"])
    written = text.to_latex(group_tables.to_table(groups, "std", label="tab:mine"))
    assert r"\label{tab:mine}" in written
    assert written.count(r"\toprule") == written.count(r"\midrule") == 1
    bold = [line for line in written.splitlines() if r"\textbf" in line]
    assert bold[0].startswith(r"fedavg & 0.3 & 6 & \textbf{0.8750 $\pm$ 0.0187} & 0.7250")
    assert r"\textbf{0.7750 $\pm$ 0.0187}" in bold[1]


def test_csv_is_one_row_per_group_with_plain_numbers() -> None:
    groups = group(members())
    rows = list(csv.DictReader(io.StringIO(text.to_csv(group_tables.to_csv_table(groups)))))
    assert len(rows) == 4
    for row, wanted in zip(rows, groups.rows, strict=True):
        assert row["algorithm"] == wanted.by["algorithm"]
        assert float(row["validation.accuracy.mean"]) == wanted.selected.mean  # type: ignore[union-attr]
        assert float(row["test.loss.half_width"]) >= 0
        assert row["seeds"] == "6"
    assert rows[0]["p"] == ""
    assert [float(row["p_holm"]) for row in rows[1:]] == [3 * 2 / 2**6] * 3


def write_runs(folder: Path) -> None:
    """Writes runs of two rates, each with two seeds of the run and of the partition."""
    for rate in (0.1, 0.3):
        for seed in range(2):
            for dealt in range(2):
                config = (
                    f'client_lr = {rate}\nseed = {seed}\npartition = "iid"\n'
                    f"partition_options = {{clients = 5, seed = {dealt}}}\n"
                )
                base = rate + seed / 100 + dealt / 10
                accuracies: list[float | None] = [base, base + 0.1, base + 0.2]
                write_run(folder / f"{rate}-{seed}-{dealt}", accuracies, config=config)


def test_seeds_of_run_and_partition_are_both_averaged_over(tmp_path: Path) -> None:
    write_runs(tmp_path)
    found = group(members_of(map(load_run, sorted(tmp_path.iterdir()))))
    assert rows_of(found) == [{"client_lr": 0.3}, {"client_lr": 0.1}]
    assert [len(row.members) for row in found.rows] == [4, 4]
    difference = found.rows[1].difference
    assert difference is not None
    assert difference.estimate.mean == pytest.approx(-0.2)
    assert difference.estimate.count == 4


def test_curves_are_means_with_bands(tmp_path: Path) -> None:
    write_runs(tmp_path)
    found = group(members_of(map(load_run, sorted(tmp_path.iterdir()))))
    figure = figure_of(found, "std")
    assert figure.title == "Runs by client_lr: test"
    assert figure.note == "mean over seeds; band: the standard deviation"
    accuracy = figure.curves["accuracy"]
    values = [0.3 + seed / 100 + dealt / 10 + 0.1 for seed in range(2) for dealt in range(2)]
    assert accuracy.series["client_lr=0.3"][0] == pytest.approx((1, mean(values)))
    low, high = mean(values) - stdev(values), mean(values) + stdev(values)
    assert accuracy.bands["client_lr=0.3"][0] == pytest.approx((1, low, high))
    assert figure_of(found, "none").curves["loss"].bands["client_lr=0.1"] == []


def test_many_runs_are_curves_of_means_unless_all_differ(tmp_path: Path) -> None:
    write_runs(tmp_path)
    runs = list(map(load_run, sorted(tmp_path.iterdir())))
    assert len(runs) == MOST_RUNS + 1
    figure = of_many(runs)
    assert figure is not None
    assert set(figure.curves["loss"].series) == {"client_lr=0.1", "client_lr=0.3"}
    assert of_many(runs[:-1]) is None  # so few that each has its curve
    assert of_many([*runs, runs[0]]) is None  # one of two equal runs would be missing
    page = html.page(runs, None, [])
    assert page.count("<polyline") == page.count("<polygon") == 4
    assert "mean over seeds; band: its 95 % confidence interval" in page
    assert html.page(runs[:-1], None, []).count("<polyline") == 2 * MOST_RUNS


def test_rounds_to_a_target_count_the_runs_that_reach_it(tmp_path: Path) -> None:
    write_runs(tmp_path)
    columns = [parse_column("rounds@0.5")]
    found = group(members_of(map(load_run, sorted(tmp_path.iterdir()))), columns=columns)
    table = group_tables.to_table(found, "none")
    assert table.headers[:3] == ["client_lr", "seeds", "rounds to 0.5"]
    # Accuracies grow by 0.1 a round. The four runs at rate 0.3 start from 0.4, 0.41, 0.5 and 0.51,
    # and those at rate 0.1 from 0.2, 0.21, 0.3 and 0.31.
    assert [row[2] for row in table.rows] == ["1.5", "3.0 (2 of 4)"]
