"""Poisoned examples, on which attackers train, and examples that measure an attack's success.

A poisoning changes the examples of a client when they are read; no file changes. The examples to
change are drawn from the seed and the client's id, so that an attacker has the same examples in all
rounds of the attack. The number of examples does not change. `edge_cases` has the attack with rare
images.
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
from fedcli.datasets.batches import ClientDataset, Pixels
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.description import SourceDescription
from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.settings.options import Value
from fedcli.settings.tables.attacks import ANY_CLASS, AttackEntry


class Poisoning(Protocol):
    """Changes the examples of attackers, and defines when an attack has succeeded."""

    def poison(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples on which an attacker trains; their number stays the same."""
        ...

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """Returns the examples that measure the attack's success, for example with a trigger.

        Args:
            data: A split.
            client_ids: The evaluated clients of the split.

        Returns:
            Clients with these examples and their true labels, and the ids of the clients.
        """
        ...

    def target_classes(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the classes, int32 [n], that the attackers want to be predicted.

        `labels` are the true labels of examples that `probes` returned.
        """
        ...


def build(
    entry: AttackEntry,
    options: Mapping[str, Value],
    data: ClientData,
    attackers: Collection[str],
    seed: int,
) -> Poisoning | None:
    """Returns the poisoning of an attack, or None if the attack changes no examples.

    Args:
        entry: The row of the attack.
        options: Its options, with defaults filled in.
        data: The split train.
        attackers: The attackers' ids.
        seed: The run's seed.

    Raises:
        ConfigError: An option does not fit the data.
        DataError: The attackers' data are invalid, or another dataset cannot be read.
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


class MeasuredOnClients:
    """The base class of poisonings whose success is measured on the evaluated clients."""

    def probes(
        self, data: ClientData, client_ids: Sequence[str]
    ) -> tuple[ClientData, Sequence[str]]:
        """See `Poisoning.probes`."""
        return ChangedClients(data, self.probe), client_ids

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns a client with only the examples that measure the attack's success."""
        raise NotImplementedError


@dataclass(frozen=True)
class LabelFlip(MeasuredOnClients):
    """Wrong labels: each label y of K classes becomes K - 1 - y, or `source` becomes `target`.

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
        return replace(client, labels=read_only(self.new_labels[client.labels]))

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of the classes that are relabelled."""
        return chosen_examples(client, self.new_labels[client.labels] != client.labels)

    def target_classes(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the new labels."""
        return self.new_labels[labels]


@dataclass(frozen=True)
class Backdoor(MeasuredOnClients):
    """Stamps a trigger on a share of the examples, and labels them as the target.

    The trigger is a square of full ink in the lower right corner, one pixel from the edges (Gu,
    Dolan-Gavitt and Garg, "BadNets", 2017, https://arxiv.org/abs/1708.06733).

    Attributes:
        target: The class that attackers want predicted for images with the trigger.
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
        poisoned = poisoned_places(client, self.poison_share, self.seed)
        labels, pixels = client.labels.copy(), client.pixels.copy()
        labels[poisoned] = self.target
        stamped = pixels[poisoned]
        self._stamp(stamped, client)
        pixels[poisoned] = stamped
        return replace(client, labels=read_only(labels), pixels=read_only(pixels))

    def probe(self, client: ClientDataset) -> ClientDataset:
        """Returns the examples of other classes than the target, stamped."""
        chosen = chosen_examples(client, client.labels != self.target)
        pixels = chosen.pixels.copy()
        self._stamp(pixels, client)
        return replace(chosen, pixels=read_only(pixels))

    def target_classes(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the target class for each example."""
        return np.full_like(labels, self.target)

    def _stamp(self, pixels: Pixels, client: ClientDataset) -> None:
        """Writes the trigger into images [n, H, W] or [n, H, W, C], in their stored values."""
        value = (self.ink - client.offset) / client.scale
        if pixels.dtype == np.uint8:
            value = min(max(round(value), 0), 255)
        pixels[:, -1 - self.size : -1, -1 - self.size : -1] = value


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
            changed: The ids of the clients that are changed; None: all.
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


def replaced(
    client: ClientDataset, places: NDArray[np.int64], images: Pixels, label: int
) -> ClientDataset:
    """Returns the client with the examples at `places` replaced by `images`, labelled `label`.

    The images are used in order, and again from the first one if there are fewer than places.
    """
    labels, pixels = client.labels.copy(), client.pixels.copy()
    labels[places] = label
    pixels[places] = images[np.arange(len(places)) % len(images)]
    return replace(client, labels=read_only(labels), pixels=read_only(pixels))


def poisoned_places(client: ClientDataset, share: float, seed: int) -> NDArray[np.int64]:
    """Returns indices of a random share of a client's examples, the same in all rounds: int64."""
    key = stream_key(seed, Purpose.POISONED_EXAMPLES, client=client_key(client.client_id))
    count = round(share * len(client))
    return np.sort(Stream(key).permutation(len(client))[:count])


def chosen_examples(client: ClientDataset, is_chosen: NDArray[np.bool_]) -> ClientDataset:
    """Returns the client with some of its examples."""
    labels, pixels = client.labels[is_chosen], client.pixels[is_chosen]
    return replace(client, labels=read_only(labels), pixels=read_only(pixels))


def read_only(array: Any) -> Any:
    """Returns the array after making it read-only, as arrays of data sources are."""
    array.flags.writeable = False
    return array
