"""fedcli bench: what it runs, counts and prints. No test checks a speed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import models
from fedcli.benchmarks import flute, jobs, layer_times, machine, numpy_peer, own, peers, tasks
from fedcli.benchmarks.running import thread_counts
from fedcli.benchmarks.tasks import AVERAGE, EVALUATE, TRAIN, Task
from fedcli.benchmarks.timing import Pace, Runner, Spread, Timer, in_turn, ratio
from fedcli.cli.screen import bench_tables
from fedcli.core import native
from fedcli.core.native import CancelFlag, Cancelled, Phase
from fedcli.errors import ConfigError, DataError
from fedcli.models.model import Model
from fedcli.progress import ignore_progress
from fedcli.settings import tables
from tests.kit.command_line import Fedcli

HAS_TORCH = importlib.util.find_spec("torch") is not None
NO_PACE = Pace(repeats=2, turn_seconds=0.0, pause_seconds=0.0)


class FakeClock:
    """A clock that only the test moves forward."""

    def __init__(self) -> None:
        self.time = 0.0
        self.paused: list[float] = []

    @property
    def timer(self) -> Timer:
        return Timer(lambda: self.time, self.paused.append)


# ---- Runners take turns ----


def test_runners_take_turns_and_seconds_are_per_call() -> None:
    log: list[tuple[str, int]] = []

    def runner(name: str, seconds: float) -> Runner:
        def run(num_calls: int) -> float:
            log.append((name, num_calls))
            return seconds * num_calls

        return Runner(name, 1, run)

    clock = FakeClock()
    told: list[tuple[int, int | None]] = []
    spreads = in_turn(
        [runner("a", 0.25), runner("b", 2.0)],
        Pace(repeats=3, turn_seconds=1.0, pause_seconds=0.5),
        clock.timer,
        lambda done, total: told.append((done, total)),
    )
    assert spreads == [Spread((0.25,) * 3), Spread((2.0,) * 3)]
    # A turn of 1 s has four calls of "a" (0.25 s each), and one call of "b", though it takes 2 s.
    assert log[-6:] == [("a", 4), ("b", 1)] * 3
    assert clock.paused == [0.5] * 6
    assert told == [(done, 8) for done in range(1, 9)]


def test_calls_of_a_turn_are_bounded_when_nothing_can_be_measured() -> None:
    seen: list[int] = []

    def run(num_calls: int) -> float:
        seen.append(num_calls)
        return 0.0

    in_turn([Runner("a", 1, run)], Pace(1, 1.0, 0.0), FakeClock().timer, ignore_progress)
    assert max(seen) <= 400_000


def test_ratios_are_computed_turn_by_turn() -> None:
    found = ratio(Spread((1.0, 2.0, 9.0)), Spread((2.0, 4.0, 3.0)))
    assert found.values == (0.5, 0.5, 3.0)
    assert (found.median, found.least, found.most) == (0.5, 0.5, 3.0)


@pytest.mark.parametrize(
    ("most", "counts"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))]
)
def test_threads_double_up_to_the_maximum(most: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(most) == counts


# ---- The same work for fedcli and its peers ----


def test_cut_clients_of_natural_sizes_are_the_writers_themselves() -> None:
    from fedcli import datasets

    train, _ = datasets.load()
    sizes = tasks.natural_sizes(3)
    for client, client_id in zip(tasks.cut_clients(sizes), train.client_ids[:3], strict=True):
        writer = train.client(client_id)
        assert client.client_id == client_id
        assert np.array_equal(client.labels, writer.labels)
        assert np.array_equal(client.images(), writer.images())


def test_cut_clients_have_the_requested_sizes_and_share_no_example() -> None:
    sizes = (1, 250, 0, 7)
    clients = list(tasks.cut_clients(sizes))
    assert tuple(map(len, clients)) == sizes
    pixels = np.concatenate([each.pixels for each in clients]).reshape(sum(sizes), -1)
    assert len(np.unique(pixels, axis=0)) == sum(sizes)


@pytest.mark.parametrize(("total", "num"), [(61_664, 1000), (5, 7), (12, 3)])
def test_even_sizes_sum_to_the_total(total: int, num: int) -> None:
    sizes = tasks.even_sizes(total, num)
    assert (sum(sizes), len(sizes)) == (total, num)
    assert max(sizes) - min(sizes) <= 1


def small_task(kind: str, model: str, **options: Any) -> Task:
    return Task(kind, model, (23, 12), 10, 2, 0.05, options=options)


def own_parameters(task: Task) -> np.ndarray:
    """Returns the result of fedcli as an array like the result of a peer."""
    model = tasks.build_model(task)
    found: Any = own.prepare(task, 2, CancelFlag())()
    if task.kind == AVERAGE:
        return np.asarray(found)
    if task.kind == TRAIN:
        return model.initial_params + found.delta_sum / found.weight_sum
    total = found["num_examples"].sum()
    return np.array([found["loss_sum"].sum() / total, found["num_correct"].sum() / total])


CASES = [
    ("softmax-regression", {}),
    ("mlp-2nn", {}),
    ("cnn-mcmahan", {}),
    ("cnn-reddi", {"dropout": [0.0]}),
    ("lenet5", {}),
]


KINDS = pytest.mark.parametrize("kind", [TRAIN, EVALUATE, AVERAGE])


def assert_same_work(task: Task, theirs: np.ndarray) -> None:
    """Asserts that fedcli updates or evaluates the parameters as a peer does.

    The norm of the difference must be small beside the norm of the step. Single entries are not
    compared: a near-tie in a max-pool or a ReLU may round differently, which changes a few entries
    of a convolution by about 1e-4. A wrong gradient changes all entries by as much as the step.
    """
    start = tasks.build_model(task).initial_params if task.kind == TRAIN else 0
    mine, peer = own_parameters(task) - start, theirs.astype(np.float64) - start
    assert np.linalg.norm(mine - peer) <= 2e-3 * np.linalg.norm(peer)


@KINDS
@pytest.mark.parametrize(("model", "options"), CASES)
def test_numpy_computes_the_same_as_fedcli(kind: str, model: str, options: dict[str, Any]) -> None:
    task = tasks.from_json(small_task(kind, model, **options).to_json())
    assert_same_work(task, numpy_peer.prepare(task, 1)())


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
@KINDS
@pytest.mark.parametrize(("model", "options"), CASES)
def test_torch_computes_the_same_as_fedcli(kind: str, model: str, options: dict[str, Any]) -> None:
    from fedcli.benchmarks import torch_peer

    task = small_task(kind, model, **options)
    assert_same_work(task, torch_peer.prepare(task, 1)())


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
def test_torch_reports_moving_statistics_after_all_weights() -> None:
    """Trained weights are not compared with fedcli's.

    Batch norms multiply PyTorch's rounding errors: they reach 1 % of a step.
    """
    from fedcli.benchmarks import torch_peer

    model = tasks.build_model(Task(TRAIN, "resnet20-bn", (5,), data=tasks.SHAPES))
    counted = np.arange(model.layout.num_params, dtype=np.float32)
    given = Model(model.name, model.layout, counted)
    net = torch_peer.build(given)
    np.testing.assert_array_equal(torch_peer.gather(given, torch_peer._tensors(net)), counted)
    task = Task(TRAIN, "resnet20-bn", (5, 4), 5, 1, data=tasks.SHAPES)
    mine, peer = own_parameters(task), torch_peer.prepare(task, 1)()
    moving = slice(model.layout.num_trained, None)
    assert np.abs(mine - peer)[moving].max() < 0.01 * np.abs(mine - model.initial_params).max()


DEEP = [(TRAIN, "resnet20"), (TRAIN, "vgg11"), (TRAIN, "resnet18-gn"), (EVALUATE, "mobilenet-v2")]


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
@pytest.mark.parametrize(("kind", "model"), DEEP)
def test_torch_computes_the_same_as_fedcli_in_deep_models(kind: str, model: str) -> None:
    """mobilenet-v2 is only evaluated: in its gradient PyTorch's rounding errors reach 0.5 %."""
    from fedcli.benchmarks import torch_peer

    task = Task(kind, model, (5, 4), 5, 1, data=tasks.SHAPES)
    assert_same_work(task, torch_peer.prepare(task, 1)())


