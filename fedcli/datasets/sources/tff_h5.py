"""TensorFlow Federated's HDF5 layout: /examples/<client id>/{pixels or image, label}.

Other features (CIFAR-100's coarse_label) are ignored. Files are read directly, one client at a
time, and clients are cached in a `ClientCache`.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.datasets.batches import ClientDataset, Pixels, first_non_finite
from fedcli.datasets.cache import ClientCache
from fedcli.datasets.checks import check_labels, check_pixel_array, has_channels_first
from fedcli.datasets.client_data import ClientData, decoding, unknown_client
from fedcli.datasets.description import Finding, SourceDescription
from fedcli.datasets.examining import examine, sampled_ids
from fedcli.datasets.labels import count_rows, whole_numbers
from fedcli.datasets.polarity import Border, are_emnist_writers, can_measure
from fedcli.errors import DataError, plural

GROUP = b"examples"
DEFAULT_NUM_CLASSES = 10

# The meaning of 1.0 by the name of the feature in TFF: in EMNIST's `pixels` it is the white
# background, in CIFAR-100's `image` it is light.
CONVENTIONS = {b"pixels": "background", b"image": "ink"}
# Possible decodings of grey levels, as (scale, offset). The first reproduces every correctly
# rounded k / 255 and also 1 - k / 255; the second reproduces 1 - k * float32(1 / 255).
_GREY_LEVELS = ((1 / 255, 0.0), (-1 / 255, 1.0))
_TOLERANCE = 6e-8  # one unit in the last place of float32 just below 1
_BLOCK = 1 << 15  # pixels quantised at a time; two such float32 blocks fit in the L2 cache


class TffH5Split(ClientData):
    """One TFF file, which is a single split."""

    def __init__(
        self,
        path: Path,
        *,
        split: str,
        num_classes: int,
        pixels: str,
        cache: ClientCache,
        has_default_classes: bool = False,
        why_classes: str = "given by --num-classes",
    ) -> None:
        """Opens the file. Reads a few clients if the meaning of 1.0 must be estimated.

        Args:
            path: The file.
            split: The name of the split.
            num_classes: Labels are 0 to num_classes - 1.
            pixels: "source", "ink" or "background".
            cache: Keeps clients that were read.
            has_default_classes: Whether `num_classes` is TFF's default.
            why_classes: The evidence for `num_classes` if it is not TFF's default.

        Raises:
            DataError: The file cannot be opened or does not have TFF's layout.
        """
        self.source = str(path)
        self.split = split
        self.num_classes = num_classes
        self.class_names = None
        self.has_default_classes = has_default_classes
        self._why_classes = "TFF's default" if has_default_classes else why_classes
        self.cache: ClientCache = cache
        self._file = hdf5.open_file(path)
        try:
            self._feature, self._stored_shape = self._open_examples()
        except DataError:
            self._file.close()
            raise
        self.pixel_shape = self._stored_shape
        if has_channels_first((1, *self._stored_shape)):
            channels, *sides = self._stored_shape
            self.pixel_shape = (*sides, channels) if channels > 1 else tuple(sides)
        try:
            self._stored_convention, self._why_convention = self._judge_polarity()
        except DataError:
            self._file.close()
            raise
        _, _, self.pixel_convention = decoding(1.0, 0.0, self._stored_convention, pixels)

    def num_examples(self, client_id: str) -> int:
        """Returns how many labels a client holds, without reading them."""
        name = self._link_name(client_id)
        where = self._where(client_id)
        with hdf5.reading(where):
            group = hdf5.open_group(self._examples, name, where)
            return _num_labels(hdf5.open_dataset(group, b"label", where), where)

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples. Pixels become uint8 if that is lossless."""
        name = self._link_name(client_id)
        return self.cache.get(self.split, client_id, lambda: self._read(client_id, name))

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels, int32 [n]; its pixels are not decompressed."""
        name = self._link_name(client_id)
        where = self._where(client_id)
        with hdf5.reading(where):
            return self._read_labels(hdf5.open_group(self._examples, name, where), where)

    def evidence(self) -> dict[str, str]:
        """Returns the evidence for each subject of a `SourceDescription`."""
        feature = self._feature.decode()
        return {
            "splits": "a TFF file is one split, whatever its name",
            "owners": "the groups in /examples",
            "shape": f"{feature} of the first client",
            "polarity": self._why_convention,
        }

    def description(self) -> SourceDescription:
        """Returns how the file was interpreted. Reads the pixels of its first client."""
        why = self.evidence()
        height, width, *channels = self.pixel_shape
        return SourceDescription(
            source=self.source,
            format=Finding("tff-h5", "by content", "fedcli preprocess --format"),
            splits=Finding(self.split, why["splits"], "--test-data"),
            owners=Finding(plural(len(self.client_ids), "client"), why["owners"], "--partition"),
            classes=Finding(f"{self.num_classes:,}", self._why_classes, "--num-classes"),
            shape=Finding(f"{height} x {width}", why["shape"]),
            channels=Finding(str(channels[0] if channels else 1), why["shape"]),
            range=Finding(*self._find_range()),
            polarity=Finding(f"1.0 is {self._stored_convention}", why["polarity"], "--pixels"),
        )

    def _find_range(self) -> tuple[str, str]:
        """The range of the pixels, and the evidence."""
        if not self.are_floats:
            return "0 to 255", "pixels are uint8"
        first = self.client_ids[0]
        with suppress(DataError):  # the error is reported when the client is read
            pixels = self.client(first).pixels
            if pixels.dtype != np.uint8 and pixels.size:
                return f"{pixels.min():g} to {pixels.max():g}", f"the pixels of client {first!r}"
        return "0 to 1", f"the pixels of client {first!r} are multiples of 1/255"

    @property
    def is_emnist(self) -> bool:
        """Whether the examples are EMNIST's, by the names of the feature and of the clients."""
        return CONVENTIONS[self._feature] == "background" and are_emnist_writers(self.client_ids)

    @property
    def has_same_people(self) -> bool:
        """Whether equal ids in train and test are the same clients.

        They are different clients in TFF's CIFAR-100.
        """
        return CONVENTIONS[self._feature] == "background"

    def examine(self) -> tuple[str, ...]:
        """Returns notes for the user before training; see `examining.examine`."""
        return examine(
            self,
            has_default_classes=self.has_default_classes,
            is_scaled=False,
            are_bytes=not self.are_floats,
        )

    def _judge_polarity(self) -> tuple[str, str]:
        """The meaning of 1.0 and its evidence.

        For TFF's own datasets it is TFF's definition, else an estimate.
        """
        convention = CONVENTIONS[self._feature]
        name = self._feature.decode()
        if convention == "ink" or self.is_emnist or not can_measure(self.pixel_shape):
            return convention, f"TFF's feature {name!r}"
        border = Border()
        for client_id in sampled_ids(self.client_ids):
            where = self._where(client_id)
            with hdf5.reading(where):
                group = hdf5.open_group(self._examples, client_id.encode(), where)
                num_labels = _num_labels(hdf5.open_dataset(group, b"label", where), where)
                images = self._read_pixels(group, num_labels, where)
            is_share = images.dtype != np.uint8 and images.max(initial=0) <= 1.5
            border.add(images, 1.0 if is_share else 1 / 255, 0.0)
        decided = border.decide()
        if decided is None:
            return convention, f"TFF's feature {name!r}"
        return decided, border.evidence

    def _read(self, client_id: str, name: bytes) -> ClientDataset:
        where = self._where(client_id)
        with hdf5.reading(where):
            group = hdf5.open_group(self._examples, name, where)
            labels = self._read_labels(group, where)
            stored = self._read_pixels(group, len(labels), where)
        pixels, scale, offset = pack(stored, where)
        scale, offset, _ = decoding(scale, offset, self._stored_convention, self.pixel_convention)
        pixels.flags.writeable = False
        labels.flags.writeable = False
        return ClientDataset(client_id, pixels, labels, scale, offset, self.source)

    def _read_labels(self, group: Any, where: str) -> NDArray[np.int32]:
        dataset = hdf5.open_dataset(group, b"label", where)
        _num_labels(dataset, where)
        if dataset.dtype.kind not in "biuf":
            raise DataError(
                f"{where}: labels have dtype {dataset.dtype}; give whole numbers that count the "
                "classes from 0"
            )
        labels = whole_numbers(hdf5.read_whole(dataset, where), where)
        check_labels(labels, self.num_classes, where)
        return labels.astype(np.int32, copy=False)

    def _read_pixels(self, group: Any, num_labels: int, where: str) -> NDArray[Any]:
        dataset = hdf5.open_dataset(group, self._feature, where)
        shape, dtype = dataset.shape, dataset.dtype
        _check_has_shape(dataset, where)
        check_pixel_array(shape, dtype.itemsize, where)
        if (dtype.kind, dtype.itemsize) not in (("f", 4), ("f", 8), ("u", 1)):
            raise DataError(f"{where}: pixels have dtype {dtype}; give uint8, float32 or float64")
        if shape[1:] != self._stored_shape:
            raise DataError(
                f"{where}: images have shape {list(shape[1:])} but those of client "
                f"{self.client_ids[0]!r} have {list(self._stored_shape)}; give all images the same "
                "shape"
            )
        if shape[0] != num_labels:
            raise DataError(
                f"{where}: {plural(shape[0], 'image')} but {plural(num_labels, 'label')}; each "
                "image needs one label"
            )
        stored: NDArray[Any] = hdf5.read_whole(dataset, where)
        if has_channels_first(shape):
            stored = np.ascontiguousarray(np.moveaxis(stored, 1, -1))
        stored.flags.writeable = False  # before it has a view, or engines do not keep its pixels
        return stored.reshape(-1, *self.pixel_shape)

    def _open_examples(self) -> tuple[bytes, tuple[int, ...]]:
        """Finds the clients; returns the name of the pixel feature and the shape of an example."""
        with hdf5.reading(self.source):
            if not hdf5.has_link(self._file.id, GROUP):
                present = ", ".join(map(repr, hdf5.link_names(self._file.id, self.source)[:10]))
                raise DataError(
                    f"{self.source}: is neither a TFF file (no group 'examples') nor a fedcli "
                    f"store; it holds {present or 'nothing'}; save its arrays for fedcli "
                    "preprocess with numpy.savez('data.npz', x=images, y=labels)"
                )
            self._examples = hdf5.open_group(self._file.id, GROUP, self.source)
            self.client_ids: list[str] = hdf5.link_names(self._examples, self.source)
            if not self.client_ids:
                raise DataError(
                    f"{self.source}: holds no clients under /examples; give a TFF file with clients"
                )
            return self._describe_first_client()

    def _describe_first_client(self) -> tuple[bytes, tuple[int, ...]]:
        """The name of the pixel feature, and the shape of an example."""
        where = self._where(self.client_ids[0])
        group = hdf5.open_group(self._examples, self.client_ids[0].encode(), where)
        feature = next((name for name in CONVENTIONS if hdf5.has_link(group, name)), b"pixels")
        dataset = hdf5.open_dataset(group, feature, where)
        _check_has_shape(dataset, where)
        check_pixel_array(dataset.shape, dataset.dtype.itemsize, where)
        self.are_floats = dataset.dtype.kind == "f"
        return feature, tuple(dataset.shape[1:])

    def _link_name(self, client_id: str) -> bytes:
        is_text = isinstance(client_id, str)
        place = bisect_left(self.client_ids, client_id) if is_text else 0
        if self.client_ids[place : place + 1] != [client_id]:
            raise unknown_client(self, client_id)
        return client_id.encode()

    def _where(self, client_id: str) -> str:
        return f"{self.source}: client {client_id!r}"


