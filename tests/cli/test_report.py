from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import pytest

from tests.kit.command_line import Fedcli, WriteTff
from tests.kit.runs import write_run


def test_report_of_a_trained_run(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 4, "--eval-every", 2, "--out", "run")
    done = fedcli("report", "run")
    assert (done.code, done.err) == (0, "")
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    for split in ("train", "test"):
        told = evaluation[split]["over_clients"]["sparse_categorical_accuracy"]
        figures = [f"{told[name]:.4f}" for name in ("mean", "std", "p10", "p50", "p90")]
        figures += [f"{told['worst_decile']:.4f}", f"{told['jain_index']:.4f}"]
        row = [line.split() for line in done.out.splitlines() if line.startswith(split)]
        assert [split, "accuracy", *figures] in row
    for part in ("Loss by round", "Accuracy by round", "▲ train ", "■ online ", "aggregate"):
        assert part in done.out
    assert "peak memory" in done.out
    assert "\x1b" not in done.out
    same = fedcli("eval", "run")
    assert "Over clients with equal weights" in same.out


def test_an_interrupted_run_names_the_round_that_was_evaluated(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    write_run(tmp_path / "cut", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], eval_every=3)
    done = fedcli("report", "cut", "--html", "page.html")
    assert "Federated evaluation after round 6, of 7 completed\n" in done.out
    assert "after round 7" not in done.out
    page = Path("page.html").read_text()
    assert "Federated evaluation after round 6, of 7 completed<" in page
    assert "after round 7" not in page
    told = json.loads(fedcli("report", "cut", "--json").out)["runs"][0]
    assert told["evaluated_rounds"] == {"test": 6}
    assert told["final"]["test"]["accuracy"] == pytest.approx(0.7)


