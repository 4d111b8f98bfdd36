"""`fedcli runs` lists runs, and `fedcli clean` removes files that they no longer need."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcli.runs import listing
from fedcli.runs.files.folder import RunDirectory
from fedcli.runs.trained import load_trained
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.runs import write_run


def train(fedcli: Fedcli, name: str, *options: object) -> Path:
    small = ("--rounds", 4, "--epochs", 1, "--clients", 2, "--threads", 1, "-q")
    assert fedcli("train", *small, *options, "--out", f"runs/{name}").code == 0
    return Path("runs") / name


def scaffold(fedcli: Fedcli, name: str = "scaffold") -> Path:
    return train(fedcli, name, "--algorithm", "scaffold", "--client-weighting", "uniform")


def stopped(path: Path) -> Path:
    """Removes the closing evaluation of a run, so that it looks stopped by a signal."""
    (path / "evaluation.json").unlink()
    return path


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ---- Completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("report ", ["a", "sweep/b", "sweep/deep/c"]),
        ("report s", ["sweep/b", "sweep/deep/c"]),
        ("eval sweep/", ["sweep/b", "sweep/deep/c"]),
        ("export a", ["a"]),
        ("inspect-clients --run ", ["a", "sweep/b", "sweep/deep/c"]),
        ("train --resume ./a", ["./a"]),
        ("clean ", ["a", "sweep", "sweep/b", "sweep/deep", "sweep/deep/c"]),
        ("runs sweep/", ["sweep/b", "sweep/deep", "sweep/deep/c"]),
    ],
)
def test_arguments_that_name_runs_complete_to_runs_alone(
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    words: str,
    completions: list[str],
) -> None:
    folder = process_arguments["cwd"] = tmp_path
    for name in ("a", "sweep/b", "sweep/deep/c", ".hidden/d"):
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "config.toml").touch()
    (folder / "sweep/table.csv").touch()
    (folder / "another").mkdir()
    process_arguments["env"] |= {
        "_FEDCLI_COMPLETE": "bash_complete",
        "COMP_WORDS": f"fedcli {words}",
        "COMP_CWORD": str(len(f"fedcli {words}".split(" ")) - 1),
    }
    done = subprocess.run(command, check=True, capture_output=True, **process_arguments)
    assert done.stdout.splitlines() == [f"plain,{each}" for each in completions]


# ---- Listing -------------------------------------------------------------------------------------


def test_runs_are_listed_with_state_figures_and_size(fedcli: Fedcli) -> None:
    train(fedcli, "a", "--eval-every", 2)
    stopped(train(fedcli, "deep/b"))
    damaged = train(fedcli, "c")
    (damaged / "metrics.jsonl").write_text("{}\n")
    done = fedcli("runs")
    assert done.err.startswith("fedcli: runs/c is damaged: ")
    assert done.out.startswith("Runs in runs\n")
    rows = {line.split()[0]: line.split() for line in done.out.splitlines()[3:6]}
    assert {name: row[1] for name, row in rows.items()} == {
        "a": "finished",
        "c": "damaged",
        "deep/b": "stopped",
    }
    told = {run["run"]: run for run in json.loads(fedcli("runs", "--json").out)["runs"]}
    evaluation = json.loads(Path("runs/a/evaluation.json").read_text())["test"]
    values = evaluation["client_work"]["eval"]["current_round_metrics"]
    first = told["runs/a"]
    assert (first["split"], first["rounds"], first["of_rounds"]) == ("test", 4, 4)
    assert (first["loss"], first["accuracy"]) == (
        values["loss"],
        values["sparse_categorical_accuracy"],
    )
    assert rows["a"][2:5] == ["4", f"{first['accuracy']:.4f}", "test"]
    assert first["algorithm"] == "fedavg"
    for name, run in told.items():
        assert run["num_bytes"] == size_of(Path(name))
    assert told["runs/deep/b"]["split"] == "online"
    assert done.out.splitlines()[-1].startswith("3 runs, ")


def test_a_run_that_a_process_writes_to_is_training(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    with RunDirectory.open(run):
        assert fedcli("runs", "runs/a").out.splitlines()[3].split()[1] == "training"
        assert "Nothing to remove" in fedcli("clean", "runs/a", "--yes").out
    assert fedcli("runs", "runs/a").out.splitlines()[3].split()[1] == "finished"


def test_a_file_that_goes_while_sizes_are_added_is_passed_over(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"xyz")
    found = listing.files_with_sizes(tmp_path)
    first, _ = next(found)
    gone, *_ = (each for each in tmp_path.iterdir() if each != first)
    gone.unlink()  # as a run in training removes a temporary file
    ((kept, size),) = found
    assert ({first, gone, kept}, size) == ({tmp_path / name for name in "abc"}, 3)


@pytest.mark.parametrize(
    ("key", "order"),
    [("name", "abc"), ("accuracy", "bca"), ("size", "cab"), ("time", "cba")],
)
def test_runs_can_be_sorted(fedcli: Fedcli, tmp_path: Path, key: str, order: str) -> None:
    accuracies = {"a": [0.2], "b": [0.8], "c": [0.5] * 30}
    for when, (name, values) in enumerate(accuracies.items()):
        path = write_run(tmp_path / name, list(values), config="x = 1\n" if name == "b" else "")
        (path / "config.toml").write_text((path / "config.toml").read_text().replace("x = 1", ""))
        if name == "a":
            (path / "notes.txt").write_text("x" * 200)
        os.utime(path / "metrics.jsonl", (1000 * when, 1000 * when))
    told = json.loads(fedcli("runs", ".", "--sort", key, "--json").out)["runs"]
    assert "".join(Path(run["run"]).name for run in told) == order


def test_a_folder_without_runs_and_none(fedcli: Fedcli) -> None:
    Path("empty").mkdir()
    assert fedcli("runs", "empty").out == "There is no run in empty; fedcli train makes one\n"
    assert_is_one_line(fedcli("runs"), "there is no folder runs")
    assert_is_one_line(fedcli("clean", "nowhere"), "there is no folder nowhere")


# ---- Cleaning ------------------------------------------------------------------------------------


@pytest.fixture
def cleaned(fedcli: Fedcli) -> Iterator[Path]:
    """A run with old checkpoints and a temporary file; the rest of it is checked after the test."""
    options = ("--checkpoint-every", 1, "--keep-checkpoints", 9, "--eval-every", 1)
    run = train(fedcli, "a", *options, "--keep-best", "loss", "--client-lr", 0.5)
    (run / "checkpoints" / ".round-000009.h5.0123456789ab.tmp").write_bytes(b"half")
    before = [fedcli("eval", run, "--json").out, fedcli("eval", run, "--best", "--json").out]
    straight = train(fedcli, "straight", *options, "--client-lr", 0.5, "--rounds", 6)
    yield run
    after = [fedcli("eval", run, "--json").out, fedcli("eval", run, "--best", "--json").out]
    assert after == before
    assert fedcli("report", run).code == 0
    assert fedcli("train", "--resume", run, "--rounds", 6, "-q").code == 0
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_old_checkpoints_go_and_what_is_needed_stays(fedcli: Fedcli, cleaned: Path) -> None:
    best = json.loads(fedcli("report", cleaned, "--json").out)["runs"][0]["best_round"]
    before = size_of(cleaned)
    shown = fedcli("clean", cleaned, "--dry-run")
    assert size_of(cleaned) == before
    done = fedcli("clean", cleaned, "--yes")
    assert done.out == shown.out + done.out.splitlines()[-1] + "\n"
    rows = [line.split() for line in done.out.splitlines() if line.startswith(str(cleaned))]
    num_old = 5 - len({4, best})
    assert [row[:4] for row in rows] == [
        [str(cleaned), "old", "checkpoints", str(num_old)],
        [str(cleaned), "temporary", "files", "1"],
    ]
    left = {int(file.stem[-6:]) for file in (cleaned / "checkpoints").iterdir()}
    assert left == {4, best}
    assert "Nothing to remove from 1 run" in fedcli("clean", cleaned, "--yes").out


def test_client_states_go_only_if_that_is_said(fedcli: Fedcli) -> None:
    run = scaffold(fedcli)
    states = run / "client_states.sqlite"
    before = states.read_bytes()
    kept = fedcli("clean", "--yes").out
    assert "of client states of 1 run; --client-states also removes them" in kept
    assert states.read_bytes() == before
    done = fedcli("clean", "--client-states", "--yes").out
    assert "Without client states the run cannot be resumed" in done
    assert not states.exists()
    assert fedcli("eval", run).code == 0
    assert_is_one_line(fedcli("train", "--resume", run, "--rounds", 6), "client_states.sqlite")
    with load_trained(run, 1):
        pass


def test_local_models_are_told_to_be_needed_by_eval(fedcli: Fedcli) -> None:
    run = train(fedcli, "own", "--algorithm", "local-only")
    done = fedcli("clean", run, "--client-states", "--dry-run").out
    assert "Without client states the run can neither be resumed nor evaluated" in done
    assert (run / "client_states.sqlite").exists()


def test_runs_that_are_not_finished_are_left_alone(fedcli: Fedcli) -> None:
    run = stopped(scaffold(fedcli))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    done = fedcli("clean", "--client-states", "--yes", "-v")
    assert f"fedcli: {run} stays as it is: it is not finished\n" in done.err
    assert "Unchanged: 1 run, stopped, training or damaged" in done.out
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_nothing_goes_where_nobody_can_be_asked(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    before = size_of(run)
    for more in ((), ("--json",), ("-q",)):
        done = fedcli("clean", *more)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "give --yes" in done.err
    assert size_of(run) == before
    told = json.loads(fedcli("clean", "--json", "--yes").out)
    assert told["removed_bytes"] == before - size_of(run) == told["removals"][0]["num_bytes"] > 0


def test_the_question_follows_the_list_of_what_would_be_removed(
    fedcli: Fedcli, command: list[str], process_arguments: dict[str, Any], tmp_path: Path
) -> None:
    run = train(fedcli, "a")
    before = size_of(run)
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"n\n")
    done = subprocess.run(
        [*command, "clean", "-q"],
        stdin=terminal,
        capture_output=True,
        check=True,
        cwd=tmp_path,
        **process_arguments,
    )
    os.close(terminal)
    os.close(keyboard)
    assert "Files to remove" in done.stdout
    assert "runs/a" in done.stdout
    assert "Remove them?" in done.stdout
    assert "Nothing was removed" in done.stdout
    assert size_of(run) == before


def test_links_in_a_run_lead_nowhere(fedcli: Fedcli, tmp_path: Path) -> None:
    run = train(fedcli, "a")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "round-000001.h5").write_bytes(b"somebody's")
    (run / "checkpoints" / "round-000001.h5").symlink_to(outside / "round-000001.h5")
    assert fedcli("clean", "--yes").code == 0
    assert (outside / "round-000001.h5").read_bytes() == b"somebody's"
    assert not (run / "checkpoints" / "round-000001.h5").is_symlink()
