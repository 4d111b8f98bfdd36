"""Clients that keep their own models, compared with each client trained alone in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import datasets, learning
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError, RunError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.state import ServerState
from fedcli.models.zoo import softmax_regression
from fedcli.runs import evaluating
from fedcli.runs.files import folder
from fedcli.runs.trained import load_trained
from fedcli.settings.rules import from_options
from fedcli.settings.run_config import RunConfig
from tests.kit import reference
from tests.kit.clients import make_clients
from tests.kit.command_line import Fedcli
from tests.kit.stores import write_counted_store
from tests.kit.training import (
    make_config,
    resume_rounds,
    resume_to_end,
    train,
    train_and_vanish,
    train_rounds,
)

pytestmark = pytest.mark.numeric

SIZES = (7, 1, 40, 0, 23)
RATE, MOMENTUM = 0.2, 0.5
NUM_PARAMS = 63
LOCAL: dict[str, Any] = {
    "algorithm": "local-only",
    "sampling": "uniform",
    "client_options": {"momentum": 0.5},
    "client_lr": 0.005,
    "eval_every": 2,
    "eval_clients": "all",
    "client_dropout": 0.3,
}


def make_process(
    name: str = "local-only", rate: float = RATE, num_threads: int = 2
) -> learning.LearningProcess:
    algorithm = algorithms.build(
        name,
        optimizers.sgd(rate, momentum=MOMENTUM),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean", {}),
    )
    model = softmax_regression((5, 4), 3)
    return learning.build_process(algorithm, model, engine=ThreadEngine(num_threads))


def models_of(state: ServerState) -> list[NDArray[np.float32]]:
    return [state.weights_for(f"client {number}") for number in range(len(SIZES))]


def own_models(path: Path, num_clients: int = 12) -> list[bytes]:
    with load_trained(path, 1) as trained:
        ids = [f"s{number:07}" for number in range(num_clients)]
        return [trained.state.weights_for(each).tobytes() for each in ids]


def outcome(path: Path) -> list[bytes]:
    """Returns the files of a run that hold no times, and the models of its clients."""
    files = [path / name for name in ("metrics.jsonl", "evaluation.json", "config.toml")]
    files.append(folder.latest_checkpoint(path))
    return [*(file.read_bytes() for file in files), *own_models(path)]


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_models_are_those_of_clients_that_train_alone(num_threads: int) -> None:
    clients = make_clients(SIZES, plan=BatchPlan(epochs=2, batch_size=6, shuffle_buffer=9))
    process = make_process(num_threads=num_threads)
    state = process.initialize()
    models = [np.zeros(NUM_PARAMS) for _ in clients]
    cohorts = [(0, 2, 3), (2, 1), (0, 1, 2, 3, 4)]
    for round_num, cohort in enumerate(cohorts):
        output = process.next(state, [clients[each] for each in cohort])
        state = output.state
        num_correct = num_examples = 0
        for each in cohort:
            batches = [(one["x"], one["y"][:, 0]) for one in clients[each].in_round(round_num)]
            sgd = reference.Sgd(RATE, MOMENTUM)
            delta, stats = reference.train_client(models[each], batches, sgd, 3)
            models[each] = models[each] + delta
            num_correct += stats.num_correct
            num_examples += stats.num_examples
        for found, wanted in zip(models_of(state), models, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        reported = output.metrics["client_work"]["train"]
        assert reported["num_examples"] == num_examples
        assert reported["sparse_categorical_accuracy"] == pytest.approx(num_correct / num_examples)
    assert not state.global_model_weights.any()
    assert not models[3].any()


def test_threads_change_no_bit() -> None:
    clients = make_clients(SIZES, plan=BatchPlan(epochs=3, batch_size=6, shuffle_buffer=9))
    found = []
    for num_threads in (1, 2, 7):
        process = make_process(num_threads=num_threads)
        state = process.initialize()
        for _ in range(3):
            state = process.next(state, clients).state
        found.append([each.tobytes() for each in models_of(state)])
    assert found[0] == found[1] == found[2]


def test_a_lone_client_trains_as_in_federated_averaging() -> None:
    plan = BatchPlan(epochs=2, batch_size=8, shuffle_buffer=50)
    client = make_clients(SIZES, plan=plan)[2]
    own, averaged = make_process(), make_process("fedavg")
    left, right = own.initialize(), averaged.initialize()
    for _ in range(3):
        left, right = own.next(left, [client]).state, averaged.next(right, [client]).state
    # The file stores the difference from the initial model, so the last bits may differ.
    np.testing.assert_allclose(
        left.weights_for("client 2"), right.global_model_weights, rtol=1e-5, atol=1e-6
    )


def test_a_client_that_is_lost_keeps_its_model() -> None:
    clients = make_clients(SIZES, plan=BatchPlan(epochs=2, batch_size=6))
    process, wild = make_process(), make_process(rate=1e38)
    state = process.next(process.initialize(), clients).state
    output = wild.next(state, clients[:3])
    assert output.metrics["client_work"]["train"]["num_non_finite_clients"] > 0
    for before, after, stats in zip(
        models_of(state), models_of(output.state), output.client_stats, strict=False
    ):
        assert (before.tobytes() == after.tobytes()) == (not stats["is_finite"])
        assert np.isfinite(after).all()


def test_a_client_that_comes_twice_keeps_the_second_of_two_trainings_from_its_model() -> None:
    other, _, client, *_ = make_clients(SIZES, plan=BatchPlan(batch_size=6, shuffle_buffer=9))
    process = make_process()
    begun = process.next(process.initialize(), [client, other]).state
    before = begun.weights_for("client 2")
    once = process.next(begun, [client]).state.weights_for("client 2")
    begun = process.next(process.initialize(), [client, other]).state
    twice = process.next(begun, [client, other, client]).state.weights_for("client 2")
    lone = learning.build_weighted_fed_avg(
        softmax_regression((5, 4), 3), optimizers.sgd(RATE, momentum=MOMENTUM)
    )
    start = replace(lone.initialize(), round_num=1, global_model_weights=before)
    deltas = [
        lone.next(start, cohort).state.global_model_weights - before
        for cohort in ([client], [client, client])
    ]
    np.testing.assert_allclose(once, before + deltas[0], rtol=0, atol=1e-6)
    second = 2 * deltas[1] - deltas[0]  # deltas[1] is the mean of both trainings
    np.testing.assert_allclose(twice, before + second, rtol=0, atol=1e-5)
    assert np.abs(deltas[1] - deltas[0]).max() > 1e-4  # the second training has another order


def test_an_empty_cohort_changes_nothing() -> None:
    process = make_process()
    output = process.next(process.initialize(), ())
    assert output.metrics["client_work"]["train"]["num_examples"] == 0
    assert not any(each.any() for each in models_of(output.state))


def test_each_client_is_evaluated_with_its_own_model(tmp_path: Path) -> None:
    closing = train(tmp_path / "run", make_config(**LOCAL))
    found = evaluating.evaluate_run(tmp_path / "run", clients="all")
    assert found.metrics == closing["test"]
    assert folder.read_metrics(tmp_path / "run")[-1]["evaluation"]["test"] == found.values
    assert found.is_seen is not None
    with load_trained(tmp_path / "run", 1) as trained:
        for client_id, stats, is_seen in zip(
            found.client_ids, found.client_stats, found.is_seen, strict=True
        ):
            weights = trained.state.weights_for(client_id)
            assert weights.any() == is_seen
            client = found.data.client(client_id)
            tested = [(each["x"], each["y"][:, 0]) for each in BatchedDataset(client, BatchPlan())]
            wanted = reference.evaluate(weights.astype(np.float64), [tested], 10)
            assert stats["num_correct"] == wanted.num_correct
            assert stats["loss_sum"] == pytest.approx(wanted.loss_sum, rel=1e-4)
    assert found.is_seen.any()
    assert "each client is evaluated with its own model" in found.notes[0]


def test_a_stopped_and_resumed_run_equals_the_straight_run(tmp_path: Path) -> None:
    config = make_config(**LOCAL)
    train(tmp_path / "straight", config)
    train_rounds(tmp_path / "stopped", config, 3)
    for threads in (1, 7):
        resume_rounds(tmp_path / "stopped", 1, threads=threads)
    resume_to_end(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_a_killed_and_resumed_run_equals_the_straight_run(tmp_path: Path) -> None:
    values = {"data_options": {"clients": 12}, "clients": "4", "rounds": 6, "epochs": 2}
    values.update(LOCAL, threads=2, checkpoint_every=2)
    train(tmp_path / "straight", from_options(values))
    out = tmp_path / "killed"
    train_and_vanish(out, values, 6)
    resume_to_end(out)
    assert outcome(out) == outcome(tmp_path / "straight")


def test_an_older_checkpoint_has_the_models_of_its_round(tmp_path: Path) -> None:
    values = {**LOCAL, "sampling": "fixed", "client_dropout": 0.0}
    for num_rounds in (3, 6):
        config = make_config(**{**values, "rounds": num_rounds, "checkpoint_every": 3})
        train(tmp_path / str(num_rounds), config)
    older = next(
        file for file in folder.find_checkpoints(tmp_path / "6") if file.stem.endswith("000003")
    )
    assert own_models(older) == own_models(tmp_path / "3") != own_models(tmp_path / "6")
    alone = tmp_path / "elsewhere" / "checkpoints" / "round.h5"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(older.read_bytes())
    with pytest.raises(RunError, match=r"client_states.sqlite is missing, and the run needs it"):
        evaluating.evaluate_run(alone)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"server_lr": 0.5}, "--server-lr"),
        ({"server_options": {"momentum": 0.9}}, "--server-option"),
        ({"server_schedule": "cosine"}, "--server-schedule"),
        ({"server_ema": 0.9}, "--server-ema"),
        ({"server_optimizer": "adam"}, "--server-optimizer"),
        ({"aggregator": "tff-robust"}, "--aggregator"),
        ({"tensorboard": True, "histograms": True}, "--histograms"),
    ],
)
def test_options_that_need_a_shared_model_are_refused(values: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=f"^{option}"):
        from_options({"algorithm": "local-only", **values})
    config = from_options({"algorithm": "local-only"})
    assert from_options({name: getattr(config, name) for name in vars(config)}) == config


def test_commands_that_need_one_model_say_so(fedcli: Fedcli, tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(**LOCAL))
    for command in (
        ("export", "run", "w.npz"),
        ("eval", "run", "--finetune", 2),
        ("eval", "run", "--by-class"),
        ("eval", "run", "--predictions", "p.csv"),
    ):
        done = fedcli(*command)
        assert (done.code, done.out) == (1, "")
        assert "has a model of its own, and there is no common model" in done.err
        assert len(done.err.splitlines()) == 1
    assert fedcli("report", "run").code == 0
    assert not (tmp_path / "w.npz").exists()
    assert not (tmp_path / "p.csv").exists()


def test_what_needs_one_model_is_refused_before_anything_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", make_config(**LOCAL))
    monkeypatch.setattr(evaluating, "open_data", None)  # no data are read
    options: tuple[dict[str, Any], ...] = (
        {"fine_tuning": evaluating.FineTuningOptions()},
        {"predictions_file": tmp_path / "p.csv"},
        {"num_errors": 3},
        {"prediction_callbacks": [print]},
    )
    for each in options:
        with pytest.raises(ConfigError, match="there is no common model"):
            evaluating.evaluate_run(tmp_path / "run", **each)


def test_a_central_split_is_not_evaluated(tmp_path: Path, fedcli: Fedcli) -> None:
    source = write_counted_store(
        tmp_path / "all.h5", train={f"c{each:02}": 20 for each in range(20)}
    )
    hold_out = ("--hold-out", "central", "--out", "held.h5", "-q")
    assert fedcli("preprocess", source, *hold_out).code == 0
    done = fedcli(
        *("train", "--data", "held.h5", "--algorithm", "local-only", "--rounds", 1, "--out", "run")
    )
    assert "evaluating on train only" in done.err
    assert list(folder.read_evaluation(tmp_path / "run") or {}) == ["train"]
    assert json.loads(fedcli("eval", "run", "--json").out)["split"] == "train"
    assert (
        "--split central: its clients are outside"
        in fedcli("eval", "run", "--split", "central").err
    )


def test_a_run_can_be_examined_client_by_client(fedcli: Fedcli, tmp_path: Path) -> None:
    config = RunConfig(
        data_options={"clients": 12}, clients="4", rounds=2, algorithm="local-only", client_lr=0.005
    )
    train(tmp_path / "run", config)
    done = fedcli("report", "run", "--html", "page.html")
    assert done.code == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    done = fedcli("inspect-clients", "--run", "run", "--clients", 3, "--json")
    (first, *_) = json.loads(done.out)["suspects"]["examples"]
    with load_trained(tmp_path / "run", 1) as trained:
        weights = trained.state.weights_for(first["client_id"])
    train_data, _ = datasets.load(data_options={"clients": 12})
    client = train_data.client(first["client_id"])
    batches = reference.make_batches(client.images(), client.labels, [first["index"]], 1)
    wanted = reference.evaluate(weights.astype(np.float64), [batches], 10)
    assert first["score"] == pytest.approx(wanted.loss_sum, rel=1e-4)
