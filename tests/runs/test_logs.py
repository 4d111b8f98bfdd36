from __future__ import annotations

import csv
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.errors import ConfigError
from fedcli.models.metrics import flatten
from fedcli.runs import evaluating, starting
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from tests.kit.training import (
    last_weights,
    make_config,
    resume_to_end,
    trained,
    trained_with_a_stop,
)

UNIFORM = make_config(sampling="uniform")
LOGS = {"csv": True, "tensorboard": True, "histograms": True}
FOUR = ["sparse_categorical_accuracy", "loss", "num_examples", "num_batches"]


def events(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EventAccumulator(str(folder)).Reload()


def test_logs_change_no_byte_of_training(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", sampling="uniform", eval_every=2)
    logged = trained(tmp_path / "logged", sampling="uniform", eval_every=2, **LOGS)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (plain / name).read_bytes() == (logged / name).read_bytes()
    assert last_weights(plain) == last_weights(logged)


def test_csv_equals_metrics_jsonl(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", sampling="uniform", csv=True, eval_every=4)
    lines = [flatten(line) for line in run_dir.read_metrics(path)]
    rows = list(csv.DictReader((path / "metrics.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6"]
    for row, line in zip(rows, lines, strict=True):
        told = {name: json.loads(value) for name, value in row.items() if value}
        assert told == line


def test_csv_of_a_stopped_run_is_that_of_the_straight_one(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", sampling="uniform", csv=True, eval_every=4)
    stopped = trained_with_a_stop(
        tmp_path / "stopped", 3, sampling="uniform", csv=True, eval_every=4
    )
    assert (straight / "metrics.csv").read_bytes() == (stopped / "metrics.csv").read_bytes()


def test_tensorboard_reads_the_tutorials_names(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", sampling="uniform", tensorboard=True, eval_every=3)
    lines = run_dir.read_metrics(path)
    online = events(path / "tensorboard/train")
    assert set(FOUR) <= set(online.Tags()["scalars"])
    assert online.Tags()["histograms"] == []
    for name in FOUR:
        told = [(each.step, each.value) for each in online.Scalars(name)]
        values = [line["client_work"]["train"][name] for line in lines[1:]]
        assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in told] == pytest.approx(values, rel=1e-6)
    for split in ("train", "test"):
        told = events(path / f"tensorboard/eval/{split}").Scalars("loss")
        assert [each.step for each in told] == [0, 3, 6]
        values = [line["evaluation"][split]["loss"] for line in lines if "evaluation" in line]
        assert [each.value for each in told] == pytest.approx(values, rel=1e-6)


def test_closing_evaluation_is_an_event(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", sampling="uniform", tensorboard=True)
    (told,) = events(path / "tensorboard/eval/test").Scalars("loss")
    assert told.step == 6
    assert told.value == pytest.approx(evaluating.evaluate_run(path, clients="all").values["loss"])


def test_splits_that_only_the_closing_evaluation_covers_are_events(tmp_path: Path) -> None:
    path = trained(
        tmp_path / "run", sampling="uniform", tensorboard=True, eval_every=3, eval_split="held-out"
    )
    steps = {
        split: [each.step for each in events(path / f"tensorboard/eval/{split}").Scalars("loss")]
        for split in ("train", "test")
    }
    assert steps == {"train": [6], "test": [0, 3, 6]}


def test_histograms_are_of_each_tensor(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", sampling="uniform", tensorboard=True, histograms=True)
    online = events(path / "tensorboard/train")
    tensors = checkpoint.load(run_dir.latest_checkpoint(path)).components["global_model_weights"]
    assert set(online.Tags()["histograms"]) == {f"weights/{name}" for name in tensors}
    for name, tensor in tensors.items():
        last = online.Histograms(f"weights/{name}")[-1]
        assert last.step == 6
        value = last.histogram_value
        assert value.num == np.size(tensor)
        assert (value.min, value.max) == pytest.approx((np.min(tensor), np.max(tensor)))


def test_tensorboard_forgets_what_a_killed_process_did(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", sampling="uniform", tensorboard=True)
    path = tmp_path / "killed"
    config = replace(UNIFORM, tensorboard=True, checkpoint_every=2)
    training = starting.start(config, path)
    done = training.run()
    for _ in range(3):
        next(done)
    training._close_logs()  # the events of round 3 reach the disk, its checkpoint does not
    training._run.close()
    training._save_if_behind = lambda: None  # type: ignore[method-assign]
    done.close()
    resume_to_end(path)
    for name in FOUR:
        left, right = (
            [(each.step, each.value) for each in events(run / "tensorboard/train").Scalars(name)]
            for run in (straight, path)
        )
        assert left == right


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="give --tensorboard as well"):
        starting.start(replace(UNIFORM, histograms=True), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedcli\[tensorboard\]'"):
        starting.start(replace(UNIFORM, tensorboard=True), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", sampling="uniform", **LOGS)
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    resume_to_end(path)
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before
