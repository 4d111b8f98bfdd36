"""Fine-tuning in `fedcli eval`: the requested number of steps, taken as in a round."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import datasets
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.evaluation import spread
from fedcli.evaluation.fine_tuning import FineTuningOptions
from fedcli.evaluation.personalization import FineTuning, fine_tuned_stats
from fedcli.learning import optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from fedcli.runs import evaluating
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import PIPELINES
from tests.kit import reference
from tests.kit.command_line import Fedcli, WriteTff
from tests.kit.training import train

pytestmark = pytest.mark.numeric

SMALL: dict[str, Any] = {"data_options": {"clients": 12}, "clients": "3", "rounds": 2, "threads": 2}


def _train(path: Path, **options: Any) -> Path:
    train(path, RunConfig(**{**SMALL, **options}))
    return path


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("num_examples", [1, 19, 20, 21, 60])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10])
def test_a_plan_of_steps_has_as_many_batches(
    pipeline: str, num_examples: int, num_steps: int
) -> None:
    plan = BatchPlan(epochs=7, batch_size=20, pipeline=pipeline, max_examples=3)
    sizes = list(plan.of_steps(num_steps, num_examples).batch_sizes(num_examples))
    assert len(sizes) == num_steps
    per_epoch = [20] * (num_examples // 20) + [num_examples % 20] * (num_examples % 20 > 0)
    wanted = per_epoch * num_steps if pipeline == "per-epoch" else [20] * num_steps
    assert sizes == wanted[:num_steps]
    assert plan.of_steps(num_steps, 0).num_batches(0) == 0


@pytest.mark.parametrize("num_steps", [1, 9])
def test_steps_are_those_of_an_oracle(num_steps: int) -> None:
    train, test = datasets.load(data_options={"clients": 9})
    assert test is not None
    model = softmax_regression()
    plan = BatchPlan(batch_size=20, shuffle_buffer=30)
    strategy = FineTuning(optimizers.sgd(0.01, momentum=0.5), plan, num_steps)
    ids = list(train.client_ids)
    weights = model.initial_params + np.float32(0.001)
    found = fine_tuned_stats(
        *(model, weights, strategy, train, test, ids, BatchPlan()),
        seed=3,
        round_num=4,
        engine=ThreadEngine(1),
    )
    for client_id, row in zip(ids, found, strict=True):
        own = train.client(client_id)
        trained = BatchedDataset(own, strategy.plan_for(len(own)), 3)
        batches = [(each["x"], each["y"][:, 0]) for each in trained.in_round(4)]
        assert len(batches) == num_steps
        start = weights.astype(np.float64)
        delta, _ = reference.train_client(start, batches, reference.Sgd(0.01, 0.5), 10)
        tested = [
            (each["x"], each["y"][:, 0])
            for each in BatchedDataset(test.client(client_id), BatchPlan())
        ]
        stats = reference.evaluate(start + delta, [tested], 10)
        assert (row["num_correct"], row["num_examples"]) == (stats.num_correct, stats.num_examples)
        assert row["loss_sum"] == pytest.approx(stats.loss_sum, rel=1e-4)
    for num_threads in (2, 7):
        again = fine_tuned_stats(
            *(model, weights, strategy, train, test, ids, BatchPlan()),
            seed=3,
            round_num=4,
            engine=ThreadEngine(num_threads),
        )
        assert again.tolist() == found.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"client_options": {"momentum": 0.9}},
        {"client_clip_norm": 0.1, "pipeline": "per-epoch", "batch_size": 7},
        {"client_optimizer": "adam", "client_lr": 0.001, "shuffle_buffer": "full"},
    ],
)
def test_a_lone_client_fine_tunes_as_it_would_in_the_next_round(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    two, three = (
        _train(tmp_path / str(num), clients="1", rounds=num, epochs=3, **options) for num in (2, 3)
    )
    fine_tuning = FineTuningOptions(num_epochs=3)
    tuned = evaluating.evaluate_run(two, fine_tuning=fine_tuning).metrics["fine_tuned"]
    wanted = evaluating.evaluate_run(three).values
    # In round 3 the server adds the delta to the weights, so a weight's last bit may differ.
    assert tuned["metrics"] == pytest.approx(wanted, rel=1e-6)
    assert tuned["metrics"] != pytest.approx(evaluating.evaluate_run(two).values, rel=1e-3)


def test_fine_tuning_begins_with_the_first_rate_of_a_schedule(tmp_path: Path) -> None:
    schedule = {"client_schedule": "cosine", "client_schedule_options": {"decay_rounds": 1}}
    with_schedule = _train(tmp_path / "a", rounds=1, **schedule)
    without = _train(tmp_path / "b", rounds=1)
    fine_tuning = FineTuningOptions(num_steps=3)
    told = [
        evaluating.evaluate_run(run, fine_tuning=fine_tuning).metrics["fine_tuned"]
        for run in (with_schedule, without)
    ]
    assert told[0] == told[1]  # in the schedule's first round the factor of the rate is 1


def test_baseline_and_fine_tuned_stand_side_by_side(fedcli: Fedcli, tmp_path: Path) -> None:
    _train(tmp_path / "run")
    plain = json.loads(fedcli("eval", "run", "--clients", "all", "--json").out)
    command = ("eval", "run", "--clients", "all", "--finetune", 4, "--finetune-lr", 0.001)
    done = fedcli(*command, "--json", "--per-client", "c.csv", "--threads", 1)
    assert done.code == 0
    told = json.loads(done.out)
    tuned = told.pop("fine_tuned")
    assert told == plain
    assert {name: tuned[name] for name in ("num_steps", "batch_size", "optimizer")} == {
        "num_steps": 4,
        "batch_size": 20,
        "optimizer": "sgd",
    }
    assert tuned["learning_rate"] == 0.001
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 12
    before = np.array([float(row["loss"]) for row in rows])
    after = np.array([float(row["fine_tuned_loss"]) for row in rows])
    counts = np.array([float(row["num_examples"]) for row in rows])
    assert tuned["metrics"]["loss"] == pytest.approx((after * counts).sum() / counts.sum())
    assert tuned["over_clients"]["loss"]["mean"] == pytest.approx(after.mean())
    gain = tuned["gain_over_clients"]["loss"]
    assert gain["mean"] == pytest.approx((after - before).mean())
    assert gain["share_better"] == pytest.approx((after < before).mean())
    again = fedcli(*command, "--json", "--per-client", "c.h5", "--threads", 7)
    assert again.out == done.out
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["fine_tuned_loss"][()].tolist() == after.tolist()
        accuracies = file["fine_tuned_sparse_categorical_accuracy"][()]
    assert accuracies.mean() == pytest.approx(
        tuned["over_clients"]["sparse_categorical_accuracy"]["mean"]
    )
    table = fedcli(*command)
    assert f"{tuned['metrics']['loss']:.4f}" in table.out
    assert "Fine-tuned: 4 local steps of sgd, rate 0.001, batches of 20" in table.out
    assert "Gain by fine-tuning" in table.out


def test_gain_is_told_client_by_client() -> None:
    def stats(correct: list[int], loss: list[float]) -> dict[str, np.ndarray]:
        examples = np.array([4, 4, 4, 0])
        return {
            "num_correct": np.array([*correct, 0]),
            "num_examples": examples,
            "loss_sum": np.array([*loss, 0.0]),
        }

    told = spread.gain_over_clients(
        stats([1, 2, 2], [4.0, 4.0, 4.0]), stats([3, 2, 1], [2.0, 8.0, math.nan])
    )
    accuracy, loss = told["sparse_categorical_accuracy"], told["loss"]
    assert told["num_clients"] == 3
    assert accuracy["mean"] == pytest.approx(0.25 / 3)
    assert (accuracy["p50"], accuracy["worst_decile"]) == (0.0, -0.25)
    assert (accuracy["share_better"], accuracy["share_worse"]) == pytest.approx((1 / 3, 1 / 3))
    assert (loss["share_better"], loss["share_worse"]) == pytest.approx((1 / 3, 2 / 3))
    assert math.isnan(loss["mean"])


def test_clients_without_train_data_are_skipped(
    fedcli: Fedcli,
    write_tff: WriteTff,
) -> None:
    train, test = write_tff("train.h5", 3), write_tff("test.h5", 5)
    with h5py.File(train, "a") as file:  # b has no example: its model stays as it is
        for name in ("label", "pixels"):
            content = file[f"examples/b/{name}"][:0]
            del file[f"examples/b/{name}"]
            file[f"examples/b/{name}"] = content
    arguments = ("--data", train, "--test-data", test, "--rounds", 1, "--out", "run")
    assert fedcli("train", *arguments).code == 0
    done = fedcli("eval", "run", "--clients", "a,b,c", "--finetune", 2, "--per-client", "c.csv")
    assert "skipped" not in done.err
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    is_same = [row["loss"] == row["fine_tuned_loss"] for row in rows]
    assert is_same == [False, True, False]
    done = fedcli("eval", "run", "--clients", "a,d,e", "--finetune", 2, "--json")
    assert "2 clients are not in the train split" in done.err
    assert "and are skipped in fine-tuning" in done.err
    one = fedcli("eval", "run", "--clients", "a,d", "--finetune", 2)
    assert "1 client is not in the train split" in one.err
    assert json.loads(done.out)["num_clients"] == 1
    done = fedcli("eval", "run", "--clients", "d,e", "--finetune", 2)
    assert done.code == 1
    assert "no chosen client of the split test is in the train split" in done.err


def test_what_cannot_be_fine_tuned_is_refused(fedcli: Fedcli, tmp_path: Path) -> None:
    _train(tmp_path / "run")
    _train(tmp_path / "sgd", algorithm="fedsgd")

    def refused(*arguments: object, run: str = "run") -> str:
        done = fedcli("eval", run, *arguments)
        assert (done.code, done.out) == (1, "")
        return done.err

    assert "scored on the data they train on" in refused("--finetune", 2, "--split", "train")
    assert "needs either" in refused("--finetune", 2, "--finetune-epochs", 2)
    assert "choose a whole number from 1" in refused("--finetune", 0)
    assert "choose a whole number from 1" in refused("--finetune", 10**9)
    assert "choose a whole number from 1" in refused("--finetune-epochs", -1)
    assert "--finetune-batch-size 0" in refused("--finetune", 1, "--finetune-batch-size", 0)
    assert "--finetune-lr needs" in refused("--finetune-lr", 0.1)
    assert "--finetune-option needs" in refused("--finetune-option", "momentum=0.1")
    assert "--finetune-lr" in refused("--finetune", 1, "--finetune-lr", -1.0)
    assert "give --finetune-lr" in refused("--finetune", 1, "--finetune-optimizer", "adam")
    assert "give --finetune-lr" in refused("--finetune", 1, run="sgd")
    assert "unknown --finetune-optimizer" in refused("--finetune", 1, "--finetune-optimizer", "x")
    assert "sgd has no option" in refused("--finetune", 1, "--finetune-option", "beta_1=0.1")
    assert "its own model" in refused("--finetune", 1, "--by-class")
    assert "its own model" in refused("--finetune", 1, "--predictions", "p.csv")
    assert fedcli("eval", "sgd", "--finetune", 1, "--finetune-lr", 0.1, "-q").code == 0


def test_another_optimizer_takes_none_of_the_run_s_options() -> None:
    config = RunConfig(client_options={"momentum": 0.9}, client_optimizer="sgd", client_lr=0.1)
    asked = FineTuningOptions(num_steps=1, optimizer="adam", learning_rate=0.5)
    assert asked.resolve(config).optimizer.options["beta_1"] == 0.9
    own = FineTuningOptions(num_steps=1, options={"nesterov": True}).resolve(config).optimizer
    assert dict(own.options) == {"momentum": 0.9, "nesterov": True}
    assert own.learning_rate == 0.1
    with pytest.raises(ConfigError, match="STEPS or --finetune-epochs"):
        FineTuningOptions().resolve(config)
