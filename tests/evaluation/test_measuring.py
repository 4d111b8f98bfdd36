"""Metrics beside loss and accuracy, compared with slow, simple formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import datasets, learning, models
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.errors import ConfigError, RunError
from fedcli.evaluation import ranking
from fedcli.evaluation.measuring import NUM_BINS, PredictionCounts, check_names, measure
from fedcli.evaluation.predictions import NO_CLASS, Predicted
from fedcli.evaluation.ranking import ScoreRanks
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.settings.tables.metrics import METRICS

NAMES = tuple(METRICS)

Scores = NDArray[np.float32]
Labels = NDArray[np.int32]


# ---- The reference: one example, one class, one pair at a time ----------------------------------


def slow_rates(classes: Sequence[int], labels: Sequence[int], one: int) -> tuple[float, ...]:
    """Precision, recall and F1 of a class; 0 if the denominator is 0."""
    right = sum(c == one and y == one for c, y in zip(classes, labels, strict=True))
    said, there = sum(c == one for c in classes), sum(y == one for y in labels)
    precision, recall = (right / total if total else 0.0 for total in (said, there))
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def slow_area(scores: Sequence[float], is_one: Sequence[bool]) -> float:
    """The share of pairs (one in the class, one not) with the higher score first; ties: 0.5."""
    inside = [s for s, one in zip(scores, is_one, strict=True) if one]
    outside = [s for s, one in zip(scores, is_one, strict=True) if not one]
    if not inside or not outside:
        return math.nan
    points = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside)
    return points / (len(inside) * len(outside))


def slow_auc(scores: Scores, labels: Labels) -> float:
    num_classes = scores.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)
    areas = [slow_area(scores[:, k].tolist(), (labels == k).tolist()) for k in classes]
    known = [area for area in areas if not math.isnan(area)]
    return sum(known) / len(known) if known else math.nan


def slow_ece(scores: Scores, classes: Sequence[int], labels: Sequence[int]) -> float:
    """Guo et al. 2017, equation 3, bin by bin: ((m - 1) / M, m / M]."""
    total = 0.0
    confidences = [float(row[c]) for row, c in zip(scores, classes, strict=True)]
    for m in range(1, NUM_BINS + 1):
        inside = [i for i, c in enumerate(confidences) if (m - 1) / NUM_BINS < c <= m / NUM_BINS]
        if inside:
            accuracy = sum(classes[i] == labels[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


def slow_metrics(scores: Scores, labels: Labels) -> dict[str, float]:
    classes, truth = scores.argmax(axis=1).tolist(), labels.tolist()
    occurring = sorted({*classes, *truth})
    rates = {one: slow_rates(classes, truth, one) for one in occurring}
    found = {}
    for place, name in enumerate(("precision", "recall", "f1")):
        found[f"macro_{name}"] = sum(rates[one][place] for one in occurring) / len(occurring)
        found[f"weighted_{name}"] = sum(rates[y][place] for y in truth) / len(truth)
    found["balanced_accuracy"] = sum(rates[y][1] for y in set(truth)) / len(set(truth))
    found["auc"] = slow_auc(scores, labels)
    found["ece"] = slow_ece(scores, classes, truth)
    return found


# ---- Made-up predictions -------------------------------------------------------------------------


def predicted(scores: Scores, labels: Labels, first: int = 0) -> Predicted:
    classes = scores.argmax(axis=1).astype(np.int32)
    classes[np.isnan(scores).any(axis=1)] = NO_CLASS
    return Predicted("a", first, labels, classes, scores, np.zeros(len(labels)))


def draw(num: int, num_classes: int, seed: int, *, digits: int = 9) -> tuple[Scores, Labels]:
    """Probabilities, some equal after rounding, and labels, often those of highest probability."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num).astype(np.int32)
    logits = random.normal(size=(num, num_classes))
    logits[np.arange(num), labels] += 1
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scores.round(digits).astype(np.float32), labels


def counted(scores: Scores, labels: Labels, names: Sequence[str] = NAMES) -> dict[str, float]:
    counts = PredictionCounts(scores.shape[1], names)
    counts.add(predicted(scores, labels))
    return counts.values()


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("num", [1, 2, 37, 150])
@pytest.mark.parametrize("digits", [1, 9])
def test_metrics_equal_the_slow_reference(num: int, num_classes: int, digits: int) -> None:
    scores, labels = draw(num, num_classes, seed=num, digits=digits)
    assert_same(counted(scores, labels), slow_metrics(scores, labels))


