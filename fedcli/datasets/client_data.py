"""What every population of clients offers, whatever file or generator stands behind it."""

from __future__ import annotations

import abc
import difflib
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.batches import ArraySpec, ClientDataset, example_spec, first_outside
from fedcli.datasets.cache import ClientCache
from fedcli.errors import ConfigError, DataError

MAX_SIDE = 4096  # pixels; no image classifier of this kind reads more
MAX_CHANNELS = 64
MAX_CLIENT_BYTES = 2 << 30  # of one client's pixels as stored
MAX_CLASSES = 1 << 20

_NEIGHBOURS = 500  # ids on each side of an unknown one that near matches are sought among


class ClientData(abc.ABC):
    """The clients of one split. Opening it reads no example; a client is read when asked for.

    Attributes:
        source: The file or dataset, for messages.
        split: The split's name: train, test or central.
        client_ids: Sorted ids; lazy where they are generated or mapped from a file.
        num_classes: Labels are 0 to num_classes - 1.
        class_names: A name for each class, where the source has them.
        pixel_shape: (H, W) or (H, W, C) of every example.
        pixel_convention: What 1.0 is in what the model sees: "ink" or "background".
        cache: Keeps clients that are decompressed or drawn; None where they are memory-mapped.
    """

    source: str
    split: str
    client_ids: Sequence[str]
    num_classes: int
    class_names: tuple[str, ...] | None
    pixel_shape: tuple[int, ...]
    pixel_convention: str
    cache: ClientCache | None = None

    @abc.abstractmethod
    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds, without reading them.

        Raises:
            DataError: The id is unknown, or the file is damaged there.
        """

    @abc.abstractmethod
    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples, checked; arrays are borrowed and read-only.

        Raises:
            DataError: The id is unknown, or the examples cannot be used; names file, client and
                example.
        """

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels int32 [n], checked, without its pixels where that is cheaper.

        Raises:
            DataError: See `client`.
        """
        return self.client(client_id).labels

    def total_examples(self) -> int:
        """Returns the examples of all clients; generated data are counted client by client."""
        return sum(map(self.num_examples, self.client_ids))

    @property
    def element_spec(self) -> dict[str, ArraySpec]:
        """The spec of one example: `label` and `pixels`."""
        return example_spec(self.pixel_shape)

    def __repr__(self) -> str:
        """Returns source, split, number of clients and shapes."""
        return (
            f"<{type(self).__name__} {self.split!r} of {self.source}: {len(self.client_ids)} "
            f"clients, {self.num_classes} classes, pixels {list(self.pixel_shape)}>"
        )


def decoding(scale: float, offset: float, convention: str, pixels: str) -> tuple[float, float, str]:
    """Returns the scale, offset and convention that show stored pixels as the user asked.

    Args:
        scale: As stored.
        offset: As stored.
        convention: What 1.0 is when decoded so: "ink" or "background".
        pixels: "source" leaves that; "ink" or "background" asks for one (x becomes 1 - x).
    """
    if pixels in ("source", convention):
        return scale, offset, convention
    return -scale, 1.0 - offset, pixels


def unknown_client(data: ClientData, client_id: str) -> DataError:
    """Returns the error for an id that is not in `data`, naming the nearest ids that are."""
    ids = data.client_ids
    place = bisect_left(ids, client_id)
    near = ids[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
    matches = difflib.get_close_matches(client_id, near, n=3) or list(ids[:3])
    names = ", ".join(map(repr, matches))
    return DataError(
        f"{data.source}: no client {client_id!r} among the {len(ids)} of split "
        f"{data.split!r}; did you mean one of {names}?"
    )


def check_num_classes(num_classes: int, what: str) -> int:
    """Returns a number of classes.

    Raises:
        ConfigError: It is below 1 or absurd; the message starts with `what`.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ConfigError(f"{what} {num_classes}: choose a whole number from 1 to {MAX_CLASSES}")
    return num_classes


def check_labels(labels: NDArray[Any], num_classes: int, where: str) -> None:
    """Checks integer labels [n] in the type they are stored in.

    Raises:
        DataError: A label lies outside the classes.
    """
    index = first_outside(labels, num_classes)
    if index is not None:
        raise bad_label(int(labels[index]), index, num_classes, where)


def bad_label(label: int, index: int, num_classes: int, where: str) -> DataError:
    """Returns the error for one label outside the classes."""
    remedy = f"pass --num-classes {label + 1} or more, or mend" if label >= 0 else "mend"
    return DataError(
        f"{where}: example {index}: label {label} is outside 0 to {num_classes - 1}; "
        f"{remedy} the data"
    )


def check_pixel_shape(shape: tuple[int, ...], where: str) -> None:
    """Checks the shape of an array of images.

    Raises:
        DataError: It is not [n, H, W] or [n, H, W, C], or the images are absurdly large.
    """
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(
            f"{where}: pixels have shape {list(shape)}; only [n, H, W] and [n, H, W, C] are read"
        )
    if max(shape[1:3]) > MAX_SIDE or max(shape[3:], default=1) > MAX_CHANNELS:
        raise DataError(
            f"{where}: images of shape {list(shape[1:])} are too large; "
            f"at most {MAX_SIDE} x {MAX_SIDE} x {MAX_CHANNELS} is read"
        )


def check_pixel_array(shape: tuple[int, ...], itemsize: int, where: str) -> None:
    """Checks the shape of one client's pixels before anything of that size is made.

    Raises:
        DataError: As `check_pixel_shape`, or the client's pixels are too many bytes.
    """
    check_pixel_shape(shape, where)
    num_bytes = math.prod(shape) * itemsize
    if num_bytes > MAX_CLIENT_BYTES:
        raise DataError(
            f"{where}: pixels of shape {list(shape)} are {num_bytes} bytes; "
            f"a client may hold {MAX_CLIENT_BYTES}, split it"
        )
