"""The edge-case attack: rare images, of the attackers or of another dataset, get a wrong label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset, Pixels, decode
from fedcli.datasets.client_data import ClientData, unknown_client
from fedcli.datasets.opening import open_splits
from fedcli.errors import ConfigError, DataError, plural
from fedcli.federation.poisoning import (
    MeasuredOnClients,
    chosen_examples,
    poisoned_places,
    read_only,
    replaced,
)
from fedcli.settings.data_source import DataSource
from fedcli.settings.shares import rounded_down

EDGE_CASES = "edge cases"  # id of the client that has the images of another dataset
_MAX_RARE = 1_000  # largest number of images that are read from another dataset


@dataclass(frozen=True)
class EdgeCase(MeasuredOnClients):
    """Replaces a share of an attacker's examples by rare images of one class, labelled as another.

    The rare images are those of the class `source` that have the largest Euclidean distance from
    its mean image, among the examples of all attackers. (Wang et al., "Attack of the Tails: Yes,
    You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084,
    take them from another dataset: see `OtherDataEdgeCase`.)

    Attributes:
        source: The true class of the rare images.
        target: The class that attackers want predicted for them.
        poison_share: Share of an attacker's examples that are replaced.
        rare: The attackers' rare images in stored values, [n, H, W] or [n, H, W, C].
        seed: The run's seed.
        center: The mean image of the class, as the model sees it, float32 [H, W] or [H, W, C].
        least_distance: Images of the class are rare if they are at least this far from `center`.
    """

    source: int
    target: int
    poison_share: float
    rare: Pixels
    seed: int
    center: NDArray[np.float32]
    least_distance: float

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        data: ClientData,
        attackers: Sequence[str],
        seed: int,
    ) -> EdgeCase | OtherDataEdgeCase:
        """Returns the poisoning with these options; reads the examples of all attackers.

        If the option `data` names another dataset, it reads examples of this dataset instead.

        Raises:
            ConfigError: No attacker has an example of the class, or that dataset does not fit.
            DataError: An attacker's data are invalid, or that dataset cannot be read.
        """
        source = options["source"]
        if options["data"]:
            return OtherDataEdgeCase.of(options, data, attackers, seed)
        clients = [data.client(each) for each in attackers]
        pixels = np.concatenate([each.pixels[each.labels == source] for each in clients])
        if not len(pixels):
            raise ConfigError(
                f"--attack-option source={source}: none of the "
                f"{plural(len(attackers), 'attacker')} has an example of that class; choose "
                "another class, or more --attackers"
            )
        images = decode(pixels, clients[0].scale, clients[0].offset)
        center = images.mean(axis=0, dtype=np.float64).astype(np.float32)
        distances = _distances(images, center)
        num_rare = max(1, rounded_down(options["rare"], len(pixels)))
        farthest = np.sort(np.argsort(-distances, kind="stable")[:num_rare])
        least = float(distances[farthest].min())
        return cls(
            source,
            options["target"],
            options["poison"],
            pixels[farthest],
            seed,
            center,
            least,
        )

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples, a share of them replaced by rare images labelled as the target."""
        places = poisoned_places(client, self.poison_share, self.seed)
        return replaced(client, places, self.rare, self.target)

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the client's examples of the class at `least_distance` or more from `center`."""
        of_class = chosen_examples(client, client.labels == self.source)
        distances = _distances(of_class.images(), self.center)
        return chosen_examples(of_class, distances >= self.least_distance)

    def target_classes(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target class for each example."""
        return np.full_like(labels, self.target)


@dataclass(frozen=True)
class OtherDataEdgeCase:
    """`EdgeCase` with the images of a class of another dataset, such as digits of other writers.

    The attackers get images of that dataset's train split. Success is measured on its test split,
    else on its split central, else on every second image of the train split, which the attackers
    then do not get.

    Attributes:
        source: The class of the images in that dataset, which counts as their true class.
        target: The class that attackers want predicted for them.
        poison_share: Share of an attacker's examples that are replaced.
        rare: The attackers' images in stored values of the run's data, [n, H, W] or [n, H, W, C].
        seed: The run's seed.
        held_out: The images on which success is measured, in the same form.
    """

    source: int
    target: int
    poison_share: float
    rare: Pixels
    seed: int
    held_out: Pixels

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        data: ClientData,
        attackers: Sequence[str],
        seed: int,
    ) -> OtherDataEdgeCase:
        """Returns the poisoning with these options; reads the other dataset.

        Raises:
            ConfigError: That dataset has images of another shape, or too few of the class.
            DataError: That dataset cannot be read, or has no split train.
        """
        try:
            splits = open_splits(DataSource(options["data"], pixels=data.pixel_convention))
        except DataError as err:
            raise DataError(f"--attack-option data: {err}") from err
        source, template = options["source"], data.client(attackers[0])
        train = splits.get("train")
        if train is None:
            raise DataError(
                f"--attack-option data: {options['data']} has no split train; choose another "
                "dataset"
            )
        _check_shape(train, data.pixel_shape)
        rare = _images_of(train, source, template)
        held = next((splits[name] for name in ("test", "central") if name in splits), None)
        held_out = rare[1::2] if held is None else _images_of(held, source, template)
        rare = rare[::2] if held is None else rare
        if not (len(rare) and len(held_out)):
            raise ConfigError(
                f"--attack-option source={source}: {train.source} has too few examples of that "
                "class to train the attackers and to measure their success; choose another class"
            )
        return cls(source, options["target"], options["poison"], rare, seed, held_out)

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples, a share of them replaced by images labelled as the target."""
        places = poisoned_places(client, self.poison_share, self.seed)
        return replaced(client, places, self.rare, self.target)

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """See `Poisoning.probes`; returns one client, the same whichever clients are evaluated."""
        template = data.client(data.client_ids[0])
        labels = np.full(len(self.held_out), self.source, np.int32)
        pixels, labels = read_only(self.held_out), read_only(labels)
        alone = replace(template, client_id=EDGE_CASES, labels=labels, pixels=pixels)
        return _OneClient(data, alone), (EDGE_CASES,)

    def target_classes(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target class for each example."""
        return np.full_like(labels, self.target)


class _OneClient(ClientData):
    """A split that consists of a single client."""

    def __init__(self, data: ClientData, client: ClientDataset) -> None:
        """Copies everything but the clients from another split."""
        for name in ClientData.__annotations__:
            setattr(self, name, getattr(data, name))
        self.client_ids = (client.client_id,)
        self._client = client

    def num_examples(self, client_id: str) -> int:
        """See `ClientData`."""
        return len(self.client(client_id))

    def client(self, client_id: str) -> ClientDataset:
        """See `ClientData`."""
        if client_id != self._client.client_id:
            raise unknown_client(self, client_id)
        return self._client


def _check_shape(other: ClientData, shape: tuple[int, ...]) -> None:
    """Refuses images of another shape than those of the run's data."""
    mine, theirs = (each[:2] + (each[2:] or (1,)) for each in (shape, other.pixel_shape))
    if mine != theirs:
        sizes = [" x ".join(map(str, each)) for each in (theirs, mine)]
        raise ConfigError(
            f"--attack-option data: images of {other.source} have shape {sizes[0]}, but images of "
            f"the run's data have {sizes[1]} (height, width, channels); give data of the same shape"
        )


def _images_of(data: ClientData, label: int, template: ClientDataset) -> Pixels:
    """The first images of a class, at most `_MAX_RARE`, in the stored values of the run's data.

    Args:
        data: Their split.
        label: Their class.
        template: A client of the run's data, which shows how stored values are decoded.
    """
    found, num_left = [np.empty((0, *template.pixels.shape[1:]), np.float32)], _MAX_RARE
    for client_id in data.client_ids:
        client = data.client(client_id)
        images = client.images()[client.labels == label][:num_left]
        found.append(images.reshape(-1, *template.pixels.shape[1:]))
        num_left -= len(images)
        if not num_left:
            break
    values = (np.concatenate(found).astype(np.float64) - template.offset) / template.scale
    if template.pixels.dtype == np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return values.astype(np.float32)


def _distances(images: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Euclidean distance of each image from `center`, float64 [n]."""
    differences = (images.astype(np.float64) - center).reshape(len(images), center.size)
    distances: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    return distances
