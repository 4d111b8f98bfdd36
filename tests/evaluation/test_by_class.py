from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fedcli.evaluation.by_class import ClassMeasures
from fedcli.evaluation.predictions import Predicted
from tests.kit.command_line import Fedcli


def predicted(labels: list[int], probabilities: list[list[float]]) -> Predicted:
    shares = np.array(probabilities, np.float32)
    classes = np.where(np.isnan(shares).any(axis=1), -1, shares.argmax(axis=1)).astype(np.int32)
    count = len(labels)
    return Predicted("c", 0, np.array(labels, np.int32), classes, shares, np.zeros(count))


def test_counts_of_three_classes() -> None:
    measures = ClassMeasures([1, 2])
    measures.add(predicted([0, 1], [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    measures.add(predicted([1, 1], [[0.1, 0.8, 0.1], [0.6, 0.1, 0.3]]))
    measures.add(predicted([0], [[math.nan] * 3]))
    assert measures.confusion.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]
    assert measures.precision.tolist()[:2] == [pytest.approx(1 / 3), 1.0]
    assert measures.recall.tolist()[:2] == [0.5, pytest.approx(1 / 3)]
    assert math.isnan(measures.precision[2])
    assert math.isnan(measures.recall[2])
    assert measures.top_k == {1: 0.4, 2: 0.6}


def test_of_equal_classes_the_first_is_told_first() -> None:
    measures = ClassMeasures([1, 2])
    measures.add(predicted([0, 1], [[0.5, 0.5], [0.5, 0.5]]))
    assert measures.top_k == {1: 0.5, 2: 1.0}


def test_nothing_added_is_nothing() -> None:
    assert math.isnan(ClassMeasures([1]).top_k[1])
    assert ClassMeasures().to_json()["confusion"] == []


def test_eval_shows_them(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 3, "--out", "run")
    arguments = ("eval", "run", "--by-class", "--top-k", 1, "--top-k", 3)
    told = json.loads(fedcli(*arguments, "--json").out)
    values = told["client_work"]["eval"]["current_round_metrics"]
    confusion = np.array(told["confusion"])
    assert confusion.sum() == values["num_examples"]
    accuracy = values["sparse_categorical_accuracy"]
    assert confusion.trace() / confusion.sum() == pytest.approx(accuracy)
    assert told["top_k_accuracy"]["1"] == pytest.approx(accuracy)
    assert told["top_k_accuracy"]["3"] >= accuracy
    done = fedcli(*arguments)
    rows = [line.split() for line in done.out.splitlines()]
    assert ["3", f"{told['top_k_accuracy']['3']:.4f}"] in rows
    assert ["4", *(str(count) if count else "." for count in confusion[4])] in rows
    assert "By class" not in fedcli("eval", "run", "--top-k", 2).out


def test_more_than_there_are_classes_is_refused(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    assert fedcli("eval", "run", "--top-k", 10).code == 0
    done = fedcli("eval", "run", "--top-k", 11, "--top-k", 1)
    assert (done.code, done.out) == (1, "")
    assert "--top-k 11: the model has 10 classes; choose 1 to 10" in done.err
