"""Gradient inversion: the pixels of a client's example, read from its model update.

The gradient of a dense layer's kernel is the outer product of the layer's input x and the gradient
of the layer's output. The gradient of the output is also the gradient of the bias. A client with a
single example has the same input in every local step. The update of column j of the kernel is then
x times the update of bias j, so their quotient is x after any number of steps. With several
examples, each quotient is a mixture of them, weighted by their gradients. But if there are many
hidden units, some react to only one example, and their quotient is that example.

(Phong, Aono, Hayashi, Wang and Moriai, "Privacy-Preserving Deep Learning via Additively Homomorphic
Encryption", IEEE TIFS 2018; Geiping, Bauermeister, Dröge and Moeller, "Inverting Gradients",
NeurIPS 2020, https://arxiv.org/abs/2003.14053. The label: Zhao, Mopuri and Bilen, "iDLG", 2020,
https://arxiv.org/abs/2001.02610.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli import learning
from fedcli.audits.audited_run import AuditedRun
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import plan_of
from fedcli.datasets.batches import BatchedDataset, decode
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, plural
from fedcli.learning.engines.deltas import ALL_ROWS, DeltaRequest, Deltas
from fedcli.models.layout import ParamLayout
from fedcli.progress import ProgressCallback
from fedcli.runs.building import build_algorithm

_MAX_PRODUCTS = 1 << 23  # products of two classes' changes that are held at a time: 64 MiB


@dataclass(frozen=True, eq=False)
class Inversion:
    """The images that were read from the update of a client.

    Attributes:
        data: The split of the client.
        client_id: The client.
        indices: The indices of the client's examples that it trained on.
        labels: Their labels, int32 [n].
        label_read: The label that `read_label` returns; None if it cannot be read.
        originals: The examples as the model sees them, float32 [n, H, W] or [n, H, W, C].
        images: The images that were read, in the same shape. For several examples, each is the
            mixture nearest to the example. Not clipped.
        psnr: The peak signal-to-noise ratio of each image, in dB for pixels from 0 to 1: float64
            [n]; infinite if the image equals the original.
        num_steps: Number of local steps.
        round_num: Number of completed rounds after which the client computed its update.
        has_secure_sum: Whether the server of the run sees only sums of updates.
        compress: How the run's clients compress their updates; None if they do not. The images were
            read from the update before compression.
    """

    data: ClientData
    client_id: str
    indices: range
    labels: NDArray[np.int32]
    label_read: int | None
    originals: NDArray[np.float32]
    images: NDArray[np.float64]
    psnr: NDArray[np.float64]
    num_steps: int
    round_num: int
    has_secure_sum: bool
    compress: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        notes = []
        if self.has_secure_sum:
            notes.append(
                "the run has --secure-sum, so its server sees no individual update; without "
                "--secure-sum it could read these images"
            )
        if self.compress is not None:
            notes.append(
                f"the run has --compress {self.compress}, so its server sees a lossy update; "
                "without --compress it could read these images"
            )
        if len(self.indices) > 1:
            notes.append(
                f"each unit of the first layer gives one mixture of the {len(self.indices)} "
                "examples; for each example the nearest mixture is shown, but an attacker, who "
                "does not know the examples, could not tell which mixture that is"
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values; `psnr` is null if it is infinite."""
        return {
            "client_id": self.client_id,
            "round": self.round_num,
            "num_steps": self.num_steps,
            "label_read": self.label_read,
            "examples": [
                {
                    "index": index,
                    "label": int(label),
                    "psnr": float(psnr) if math.isfinite(psnr) else None,
                }
                for index, label, psnr in zip(self.indices, self.labels, self.psnr, strict=True)
            ],
        }


def audit(
    run: AuditedRun, on_progress: ProgressCallback, *, client: str, first: int, examples: int
) -> Inversion:
    """Trains one client for a round and reads its examples from the update.

    The client starts from the global weights and trains as in the run, but only on the given
    examples.

    Args:
        run: The run.
        on_progress: Not called, because training one client is short.
        client: The client; empty: the first that may take part.
        first: Index of the first example.
        examples: Number of examples.

    Raises:
        ConfigError: The client or its examples do not exist, clients send no updates, or the
            model's first layer is not dense with a bias.
    """
    run.check_is_shared()
    layout = run.trained.model.layout
    _check_reads_pixels(layout, run)
    client_id = run.candidate(client, "client")
    dataset = run.train.client(client_id)
    if first + examples > len(dataset):
        raise ConfigError(
            f"--option first={first} examples={examples}: client {client_id} has "
            f"{plural(len(dataset), 'example')}; choose fewer"
        )
    rows = slice(first, first + examples)
    few = replace(dataset, pixels=dataset.pixels[rows], labels=dataset.labels[rows])
    config = run.trained.config
    update, num_steps = _update_of(run, BatchedDataset(few, plan_of(config), config.seed))
    tensors = layout.split(update)[: len(layout.trained_shapes)]
    originals = decode(few.pixels, few.scale, few.offset)
    images, psnr = read_images(tensors[0], tensors[1], originals)
    return Inversion(
        data=run.train,
        client_id=client_id,
        indices=range(first, first + examples),
        labels=few.labels,
        label_read=read_label(layout.tensors[len(tensors) - 1].name, tensors[-1]),
        originals=originals,
        images=images,
        psnr=psnr,
        num_steps=num_steps,
        round_num=run.trained.state.round_num,
        has_secure_sum=config.secure_sum,
        compress=config.compress,
    )


