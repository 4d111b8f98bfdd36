"""LEAF's shards whose `x` holds names of picture files, such as CelebA's.

LEAF's scripts put the pictures into raw/img_align_celeba beside the folder of the shards; other
folders near the shards are searched, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fedcli.datasets.importers import images, shared
from fedcli.datasets.importers.images import Labelled, LabelledSplits
from fedcli.datasets.importers.json_stream import JsonStream
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.labels import LabelReader, whole_numbers
from fedcli.errors import DataError, plural
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback

_FOLDERS = ("", "img_align_celeba", "raw/img_align_celeba", "raw", "images", "data")
_LEVELS = 4  # number of folders above a shard that are searched
_MAX_NAMES = 1 << 20  # largest number of pictures of a user


def read(
    splits: Mapping[str, Sequence[Path]],
    source: Path,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the pictures that shards name, with their users and labels.

    Args:
        splits: The shards of each split.
        source: The source as the user gave it.
        options: `color`, `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: Pillow is not installed, or an option is not allowed.
        DataError: A shard is damaged, or a picture is missing or cannot be used.
        OSError: A file cannot be read, or the disk is full.
    """
    pictures = {
        split: [each for shard in shards for each in _read_shard(shard)]
        for split, shards in splits.items()
    }
    evidence = {
        "splits": "folders " + ", ".join(splits) if len(splits) > 1 else "shards of one split",
        "owners": "the users of the shards",
        "classes": "the labels y of the shards",
    }
    overrides = {"splits": "", "owners": "", "classes": ""}
    return images.read_pictures(
        LabelledSplits(pictures, evidence, overrides), source, options, folder, on_progress
    )


def _read_shard(path: Path) -> list[Labelled]:
    """The pictures of one shard."""
    pictures: list[Labelled] = []
    places: list[Path] = []
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8-sig") as file:
            stream = JsonStream(file)
            for key in stream.keys():  # noqa: SIM118 - a stream is not a mapping
                if key != "user_data":
                    stream.skip()
                    continue
                for user in stream.keys():  # noqa: SIM118
                    where = f"{path}: user {user!r}"
                    shared.check_id(user, str(path))
                    names, labels = _read_user(stream, where)
                    for name, label in zip(names, labels, strict=True):
                        picture = _find(path, name, places, where)
                        pictures.append(Labelled(picture, str(label), user))
            stream.end()
    except ValueError as err:
        raise DataError(f"{path}: damaged JSON: {err}; fetch or make the file again") from err
    return pictures


def _read_user(stream: JsonStream, where: str) -> tuple[list[str], list[Any]]:
    """Returns the names and labels of one user's pictures."""
    names: list[str] = []
    labels: list[Any] = []
    for key in stream.keys():  # noqa: SIM118
        if key == "x":
            for _ in stream.items():
                names.append(stream.string())
                if len(names) > _MAX_NAMES:
                    raise DataError(
                        f"{where}: has more than {_MAX_NAMES:,} pictures; divide it into several "
                        "users"
                    )
        elif key == "y":
            labels = stream.values()
        else:
            stream.skip()
    if len(names) != len(labels):
        raise DataError(
            f"{where}: {len(names)} pictures but {plural(len(labels), 'label')}; each picture "
            "needs one label"
        )
    if any(isinstance(label, str) for label in labels):
        LabelReader().add(labels, where)  # refuses missing labels
        return names, labels
    return names, whole_numbers(np.array(labels), where).tolist()


def _find(shard: Path, name: str, places: list[Path], where: str) -> Path:
    """Returns the picture with a name; `places` are the folders of earlier pictures."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    is_inside = parts and ".." not in parts and not PurePosixPath(name).is_absolute()
    if is_inside:
        for place in places:
            if place.joinpath(*parts).is_file():
                return place.joinpath(*parts)
        for level in list(shard.absolute().parents)[:_LEVELS]:
            for folder in _FOLDERS:
                if (level / folder).joinpath(*parts).is_file():
                    places.insert(0, level / folder)
                    return (level / folder).joinpath(*parts)
    raise DataError(
        f"{where}: x names pictures, and {name[:80]!r} was not found near {shard}; put the "
        "pictures into raw/img_align_celeba beside the folder of the shards, or sort them into "
        "client/class folders and give these"
    )
