"""Runs from Python: callbacks after each round, and the returned record."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcli
from fedcli import settings
from fedcli.errors import ConfigError, RunError, StopTraining
from fedcli.runs.evaluating import evaluate_run
from fedcli.runs.files import folder
from fedcli.runs.loop import RoundResult
from fedcli.runs.trained import export_run
from fedcli.settings.run_config import RunConfig
from tests.kit.runs import write_run

SMALL = RunConfig(data_options={"clients": 12}, clients="4", rounds=6, epochs=1, threads=2)
EVALUATED = dataclasses.replace(SMALL, eval_every=2)
# Files with results; only timings.jsonl depends on the clock.
RESULTS = ("metrics.jsonl", "evaluation.json", "checkpoints/round-000006.h5", "config.toml")

OWN_MODEL = """
import numpy as np

from fedcli.own_models import ArraySpec, BatchOutput


class Biases:
    def __init__(self, num_inputs, num_classes):
        self.bias = np.zeros(num_classes, np.float32)
        self.trainable_variables = [self.bias]
        x, y = ArraySpec((None, num_inputs), "float32"), ArraySpec((None, 1), "int32")
        self.input_spec = {"x": x, "y": y}

    def forward_pass(self, batch, training=True):
        labels = batch["y"].reshape(-1)
        shares = np.exp(self.bias) / np.exp(self.bias).sum()
        gradient = len(labels) * shares - np.bincount(labels, minlength=len(shares))
        return BatchOutput(
            loss=-np.log(shares[labels]).mean(),
            predictions=np.full(len(labels), self.bias.argmax()),
            gradients=[(gradient / len(labels)).astype(np.float32)],
        )

    def report_local_unfinalized_metrics(self):
        return {}

    def metric_finalizers(self):
        return {}

    def reset_metrics(self):
        pass


def build(input_shape, num_classes):
    return Biases(int(np.prod(input_shape)), num_classes)
"""


def bytes_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without callbacks."""
    path = tmp_path_factory.mktemp("straight") / "run"
    fedcli.train(EVALUATED, path)
    return path


def test_callbacks_get_each_round_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run"
    told: list[RoundResult] = []
    written: list[dict[str, Any]] = []

    def read(result: RoundResult) -> None:
        written.append(fedcli.load_run(path).metrics[-1])

    run = fedcli.train(EVALUATED, path, callbacks=iter([told.append, read]))
    assert [result.round_num for result in told] == list(range(7))
    assert [result.metrics for result in told] == written == run.metrics
    assert [result.evaluation is not None for result in told] == [True, False] * 3 + [True]
    assert told[6].evaluation == run.metrics[6]["evaluation"]
    assert {"data", "train", "aggregate", "evaluate", "save"} == told[6].timings.keys()
    assert (told[0].num_clients, told[1].num_clients) == (0, 4)
    for left, right in zip(told[6].weights().trainable, run.weights().trainable, strict=True):
        assert np.array_equal(left, right)
    before, after = told[5].params, told[6].params
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)


def test_callbacks_cannot_change_the_run(straight: Path, tmp_path: Path) -> None:
    def spoil(result: RoundResult) -> None:
        result.metrics.clear()
        result.timings.clear()
        for scores in (result.evaluation or {}).values():
            scores.clear()
        for array in result.weights().trainable:
            array[:] = 7.0
        assert result.params is not None
        with pytest.raises(ValueError, match="read-only"):
            result.params[:] = 7.0

    fedcli.train(EVALUATED, tmp_path / "run", callbacks=[spoil])
    assert bytes_of(tmp_path / "run") == bytes_of(straight)


