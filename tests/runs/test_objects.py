"""Runs of data and models that a program has in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcli
from fedcli import datasets, layers, models
from fedcli.errors import ConfigError, DataError
from fedcli.settings.data_source import shown_data
from fedcli.settings.run_config import RunConfig
from tests.kit.command_line import Fedcli

SMALL = RunConfig(clients="3", rounds=3, epochs=1, threads=1)


@pytest.fixture(scope="module")
def arrays() -> dict[str, dict[str, Any]]:
    """Returns the digits of a few clients as arrays, for train and test."""
    splits = datasets.load(data_options={"clients": 6})
    return {
        data.split: {
            each: (data.client(each).images(), data.labels(each)) for each in data.client_ids
        }
        for data in splits
        if data is not None
    }


@pytest.fixture(scope="module")
def given(arrays: dict[str, dict[str, Any]]) -> Any:
    return datasets.from_arrays(arrays["train"], test=arrays["test"], classes=10, name="mine")


def stop(result: Any) -> None:
    raise fedcli.StopTraining


def test_a_run_of_arrays_is_that_of_the_same_data_by_name(given: Any, tmp_path: Path) -> None:
    run = fedcli.train(SMALL, tmp_path / "run", data=given)
    named = RunConfig(**{**vars(SMALL), "data_options": {"clients": 6}})
    same = fedcli.train(named, tmp_path / "same")
    assert run.columns["client_work/train/loss"] == pytest.approx(
        same.columns["client_work/train/loss"], abs=1e-5
    )
    assert list(run.evaluation) == list(same.evaluation)
    assert run.options["data"] == "memory:mine"
    assert " on mine in memory, " in repr(run)
    assert run.provenance["data"].startswith("memory:")


def test_it_resumes_and_is_evaluated_with_the_data_given_again(
    given: Any, arrays: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = fedcli.train(SMALL, tmp_path / "straight", data=given)
    run = fedcli.train(SMALL, tmp_path / "run", data=given, callbacks=[stop])
    with pytest.raises(DataError, match=r"memory:mine: .*fedcli.resume\(run, data=...\)"):
        fedcli.resume(run.path)
    with caplog.at_level(logging.WARNING):
        run = fedcli.resume(run.path, data=given)
    assert "has changed" not in caplog.text
    assert run.metrics == straight.metrics
    assert run.evaluation == straight.evaluation
    with pytest.raises(DataError, match="were objects in a Python program"):
        fedcli.evaluate_run(run.path)
    again = fedcli.evaluate_run(run.path, data=given)
    assert again.metrics["client_work"] == run.evaluation["test"]["client_work"]
    assert len(again.client_ids) == 3  # the run's cohort, because the data are those of the run
    other = fedcli.evaluate_run(run.path, data=arrays["test"], clients="all")
    assert len(other.client_ids) == 6


def test_other_data_at_resume_are_reported(
    given: Any, arrays: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fedcli.train(SMALL, tmp_path / "run", data=given, callbacks=[stop])
    changed = {name: (pixels, 9 - labels) for name, (pixels, labels) in arrays["train"].items()}
    with caplog.at_level(logging.WARNING):
        fedcli.resume(tmp_path / "run", data=datasets.from_arrays(changed))
    assert "data in memory has changed since the run began" in caplog.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("memory:mine", "mine in memory"),
        ("memory:data", "data in memory"),
        ("memory:memory", "data in memory"),  # from_arrays without a name, in earlier versions
        ("data.h5", "data.h5"),
    ],
)
def test_data_in_memory_are_shown_by_their_name(name: str, shown: str) -> None:
    assert shown_data(name) == shown


def test_the_command_line_says_what_such_a_run_needs(
    given: Any, tmp_path: Path, fedcli: Fedcli
) -> None:
    import fedcli as package

    run = package.train(SMALL, tmp_path / "run", data=given)
    for arguments in (["train", "--resume", run.path, "--rounds", 4], ["eval", run.path]):
        done = fedcli(*arguments)
        assert done.code == 1
        assert "were objects in a Python program; give them there again" in done.err
    assert fedcli("report", run.path).code == 0


def test_data_in_memory_are_dealt_anew(given: Any, tmp_path: Path) -> None:
    options = {"partition": "shards", "partition_options": {"clients": 5}, "clients": "all"}
    run = fedcli.train(RunConfig(**{**vars(SMALL), **options}), tmp_path / "run", data=given)
    assert run.evaluation["train"]["num_clients"] == 5


def small_model() -> models.Model:
    return models.sequential([layers.Flatten(), layers.Dense(10)], input_shape=(28, 28))


def test_a_model_of_layers_is_given_once(tmp_path: Path) -> None:
    run = fedcli.train(SMALL, tmp_path / "run", model=small_model(), callbacks=[stop])
    assert run.options["model"] == "memory:sequential"
    run = fedcli.resume(run.path)
    assert run.round_num == 3
    assert fedcli.evaluate_run(run.path).round_num == 3
    assert [each.shape for each in run.weights().trainable] == [(784, 10), (10,)]
    assert run.model().name == "memory:sequential"


@pytest.mark.parametrize("shape", [(784,), (28, 28, 1)])
def test_a_model_of_vectors_or_channels_takes_images(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    same = fedcli.train(SMALL, tmp_path / "same", model=small_model())
    model = models.sequential([layers.Dense(10)], shape)
    run = fedcli.train(SMALL, tmp_path / "run", model=model, callbacks=[stop])
    assert fedcli.resume(run.path).metrics == same.metrics
    for mine, other in zip(run.weights().trainable, same.weights().trainable, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert fedcli.evaluate_run(run.path, split="test").values == (
        fedcli.evaluate_run(same.path, split="test").values
    )


def test_a_model_of_vectors_is_cropped_and_normalised(tmp_path: Path) -> None:
    config = RunConfig(
        **{**vars(SMALL), "augment": "crop", "augment_options": {"size": 20}, "normalize": "train"}
    )
    stack = [layers.Dense(10)]
    run = fedcli.train(config, tmp_path / "run", model=models.sequential(stack, (400,)))
    same = fedcli.train(config, tmp_path / "same", model=models.sequential(stack, (20, 20)))
    assert run.metrics == same.metrics
    with pytest.raises(ConfigError, match=r"takes vectors of 784 values, but .* \[20, 20\]"):
        fedcli.train(config, tmp_path / "wrong", model=models.sequential(stack, (784,)))


class Biases:
    """A model in NumPy that learns the frequency of each class."""

    def __init__(self) -> None:
        self.bias = np.zeros(10, np.float32)
        self.trainable_variables = [self.bias]
        spec = fedcli.own_models.ArraySpec
        self.input_spec = {"x": spec((None, 784), "float32"), "y": spec((None,), "int32")}
        self.num_classes = 10

    def forward_pass(self, batch: Any, training: bool = True) -> Any:
        labels = batch["y"]
        shares = np.exp(self.bias) / np.exp(self.bias).sum()
        gradient = shares - np.bincount(labels, minlength=10) / len(labels)
        return fedcli.own_models.BatchOutput(
            loss=-np.log(shares[labels]).mean(),
            predictions=np.full(len(labels), self.bias.argmax()),
            gradients=[gradient.astype(np.float32)],
        )

    def report_local_unfinalized_metrics(self) -> dict[str, Any]:
        return {}

    def metric_finalizers(self) -> dict[str, Any]:
        return {}

    def reset_metrics(self) -> None:
        pass


@pytest.mark.parametrize("model", [Biases, Biases()], ids=["class", "object"])
def test_a_model_in_python_is_given_again(model: Any, tmp_path: Path) -> None:
    straight = fedcli.train(SMALL, tmp_path / "straight", model=model)
    run = fedcli.train(SMALL, tmp_path / "run", model=Biases, callbacks=[stop])
    with pytest.raises(ConfigError, match=r"memory:Biases, was an object .*model=...\)"):
        fedcli.resume(run.path)
    run = fedcli.resume(run.path, model=model)
    assert run.metrics == straight.metrics
    with pytest.raises(ConfigError, match="was an object in a Python program"):
        fedcli.evaluate_run(run.path)
    assert fedcli.evaluate_run(run.path, model=model).round_num == 3


@pytest.mark.parametrize(
    ("make", "again"), [(small_model, "data=..."), (Biases, "data=..., model=...")]
)
def test_an_interrupt_says_which_objects_are_given_again(
    given: Any, tmp_path: Path, make: Any, again: str
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fedcli.train(SMALL, tmp_path / "run", data=given, model=make(), callbacks=[interrupt])
    call = f"fedcli.resume({str(tmp_path / 'run')!r}, {again})"
    assert str(caught.value) == f"stopped after round 1 of 3 and saved; {call} continues"


def test_a_wrapped_model_takes_images_and_labels_of_the_data(tmp_path: Path) -> None:
    class AnyNumber(Biases):
        def __init__(self) -> None:
            super().__init__()
            del self.num_classes  # so that only the data know it

    straight = fedcli.train(SMALL, tmp_path / "straight", model=Biases)
    wrapped = fedcli.own_models.wrap(AnyNumber)
    assert wrapped.layout.input_shape == (784,)
    run = fedcli.train(SMALL, tmp_path / "run", model=wrapped, callbacks=[stop])
    assert fedcli.resume(run.path, model=wrapped).metrics == straight.metrics
    assert fedcli.evaluate_run(run.path, model=wrapped).round_num == 3


def test_what_is_given_twice_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data is given twice"):
        fedcli.train(RunConfig(data="x.h5"), tmp_path / "run", data=given)
    with pytest.raises(ConfigError, match="model is given twice"):
        fedcli.train(RunConfig(model="mlp-2nn"), tmp_path / "run", model=small_model())


def test_names_are_taken_in_the_place_of_objects(tmp_path: Path) -> None:
    run = fedcli.train(SMALL, tmp_path / "run", data="synthetic-digits", model="mlp-2nn")
    assert (run.config.data, run.config.model) == ("synthetic-digits", "mlp-2nn")


def test_a_model_that_does_not_fit_the_data_is_refused(given: Any, tmp_path: Path) -> None:
    wrong = models.sequential([layers.Flatten(), layers.Dense(7)], input_shape=(28, 28))
    with pytest.raises(DataError, match="has 10 classes, but the model has 7"):
        fedcli.train(SMALL, tmp_path / "run", data=given, model=wrong)
    with pytest.raises(ConfigError, match=r"takes vectors of 783 values, but .* 784 values; build"):
        fedcli.train(SMALL, tmp_path / "run", model=models.sequential([layers.Dense(10)], (783,)))
    with pytest.raises(ConfigError, match=r"takes images of shape \[14, 56\], but .* \[28, 28\]"):
        fedcli.train(SMALL, tmp_path / "run", model=models.sequential([layers.Dense(10)], (14, 56)))
    large = models.sequential([layers.Dense(12)], (28, 28))
    with pytest.raises(DataError, match="the model has 12; set num_classes to 12 if the labels"):
        fedcli.train(SMALL, tmp_path / "run", data=given, model=large)