def read_images(
    kernel_change: NDArray[np.floating],
    bias_change: NDArray[np.floating],
    originals: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns an image for each original, float64 of the same shape, and its PSNR, float64 [n].

    For one example, the image is the one that an attacker reads: the quotient of the unit whose
    bias changed most. For several examples, it is the quotient that is nearest to the original.

    Args:
        kernel_change: The update of the kernel, [num_inputs, num_outputs].
        bias_change: The update of the bias, [num_outputs].
        originals: The examples, [n, ...] with num_inputs pixels each.

    Raises:
        ConfigError: The bias did not change.
    """
    moved = np.flatnonzero(bias_change)
    if not len(moved):
        raise ConfigError(
            "the update changes no bias of the first layer, so the pixels cannot be computed; "
            "audit an earlier checkpoint, or another example"
        )
    if len(originals) == 1:
        moved = moved[[np.argmax(np.abs(bias_change[moved]))]]
    quotients = kernel_change.T[moved].astype(np.float64) / bias_change[moved, np.newaxis]
    flat = originals.reshape(len(originals), -1).astype(np.float64)
    images = np.empty_like(flat)
    errors = np.empty(len(flat))
    for place, original in enumerate(flat):
        of_each = np.mean(np.square(quotients - original), axis=1)
        nearest = int(np.argmin(of_each))
        images[place], errors[place] = quotients[nearest], of_each[nearest]
    with np.errstate(divide="ignore"):
        return images.reshape(originals.shape), -10.0 * np.log10(errors)


def read_label(name: str, change: NDArray[np.floating]) -> int | None:
    """Returns the label of an example from the update of the last layer; None if it is not shown.

    A step on one example raises the logit of its label and lowers all others. So only the label's
    bias rises. Without a bias, the change of the label's weights has the opposite direction to the
    changes of all other classes' weights, whatever signs the inputs of the layer have. At least
    three classes must change, because with two each is opposite to the other. For several examples,
    this is the label whose bias rises most, or the one class that is opposite to most others.

    Args:
        name: The name of the last trained tensor, LAYER/TENSOR.
        change: Its update, [..., num_classes].
    """
    if name.endswith(("/bias", "/beta")):
        return int(np.argmax(change))
    if not name.endswith("kernel"):
        return None
    columns = change.reshape(-1, change.shape[-1]).astype(np.float64)
    num_moved = np.count_nonzero(columns.any(axis=0))
    found = np.flatnonzero(2 * _num_opposite(columns) > num_moved - 1)
    return int(found[0]) if len(found) == 1 else None


def _num_opposite(columns: NDArray[np.float64]) -> NDArray[np.intp]:
    """Returns for each column the number of columns with which its product is negative."""
    num_columns = columns.shape[1]
    block = max(1, _MAX_PRODUCTS // num_columns)
    return np.concatenate(
        [
            np.count_nonzero(columns[:, first : first + block].T @ columns < 0.0, axis=1)
            for first in range(0, num_columns, block)
        ]
    )


def _check_reads_pixels(layout: ParamLayout, run: AuditedRun) -> None:
    """Refuses a model whose first layer is not a dense layer with a bias."""
    first = layout.layers[0] if layout.layers else None
    if first is not None and first.kind == "dense" and first.has_bias:
        return
    what = "code" if first is None else f"of kind {first.kind}"
    raise ConfigError(
        f"{run.path}: the first layer of {run.trained.config.model} is {what}; gradient-inversion "
        "reads pixels from a dense layer with a bias, as in --model softmax-regression or mlp-2nn"
    )


def _update_of(run: AuditedRun, client: BatchedDataset) -> tuple[NDArray[np.float32], int]:
    """The update that a client sends, float32 [num_params], and its number of local steps."""
    trained = run.trained
    recorder = _UpdateRecorder()
    process = learning.build_process(
        replace(build_algorithm(run.client_config), aggregator=recorder, ema_decay=None),
        trained.model,
        engine=trained.engine,
        num_clients=len(run.candidates),
    )
    state = replace(
        process.initialize(),
        global_model_weights=trained.state.global_model_weights,
        # A schedule may end at rate 0 after the last round.
        round_num=min(trained.state.round_num, trained.config.rounds - 1),
    )
    process.next(state, (client,), cancel=run.cancel)
    return recorder.updates[0], recorder.num_steps


class _UpdateRecorder:
    """An aggregator that stores the individual updates, as an attacking server would."""

    averages_coordinates: ClassVar[bool] = True

    def init(self) -> dict[str, Any]:
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        return ALL_ROWS

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        assert deltas.rows is not None
        self.updates = np.array(deltas.rows)
        self.num_steps = int(deltas.stats["num_batches"][0])
        return deltas.weighted_mean(), {}, {}