def test_stop_training_ends_the_run_and_resume_goes_on(straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    told: list[int] = []

    def stop(result: RoundResult) -> None:
        if result.round_num == 3:
            raise StopTraining

    run = fedcli.train(EVALUATED, path, callbacks=[stop, lambda each: told.append(each.round_num)])
    assert told == [0, 1, 2, 3]
    assert run.round_num == run.evaluation["test"]["round"] == 3
    told.clear()
    run = fedcli.resume(path, callbacks=[lambda each: told.append(each.round_num)])
    assert told == [4, 5, 6]
    assert run.round_num == run.evaluation["test"]["round"] == 6
    assert bytes_of(path) == bytes_of(straight)
    before = bytes_of(path)
    fedcli.resume(path, callbacks=[lambda each: told.append(each.round_num)])
    assert (told, bytes_of(path)) == ([4, 5, 6], before)
    assert fedcli.resume(path, num_rounds=8, threads=1).round_num == 8


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_a_callback_passes_and_the_round_is_saved(
    straight: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "run"

    def fail(result: RoundResult) -> None:
        if result.round_num == 2:
            raise error

    with pytest.raises(error):
        fedcli.train(EVALUATED, path, callbacks=[fail])
    assert folder.checkpoint_rounds(path)[-1] == 2
    assert fedcli.load_run(path).evaluation == {}
    fedcli.resume(path)
    assert bytes_of(path) == bytes_of(straight)


def test_an_interrupt_says_what_is_saved_and_how_to_continue(
    straight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"

    def interrupt(result: RoundResult) -> None:
        if result.round_num == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fedcli.train(EVALUATED, path, callbacks=[interrupt])
    call = f"fedcli.resume({str(path)!r})"
    assert str(caught.value) == f"stopped after round 2 of 6 and saved; {call} continues"
    exec(call)
    assert bytes_of(path) == bytes_of(straight)


def test_callbacks_of_local_training_get_no_common_model(tmp_path: Path) -> None:
    config = RunConfig(algorithm="local-only", clients="3", rounds=2)
    told: list[RoundResult] = []
    run = fedcli.train(config, tmp_path / "run", callbacks=[told.append])
    assert [result.params for result in told] == [None, None]
    for take in told[0].weights, run.weights, run.model:
        with pytest.raises(ConfigError, match="has a model of its own"):
            take()


def test_a_run_is_replaced_only_with_force(straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    fedcli.train(SMALL, path)
    with pytest.raises(RunError, match="exists"):
        fedcli.train(EVALUATED, path)
    fedcli.train(EVALUATED, path, force=True)
    assert bytes_of(path) == bytes_of(straight)


def test_the_config_of_a_record_repeats_the_run(straight: Path, tmp_path: Path) -> None:
    run = fedcli.load_run(straight)
    fedcli.train(run.config, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(straight)
    other = fedcli.train(dataclasses.replace(run.config, seed=1), tmp_path / "other")
    assert other.config.seed == 1
    assert other.metrics != run.metrics


def test_notes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = dataclasses.replace(SMALL, data_options={"clients": 3}, clients=None, rounds=1)
    fedcli.train(small, tmp_path / "run")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "3 clients" in caplog.text


def test_columns_are_the_metrics_by_round(straight: Path) -> None:
    run = fedcli.load_run(straight)
    columns = run.columns
    assert columns["round"].tolist() == list(range(7))
    losses = columns["client_work/train/loss"]
    assert losses.dtype == np.float64
    assert np.isnan(losses[0])
    assert losses[1:].tolist() == [line["client_work"]["train"]["loss"] for line in run.metrics[1:]]
    assert np.isnan(columns["evaluation/test/loss"]).tolist() == [False, True] * 3 + [False]


def test_columns_have_nan_for_null(tmp_path: Path) -> None:
    run = fedcli.load_run(write_run(tmp_path / "run", [0.25, None]))
    assert run.columns["client_work/train/loss"].tolist() == pytest.approx(
        [0.75, float("nan")], nan_ok=True
    )
    line = fedcli.metrics.flatten(run.metrics[0])
    assert all(run.columns[name][0] == value for name, value in line.items())


def test_columns_of_what_is_no_number_are_nan(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", [0.25])
    line = json.loads((path / "metrics.jsonl").read_text())
    line["finalizer"] = {"huge": 10**400, "text": "x", "list": [1]}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    columns = fedcli.load_run(path).columns
    assert all(np.isnan(columns[f"finalizer/{name}"]).all() for name in line["finalizer"])


def test_the_model_of_a_record_has_its_weights(straight: Path) -> None:
    run = fedcli.load_run(straight)
    train, test = fedcli.datasets.load("synthetic-digits", data_options={"clients": 12})
    assert test is not None
    evaluation = fedcli.learning.build_fed_eval(run.model())
    clients = [test.client(each).preprocess() for each in train.client_ids[:4]]
    found = evaluation.next(evaluation.initialize(), clients).metrics["client_work"]["eval"]
    assert (
        found["current_round_metrics"]
        == (run.evaluation["test"]["client_work"]["eval"]["current_round_metrics"])
    )
    assert (
        fedcli.evaluate_run(straight).metrics["client_work"]
        == (run.evaluation["test"]["client_work"])
    )


def test_weights_are_those_that_are_evaluated(tmp_path: Path) -> None:
    run = fedcli.train(dataclasses.replace(SMALL, server_ema=0.9), tmp_path / "run")
    export_run(run.path, tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as exported:
        for name, array in zip(exported, run.weights().trainable, strict=True):
            assert np.array_equal(exported[name], array)
    process = fedcli.learning.build_fed_eval(run.model())
    params = process.initialize().global_model_weights
    assert np.array_equal(
        params, np.concatenate([each.ravel() for each in run.weights().trainable])
    )


def test_a_model_of_code_has_weights_but_runs_only_if_named(tmp_path: Path) -> None:
    file = tmp_path / "biases.py"
    file.write_text(OWN_MODEL)
    config = dataclasses.replace(SMALL, model=str(file), threads=None)
    path = fedcli.train(config, tmp_path / "run").path
    file.unlink()
    run = fedcli.load_run(path)
    (bias,) = run.weights().trainable
    assert bias.shape == (10,)
    assert bias.any()
    with pytest.raises(ConfigError, match="--model"):
        run.model()
    file.write_text(OWN_MODEL)
    assert np.array_equal(run.model(str(file)).initial_params, bias)
    assert fedcli.resume(path, num_rounds=7, model=str(file)).round_num == 7


def test_client_records_of_a_record(straight: Path, tmp_path: Path) -> None:
    run = fedcli.train(dataclasses.replace(SMALL, record_clients=True), tmp_path / "run")
    records = run.client_records()
    assert len(records.rows) == 6 * 4
    assert records.rows["num_examples"].sum() == run.columns["client_work/train/num_examples"].sum()
    with pytest.raises(RunError, match="record-clients"):
        fedcli.load_run(straight).client_records()


def test_the_closing_evaluation_is_in_the_timings(tmp_path: Path) -> None:
    run = fedcli.train(SMALL, tmp_path / "run")
    assert [line.get("round") for line in run.timings] == [1, 2, 3, 4, 5, 6, None]
    assert run.seconds()["evaluate"] == run.timings[-1]["evaluate"] > 0


def test_a_closing_evaluation_made_anew_is_timed_once(tmp_path: Path) -> None:
    path = fedcli.train(SMALL, tmp_path / "run").path
    (path / "evaluation.json").unlink()  # as if killed before it was written
    run = fedcli.resume(path)
    assert [line.get("round") for line in run.timings] == [1, 2, 3, 4, 5, 6, None]
    run = fedcli.resume(path, num_rounds=7)
    assert [line.get("round") for line in run.timings] == [1, 2, 3, 4, 5, 6, 7, None]
    assert run.seconds()["evaluate"] == run.timings[-1]["evaluate"]


@pytest.mark.parametrize(
    "config",
    [
        EVALUATED,
        dataclasses.replace(
            SMALL,
            sampling="uniform",
            client_dropout=0.4,
            client_speeds=(100.0, 10.0),
            min_reports=3,
            aggregator="tff-robust",
            eval_every=3,
        ),
    ],
    ids=["plain", "participation"],
)
def test_flat_metrics_are_what_trackers_take(config: RunConfig, tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []

    def log(values: dict[str, Any], step: int) -> None:
        logged.append((step, values))

    callback: Callable[[RoundResult], None] = lambda result: log(  # noqa: E731 - as in the tutorial
        fedcli.metrics.flatten(result.metrics), step=result.round_num
    )
    run = fedcli.train(
        dataclasses.replace(config, csv=True), tmp_path / "run", callbacks=[callback]
    )
    for step, values in logged:
        assert values["round"] == step
        for name, value in values.items():
            assert re.fullmatch(r"[\w./-]+", name)  # MLflow's rule
            assert isinstance(value, int | float)
    rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == len(logged)
    for row, (_, values) in zip(rows, logged, strict=True):
        finite = {name: str(value) for name, value in values.items() if value == value}
        assert {name: cell for name, cell in row.items() if cell} == finite


def test_public_names_are_there() -> None:
    for name in dir(fedcli):
        assert getattr(fedcli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(fedcli, "trian")  # noqa: B009


def test_opening_a_record_reads_its_config_alone(straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.toml").write_bytes((straight / "config.toml").read_bytes())
    run = fedcli.load_run(path)
    assert run.config == settings.validate(EVALUATED)
    (path / "metrics.jsonl").write_text("{")
    with pytest.raises(RunError, match="cut short or damaged"):
        run.metrics  # noqa: B018
    with pytest.raises(RunError, match="no checkpoint"):
        run.weights()
    with pytest.raises(RunError, match="there is no run"):
        fedcli.load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("callbacks", [print, [None], [print, 3]])
def test_callbacks_are_a_list_of_functions(callbacks: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^callbacks=.*give a list of functions, such as \[f\]"):
        fedcli.train(SMALL, tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_prints_as_one_line(straight: Path) -> None:
    found = evaluate_run(straight)
    accuracy = found.values["sparse_categorical_accuracy"]
    text = repr(found)
    assert len(text.splitlines()) == 1
    assert text.startswith("Evaluation('synthetic-digits', split='test', round_num=6, num_clients=")
    assert f"sparse_categorical_accuracy={accuracy!r}" in text
    assert len(text) < 250


def test_two_runs_in_two_threads_equal_runs_alone(tmp_path: Path) -> None:
    config = dataclasses.replace(EVALUATED, checkpoint_every=1, keep_checkpoints=3, rounds=25)
    others = [dataclasses.replace(config, seed=seed) for seed in range(4)]
    wanted = []
    for each in others:
        fedcli.train(each, tmp_path / f"alone-{each.seed}")
        wanted.append(bytes_of_all(tmp_path / f"alone-{each.seed}"))
    with ThreadPoolExecutor(len(others)) as pool:
        paths = [tmp_path / f"beside-{each.seed}" for each in others]
        for record in pool.map(fedcli.train, others, paths):
            assert record.round_num == 25
    assert [bytes_of_all(path) for path in paths] == wanted


def bytes_of_all(path: Path) -> dict[str, bytes]:
    """Returns all files of a run except the timings."""
    files = (each for each in path.rglob("*") if each.is_file() and each.name != "timings.jsonl")
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


RUN_OUT_OF_ROOM = """
import resource, signal, sys
import fedcli
from fedcli.errors import RunError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a limit of a file's size stands for a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
config = fedcli.RunConfig(
    data_options={"clients": 2}, clients="1", rounds=300, epochs=1, max_examples=20
)
try:
    fedcli.train(config, sys.argv[1])
except RunError as err:
    print(err)
"""


def test_a_run_that_filled_the_disk_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The run has its own process, because the limit on file sizes cannot be raised again."""
    arguments = [sys.executable, "-c", RUN_OUT_OF_ROOM, str(tmp_path / "full")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("metrics.jsonl: File too large\n"), done
    assert 50 < fedcli.load_run(tmp_path / "full").round_num < 300
    resumed = fedcli.resume(tmp_path / "full")
    straight = fedcli.train(resumed.config, tmp_path / "straight")
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes()
