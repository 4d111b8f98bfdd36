"""One client's data and its batches.

The core gets the indices of the examples and gathers their pixels itself. The iterators here,
which copy pixels, are for models in Python, for users and for tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcli.core import native, seeds
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan, buffer_size
from fedcli.errors import ConfigError, DataError, plural, speaks_python
from fedcli.lazy import ExplainsNames

MAX_LABEL = 2**31 - 1
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class ArraySpec:
    """The shape and type of an array; None is a size that varies."""

    shape: tuple[int | None, ...]
    dtype: str

    def __repr__(self) -> str:
        """Returns the spec as the call that makes it."""
        return f"ArraySpec(shape={self.shape}, dtype={self.dtype})"


@dataclass(frozen=True, eq=False)
class ClientDataset(ExplainsNames):
    """One client's examples. The arrays must not be changed: they may be borrowed.

    Attributes:
        client_id: The client's name in its population.
        pixels: uint8 or float32 [n, H, W], [n, H, W, C] or flat [n, I]; the model sees
            `scale * pixels + offset`.
        labels: int32 [n].
        scale: Multiplies the stored pixels.
        offset: Added to the product.
        source: The file or dataset the examples come from, for messages.
    """

    client_id: str
    pixels: Pixels
    labels: NDArray[np.int32]
    scale: float
    offset: float
    source: str

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the examples in file order as {"label": int32, "pixels": float32 [H, W(, C)]}."""
        for index in range(len(self)):
            pixels = decode(self.pixels[index], self.scale, self.offset)
            yield {"label": self.labels[index], "pixels": pixels}

    def __repr__(self) -> str:
        """Returns id, size and element spec."""
        spec = ", ".join(f"{name}: {value}" for name, value in self.element_spec.items())
        return f"<ClientDataset {self.client_id!r}, {plural(len(self), 'example')}, {{{spec}}}>"

    @property
    def element_spec(self) -> dict[str, ArraySpec]:
        """The specs of the two values that iterating yields: `label` and `pixels`."""
        return example_spec(self.pixels.shape[1:])

    def images(self) -> NDArray[np.float32]:
        """Returns all pixels as the model sees them: float32, shaped as `pixels`."""
        return decode(self.pixels, self.scale, self.offset)

    @speaks_python()
    def preprocess(
        self,
        epochs: int = 1,
        shuffle_buffer: int | Literal["full"] = 1,
        batch_size: int = 20,
        seed: int = 0,
        *,
        pipeline: str = "repeat-shuffle",
        max_examples: int | None = None,
    ) -> BatchedDataset:
        """Returns the client's batches; `seed` drives the shuffle.

        The other options are those of `fedcli.datasets.batch_plan.BatchPlan`; "full" is a shuffle
        buffer of all examples.

        Raises:
            ConfigError: An option is not allowed.
        """
        if callable(epochs):
            raise ConfigError(
                "preprocess takes no function; write .preprocess(epochs=5, shuffle_buffer=100, "
                "batch_size=20), and pass arrays whose pixels you changed to datasets.from_arrays"
            )
        plan = BatchPlan(
            epochs=epochs,
            batch_size=batch_size,
            shuffle_buffer=buffer_size(shuffle_buffer),
            pipeline=pipeline,
            max_examples=max_examples,
        )
        return BatchedDataset(self, plan, seed)