@np.errstate(over="ignore", invalid="ignore")  # values too large for float32 are not grey levels
def quantise(pixels: NDArray[np.float32], scale: float, offset: float) -> NDArray[np.uint8] | None:
    """Returns grey levels that decode to `pixels` within 6e-8; None: there are none.

    The levels have the shape of `pixels`.

    Args:
        pixels: float32, any shape, C order.
        scale: A level k decodes to float32(scale) * k + float32(offset), in float32.
        offset: See `scale`.
    """
    levels = np.empty(pixels.shape, np.uint8)
    flat_levels, flat_pixels = levels.reshape(-1), pixels.reshape(-1)
    scratch = np.empty(min(_BLOCK, pixels.size), np.float32)
    step, start = np.float32(scale), np.float32(offset)
    steps_per_one, shift = np.float32(1 / scale), np.float32(-offset / scale)
    for first in range(0, pixels.size, _BLOCK):
        source = flat_pixels[first : first + _BLOCK]
        decoded = scratch[: source.size]
        np.multiply(source, steps_per_one, out=decoded)
        decoded += shift
        np.rint(decoded, out=decoded)
        if not (decoded.min() >= 0 and decoded.max() <= 255):  # false for NaN, too
            return None
        flat_levels[first : first + _BLOCK] = decoded
        decoded *= step
        decoded += start
        error = decoded - source
        if max(error.max(), -error.min()) > _TOLERANCE:
            return None
    return levels


def pack(stored: NDArray[Any], where: str) -> tuple[Pixels, float, float]:
    """Returns pixels as the core reads them, with the scale and offset that decode them.

    Args:
        stored: uint8, or floating point as the model takes it; [n, ...].
        where: Prefix of error messages.

    Raises:
        DataError: A pixel is NaN or infinite.
    """
    if stored.dtype == np.uint8:
        return stored, 1 / 255, 0.0
    with np.errstate(over="ignore"):  # values too large for float32 become infinite: see below
        single = stored.astype(np.float32, copy=False)
    for scale, offset in _GREY_LEVELS:
        levels = quantise(single, scale, offset)
        if levels is not None:
            return levels, scale, offset
    index = first_non_finite(single)
    if index is not None:
        raise DataError(f"{where}: example {index}: a pixel is NaN or infinite; correct the data")
    return single, 1.0, 0.0


def _check_has_shape(dataset: Any, where: str) -> None:
    if dataset.shape is None:  # HDF5's null dataspace
        raise DataError(
            f"{where}: pixels are an empty dataset without a shape; write the file again"
        )


def _num_labels(dataset: Any, where: str) -> int:
    return count_rows(tuple(dataset.shape or ()), where)
