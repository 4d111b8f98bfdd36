"""Models that users write in Python, against the built-in ones and against their contract."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import fedcli
from fedcli import learning, settings
from fedcli.cli import main as cli
from fedcli.core.native import CancelFlag, Cancelled, StepKind
from fedcli.datasets.batches import ArraySpec, BatchedDataset, from_arrays
from fedcli.errors import ConfigError, DataError, ModelError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.python_models import PythonEngine
from fedcli.learning.engines.task import ClientInputs, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.process import LearningProcess
from fedcli.models.model import Model
from fedcli.models.own.contract import BatchOutput
from fedcli.models.own.loading import PythonModel, load, wrap
from fedcli.models.zoo import softmax_regression
from fedcli.runs import evaluating, starting
from fedcli.runs.files import checkpoint
from fedcli.runs.trained import export_run
from fedcli.settings import tables
from tests.kit.training import train

EXAMPLE = Path(__file__).parents[1] / "data" / "my_model.py"
SHAPE, NUM_CLASSES = (5, 4), 3
SIZES = (
    1,
    7,
    40,
    23,
    0,
    20,
    33,
    12,
    50,
    9,
    26,
)  # one client is empty, and the clients are more than one block of 8


def example_class() -> Any:
    spec = importlib.util.spec_from_file_location("example_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MnistModel


MnistModel: Any = example_class()


class Small(MnistModel):  # type: ignore[misc] # as a user's class, it is Any
    """The example's model for small images."""

    num_classes = NUM_CLASSES

    def __init__(self) -> None:
        super().__init__(SHAPE[0] * SHAPE[1], NUM_CLASSES)


def cohort(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    clients = []
    for index, size in enumerate(sizes):
        labels = random.integers(0, NUM_CLASSES, size, dtype=np.int32)
        pixels = random.random((size, *SHAPE), dtype=np.float32)
        clients.append(
            from_arrays(pixels, labels, client_id=str(index)).client.preprocess(2, 5, 8, seed=3)
        )
    return clients


def run_rounds(process: LearningProcess, num_rounds: int = 3) -> tuple[Any, list[dict[str, Any]]]:
    state, found = process.initialize(), []
    for _ in range(num_rounds):
        output = process.next(state, cohort())
        state = output.state
        found.append(output.metrics)
    return state, found


def test_manual_shows_the_example() -> None:
    page = (Path(fedcli.__file__).parent / "manual" / "models.md").read_text()
    assert EXAMPLE.read_text().strip() in page


@pytest.mark.numeric
def test_example_has_the_figures_of_the_built_in_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "my_model.py")
    assert cli.run(["train", "--eval-every", "5", "--out", "built-in", "-q"]) == 0
    assert (
        cli.run(
            ["train", "--model", "my_model.py:build", "--eval-every", "5", "--out", "own", "-q"]
        )
        == 0
    )
    names = ("sparse_categorical_accuracy", "loss", "num_examples", "num_batches")
    pairs = zip(read_lines("built-in"), read_lines("own"), strict=True)
    for expected, found in pairs:
        groups = []
        if "client_work" in expected:
            groups.append((expected["client_work"]["train"], found["client_work"]["train"]))
        evaluated = expected.get("evaluation", {})
        groups += [(evaluated[split], found["evaluation"][split]) for split in evaluated]
        assert groups
        for built_in, own in groups:
            assert list(own)[:4] == list(names)
            for name in names:
                assert own[name] == pytest.approx(built_in[name], abs=1e-5)
            # The model sums the losses in float32; fedcli sums the same losses in float64.
            assert own["model_loss"] == pytest.approx(own["loss"], rel=1e-6)
            assert own["sparse_categorical_accuracy"] <= own["top_3_accuracy"] <= 1
    assert len(read_lines("own")) == 11
    assert cli.run(["eval", "own", "--model", "my_model.py", "--json"]) == 0
    assert cli.run(["export", "own", "weights.npz"]) == 0
    with np.load("weights.npz") as weights:
        assert [weights[each].shape for each in weights.files] == [(784, 10), (10,)]


