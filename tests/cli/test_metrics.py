"""Metrics beside loss and accuracy are shown everywhere if requested, and nowhere otherwise."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.runs import evaluating, record
from fedcli.settings.tables.metrics import METRICS
from tests.kit.command_line import Fedcli, assert_is_one_line

SMALL = (
    *("--data-option", "clients=12", "--clients", "4", "--sampling", "uniform"),
    *("--rounds", "3", "--epochs", "1", "--client-lr", "0.1"),
)
FOUR = ["sparse_categorical_accuracy", "loss", "num_examples", "num_batches"]


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with metrics, whose seeds differ, and a run without metrics."""
    from fedcli.cli import main

    folder = tmp_path_factory.mktemp("runs")
    for name, more in {
        "first": ("--metrics", "all", "--seed", "1", "--tensorboard"),
        "second": ("--metrics", "auc,macro_f1", "--seed", "2"),
        "plain": ("--seed", "1"),
    }.items():
        asked = ["train", *SMALL, "--eval-every", "2", *more, "--out", str(folder / name), "-q"]
        assert main.run(asked) == 0
    return folder


def test_metrics_stand_in_evaluations_alone_and_change_nothing_else(runs: Path) -> None:
    for line, plain in zip(read_lines(runs / "first"), read_lines(runs / "plain"), strict=True):
        for split, group in line.get("evaluation", {}).items():
            assert list(group) == [*FOUR, *METRICS]
            assert {name: group[name] for name in FOUR} == plain["evaluation"][split]
            assert group["weighted_recall"] == pytest.approx(group["sparse_categorical_accuracy"])
        line.pop("evaluation", None)
        plain.pop("evaluation", None)
        assert line == plain
    closing = json.loads((runs / "first" / "evaluation.json").read_text())
    plain_closing = json.loads((runs / "plain" / "evaluation.json").read_text())
    for split, told in closing.items():
        work = told["client_work"]["eval"]
        for group in work.values():
            assert list(group) == [*FOUR, *METRICS]
        assert list(told["over_clients"])[3:] == list(METRICS)
        assert told["over_clients"]["macro_f1"]["num_clients"] == told["num_clients"]
        assert list(told["seen"]["metrics"]) == [*FOUR, *METRICS]
        assert list(told["unseen"]["over_clients"])[3:] == list(METRICS)
        assert list(plain_closing[split]["seen"]["metrics"]) == FOUR
        assert list(plain_closing[split]["over_clients"])[3:] == []


