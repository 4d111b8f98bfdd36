"""TFF's SQLite databases and the tf.Example records in them, written by hand."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np


def varint(number: int) -> bytes:
    """Encodes a number as a varint, in 64-bit two's complement."""
    number %= 1 << 64
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def part(field: int, content: bytes) -> bytes:
    """Encodes a length-delimited field."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def feature(values: Any) -> bytes:
    """Encodes a packed Feature: of floats, of ints or of bytes, by the type of the values."""
    if isinstance(values, bytes):
        return part(1, part(1, values))
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return part(2, part(1, values.astype("<f4").tobytes()))
    return part(3, part(1, b"".join(map(varint, np.asarray(values).reshape(-1).tolist()))))


def example(**features: Any) -> bytes:
    entries = (
        part(1, part(1, name.encode()) + part(2, feature(values)))
        for name, values in features.items()
    )
    return part(1, b"".join(entries))


def emnist_rows(pixels: np.ndarray, labels: Any) -> list[bytes]:
    """Encodes examples with pixels float32 [n, ...]."""
    return [
        example(label=[label], pixels=image) for image, label in zip(pixels, labels, strict=True)
    ]


def write(
    path: Path,
    splits: dict[str, dict[str, list[bytes]]],
    *,
    counts: dict[tuple[str, str], Any] | None = None,
    sql: str = "",
) -> Path:
    """Writes a database from the blobs of each split and client."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE examples (split_name TEXT, client_id TEXT, "
            "serialized_example_proto BLOB);"
            "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER);"
        )
        for split, clients in splits.items():
            for client_id, blobs in clients.items():
                count = (counts or {}).get((split, client_id), len(blobs))
                connection.execute(
                    "INSERT INTO client_metadata VALUES (?, ?, ?)", (client_id, split, count)
                )
                connection.executemany(
                    "INSERT INTO examples VALUES (?, ?, ?)",
                    [(split, client_id, blob) for blob in blobs],
                )
        connection.executescript(sql)
    connection.close()
    return path