def test_clients_of_shapes_are_in_colour() -> None:
    (client,) = tasks.cut_clients((3,), data=tasks.SHAPES)
    images = client.images()
    assert images.shape == (3, 32, 32, 3)
    assert 0 <= images.min() < images.max() <= 1


def test_numpy_is_left_out_of_the_jobs_that_it_cannot_do(fedcli: Fedcli) -> None:
    arguments = ("--jobs", "resnet20,average", "--compare", "numpy", "--threads", 1)
    done = fedcli("bench", "--quick", "--json", *arguments)
    assert done.code == 0, done.err
    rows = {job["job"]: [row["by"] for row in job["rows"]] for job in json.loads(done.out)["jobs"]}
    assert rows == {"resnet20-20": ["fedcli"], "average": ["fedcli", "numpy"]}


def test_numpy_applies_dropout() -> None:
    with_dropout, without = (
        numpy_peer.prepare(Task(TRAIN, "cnn-reddi", (6,), 3, 1, 0.05, options=options), 1)()
        for options in ({"dropout": [0.9]}, {"dropout": [0.0]})
    )
    assert np.isfinite(with_dropout).all()
    assert not np.allclose(with_dropout, without, atol=1e-4)


def test_numpy_refuses_an_unknown_layer() -> None:
    from fedcli.benchmarks.numpy_net import Net
    from fedcli.core.draws import Stream
    from fedcli.core.seeds import Purpose, stream_key
    from fedcli.models.layers import Conv2D, Dense, Flatten

    model = models.sequential([Conv2D(2, 3, strides=2), Flatten(), Dense(10)], (28, 28))
    with pytest.raises(ConfigError, match="layer conv2d: the NumPy program has no conv2d"):
        Net(model, Stream(stream_key(0, Purpose.DROPOUT)))


