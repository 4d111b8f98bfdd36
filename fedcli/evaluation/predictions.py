"""What a model says of each example: as rows of a file, and the worst of its mistakes."""

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
NO_CLASS = -1  # predicted where a score is NaN

# Examples of a client are scored in multiples of this many by the core (csrc/cohort/score.c), so
# that cutting a client there changes nothing.
_SCORE_BLOCK = 256
_MAX_SCORES = 1 << 21  # in memory at a time


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a model says of examples of one client that follow each other.

    Attributes:
        client_id: The client.
        first: Index of the first of them in the client.
        labels: int32 [n].
        classes: The predicted ones, int32 [n]; `NO_CLASS` where a score is NaN.
        probabilities: Of each class, float32 [n, K].
        losses: Minus the logarithm of the label's probability, float64 [n]; infinite where that
            is NaN.
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
        index: Its place there, from 0.
        label: Its label.
        predicted: The class that the model says; `NO_CLASS` where a score is NaN.
        probability: Of that class; NaN without one.
        label_probability: Of the label.
        loss: Minus the logarithm of that.
    """

    client_id: str
    index: int
    label: int
    predicted: int
    probability: float
    label_probability: float
    loss: float


class WorstMistakes:
    """Those mistakes, of all that are added, whose loss is greatest.

    Attributes:
        num_mistakes: Of all.
    """

    def __init__(self, limit: int) -> None:
        """Starts without any; keeps at most `limit`."""
        self.num_mistakes = 0
        self._limit = limit
        self._kept: list[Mistake] = []

    def add(self, predicted: Predicted) -> None:
        """Counts the mistakes in what was predicted, and keeps the worst."""
        wrong = np.flatnonzero(predicted.classes != predicted.labels)
        self.num_mistakes += len(wrong)
        worst = wrong[np.argsort(-predicted.losses[wrong], kind="stable")[: self._limit]]
        found = [_mistake(predicted, row) for row in worst.tolist()]
        # A stable sort: of equal ones, those that came first stay.
        self._kept = sorted([*self._kept, *found], key=lambda each: -each.loss)[: self._limit]

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The worst, worst first; of equal ones, those that came first."""
        return tuple(self._kept)

    def to_json(self) -> dict[str, Any]:
        """Returns them as plain values; `predicted` is null where there is no class."""
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
    """Yields what a model says of each example of a group once, clients and examples in order.

    No more than some millions of scores are in memory at a time, and the pixels of few clients,
    whatever the population.

    Args:
        group: Whose examples.
        model: The model.
        engine: What computes it.
        weights: Its weights, float32 [num_params].
        cancel: Once raised, from any thread, the next call of the engine ends.
        starts: Where each client has weights of its own; see `Engine.predict`.

    Raises:
        Cancelled: `cancel` was raised.
        DataError: A client's data are bad.
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
    """Yields the same client by client: its place in the group, and what is said of its examples.

    A client without examples is left out. Each is gone through before the next is asked for.
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
    """Yields what a model says of each example of one client, in order.

    Args:
        client: Its data.
        model: The model.
        engine: What computes it.
        weights: Its weights, float32 [num_params].
        cancel: Once raised, from any thread, the next call of the engine ends.

    Raises:
        Cancelled: `cancel` was raised.
        DataError: The client's data are bad.
        ModelError: A user's model fails.
    """
    max_rows = max(1, _MAX_SCORES // model.layout.num_classes)
    for first, dataset in _pieces(client, BatchPlan(), max_rows):
        piece = _Piece(0, first, dataset)
        for _, predicted in _predict_pieces([piece], model, engine, weights, cancel):
            yield predicted


def check_target(path: Path) -> None:
    """Refuses a file that predictions cannot be written to, before any work.

    Raises:
        ConfigError: Its name does not say in which format.
        RunError: Its folder is not there or cannot be written to, or it is a folder or the like.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--predictions {path}: choose a name that ends in .npz or .csv")
    check_output(path)


@contextmanager
def writing(path: Path, num_classes: int) -> Iterator[Callable[[Predicted], None]]:
    """Yields what takes the rows of a file that appears under its name when the block ends well.

    A row an example: client_id, index (its place in the client), label, predicted, and the
    probability of each class. `.csv` is written as it comes. `.npz` has an array of each,
    `probabilities` float32 [N, K], and is held in memory until the end.

    Args:
        path: Where to; an existing regular file is replaced, a pipe or device written to.
        num_classes: Probabilities in a row.

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
            # 9 digits tell any two float32 apart
            [predicted.client_id, index, label, class_, *(f"{each:.9g}" for each in of_classes)]
            for index, (label, class_, of_classes) in enumerate(rows, predicted.first)
        )

    yield add
    text.detach()  # after a flush; who gave the file closes it


@contextmanager
def _writing_npz(file: BinaryIO, num_classes: int) -> Iterator[Callable[[Predicted], None]]:
    parts: list[Predicted] = []
    yield parts.append
    sizes = [len(each.labels) for each in parts]
    nothing = np.empty(0, np.int32)
    ids = np.array([each.client_id for each in parts], np.str_)
    arrays: dict[str, NDArray[Any]] = {
        "client_id": np.repeat(ids, sizes),
        "index": np.concatenate(
            [
                nothing.astype(np.int64),
                *(np.arange(each.first, each.first + len(each.labels)) for each in parts),
            ]
        ),
        "label": np.concatenate([nothing, *(each.labels for each in parts)]),
        "predicted": np.concatenate([nothing, *(each.classes for each in parts)]),
        "probabilities": np.concatenate(
            [np.empty((0, num_classes), np.float32), *(each.probabilities for each in parts)]
        ),
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _pieces(
    client: ClientDataset, plan: BatchPlan, max_rows: int
) -> Iterator[tuple[int, BatchedDataset]]:
    """A client, cut so that no piece has many rows; with the index of a piece's first."""
    unit = math.lcm(_SCORE_BLOCK, plan.batch_size)  # what a model in Python takes at once
    step = unit * max(1, max_rows // unit)
    for first in range(0, len(client), step):
        rows = slice(first, first + step)
        piece = replace(client, pixels=client.pixels[rows], labels=client.labels[rows])
        yield first, BatchedDataset(piece, plan)


class _Piece(NamedTuple):
    """Some examples of a client: its place in the group, and the index of the first of them."""

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
    """Yields the place of each piece, and what is said of its examples."""
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
    with np.errstate(all="ignore"):  # a run that diverged: NaN and infinity are data
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
