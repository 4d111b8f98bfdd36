"""Checkpoint files: the whole server state with the config, in one HDF5 file.

Layout (format "fedcli-checkpoint", version 1):

- One group for each component of the server state: `global_model_weights` with one dataset for each
  tensor in Keras's shape, `distributor`, `client_work`, `aggregator`, `finalizer`, and `updates` if
  it is not empty. Arrays are datasets, plain numbers are scalar datasets.
- `config`: the text of config.toml.
- `model`: the JSON of the model's layers (`layout.ParamLayout.description`), so that a model from a
  file can be used without that file. Early versions lack it. If the model is a user's code,
  `tensors` takes its place: the JSON list of the names of the weights in their order.
- Attributes: `round_num`, `fedcli_version`; `input_shape`, `num_classes` and `pixel_convention` of
  the model, so that it can be used without its data; and the digest of each file of vectors that
  clients keep, in an attribute that has the file's name without the suffix (one of `KINDS` in
  learning.client_states). Early versions lack these digests.

A trailer follows the HDF5 image: 16 bytes of name and the BLAKE2b of all bytes before it. It
detects a truncated file or a changed byte before anything is parsed. HDF5 tools ignore it.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.digest import blake2b
from fedcli.errors import CheckpointError
from fedcli.files import open_regular
from fedcli.hdf5 import check_heaps, new_in_memory
from fedcli.learning import client_states
from fedcli.models.sizing import MAX_DIMENSIONS, MAX_VALUES
from fedcli.settings.vocabulary import MAX_CLASSES, PIXEL_CONVENTIONS

FORMAT = "fedcli-checkpoint"
VERSION = 1
COMPONENTS = (
    *("global_model_weights", "distributor", "client_work", "aggregator", "finalizer"),
    "updates",
)
OPTIONAL = frozenset({"updates"})  # components that are left out if they hold nothing
H5PY_VERSION: str = h5py.__version__

# The largest file: eight times the weights of the largest model, to hold optimizer states as well.
MAX_BYTES = 32 << 30

_BLOCK_BYTES = 1 << 20
_TRAILER_NAME = b"\nfedcli-blake2b\n"
_DIGEST_BYTES = 32
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")  # of a tensor of a user's model; it has no slash
_MAX_DEPTH = 3  # of groups, because hard links may form a cycle
_TRAILER_BYTES = len(_TRAILER_NAME) + _DIGEST_BYTES

Part = NDArray[Any] | int | float
Components = Mapping[str, Mapping[str, Part]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        round_num: Number of completed rounds.
        components: By component (`COMPONENTS`) and name: arrays, ints and floats.
        config: The text of config.toml.
        input_shape: Shape of one example as the model takes it.
        num_classes: Number of classes.
        pixel_convention: The meaning of the pixel value 1.0 in training: "ink" or "background".
        fedcli_version: The version of fedcli that wrote it.
        description: The model's layers, as JSON text; None if the model is a user's code, or if an
            early version wrote the file.
        tensor_names: Names of the weights in order, if the model is a user's code; else None.
        client_states: The digests of the client states by the names of their files, if known.
    """

    round_num: int
    components: dict[str, dict[str, Part]]
    config: str
    input_shape: tuple[int, ...]
    num_classes: int
    pixel_convention: str
    fedcli_version: str
    description: str | None = None
    tensor_names: tuple[str, ...] | None = None
    client_states: Mapping[str, int] = field(default_factory=dict)