def test_a_multiply_add_counts_as_two_operations() -> None:
    model = models.build("mlp-2nn")
    forward = 784 * 200 + 200 * 200 + 200 * 10
    scored, trained = small_task(EVALUATE, "mlp-2nn"), small_task(TRAIN, "mlp-2nn")
    assert tasks.operations(scored, model) == 2 * forward * 70
    # Training costs three forward passes, without the gradient of the first layer's inputs.
    assert tasks.operations(trained, model) == 2 * (3 * forward - 784 * 200) * 70


# ---- Jobs ----


def test_choose_takes_names_and_prefixes() -> None:
    def names(text: str) -> list[str]:
        return [job.name for job in jobs.choose(text)]

    assert names("cnn-reddi") == ["cnn-reddi-10", "cnn-reddi-20"]
    assert names("store, average,store") == ["store", "average"]
    of_digits = [row.name for row in tables.MODELS.values() if row.example_shape == (28, 28)]
    assert names("eval") == [f"eval-{name}" for name in of_digits]
    assert names("flute-lr") == ["flute-lr"]


def test_jobs_on_real_data_run_by_default_only_if_the_data_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDCLI_DATA_DIR", str(tmp_path))
    assert "flute-lr-mnist" not in [job.name for job in jobs.choose(None)]
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.h5").touch()
    assert "flute-lr-mnist" in [job.name for job in jobs.choose(None)]


def test_a_job_without_its_data_names_the_download_command(
    fedcli: Fedcli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FEDCLI_DATA_DIR", str(tmp_path))
    done = fedcli("bench", "--quick", "--jobs", "flute-lr-mnist")
    assert done.code == 1
    assert "fedcli download mnist" in done.err


def test_flute_jobs_have_the_published_sizes() -> None:
    smaller = flute.synthetic_data(flute.CNN)
    assert sorted(map(len, smaller.clients.values()))[0] == 671_585 // 3400
    assert len(smaller.clients) == 10
    assert flute.num_visits(flute.CNN, smaller) == sum(map(len, smaller.clients.values()))
    assert flute.LR.num_train + flute.LR.num_test == 69_035


def test_flute_lr_learns_on_synthetic_digits() -> None:
    data = flute.synthetic_data(flute.LR)
    assert sum(map(len, data.tested)) == 7_371
    accuracy = flute.prepare(flute.LR, data, 2, CancelFlag())()
    assert 0.6 < accuracy <= 1.0  # 100 rounds of 10 clients; guessing gives 0.1


def test_flute_job_on_real_data_names_the_download_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDCLI_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="fedcli download emnist-62"):
        flute.real_data(flute.CNN)