@pytest.mark.numeric
def test_a_model_of_one_s_own_is_fine_tuned_and_kept_by_each_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "my_model.py")
    results: dict[str, list[dict[str, Any]]] = {"softmax-regression": [], "my_model.py:build": []}
    for model, found in results.items():
        code = ["--model", "my_model.py"] if "py" in model else []
        for algorithm in ("fedavg", "local-only"):
            train = ["train", "--model", model, "--algorithm", algorithm, "--rounds", "2"]
            assert cli.run([*train, "--client-lr", "0.005", "--out", "run", "--force", "-q"]) == 0
            capsys.readouterr()
            tuning = ["--finetune", "3"] if algorithm == "fedavg" else []
            assert cli.run(["eval", "run", *code, *tuning, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
    built_in, own = results.values()
    assert own[0]["fine_tuned"]["metrics"]["loss"] == pytest.approx(
        built_in[0]["fine_tuned"]["metrics"]["loss"], rel=1e-5
    )
    assert "top_3_accuracy" in own[0]["fine_tuned"]["metrics"]
    assert own[1]["over_clients"]["loss"] == pytest.approx(
        built_in[1]["over_clients"]["loss"], rel=1e-5
    )


def read_lines(run: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


OPTIMIZERS: dict[str, optimizers.Optimizer] = {
    "sgd": optimizers.sgd(0.1),
    "momentum": optimizers.sgd(0.05, 0.9),
    "nesterov": optimizers.sgd(0.05, 0.9, nesterov=True),
    "adam": optimizers.adam(0.01),
    "adamw": optimizers.adamw(0.01),
    "adagrad": optimizers.adagrad(0.05),
    "yogi": optimizers.yogi(0.01),
    "rmsprop": optimizers.rmsprop(0.01),
    "clipped": optimizers.clip_gradients(optimizers.sgd(0.1), 0.3),
    "adafactor": optimizers.adafactor(0.01, epsilon_1=1e-6),
}


@pytest.mark.numeric
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedsgd", "mime-lite", "feddyn"])
def test_rounds_are_those_of_the_core(name: str, algorithm: str) -> None:
    if algorithm == "fedsgd" and name != "sgd":
        pytest.skip("fedsgd has no client optimizer")
    if algorithm == "mime-lite" and name == "adafactor":
        pytest.skip("mime-lite freezes no state by tensor")
    built = algorithms.build(
        algorithm,
        None if algorithm == "fedsgd" else OPTIMIZERS[name],
        optimizers.sgd(1.0, 0.5),
        weighting="uniform" if name == "adam" or algorithm == "feddyn" else "num-examples",
        aggregator=aggregators.build("tff-robust" if name == "sgd" else "mean"),
        options={"proximal_strength": 0.1} if algorithm == "fedprox" else {},
    )
    num_clients = len(SIZES)
    built_in = learning.build_process(
        built, softmax_regression(SHAPE, NUM_CLASSES), num_clients=num_clients
    )
    expected = run_rounds(built_in)
    found = run_rounds(learning.build_process(built, Small, num_clients=num_clients))
    # Float32 products are added in another order; adaptive optimizers enlarge the rounding errors
    # of small gradients.
    np.testing.assert_allclose(
        found[0].global_model_weights, expected[0].global_model_weights, rtol=2e-3, atol=2e-5
    )
    for own, core in zip(found[1], expected[1], strict=True):
        assert own["finalizer"] == core["finalizer"]
        assert own["aggregator"].keys() == core["aggregator"].keys()


LOCAL = [
    name
    for name in tables.ALGORITHMS.names()
    if tables.ALGORITHMS[name].has_local_steps
    and tables.ALGORITHMS[name].server_optimizer in (None, "sgd")  # others are like fedavg
]
DECAYED = {"sgd": optimizers.sgd(0.1), "adamw": optimizers.adamw(0.01, weight_decay=0.2)}


def decayed_round(algorithm: str, optimizer: optimizers.Optimizer, model: Any) -> Any:
    """Returns the change of the weights, or of the clients' own weights, in two rounds."""
    built = algorithms.build(
        algorithm,
        optimizer,
        optimizers.sgd(1.0, 0.9 if algorithm == "fedavgm" else 0.0),
        weighting="uniform",
        aggregator=aggregators.build("mean"),
    )
    process = learning.build_process(built, model, num_clients=len(SIZES))
    start = np.random.default_rng(4).normal(0, 0.3, process.model.layout.num_params)
    params = start.astype(np.float32)
    state = replace(process.initialize(), global_model_weights=params)
    for _ in range(2):
        state = process.next(state, cohort()).state
    if algorithm != "local-only":
        return state.global_model_weights - params
    assert state.evaluated is not None
    own = state.evaluated.own_models
    assert own is not None
    return np.array([own.borrow(str(k), len(params)) for k, size in enumerate(SIZES) if size])


@pytest.mark.numeric
@pytest.mark.parametrize("name", DECAYED)
@pytest.mark.parametrize("algorithm", LOCAL)
def test_weights_decay_as_in_the_core_with_every_algorithm(name: str, algorithm: str) -> None:
    if name != "sgd" and algorithm in {"scaffold", "fednova"}:
        pytest.skip(f"{algorithm} is for SGD alone")
    decayed = replace(DECAYED[name], weight_decay=0.5)
    if algorithm == "mime":
        with pytest.raises(ConfigError, match="which the metrics of Small would count twice"):
            decayed_round(algorithm, decayed, Small)
        return
    expected = decayed_round(algorithm, decayed, softmax_regression(SHAPE, NUM_CLASSES))
    found = decayed_round(algorithm, decayed, Small)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    plain = decayed_round(algorithm, DECAYED[name], Small)
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.numeric
@pytest.mark.parametrize("is_own", [False, True], ids=["core", "own model"])
def test_mean_gradients_keep_their_digits_beside_large_weights(is_own: bool) -> None:
    """The gradients are about 1e-6, no larger than the last bit of a weight of 8."""
    random = np.random.default_rng(5)
    labels = random.integers(0, NUM_CLASSES, 40, dtype=np.int32)
    pixels = 1e-5 * random.random((40, *SHAPE), dtype=np.float32)
    dataset = from_arrays(pixels, labels).client.preprocess(batch_size=7)
    model = wrap(Small) if is_own else softmax_regression(SHAPE, NUM_CLASSES)
    engine = PythonEngine(model) if isinstance(model, PythonModel) else ThreadEngine(2)
    params = np.full(model.layout.num_params, 8.0, np.float32)
    task = ClientTask(
        rows=((StepKind.GRADIENT, ()),), params=params, round_num=0, weighting="uniform"
    )
    result = engine.train(model.layout, task, (dataset,))
    # All weights are equal, so all probabilities are equal, too.
    residuals = 1.0 / NUM_CLASSES - np.eye(NUM_CLASSES)[labels]
    images = pixels.reshape(40, -1).astype(np.float64)
    kernel, bias = images.T @ residuals / 40, residuals.mean(axis=0)
    found = result.delta_sum[: kernel.size].reshape(kernel.shape)
    # The error is that of about forty float32 additions of numbers up to this size.
    largest = np.abs(kernel).max()
    assert largest < 3e-6
    np.testing.assert_allclose(found, -kernel, rtol=0, atol=40 * 2**-24 * largest)
    np.testing.assert_allclose(result.delta_sum[kernel.size :], -bias, rtol=0, atol=1e-6)


@pytest.mark.numeric
def test_rounds_are_the_same_each_time_and_leave_the_object_as_it_was() -> None:
    model = Small()
    model.bias[:] = [1, 2, 3]
    process = learning.build_weighted_fed_avg(model, optimizers.sgd(0.1))
    first, again = run_rounds(process)[0], run_rounds(process)[0]
    assert first.global_model_weights.tobytes() == again.global_model_weights.tobytes()
    assert model.bias.tolist() == [1, 2, 3]
    assert not model.weights.any()
    assert process.engine.num_threads == 1


class NamedType:
    """A type as TensorFlow has it."""

    def __init__(self, name: str) -> None:
        self.as_numpy_dtype = np.dtype(name).type


class TorchType:
    """A type as PyTorch prints it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"


@pytest.mark.parametrize("kind", [NamedType, TorchType])
def test_an_input_spec_may_have_types_of_tensorflow_or_pytorch(kind: Any) -> None:
    model = Small()
    model.input_spec = {
        name: SimpleNamespace(shape=list(spec.shape), dtype=kind(spec.dtype))
        for name, spec in model.input_spec.items()
    }
    assert wrap(model).layout == wrap(Small()).layout
    model.input_spec["x"].dtype = kind("float64")
    with pytest.raises(ModelError, match="input_spec: has x float64"):
        wrap(model)


def test_an_own_accuracy_is_shown_beside_the_built_in_one() -> None:
    class Accurate(Small):
        def report_local_unfinalized_metrics(self) -> dict[str, Any]:
            return {"accuracy": [1.0, 2.0]}

        def metric_finalizers(self) -> dict[str, Any]:
            return {"accuracy": lambda sums: sums[0] / sums[1]}

    process = learning.build_fed_eval(Accurate)
    metrics = process.next(process.initialize(), cohort()).metrics["client_work"]["eval"]
    assert metrics["current_round_metrics"]["model_accuracy"] == 0.5
    assert "accuracy" not in metrics["current_round_metrics"]


def test_evaluation_sums_own_metrics_over_rounds() -> None:
    process = learning.build_fed_eval(Small)
    state = process.initialize()
    assert "own/top_3_accuracy=float64[2]" in process.state_signature
    output = process.next(state, cohort())
    output = process.next(output.state, cohort((4,)))
    groups = output.metrics["client_work"]["eval"]
    assert groups["total_rounds_metrics"]["num_examples"] == 2 * sum(SIZES) + 8
    assert groups["current_round_metrics"]["num_examples"] == 8
    for group in groups.values():
        assert group["model_loss"] == pytest.approx(group["loss"], rel=1e-6)
        assert group["top_3_accuracy"] == 1.0  # there are three classes
    nobody = process.next(process.initialize(), ())
    assert np.isnan(nobody.metrics["client_work"]["eval"]["current_round_metrics"]["model_loss"])


def test_metrics_are_summed_over_clients_then_finalized() -> None:
    class Largest(Small):
        """Reports the squared number of a client's examples, and a 1 that counts the client."""

        def report_local_unfinalized_metrics(self) -> dict[str, Any]:
            return {"spread": [self.num_examples**2, 1]}

        def metric_finalizers(self) -> dict[str, Any]:
            return {"spread": lambda sums: sums[0] / sums[1]}

    _, found = run_rounds(learning.build_weighted_fed_avg(Largest, optimizers.sgd(0.1)), 1)
    expected = sum((2 * size) ** 2 for size in SIZES) / len(SIZES)
    assert found[0]["client_work"]["train"]["spread"] == expected


def test_client_that_is_not_finite_is_dropped_with_its_metrics() -> None:
    class Fragile(Small):
        def forward_pass(self, batch: Any, training: bool = True) -> Any:
            output = super().forward_pass(batch, training)
            if batch["x"][0, 0] < 0:
                output.gradients[0][0, 0] = np.nan
            return output

    data = cohort((5, 6, 7))
    data[1].client.pixels[:] = -1
    process = learning.build_weighted_fed_avg(Fragile, optimizers.sgd(0.1))
    output = process.next(process.initialize(), data)
    train = output.metrics["client_work"]["train"]
    assert (train["num_non_finite_clients"], train["num_examples"]) == (1, 24)
    assert train["model_loss"] == pytest.approx(train["loss"], rel=1e-6)
    others = process.next(process.initialize(), [data[0], data[2]])
    assert np.array_equal(output.state.global_model_weights, others.state.global_model_weights)


def test_cancel_stops_between_steps() -> None:
    flag = CancelFlag()

    class Cancelling(Small):
        calls = 0

        def forward_pass(self, batch: Any, training: bool = True) -> Any:
            type(self).calls += 1
            if self.calls == 5:
                flag.set()
            return super().forward_pass(batch, training)

    process = learning.build_weighted_fed_avg(Cancelling, optimizers.sgd(0.1))
    with pytest.raises(Cancelled):
        process.next(process.initialize(), cohort(), cancel=flag)
    assert Cancelling.calls == 5


def test_shapes_of_the_input_spec_are_given() -> None:
    seen = []

    class Shaped(Small):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec = {
                "x": SimpleNamespace(shape=(None, *SHAPE), dtype=np.float32),
                "y": ArraySpec((None,), "int32"),
            }

        def forward_pass(self, batch: Any, training: bool = True) -> Any:
            seen.append((batch["x"].shape[1:], batch["y"].shape[1:], training))
            return super().forward_pass({**batch, "x": batch["x"].reshape(len(batch["x"]), -1)})

    run_rounds(learning.build_weighted_fed_avg(Shaped, optimizers.sgd(0.1)), 1)
    assert set(seen) == {(SHAPE, (), True), (SHAPE, (), False)}


def test_label_and_image_faults_name_the_client() -> None:
    process = learning.build_weighted_fed_avg(Small, optimizers.sgd(0.1))
    bad = from_arrays(np.zeros((2, *SHAPE), np.float32), [0, 3], client_id="c")
    with pytest.raises(DataError, match=r"client 'c': example 1: label 3 is outside"):
        process.next(process.initialize(), [bad])
    bad = from_arrays(np.zeros((2, 2, 2), np.float32), [0, 1], client_id="c")
    with pytest.raises(DataError, match=r"images have shape \[2, 2\], the model takes \[20\]"):
        process.next(process.initialize(), [bad])


# ---- Wrong models --------------------------------------------------------------------------------


def output_with(**changes: Any) -> Callable[..., Any]:
    """A forward pass with changed output: each change is a value or a function of the value."""

    def forward_pass(self: Any, batch: Any, training: bool = True) -> Any:
        output = MnistModel.forward_pass(self, batch, training)
        values = {**vars(output)}
        for name, change in changes.items():
            values[name] = change(values[name]) if callable(change) else change
        return BatchOutput(**values)

    return forward_pass


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*arguments: Any, **named: Any) -> Any:
        raise error

    return fails


def returning(value: Any) -> Callable[..., Any]:
    return lambda *arguments, **named: value


def changing_weights(self: Any, batch: Any, training: bool = True) -> Any:
    output = MnistModel.forward_pass(self, batch, training)
    self.bias += 1
    return output


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "gradient shape": (
        {"forward_pass": output_with(gradients=lambda each: [each[0].T, each[1]])},
        r"forward_pass: gradient 0 is float32 \[3, 20\], but its variable is float32 \[20, 3\]",
    ),
    "gradient type": (
        {"forward_pass": output_with(gradients=lambda each: [each[0].astype(float), each[1]])},
        r"gradient 0 is float64 \[20, 3\], but its variable is float32 \[20, 3\]",
    ),
    "gradient count": (
        {"forward_pass": output_with(gradients=lambda each: each[:1])},
        "1 gradients for 2 variables",
    ),
    "gradients missing": ({"forward_pass": output_with(gradients=None)}, "gradients are None"),
    "gradients of no list": (
        {"forward_pass": output_with(gradients=3)},
        "gradients are int; give a list",
    ),
    "gradient NaN": (
        {"forward_pass": output_with(gradients=lambda each: [each[0] * np.nan, each[1]])},
        "a gradient of a trial batch holds NaN",
    ),
    "loss NaN": ({"forward_pass": output_with(loss=float("nan"))}, "the loss of a trial batch is"),
    "loss no scalar": (
        {"forward_pass": output_with(loss=np.zeros(2))},
        r"the loss is float64 \[2\]; give one number",
    ),
    "loss text": ({"forward_pass": output_with(loss="0.3")}, "the loss is <U3"),
    "predictions": (
        {"forward_pass": output_with(predictions=np.zeros((2, 7)))},
        r"predictions of 2 examples are float64 \[2, 7\]; give classes, .* floats \[2, 3\]",
    ),
    "no output": ({"forward_pass": returning(None)}, "returned NoneType without loss"),
    "num_examples": (
        {"forward_pass": output_with(num_examples=5)},
        "num_examples is 5, but the batch",
    ),
    "own step": ({"forward_pass": changing_weights}, "changed the weights"),
    "raises": (
        {"forward_pass": raising(ValueError("no\nluck"))},
        r"test_own_models.py:\d+: forward_pass: ValueError: no luck",
    ),
    "exits": ({"forward_pass": raising(SystemExit(3))}, "forward_pass: SystemExit: 3"),
    "metric without finalizer": (
        {"metric_finalizers": returning({"loss": len})},
        "has no entry for metric 'top_3_accuracy'",
    ),
    "finalizer without metric": (
        {"metric_finalizers": returning({"loss": len, "top_3_accuracy": len, "x": len})},
        "has an entry for 'x'",
    ),
    "finalizer no function": (
        {"metric_finalizers": returning({"loss": 1, "top_3_accuracy": len})},
        "the finalizer of metric 'loss' is 1; give a function",
    ),
    "finalizer raises": (
        {"metric_finalizers": returning({"loss": raising(KeyError("x")), "top_3_accuracy": len})},
        r"test_own_models.py:\d+: finalizer of metric 'loss': KeyError: 'x'",
    ),
    "finalizer returns text": (
        {"metric_finalizers": returning({"loss": returning("x"), "top_3_accuracy": len})},
        "the finalizer of metric 'loss' returned 'x'; give a number",
    ),
    "finalizers no dict": ({"metric_finalizers": returning([])}, "returned list; give a dict"),
    "metrics no dict": ({"report_local_unfinalized_metrics": returning(3)}, "returned int"),
    "metric no list": (
        {"report_local_unfinalized_metrics": returning({"loss": 3.0})},
        "metric 'loss' is 3.0; give a list of numbers",
    ),
    "metric of no name": (
        {"report_local_unfinalized_metrics": returning({7: [1]})},
        "a metric is named 7",
    ),
    "method missing": ({"reset_metrics": None}, "reset_metrics: is not a method"),
    "spec": ({"input_spec": {"x": 1}}, r"input_spec: is \{'x': 1\}; give"),
    "spec type": (
        {"input_spec": {"x": ArraySpec((None, 20), "float64"), "y": ArraySpec((None, 1), "int32")}},
        "has x float64",
    ),
    "spec without attributes": (
        {"input_spec": {"x": ((None, 784), np.float32), "y": 2}},
        r"input_spec: \['x'\] is \(\(None, 784\), .*, which has no shape and dtype; give .* with "
        r"own_models\.ArraySpec",
    ),
    "variables empty": ({"trainable_variables": []}, "trainable_variables: is empty"),
    "variables that are not trained": (
        {"non_trainable_variables": [np.zeros(3, np.float32)]},
        "non_trainable_variables: are not supported; keep constants in other attributes, or leave",
    ),
    "variables wide": (
        {"trainable_variables": [np.zeros((20, 3))]},
        r"\[0\] is float64 \[20, 3\]; give float32",
    ),
    "variables NaN": (
        {"trainable_variables": [np.full(3, np.nan, np.float32)]},
        r"\[0\] holds NaN",
    ),
    "num_classes": ({"num_classes": 0}, "num_classes: is 0; give a whole number from 1"),
    "names": ({"variable_names": ["a", "a"]}, "give each variable a name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_model_is_refused_in_one_line(name: str) -> None:
    changes, message = WRONG[name]

    class Wrong(Small):
        def __init__(self) -> None:
            super().__init__()
            for attribute, value in changes.items():
                if not callable(value):
                    setattr(self, attribute, value)

    for attribute, value in changes.items():
        if callable(value):
            setattr(Wrong, attribute, value)
    with pytest.raises(ModelError, match=message) as caught:
        learning.build_weighted_fed_avg(Wrong, optimizers.sgd(0.1))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((__file__, str(EXAMPLE)))  # not a line of this package


@pytest.mark.numeric
def test_clients_are_scored_at_starts_of_their_own() -> None:
    model = wrap(Small)
    assert isinstance(model, PythonModel)
    engine, clients = PythonEngine(model), cohort()
    params = np.zeros(model.layout.num_params, np.float32)
    starts = np.random.default_rng(3).random((len(clients), len(params)), np.float32)
    rows = iter(starts)
    together = engine.evaluate(
        model.layout, params, clients, starts=lambda some: np.array([next(rows) for _ in some])
    )
    for index, client in enumerate(clients):
        alone = engine.evaluate(model.layout, starts[index], [client])
        assert together[index : index + 1].tobytes() == alone.tobytes()
    assert together.tobytes() != engine.evaluate(model.layout, params, clients).tobytes()


@pytest.mark.numeric
def test_the_sum_of_clients_with_own_starts_is_relative_to_the_server() -> None:
    model = wrap(Small)
    assert isinstance(model, PythonModel)
    engine, clients = PythonEngine(model), cohort()
    shape = len(clients), model.layout.num_params
    starts = np.random.default_rng(3).normal(0, 0.1, shape).astype(np.float32)
    task = ClientTask(
        rows=tuple(optimizers.sgd(0.1).client_rows()),
        params=model.initial_params,
        round_num=0,
        weighting="num-examples",
    )
    expected = np.zeros(model.layout.num_params)
    for start, client in zip(starts, clients, strict=True):
        alone = engine.train(model.layout, replace(task, params=start), [client])
        expected += alone.delta_sum + alone.weight_sum * (start - model.initial_params)
    inputs = ClientInputs(starts=starts, delta_factors=np.ones(len(clients)))
    together = engine.train(model.layout, replace(task, inputs=inputs), clients)
    np.testing.assert_allclose(together.delta_sum, expected, rtol=1e-5, atol=1e-5)


def test_a_call_within_a_call_is_refused() -> None:
    """The inner call would wait for the lock that the outer call holds."""
    model = wrap(Small)
    assert isinstance(model, PythonModel)
    engine, clients = PythonEngine(model), cohort()
    params = np.zeros(model.layout.num_params, np.float32)

    def calls_again() -> Iterator[BatchedDataset]:
        yield clients[0]
        engine.evaluate(model.layout, params, clients)

    with pytest.raises(ConfigError, match="engine of its own"):
        engine.evaluate(model.layout, params, calls_again())
    engine.evaluate(model.layout, params, clients)


def test_function_may_give_layers() -> None:
    process = learning.build_fed_eval(lambda: softmax_regression(SHAPE, NUM_CLASSES))
    assert isinstance(process.engine, ThreadEngine)


def test_method_that_is_not_there_is_named() -> None:
    class Bare:
        trainable_variables = (np.zeros(3, np.float32),)

    with pytest.raises(ModelError, match=r"test_own_models.py:\d+: Bare has no input_spec; a mod"):
        wrap(Bare())


def test_a_class_whose_arguments_are_needed_is_refused_before_it_is_called() -> None:
    message = (
        r"^the model MnistModel needs num_inputs, num_classes; give a function without arguments, "
        r"such as lambda: MnistModel\(\.\.\.\)$"
    )
    with pytest.raises(ModelError, match=message):
        learning.build_weighted_fed_avg(example_class(), optimizers.sgd(0.1))
    process = learning.build_weighted_fed_avg(lambda: example_class()(20, 3), optimizers.sgd(0.1))
    assert isinstance(process, LearningProcess)


def test_a_model_may_have_an_empty_list_of_variables_that_are_not_trained() -> None:
    class Empty(Small):
        non_trainable_variables = ()

    assert isinstance(wrap(Empty), PythonModel)


def test_arrays_that_are_replaced_later_are_refused() -> None:
    class Replacing(Small):
        def forward_pass(self, batch: Any, training: bool = True) -> Any:
            if len(batch["y"]) > 2:
                self.trainable_variables = [self.weights.copy(), self.bias]
            return super().forward_pass(batch, training)

    process = learning.build_weighted_fed_avg(Replacing, optimizers.sgd(0.1))
    with pytest.raises(ModelError, match="trainable_variables: returned other arrays than before"):
        process.next(process.initialize(), cohort())


def test_metrics_that_change_later_are_refused() -> None:
    class Changing(Small):
        def report_local_unfinalized_metrics(self) -> Any:
            sums = super().report_local_unfinalized_metrics()
            return sums if self.num_examples < 5 else {**sums, "more": [1.0]}

    process = learning.build_weighted_fed_avg(Changing, optimizers.sgd(0.1))
    with pytest.raises(ModelError, match=r"now returns .*more of 1"):
        process.next(process.initialize(), cohort())


def test_engine_of_another_model_is_refused() -> None:
    model = wrap(Small)
    assert isinstance(model, PythonModel)
    engine = PythonEngine(model)
    process = learning.build_weighted_fed_avg(Small, optimizers.sgd(0.1), engine=engine)
    with pytest.raises(ConfigError, match="this engine computes only the model Small"):
        process.next(process.initialize(), cohort())
    with pytest.raises(ConfigError, match="a ThreadEngine computes only models"):
        learning.build_weighted_fed_avg(Small, optimizers.sgd(0.1), engine=ThreadEngine(1))


@pytest.mark.parametrize("thing", [None, 3, [1], {}, b"x"])
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="give a name such as"):
        learning.build_fed_eval(thing)  # type: ignore[arg-type]


# ---- Files ---------------------------------------------------------------------------------------


def write_model(folder: Path, build: str, name: str = "my_model.py") -> Path:
    """Writes a file with the example's class and another `build`."""
    head = EXAMPLE.read_text().partition("def build(")[0]
    path = folder / name
    path.write_text(head + build)
    return path


def load_text(folder: Path, build: str, **options: Any) -> Model:
    return load(
        write_model(folder, build),
        None,
        input_shape=(28, 28),
        num_classes=10,
        seed=7,
        options=options,
    )


@pytest.mark.parametrize(
    ("signature", "seen"),
    [
        ("", "()"),
        ("seed", "(7,)"),
        ("num_classes, *, input_shape", "(10, (28, 28))"),
        ("input_shape, num_classes=3, seed=0, other=5", "((28, 28), 10, 7, 5)"),
    ],
)
def test_function_is_called_with_what_it_takes(tmp_path: Path, signature: str, seen: str) -> None:
    names = [each.partition("=")[0].strip() for each in signature.split(",")]
    values = "".join(f"{name}, " for name in names if name not in ("", "*"))
    body = "    model = MnistModel(784, 10)\n    model.seen = repr(seen)\n    return model\n"
    model = load_text(tmp_path, f"def build({signature}):\n    seen = ({values})\n{body}")
    assert isinstance(model, PythonModel)
    assert model.network.model.seen == seen  # type: ignore[attr-defined]
    assert model.layout.input_shape == (28, 28)


def test_options_reach_the_function(tmp_path: Path) -> None:
    text = "def build(scale):\n    model = MnistModel(784, 10)\n    model.bias += scale\n"
    model = load_text(tmp_path, text + "    return model\n", scale=0.5)
    assert model.initial_params[-10:].tolist() == [0.5] * 10
    with pytest.raises(
        ModelError, match=r"my_model.py:.*build needs scale; .*--model-option scale="
    ):
        load_text(tmp_path, text + "    return model\n")
    with pytest.raises(ModelError, match="--model-option depth: build has no such parameter"):
        load_text(tmp_path, text + "    return model\n", scale=1, depth=2)
    with pytest.raises(ModelError, match="--model-option seed is set by the run"):
        load_text(tmp_path, text + "    return model\n", seed=2)


def test_model_trained_in_c_may_come_from_a_file(tmp_path: Path) -> None:
    text = "from fedcli import models\nfrom fedcli.layers import Dense\n"
    text += "def build(input_shape, num_classes, seed):\n"
    text += "    layers = [Dense(7, 'relu'), Dense(num_classes)]\n"
    text += "    return models.sequential(layers, input_shape, num_classes, seed)\n"
    model = load_text(tmp_path, text)
    assert not isinstance(model, PythonModel)
    assert model.layout.num_params == 785 * 7 + 8 * 10
    with pytest.raises(ModelError, match=r"my_model.py:\d+: build: model sequential has 10 outp"):
        load_text(tmp_path, text.replace("input_shape, num_classes, seed)\n", "(28, 28), 11)\n"))
    fault = r"my_model.py: build: the model takes vectors of 9 values, but .* 784 values; build"
    with pytest.raises(ModelError, match=fault):
        load_text(tmp_path, text.replace("input_shape, num_classes, seed)\n", "(9,), 10)\n"))
    text = text.replace("Dense(num_classes)", "Dense(3)").replace("num_classes, seed)\n", "3)\n")
    with pytest.raises(ModelError, match=r"build: the model has 3 outputs, but .* 10 classes; use"):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\n",
            r"has no function or class 'build'; it has MnistModel: give --model my_model.py:N",
        ),
        (
            "def make():\n    pass\n",
            r"it has MnistModel, make: give --model my_model.py:N",
        ),
        ("def build():\n    return 3\n", r"my_model.py: build returned 3; return a fedcli.models"),
        ("def build():\n    pass\n", r"my_model.py: build returned None"),
        ("def build(:\n", r"my_model.py:\d+: importing the file: SyntaxError: "),
        ("1 / 0\n", r"my_model.py:\d+: importing the file: ZeroDivisionError: division by zero"),
        ("def build():\n    return {}['a']\n", r"my_model.py:\d+: build: KeyError: 'a'"),
        (
            "def build():\n    return MnistModel(9, 10)\n",
            r"x has shape \[9\] per example, but the data have",
        ),
        ("def build(depth):\n    pass\n", r"my_model.py:\d+: build needs depth"),
        (
            "def build():\n    return [1]\n",
            r"build returned \[1\]; return .*models.sequential\(lay",
        ),
        ("\0", r"my_model.py: importing the file: SyntaxError: "),
    ],
)
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in sys.path


