"""LEAF's JSON layout (Caldas et al. 2018), as its FEMNIST is written.

A shard is one object with three keys: `users`; `num_samples`, in the same order; and `user_data`,
which has for each user `x` (a list of flat images, where 1.0 is the background) and `y` (labels).
Memory holds the examples of one user at a time, so shards of hundreds of megabytes can be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import Pixels
from fedcli.datasets.checks import MAX_CLIENT_BYTES, check_pixel_shape
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.flat import array_order, flat_shape, order_notes, shaped
from fedcli.datasets.importers.json_stream import JsonStream
from fedcli.datasets.importers.picture_files import SUFFIXES
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import rescale
from fedcli.datasets.labels import LabelReader
from fedcli.datasets.polarity import are_emnist_writers
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError, plural
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback

_SPLITS = ("train", "test")
_KEYS = re.compile(rb'"(users|num_samples|user_data)"\s*:')
_START_BYTES = 1 << 16  # number of first bytes of a file in which a key must occur
_TOLERANCE = 0.05  # in grey levels: about four times the error of rounding to four digits
MAX_USERS = 1 << 20  # largest number of users in a shard
MAX_EXAMPLES = 1 << 20  # largest number of examples of a user


def recognises(path: Path) -> bool:
    """Returns whether a path is a LEAF shard, or a folder whose first *.json is one.

    The shards may also be in the folders data/, train/ and test/ below it.
    """
    if path.is_dir():
        path = _folder_of_shards(path)
        shards = _shards(path) or _shards(path / "train") or _shards(path / "test")
        return bool(shards) and recognises(shards[0])
    if not path.is_file():
        return False
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and _KEYS.search(start) is not None


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the examples of a folder's shards. The folders train/ and test/ in it become splits.

    A user's pixels become uint8 grey levels if 255 times each pixel is within 0.05 of a whole
    number. Otherwise they stay float32.

    Args:
        sources: One folder, or shards of one split.
        options: `num_classes`, `image_shape`, `pixel_range`, `polarity` and `fit` apply; if shards
            name pictures, see `leaf_pictures.read`.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: Shards name pictures, and Pillow is not installed.
        DataError: A shard is damaged or breaks the layout; the message names file, user and
            example.
        OSError: A file cannot be read, or the disk is full.
    """
    splits = _find_shards(sources)
    try:
        return _read_arrays(splits, sources, options, folder, on_progress)
    except _TextsFound as found:
        if not found.is_picture:
            raise DataError(
                f"{found.where}: x holds text, not pixels ({found.text[:40]!r}): fedcli trains on "
                "images only; give LEAF's FEMNIST or CelebA"
            ) from None
        from fedcli.datasets.importers import leaf_pictures  # lazy: most shards hold pixels

        return leaf_pictures.read(splits, sources[0], options, folder, on_progress)


class _TextsFound(Exception):  # noqa: N818 - the data may be right
    """A shard has a text, perhaps the name of a picture file, where pixels are expected."""

    def __init__(self, text: str, where: str, *, is_nested: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.where = where
        self.is_picture = not is_nested and PurePosixPath(text).suffix.lower() in SUFFIXES


def _read_arrays(
    splits: Mapping[str, Sequence[Path]],
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """The shards of each split, whose `x` are pixels."""
    reader = _ShardReader(options, on_progress)
    coded = {}
    with ExitStack() as stack:
        for split, shards in splits.items():
            name = str(sources[0] if len(splits) == 1 else sources[0] / split)
            writer = stack.enter_context(TableWriter(name, folder, fit=options.fit))
            for shard in shards:
                reader.read(shard, writer)
            coded[split] = writer.table()
    coded, coding = rescale(coded, options.pixel_range, are_unit_levels=True)
    tables, classes = shared.number_labels(coded, reader.labels)
    owners = [set(table.owner_ids) for table in tables.values()]
    is_emnist = all(map(are_emnist_writers, owners))
    convention, why = "background", "ids of EMNIST's writers, whose images have a light background"
    if not is_emnist:
        convention, why = shared.polarity_of(tables)
    notes = [] if coding.white == 1 and coding.most <= 1 else [coding.note]
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention=convention,
        own_classes=classes.num_hot or None,
        class_names=classes.names,
        is_emnist=is_emnist,
        # Between train and test, LEAF divides either the images of each writer, or the writers.
        same_people=len(owners) == 1 or not owners[0].isdisjoint(owners[1]),
        evidence={
            "splits": "folders " + ", ".join(splits) if len(splits) > 1 else "shards of one split",
            "owners": "the users of the shards",
            "polarity": why,
            "range": coding.evidence,
            "shape": reader.why_shape,
        },
        overrides={"owners": "", "shape": "--image-shape", "range": "--pixel-range"},
        pixel_range=coding.range,
        notes=[*notes, *reader.order_notes(tables)],
    )


def _find_shards(sources: Sequence[Path]) -> dict[str, list[Path]]:
    if len(sources) > 1 or sources[0].is_file():
        return {"train": list(sources)}
    folder = _folder_of_shards(sources[0])
    shards = _shards(folder)
    if shards:
        return {"train": shards}
    splits = {split: _shards(folder / split) for split in _SPLITS}
    splits = {split: shards for split, shards in splits.items() if shards}
    if "train" not in splits:
        raise DataError(f"{folder}: holds no *.json, and neither does its train/; give LEAF shards")
    return splits


def _folder_of_shards(folder: Path) -> Path:
    """Returns the folder of shards: `folder`, or the data/ in it, which LEAF's scripts make."""
    inner = folder / "data"
    return inner if _shards(inner / "train") and not _shards(folder) else folder


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("[!.]*.json") if path.is_file())


