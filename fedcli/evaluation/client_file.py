"""Writes the results of an evaluation by client to a file: CSV, or columns in HDF5."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli.csv_text import CsvWriter
from fedcli.errors import ConfigError
from fedcli.evaluation.spread import client_means
from fedcli.outputs import write_output

FORMAT, VERSION = "fedcli-per-client", 1
ENDINGS = (".csv", ".h5")


def check_name(path: Path) -> None:
    """Checks that a file name has the suffix of one of the formats. Raises ConfigError."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--per-client {path}: choose a name that ends in one of {', '.join(ENDINGS)}"
        )


def write(
    path: Path,
    client_ids: Sequence[str],
    stats: NDArray[Any],
    *,
    is_seen: NDArray[np.bool_] | None = None,
    fine_tuned: NDArray[Any] | None = None,
    metrics: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> None:
    """Writes one row for each client: its id, numbers of examples and batches, accuracy and loss.

    The HDF5 file (format "fedcli-per-client", version 1) has the columns `client_ids`,
    `num_examples`, `num_batches`, `sparse_categorical_accuracy` and `loss`. If it is known which
    clients took part in the training, `is_seen` is 1 or 0. After fine-tuning there are
    `fine_tuned_sparse_categorical_accuracy` and `fine_tuned_loss`. Each further metric has a column
    of its name. An undefined value, such as a mean of no example, is NaN in HDF5 and empty in CSV.
    An existing file is replaced atomically.

    Args:
        path: The file, `.csv` or `.h5`.
        client_ids: The clients.
        stats: One row for each client, as the engine returns them.
        is_seen: Whether each client took part in the training; None: not known.
        fine_tuned: As `stats`, for the clients' fine-tuned models; None: there was no fine-tuning.
        metrics: Further metrics by name, float64 [num_clients].

    Raises:
        ConfigError: The suffix is of neither format.
        RunError: The file cannot be written.
    """
    check_name(path)
    accuracies, losses = client_means(stats)
    columns: dict[str, NDArray[Any]] = {
        "num_examples": np.asarray(stats["num_examples"], np.int64),
        "num_batches": np.asarray(stats["num_batches"], np.int64),
        "sparse_categorical_accuracy": accuracies,
        "loss": losses,
    }
    if is_seen is not None:
        columns["is_seen"] = is_seen.astype(np.int8)
    if fine_tuned is not None:
        accuracies, losses = client_means(fine_tuned)
        columns["fine_tuned_sparse_categorical_accuracy"] = accuracies
        columns["fine_tuned_loss"] = losses
    columns.update(metrics)
    encode = _csv if path.suffix.lower() == ".csv" else _hdf5
    write_output(path, encode(list(client_ids), columns))


def _csv(client_ids: list[str], columns: dict[str, NDArray[Any]]) -> bytes:
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.row(["client", *columns])
    for client_id, *values in zip(
        client_ids, *(each.tolist() for each in columns.values()), strict=True
    ):
        finite = (value if value - value == 0 else "" for value in values)
        writer.row([client_id, *finite])
    return text.getvalue().encode()


def _hdf5(client_ids: list[str], columns: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file["client_ids"] = np.array(client_ids, dtype=h5py.string_dtype())
        for name, column in columns.items():
            file[name] = np.ascontiguousarray(column)
    return buffer.getvalue()
