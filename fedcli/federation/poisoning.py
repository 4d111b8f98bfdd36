"""Poisoned examples: what attackers train on, and the examples on which their success is measured.

A poisoning changes the examples of a client when they are read; nothing is written. Which examples
of an attacker it changes is drawn once, by the seed and the client's id, so that an attacker has
the same examples in all rounds of the attack. The number of its examples stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset, Pixels, decode
from fedcli.datasets.client_data import ClientData, unknown_client
from fedcli.datasets.description import SourceDescription
from fedcli.datasets.opening import open_splits
from fedcli.errors import ConfigError, DataError
from fedcli.lazy import load
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import Value
from fedcli.settings.shares import rounded_down
from fedcli.settings.tables.attacks import ANY_CLASS, AttackEntry

EDGE_CASES = "edge cases"  # the client that has the images of another dataset
_MAX_RARE = 1_000  # images of another dataset that are read


class Poisoning(Protocol):
    """Changes the examples of attackers, and defines when an attack has succeeded."""

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns what an attacker trains on, with the same number of examples."""
        ...

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """Returns the examples that the attack aims at, as the model then sees them.

        Args:
            data: A split.
            client_ids: The clients of it that are evaluated.

        Returns:
            Clients with these examples and their true labels, and the ids of the clients.
        """
        ...

    def aims(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the classes that the attackers want predicted for examples of `probe`."""
        ...


def build(
    entry: AttackEntry,
    options: Mapping[str, Value],
    data: ClientData,
    attackers: Collection[str],
    seed: int,
) -> Poisoning | None:
    """Returns the poisoning of an attack; None if the attackers' examples stay as they are.

    Args:
        entry: The row of the attack.
        options: Its options, complete.
        data: The split train.
        attackers: The attackers' ids.
        seed: The run's seed.

    Raises:
        ConfigError: An option does not fit the data.
        DataError: The attackers' data are bad.
    """
    if not entry.poisons:
        return None
    for name in ("source", "target"):
        if isinstance(label := options.get(name), int) and label >= data.num_classes:
            raise ConfigError(
                f"--attack-option {name}={label}: {data.source} has {data.num_classes} classes; "
                f"choose 0 to {data.num_classes - 1}"
            )
    made: Poisoning = load(entry.poisons).of(options, data, sorted(attackers), seed)
    return made


class _AimsAtClients:
    """The base of poisonings that aim at examples of the evaluated clients."""

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """See `Poisoning.probes`."""
        return ChangedClients(data, self.probe), client_ids

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of a client that the attack aims at, as the model sees them."""
        raise NotImplementedError


@dataclass(frozen=True)
class LabelFlip(_AimsAtClients):
    """Wrong labels: class y becomes K - 1 - y, or class `source` becomes `target`.

    Attributes:
        new_labels: The label that replaces each label, int32 [num_classes].
    """

    new_labels: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        data: ClientData,
        attackers: Sequence[str],
        seed: int,
    ) -> LabelFlip:
        """Returns the poisoning with these options; see `build`."""
        labels = np.arange(data.num_classes, dtype=np.int32)
        if options["source"] == ANY_CLASS:
            return cls(labels[::-1].copy())
        labels[options["source"]] = options["target"]
        return cls(labels)

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples with new labels."""
        return replace(client, labels=_read_only(self.new_labels[client.labels]))

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of the classes that are relabelled."""
        return _chosen(client, self.new_labels[client.labels] != client.labels)

    def aims(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the new labels."""
        return self.new_labels[labels]


@dataclass(frozen=True)
class Backdoor(_AimsAtClients):
    """A trigger of full ink, stamped on a share of the examples, which are labelled as the target.

    The trigger is a square in the lower right corner, one pixel from the edges (Gu, Dolan-Gavitt
    and Garg, "BadNets", 2017, https://arxiv.org/abs/1708.06733).

    Attributes:
        target: The class that the trigger is to give.
        poison_share: Share of an attacker's examples that are stamped.
        size: Side of the square in pixels.
        ink: The value of ink as the model sees it: 1 or 0.
        seed: The run's seed.
    """

    target: int
    poison_share: float
    size: int
    ink: float
    seed: int

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        data: ClientData,
        attackers: Sequence[str],
        seed: int,
    ) -> Backdoor:
        """Returns the poisoning with these options; see `build`."""
        size, (height, width) = options["trigger_size"], data.pixel_shape[:2]
        if size + 1 > min(height, width):
            raise ConfigError(
                f"--attack-option trigger_size={size}: images of {data.source} are {height} x "
                f"{width} pixels, and the trigger is one pixel from the edge; choose 1 to "
                f"{min(height, width) - 1}"
            )
        ink = 1.0 if data.pixel_convention == "ink" else 0.0
        return cls(options["target"], options["poison"], size, ink, seed)

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples, a share of them stamped and relabelled."""
        poisoned = _poisoned_places(client, self.poison_share, self.seed)
        labels, pixels = client.labels.copy(), client.pixels.copy()
        labels[poisoned] = self.target
        stamped = pixels[poisoned]
        self._stamp(stamped, client)
        pixels[poisoned] = stamped
        return replace(client, labels=_read_only(labels), pixels=_read_only(pixels))

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of other classes than the target, stamped."""
        chosen = _chosen(client, client.labels != self.target)
        pixels = chosen.pixels.copy()
        self._stamp(pixels, client)
        return replace(chosen, pixels=_read_only(pixels))

    def aims(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target for each."""
        return np.full_like(labels, self.target)

    def _stamp(self, pixels: Pixels, client: ClientDataset) -> None:
        """Writes the trigger into images [n, H, W] or [n, H, W, C], in their stored values."""
        value = (self.ink - client.offset) / client.scale
        if pixels.dtype == np.uint8:
            value = min(max(round(value), 0), 255)
        pixels[:, -1 - self.size : -1, -1 - self.size : -1] = value


@dataclass(frozen=True)
class EdgeCase(_AimsAtClients):
    """Rare images of a class, labelled as another, in place of a share of an attacker's examples.

    Rare are the images of the class `source` that are farthest from its mean image, by Euclidean
    distance of pixels; the attackers collect them from the examples of all of them. (Wang et al.,
    "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020,
    https://arxiv.org/abs/2007.05084, take them from another dataset: see `OtherDataEdgeCase`.)

    Attributes:
        source: The true class of the rare images.
        target: The class that they are to get.
        poison_share: Share of an attacker's examples that are replaced.
        rare: The attackers' rare images in stored values, [n, H, W] or [n, H, W, C].
        seed: The run's seed.
        center: The mean image of the class, as the model sees it, float32 [H, W] or [H, W, C].
        least_distance: Images farther than this from it are rare.
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

        With the option `data`, it reads examples of that dataset instead.
        """
        source = options["source"]
        if options["data"]:
            return OtherDataEdgeCase.of(options, data, attackers, seed)
        clients = [data.client(each) for each in attackers]
        pixels = np.concatenate([each.pixels[each.labels == source] for each in clients])
        if not len(pixels):
            raise ConfigError(
                f"--attack-option source={source}: none of the {len(attackers)} attackers has an "
                "example of that class; choose another class, or more --attackers"
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
        places = _poisoned_places(client, self.poison_share, self.seed)
        return _replaced(client, places, self.rare, self.target)

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of the class that are as far from the attackers' mean image."""
        of_class = _chosen(client, client.labels == self.source)
        return _chosen(of_class, _distances(of_class.images(), self.center) >= self.least_distance)

    def aims(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target for each."""
        return np.full_like(labels, self.target)


@dataclass(frozen=True)
class OtherDataEdgeCase:
    """`EdgeCase` with the images of a class of another dataset, such as digits of other writers.

    The attackers have images of its split train; success is measured on its split test, else
    central, else on every second of these images, which the attackers then lack.

    Attributes:
        source: The class of the images there, which is their true class, too.
        target: The class that they are to get.
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
            ConfigError: Its images have another shape, or too few are of the class.
            DataError: It cannot be read, or has no split train.
        """
        try:
            splits = open_splits(DataSource(options["data"], pixels=data.pixel_convention))
        except DataError as err:
            raise DataError(f"--attack-option data: {err}") from err
        source, likeness = options["source"], data.client(attackers[0])
        train = splits.get("train")
        if train is None:
            raise DataError(f"--attack-option data: {options['data']} has no split train")
        _check_shape(train, data.pixel_shape)
        rare = _images_of(train, source, likeness)
        held = next((splits[name] for name in ("test", "central") if name in splits), None)
        held_out = rare[1::2] if held is None else _images_of(held, source, likeness)
        rare = rare[::2] if held is None else rare
        if not (len(rare) and len(held_out)):
            raise ConfigError(
                f"--attack-option source={source}: {train.source} has too few examples of that "
                "class, which the attackers train on and on which their success is measured; "
                "choose another class"
            )
        return cls(source, options["target"], options["poison"], rare, seed, held_out)

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples, a share of them replaced by images labelled as the target."""
        places = _poisoned_places(client, self.poison_share, self.seed)
        return _replaced(client, places, self.rare, self.target)

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """See `Poisoning.probes`: one client, whoever is evaluated."""
        likeness = data.client(data.client_ids[0])
        labels = np.full(len(self.held_out), self.source, np.int32)
        pixels, labels = _read_only(self.held_out), _read_only(labels)
        alone = replace(likeness, client_id=EDGE_CASES, labels=labels, pixels=pixels)
        return _OneClient(data, alone), (EDGE_CASES,)

    def aims(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target for each."""
        return np.full_like(labels, self.target)


class ChangedClients(ClientData):
    """The clients of a split, some of them with changed examples."""

    def __init__(
        self,
        data: ClientData,
        change: Callable[[ClientDataset], ClientDataset],
        changed: Collection[str] | None = None,
    ) -> None:
        """Wraps a split.

        Args:
            data: The split.
            change: Returns a client with changed examples.
            changed: The ids of the clients that it changes; None: all.
        """
        for name in ClientData.__annotations__:
            setattr(self, name, getattr(data, name))
        self._data = data
        self._change = change
        self._changed = changed

    def description(self) -> SourceDescription | None:
        """See `ClientData`."""
        return self._data.description()

    def examine(self) -> tuple[str, ...]:
        """See `ClientData`."""
        return self._data.examine()

    def num_examples(self, client_id: str) -> int:
        """See `ClientData`; reads a client whose examples change."""
        if self._changed is None or client_id in self._changed:
            return len(self.client(client_id))
        return self._data.num_examples(client_id)

    def client(self, client_id: str) -> ClientDataset:
        """See `ClientData`."""
        client = self._data.client(client_id)
        is_changed = self._changed is None or client_id in self._changed
        return self._change(client) if is_changed else client


class _OneClient(ClientData):
    """A single client in the place of those of a split."""

    def __init__(self, data: ClientData, client: ClientDataset) -> None:
        """Takes everything but the clients from a split."""
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
            f"--attack-option data: images of {other.source} are {sizes[0]}, those of the run's "
            f"data {sizes[1]} (height, width, channels); give data of the same shape"
        )


def _images_of(data: ClientData, label: int, likeness: ClientDataset) -> Pixels:
    """The images of a class, client by client until there are `_MAX_RARE`, in stored values.

    Args:
        data: Their split.
        label: Their class.
        likeness: A client of the run's data, whose stored values they get.
    """
    found, num_left = [np.empty((0, *likeness.pixels.shape[1:]), np.float32)], _MAX_RARE
    for client_id in data.client_ids:
        client = data.client(client_id)
        images = client.images()[client.labels == label][:num_left]
        found.append(images.reshape(-1, *likeness.pixels.shape[1:]))
        num_left -= len(images)
        if not num_left:
            break
    values = (np.concatenate(found).astype(np.float64) - likeness.offset) / likeness.scale
    if likeness.pixels.dtype == np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return values.astype(np.float32)


def _replaced(
    client: ClientDataset, places: NDArray[np.int64], images: Pixels, label: int
) -> ClientDataset:
    """The client with images at some places, used in turn and with the same label."""
    labels, pixels = client.labels.copy(), client.pixels.copy()
    labels[places] = label
    pixels[places] = images[np.arange(len(places)) % len(images)]
    return replace(client, labels=_read_only(labels), pixels=_read_only(pixels))


def _poisoned_places(client: ClientDataset, share: float, seed: int) -> NDArray[np.int64]:
    """The places of a share of a client's examples, drawn once for the whole run, sorted."""
    key = stream_key(seed, Purpose.POISONED_EXAMPLES, client=client_key(client.client_id))
    count = round(share * len(client))
    return np.sort(Stream(key).permutation(len(client))[:count])


def _chosen(client: ClientDataset, is_chosen: NDArray[np.bool_]) -> ClientDataset:
    labels, pixels = client.labels[is_chosen], client.pixels[is_chosen]
    return replace(client, labels=_read_only(labels), pixels=_read_only(pixels))


def _distances(images: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Euclidean distances of images to another, float64 [n]."""
    differences = (images.astype(np.float64) - center).reshape(len(images), center.size)
    distances: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    return distances


def _read_only(array: Any) -> Any:
    """The array, made read-only as data sources hand arrays out."""
    array.flags.writeable = False
    return array