class _ShardReader:
    """Reads shards and collects the labels of all users and the order of their pixels.

    Attributes:
        labels: The labels of the users so far.
        why_shape: The evidence for the shape of an image.
    """

    def __init__(self, options: ImportOptions, on_progress: ProgressCallback) -> None:
        self.labels = LabelReader()
        self.why_shape = "a square of all pixels"
        if options.image_shape:
            self.why_shape = "given by --image-shape"
        self._options = options
        self._on_progress = on_progress
        self._done = 0
        self._order: str | None = None  # the order of the values in flat rows

    def read(self, path: Path, writer: TableWriter) -> None:
        """Adds the users of one file."""
        users: list[str] | None = None
        num_samples: list[Any] | None = None
        counts: dict[str, int] | None = None
        try:
            with io.TextIOWrapper(open_regular(path), "utf-8-sig") as file:
                stream = JsonStream(file, lambda: self._on_progress(self._done, None))
                for key in stream.keys():  # noqa: SIM118 - a stream is not a mapping
                    if key == "users":
                        users = _read_users(stream)
                    elif key == "num_samples":
                        num_samples = stream.numbers()
                    elif key == "user_data":
                        counts = self._read_users_data(stream, path, writer)
                    else:
                        stream.skip()
                stream.end()
        except ValueError as err:
            raise DataError(f"{path}: damaged JSON: {err}; fetch or make the file again") from err
        _check_shard(str(path), users, num_samples, counts)

    def order_notes(self, tables: Mapping[str, ExampleTable]) -> list[str]:
        """Returns a line for each split whose flat rows seem to be in another order."""
        if self._order is None:
            return []
        return [
            note
            for table in tables.values()
            for note in order_notes(table.pixels, self._order, table.source)
        ]

    def _read_users_data(
        self, stream: JsonStream, path: Path, writer: TableWriter
    ) -> dict[str, int]:
        """Adds the examples of all users; returns how many each has."""
        counts: dict[str, int] = {}
        for user in stream.keys():  # noqa: SIM118
            shared.check_id(user, str(path))
            counts[user] = self._read_user(stream, user, writer, f"{path}: user {user!r}")
            self._done += counts[user]
        return counts

    def _read_user(self, stream: JsonStream, user: str, writer: TableWriter, where: str) -> int:
        images: NDArray[np.float32] | None = None
        labels: list[Any] | None = None
        try:
            for key in stream.keys():  # noqa: SIM118
                if key == "x":
                    images = self._read_images(stream, where)
                elif key == "y":
                    labels = stream.values()
                else:
                    stream.skip()
        except ValueError as err:
            raise DataError(f"{where}: damaged JSON: {err}; correct the file") from err
        if images is None or labels is None:
            raise DataError(f"{where}: lacks {'x' if images is None else 'y'}; correct the file")
        codes = self.labels.add(labels, where)
        if len(images) != len(codes):
            raise DataError(
                f"{where}: {plural(len(images), 'image')} but {plural(len(codes), 'label')}; each "
                "image needs one label"
            )
        if len(images):
            pixels, scale = _rounded(self._shaped(images, where))
            writer.add(pixels, codes, scale=scale, offset=0.0, owners=user, where=where)
        return len(images)

    def _shaped(self, images: NDArray[np.float32], where: str) -> NDArray[np.float32]:
        if images.ndim > 2:  # each image is a list of rows
            check_pixel_shape(images.shape, where)
            self.why_shape = "the rows of x"
            return shaped(images, *array_order(images.shape))
        shape, self._order = flat_shape(images.shape[1], self._options.image_shape, where)
        return shaped(images, shape, self._order)

    def _read_images(self, stream: JsonStream, where: str) -> NDArray[np.float32]:
        """The list x, float32 [n, columns], or [n, ...] of images that are lists of rows."""
        rows: list[NDArray[np.float32]] = []
        for _ in stream.items():
            fault = f"{where}: example {len(rows)}"
            if stream.peek() == '"':
                raise _TextsFound(stream.string(), where)
            if stream.peek() == "[" and stream.peek_inside() == '"':
                next(stream.items())
                raise _TextsFound(stream.string(), where, is_nested=True)
            try:
                with np.errstate(over="ignore"):  # infinity is refused below
                    row = np.array(stream.nested_numbers(), np.float32)
            except (ValueError, OverflowError) as err:
                raise DataError(f"{fault}: {err}; correct the file") from err
            if rows and row.shape != rows[0].shape:
                raise DataError(
                    f"{fault}: has {row.size} pixels but example 0 has {rows[0].size}; give all "
                    "images the same number of pixels"
                )
            rows.append(row)
            if len(rows) > MAX_EXAMPLES or len(rows) * row.nbytes > MAX_CLIENT_BYTES:
                raise DataError(
                    f"{where}: has more than {MAX_EXAMPLES} examples or {MAX_CLIENT_BYTES} bytes "
                    "of pixels; divide it into several users"
                )
            self._on_progress(self._done + len(rows), None)
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def _read_users(stream: JsonStream) -> list[str]:
    """Returns the list of ids; numbers become texts, because keys are texts."""
    users = [str(each) for each in stream.values()]
    if len(users) > MAX_USERS:
        raise ValueError(f"more than {MAX_USERS} users")
    return users


