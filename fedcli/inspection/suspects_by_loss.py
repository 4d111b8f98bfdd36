"""Suspects by a trained model: examples of high loss. `suspects` judges by images alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.datasets.client_data import ClientData, decoding
from fedcli.federation.opened_data import check_fit
from fedcli.inspection.suspects import DEFAULT_TOP, Roll, Suspect, Suspects, rank_clients, worst
from fedcli.progress import Tell, tell_nobody
from fedcli.runs.trained import Trained, load_trained

_BLOCK = 2048  # examples scored in a call, so that Ctrl-C is seen in between
_ONE = BatchPlan(batch_size=1)


def rank_with_run(
    data: ClientData,
    client_ids: Sequence[str],
    run: str | Path,
    tell: Tell = tell_nobody,
    *,
    top: int = DEFAULT_TOP,
    threads: int | None = None,
    model: str | None = None,
) -> Suspects:
    """Returns the examples with the highest loss under a trained model, and clients with many.

    The score is the loss, in nats; an example is suspicious if the model predicts another label.
    A model that was trained on a wrong label may have learned it: few rounds, or clients that
    took no part, show more. Broken images are not sought.

    Args:
        data: The split. Its pixels are shown to the model as those it was trained on.
        client_ids: Whose examples are looked at.
        run: A run's folder, or a checkpoint.
        tell: Told the clients read.
        top: At most so many examples and clients are listed.
        threads: Number of threads; None: what the machine gives.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here.

    Raises:
        ConfigError: The number of threads is not allowed, or the model is code and `model` does
            not name it.
        DataError: The data do not fit the model, or a client cannot be read.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    with load_trained(Path(run), threads, model) as trained:
        return _examine(data, client_ids, trained, run, tell=tell, top=top)


def _examine(
    data: ClientData,
    client_ids: Sequence[str],
    trained: Trained,
    run: str | Path,
    *,
    tell: Tell,
    top: int,
) -> Suspects:
    check_fit(data, trained.model)
    sizes, labels, losses, is_wrong = [], [np.empty(0, np.int32)], [], []
    for done, client_id in enumerate(client_ids, 1):
        client = _as_trained(data, client_id, trained)
        sizes.append(len(client))
        labels.append(client.labels)
        for first in range(0, len(client), _BLOCK):
            block = range(first, min(first + _BLOCK, len(client)))
            stats = _score(trained, client_id, _examples(client, block))
            losses.append(_losses(stats))
            is_wrong.append(stats["num_correct"] == 0)
        tell(done, len(client_ids))
    roll = Roll(client_ids, np.cumsum(sizes, dtype=np.int64), np.concatenate(labels))
    scores = np.concatenate([np.empty(0), *losses])
    suspicious = np.concatenate([np.empty(0, np.bool_), *is_wrong])
    examples = []
    for row in worst(scores, top):
        client_id, index, label = roll.place(row)
        likelier = _likelier_label(trained, _as_trained(data, client_id, trained), index)
        examples.append(Suspect(client_id, index, label, likelier, float(scores[row])))
        tell(len(client_ids), len(client_ids))
    return Suspects(
        measure=f"loss after round {trained.state.round_num} of {run}, nats",
        criterion="the model predicts another label",
        num_examples=len(scores),
        num_suspicious=int(np.count_nonzero(suspicious)),
        examples=tuple(examples),
        clients=rank_clients(roll, suspicious, top),
    )


def _as_trained(data: ClientData, client_id: str, trained: Trained) -> ClientDataset:
    """A client whose 1.0 is what it was in training."""
    client = data.client(client_id)
    scale, offset, _ = decoding(
        client.scale, client.offset, data.pixel_convention, trained.pixel_convention
    )
    return replace(client, scale=scale, offset=offset)


def _examples(client: ClientDataset, indices: Sequence[int]) -> Iterator[BatchedDataset]:
    """Each of some examples as a client of its own."""
    for index in indices:
        chosen = slice(index, index + 1)
        one = replace(client, pixels=client.pixels[chosen], labels=client.labels[chosen])
        yield BatchedDataset(one, _ONE)


def _score(trained: Trained, client_id: str, examples: Iterator[BatchedDataset]) -> NDArray[Any]:
    layout, weights = trained.model.layout, trained.state.weights_for(client_id)
    return trained.engine.evaluate(layout, weights, examples)


def _losses(stats: NDArray[Any]) -> NDArray[np.float64]:
    """The losses; infinite where the model is broken and they are no numbers."""
    losses: NDArray[np.float64] = stats["loss_sum"]
    return np.where(np.isnan(losses), np.inf, losses)


def _likelier_label(trained: Trained, client: ClientDataset, index: int) -> int:
    """The label of least loss but the example's own; the own if there is no other."""
    own = int(client.labels[index])
    others = [label for label in range(trained.model.layout.num_classes) if label != own]
    if not others:
        return own
    one = slice(index, index + 1)
    relabelled = (
        replace(client, pixels=client.pixels[one], labels=np.array([label], np.int32))
        for label in others
    )
    batches = (BatchedDataset(each, _ONE) for each in relabelled)
    stats = _score(trained, client.client_id, batches)
    return others[int(_losses(stats).argmin())]
