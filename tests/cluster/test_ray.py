"""Runs on a real Ray cluster of this machine; skipped if Ray is not installed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import datasets
from fedcli.cluster import probe
from fedcli.cluster.engine import ClusterEngine
from fedcli.cluster.messages import WorkerDescription, WorkerSetup
from fedcli.cluster.opening import _Check
from fedcli.cluster.ray_workers import Placement, RayWorkers
from fedcli.core import native
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets import from_arrays
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_batches import ClientBatches
from fedcli.errors import ConfigError, FedcliError, RunError
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from fedcli.runs import starting
from fedcli.runs.python_api import train as fedcli_train
from fedcli.settings import RunConfig
from fedcli.settings.data_source import DataSource
from fedcli.version import __version__
from tests.cluster.conftest import processes_titled
from tests.kit.waiting import ENDLESS, wait_until

pytest.importorskip("ray")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("cluster")]

MY_MODEL = Path(__file__).parent.parent / "data" / "my_model.py"
SMALL: dict[str, Any] = {
    "data_options": {"clients": 60},
    "sampling": "uniform",
    "clients": "40",
    "rounds": 4,
    "max_examples": 30,
    "eval_clients": "40",
}
START_SECONDS = 600.0  # enough for busy machines

BATCH_NORM: dict[str, Any] = {
    "data": "synthetic-shapes",
    "model": "resnet20-bn",
    "clients": "3",
    "rounds": 2,
    "max_examples": 10,
    "eval_clients": "2",
}


def config(**options: Any) -> RunConfig:
    given = options.pop("engine_options", {})
    workers = {"workers": 2, "threads": 1, "start_seconds": START_SECONDS, **given}
    return RunConfig(**{**SMALL, "engine": "ray", "engine_options": workers, **options})


def train(config: RunConfig, out: Path, callbacks: Iterable[Any] = ()) -> None:
    with starting.start(config, out) as training:
        training.complete(callbacks)


def written(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("metrics.jsonl", "evaluation.json")}


def processes_of(workers: RayWorkers) -> list[int]:
    calls = [actor.handle.process_id.remote() for actor in workers._actors]
    return list(workers._ray.get(calls))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"algorithm": "scaffold", "client_weighting": "uniform"},
        {"aggregator": "median"},
        {"sampling": "with-replacement"},
        {"engine_options": {"data": "ship"}},
        {"sampling": "fixed", "model": "cnn-reddi", "rounds": 1},
        {**BATCH_NORM, "batch_norm": "average"},
        {**BATCH_NORM, "batch_norm": "frozen"},
        {**BATCH_NORM, "batch_norm": "local-layers", "sampling": "with-replacement"},
        {"augment": "flip+mixup", "sampling": "with-replacement", "epochs": 2},
    ],
    ids=[
        *("plain", "scaffold", "median", "with-replacement", "ship", "cnn"),
        *("averaged-batch-norm", "frozen-batch-norm", "local-batch-norm", "mixup"),
    ],
)
def test_a_run_has_the_bytes_of_threads(tmp_path: Path, options: dict[str, Any]) -> None:
    train(config(**options), tmp_path / "ray")
    near = {name: value for name, value in options.items() if name != "engine_options"}
    train(RunConfig(**{**SMALL, **near}), tmp_path / "threads")
    assert written(tmp_path / "ray") == written(tmp_path / "threads")


@pytest.mark.parametrize("first", ["threads", "ray"])
def test_a_run_resumes_on_the_other_engine(tmp_path: Path, first: str) -> None:
    second = {"threads": "ray", "ray": "threads"}[first]
    train(RunConfig(**SMALL), tmp_path / "whole")
    workers = {"workers": 2, "threads": 1, "start_seconds": START_SECONDS}

    def options(engine: str) -> dict[str, Any]:
        return {"engine": engine, "engine_options": workers if engine == "ray" else {}}

    train(RunConfig(**{**SMALL, "rounds": 2, **options(first)}), tmp_path / "run")
    with starting.resume(tmp_path / "run", rounds=4, **options(second)) as training:
        training.complete()
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_a_killed_worker_changes_no_byte(tmp_path: Path) -> None:
    train(RunConfig(**{**SMALL, "model": "mlp-2nn", "epochs": 3}), tmp_path / "threads")
    with starting.start(config(model="mlp-2nn", epochs=3), tmp_path / "ray") as training:
        workers = training._federation.workers
        assert workers is not None

        def kill(result: Any) -> None:
            if result.round_num == 2:
                victim = processes_of(workers)[0]
                os.kill(victim, signal.SIGSTOP)  # so that round 3 waits until the worker is lost
                threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()

        training.complete([kill])
    assert written(tmp_path / "ray") == written(tmp_path / "threads")


def test_cancelling_takes_effect_within_a_round(tmp_path: Path) -> None:
    cancel = CancelFlag()
    was_busy: list[bool] = []

    def cancel_when_busy() -> None:
        try:
            wait_until(lambda: any(processes_titled("ray::Actor.answer")))
            was_busy.append(True)
        finally:
            cancel.set()

    endless = config(model="cnn-mcmahan", epochs=ENDLESS, sampling="fixed", max_examples=None)
    with starting.start(endless, tmp_path / "run", cancel=cancel) as training:
        waiting = threading.Thread(target=cancel_when_busy)
        waiting.start()
        with pytest.raises(Cancelled):
            training.complete()
        waiting.join()
        assert was_busy
        assert training.round_num == 0
    train(config(rounds=1), tmp_path / "next")  # the cluster can be used again


def test_cancelling_waits_for_no_worker_and_does_not_affect_the_next_call() -> None:
    source = DataSource(data_options={"clients": 40})
    splits = datasets.open_splits(source)
    clients = ClientBatches(splits["train"], splits["train"].client_ids, BatchPlan(20), seed=3)
    model = softmax_regression((28, 28), 10)
    cancel = CancelFlag()
    cancel.set()
    with RayWorkers(
        Placement("auto", 2, 1, START_SECONDS), WorkerSetup(source, 1), lambda _: None
    ) as workers:
        engine = ClusterEngine(workers, ThreadEngine(1), splits)
        before = processes_of(workers)
        for each in before:
            os.kill(each, signal.SIGSTOP)  # they cannot answer, as in the middle of a long step
        try:
            with pytest.raises(Cancelled):
                engine.evaluate(model.layout, model.initial_params, clients, cancel=cancel)
        finally:
            for each in before:
                os.kill(each, signal.SIGCONT)
        found = engine.evaluate(model.layout, model.initial_params, clients)
        assert processes_of(workers) == before  # no worker was replaced
    expected = ThreadEngine(1).evaluate(model.layout, model.initial_params, clients)
    for name in native.STATS.names or ():
        assert found[name].tobytes() == expected[name].tobytes()


def test_a_run_is_saved_and_unlocked_before_its_workers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = RayWorkers.close
    saved: list[int] = []

    def close_later(workers: RayWorkers) -> None:
        with starting.resume(tmp_path / "run", engine="threads", engine_options={}) as training:
            saved.append(training.round_num)
        close(workers)

    with starting.start(config(checkpoint_every=100, rounds=3), tmp_path / "run") as training:
        next(training.run())
        monkeypatch.setattr(RayWorkers, "close", close_later)
    assert saved == [1]


def test_the_wait_for_workers_can_be_cancelled() -> None:
    cancel = CancelFlag()
    cancel.set()
    place = Placement("auto", 9, 1, 600.0)  # the cluster has two processors
    with pytest.raises(Cancelled):
        RayWorkers(place, WorkerSetup(None, 1), lambda _: None, cancel)


def test_an_error_in_the_data_is_reported_as_on_threads(tmp_path: Path) -> None:
    told: list[str] = []
    for wanted in (RunConfig(**SMALL, num_classes=5), config(num_classes=5)):
        with pytest.raises(FedcliError) as caught:
            train(wanted, tmp_path / f"run{len(told)}")
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "\n" not in told[0]


def test_workers_with_another_instruction_set_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.isa_name() == "generic":
        pytest.skip("the driver has the lowest instruction set already")
    monkeypatch.setattr("fedcli.core.native.isa_name", lambda: "generic")
    place = Placement("auto", 1, 1, START_SECONDS)
    descriptions: list[WorkerDescription] = []
    with RayWorkers(place, WorkerSetup(DataSource(), 1), descriptions.append):
        pass
    monkeypatch.undo()
    assert descriptions[0].isa == "generic"
    with pytest.raises(RunError, match="FEDCLI_ISA=generic fedcli train"):
        _Check(DataSource())(descriptions[0])


def test_workers_with_other_data_or_arithmetic_are_refused() -> None:
    check = _Check(DataSource())
    data = datasets.fingerprint(DataSource())
    good = WorkerDescription("far", __version__, native.isa_name(), data, probe.digest())
    check(good)
    for bad, words in (
        (good._replace(fedcli="0.0"), "install the same version"),
        (good._replace(fingerprint="abd"), "far has other data at synthetic-digits"),
        (good._replace(probe="0"), "as this machine, but computes other bytes"),
    ):
        with pytest.raises(RunError, match=words):
            check(bad)


def test_too_many_workers_are_refused_in_time(tmp_path: Path) -> None:
    many = config(engine_options={"workers": 9, "start_seconds": 2})
    with pytest.raises(RunError, match="of 9 Ray workers with 1 processors started in 2 s"):
        train(many, tmp_path / "run")


def test_a_model_in_python_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MnistModel is a Python model; choose --engine"):
        train(config(model=str(MY_MODEL)), tmp_path / "run")


def test_data_in_memory_are_refused_unless_they_are_sent(tmp_path: Path) -> None:
    clients = {
        f"c{number}": (np.full((20, 28, 28), number, np.uint8), np.arange(20) % 10)
        for number in range(12)
    }
    data = from_arrays(clients)
    options = {**SMALL, "data_options": {}, "sampling": "uniform", "clients": "9", "rounds": 2}
    options["eval_clients"] = "5"
    weights = []
    for name, sent in (("no", "read"), ("yes", "ship")):
        engine: dict[str, Any] = {"workers": 2, "threads": 1, "data": sent}
        engine["start_seconds"] = START_SECONDS
        config = RunConfig(**options, engine="ray", engine_options=engine)
        if sent == "read":
            with pytest.raises(ConfigError, match='"data": "ship"'):
                fedcli_train(config, tmp_path / name, data=data)
        else:
            weights.append(fedcli_train(config, tmp_path / name, data=data).weights())
    weights.append(fedcli_train(RunConfig(**options), tmp_path / "near", data=data).weights())
    for sent, near in zip(*(each.trainable for each in weights), strict=True):
        assert sent.tobytes() == near.tobytes()


def test_a_ray_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="run fedcli on a node of the cluster"):
        RayWorkers(Placement("ray://far:10001", 1, 1, 5.0), WorkerSetup(None, 1), lambda _: None)