def _rounded(images: NDArray[np.float32]) -> tuple[Pixels, float]:
    """Returns grey levels and their scale if all pixels are close to a level, else the pixels."""
    with np.errstate(over="ignore", invalid="ignore"):
        levels = images * np.float32(255)
        nearest = np.rint(levels)
        np.abs(levels - nearest, out=levels)
    # This condition is false for NaN, too.
    if nearest.min() >= 0 and nearest.max() <= 255 and levels.max() <= _TOLERANCE:
        return nearest.astype(np.uint8), 1 / 255
    return images, 1.0


def _check_shard(
    source: str,
    users: list[str] | None,
    num_samples: list[Any] | None,
    counts: dict[str, int] | None,
) -> None:
    """Checks that the three parts of a shard agree."""
    for name, part in (("users", users), ("num_samples", num_samples), ("user_data", counts)):
        if part is None:
            raise DataError(f"{source}: has no {name!r}; this is not a LEAF shard")
    assert users is not None
    assert num_samples is not None
    assert counts is not None
    if len(users) != len(num_samples):
        raise DataError(
            f"{source}: has {plural(len(users), 'user')} but {plural(len(num_samples), 'entry')} "
            "of num_samples; correct the file"
        )
    listed = set()
    for user, count in zip(users, num_samples, strict=True):
        where = f"{source}: user {user!r}"
        if user in listed:
            raise DataError(f"{where}: occurs twice in users; keep one")
        listed.add(user)
        if user not in counts:
            raise DataError(f"{where}: is in users but not in user_data; correct the file")
        if counts[user] != count:
            raise DataError(
                f"{where}: has {plural(counts[user], 'example')} but num_samples says {count}; "
                "correct the file"
            )
    for user in counts:
        if user not in listed:
            raise DataError(
                f"{source}: user {user!r}: is in user_data but not in users; correct the file"
            )
