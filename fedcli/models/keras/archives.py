"""Reads Keras's files `.keras`, `.h5`, `.weights.h5` and `.json`, which are untrusted.

The format is recognised by the content. A `.keras` file is a zip of `config.json` and
`model.weights.h5`. The latter is an HDF5 file in which the tensors of a layer are
`layers/dense_1/vars/0`, `1` and so on; `dense_1` is the layer's class name with a counter. (In
Keras 2.14 the outer group is `_layer_checkpoint_dependencies`.) Legacy HDF5 files have one group
for each layer, with the layer's own name; attributes give the order, and `model_config` may
describe the model. Nothing is unpacked to disk or unpickled, and links to other files are not
followed.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, DataError
from fedcli.files import open_regular, read_bounded
from fedcli.hdf5 import check_heaps, new_in_memory, one_line, read_attribute
from fedcli.zips import open_zip

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
# Names of the group of layers: in Keras 3, in its first versions, and in Keras 2.12 to 2.15.
CONTAINERS = ("layers", "_layers", "_layer_checkpoint_dependencies")

MAX_FILE_BYTES = 4 << 30
_MAX_CONFIG_BYTES = 8 << 20  # the description of a thousand layers takes 1 MB
# Size limit of a weights file: a fixed part and a part for each parameter. The file may also hold
# an optimizer's state.
_FIXED_BYTES = 64 << 20
_BYTES_PER_PARAM = 40
_MAX_NAMES = 4096  # names in one attribute
_MAX_NAME_BYTES = 4 << 30  # unpacked size of an attribute with names
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError, EOFError),
    *(AttributeError, zipfile.BadZipFile, zlib.error),
)

Tensors = list[NDArray[np.float32]]
Shapes = list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Contents:
    """The parts of a file.

    Attributes:
        description: Decoded JSON of the model; None if the file has none.
        weights_file: Bytes of the HDF5 file with the weights, or of the zip that contains it; empty
            if there are no weights.
    """

    description: Any
    weights_file: bytes


@dataclass(frozen=True)
class Places:
    """The layers that have weights, and the places of these weights in a file.

    Attributes:
        paths: For each layer, its names in the groups of layers, outermost first.
        tops: For each layer, the name of the outermost layer that contains it in legacy files. If
            empty, the file's own order of layers is used.
        shapes: For each layer, the required shapes of its tensors.
        num_trained: For each layer, the number of its tensors that are trained; they come first.
    """

    paths: Sequence[tuple[str, ...]]
    tops: Sequence[str]
    shapes: Sequence[Shapes]
    num_trained: Sequence[int]


def is_keras(path: Path) -> bool:
    """Returns whether a file starts like a Keras file: HDF5, a zip with a model, or JSON.

    The rest of the file is not checked. A file that cannot be read gives False.
    """
    try:
        with open_regular(path) as file:
            start = file.read(64)
        if start.startswith(_ZIP):
            with open_zip(path) as archive:
                return CONFIG in archive.namelist()
    except _DAMAGE:
        return False
    return start.startswith(_HDF5) or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read(path: Path) -> Contents:
    """Returns the content of a Keras file.

    Raises:
        ConfigError: The file cannot be read, is too large or damaged, or is not a Keras file.
    """
    content = _read_whole(path)
    with reading():
        if content.startswith(_ZIP):
            with open_zip(content) as archive:
                text = _unpack(archive, CONFIG, _MAX_CONFIG_BYTES)
            return Contents(_decode(text), content)
        if content.startswith(_HDF5):
            with _open(content) as file:
                description = _legacy_description(file)
                if description is None and not _is_legacy(file):
                    _container(file)
                return Contents(description, content)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return Contents(_decode(content), b"")
    raise ConfigError("is not a Keras file; give a .keras, .h5 or .json that Keras wrote")


@contextmanager
def reading() -> Iterator[None]:
    """Converts any exception that a damaged file raises to a ConfigError."""
    try:
        yield
    except DataError as err:
        raise ConfigError(_short(str(err))) from err
    except _DAMAGE as err:
        raise ConfigError(
            f"is damaged or not a Keras file ({_short(one_line(err))}); save it again"
        ) from err


def load_places(content: bytes, places: Places) -> list[Tensors]:
    """Returns the tensors of each layer that has weights.

    Args:
        content: `Contents.weights_file`.
        places: The layers.

    Raises:
        ConfigError: The file is damaged, or its layers or shapes differ from the required ones. The
            message shows both.
    """
    num_params = sum(math.prod(shape) for each in places.shapes for shape in each)
    with reading():
        if content.startswith(_ZIP):
            with open_zip(content) as archive:
                content = _unpack(archive, WEIGHTS, _FIXED_BYTES + _BYTES_PER_PARAM * num_params)
        with _open(content) as file:
            if _is_legacy(file):
                return _load_legacy(file, places, len(content))
            return _load_counted(file, places.paths, places.shapes, len(content))


def _read_whole(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError("is not a file; give a file that Keras wrote")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"is larger than {MAX_FILE_BYTES:,} bytes; give a smaller model")
        return read_bounded(path, MAX_FILE_BYTES)
    except OSError as err:
        raise ConfigError(f"cannot be read: {err.strerror or err}") from err


def _open(content: bytes) -> Any:
    """Opens an HDF5 file in memory and checks its heaps, so that its texts are safe to read."""
    if not content.startswith(_HDF5):
        raise ConfigError("contains no HDF5 file with weights; save it again")
    file = h5py.File(io.BytesIO(content), "r")
    check_heaps(file, content)
    return file


def _unpack(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Returns the content of a zip's member with this name, of at most `limit` bytes."""
    members = [info for info in archive.infolist() if info.filename == name]
    if len(members) != 1:
        names = ", ".join(repr(info.filename)[:60] for info in archive.infolist()[:5]) or "nothing"
        raise ConfigError(
            f"is a zip in which {name} occurs {len(members)} times, not once (members: {names}); "
            "save the model again"
        )
    info = members[0]
    if info.compress_type not in _PLAIN_METHODS or info.flag_bits & 1:
        raise ConfigError(
            f"{name} in it is encrypted or compressed by an unusual method; save it again"
        )
    with archive.open(info) as member:
        content = member.read(limit + 1) if info.file_size <= limit else b""
    if info.file_size > limit:
        raise ConfigError(
            f"{name} in it has {info.file_size:,} bytes, but at most {limit:,} are allowed for "
            "this model; save it again"
        )
    if len(content) != info.file_size:
        raise ConfigError(
            f"{name} in it is shorter than the {info.file_size:,} bytes that the zip states; save "
            "it again"
        )
    return content