def test_call_that_the_users_method_does_not_take_names_the_users_file(tmp_path: Path) -> None:
    path = write_model(tmp_path, "def build():\n    return MnistModel(784, 10)\n")
    path.write_text(path.read_text().replace(", training=True)", ")"))
    with pytest.raises(ModelError, match=r"^\S*my_model.py: forward_pass: TypeError: .*training"):
        load(path, None, input_shape=(28, 28), num_classes=10)


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the model .*none.py: No such file"):
        load(tmp_path / "none.py", "build", input_shape=(28, 28), num_classes=10)
    with pytest.raises(ModelError, match="--fresh-weights cannot be used with"):
        load(EXAMPLE, "build", input_shape=(28, 28), num_classes=10, fresh_weights=True)


def test_file_may_hold_dataclasses(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Sizes:\n    hidden: int = 3\n\n"
    text += "from fedcli.models import softmax_regression as build\n"
    path = tmp_path / "sizes.py"
    path.write_text(text)
    assert load(path, None, input_shape=(3, 3), num_classes=2).layout.num_params == 20


def test_file_may_import_its_neighbours_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "own_neighbour_of_a_model.py").write_text("SCALE = 2.0\n")
    text = "from own_neighbour_of_a_model import SCALE\n\ndef build():\n"
    load_text(tmp_path, text + "    return MnistModel(784, 10)\n")
    assert not list(tmp_path.glob("__pycache__/my_model*"))
    del sys.modules["own_neighbour_of_a_model"]


