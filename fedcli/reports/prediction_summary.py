"""Summarises a trained model's predictions: accuracy by client, confusion matrix, some examples.

This reads the run's data; the rest of `fedcli report` reads only the run's folder.
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

MAX_CLASSES = 100  # largest number of classes for a confusion matrix
_MAX_EXAMPLES = 2000  # about the largest number of examples in the confusion matrix
_NUM_SAMPLES = 40


@dataclass(frozen=True, eq=False)
class PredictionSummary:
    """The predictions of a model for the clients of one split.

    Attributes:
        split: The name of the split.
        class_names: The name of each class.
        client_ids: The evaluated clients.
        accuracies: The accuracy of each evaluated client, float64 [clients]; NaN for a client
            without examples.
        confusion: Number of examples by label and predicted class, int64 [num_classes,
            num_classes]; None if there are too many classes.
        num_counted: Number of examples in the confusion matrix.
        num_examples: Number of examples of all evaluated clients.
        samples: Some examples of several clients.
        pixel_convention: The meaning of the pixel value 1.0 in `samples`: "ink" or "background".
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
    """Some examples of one client with their predicted classes, int32 [examples].

    A class is `NO_CLASS` if the model predicted none.
    """

    client: ClientDataset
    predicted: NDArray[np.int32]


def summarize_predictions(path: str | Path, cancel: CancelFlag | None = None) -> PredictionSummary:
    """Summarises the predictions of a run's newest checkpoint for the clients of `fedcli eval`.

    The confusion matrix counts only the examples of an evenly spaced selection of clients.

    Raises:
        Cancelled: The flag was set.
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
    """Returns evenly spaced clients with about `_MAX_EXAMPLES` examples together, or fewer."""
    sizes = np.array([data.num_examples(each) for each in client_ids])
    total = int(sizes.sum())
    step = max(1, -(-total // _MAX_EXAMPLES))
    clients = (data.client(each) for each in client_ids[::step])
    return [
        replace(each, pixels=each.pixels[:_MAX_EXAMPLES], labels=each.labels[:_MAX_EXAMPLES])
        for each in clients
        if len(each)
    ]