def _decode(text: bytes | str) -> Any:
    if len(text) > _MAX_CONFIG_BYTES:
        raise ConfigError(
            f"has a model description of {len(text):,} bytes, but at most {_MAX_CONFIG_BYTES:,} "
            "are allowed; give a smaller model"
        )
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else _short(one_line(err))
        raise ConfigError(f"is not valid JSON ({reason}); save the model again") from err
    if isinstance(decoded, str):  # some tools encode the description twice
        return _decode(decoded)
    return decoded


def _legacy_description(file: Any) -> Any:
    if "model_config" not in file.attrs:
        return None
    text = read_attribute(file.attrs, "model_config")
    if not isinstance(text, str):
        raise ConfigError("model_config in it is not text; save the model again")
    return _decode(text)


def _is_legacy(file: Any) -> bool:
    """Returns whether the file has the legacy format, with a group under each layer's own name."""
    return "model_weights" in file or "layer_names" in file.attrs


def _container(file: Any) -> str:
    """Returns the name of the group in which layers have numbered class names."""
    container = next((each for each in CONTAINERS if each in file), None)
    if container is None:
        names = ", ".join(sorted(map(repr, file))[:5]) or "nothing"
        raise ConfigError(
            f"contains no Keras weights, only {names[:200]}; give a file that Keras wrote"
        )
    return container