# ---- Runs ----------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"data_options": {"clients": 12}, "clients": "4", "max_examples": 60}


def config_of(model: str | Path, **options: Any) -> settings.RunConfig:
    return settings.from_options({**RUN, "model": str(model), **options})


def files_of(run: Path) -> dict[str, bytes]:
    """Returns the results in a run's folder, and its weights."""
    weights = {}
    newest = max((run / "checkpoints").iterdir())
    with h5py.File(newest, "r") as file:
        for name, tensor in file["global_model_weights"].items():
            weights[name] = tensor[()].tobytes()
        for name, part in file["finalizer"].items():
            weights[f"finalizer/{name}"] = np.asarray(part[()]).tobytes()
    names = ("metrics.jsonl", "evaluation.json")
    return {**weights, **{name: (run / name).read_bytes() for name in names}}


def check_resume(model: Path, tmp_path: Path, **options: Any) -> None:
    options = {"client_optimizer": "adam", "client_lr": 0.002, "sampling": "uniform", **options}
    options.update(server_options={"momentum": 0.9}, eval_every=2, aggregator="tff-robust")
    train(tmp_path / "straight", config_of(model, rounds=6, **options))
    train(tmp_path / "resumed", config_of(model, rounds=3, **options))
    with starting.resume(tmp_path / "resumed", rounds=6, model=str(model)) as training:
        assert training.notes == []
        list(training.run())
        training.finish()
    assert files_of(tmp_path / "straight") == files_of(tmp_path / "resumed")


