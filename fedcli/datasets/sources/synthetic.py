"""The synthetic datasets: pictures of artificial clients, which the C core draws.

A client's examples are a pure function of the data's options and the client's id. They are drawn
when the client is read, so a large population costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

from fedcli.core import native, seeds
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.cache import ClientCache
from fedcli.datasets.client_data import ClientData, decoding, unknown_client
from fedcli.settings import tables
from fedcli.settings.options import Value

NUM_CLASSES = 10
VERSION = 1  # of the generators; incremented whenever equal options would give other pixels
SPLITS = ("train", "test", "central")  # in the order of the core's split numbers

_NUM_CENTRAL = 20  # clients of the central split, who are in no other split


class Pictures(NamedTuple):
    """The pictures of one synthetic dataset.

    Attributes:
        number: The number by which the core knows these pictures (enum fed_synthetic_pictures).
        shape: Shape of a picture, [H, W] or [H, W, C].
        scale: Decodes a stored value, with `offset`: scale * value + offset.
        offset: See `scale`.
        convention: Meaning of the decoded value 1.0: "ink" or "background".
    """

    number: int
    shape: tuple[int, ...]
    scale: float
    offset: float
    convention: str


PICTURES: Mapping[str, Pictures] = {
    # As in TFF's EMNIST: stored 255 is ink, decoded 1.0 is the background.
    "synthetic-digits": Pictures(0, (28, 28), -1 / 255, 1.0, "background"),
    "synthetic-shapes": Pictures(1, (32, 32, 3), 1 / 255, 0.0, "ink"),
}


class GeneratedIds(Sequence[str]):
    """The sorted ids prefix0000000, prefix0000001, …; each is made when it is read."""

    def __init__(self, prefix: str, count: int) -> None:
        """Makes `count` ids of `prefix` and a number."""
        self._prefix = prefix
        self._numbers = range(count)
        self._width = max(7, len(str(count - 1)))  # so that ids sort by their numbers

    def __len__(self) -> int:
        """Returns the number of ids."""
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Returns an id, or the list of the ids in a slice."""
        if isinstance(index, slice):
            return [self._name(number) for number in self._numbers[index]]
        return self._name(self._numbers[index])

    def __contains__(self, client_id: object) -> bool:
        """Returns whether an id has the right form and number."""
        return isinstance(client_id, str) and self._number(client_id) is not None

    def index(self, client_id: str, start: int = 0, stop: int | None = None) -> int:
        """Returns the index of an id. Raises ValueError if it is not there."""
        number = self._number(client_id)
        if number is None or number not in self._numbers[start:stop]:
            raise ValueError(f"{client_id!r} is not in the sequence")
        return number

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:0{self._width}d}"

    def _number(self, client_id: str) -> int | None:
        digits = client_id.removeprefix(self._prefix)
        if not (digits.isascii() and digits.isdecimal() and len(digits) == self._width):
            return None
        number = int(digits)
        return number if number in self._numbers and self._name(number) == client_id else None


class SyntheticSplit(ClientData):
    """One split of a synthetic dataset."""

    is_generated = True

    def __init__(
        self,
        name: str,
        split: str,
        options: Mapping[str, Value],
        *,
        num_classes: int,
        pixels: str,
        cache: ClientCache,
    ) -> None:
        """Makes the split without drawing examples.

        Args:
            name: A key of `PICTURES`.
            split: One of `SPLITS`. Clients of train and test are the same.
            options: The options of the dataset, with defaults filled in.
            num_classes: At least 10; labels are 0 to 9.
            pixels: "source", "ink" or "background".
            cache: Keeps clients that were drawn.
        """
        self.source = name
        pictures = PICTURES[name]
        self.split = split
        self.num_classes = num_classes
        self.class_names = None
        self.pixel_shape = pictures.shape
        is_central = split == "central"
        self.client_ids: GeneratedIds = (
            GeneratedIds("u", _NUM_CENTRAL)
            if is_central
            else GeneratedIds("s", _whole(options["clients"]))
        )
        self._split_number = SPLITS.index(split)
        self._drawing = _drawing(name, options)
        self.cache: ClientCache = cache
        self._scale, self._offset, self.pixel_convention = decoding(
            pictures.scale, pictures.offset, pictures.convention, pixels
        )

    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds, without drawing them."""
        if client_id not in self.client_ids:
            raise unknown_client(self, client_id)
        return native.count_synthetic(
            self._drawing, seeds.client_key(client_id), self._split_number
        )

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples, from the cache or newly drawn."""
        return self.cache.get(self.split, client_id, lambda: self._draw(client_id))

    def _draw(self, client_id: str) -> ClientDataset:
        count = self.num_examples(client_id)
        pixels, labels = native.draw_synthetic(
            self._drawing, seeds.client_key(client_id), self._split_number, 0, count
        )
        pixels.flags.writeable = False  # so that an engine may keep the decoded pixels
        pixels = pixels.reshape(count, *self.pixel_shape)
        labels.flags.writeable = False
        return ClientDataset(client_id, pixels, labels, self._scale, self._offset, self.source)


def fingerprint(name: str, options: Mapping[str, Value]) -> str:
    """Returns the fingerprint of a synthetic dataset: version and resolved options."""
    return " ".join([f"{name}/v{VERSION}", *(f"{each}={options[each]}" for each in options)])


def _drawing(name: str, options: Mapping[str, Value]) -> native.SyntheticOptions:
    """The options of pictures in the form that the core takes."""
    sizes = next(o for o in tables.EMBEDDED_DATASETS[name].options if o.name == "sizes").choices
    return (
        PICTURES[name].number,
        _whole(options["seed"]),
        float(options["spread"]),  # type: ignore[arg-type]
        float(options["label_noise"]),  # type: ignore[arg-type]
        sizes.index(str(options["sizes"])),
    )


def _whole(value: Value) -> int:
    assert isinstance(value, int)  # the check of options has ensured it
    return value