def _load_counted(
    file: Any, paths: Sequence[tuple[str, ...]], shapes: Sequence[Shapes], num_bytes: int
) -> list[Tensors]:
    """Loads tensors by numbered class names. Weights of any other layer are refused."""
    container = _container(file)
    loaded = []
    for path, required in zip(paths, shapes, strict=True):
        group = file
        for name in path:
            group = _member(_member(group, container, h5py.Group), name, h5py.Group)
        datasets = _variables(group)
        loaded.append(_load_layer("/".join(path), datasets, required, num_bytes))
    known = {path[0] for path in paths}
    for name in sorted(_member(file, container, h5py.Group)):
        if name not in known and _variables(_member(file[container], name, h5py.Group)):
            raise ConfigError(
                f"has weights of layer {name!r}, which the model does not have; its layers with "
                f"weights are {', '.join('/'.join(path) for path in paths)[:300]}"
            )
    return loaded


def _variables(group: Any) -> list[Any]:
    """Returns the datasets of a layer's tensors, in order."""
    if "vars" not in group:
        return []
    variables = _member(group, "vars", h5py.Group)
    return [
        _member(variables, str(index), h5py.Dataset) for index in range(min(len(variables), 16))
    ]


def _load_legacy(file: Any, places: Places, num_bytes: int) -> list[Tensors]:
    """Loads tensors in the order of `places.tops` or, if that is empty, in the file's order.

    The group of a layer that is a model has the trained tensors of all its layers, then the others.
    """
    root = _member(file, "model_weights", h5py.Group) if "model_weights" in file else file
    names = list(dict.fromkeys(places.tops)) or _texts(root.attrs, "layer_names", num_bytes)
    left = list(zip(places.shapes, places.num_trained, strict=True))
    loaded: list[Tensors] = []
    num_more = 0
    for name in names:
        group = _member(root, name, h5py.Group)
        datasets = [_follow(group, each) for each in _texts(group.attrs, "weight_names", num_bytes)]
        own: list[tuple[Shapes, int]] = []
        while left and sum(len(shapes) for shapes, _ in own) < len(datasets):
            own.append(left.pop(0))
        by_layer, more = _sorted_by_layer(datasets, own)
        num_more += len(more)
        for each, (required, _) in zip(by_layer, own, strict=True):
            loaded.append(_load_layer("", each, required, num_bytes))
    for required, _ in left:
        loaded.append(_load_layer("", (), required, num_bytes))
    if num_more:
        raise ConfigError(f"has {num_more} more weights than the model; give weights of this model")
    return loaded


def _sorted_by_layer(
    datasets: Sequence[Any], layers: Sequence[tuple[Shapes, int]]
) -> tuple[list[list[Any]], Sequence[Any]]:
    """Returns the datasets of each layer, fewer if some are missing, and the surplus datasets.

    Args:
        datasets: The trained tensors of all layers, layer by layer, then the others, layer by
            layer.
        layers: For each layer the shapes of its tensors, and how many of these are trained.
    """
    owners = [place for place, (_, num) in enumerate(layers) for _ in range(num)]
    owners += [place for place, (shapes, num) in enumerate(layers) for _ in shapes[num:]]
    by_layer: list[list[Any]] = [[] for _ in layers]
    for owner, dataset in zip(owners, datasets, strict=False):
        by_layer[owner].append(dataset)
    return by_layer, datasets[len(owners) :]


def _texts(attrs: Any, name: str, num_bytes: int) -> list[str]:
    """Reads a list of names from an attribute; Keras splits a long list into several attributes."""
    if name not in attrs and f"{name}0" in attrs:
        parts = [f"{name}{index}" for index in range(_MAX_NAMES) if f"{name}{index}" in attrs]
        return [each for part in parts for each in _texts(attrs, part, num_bytes)]
    attribute = attrs.get_id(name)
    count, size = math.prod(attribute.shape or ()), attribute.get_type().get_size()
    if count == 0:
        return []
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or len(attribute.shape) != 1:
        raise ConfigError(f"{name} in it is not a list of names; save the model again")
    most = num_bytes if kind.is_variable_str() else size
    if count > _MAX_NAMES or count * most > _MAX_NAME_BYTES:
        raise ConfigError(f"{name} in it lists {count:,} names; save the model again")
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in attrs[name]]
    for text in texts:
        if not text or len(text) > 1000 or not text.isprintable():
            raise ConfigError(f"{name} in it contains an invalid name; save the model again")
    return texts


