"""`fedcli sweep` and `fedcli report` of studies and folders of runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedcli.runs.files.folder import checkpoint_rounds, read_metrics
from fedcli.sweeps.trials import read_trials
from tests.kit.command_line import Fedcli, assert_is_one_line, draw_on_terminal
from tests.kit.waiting import ENDLESS, PATIENCE_SECONDS, started, wait_until

RUN = ("--rounds", "4", "--validation", "0.2", "--data-option", "clients=12", "--eval-every", "1")
GRID = ("--grid", "client-lr=0.02,0.1", "--grid", "algorithm=fedavg,scaffold")


def test_a_sweep_prints_its_table_and_a_line_a_run(fedcli: Fedcli) -> None:
    done = fedcli("sweep", *GRID, "--seeds", "0..1", *RUN, "--out", "study")
    assert done.code == 0
    said = [line for line in done.err.splitlines() if line.startswith("fedcli: run ")]
    assert len(said) == 8
    assert said[0].startswith("fedcli: run 1: client_lr=0.02, algorithm=fedavg, seed 0: validation")
    lines = done.out.splitlines()
    assert lines[0].startswith("Runs by client_lr, algorithm; mean ± half the 95 % confidence")
    figures = [float(line.split()[3]) for line in lines[3:7]]
    assert figures == sorted(figures, reverse=True)
    assert "with 2 seeds p is at least 0.5" in done.out
    assert lines[-1].split() == ["More", "fedcli", "report", "study"]
    again = fedcli("sweep", "--resume", "study")
    assert again.out == done.out
    assert "8 runs, 8 were there already" in again.err
    assert fedcli("sweep", "--resume", "study", "-q").out == "study\n"
    printed = json.loads(fedcli("sweep", "--resume", "study", "--json").out)
    assert len(printed["trials"]) == 8
    assert len(printed["points"]) == 4
    report = fedcli("report", "study").out
    assert done.out.startswith(report)


def test_a_study_file_is_overridden_by_options(fedcli: Fedcli, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'seeds = 3\n[run]\nrounds = 50\n[grid]\nclient_lr = [0.1, 0.2]\n[[case]]\nname = "A"\n'
    )
    done = fedcli(
        *("sweep", "mine.toml", "--rounds", "2", "--seeds", "2", "--grid", "client-lr=0.3"),
        *("--grid", "epochs=1,2", "--dry-run"),
    )
    assert (done.code, done.err) == (0, "")
    assert [line.split(maxsplit=1) for line in done.out.splitlines()[2:4]] == [
        ["1", "A, client_lr=0.3, epochs=1"],
        ["2", "A, client_lr=0.3, epochs=2"],
    ]
    assert done.out.splitlines()[-1] == "2 points with 2 seeds (0, 1): 4 runs"
    assert [each.name for each in tmp_path.iterdir()] == ["mine.toml"]
    halved = fedcli("sweep", "--grid", "epochs=1,2,3,4", "--halving", "2,2", "--dry-run")
    assert halved.out.splitlines()[-1] == (
        "halving: 4 points to round 2, 2 points to round 4, 1 point to round 8, 1 point to round 10"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grid", "client_lr"), "--grid 'client_lr' is not of the form option=values"),
        (("--grid", "epochs=1", "--grid", "epochs=2"), "--grid epochs is given twice"),
        (("--grid", "x=1"), "grid: there is no option 'x'"),
        (("--grid", "epochs=1,1.5"), "grid: epochs 1.5"),
        (("--seeds", "x"), "seeds 'x'"),
        (("--random", "2"), "lacks ranges"),
        (("--random", "2", "--range", "epochs=1..2"), "range epochs 1..2: give log:"),
        (("--halving", "x"), "--halving x: give a number of rounds"),
        (("--jobs", "0"), "--jobs 0: choose 1 to"),
        (("none.toml",), "cannot read none.toml"),
        (("--resume", "none"), "there is no study none"),
        (("--grid", "clients=2", "--algorithm", "none"), "unknown --algorithm 'none'"),
        (("--threads", "2"), "each run of a study has one thread"),
    ],
)
def test_mistakes_are_one_line(fedcli: Fedcli, arguments: tuple[str, ...], words: str) -> None:
    assert_is_one_line(fedcli("sweep", *arguments), words)


@pytest.mark.parametrize(
    ("command", "option", "value", "words"),
    [
        ("sweep", "--client-lr", "0.1,1", "takes one value; --grid client_lr=0.1,1 runs each"),
        ("sweep", "--algorithm", "mime,fedavg", "--grid algorithm=mime,fedavg runs each of them"),
        ("sweep", "--seed", "0,1", "--seed takes one value; --seeds 0,1 runs each of them"),
        ("train", "--client-lr", "0.1,1", "; fedcli sweep --grid client_lr=0.1,1 runs each"),
        ("train", "--model", "lenet5,mlp-2nn", "fedcli sweep --grid model=lenet5,mlp-2nn runs"),
        ("train", "--seed", "0,1", "--seed takes one value; fedcli sweep --seeds 0,1 runs each"),
    ],
)
def test_a_list_of_values_is_answered_with_the_grid(
    fedcli: Fedcli, command: str, option: str, value: str, words: str
) -> None:
    for arguments in ((option, value), (f"{option}={value}",)):
        done = fedcli(command, *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert words in done.err


def test_resume_takes_the_study_from_its_folder(fedcli: Fedcli) -> None:
    done = fedcli("sweep", "--resume", "study", "--rounds", "3")
    assert done.code == 2
    assert "--resume takes the study from its folder" in done.err


def test_failures_are_listed_and_the_code_is_1(fedcli: Fedcli) -> None:
    done = fedcli("sweep", "--grid", "clients=4,99", *RUN, "--out", "study")
    assert done.code == 1
    *others, last = done.err.splitlines()
    assert any(line.startswith("fedcli: run 2 failed: ") for line in others)
    assert last.startswith("fedcli: error: 1 of 2 runs failed; fedcli sweep --resume study")
    assert "1 failed" in done.out


def test_report_shapes_a_study_and_a_folder_of_runs(fedcli: Fedcli, tmp_path: Path) -> None:
    assert fedcli("sweep", *GRID, "--seeds", "2", *RUN, "--out", "study", "-q").code == 0
    shape = ("--by", "algorithm", "--best", "client-lr", "--columns", "test.accuracy,rounds@0.2")
    of_study = fedcli("report", "study", *shape)
    of_runs = fedcli("report", "study/runs", *shape)
    assert of_study.code == 0
    assert sorted(of_study.out.splitlines()) == sorted(of_runs.out.splitlines())
    assert of_study.out.startswith("The best of 2 client_lr of each algorithm by validation acc")
    latex = fedcli("report", "study", *shape, "--format", "latex", "--spread", "std").out
    assert latex.count(r"\toprule") == 1
    assert "mean $\\pm$ standard deviation" in latex
    assert "fedcli 0." in latex
    rows = fedcli("report", "study", "--format", "csv").out.splitlines()
    assert len(rows) == 5
    assert "±" not in "".join(rows)
    listed = fedcli("report", "study/runs", "--format", "csv").out.splitlines()
    assert len(listed) == 9
    assert listed[0].startswith("run,")
    printed = json.loads(fedcli("report", "study", *shape, "--json").out)
    assert [row["candidates"] for row in printed["rows"]] == [2, 2]
    refused = fedcli("report", "study", "--by", "algorithm")
    assert_is_one_line(refused, "some runs of one row differ in client_lr")
    for wrong, words in (
        (("--columns", ""), "--columns '' contains no name; give a name, or leave the option out"),
        (("--best", ","), "--best ',' contains no name"),
        (("--select", ""), "--select '': choose one of loss, accuracy"),
        (("--select-on", "tset"), "--select-on 'tset': choose one of online, train, test"),
    ):
        assert_is_one_line(fedcli("report", "study", *wrong), words)
    whole = fedcli("report", "study/runs").out
    assert whole.startswith("Accuracy by round") or "Mean over seeds" in whole
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_is_one_line(fedcli("report", "empty"), "empty is not a run and contains none")


def test_report_draws_curves_with_bands_and_a_heat_map(fedcli: Fedcli, tmp_path: Path) -> None:
    assert fedcli("sweep", *GRID, "--seeds", "2", *RUN, "--out", "study", "-q").code == 0
    drawn = fedcli("report", "study", "--plot", "curves.svg", "--heat-map", "map.svg")
    assert (drawn.code, drawn.err) == (0, "")
    curves = (tmp_path / "curves.svg").read_text()
    for name in ("fedavg", "scaffold"):
        assert curves.count(f"<!-- client_lr=0.02, {name} -->") == 1
    assert curves.count('id="FillBetweenPolyCollection') == 8
    assert "<!-- scaffold -->" in (tmp_path / "map.svg").read_text()
    plain = fedcli("report", "study/runs", "--plot", "plain.svg")
    assert (plain.code, plain.err) == (0, "")
    drawn_plainly = (tmp_path / "plain.svg").read_text()
    assert drawn_plainly.count("<!-- scaffold, client_lr=0.02 -->") == 1
    assert drawn_plainly.count('id="FillBetweenPolyCollection') == 8
    one = fedcli(
        "report", "study", "--by", "algorithm", "--best", "client_lr", "--heat-map", "m.png"
    )
    assert_is_one_line(
        one,
        "--heat-map m.png: a heat map needs two options that differ, and the runs have algorithm; "
        "give two",
    )


def test_ctrl_c_saves_all_runs_and_stops(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    endless = ("--rounds", str(ENDLESS), "--seeds", "4", "--jobs", "2")
    with started(
        [*command, "sweep", *endless, "--out", "study"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **process_arguments,
    ) as process:
        wait_until(lambda: any((tmp_path / "study").glob("runs/*/metrics.jsonl")), process)
        # As a terminal does, sends SIGINT to the pool's processes, too. One may just be starting.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == [
        "fedcli: study study",
        "fedcli: stopped and saved after 0 of 4 runs; fedcli sweep --resume study continues",
    ]
    assert read_trials(tmp_path / "study") == []
    runs = list((tmp_path / "study/runs").iterdir())
    assert runs
    for run in runs:
        assert checkpoint_rounds(run)[-1] == len(read_metrics(run))


def test_a_terminal_shows_a_bar_and_a_line_for_each_run(
    tmp_path: Path, lock_step_command: list[str], process_arguments: dict[str, Any]
) -> None:
    arguments = [*lock_step_command, "sweep", "--rounds", "5", "--seeds", "3", "--jobs", "2"]
    _, drawn = draw_on_terminal([*arguments, "--out", "study"], cwd=tmp_path, **process_arguments)
    assert re.search(r"run [0-3]/3", drawn)
    assert "  1: seed 0  round " in drawn
    assert "/5  loss " in drawn