def test_a_cancelled_call_ends() -> None:
    cancel: CancelFlag = CancelFlag()
    work = own.prepare(small_task(TRAIN, "mlp-2nn"), 1, cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        work()


# ---- Peers ----


def test_peer_answers_with_seconds_and_ends() -> None:
    with ExitStack() as resources:
        peer = start_peer("numpy", resources)
        assert 0 < peer.run(2) < 60
        process = peer._process
    assert process.returncode is not None


def test_peer_that_ends_is_named_with_its_reason() -> None:
    with (
        ExitStack() as resources,
        pytest.raises(ConfigError, match=r"--compare numpy: its process ended: .*no-such-model"),
    ):
        start_peer("numpy", resources, model="no-such-model")


def start_peer(name: str, resources: ExitStack, model: str = "softmax-regression") -> peers.Peer:
    return peers.Peer(
        name,
        small_task(TRAIN, model),
        1,
        module="fedcli.cli.bench_peer",
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        poll=lambda: None,
        resources=resources,
    )


def test_compare_refuses_an_unknown_name(fedcli: Fedcli) -> None:
    done = fedcli("bench", "--compare", "numpy,jax")
    assert done.code == 1
    assert done.err == "fedcli: error: --compare 'jax': choose from numpy, torch\n"


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed")
def test_a_missing_peer_is_left_out_and_named(fedcli: Fedcli) -> None:
    done = fedcli("bench", "--quick", "--jobs", "average", "--compare", "torch", "--json")
    assert done.code == 0
    assert "pip install 'fedcli[torch]'" in done.err
    assert json.loads(done.out)["missing"] == ["torch"]


# ---- The command ----

ROW_KEYS = {
    *("by", "threads", "median_seconds", "min_seconds", "max_seconds", "num_units"),
    *("units_per_second", "ms_per_unit", "share_of_peak", "speedup", "fedcli_over_this"),
    "all_seconds",
}


def test_every_job_runs_and_json_has_its_keys(fedcli: Fedcli) -> None:
    done = fedcli("bench", "--quick", "--json", "--threads", 2, "--repeats", 1)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report) == {"machine", "limits", "jobs", "layers", "quick", "missing"}
    assert report["quick"] is True
    assert {"cpu", "cores", "caches", "isa", "threads", "numpy", "fedcli"} <= set(report["machine"])
    assert set(report["limits"]["fma"]["1"]) == {"median", "min", "max"}
    assert {job["job"] for job in report["jobs"]} >= {
        *("tutorial-round", "mlp-2nn-10", "cnn-mcmahan-20", "cnn-reddi-10", "eval-lenet5"),
        *("average", "synthetic", "store", "flute-lr", "flute-cnn"),
    }
    for job in report["jobs"]:
        for row in job["rows"]:
            assert set(row) == ROW_KEYS
            assert row["by"] == "fedcli"
            assert 0 < row["min_seconds"] <= row["median_seconds"] <= row["max_seconds"]
            assert row["units_per_second"] == row["num_units"] / row["median_seconds"]
    rows = {job["job"]: job["rows"] for job in report["jobs"]}
    assert [row["threads"] for row in rows["mlp-2nn-10"]] == [1, 2]
    assert [row["threads"] for row in rows["store"]] == [1]
    assert rows["mlp-2nn-10"][0]["share_of_peak"] > 0
    assert rows["mlp-2nn-10"][1]["speedup"] > 0
    assert rows["store"][0]["share_of_peak"] is None


def test_numpy_takes_turns_with_fedcli(fedcli: Fedcli) -> None:
    arguments = ("--jobs", "tutorial-round", "--compare", "numpy", "--threads", 1)
    done = fedcli("bench", "--quick", "--json", *arguments)
    assert done.code == 0, done.err
    own_row, numpy_row = json.loads(done.out)["jobs"][0]["rows"]
    assert (own_row["by"], numpy_row["by"]) == ("fedcli", "numpy")
    assert own_row["num_units"] == numpy_row["num_units"] == 5 * sum(tasks.natural_sizes(10))
    assert numpy_row["fedcli_over_this"] > 0


def test_table_names_machine_limits_and_jobs(fedcli: Fedcli) -> None:
    done = fedcli("bench", "--quick", "--jobs", "mlp-2nn-10,store", "--threads", 1)
    assert done.code == 0, done.err
    assert done.out.startswith("fedcli ")
    for text in (
        "Limits of this machine",
        "GFLOP/s",
        "mlp-2nn-10",
        "of peak",
        "do not quote these figures",
    ):
        assert text in done.out
    assert done.err == ""


def test_layers_cover_every_layer_forward_and_backward(fedcli: Fedcli) -> None:
    done = fedcli("bench", "--quick", "--layers", "cnn-reddi", "--json", "--threads", 1)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["jobs"] == []
    stages = report["layers"]["stages"]
    names = [name for stage in stages if stage["phase"] == "forward" for name in stage["layers"]]
    assert names == [layer.name for layer in models.build("cnn-reddi").layout.layers]
    assert {stage["phase"] for stage in stages} == {"forward", "backward", "derive"}
    printed = fedcli("bench", "--quick", "--layers", "mlp-2nn", "--threads", 1).out
    assert "Layers of mlp-2nn, batches of 10" in printed