@pytest.mark.numeric
def test_resume_equals_straight_run(tmp_path: Path) -> None:
    model = tmp_path / "my_model.py"
    shutil.copy(EXAMPLE, model)
    check_resume(model, tmp_path)


def test_run_knows_its_file_and_whether_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "my_model.py")
    train(Path("run"), config_of("my_model.py:build", rounds=1, threads=3))
    text = Path("run/config.toml").read_text()
    config = settings.from_toml(text, "config.toml")
    assert config["model"] == f"{tmp_path / 'my_model.py'}:build"
    assert re.fullmatch("[0-9a-f]{64}", settings.read_provenance(text, "")["model"])
    assert evaluating.evaluate_run("run", model="my_model.py").notes == ()
    with starting.start(config_of("my_model.py", rounds=1, threads=3), "other") as training:
        assert [note for note in training.notes if "in Python, on one thread, not 3" in note]
    with Path("my_model.py").open("a") as file:
        file.write("# changed\n")
    expected = "my_model.py has changed since the run began; the current version is used"
    with starting.resume("run", rounds=2, model="my_model.py") as training:
        assert [note for note in training.notes if expected in note]
    evaluation = evaluating.evaluate_run("run", model="my_model.py")
    assert [note for note in evaluation.notes if expected in note]
    Path("my_model.py").rename("moved.py")
    assert evaluating.evaluate_run("run", model="moved.py:build").values == evaluation.values
    with pytest.raises(ModelError, match=r"cannot read the model .*my_model.py"):
        evaluating.evaluate_run("run", model="my_model.py")


