"""Predictions of a model for single examples, also written to a file, and the worst mistakes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.csv_text import CsvWriter
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.errors import ConfigError
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.learning.engines.contract import PIECE_BYTES, Engine, Scores, Starts
from fedcli.models.metrics import predicted_classes
from fedcli.models.model import Model
from fedcli.outputs import check_output, output_file

SUFFIXES = (".npz", ".csv")
NO_CLASS = -1  # the predicted class if a score is NaN

# The core scores a client's examples in blocks of this many (csrc/cohort/score.c). Cutting a client
# at a multiple of it changes no result.
_SCORE_BLOCK = 256
_MAX_SCORES = 1 << 21  # scores in memory at a time


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions for consecutive examples of one client.

    Attributes:
        client_id: The client.
        first: Index of the first of these examples among all examples of the client.
        labels: int32 [n].
        classes: The predicted classes, int32 [n]; `NO_CLASS` if a score is NaN.
        probabilities: The probability of each class, float32 [n, K].
        losses: Minus the logarithm of the label's probability, float64 [n]; infinite instead of
            NaN.
    """

    client_id: str
    first: int
    labels: NDArray[np.int32]
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Mistake:
    """An example whose predicted class is not its label.

    Attributes:
        client_id: Its client.
        index: Its index in the client, from 0.
        label: Its label.
        predicted: The predicted class; `NO_CLASS` if a score is NaN.
        probability: The probability of the predicted class; NaN without one.
        label_probability: The probability of the label.
        loss: Minus the logarithm of the label's probability.
    """

    client_id: str
    index: int
    label: int
    predicted: int
    probability: float
    label_probability: float
    loss: float