def test_eval_computes_what_training_did_and_more(
    runs: Path, fedcli: Fedcli, tmp_path: Path
) -> None:
    closing = json.loads((runs / "first" / "evaluation.json").read_text())["test"]
    told = json.loads(fedcli("eval", runs / "first", "--clients", "all", "--json").out)
    assert told == closing
    options = ("--metrics", "ece,macro_f1", "--threads", "1", "--per-client", "clients.csv")
    asked = json.loads(fedcli("eval", runs / "plain", "--clients", "all", *options, "--json").out)
    group = asked["client_work"]["eval"]["current_round_metrics"]
    assert list(group) == [*FOUR, "macro_f1", "ece"]
    with (tmp_path / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean = sum(float(row["macro_f1"]) for row in rows) / len(rows)
    assert mean == pytest.approx(asked["over_clients"]["macro_f1"]["mean"])
    shown = fedcli("eval", runs / "plain", "--metrics", "auc").out.splitlines()
    assert shown[1].split()[:7] == [
        *("split", "loss", "accuracy"),
        *("examples", "batches", "auc", "clients"),
    ]
    assert any(line.split()[:2] == ["test", "auc"] for line in shown)


def test_clients_of_one_class_have_no_auc(runs: Path, tmp_path: Path) -> None:
    """If each client has one class, AUC is defined over all examples, but not for a client."""
    told = evaluating.evaluate_run(
        runs / "plain",
        data="synthetic-digits",
        data_options={"clients": 6},
        partition="shards",
        partition_options={"clients": 20, "shards": 1},
        split="train",
        clients="all",
        metrics=["auc", "macro_recall", "balanced_accuracy"],
        per_client_file=tmp_path / "clients.h5",
    )
    assert 0.5 < told.values["auc"] <= 1
    spread = told.metrics["over_clients"]["auc"]
    assert spread["num_clients"] < told.num_clients
    with h5py.File(tmp_path / "clients.h5") as file:
        areas, recalls = file["auc"][()], file["macro_recall"][()]
        balanced, accuracy = file["balanced_accuracy"][()], file["sparse_categorical_accuracy"][()]
    lone = np.isnan(areas)
    assert lone.sum() == told.num_clients - spread["num_clients"]
    np.testing.assert_allclose(balanced[lone], accuracy[lone])  # the client has only this class
    assert (recalls[lone] <= balanced[lone]).all()  # classes that are only predicted count as 0


def test_reports_show_them(runs: Path, fedcli: Fedcli, tmp_path: Path) -> None:
    first, second, plain = (runs / name for name in ("first", "second", "plain"))
    closing = json.loads((first / "evaluation.json").read_text())
    value = closing["test"]["client_work"]["eval"]["current_round_metrics"]["auc"]
    text = fedcli("report", first).out
    assert "\nmacro_f1 by round\n" in text
    assert f"{value:.4f}" in text
    told = json.loads(fedcli("report", first, second, plain, "--json").out)
    finals = [run["final"] for run in told["runs"]]
    assert finals[0]["test"]["auc"] == value
    assert list(finals[0]["test"]) == ["loss", "accuracy", *METRICS]
    assert list(finals[1]["test"]) == ["loss", "accuracy", "macro_f1", "auc"]
    assert list(finals[2]["test"]) == ["loss", "accuracy"]
    assert list(finals[0]["online"]) == ["loss", "accuracy"]
    assert len(told["groups"]) == 1  # metrics do not change the configuration
    mean = told["groups"][0]["final"]["test"]["auc"]
    assert mean["count"] == 2  # the third run has no such metric
    names = ("rounds.csv", "page.html", "curves.svg")
    options = [
        each
        for name, file in zip(("csv", "html", "plot"), names, strict=True)
        for each in (f"--{name}", file)
    ]
    done = fedcli("report", first, second, *options, "--format", "csv")
    assert (done.code, done.err) == (0, "")
    assert "test.auc" in done.out.splitlines()[0]
    header = (tmp_path / "rounds.csv").read_text().splitlines()[0].split(",")
    assert "evaluation/test/ece" in header
    page = (tmp_path / "page.html").read_text()
    assert "auc by round" in page
    assert "test macro_f1" in page
    assert "balanced_accuracy by round" in (tmp_path / "curves.svg").read_text()  # of one run
    plain_text = fedcli("report", plain).out
    assert "macro" not in plain_text
    assert "auc" not in plain_text
    loaded = record.load_run(first)
    assert loaded.final("test", "auc") == value
    assert loaded.measures == ["loss", "accuracy", *METRICS]


def test_event_files_hold_them(runs: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(runs / "first" / "tensorboard" / "eval" / "test"))
    found.Reload()
    assert set(METRICS) <= set(found.Tags()["scalars"])
    series = [(each.step, each.value) for each in found.Scalars("auc")]
    expected = record.load_run(runs / "first").series("test", "auc")
    assert series == [(at, pytest.approx(value)) for at, value in expected]


def test_a_run_is_stopped_and_its_best_kept_by_a_metric(fedcli: Fedcli, tmp_path: Path) -> None:
    options = ("--eval-every", "1", "--stop-at", "macro_f1=0.3", "--keep-best", "ece")
    done = fedcli("train", *SMALL, "--rounds", "40", *options, "--out", "run", "--json")
    told = json.loads(done.out)
    assert " macro_f1 " in done.err  # beside loss and accuracy in the line of each evaluation
    assert told["stopping"]["target_macro_f1"] == 0.3
    reached = told["stopping"]["rounds_to_target"]
    lines = read_lines(tmp_path / "run")
    values = [line["evaluation"]["test"]["macro_f1"] for line in lines]
    assert reached == len(values) - 1 == next(i for i, each in enumerate(values) if each >= 0.3)
    errors = [line["evaluation"]["test"]["ece"] for line in lines]
    assert record.load_run(tmp_path / "run").best_round == errors.index(min(errors))
    best = json.loads(fedcli("eval", "run", "--best", "--clients", "all", "--json").out)
    found = best["client_work"]["eval"]["current_round_metrics"]["ece"]
    assert found == pytest.approx(min(errors), rel=1e-12)
    shown = fedcli("train", "--resume", "run").out
    assert f"Target   test macro_f1 0.3: after {reached} rounds" in shown


def test_every_client_s_own_model_is_measured(fedcli: Fedcli) -> None:
    done = fedcli(
        *("train", *SMALL, "--algorithm", "local-only", "--metrics", "macro_f1,auc"),
        *("--out", "run", "--json"),
    )
    told = json.loads(done.out)["evaluation"]["train"]
    assert 0 < told["client_work"]["eval"]["current_round_metrics"]["macro_f1"] < 1
    again = json.loads(fedcli("eval", "run", "--split", "train", "--clients", "all", "--json").out)
    assert again == told


def test_fine_tuned_models_are_measured_on_their_own_clients(runs: Path, fedcli: Fedcli) -> None:
    """Fine-tuning with a rate of almost 0 leaves every metric as it was."""
    eval_all = ("eval", runs / "first", "--clients", "all", "--json")
    still = json.loads(fedcli(*eval_all, "--finetune", "1", "--finetune-lr", "1e-30").out)
    tuned = still["fine_tuned"]
    work = still["client_work"]["eval"]["current_round_metrics"]
    assert tuned["metrics"] == pytest.approx(work, rel=1e-6)
    for name in METRICS:
        assert tuned["over_clients"][name] == pytest.approx(still["over_clients"][name])
        assert tuned["seen"]["metrics"][name] == pytest.approx(still["seen"]["metrics"][name])
    moved = json.loads(fedcli(*eval_all, "--finetune", "20").out)["fine_tuned"]["metrics"]
    assert moved["macro_f1"] > work["macro_f1"]
    lost = json.loads(fedcli(*eval_all, "--finetune", "3", "--finetune-lr", "1e38").out)
    lost = lost["fine_tuned"]["metrics"]
    assert (lost["weighted_recall"], lost["macro_f1"], lost["auc"]) == (0.0, 0.0, None)
    assert lost["sparse_categorical_accuracy"] == 0.0


def test_unknown_metrics_are_refused(fedcli: Fedcli) -> None:
    done = fedcli("train", "--metrics", "auc,macro_f2", "--out", "run")
    assert_is_one_line(done, "unknown --metrics 'macro_f2'", "did you mean macro_f1")
    done = fedcli("train", "--monitor", "f1", "--patience", "3", "--eval-every", "1")
    assert_is_one_line(done, "--monitor f1: choose one of loss, accuracy, macro_precision")