@pytest.fixture
def code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose model's code now makes a file; without --model the code must not be executed."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_model.py"
    text = EXAMPLE.read_text().replace("def build(input_shape", "def tall(input_shape")
    file.write_text(text.replace("num_classes):\n    return", "num_classes, scale):\n    return"))
    options = {"model_options": {"scale": 2}, "clients": "2"}
    train(tmp_path / "run", config_of(f"{file}:tall", rounds=1, **options))
    file.write_text(file.read_text() + "open('it_ran', 'w').close()\n")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume", "run"],
        ["train", "--resume", "run", "--rounds", "2"],
        ["train", "--config", "run/config.toml", "--out", "new"],
        ["eval", "run"],
        ["eval", "run/checkpoints/round-000001.h5"],
        ["inspect-clients", "--run", "run", "--clients", "2"],
    ],
)
def test_code_runs_only_where_it_is_named(
    code_run: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = code_run.parent / "my_model.py"
    assert cli.run(command) == 1
    assert capsys.readouterr().err == (
        f"fedcli: error: this run's model is code in {file}; pass --model {file}:tall to run it\n"
    )
    assert not Path("it_ran").exists()
    assert not Path("new").exists()
    assert cli.run([*command, "--model", "my_model.py:tall"]) == 0
    assert Path("it_ran").exists()
    note = f"{file.name} has changed since the run began; the current version is used"
    assert (note in capsys.readouterr().err) == (command[0] != "inspect-clients")


def test_a_run_s_code_may_be_named_without_its_function(
    code_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", "run", "--model", "my_model.py", "-q"]) == 0
    assert cli.run(["eval", "run", "--model", "mlp-2nn"]) == 1
    assert "--model mlp-2nn: this run's model is code in " in capsys.readouterr().err
    assert cli.run(["train", "--resume", "run", "--model", "mlp-2nn"]) == 1
    assert "--model mlp-2nn: this run's model is code in " in capsys.readouterr().err


def test_hint_after_a_run_names_its_code(
    code_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--resume", "run", "--model", "my_model.py"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"fedcli eval run --model {code_run.parent / 'my_model.py'}:tall --clients all" in text


def test_export_of_a_model_in_python_runs_nothing_and_keeps_the_order(
    code_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_model.py").unlink()
    assert export_run("run", "weights.npz") == [
        ("variable_0", (784, 10)),
        ("variable_1", (10,)),
    ]
    stored = files_of(code_run)
    with np.load("weights.npz", allow_pickle=False) as found:
        assert [found[name].tobytes() for name in found] == [
            stored["variable_0"],
            stored["variable_1"],
        ]
    assert cli.run(["export", "run", "model.keras"]) == 1
    assert "this run's model is code, not fedcli's layers; write an .npz" in capsys.readouterr().err


def test_tensors_may_be_named_as_they_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = "['file', 'allow_pickle']"
    text = EXAMPLE.read_text().replace(
        "num_classes):\n        self.weights",
        f"num_classes):\n        self.variable_names = {names}\n        self.weights",
    )
    Path("my_model.py").write_text(text)
    train(tmp_path / "run", config_of("my_model.py", rounds=1))
    assert [name for name, _ in export_run("run", "w.npz")] == ["file", "allow_pickle"]
    with np.load("w.npz") as found:
        assert list(found) == ["file", "allow_pickle"]
        assert [found[name].shape for name in found] == [(784, 10), (10,)]
    again = config_of("my_model.py", rounds=1, initial_weights="w.npz", client_lr=0)
    train(tmp_path / "again", again)
    assert files_of(Path("again"))["file"] == files_of(Path("run"))["file"]


def test_a_checkpoint_of_a_larger_model_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", config_of("softmax-regression", rounds=1))
    file = max((tmp_path / "run" / "checkpoints").iterdir())
    content = replace(checkpoint.load(file), input_shape=(1000, 1000), num_classes=60)
    file.write_bytes(checkpoint.encode(content))
    assert cli.run(["export", "run", "w.npz"]) == 1
    message = capsys.readouterr().err
    assert "holds 7,850 weights, but softmax-regression of its config, for examples of" in message


def test_code_for_a_run_that_needs_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", config_of("softmax-regression", rounds=1))
    Path("my_model.py").write_text("raise SystemExit('this must not run')\n")
    for command in (["eval", "run"], ["train", "--resume", "run"]):
        assert cli.run([*command, "--model", "my_model.py"]) == 1
        assert (
            "--model my_model.py: this option is for runs whose model is code"
            in capsys.readouterr().err
        )


LAYERS = """
from fedcli import models
from fedcli.layers import Dense

def build(input_shape, num_classes, seed):
    return models.sequential([Dense(num_classes)], input_shape, num_classes, seed)
"""


def test_a_model_of_layers_may_be_named_again_but_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("layers.py").write_text(LAYERS)
    train(tmp_path / "run", config_of("layers.py", rounds=1))
    Path("layers.py").write_text("raise SystemExit('this must not run')\n")
    assert cli.run(["eval", "run", "--model", "layers.py"]) == 0
    assert cli.run(["train", "--resume", "run", "--rounds", "2", "--model", "layers.py:build"]) == 0
    assert "has changed" not in capsys.readouterr().err
    Path("layers.py").unlink()
    assert cli.run(["eval", "run", "--model", "layers.py"]) == 0
    for other in ("others.py", "layers.py:tall", "mlp-2nn"):
        assert cli.run(["eval", "run", "--model", other]) == 1
        assert f"--model {other}: this option is for runs whose" in capsys.readouterr().err


def test_repeating_a_run_with_a_model_of_layers_needs_the_file_that_makes_its_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "layers.py"
    file.write_text(LAYERS)
    train(tmp_path / "run", config_of(file, rounds=2, keep_checkpoints=2))
    shadows = ["audit", "run", "canary", "--option", "shadows=4"]
    needing = (["verify", "run"], ["train", "--config", "run/config.toml", "--out", "new"], shadows)
    file.write_text(LAYERS + "open('it_ran', 'a').close()\n")
    for command in needing:
        assert cli.run(command) == 1
        assert (
            f"this run's model is code in {file}; pass --model {file} to run it"
            in capsys.readouterr().err
        )
        assert not Path("it_ran").exists()
        assert cli.run([*command, "--model", "layers.py"]) == 0
        Path("it_ran").unlink()
    for named in ([], ["--model", "layers.py"]):
        assert cli.run(["verify", "run", "--from-checkpoint", *named]) == 0
        assert not Path("it_ran").exists()


def test_model_trained_in_c_needs_its_file_once(tmp_path: Path) -> None:
    model = tmp_path / "layers.py"
    model.write_text(LAYERS)
    train(tmp_path / "run", config_of(model, rounds=1))
    model.write_text("raise SystemExit('this must not run')\n")
    assert evaluating.evaluate_run(tmp_path / "run").notes == ()
    with starting.resume(tmp_path / "run", rounds=2) as training:
        assert training.notes == []
        assert [result.round_num for result in training.run()] == [2]


def test_failure_is_one_line_and_v_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "class Late(MnistModel):\n    def forward_pass(self, batch, training=True):\n"
    text += "        if len(batch['y']) > 2:\n            self.helper()\n"
    text += "        return super().forward_pass(batch, training)\n\n"
    text += "    def helper(self):\n        raise ValueError('too many')\n\n"
    write_model(tmp_path, text + "def build():\n    return Late(784, 10)\n")
    line = (
        (tmp_path / "my_model.py")
        .read_text()
        .splitlines()
        .index("        raise ValueError('too many')")
    )
    expected = f"fedcli: error: round 1: {tmp_path}/my_model.py:{line + 1}: forward_pass: "
    expected += "ValueError: too many; correct the code of the model\n"
    assert cli.run(["train", "--model", "my_model.py", "--out", "a"]) == 1
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "a").exists()
    assert cli.run(["train", "--model", "my_model.py", "--out", "b", "-v"]) == 1
    shown = capsys.readouterr().err
    assert shown.endswith(expected)
    assert "Traceback (most recent call last):\n" in shown
    assert "raise ValueError('too many')\n" in shown
    assert str(Path(cli.__file__).parents[2]) not in shown


def test_wrong_model_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path, "def build():\n    return 3\n")
    assert cli.run(["train", "--model", "my_model.py", "--out", "run"]) == 1
    assert capsys.readouterr().err.startswith("fedcli: error: ")
    assert not (tmp_path / "run").exists()


def test_tables_show_own_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "my_model.py")
    assert cli.run(["train", "--model", "my_model.py", "--rounds", "1", "--out", "run"]) == 0
    shown = capsys.readouterr().out
    value = read_lines("run")[0]["client_work"]["train"]["top_3_accuracy"]
    assert shown.count("model_loss   top_3_accuracy") == 2
    assert f"{value:.4f}" in shown


# ---- PyTorch -------------------------------------------------------------------------------------

TORCH = """
import torch
from torch import nn


class Net(nn.Sequential):
    pass


def build(num_classes):
    return Net(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(4 * 13 * 13, num_classes),
    )


def build_softmax(num_classes):
    linear = nn.Linear(784, num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def build_batch_norm():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(10))


def build_wrong_logits():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 7))


def build_double(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes)).double()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return self.linear(x.flatten(1))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 10)

    def forward(self, x):
        return self.linear(x)
"""


@pytest.fixture
def torch_file(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    path = tmp_path / "net.py"
    path.write_text(TORCH)
    return path


def load_torch(path: Path, function: str) -> Model:
    return load(path, function, input_shape=(28, 28), num_classes=10, seed=1)


@pytest.mark.numeric
def test_torch_softmax_has_the_figures_of_the_built_in_model(
    torch_file: Path, tmp_path: Path
) -> None:
    train(tmp_path / "torch", config_of(f"{torch_file}:build_softmax"))
    train(tmp_path / "core", config_of("softmax-regression"))
    pairs = zip(read_lines(tmp_path / "core"), read_lines(tmp_path / "torch"), strict=True)
    for expected, found in pairs:
        train_metrics = found["client_work"]["train"]
        # PyTorch sums float32 products in another order, and differences add up over ten rounds.
        assert train_metrics == pytest.approx(expected["client_work"]["train"], abs=1e-5)


ENDINGS = """

import torch.nn.functional as F


def ending(layer):
    return lambda num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(784, num_classes), *([layer] if layer else [])
    )


class Judging(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(784, num_classes)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return logits if self.training else F.softmax(logits, dim=1)


class Detached(Judging):
    def forward(self, x):
        return self.linear(x.flatten(1)).detach()


class Reshaping(Judging):
    def forward(self, x):
        return torch.sigmoid(self.linear(x.flatten(1))).unsqueeze(2).squeeze(2)


class InPlace(Judging):
    def forward(self, x):
        shares = torch.sigmoid(self.linear(x.flatten(1)))
        shares *= 3
        return shares + 1


class TwoImages(Judging):
    def forward(self, x, y):
        return self.linear(x)


class Nested(Judging):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.body = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(17, num_classes))

    def forward(self, x):
        return self.body(x.flatten(1))


softmax, log_softmax = ending(nn.Softmax(1)), ending(nn.LogSoftmax(1))
softmax_of_the_batch, sigmoid = ending(nn.Softmax(0)), ending(nn.Sigmoid())
renamed, logits = ending(nn.Sequential(nn.Softmax(1), nn.Identity())), ending(None)
tanh, relu = ending(nn.Tanh()), ending(nn.ReLU())


def zeros(num_classes):
    module = logits(num_classes)
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    return module


def mismatch(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(64, num_classes))


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class LazyUnused(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.used, self.unused = nn.LazyLinear(num_classes), nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.used(images.flatten(1))


class LazyWrong(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)))


def nothing(num_classes):
    return nn.Flatten()


def a_class(num_classes):
    return Judging
"""


@pytest.mark.parametrize("function", ["logits", "log_softmax", "tanh", "relu", "zeros"])
def test_torch_modules_that_do_not_end_in_softmax_are_taken(
    torch_file: Path, function: str
) -> None:
    torch_file.write_text(TORCH + ENDINGS)
    assert load_torch(torch_file, function).layout.num_params == 7850


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("softmax", r"^\S+net\.py: the module returns probabilities .* without the softmax$"),
        ("renamed", r"net\.py: the module returns probabilities"),
        ("softmax_of_the_batch", r"net\.py: the module ends in a softmax, .* return the logits"),
        ("sigmoid", r"net\.py: the module ends in a sigmoid, .* return the logits instead"),
        ("Reshaping", r"net\.py:\d+: the module ends in a sigmoid"),
        ("Judging", r"net\.py:\d+: in evaluation \(module\.eval\(\)\) the module returns prob"),
        ("Detached", r"net\.py:\d+: the outputs do not depend on the parameters"),
        ("InPlace", r"net\.py:\d+: forward_pass: gradients: RuntimeError: one of the variables"),
        (
            "TwoImages",
            r"net\.py:\d+: forward_pass: TypeError: .* 'y'; correct the code of the model$",
        ),
        (
            "Nested",
            r"net\.py:\d+: forward_pass: .*\(2x16 and 17x10\), in the Linear layer body\.2;",
        ),
        (
            "mismatch",
            r"^\S+net\.py: forward_pass: .* in the Linear layer 3; correct the code of the model$",
        ),
        (
            "LazyUnused",
            r"net\.py:\d+: the LazyLinear layer unused is lazy, and .* does not use the",
        ),
        (
            "LazyWrong",
            r"net\.py:\d+: last\.weight belongs to a lazy layer, .* this fails: RuntimeError: ",
        ),
        ("nothing", r"^\S+net\.py: Flatten has no parameter that can be trained"),
        ("a_class", r"net\.py: a_class returned the class Judging; return an object of it"),
    ],
)
def test_messages_of_torch_mistakes_name_the_user_s_line_or_layer(
    torch_file: Path, function: str, message: str
) -> None:
    torch_file.write_text(TORCH + ENDINGS)
    with pytest.raises(ModelError, match=message) as caught:
        load_torch(torch_file, function)
    assert "\n" not in str(caught.value)
    assert "fedcli/models" not in str(caught.value)


