"""Reads HDF5 files that nobody vouches for: nothing outside the file is followed or opened."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedcli.errors import DataError

STORE_FORMAT = "fedcli-store"  # the root attribute `format` of a fedcli store

# Deflate packs 1032 to 1 at most; a file that claims more holds no images.
_MAX_PACKING = 2000
_SMALL_BYTES = 1 << 20
_METADATA_CACHE_BYTES = 1 << 16
_PLAIN_TYPES = (
    *(h5py.h5t.TypeStringID, h5py.h5t.TypeIntegerID),
    *(h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID),
)


def open_file(path: Path) -> Any:
    """Returns an open, read-only `h5py.File`.

    Raises:
        DataError: It cannot be opened: unreadable, truncated or damaged.
    """
    try:
        # No chunk cache: every dataset is read once, whole.
        file = h5py.File(path, "r", rdcc_nbytes=0)
        _bound_metadata_cache(file)
        return file  # noqa: TRY300 - what either call raises is told alike
    except PermissionError as err:
        raise _no_permission(path) from err
    except (OSError, RuntimeError, ValueError) as err:
        lengths = re.search(r"truncated file: eof = (\d+), .*stored_eof = (\d+)", str(err))
        if lengths is not None:
            held, whole = map(int, lengths.groups())
            raise DataError(
                f"{path}: truncated HDF5 file, {held:,} bytes of {whole:,}; fetch or write it again"
            ) from err
        reason = re.sub(r"^Unable to synchronously open file \((.*)\)$", r"\1", one_line(err))
        raise DataError(f"{path}: damaged HDF5 file ({reason}); fetch or write it again") from err


def _no_permission(path: Path) -> DataError:
    return DataError(f"{path}: no permission to read it; change its mode or copy it")


def _bound_metadata_cache(file: Any) -> None:
    """Keeps HDF5 from remembering 40 KB of each client ever read, 32 MB in all by default."""
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = _METADATA_CACHE_BYTES
    file.id.set_mdc_config(config)


def is_hdf5(path: Path) -> bool:
    """Returns whether a file has HDF5's signature; what follows may still be damaged.

    Raises:
        DataError: There is no permission to read it.
    """
    try:
        path.open("rb").close()  # h5py says no more of such a file than that it is none
    except PermissionError as err:
        raise _no_permission(path) from err
    return bool(h5py.is_hdf5(path))


def is_store(path: Path) -> bool:
    """Returns whether an HDF5 file calls itself a fedcli store, of whatever version.

    Raises:
        DataError: The file cannot be opened.
    """
    with open_file(path) as file, reading(str(path)):
        return has_store_format(file.attrs)


def has_store_format(attrs: Any) -> bool:
    """Returns whether the root attributes are those of a fedcli store."""
    name = read_attribute(attrs, "format") if "format" in attrs else None
    return isinstance(name, str) and name == STORE_FORMAT


def read_attribute(attrs: Any, name: str) -> object:
    """Returns an attribute that is one number or one text; None for any other.

    HDF5 is not asked for others: of a type that was garbled it reads wherever that points, and the
    process dies.
    """
    attribute = attrs.get_id(name)
    is_plain = isinstance(attribute.get_type(), _PLAIN_TYPES) and attribute.shape == ()
    value = attrs[name] if is_plain else None
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever h5py raises on damage into one DataError that starts with `where`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as err:
        raise DataError(
            f"{where}: damaged ({one_line(err)}); fetch or write the file again"
        ) from err


def open_group(parent: Any, name: bytes, where: str) -> Any:
    """Returns the `h5g.GroupID` of a group that lies in the file itself.

    Raises:
        DataError: It is missing, a link, or not a group.
    """
    opened = _open_object(parent, name, where)
    if not isinstance(opened, h5py.h5g.GroupID):
        raise DataError(f"{where}: {_shown(name)} is not a group; this is no federated data set")
    return opened


def open_dataset(parent: Any, name: bytes, where: str) -> Any:
    """Returns the `h5d.DatasetID` of a dataset whose data lie in the file itself.

    Raises:
        DataError: It is missing, a link, not a dataset, its data lie in other files, or it claims
            far more than the file holds.
    """
    opened = _open_object(parent, name, where)
    if not isinstance(opened, h5py.h5d.DatasetID):
        raise DataError(f"{where}: {_shown(name)} is not a dataset; this is no federated data set")
    plist = opened.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(
            f"{where}: the data of {_shown(name)} lie in other files, which are never followed; "
            "store them in this one"
        )
    claimed = math.prod(opened.shape or ()) * opened.get_type().get_size()
    if claimed > _SMALL_BYTES and claimed > _MAX_PACKING * opened.get_storage_size():
        raise DataError(
            f"{where}: {_shown(name)} claims {claimed} bytes but the file holds "
            f"{opened.get_storage_size()}; it was not written whole"
        )
    return opened


def has_link(group: Any, name: bytes) -> bool:
    """Returns whether a group has a link of that name, without following it."""
    return bool(group.links.exists(name))


def link_names(group: Any, where: str) -> list[str]:
    """Returns the names in a group, sorted.

    Raises:
        DataError: A name is not UTF-8.
    """
    try:
        return [name.decode() for name in sorted(group)]
    except UnicodeDecodeError as err:
        raise DataError(f"{where}: a name in it is not UTF-8 ({err.object!r}); rename it") from err


def one_line(err: BaseException) -> str:
    """Returns the message of an exception on one line."""
    return " ".join(str(err).split()) or type(err).__name__


def _open_object(parent: Any, name: bytes, where: str) -> Any:
    if not has_link(parent, name):
        present = ", ".join(map(repr, link_names(parent, where)[:10])) or "nothing"
        raise DataError(f"{where}: has no {_shown(name)}; it holds {present}")
    if parent.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise DataError(
            f"{where}: {_shown(name)} is a link, and links are never followed; "
            "store the data themselves"
        )
    return h5py.h5o.open(parent, name)


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))
