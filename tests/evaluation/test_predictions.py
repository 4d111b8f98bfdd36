"""Predictions agree with the evaluation, computed at once or in pieces, for any weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import models, settings
from fedcli.cli import main as cli
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import ArraySpec
from fedcli.errors import ConfigError, RunError
from fedcli.evaluation import predictions
from fedcli.evaluation.predictions import Predicted, WorstMistakes
from fedcli.federation.evaluation_groups import EvaluationGroup, make_group
from fedcli.federation.opened_data import open_data
from fedcli.learning.engines.choosing import make_engine
from fedcli.models import own as own_models
from fedcli.models.layers import Conv2D, Dense, MaxPool2D, Spec
from fedcli.models.model import Model
from fedcli.models.own.contract import BatchOutput

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (6, 4), 5
SIZES = {"a": 5, "b": 1, "c": 600, "d": 0, 'e, "f"\n': 33}


@pytest.fixture
def data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_data(tmp_path / "data.h5")


def write_data(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    random = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        for name, size in SIZES.items():
            group = file.create_group(f"examples/{name}")
            group["pixels"] = random.random((size, *shape), dtype=np.float32)
            group["label"] = random.integers(0, NUM_CLASSES, size, dtype=np.int32)
    return path


def group_of(path: Path, batch_size: int = 7) -> EvaluationGroup:
    config = settings.from_options({"data": str(path), "num_classes": NUM_CLASSES})
    data = open_data(config.data_source)["train"]
    return make_group(data, data.client_ids, BatchPlan(batch_size=batch_size), 0)


def a_network(scale: float = 1.0) -> Model:
    specs: list[Spec] = [
        Conv2D(17, 3, activation="relu"),
        MaxPool2D(2),
        Dense(19, "tanh"),
        Dense(NUM_CLASSES),
    ]
    model = models.sequential(specs, SHAPE, NUM_CLASSES, seed=2)
    return Model(model.name, model.layout, model.initial_params * np.float32(scale))


def predict(group: EvaluationGroup, model: Model) -> list[Predicted]:
    return list(predictions.predict(group, model, make_engine(model), model.initial_params))


def num_correct(group: EvaluationGroup, model: Model) -> list[int]:
    clients = [group.data.client(each).preprocess(batch_size=7) for each in group.client_ids]
    stats = make_engine(model).evaluate(model.layout, model.initial_params, clients)
    counts: list[int] = stats["num_correct"].tolist()
    return counts


def hits(found: list[Predicted], group: EvaluationGroup) -> list[int]:
    of_client = dict.fromkeys(group.client_ids, 0)
    for each in found:
        of_client[each.client_id] += int(np.count_nonzero(each.classes == each.labels))
    return list(of_client.values())


def a_model(kind: str) -> Model:
    if kind != "overflowing":
        return a_network(1e4 if kind == "far out" else 1)
    model = models.softmax_regression(SHAPE, NUM_CLASSES)
    weights = np.random.default_rng(0).normal(size=model.layout.num_params)
    return Model(model.name, model.layout, (weights * 7e37).astype(np.float32))


@pytest.mark.parametrize("kind", ["usual", "far out", "overflowing"])
def test_predictions_are_those_that_the_evaluation_counts(data_file: Path, kind: str) -> None:
    group, model = group_of(data_file), a_model(kind)
    found = predict(group, model)
    assert hits(found, group) == num_correct(group, model)
    assert [(each.client_id, len(each.labels)) for each in found] == [
        (name, size) for name, size in SIZES.items() if size
    ]
    probabilities = np.concatenate([each.probabilities for each in found])
    classes = np.concatenate([each.classes for each in found])
    is_number = classes >= 0
    assert is_number.any()
    assert bool(is_number.all()) == (kind != "overflowing")
    np.testing.assert_allclose(probabilities[is_number].sum(axis=1), 1, atol=1e-6)
    assert np.isnan(probabilities[~is_number]).any(axis=1).all()


def test_weights_that_are_no_numbers_predict_no_class(data_file: Path) -> None:
    group, model = group_of(data_file), a_network(np.nan)
    found = predict(group, model)
    assert {int(each) for part in found for each in part.classes} == {predictions.NO_CLASS}
    assert num_correct(group, model) == [0] * len(SIZES)
    worst = WorstMistakes(2)
    for part in found:
        worst.add(part)
    assert worst.num_mistakes == sum(SIZES.values())
    assert [(each.client_id, each.index) for each in worst.mistakes] == [("a", 0), ("a", 1)]
    assert worst.to_json()["errors"][0]["predicted"] is None


def test_probabilities_are_softmax_of_the_pixels_weighted(data_file: Path) -> None:
    group, model = group_of(data_file), models.softmax_regression(SHAPE, NUM_CLASSES)
    random = np.random.default_rng(0)
    model.initial_params[...] = random.normal(size=model.layout.num_params)
    kernel, bias = (each.astype(np.float64) for each in model.layout.split(model.initial_params))
    for each in predict(group, model):
        images = group.data.client(each.client_id).images().reshape(-1, kernel.shape[0])
        odds = np.exp(images @ kernel + bias)
        expected = odds / odds.sum(axis=1, keepdims=True)
        # Sums of 24 products in float32.
        np.testing.assert_allclose(each.probabilities, expected, rtol=1e-5)
        np.testing.assert_array_equal(each.classes, expected.argmax(axis=1))
        own = expected[np.arange(len(images)), each.labels]
        np.testing.assert_allclose(each.losses, -np.log(own), rtol=1e-5, atol=1e-6)


def joined(found: list[Predicted]) -> list[Any]:
    return [
        [(each.client_id, each.first + row) for each in found for row in range(len(each.labels))],
        *(
            np.concatenate([getattr(each, name) for each in found]).tolist()
            for name in ("labels", "classes", "probabilities", "losses")
        ),
    ]


@pytest.mark.parametrize("name", ["_MAX_SCORES", "PIECE_BYTES"])
def test_pieces_change_nothing(data_file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    group, model = group_of(data_file, batch_size=1), a_network()
    whole = predict(group, model)
    monkeypatch.setattr(predictions, name, 1)
    cut = predict(group, model)
    assert max(len(each.labels) for each in cut) == (256 if name == "_MAX_SCORES" else 600)
    assert joined(cut) == joined(whole)


class Own:
    """A linear model in NumPy that returns its predictions in one of several forms."""

    num_classes = NUM_CLASSES

    def __init__(self, says: str) -> None:
        self.says = says
        random = np.random.default_rng(4)
        self.kernel = random.normal(size=(24, NUM_CLASSES)).astype(np.float32)
        self.trainable_variables = [self.kernel]
        x, y = ArraySpec((None, 24), "float32"), ArraySpec((None, 1), "int32")
        self.input_spec = {"x": x, "y": y}

    def forward_pass(self, batch: dict[str, Any], training: bool = True) -> BatchOutput:
        scores = batch["x"].astype(np.float64) @ self.kernel
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        given: dict[str, NDArray] = {
            "logits": scores,
            "probabilities": odds / odds.sum(axis=1, keepdims=True),
            "classes": scores.argmax(axis=1),
        }
        given["NaN"] = np.where(batch["x"][:, :1] > 0.5, np.nan, scores)
        return BatchOutput(
            loss=1.0, predictions=given[self.says], gradients=[np.zeros_like(self.kernel)]
        )

    def report_local_unfinalized_metrics(self) -> dict[str, list[float]]:
        return {}

    def metric_finalizers(self) -> dict[str, Any]:
        return {}

    def reset_metrics(self) -> None:
        pass


@pytest.mark.parametrize("says", ["logits", "probabilities", "classes", "NaN"])
def test_predictions_of_a_model_in_python_are_what_it_says(data_file: Path, says: str) -> None:
    group = group_of(data_file)
    model = own_models.wrap(Own(says), input_shape=SHAPE)
    found = predict(group, model)
    assert hits(found, group) == num_correct(group, model)
    reference = predict(group, own_models.wrap(Own("probabilities"), input_shape=SHAPE))
    for each, other in zip(found, reference, strict=True):
        if says == "NaN":
            assert len(each.labels) < 33 or {-1} < set(each.classes.tolist())
            assert (np.isnan(each.probabilities).all(axis=1) == (each.classes == -1)).all()
            continue
        np.testing.assert_array_equal(each.classes, other.classes)
        expected = other.probabilities
        if says == "classes":
            expected = np.eye(NUM_CLASSES, dtype=np.float32)[other.classes]
        np.testing.assert_allclose(each.probabilities, expected, rtol=1e-6)


def test_cancel_ends_it(data_file: Path) -> None:
    group, model, cancel = group_of(data_file), a_network(), CancelFlag()
    found = predictions.predict(group, model, make_engine(model), model.initial_params, cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        next(found)


@pytest.fixture
def run(data_file: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    command = ["train", "--data", str(data_file), "--num-classes", str(NUM_CLASSES), "--clients"]
    assert cli.run([*command, "all", "--rounds", "2", "--client-lr", "0.1", "--out", "run"]) == 0
    capsys.readouterr()
    return Path("run")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_files_hold_the_same_and_agree_with_the_accuracy(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", "run", "--predictions", "p.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["client_work"]["eval"]["current_round_metrics"]
    Path("p.csv").write_text("what was there before")
    assert cli.run(["eval", "run", "--predictions", "p.csv"]) == 0
    assert capsys.readouterr().out.endswith("\nWrote p.csv\n")
    with np.load("p.npz", allow_pickle=False) as archive:
        found = dict(archive)
    types = {name: (str(each.dtype.kind), each.shape[1:]) for name, each in found.items()}
    assert types == {
        "client_id": ("U", ()),
        "index": ("i", ()),
        "label": ("i", ()),
        "predicted": ("i", ()),
        "probabilities": ("f", (NUM_CLASSES,)),
    }
    accuracy = np.count_nonzero(found["predicted"] == found["label"]) / len(found["label"])
    assert accuracy == told["sparse_categorical_accuracy"]
    assert len(found["label"]) == told["num_examples"] == sum(SIZES.values())
    header, *rows = rows_of(Path("p.csv"))
    assert header[:4] == ["client_id", "index", "label", "predicted"]
    assert header[4:] == [f"probability_{label}" for label in range(NUM_CLASSES)]
    assert [row[0] for row in rows] == found["client_id"].tolist()
    for column, name in enumerate(header[1:4], 1):
        assert [int(row[column]) for row in rows] == found[name].tolist()
    probabilities = np.array([row[4:] for row in rows], np.float64).astype(np.float32)
    np.testing.assert_array_equal(probabilities, found["probabilities"])
    assert sorted(each.name for each in Path().iterdir()) == ["data.h5", "p.csv", "p.npz", "run"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("p.txt", ConfigError, r"--predictions p.txt: choose a name that ends in .npz or .csv"),
        ("folder.csv", RunError, "folder.csv is not a regular file; choose another name"),
        ("none/p.csv", RunError, "cannot write none/p.csv: there is no such folder"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_any_work(
    data_file: Path, name: str, error: type[Exception], message: str
) -> None:
    Path("folder.csv").mkdir()
    with pytest.raises(error, match=message):
        predictions.check_target(Path(name))


def test_data_are_not_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.h5").rename("data.csv")
    before = Path("data.csv").read_bytes()
    assert cli.run(["eval", "run", "--data", "data.csv", "--predictions", "data.csv"]) == 1
    assert "--predictions data.csv is also an input" in capsys.readouterr().err
    assert Path("data.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["p.csv", "p.npz"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(Cancelled), predictions.writing(path, 3):
        raise Cancelled
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("limit", [1, 20, 10_000])
def test_errors_are_the_wrong_examples_of_highest_loss(
    run: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "run", "--show-errors", str(limit), "--predictions", "p.npz", "--json"]
    assert cli.run(command) == 0
    told = json.loads(capsys.readouterr().out)
    with np.load("p.npz") as archive:
        found = dict(archive)
    label, predicted = found["label"], found["predicted"]
    of_label = found["probabilities"][np.arange(len(label)), label]
    wrong = np.flatnonzero(predicted != label)
    assert told["num_errors"] == len(wrong)
    assert len(told["errors"]) == min(limit, len(wrong))
    worst = wrong[np.argsort(of_label[wrong], kind="stable")][:limit]
    for each, row in zip(told["errors"], worst.tolist(), strict=True):
        assert (each["client_id"], each["index"]) == (found["client_id"][row], found["index"][row])
        assert (each["label"], each["predicted"]) == (label[row], predicted[row])
        assert each["probability"] == found["probabilities"][row].max()
        assert each["label_probability"] == of_label[row]
        assert each["loss"] == pytest.approx(-np.log(of_label[row]), rel=1e-5)


def test_errors_are_drawn_with_whose_they_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", "run", "--show-errors", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert cli.run(["eval", "run", "--show-errors", "3"]) == 0
    text = capsys.readouterr().out
    assert "Worst mistakes (train; highest loss first)" in text
    for rank, each in enumerate(told["errors"], 1):
        assert f"{each['probability']:.4f}" in text
        assert f"{rank}: {each['label']}>{each['predicted']}"[:4] in text
    assert "▀" in text or "█" in text or "▄" in text
    assert f"{told['num_errors']:,} examples are misclassified" in text


def test_no_errors_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", "run", "--clients", "d,", "--show-errors", "3"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("highest loss first)\nnone")