def test_torch_losses_are_weighted_by_class(torch_file: Path, tmp_path: Path) -> None:
    files = {}
    for model in (f"{torch_file}:build_softmax", "softmax-regression"):
        out = tmp_path / model.rpartition("/")[2].replace(":", "-")
        train(out, replace(config_of(model), class_weights="balanced", epochs=1))
        files[model] = read_lines(out)
    for one, other in zip(*files.values(), strict=True):
        assert one["client_work"]["train"] == pytest.approx(other["client_work"]["train"], abs=1e-5)


def test_torch_module_that_ends_in_softmax_is_refused(torch_file: Path, tmp_path: Path) -> None:
    code = torch_file.read_text() + (
        "\n\ndef build_probabilities(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes), nn.Softmax(1))\n"
    )
    path = tmp_path / "probabilities.py"
    path.write_text(code)
    with pytest.raises(ModelError, match=r"probabilities\.py.*: the module returns probabilities"):
        train(tmp_path / "run", config_of(f"{path}:build_probabilities"))


@pytest.mark.numeric
def test_torch_resume_equals_straight_run_with_dropout(torch_file: Path, tmp_path: Path) -> None:
    import torch

    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    check_resume(torch_file, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("wrong", [3, None, [1], {"a": 1}])
def test_the_message_about_an_object_that_is_no_model_names_its_type(wrong: object) -> None:
    with pytest.raises(ModelError, match=r"^model is .*; give a fedcli\.models model, such as"):
        wrap(wrong, input_shape=(2, 2))


def test_lazy_torch_layers_have_shapes_and_weights_that_follow_the_seed(torch_file: Path) -> None:
    torch_file.write_text(TORCH + ENDINGS)
    first, again = load_torch(torch_file, "lazy"), load_torch(torch_file, "lazy")
    other = load(torch_file, "lazy", input_shape=(28, 28), num_classes=10, seed=2)
    assert [tensor.shape for tensor in first.layout.tensors] == [(10, 784), (10,)]
    assert first.initial_params.tobytes() == again.initial_params.tobytes()
    assert first.initial_params.tobytes() != other.initial_params.tobytes()
    train(torch_file.parent / "run", config_of(f"{torch_file}:lazy"))


def test_torch_weights_follow_the_seed(torch_file: Path) -> None:
    first, again = load_torch(torch_file, "build"), load_torch(torch_file, "build")
    other = load(torch_file, "build", input_shape=(28, 28), num_classes=10, seed=2)
    assert first.initial_params.tobytes() == again.initial_params.tobytes()
    assert first.initial_params.tobytes() != other.initial_params.tobytes()
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "5.weight", "5.bias"]
    assert [tensor.name for tensor in first.layout.tensors] == names
    assert first.layout.tensors[0].shape == (4, 1, 3, 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("build_batch_norm", r"1 keeps running statistics.*use GroupNorm"),
        ("build_wrong_logits", r"float32 \[2, 7\]; give classes, .* floats \[2, 10\]"),
        ("build_double", r"parameter 1.weight is torch.float64 on cpu"),
        ("Counting", r"net.py:\d+: the forward pass changed the buffer steps"),
        ("Failing", r"net.py:\d+: forward_pass: RuntimeError: mat1 and mat2"),
    ],
)
def test_torch_module_that_is_wrong_is_refused(
    torch_file: Path, function: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_torch(torch_file, function)
    assert "\n" not in str(caught.value)


def test_torch_module_of_the_api_needs_an_input_shape(torch_file: Path) -> None:
    from torch import nn

    module = nn.Sequential(nn.Flatten(), nn.Linear(20, NUM_CLASSES))
    with pytest.raises(ModelError, match=r"as in fedcli.own_models.wrap\(module, input_shape="):
        learning.build_fed_eval(module)
    process = learning.build_fed_eval(wrap(module, input_shape=SHAPE, num_classes=NUM_CLASSES))
    output = process.next(process.initialize(), cohort())
    found = output.metrics["client_work"]["eval"]["current_round_metrics"]
    assert found["num_examples"] == 2 * sum(SIZES)


class Twice(Small):
    """A model whose loss takes probabilities as logits, and so applies the softmax twice."""

    def forward_pass(self, batch: Any, training: bool = True) -> Any:
        x, labels = batch["x"], batch["y"].reshape(-1)
        rows, size = np.arange(len(labels)), len(labels)
        logits = x @ self.weights + self.bias
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = self.loss(shares, rows, labels)
        gradient = shares.copy()
        gradient[rows, labels] -= 1
        gradient /= size
        return BatchOutput(loss, shares, [x.T @ gradient, gradient.sum(axis=0)])

    def loss(self, shares: Any, rows: Any, labels: Any) -> Any:
        again = np.exp(shares) / np.exp(shares).sum(axis=1, keepdims=True)
        return -np.log(again[rows, labels]).mean()


class Once(Twice):
    def loss(self, shares: Any, rows: Any, labels: Any) -> Any:
        return -np.log(shares[rows, labels]).mean()


class Squared(Twice):
    def loss(self, shares: Any, rows: Any, labels: Any) -> Any:
        return ((shares - np.eye(NUM_CLASSES)[labels]) ** 2).sum(axis=1).mean()


def test_a_softmax_of_probabilities_is_refused_as_soon_as_it_shows() -> None:
    """With parameters of 0 all probabilities are equal: a second softmax changes no loss."""
    process = learning.build_weighted_fed_avg(Twice, optimizers.sgd(0.5))
    message = (
        r"test_own_models\.py:\d+: forward_pass: the predictions are probabilities, but the loss"
    )
    with pytest.raises(ModelError, match=message):
        run_rounds(process, 1)

    class Started(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.bias[:] = [0, 1, 2]

    with pytest.raises(ModelError, match=message):
        wrap(Started)


@pytest.mark.parametrize("model", [Once, Squared, Small])
def test_other_losses_of_probabilities_are_taken(model: Any) -> None:
    process = learning.build_weighted_fed_avg(model, optimizers.sgd(0.5))
    state, _ = run_rounds(process, 2)
    assert np.isfinite(state.global_model_weights).all()


def test_the_message_of_a_failure_in_another_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "own_layers_of_mine.py").write_text(
        EXAMPLE.read_text().replace("logits = x @ self.weights", "logits = x @ self.weights.T")
    )
    (tmp_path / "main_model.py").write_text("from own_layers_of_mine import build\n")
    with pytest.raises(ModelError, match=r"^\S+own_layers_of_mine\.py:\d+: forward_pass: ValueErr"):
        load(tmp_path / "main_model.py", None, input_shape=SHAPE, num_classes=3)


def test_image_in_another_order_of_axes_is_refused() -> None:
    class Scrambling(Small):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec = {
                "x": ArraySpec((None, *reversed(SHAPE)), "float32"),
                "y": ArraySpec((None, 1), "int32"),
            }

    with pytest.raises(
        ModelError, match=r"x has shape \[4, 5\] per example, but the data have \[5, 4\]"
    ):
        wrap(Scrambling(), input_shape=SHAPE)


def test_torch_sees_channels_first(torch_file: Path) -> None:
    from torch import nn

    seen: list[NDArray[Any]] = []

    class Seeing(nn.Module):  # type: ignore[misc] # it is Any where there is no torch
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, NUM_CLASSES)

        def forward(self, x: Any) -> Any:
            seen.append(x.numpy().copy())
            return self.linear(x.flatten(1))

    model = wrap(Seeing(), input_shape=(2, 2, 3), num_classes=NUM_CLASSES)
    process = learning.build_fed_eval(model)
    pixels = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    process.next(process.initialize(), [(pixels, [0, 1])])
    assert np.array_equal(seen[-1], np.moveaxis(pixels, 3, 1))