@dataclass(frozen=True, eq=False)
class BatchedDataset(ExplainsNames):
    """A client's examples in batches. Training and evaluation take one of these per client.

    Attributes:
        client: The examples, borrowed.
        plan: How they are repeated, shuffled and batched.
        seed: The run's seed, which drives the shuffle.
    """

    client: ClientDataset
    plan: BatchPlan
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the seed and the largest batch."""
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed}: choose a whole number from 0 to {2**64 - 1}")
        if self.plan.batch_size > native.MAX_BATCH:
            self.plan.largest_batch(len(self.client), f"client {self.client.client_id!r}")

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the first round's batches as {"x": float32 [b, H*W*C], "y": int32 [b, 1]}."""
        return self.in_round()

    def in_round(
        self, round_num: int = 0, occurrence: int = 0
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the batches of a round as `__iter__` does. For the arguments see `order`."""
        client = self.client
        order = self.order(round_num, occurrence)
        first = 0
        for size in self.plan.batch_sizes(len(client)):
            chosen = order[first : first + size]
            first += size
            x = decode(client.pixels[chosen], client.scale, client.offset)
            yield {"x": x.reshape(size, -1), "y": client.labels[chosen].reshape(size, 1)}

    def __repr__(self) -> str:
        """Returns id, plan and element spec."""
        spec = ", ".join(f"{name}: {value}" for name, value in self.element_spec.items())
        return f"<BatchedDataset {self.client.client_id!r}, {self.plan}, {{{spec}}}>"

    def without_examples(self) -> BatchedDataset:
        """Returns the same client without examples, which has weight 0 in a cohort."""
        client = replace(self.client, pixels=self.client.pixels[:0], labels=self.client.labels[:0])
        return replace(self, client=client)

    @property
    def element_spec(self) -> dict[str, ArraySpec]:
        """The specs of the two arrays that iterating yields: `x` and `y`."""
        num_inputs = math.prod(self.client.pixels.shape[1:])
        return {
            "x": ArraySpec((None, num_inputs), "float32"),
            "y": ArraySpec((None, 1), "int32"),
        }

    def order(self, round_num: int = 0, occurrence: int = 0) -> NDArray[np.uint32]:
        """Returns the indices of the examples, uint32 [num_visits], in the order of processing.

        Args:
            round_num: Rounds completed when the round starts, 0 for the first.
            occurrence: Which copy of the client in its cohort, 0 for the first.
        """
        key = seeds.stream_key(
            self.seed,
            seeds.Purpose.SHUFFLE,
            round_num=round_num,
            client=seeds.client_key(self.client.client_id),
            occurrence=occurrence,
        )
        return native.example_order(self.plan.for_core(), len(self.client), key)


def example_spec(pixel_shape: tuple[int, ...]) -> dict[str, ArraySpec]:
    """Returns the spec of one example: its label, and its pixels as the model sees them."""
    return {"label": ArraySpec((), "int32"), "pixels": ArraySpec(pixel_shape, "float32")}


def from_arrays(
    pixels: ArrayLike, labels: ArrayLike, *, client_id: str = "", source: str = "arrays"
) -> BatchedDataset:
    """Returns the batches of one client with the given examples: 20 per batch, in order.

    Args:
        pixels: [n, H, W] or [n, H, W, C] (or flat [n, I]). The model sees floating-point pixels
            unchanged, and uint8 pixels divided by 255. float32 and uint8 arrays in C order are
            borrowed, not copied. If the same tuple of datasets is passed every round and is small,
            it is decoded only once if all its arrays of pixels, and the arrays that they are views
            of, are read-only (`flags.writeable` is False).
        labels: Integers [n] or [n, 1].
        client_id: Id of the client. Messages show it, and the shuffle depends on it.
        source: Name of the source of the data in messages.

    Raises:
        DataError: A shape or type is wrong, counts differ, a label is negative or too large, or a
            pixel is NaN or infinite.
    """
    where = f"{source}: client {client_id!r}" if client_id else source
    checked_pixels, scale = _pixel_array(np.asarray(pixels), where)
    label_array = np.asarray(labels)
    if label_array.ndim == 2 and label_array.shape[1] == 1:
        label_array = label_array[:, 0]
    if label_array.dtype.kind not in "iu" or label_array.ndim != 1:
        raise DataError(
            f"{where}: labels are {label_array.dtype} {list(label_array.shape)}; "
            "give whole numbers [n] or [n, 1]"
        )
    if len(label_array) != len(checked_pixels):
        raise DataError(
            f"{where}: {plural(len(checked_pixels), 'image')} but "
            f"{plural(len(label_array), 'label')}; give one label per image"
        )
    index = first_outside(label_array, MAX_LABEL + 1)
    if index is not None:
        raise DataError(
            f"{where}: example {index}: label {label_array[index]} is outside 0 to {MAX_LABEL}"
        )
    narrow = np.require(label_array, np.int32, ["C", "ALIGNED"])
    client = ClientDataset(client_id, checked_pixels, narrow, scale, 0.0, source)
    return BatchedDataset(client, BatchPlan())


def decode(pixels: Pixels, scale: float, offset: float) -> NDArray[np.float32]:
    """Returns scale * pixels + offset in float32: pixels as the model sees them."""
    images = np.multiply(pixels, np.float32(scale), dtype=np.float32)
    images += np.float32(offset)
    return images


def first_outside(labels: NDArray[Any], num_classes: int) -> int | None:
    """Returns the index of the first label outside 0 to num_classes - 1, or None."""
    if not labels.size or (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        return None
    # Compare Python integers, because num_classes may not fit the type of the labels. The result
    # may still be None, if another thread writes to the array.
    outside = (i for i, label in enumerate(labels.tolist()) if not 0 <= label < num_classes)
    return next(outside, None)


def first_non_finite(pixels: NDArray[np.floating[Any]]) -> int | None:
    """Returns the index of the first example holding a NaN or infinite pixel, or None."""
    # If the sum is finite, all pixels are finite. A sum of finite pixels may overflow, so the
    # exact test below decides.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(pixels.sum(dtype=np.float64)):
            return None
    bad = ~np.isfinite(pixels).reshape(len(pixels), -1).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def _pixel_array(pixels: NDArray[Any], where: str) -> tuple[Pixels, float]:
    """The pixels as the core reads them, and their scale."""
    native = pixels.dtype.newbyteorder("=")
    if pixels.ndim not in (2, 3, 4) or native not in (np.uint8, np.float32, np.float64):
        raise DataError(
            f"{where}: pixels are {pixels.dtype} {list(pixels.shape)}; "
            "give uint8, float32 or float64 of shape [n, H, W] or [n, H, W, C]"
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels), 1 / 255
    with np.errstate(over="ignore"):  # values too large for float32 become infinite: see below
        single = np.require(pixels, np.float32, ["C", "ALIGNED"])
    index = first_non_finite(single)
    if index is not None:
        raise DataError(f"{where}: example {index}: a pixel is NaN or infinite; correct the data")
    return single, 1.0