def test_a_run_that_goes_on_names_the_round_of_its_old_evaluation(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    """evaluation.json is that of round 4 until the continued run ends."""
    fedcli("train", "--rounds", 4, "--data-option", "clients=3", "--out", "run")
    lines = Path("run/metrics.jsonl").read_text()
    later = json.loads(lines.splitlines()[-1])
    Path("run/metrics.jsonl").write_text(lines + json.dumps({**later, "round": 5}) + "\n")
    done = fedcli("report", "run")
    assert "Federated evaluation after round 4, of 5 completed\n" in done.out
    assert "Over clients with equal weights, after round 4\n" in done.out
    write_run(tmp_path / "whole", [0.3, 0.7])
    rows = [" ".join(line.split()) for line in fedcli("report", "run", "whole").out.splitlines()]
    assert any(row.startswith("run rounds evaluated after") for row in rows)
    assert any(row.startswith("run 5 round 4 ") for row in rows)
    assert any(row.startswith("whole 2 round 2 ") for row in rows)


def test_an_evaluation_in_a_continued_run_replaces_that_of_its_old_end(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", [0.2, 0.4], eval_every=5, closing=0.5)
    further = write_run(tmp_path / "further", [0.2, 0.4, 0.6, 0.8], eval_every=3)
    for name in ("metrics.jsonl", "timings.jsonl"):
        (tmp_path / "run" / name).write_bytes((further / name).read_bytes())
    done = fedcli("report", "run")
    assert "Federated evaluation after round 3, of 4 completed\n" in done.out
    assert ["test", "0.3000", "0.7000", "-", "-"] in [x.split() for x in done.out.splitlines()]


def test_report_of_several_runs(fedcli: Fedcli, tmp_path: Path) -> None:
    for index in range(2):
        write_run(tmp_path / f"s{index}", [0.3, 0.7 + 0.1 * index], config=f"seed = {index}")
    done = fedcli("report", "s0", "s1", "--target", 0.75)
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert ["--seed", "0", "1"] in rows
    assert ["s0", "test", "2"] in rows
    assert any(row[:2] == ["all", "runs"] and "±" in row for row in rows)
    told = json.loads(fedcli("report", "s0", "s1", "--json").out)
    assert told["differences"] == {"seed": [0, 1]}
    assert told["groups"][0]["final"]["online"]["accuracy"]["mean"] == pytest.approx(0.75)
    assert [run["run"] for run in told["runs"]] == ["s0", "s1"]


def test_of_many_runs_the_best_are_shown_and_the_formats_have_all(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    for index in range(70):
        accuracy = (index * 37 % 70) / 100
        config = f"client_lr = {1 + index}.0"
        write_run(tmp_path / "runs" / f"r{index:02}", [accuracy, accuracy + 0.2], config=config)
    done = fedcli("report", "runs")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "70 runs, the highest accuracy first"
    table = lines[lines.index("Runs") :]
    assert "The first 60 of 70 rows; --format markdown prints all" in table
    shown = [line.split()[0] for line in table[3:63]]
    ranked = sorted(range(70), key=lambda index: -(index * 37 % 70))
    assert shown == [f"runs/r{index:02}" for index in ranked[:60]]
    assert len(lines) < 220
    for text_format in ("markdown", "csv"):
        whole = fedcli("report", "runs", "--format", text_format).out
        assert all(f"runs/r{index:02}" in whole for index in range(70))
    assert len(json.loads(fedcli("report", "runs", "--json").out)["runs"]) == 70
    some = fedcli("report", *(f"runs/r{index:02}" for index in range(60))).out
    assert "The first 60" not in some
    assert "highest accuracy first" not in some


@pytest.mark.parametrize("target", ["nan", "-0.1", "1.1", "x"])
def test_a_target_is_an_accuracy(fedcli: Fedcli, tmp_path: Path, target: str) -> None:
    write_run(tmp_path / "a", [0.3, 0.7])
    done = fedcli("report", "a", "--target", target)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "--target" in done.err
    assert target in done.err


def test_report_formats(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], closing=0.6)
    assert "| test | 0.4000 | 0.6000 | 40 | 3 |" in fedcli("report", "a", "--format=markdown").out
    assert "test & 0.4000 & 0.6000 & 40 & 3 \\\\" in fedcli("report", "a", "--format=latex").out
    assert "test,0.4000,0.6000,40,3\n" in fedcli("report", "a", "--format=csv").out
    assert fedcli("report", "a", "--format=csv", "--json").code == 2
    done = fedcli("report", "a", "--format=json")
    assert (done.code, done.err.count("\n"), "--json prints all" in done.err) == (2, 1, True)


def test_csv_file_has_every_round(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5, None])
    done = fedcli("report", "a", "--csv", "rounds.csv", "-q")
    assert done.code == 0
    rows = list(csv.DictReader((tmp_path / "rounds.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert [row["client_work/train/loss"] for row in rows] == ["0.5", ""]


def test_files_of_a_run_are_not_written_over(fedcli: Fedcli, tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [0.5])
    before = (path / "metrics.jsonl").read_bytes()
    for option in ("--csv", "--html"):
        done = fedcli("report", "a", option, "a/metrics.jsonl")
        assert (done.code, "choose another name" in done.err) == (1, True)
    assert (path / "metrics.jsonl").read_bytes() == before


def test_config_diff(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], config="seed = 1\n[run.server_options]\nmomentum = 0.9\n")
    write_run(tmp_path / "b", [0.5], config="seed = 1")
    done = fedcli("report", "a", "--config-diff", "b")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()][-1] == [
        *("--server-option", "momentum", "0.9", "-")
    ]
    told = json.loads(fedcli("report", "a", "--config-diff", "b", "--json").out)
    assert told["options"] == {"server_options.momentum": [0.9, None]}
    assert "do not differ" in fedcli("report", "a", "--config-diff", "a").out
    assert fedcli("report", "a", "b", "--config-diff", "a").code == 1


@pytest.mark.parametrize(
    "more",
    [
        *(("--html", "x"), ("--plot", "x.svg"), ("--csv", "x"), ("--clients-csv", "x")),
        ("--target", "0.5"),
    ],
)
def test_config_diff_writes_nothing_and_says_so(
    fedcli: Fedcli, tmp_path: Path, more: tuple[str, str]
) -> None:
    write_run(tmp_path / "a", [0.5])
    done = fedcli("report", "a", "--config-diff", "a", *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"--config-diff and {more[0]} contradict each other" in done.err


@pytest.mark.parametrize("arguments", [["nowhere"], ["."]])
def test_no_run_is_one_line(fedcli: Fedcli, arguments: list[str]) -> None:
    done = fedcli("report", *arguments)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert fedcli("report").code == 2


def test_changed_data_are_told(fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path) -> None:
    data = write_tff()
    for name in ("a", "b"):
        fedcli("train", "--data", data, "--rounds", 1, "--out", name)
    assert fedcli("report", "a", "--json").err == ""
    data.write_bytes(data.read_bytes() + b"\0")
    done = fedcli("report", "a", "--html", "a.html")
    note = f"{data} has changed since the run began; the results of a are those of the earlier data"
    assert (done.code, done.err.count(note)) == (0, 1)
    assert note in html.unescape((tmp_path / "a.html").read_text())
    told = fedcli("report", "a", "b", "-q")
    assert (told.code, told.err) == (0, "")
    assert fedcli("report", "a", "--config-diff", "b").err.count("has changed") == 2
    data.unlink()
    assert fedcli("report", "a").err == ""


def test_several_runs_without_evaluations_are_drawn_by_what_training_measured(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    for index in range(2):
        write_run(tmp_path / f"s{index}", [0.3, 0.7], eval_every=5, closing=0.75)
    done = fedcli("report", "s0", "s1")
    assert "● s0 (online) 0.7000   ▲ s1 (online) 0.7000" in done.out
    assert done.out.startswith("Loss by round\n")


def test_a_report_says_which_round_is_kept(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.3, 0.7, 0.5], config='keep_best = "accuracy"')
    rows = [line.split() for line in fedcli("report", "a").out.splitlines()]
    assert ["best", "round", "2", "by", "accuracy,", "kept"] in rows
    assert json.loads(fedcli("report", "a", "--json").out)["runs"][0]["best_round"] == 2