def keras_model(module: str) -> Any:
    """Returns an object whose base class has the name of Keras's Sequential, in `module`."""
    of_keras = type("Sequential", (), {"__module__": module})
    return type("Mine", (of_keras,), {"__module__": "mine"})()


KERAS_MODULES = (
    "keras",
    "keras.src.models.sequential",
    "tf_keras.src.engine.sequential",
    "tensorflow.keras",
    "tensorflow.python.keras.engine.sequential",
)


@pytest.mark.parametrize("module", KERAS_MODULES)
def test_a_keras_object_is_to_be_saved_first(module: str) -> None:
    with pytest.raises(ModelError, match=r"^Mine: this is a Keras model.*\.save\(.*models\.load\("):
        wrap(keras_model(module))
    with pytest.raises(ModelError, match=r"<lambda>: this is a Keras model"):
        learning.build_weighted_fed_avg(lambda: keras_model(module), optimizers.sgd(0.1))


@pytest.mark.parametrize("module", ["kerastuner.models", "my.keras", "tensorflow.python.ops"])
def test_an_object_of_another_package_is_not_taken_for_keras(module: str) -> None:
    with pytest.raises(ModelError, match="has no trainable_variables"):
        wrap(keras_model(module))


def test_an_object_of_keras_that_fulfils_the_contract_is_a_model() -> None:
    home = type("Model", (), {"__module__": "keras.src.models.model"})
    model = wrap(type("Both", (Small, home), {})())
    assert repr(model) == "<PythonModel Both: 63 parameters>"


def test_own_models_are_shown_in_a_line() -> None:
    model = wrap(MnistModel(784, 10))
    assert repr(model) == "<PythonModel MnistModel: 7,850 parameters>"
    process = learning.build_weighted_fed_avg(model, optimizers.sgd(0.1))
    assert repr(model) in repr(process)
