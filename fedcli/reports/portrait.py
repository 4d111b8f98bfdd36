"""A trained model at work: who it serves how well, which classes it mixes up, what it says of some.

Opens the run's data; `report` alone does without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.evaluation import spread
from fedcli.evaluation.result import Evaluation
from fedcli.federation.opened_data import open_data
from fedcli.models.metrics import predicted_classes
from fedcli.runs import evaluating
from fedcli.runs.trained import Trained, load_trained

MAX_CLASSES = 100  # of more no confusion matrix is made
_MAX_EXAMPLES = 2000  # in the confusion matrix
_NUM_SAMPLES = 40
_PLAIN = BatchPlan()


@dataclass(frozen=True, eq=False)
class Portrait:
    """A model on one split.

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
    samples: list[Sample]
    pixel_convention: str


@dataclass(frozen=True, eq=False)
class Sample:
    """Some examples of one client with what the model says of them; -1: nothing at all."""

    client: ClientDataset
    predicted: NDArray[np.int32]


def portray(path: str | Path, cancel: CancelFlag | None = None) -> Portrait:
    """Returns the newest checkpoint of a run at work on the clients that `fedcli eval` takes.

    Predictions are made of a part of their examples: those of clients picked evenly.

    Raises:
        Cancelled: The flag was raised.
        ConfigError: The run's config is bad.
        DataError: Its data are missing or bad.
        RunError: There is no such run, or it is damaged.
    """
    evaluated = evaluating.evaluate_run(path, cancel=cancel)
    with load_trained(Path(path), threads=None) as trained:
        return _portray(trained, evaluated, cancel)


def _portray(trained: Trained, evaluated: Evaluation, cancel: CancelFlag | None) -> Portrait:
    data = open_data(trained.config.data_source, cancel)[evaluated.split]
    num_classes = trained.model.layout.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    samples: list[Sample] = []
    for client in _some_clients(data, list(evaluated.client_ids)):
        predicted = predict(trained, client)
        told = predicted >= 0
        np.add.at(confusion, (client.labels[told], predicted[told]), 1)
        room = _NUM_SAMPLES - sum(len(each.predicted) for each in samples)
        if room > 0:
            # Of one client a few: the hands of several are seen.
            num_taken = min(room, 8)
            first = replace(
                client, pixels=client.pixels[:num_taken], labels=client.labels[:num_taken]
            )
            samples.append(Sample(first, predicted[:num_taken]))
    return Portrait(
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


def predict(trained: Trained, client: ClientDataset) -> NDArray[np.int32]:
    """Returns the class that a model finds most probable for each example, -1 for none."""
    layout, weights = trained.model.layout, trained.state.weights_for(client.client_id)
    scores = trained.engine.predict(layout, weights, [BatchedDataset(client, _PLAIN)])
    return predicted_classes(scores.values)


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
