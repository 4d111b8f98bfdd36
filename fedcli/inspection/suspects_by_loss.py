"""Finds suspicious examples by their loss under a trained model. `suspects` needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.client_data import ClientData
from fedcli.evaluation.predictions import Predicted, predict_client
from fedcli.federation.opened_data import check_fit
from fedcli.inspection.suspects import (
    DEFAULT_TOP,
    ExampleIndex,
    Suspect,
    Suspects,
    rank_clients,
    worst,
)
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.runs.trained import Trained, load_trained


def rank_with_run(
    data: ClientData,
    client_ids: Sequence[str],
    run: str | Path,
    on_progress: ProgressCallback = ignore_progress,
    *,
    top: int = DEFAULT_TOP,
    threads: int | None = None,
    model: str | None = None,
) -> Suspects:
    """Returns the examples with the highest loss under a trained model, and clients with many.

    The score is the cross-entropy of the label, in nats; an example is suspicious if the model
    predicts another label. A model may have learned the wrong labels that it was trained on, so
    more of them are found after few rounds, or on clients that took no part. Broken images are not
    searched for.

    Args:
        data: The split. Its pixels are converted to the convention (meaning of 1.0) used in
            training.
        client_ids: The clients to examine.
        run: A run's folder, or a checkpoint.
        on_progress: Called with the number of clients read.
        top: Largest number of listed examples and of listed clients.
        threads: Number of threads; None: as many as the machine has.
        model: FILE.py or FILE.py:FUNCTION, required for a run whose model is Python code. No other
            code is run.

    Raises:
        ConfigError: The number of threads is not allowed, or the model is Python code and `model`
            is None.
        DataError: The data do not fit the model, or a client cannot be read.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    with load_trained(Path(run), threads, model) as trained:
        return _examine(data, client_ids, trained, run, on_progress=on_progress, top=top)


def _examine(
    data: ClientData,
    client_ids: Sequence[str],
    trained: Trained,
    run: str | Path,
    *,
    on_progress: ProgressCallback,
    top: int,
) -> Suspects:
    check_fit(data, trained.model)
    sizes: list[int] = []
    labels = [np.empty(0, np.int32)]
    losses = [np.empty(0, np.float64)]
    is_wrong = [np.empty(0, np.bool_)]
    likelier = [np.empty(0, np.int32)]
    for done, client_id in enumerate(client_ids, 1):
        client = trained.as_trained(data, client_id)
        sizes.append(len(client))
        weights = trained.state.weights_for(client_id)
        for predicted in predict_client(client, trained.model, trained.engine, weights):
            labels.append(predicted.labels)
            losses.append(predicted.losses)
            is_wrong.append(predicted.classes != predicted.labels)
            likelier.append(_likelier_labels(predicted))
        on_progress(done, len(client_ids))
    index = ExampleIndex(client_ids, np.cumsum(sizes, dtype=np.int64), np.concatenate(labels))
    scores, suspicious = np.concatenate(losses), np.concatenate(is_wrong)
    others = np.concatenate(likelier)
    return Suspects(
        measure=f"loss after round {trained.state.round_num} of {run}, nats",
        criterion="the model predicts another label",
        num_examples=len(scores),
        num_suspicious=int(np.count_nonzero(suspicious)),
        examples=tuple(
            Suspect(*index.place(row), int(others[row]), float(scores[row]))
            for row in worst(scores, top)
        ),
        clients=rank_clients(index, suspicious, top),
    )


def _likelier_labels(predicted: Predicted) -> NDArray[np.int32]:
    """The most probable other label of each example; its own label if there is no other."""
    probabilities, labels = predicted.probabilities.copy(), predicted.labels
    if probabilities.shape[1] == 1:
        return labels
    probabilities[np.arange(len(labels)), labels] = -np.inf
    others: NDArray[np.int32] = probabilities.argmax(axis=1).astype(np.int32)
    return others