def encode(checkpoint: Checkpoint) -> bytes:
    """Returns the bytes of a checkpoint file."""
    with new_in_memory() as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["fedcli_version"] = checkpoint.fedcli_version
        file.attrs["round_num"] = checkpoint.round_num
        file.attrs["input_shape"] = checkpoint.input_shape
        file.attrs["num_classes"] = checkpoint.num_classes
        file.attrs["pixel_convention"] = checkpoint.pixel_convention
        for name, digest in checkpoint.client_states.items():
            file.attrs[name] = digest
        file["config"] = np.frombuffer(checkpoint.config.encode(), np.uint8)
        if checkpoint.description is not None:
            file["model"] = np.frombuffer(checkpoint.description.encode(), np.uint8)
        if checkpoint.tensor_names is not None:
            names = json.dumps(checkpoint.tensor_names)
            file["tensors"] = np.frombuffer(names.encode(), np.uint8)
        for component in COMPONENTS:
            parts = checkpoint.components.get(component, {})
            if component in OPTIONAL and not parts:
                continue
            group = file.create_group(component)
            # Sorted, because a loaded state may have its parts in another order than a new one.
            for name, part in sorted(parts.items()):
                group[name] = part
        file.flush()
        image: bytes = file.id.get_file_image()
    return image + _TRAILER_NAME + blake2b(image, digest_size=_DIGEST_BYTES).digest()


def load(path: Path) -> Checkpoint:
    """Returns the content of a checkpoint file.

    Raises:
        CheckpointError: It cannot be read, is damaged, is not a checkpoint, or has another
            version of the format.
    """
    try:
        with open_regular(path) as file:
            content = _read_whole(file, path)
    except OSError as err:
        raise CheckpointError(f"cannot read the checkpoint {path}: {err.strerror}") from err
    try:
        with h5py.File(io.BytesIO(content), "r") as image:
            check_heaps(image, content)
            return _parse(image, len(content), path)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, ArithmeticError) as err:
        # An overflow means that an address or size is damaged.
        is_address = isinstance(err, ArithmeticError)
        reason = "it points outside itself" if is_address else " ".join(str(err).split())
        raise CheckpointError(f"{path} is not a usable checkpoint: {reason}") from err


def check(checkpoint: Checkpoint, expected: Components, path: Path) -> None:
    """Checks that a state fits the run's model and optimizers.

    Args:
        checkpoint: The content of `path`.
        expected: The components of the initial state, whose names, types and shapes must be equal.
        path: The file, for the message.

    Raises:
        CheckpointError: A name, type or shape differs. The message says which.
    """
    for component in COMPONENTS:
        has = {name: _kind(part) for name, part in checkpoint.components[component].items()}
        needs = {name: _kind(part) for name, part in expected.get(component, {}).items()}
        if has != needs:
            raise CheckpointError(
                f"{path}: {component} holds {_listed(has)}, but the run's config needs "
                f"{_listed(needs)}; use the config it was written with"
            )


