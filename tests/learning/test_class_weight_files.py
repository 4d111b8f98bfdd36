"""Class weights: balanced by the training split, or read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import datasets
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import ConfigError
from fedcli.learning.class_weights import balanced, load_class_weights
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.training import train

CLASSES = ("cat", "dog", "eel")


class Train:
    """A training split of a few labels."""

    source = "pets.h5"
    client_ids = ("a", "b", "c")

    def __init__(self, names: tuple[str, ...] | None = CLASSES, num_classes: int = 3) -> None:
        self.class_names, self.num_classes = names, num_classes

    def labels(self, client_id: str) -> Any:
        return {"a": [0, 0, 1], "b": [], "c": [0, 0, 0, 2, 2]}[client_id]

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)


def load(text: str, **made: Any) -> list[float]:
    return load_class_weights(text, Train(**made)).tolist()  # type: ignore[arg-type]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: str) -> str:
        path = tmp_path / "weights"
        path.write_text(content)
        return str(path)

    return write


def test_balanced_is_the_examples_over_classes_times_their_examples() -> None:
    assert load("balanced") == pytest.approx([8 / (3 * 5), 8 / (3 * 1), 8 / (3 * 2)], rel=1e-6)


def test_balanced_counts_only_classes_that_occur() -> None:
    counts = np.array([5, 0, 1, 2])
    found = balanced(counts)
    assert found.tolist() == pytest.approx([8 / 15, 1.0, 8 / 3, 8 / 6])
    assert (found * counts).sum() == pytest.approx(8)  # the mean weight of an example is 1
    assert balanced(np.zeros(3, np.int64)).tolist() == [1, 1, 1]


def test_balanced_of_a_dataset_is_that_of_its_labels() -> None:
    data = datasets.load(data_options={"clients": 5})[0]
    labels = np.concatenate([data.labels(each) for each in data.client_ids])
    counts = [int((labels == label).sum()) for label in range(10)]
    expected = [len(labels) / (10 * count) for count in counts]
    found = load_class_weights("balanced", data)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    flag = CancelFlag()
    flag.set()
    with pytest.raises(Cancelled):
        load_class_weights("balanced", data, flag)


@pytest.mark.parametrize(
    "content",
    [
        '{"cat": 1, "eel": 0.5, "dog": 2}',
        '{"0": 1, "2": 0.5, "1": 2}',
        "[1, 2.0, 0.5]",
        "class,weight\ncat,1\ndog,2\neel,0.5\n",
        "dog,2\r\ncat,1\r\neel,0.5",
        "0;1\n1;2\n2;0.5\n",
        "0\t1\n1\t2\n2\t0.5\n",
        "\ufeffcat,1\n\n dog ,2\neel,5e-1\n",
        "0.0,1\n1.0,2\n2.0,0.5",
    ],
)
def test_a_file_gives_weights_by_name_or_number(write: Any, content: str) -> None:
    assert load(write(content)) == [1.0, 2.0, 0.5]


def test_names_with_commas_are_read(write: Any) -> None:
    names = ("a, b", '"c"', "3")
    assert load(write('"a, b",1\n"""c""",2\n3,4\n'), names=names) == [1, 2, 4]


def test_classes_without_names_have_numbers(write: Any) -> None:
    assert load(write('{"0": 1, "1": 2, "2": 3}'), names=None) == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no weights; give balanced, rows class,weight"),
        ("{}", r"weights for 0 classes, but pets.h5 has 3, none for class cat"),
        ('{"cat": 1, "dog": 2}', "weights for 2 classes, but pets.h5 has 3, none for class eel"),
        ("[1, 2]", "weights for 2 classes, but pets.h5 has 3, none for class eel"),
        ("[1, 2, 3, 4]", "weights for 4 classes, but pets.h5 has 3; give each class a weight"),
        ('{"cat": 1, "dig": 2, "eel": 3}', r"'dig' is not one of the 3 classes.*did you mean dog"),
        ('{"0": 1, "1": 2, "3": 3}', "'3' is not one of the 3 classes"),
        ('{"cat": 1, "cat": 2, "eel": 3}', "'cat' occurs twice"),
        ("cat,1\ncat,2\neel,3", "'cat' occurs twice"),
        ('{"0": 1, "0.0": 2, "1": 3, "2": 3}', "a class has two weights"),
        ('{"cat": -1, "dog": 2, "eel": 3}', "class cat -1: choose a finite number from 0 to 1e"),
        ('{"cat": NaN, "dog": 2, "eel": 3}', "class cat nan: choose a finite number"),
        ('{"cat": true, "dog": 2, "eel": 3}', "class cat true: choose"),
        ('{"cat": "1", "dog": 2, "eel": 3}', "class cat '1': choose"),
        ("[1e9, 1, 1]", "class cat 1000000000.0: choose"),
        (f"[{10**400}, 1, 1]", "class cat inf: choose"),
        ("[[1], 1, 1]", r"class cat \[1\]: choose"),
        ("[0, 0, 0.0]", "all weights are 0"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("class,weight\ncat,\0", "'cat' has no number|is not CSV"),
        ("c" * 200_000 + ",1", "is not CSV: field larger than field limit"),
        ("cat 1\ndog 2\neel 3", "'cat 1' has no number in a second column"),
        ("cat,1\ndog,two\neel,3", "'dog' has no number in a second column"),
        ("cat,1,2\ndog,2,2\neel,3,2", "'cat' has no number in a second column"),
    ],
)
def test_a_file_that_does_not_give_each_class_one_weight_is_refused(
    write: Any, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(content))
    assert str(caught.value).startswith("--class-weights ")
    assert "\n" not in str(caught.value)


def test_names_that_are_numbers_of_other_classes_are_not_guessed(write: Any) -> None:
    path = write('{"1": 5, "2": 6, "0": 7}')
    with pytest.raises(ConfigError, match=r"are both names and numbers of .* a JSON list"):
        load(path, names=("1", "2", "0"))
    assert load(path, names=("0", "1", "2")) == [7, 5, 6]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(str(tmp_path))
    (tmp_path / "image").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(str(tmp_path / "image"))


# ---- In runs -------------------------------------------------------------------------------------

SMALL = ("--data-option", "clients=8", "--clients", "4", "--rounds", "2", "--epochs", "1")


def test_a_run_keeps_its_weights_and_says_when_they_change(fedcli: Fedcli, tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text(json.dumps([1, 2, 3, 4, 5, 6, 7, 8, 9, 0.5]))
    done = fedcli("train", *SMALL, "--class-weights", "weights.json", "--out", "run", "--json")
    assert done.code == 0
    assert "class weights of the training loss: 0.5 (class 9) to 9 (class 8)" in done.err
    config = (tmp_path / "run" / "config.toml").read_text()
    assert f'class_weights = "{file}"' in config
    plain = json.loads(fedcli("train", *SMALL, "--out", "plain", "--json", "-q").out)
    first, other = (
        each["rounds"][0]["client_work"]["train"] for each in (json.loads(done.out), plain)
    )
    assert first["num_correct" if "num_correct" in first else "num_examples"]
    assert first["loss"] > 2 * other["loss"]  # the mean class weight is 4.55
    resumed = fedcli("train", "--resume", "run", "--rounds", "3", "-q")
    assert (resumed.code, resumed.err) == (0, "")
    again = fedcli(
        "train", *SMALL, "--rounds", "3", "--class-weights", file, "--out", "again", "-q"
    )
    assert again.code == 0
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "again")]
    assert lines[0] == lines[1]
    file.write_text(json.dumps([1] * 10))
    changed = fedcli("train", "--resume", "run", "--rounds", "4")
    assert changed.code == 0
    assert "the weights have changed since the run began" in changed.err


def test_fine_tuning_uses_the_class_weights_of_the_run(fedcli: Fedcli, tmp_path: Path) -> None:
    rare = [0.0] * 9 + [1.0]
    (tmp_path / "rare.json").write_text(json.dumps(rare))
    assert fedcli("train", *SMALL, "--class-weights", "rare.json", "--out", "run", "-q").code == 0
    reported = json.loads(
        fedcli("eval", "run", "--finetune", "30", "--finetune-lr", "0.5", "--json").out
    )
    assert reported["fine_tuned"]["metrics"]["sparse_categorical_accuracy"] < 0.3


def test_a_bad_file_of_weights_is_refused_before_any_work(fedcli: Fedcli, tmp_path: Path) -> None:
    (tmp_path / "weights.csv").write_text("0,1\n")
    done = fedcli("train", *SMALL, "--class-weights", "weights.csv", "--out", "run")
    assert_is_one_line(done, "--class-weights", "weights.csv", "none for class 1")
    assert not (tmp_path / "run").exists()


def test_weights_resume_to_the_bytes_of_a_straight_run(tmp_path: Path) -> None:
    from fedcli.runs import starting
    from fedcli.settings.run_config import RunConfig

    def config(rounds: int) -> RunConfig:
        return RunConfig(
            data_options={"clients": 8},
            clients="4",
            rounds=rounds,
            epochs=1,
            threads=1,
            sampling="uniform",
            class_weights="balanced",
            metrics=("macro_f1", "auc", "ece"),
            eval_every=1,
        )

    train(tmp_path / "straight", config(4))
    train(tmp_path / "stopped", config(2))
    with starting.resume(tmp_path / "stopped", rounds=4, threads=2) as training:
        training.complete()
    for name in ("metrics.jsonl", "evaluation.json"):
        texts = [(tmp_path / run / name).read_bytes() for run in ("straight", "stopped")]
        assert texts[0] == texts[1]