def test_layers_count_the_operations_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves one second at each repeat of a phase, and at each call for the peak speed."""
    clock = FakeClock()

    def exercise(*arguments: Any) -> None:
        clock.time += arguments[-1]

    def multiply_add(num_steps: int) -> float:
        clock.time += 1.0
        return 4e6

    monkeypatch.setattr(native, "exercise", exercise)
    monkeypatch.setattr(native, "fma_peak_run", multiply_add)
    model = models.build("mlp-2nn")
    times = layer_times.measure(model, 10, NO_PACE, clock.timer, ignore_progress)
    assert [each.phase for each in times.stages] == list(Phase) * 3
    assert [each.layers for each in times.stages[::3]] == [("dense",), ("dense_1",), ("dense_2",)]
    shares = [each.share_of_peak and each.share_of_peak.median for each in times.stages]
    # Two operations for each weight and example. Backward computes the gradients of the weights
    # and, except in the first layer, of the inputs. A stage without multiply-adds has no share.
    first, second, last = (20 * num / 4e6 for num in (784 * 200, 200 * 200, 200 * 10))
    assert shares == pytest.approx(
        [*(first, first, None), *(second, 2 * second, None), *(last, 2 * last, None)]
    )


def test_calls_of_no_measurable_time_have_no_share_of_the_peak() -> None:
    clock = FakeClock()
    ticks = iter(range(1_000_000))
    # Each call takes one second, also an empty call, so after subtraction 0 seconds remain.
    timer = Timer(lambda: float(next(ticks)), clock.paused.append)
    times = layer_times.measure(models.build("mlp-2nn"), 10, NO_PACE, timer, ignore_progress)
    assert [each.seconds.most for each in times.stages] == [0.0] * len(times.stages)
    assert [each.share_of_peak for each in times.stages] == [None] * len(times.stages)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--jobs", "nothing"), 1, "--jobs 'nothing': no such job; choose from tutorial-round"),
        (("--threads", 0), 1, "--threads 0: give a number from 1"),
        (("--repeats", 0), 2, "0 is not in the range"),
        (("--layers", "resnet"), 1, "resnet"),
        (("--batch-size", 5), 1, "--batch-size 5 needs --layers MODEL; add that, or"),
        (("-q", "-v"), 2, "contradict"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_is_measured(
    fedcli: Fedcli,
    arguments: tuple[object, ...],
    code: int,
    text: str,
) -> None:
    done = fedcli("bench", *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert done.err.count("\n") == 1


def test_list_names_every_job(fedcli: Fedcli) -> None:
    printed = fedcli("bench", "--list").out
    listed = json.loads(fedcli("bench", "--list", "--json").out)["jobs"]
    assert [each["job"] for each in listed] == list(jobs.catalogue())
    for job in jobs.catalogue().values():
        assert job.name in printed
        assert job.title in printed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1814.0, "1,814 s"),
        (1.0, "1.00 s"),
        (0.0123, "12.3 ms"),
        (9.996e-6, "10.0 us"),
        (0.0, "0.00 ns"),
    ],
)
def test_seconds_are_shown_in_three_digits(seconds: float, text: str) -> None:
    assert bench_tables.format_seconds(seconds) == text


def test_a_range_has_one_unit() -> None:
    assert bench_tables.format_range(Spread((0.0005, 0.002))) == "0.50 - 2.00 ms"


def test_name_of_the_cpu_and_sizes_of_caches(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert machine.cpu_name(cpuinfo)
    cpuinfo.write_text("model name\t: A CPU\ncpu family\t: 6\nmodel\t\t: 1\nstepping\t: 2\n")
    assert machine.cpu_name(cpuinfo) == "A CPU (family 6/1/2)"
    cache = tmp_path / "cache" / "index0"
    cache.mkdir(parents=True)
    for name, text in (("type", "Data"), ("level", "1"), ("size", "48K")):
        (cache / name).write_text(f"{text}\n")
    assert machine.cache_sizes(tmp_path / "cache") == {"L1": "48K"}
    assert machine.cache_sizes(tmp_path / "nothing") == {}