def _read_whole(file: BinaryIO, path: Path) -> bytes:
    """Reads the HDF5 image after checking the trailer."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, num_bytes - _TRAILER_BYTES))
    trailer = file.read(_TRAILER_BYTES)
    if len(trailer) < _TRAILER_BYTES or not trailer.startswith(_TRAILER_NAME):
        raise CheckpointError(
            f"{path} is not a whole fedcli checkpoint: it was cut short, or is another kind of "
            "file; restore it or, if it is in a run's folder, delete it to continue from the "
            "checkpoint before"
        )
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {num_bytes:,} bytes, more than any checkpoint of fedcli ({MAX_BYTES:,}); "
            "give another file"
        )
    # The digest is computed in blocks, so that a damaged file takes no memory.
    digest, left = blake2b(digest_size=_DIGEST_BYTES), num_bytes - _TRAILER_BYTES
    file.seek(0)
    while left and (block := file.read(min(left, _BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    if left or digest.digest() != trailer[len(_TRAILER_NAME) :]:
        raise CheckpointError(
            f"{path} is damaged: its checksum does not match; restore it or, if it is in a run's "
            "folder, delete it to continue from the checkpoint before"
        )
    file.seek(0)
    return file.read(num_bytes - _TRAILER_BYTES)


def _parse(file: h5py.File, num_bytes: int, path: Path) -> Checkpoint:
    if file.attrs.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a fedcli checkpoint; give one that train wrote")
    version, writer = int(file.attrs["version"]), str(file.attrs["fedcli_version"])
    if version != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version}, written by fedcli {writer}; this fedcli "
            f"reads version {VERSION}; install the fedcli that wrote it"
        )
    round_num = int(file.attrs["round_num"])
    input_shape = tuple(int(size) for size in file.attrs["input_shape"])
    num_classes = int(file.attrs["num_classes"])
    is_possible = 1 <= num_classes <= MAX_CLASSES and len(input_shape) <= MAX_DIMENSIONS
    sizes = (*input_shape, math.prod(input_shape))
    if round_num < 0 or not is_possible or not all(1 <= size <= MAX_VALUES for size in sizes):
        raise CheckpointError(
            f"{path} claims round {round_num}, inputs {input_shape} and {num_classes} classes; "
            "it is not a checkpoint of fedcli"
        )
    convention = str(file.attrs["pixel_convention"])
    if convention not in PIXEL_CONVENTIONS:
        raise CheckpointError(
            f"{path} has pixel convention {convention!r}; it is not a checkpoint of fedcli"
        )
    components = {
        name: {}
        if name in OPTIONAL and name not in file
        else _read_group(file, name, num_bytes, path)
        for name in COMPONENTS
    }
    config = _read_text(file, "config", num_bytes, path)
    description = _read_text(file, "model", num_bytes, path) if "model" in file else None
    return Checkpoint(
        round_num,
        components,
        config,
        input_shape,
        num_classes,
        convention,
        writer,
        description,
        _read_tensor_names(file, components["global_model_weights"], num_bytes, path),
        {name: int(file.attrs[name]) for name in client_states.KINDS if name in file.attrs},
    )


def _read_tensor_names(
    file: h5py.File, weights: Mapping[str, Part], num_bytes: int, path: Path
) -> tuple[str, ...] | None:
    if "tensors" not in file:
        return None
    try:
        names = json.loads(_read_text(file, "tensors", num_bytes, path))
    except RecursionError:
        names = None
    is_list = isinstance(names, list) and all(
        isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in names
    )
    if not is_list or sorted(names) != sorted(weights):
        raise CheckpointError(f"{path}: tensors does not list the weights by name")
    return tuple(names)


def _read_group(file: h5py.File, component: str, num_bytes: int, path: Path) -> dict[str, Part]:
    group = _member(file, component, h5py.Group, path)
    parts: dict[str, Part] = {}
    pending = sorted(group, reverse=True)
    while pending:  # HDF5 turns a name with slashes into groups
        name = pending.pop()
        if name.count("/") > _MAX_DEPTH:
            raise CheckpointError(f"{path}: {component} is nested too deeply")
        if isinstance(_member(group, name, (h5py.Group, h5py.Dataset), path), h5py.Group):
            pending += [f"{name}/{each}" for each in sorted(group[name], reverse=True)]
        else:
            parts[name] = _read_part(group, name, num_bytes, path)
    return parts


def _read_text(file: h5py.File, name: str, num_bytes: int, path: Path) -> str:
    return np.asarray(_read_part(file, name, num_bytes, path)).tobytes().decode()


def _read_part(group: h5py.Group, name: str, num_bytes: int, path: Path) -> Part:
    """Reads an array or number. Refuses one that would take more memory than the file has bytes."""
    dataset = _member(group, name, h5py.Dataset, path)
    is_plain = dataset.chunks is None and not dataset.external and not dataset.is_virtual
    if not is_plain or dataset.nbytes > num_bytes or dataset.dtype.kind not in "iuf":
        raise CheckpointError(f"{path}: {dataset.name} is not a plain array of numbers")
    value = dataset[()]
    part: Part = value if dataset.shape else value.item()
    return part


def _member(group: h5py.Group, name: str, kind: Any, path: Path) -> Any:
    """Returns a member of a group. Links, which may leave the file, are not followed."""
    is_here = isinstance(group.get(name, getlink=True), h5py.HardLink)
    member = group[name] if is_here else None
    if not isinstance(member, kind):
        raise CheckpointError(f"{path}: {name} is missing or of another kind")
    return member


def _kind(part: Part) -> str:
    """The type and shape of a part as text, such as `float32 [784, 10]` or `int`."""
    if isinstance(part, np.ndarray):
        return f"{part.dtype} {list(part.shape)}"
    return type(part).__name__


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in sorted(kinds.items())) or "nothing"