class WorstMistakes:
    """The mistakes with the greatest loss among all added predictions.

    Attributes:
        num_mistakes: Number of all mistakes.
    """

    def __init__(self, limit: int) -> None:
        """Starts without mistakes; keeps at most `limit`."""
        self.num_mistakes = 0
        self._limit = limit
        self._kept: list[Mistake] = []

    def add(self, predicted: Predicted, classes: NDArray[np.int32] | None = None) -> None:
        """Counts the mistakes among predictions and keeps the worst.

        Args:
            predicted: The predictions.
            classes: One class per example, int32 [n]: a mistake counts only if this class was
                predicted. If None, every mistake counts.
        """
        is_wrong = predicted.classes != predicted.labels
        if classes is not None:
            is_wrong &= predicted.classes == classes
        wrong = np.flatnonzero(is_wrong)
        self.num_mistakes += len(wrong)
        worst = wrong[np.argsort(-predicted.losses[wrong], kind="stable")[: self._limit]]
        mistakes = [_mistake(predicted, row) for row in worst.tolist()]
        # The sort is stable: of equal losses, those added first stay.
        self._kept = sorted([*self._kept, *mistakes], key=lambda each: -each.loss)[: self._limit]

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The worst mistakes, greatest loss first; of equal losses, those added first."""
        return tuple(self._kept)

    def to_json(self) -> dict[str, Any]:
        """Returns the mistakes as plain values; `predicted` is null if no class was predicted."""
        plain = [asdict(each) for each in self._kept]
        for each in plain:
            each["predicted"] = None if each["predicted"] == NO_CLASS else each["predicted"]
        return {"num_errors": self.num_mistakes, "errors": plain}


def predict(
    group: EvaluationGroup,
    model: Model,
    engine: Engine,
    weights: NDArray[np.float32],
    cancel: CancelFlag | None = None,
    starts: Starts | None = None,
) -> Iterator[Predicted]:
    """Yields the predictions for all examples of a group, clients and examples in order.

    Memory is bounded for any population: a few million scores, and the pixels of a few clients.

    Args:
        group: The clients.
        model: The model.
        engine: The engine.
        weights: The model's weights, float32 [num_params].
        cancel: A flag that any thread may set to stop the work within a batch.
        starts: Returns the weights of each client if they have their own; see `Engine.predict`.

    Raises:
        Cancelled: `cancel` was set.
        DataError: A client's data are invalid.
        ModelError: A user's model fails.
    """
    for _, pieces in predict_by_client(group, model, engine, weights, cancel, starts):
        yield from pieces


def predict_by_client(
    group: EvaluationGroup,
    model: Model,
    engine: Engine,
    weights: NDArray[np.float32],
    cancel: CancelFlag | None = None,
    starts: Starts | None = None,
) -> Iterator[tuple[int, Iterator[Predicted]]]:
    """Yields, for each client, its index in the group and an iterator of its predictions.

    Clients without examples are left out. Consume each iterator before taking the next client. See
    `predict` for the arguments and the errors.
    """
    num_classes = model.layout.num_classes
    max_rows = max(1, _MAX_SCORES // num_classes)

    def placed() -> Iterator[tuple[int, Predicted]]:
        pending: list[_Piece] = []
        num_rows = num_bytes = 0
        for piece in (
            _Piece(place, first, dataset)
            for place, client_id in enumerate(group.client_ids)
            for first, dataset in _pieces(group.data.client(client_id), group.plan, max_rows)
        ):
            pending.append(piece)
            num_rows += len(piece.dataset.client)
            num_bytes += piece.dataset.client.pixels.nbytes
            if num_rows * num_classes >= _MAX_SCORES or num_bytes >= PIECE_BYTES:
                yield from _predict_pieces(pending, model, engine, weights, cancel, starts)
                pending, num_rows, num_bytes = [], 0, 0
        yield from _predict_pieces(pending, model, engine, weights, cancel, starts)

    for place, each in groupby(placed(), key=itemgetter(0)):
        yield place, map(itemgetter(1), each)


def predict_client(
    client: ClientDataset,
    model: Model,
    engine: Engine,
    weights: NDArray[np.float32],
    cancel: CancelFlag | None = None,
) -> Iterator[Predicted]:
    """Yields the predictions for all examples of one client, in order.

    Args:
        client: The client's data.
        model: The model.
        engine: The engine.
        weights: The model's weights, float32 [num_params].
        cancel: A flag that any thread may set to stop the work within a batch.

    Raises:
        Cancelled: `cancel` was set.
        DataError: The client's data are invalid.
        ModelError: A user's model fails.
    """
    max_rows = max(1, _MAX_SCORES // model.layout.num_classes)
    for first, dataset in _pieces(client, BatchPlan(), max_rows):
        piece = _Piece(0, first, dataset)
        for _, predicted in _predict_pieces([piece], model, engine, weights, cancel):
            yield predicted


def check_target(path: Path) -> None:
    """Checks, before any work, that predictions can be written to a file.

    Raises:
        ConfigError: Its suffix is neither .npz nor .csv.
        RunError: Its folder does not exist or is not writable, or it is not a file.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--predictions {path}: choose a name that ends in .npz or .csv")
    check_output(path)


@contextmanager
def writing(path: Path, num_classes: int) -> Iterator[Callable[[Predicted], None]]:
    """Yields a function that adds predictions to a file, which appears when the block ends.

    If the block raises, no file appears. An example has the values client_id, index (in the
    client), label, predicted, and the probability of each class. `.csv` has a row for each example
    and is written continuously. `.npz` has an array of each value (`probabilities` is float32
    [N, K]) and is held in memory until the end.

    Args:
        path: The file. An existing regular file is replaced; a pipe or device is written to.
        num_classes: Number of probabilities of an example.

    Raises:
        RunError: The file cannot be written.
    """
    write = _writing_csv if path.suffix == ".csv" else _writing_npz
    with output_file(path) as file, write(file, num_classes) as add:
        yield add


@contextmanager
def _writing_csv(file: BinaryIO, num_classes: int) -> Iterator[Callable[[Predicted], None]]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = CsvWriter(text)
    probabilities = [f"probability_{label}" for label in range(num_classes)]
    writer.row(["client_id", "index", "label", "predicted", *probabilities])

    def add(predicted: Predicted) -> None:
        rows = zip(
            predicted.labels.tolist(),
            predicted.classes.tolist(),
            predicted.probabilities.tolist(),
            strict=True,
        )
        writer.rows(
            # 9 digits distinguish any two float32 values
            [predicted.client_id, index, label, class_, *(f"{each:.9g}" for each in of_classes)]
            for index, (label, class_, of_classes) in enumerate(rows, predicted.first)
        )

    yield add
    text.detach()  # flushes; the caller closes the file