def test_hand_worked_metrics_of_three_classes() -> None:
    labels = np.array([0, 0, 0, 1], np.int32)  # class 2 is predicted, but is no label
    scores = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]])
    found = counted(scores.astype(np.float32), labels)
    assert found["macro_precision"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert found["macro_recall"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["weighted_recall"] == pytest.approx(0.5)
    assert found["weighted_f1"] == pytest.approx(3 / 4 * 2 / 3)
    # Each pair has one example of the class and one of another class. Class 0: of the scores 0.8,
    # 0.5 and 0.1, one is above 0.7, so 1/3. Class 1: 0.2 is above two of 0.1, 0.3, 0.1, so 2/3.
    assert found["auc"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    # Bin (.73, .8] has the confidence 0.8 twice, once correct: |1.6 - 1|. Bin (.466, .533] has 0.5,
    # which is correct: |0.5 - 1|. Bin (.666, .733] has 0.7, which is wrong: |0.7 - 0|.
    assert found["ece"] == pytest.approx((0.6 + 0.5 + 0.7) / 4, abs=1e-7)


def test_classes_that_neither_labels_nor_predictions_have_do_not_count() -> None:
    scores, labels = draw(40, 4, seed=1)
    wider = np.concatenate([scores, np.zeros((40, 3), np.float32)], axis=1)
    found = counted(wider, labels)
    assert_same(found, slow_metrics(wider, labels))
    assert found["macro_f1"] == counted(scores, labels)["macro_f1"]
    assert found["auc"] == counted(scores, labels)["auc"]


def test_one_class_alone_has_no_area() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    found = counted(scores, np.zeros(2, np.int32))
    assert math.isnan(found["auc"])
    # The recall is 0.5 for class 0, and 0 for class 1, which is only predicted.
    assert found["macro_recall"] == 0.25
    assert found["balanced_accuracy"] == 0.5


def test_two_classes_have_the_area_of_the_second() -> None:
    scores = np.array([[0.3, 0.7], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]], np.float32)
    labels = np.array([1, 0, 1, 0], np.int32)
    assert counted(scores, labels, ["auc"]) == {"auc": (2 + 1.5) / 4}


def test_no_example_has_no_metric() -> None:
    counts = PredictionCounts(3, NAMES)
    counts.add(predicted(np.empty((0, 3), np.float32), np.empty(0, np.int32)))
    assert all(map(math.isnan, counts.values().values()))


def test_an_example_without_a_prediction_counts_as_missed() -> None:
    scores, labels = draw(20, 3, seed=2)
    scores[4] = np.nan
    found = counted(scores, labels)
    right = [
        int(s.argmax() == y) for i, (s, y) in enumerate(zip(scores, labels, strict=True)) if i != 4
    ]
    assert found["weighted_recall"] == pytest.approx(sum(right) / 20)
    assert math.isnan(found["auc"])
    assert math.isnan(found["ece"])
    assert math.isfinite(found["macro_precision"])


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    scores = np.array([[0.0, 1.0]] * 3 + [[0.2, 0.8]] * 5, np.float32)
    labels = np.array([1, 1, 0, 1, 1, 1, 1, 0], np.int32)
    expected = (abs(2 - 3) + abs(4 - 5 * float(np.float32(0.8)))) / 8
    assert counted(scores, labels, ["ece"])["ece"] == pytest.approx(expected, abs=1e-12)
    assert slow_ece(scores, [1] * 8, labels.tolist()) == pytest.approx(expected, abs=1e-12)


def test_pieces_add_up_to_the_same_values() -> None:
    scores, labels = draw(90, 5, seed=3, digits=2)
    counts = PredictionCounts(5, NAMES)
    for first in range(0, 90, 7):
        counts.add(predicted(scores[first : first + 7], labels[first : first + 7], first))
    assert_same(counts.values(), slow_metrics(scores, labels))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_table_is_computed_alone(name: str) -> None:
    scores, labels = draw(90, 5, seed=3, digits=2)
    expected = slow_metrics(scores, labels)[name]
    assert counted(scores, labels, [name]) == {name: pytest.approx(expected, abs=1e-12)}


# ---- Areas of more scores than memory holds ------------------------------------------------------


@pytest.mark.parametrize("max_held", [0, 40, 10_000])
@pytest.mark.parametrize("max_sorted", [1, 9, 60, 10_000])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_areas_are_exact_however_little_is_held(
    max_held: int, max_sorted: int, num_classes: int
) -> None:
    scores, labels = draw(150, num_classes, seed=max_sorted, digits=2)
    scores[:20, 0] = 0.0
    scores[20:30, 0] = -0.0
    ranks = ScoreRanks(num_classes, max_held=max_held, max_sorted=max_sorted)
    for first in range(0, 150, 11):
        ranks.add(scores[first : first + 11], labels[first : first + 11])
    classes = [1] if num_classes == 2 else range(num_classes)
    expected = [slow_area(scores[:, k].tolist(), (labels == k).tolist()) for k in classes]
    assert ranks.areas().tolist() == pytest.approx(expected, abs=1e-15)
    ranks.close()


def test_scores_alike_in_their_upper_bits_are_told_apart() -> None:
    """All 200 scores have the same upper bits, but only `max_sorted` may be sorted at a time."""
    bits = np.float32(0.5).view(np.uint32) + np.arange(200, dtype=np.uint32) % 50
    scores = np.stack([bits.view(np.float32)] * 2, axis=1)
    labels = (np.arange(200) % 7 == 0).astype(np.int32)
    ranks = ScoreRanks(2, max_held=0, max_sorted=10)
    ranks.add(scores, labels)
    expected = slow_area(scores[:, 1].tolist(), (labels == 1).tolist())
    assert ranks.areas()[0] == pytest.approx(expected, abs=1e-15)
    ranks.close()


def _full_device() -> Any:
    return Path("/dev/full").open("w+b", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "nameless_file", _full_device)
    ranks = ScoreRanks(3, max_held=0)
    with pytest.raises(RunError, match=r"No space left.*TMPDIR.*16 bytes per example.*--metrics"):
        ranks.add(*draw(5, 3, seed=0))
    ranks.close()


# ---- By client -----------------------------------------------------------------------------------


def evaluated(num_threads: int, **asked: Any) -> Any:
    data = datasets.load(data_options={"clients": 7})[0]
    engine = ThreadEngine(num_threads)
    evaluator = learning.build_fed_eval("mlp-2nn", engine=engine)
    group = EvaluationGroup("train", data, data.client_ids, BatchPlan(batch_size=20))
    found = measure(group, evaluator, evaluator.initialize(), NAMES, **asked)
    return found, data, evaluator


def test_metrics_of_clients_are_those_of_their_examples() -> None:
    is_seen = np.array([True, False, True, True, False, False, False])
    found, data, evaluator = evaluated(2, by_client=True, is_seen=is_seen)
    layout, weights = evaluator.model.layout, evaluator.initialize().global_model_weights
    parts = []
    for client_id in data.client_ids:
        dataset = data.client(client_id).preprocess(batch_size=20)
        logits = evaluator.engine.predict(layout, weights, [dataset]).values.astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        parts.append((shares.astype(np.float32), np.asarray(dataset.client.labels)))
    for place, part in enumerate(parts):
        alone = {name: float(found.by_client[name][place]) for name in NAMES}
        assert_same(alone, slow_metrics(*part))

    def joined(wanted: NDArray[np.bool_]) -> dict[str, float]:
        chosen = [part for part, is_wanted in zip(parts, wanted, strict=True) if is_wanted]
        return slow_metrics(
            np.concatenate([scores for scores, _ in chosen]),
            np.concatenate([labels for _, labels in chosen]),
        )

    assert_same(dict(found.values), joined(np.ones(7, np.bool_)))
    assert_same(dict(found.by_group["seen"]), joined(is_seen))
    assert_same(dict(found.by_group["unseen"]), joined(~is_seen))


def test_threads_change_no_byte() -> None:
    first = evaluated(1, by_client=True)[0]
    for num_threads in (2, 3):
        other = evaluated(num_threads, by_client=True)[0]
        assert other.values == first.values
        for name in NAMES:
            assert other.by_client[name].tobytes() == first.by_client[name].tobytes()


def test_a_metric_that_the_model_has_itself_is_refused() -> None:
    from fedcli.models.metrics import OwnMetrics

    class Own:
        name = "mine"
        layout = type("Layout", (), {"layers": ()})
        metrics = OwnMetrics.of({"auc": 1}, {"auc": sum})

    with pytest.raises(ConfigError, match=r"--metrics auc: the model mine has a metric of that"):
        check_names(["ece", "auc"], Own())  # type: ignore[arg-type]
    check_names(["ece", "auc"], models.build("softmax-regression"))