def _load_layer(label: str, datasets: Sequence[Any], required: Shapes, num_bytes: int) -> Tensors:
    shapes = [_shape(dataset, num_bytes) for dataset in datasets]
    if shapes != required:
        where = f" in {label}" if label else ""
        raise ConfigError(
            f"has weights of shapes {_listed(shapes)}{where}, but the model needs "
            f"{_listed(required)}; give weights of this model"
        )
    return [_array(dataset) for dataset in datasets]


def _shape(dataset: Any, num_bytes: int) -> tuple[int, ...]:
    """Returns the shape of a dataset; refuses all but uncompressed floats in the file itself."""
    plist, kind = dataset.id.get_create_plist(), dataset.id.get_type()
    is_plain = plist.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if not is_plain or plist.get_external_count() or not isinstance(kind, h5py.h5t.TypeFloatID):
        raise ConfigError(
            f"{_name(dataset)} in it is not a plain array of floating point numbers; save the "
            "model with Keras"
        )
    shape = tuple(int(size) for size in dataset.shape or ())
    if kind.get_size() > 8 or math.prod(shape) * kind.get_size() > num_bytes:
        raise ConfigError(f"{_name(dataset)} in it is larger than the file itself; save it again")
    return shape


def _array(dataset: Any) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused
        array = np.ascontiguousarray(dataset[()], dtype=np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{_name(dataset)} in it holds NaN or infinity; give finite weights")
    return array.reshape(dataset.shape)


def _follow(group: Any, name: str) -> Any:
    """Returns the dataset at a path below a group."""
    *groups, last = name.strip("/").split("/")
    for each in groups:
        group = _member(group, each, h5py.Group)
    return _member(group, last, h5py.Dataset)


def _member(group: Any, name: str, kind: Any) -> Any:
    """Returns a member of a group. Soft and external links are refused."""
    if "/" in name or name in ("", "."):
        raise ConfigError(f"{name[:60]!r} in it is not a layer's name; save the model again")
    link = group.get(name, getlink=True) if name in group else None
    if link is not None and not isinstance(link, h5py.HardLink):
        raise ConfigError(
            f"{name[:60]!r} in it is a link, and links are never followed; save the model again"
        )
    member = group[name] if link is not None else None
    if not isinstance(member, kind):
        names = ", ".join(sorted(map(repr, group))[:8]) or "nothing"
        raise ConfigError(
            f"has no {name[:60]!r} among the model's weights, only {names[:300]}; give the weights "
            "of this model"
        )
    return member


def _short(text: str) -> str:
    """Shortens a library's message, which may repeat content of the file, and escapes it."""
    return "".join(each if each.isprintable() else "?" for each in text[:200])


def _name(dataset: Any) -> str:
    return repr(dataset.name)[:100]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"


def weights_file_bytes(
    paths: Mapping[str, Sequence[NDArray[np.float32]]], names: Mapping[str, str], name: str
) -> bytes:
    """Returns the bytes of a `.weights.h5` file of Keras 3, which is built in memory.

    Args:
        paths: The tensors of each layer in order, by the layer's numbered class name.
        names: Each layer's own name, by the same keys.
        name: The model's name.
    """
    with new_in_memory() as file:
        for path, tensors in paths.items():
            variables = file.create_group(f"{CONTAINERS[0]}/{path}/vars")
            variables.attrs["name"] = names[path]
            for index, tensor in enumerate(tensors):
                variables[str(index)] = tensor
        file.create_group("vars").attrs["name"] = name
        file.flush()
        content: bytes = file.id.get_file_image()
    return content
