"""Files of weights: one array for each of `ParamLayout.tensors`, in order and in Keras's shape.

Arrays of `.npz` archives are read by position; their names do not matter. Files are not trusted: no
pickle is read, and no array is unpacked that is larger than the model needs.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedcli.errors import ConfigError
from fedcli.models import torch_files
from fedcli.models.keras import formats
from fedcli.models.layout import ParamLayout
from fedcli.outputs import write_output
from fedcli.settings.vocabulary import WEIGHTS_FORMATS
from fedcli.zips import MAX_HEADER_BYTES, open_zip, read_npy_header

# The exceptions that a damaged archive raises.
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError)
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def format_of(path: Path, given: str | None = None) -> str:
    """Returns the format of a file of weights, a key of `WEIGHTS_FORMATS`.

    Args:
        path: The file.
        given: The format; None: the one that the file's suffix names.

    Raises:
        ConfigError: The suffix is none of `WEIGHTS_FORMATS`, or PyTorch is needed and missing.
    """
    name = given or next(
        (key for key, ends in WEIGHTS_FORMATS.items() if path.name.endswith(ends)), None
    )
    if name is None:
        suffixes = ", ".join(each for ends in WEIGHTS_FORMATS.values() for each in ends)
        raise ConfigError(
            f"{path}: files of weights end in {suffixes}; choose such a name, or give --format"
        )
    if name == "torch":
        torch_files.require()
    return name


def save(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    layout: ParamLayout,
    file_format: str | None = None,
) -> dict[str, tuple[int, ...]]:
    """Writes weights, or the whole model.

    Args:
        path: The file; an existing regular file is replaced.
        tensors: One array for each tensor of the layout, in order.
        layout: The model's layout.
        file_format: A key of `WEIGHTS_FORMATS`; None: the one that the file's suffix names.

    Returns:
        The shape of each tensor as it was written, by name and in order.

    Raises:
        ConfigError: See `format_of`; or the format is Keras's or PyTorch's, and the model is not
            made of layers that Keras or PyTorch has.
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    chosen = format_of(path, file_format)
    if chosen == "npz":
        save_npz(path, tensors)
    elif not layout.specs:
        raise ConfigError(
            f"{path}: the model is not made of fedcli's layers; export its weights as .npz"
        )
    elif chosen == "torch":
        return torch_files.save(path, list(tensors.values()), layout)
    else:
        write = formats.write_keras if chosen == "keras" else formats.write_weights
        write(path, layout, layout.join(list(tensors.values())))
    return {name: tensor.shape for name, tensor in tensors.items()}


def load(path: Path, layout: ParamLayout) -> list[NDArray[np.float32]]:
    """Returns the weights in an `.npz` or a Keras file; the content decides which it is.

    Raises:
        ConfigError: The file cannot be read or has another format; or its arrays do not have the
            layout's shapes (the message shows both lists), are not floating point, or not finite.
    """
    if formats.is_keras(path):
        return formats.read_weights(path, layout)
    return load_npz(path, [tensor.shape for tensor in layout.tensors])


def save_npz(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes one array per tensor, in the order given; replaces an existing regular file.

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    buffer = io.BytesIO()
    # np.savez is not used: one of its parameters may have the same name as a tensor.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, tensor in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.asarray(tensor), allow_pickle=False)
    write_output(path, buffer.getvalue())


def load_npz(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Returns the arrays of an archive, which must have these shapes in this order.

    Raises:
        ConfigError: The file cannot be read or is not an `.npz`; or the arrays have other shapes
            (the message shows both lists), are not floating point, or not finite.
    """
    try:
        with open_zip(path) as archive:
            arrays = [_read_array(archive, info, path) for info in _members(archive, shapes, path)]
    except OSError as err:
        reason = err.strerror or err
        raise ConfigError(f"cannot read the weights {path}: {reason}; check the path") from err
    except _DAMAGE as err:
        raise ConfigError(
            f"{path} is damaged, or is not an .npz archive of arrays ({err}); write it with "
            "np.savez"
        ) from err
    for position, array in enumerate(arrays):
        if not np.isfinite(array).all():
            raise ConfigError(
                f"{path}: array {position} holds NaN or infinity; give finite weights"
            )
    return arrays


def _members(
    archive: zipfile.ZipFile, shapes: Sequence[tuple[int, ...]], path: Path
) -> list[zipfile.ZipInfo]:
    """The archive's members, after their headers have been checked; nothing else is unpacked."""
    members = archive.infolist()
    few = members[: len(shapes) + 1]
    found = [_read_header(archive, info, path)[0] for info in few]
    if found != [tuple(shape) for shape in shapes]:
        more = ", ..." if len(members) > len(few) else ""
        raise ConfigError(
            f"{path} has arrays of shapes {_listed(found)}{more}, but the model needs "
            f"{_listed(shapes)}; give one array per tensor in layer order, kernel before bias, and "
            "moving statistics of batch normalization after all others"
        )
    return members


def _read_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The shape, Fortran order and type of one array, and the offset of its data."""
    if info.compress_type not in _PLAIN_METHODS:
        raise ConfigError(
            f"{path}: {info.filename} is compressed by an unusual method; write the file with "
            "np.savez"
        )
    with archive.open(info) as member:
        content = member.read(MAX_HEADER_BYTES)
    try:
        shape, is_fortran, dtype, start = read_npy_header(content)
    except ValueError as err:
        raise ConfigError(f"{path}: {info.filename}: {err}; write it with np.savez") from err
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ConfigError(f"{path}: {info.filename} holds {dtype}; give float32 arrays")
    return shape, is_fortran, dtype, start


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NDArray[np.float32]:
    shape, is_fortran, dtype, start = _read_header(archive, info, path)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with archive.open(info) as member:
        content = member.read(start + num_bytes + 1)
    if len(content) != start + num_bytes or info.file_size != len(content):
        raise ConfigError(
            f"{path}: {info.filename} does not hold the array that its header declares; write the "
            "file with np.savez"
        )
    flat = np.frombuffer(content, dtype, offset=start)
    array = flat.reshape(shape, order="F" if is_fortran else "C")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused
        return np.ascontiguousarray(array, dtype=np.float32)


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
