"""What a trained model predicts: accuracy by client, confusion matrix, some examples.

Reads the run's data; the rest of `fedcli report` reads the run's folder alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.evaluation import spread
from fedcli.evaluation.predictions import NO_CLASS, predict_client
from fedcli.evaluation.result import Evaluation
from fedcli.runs import evaluating
from fedcli.runs.trained import Trained, load_trained

MAX_CLASSES = 100  # of more no confusion matrix is made
_MAX_EXAMPLES = 2000  # in the confusion matrix
_NUM_SAMPLES = 40


@dataclass(frozen=True, eq=False)
class PredictionSummary:
    """What a model predicts for the clients of one split.

    Attributes:
        split: Its name.
        class_names: What each class is called.
        client_ids: Who was evaluated.
        accuracies: Of each of them, float64; NaN without examples.
        confusion: int64 [num_classes, num_classes]: examples by label and predicted class; None if
            there are too many classes.
        num_counted: Examples in it.
        num_examples: Examples of all who were evaluated.
        samples: Some examples, with the clients they are of.
        pixel_convention: What 1.0 is in their images.
    """

    split: str
    class_names: list[str]
    client_ids: list[str]
    accuracies: NDArray[np.float64]
    confusion: NDArray[np.int64] | None
    num_counted: int
    num_examples: int
    samples: list[PredictedExamples]
    pixel_convention: str


@dataclass(frozen=True, eq=False)
class PredictedExamples:
    """Some examples of one client with their predicted classes; `NO_CLASS` where there is none."""

    client: ClientDataset
    predicted: NDArray[np.int32]


def summarize_predictions(path: str | Path, cancel: CancelFlag | None = None) -> PredictionSummary:
    """Returns what a run's newest checkpoint predicts for the clients that `fedcli eval` takes.

    The data are opened once. The confusion matrix is of a part of the examples: those of clients
    picked evenly.

    Raises:
        Cancelled: The flag was raised.
        ConfigError: The run's config is bad.
        DataError: Its data are missing or bad.
        RunError: There is no such run, or it is damaged.
    """
    evaluated = evaluating.evaluate_run(path, cancel=cancel)
    with load_trained(Path(path), threads=None) as trained:
        return _summarized(trained, evaluated, cancel)


def _summarized(
    trained: Trained, evaluated: Evaluation, cancel: CancelFlag | None
) -> PredictionSummary:
    data = evaluated.data
    num_classes = trained.model.layout.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    samples: list[PredictedExamples] = []
    for client in _some_clients(data, list(evaluated.client_ids)):
        weights = trained.state.weights_for(client.client_id)
        pieces = predict_client(client, trained.model, trained.engine, weights, cancel)
        predicted = np.concatenate([each.classes for each in pieces])
        has_class = predicted != NO_CLASS
        np.add.at(confusion, (client.labels[has_class], predicted[has_class]), 1)
        room = _NUM_SAMPLES - sum(len(each.predicted) for each in samples)
        if room > 0:
            # A few of each client, so that several clients are shown.
            num_taken = min(room, 8)
            first = replace(
                client, pixels=client.pixels[:num_taken], labels=client.labels[:num_taken]
            )
            samples.append(PredictedExamples(first, predicted[:num_taken]))
    return PredictionSummary(
        split=evaluated.split,
        class_names=[data.class_name(label) for label in range(num_classes)],
        client_ids=list(evaluated.client_ids),
        accuracies=spread.client_means(evaluated.client_stats)[0],
        confusion=confusion if num_classes <= MAX_CLASSES else None,
        num_counted=int(confusion.sum()),
        num_examples=int(evaluated.client_stats["num_examples"].sum()),
        samples=samples,
        pixel_convention=data.pixel_convention,
    )


def _some_clients(data: ClientData, client_ids: list[str]) -> list[ClientDataset]:
    """Clients picked evenly, as many as have at most so many examples together."""
    sizes = np.array([data.num_examples(each) for each in client_ids])
    total = int(sizes.sum())
    step = max(1, -(-total // _MAX_EXAMPLES))
    clients = (data.client(each) for each in client_ids[::step])
    return [
        replace(each, pixels=each.pixels[:_MAX_EXAMPLES], labels=each.labels[:_MAX_EXAMPLES])
        for each in clients
        if len(each)
    ]