@contextmanager
def _writing_npz(file: BinaryIO, num_classes: int) -> Iterator[Callable[[Predicted], None]]:
    parts: list[Predicted] = []
    yield parts.append
    sizes = [len(each.labels) for each in parts]
    empty = np.empty(0, np.int32)  # np.concatenate needs at least one array
    ids = np.array([each.client_id for each in parts], np.str_)
    arrays: dict[str, NDArray[Any]] = {
        "client_id": np.repeat(ids, sizes),
        "index": np.concatenate(
            [
                empty.astype(np.int64),
                *(np.arange(each.first, each.first + len(each.labels)) for each in parts),
            ]
        ),
        "label": np.concatenate([empty, *(each.labels for each in parts)]),
        "predicted": np.concatenate([empty, *(each.classes for each in parts)]),
        "probabilities": np.concatenate(
            [np.empty((0, num_classes), np.float32), *(each.probabilities for each in parts)]
        ),
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _pieces(
    client: ClientDataset, plan: BatchPlan, max_rows: int
) -> Iterator[tuple[int, BatchedDataset]]:
    """Pieces of a client of about `max_rows` examples, each with the index of its first example."""
    unit = math.lcm(_SCORE_BLOCK, plan.batch_size)  # a Python model scores whole batches
    step = unit * max(1, max_rows // unit)
    for first in range(0, len(client), step):
        rows = slice(first, first + step)
        piece = replace(client, pixels=client.pixels[rows], labels=client.labels[rows])
        yield first, BatchedDataset(piece, plan)


class _Piece(NamedTuple):
    """Consecutive examples of one client.

    Attributes:
        place: The client's index in the group.
        first: Index of the first of these examples among all examples of the client.
        dataset: The examples.
    """

    place: int
    first: int
    dataset: BatchedDataset


def _predict_pieces(
    pieces: list[_Piece],
    model: Model,
    engine: Engine,
    weights: NDArray[np.float32],
    cancel: CancelFlag | None,
    starts: Starts | None = None,
) -> Iterator[tuple[int, Predicted]]:
    """Yields the index of the client of each piece, and the piece's predictions."""
    if not pieces:
        return
    datasets = [each.dataset for each in pieces]
    scores = engine.predict(model.layout, weights, datasets, starts=starts, cancel=cancel)
    start = 0
    for place, first, dataset in pieces:
        end = start + len(dataset.client)
        own = Scores(scores.values[start:end], scores.are_logits)
        yield place, _predicted(dataset.client.client_id, first, dataset.client.labels, own)
        start = end


def _predicted(client_id: str, first: int, labels: NDArray[np.int32], scores: Scores) -> Predicted:
    values = scores.values.astype(np.float64)
    rows = np.arange(len(labels))
    with np.errstate(all="ignore"):  # the model of a diverged run gives NaN and infinity
        if scores.are_logits:
            shifted = values - values.max(axis=1, keepdims=True)
            exponentials = np.exp(shifted)
            totals = exponentials.sum(axis=1, keepdims=True)
            probabilities = exponentials / totals
            losses = np.log(totals[:, 0]) - shifted[rows, labels]
        else:
            probabilities = values
            losses = -np.log(values[rows, labels])
    return Predicted(
        client_id,
        first,
        labels,
        predicted_classes(scores.values),
        probabilities.astype(np.float32),
        np.where(np.isnan(losses), np.inf, losses),
    )


def _mistake(predicted: Predicted, row: int) -> Mistake:
    class_, label = int(predicted.classes[row]), int(predicted.labels[row])
    probabilities = predicted.probabilities[row]
    return Mistake(
        client_id=predicted.client_id,
        index=predicted.first + row,
        label=label,
        predicted=class_,
        probability=math.nan if class_ == NO_CLASS else float(probabilities[class_]),
        label_probability=float(probabilities[label]),
        loss=float(predicted.losses[row]),
    )
