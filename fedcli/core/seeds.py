"""The only place that names random streams: (seed, client, round, purpose, occurrence) is a key.

The streams themselves are drawn by the core's counter-based generator, so no order of drawing, no
number of threads and no resumption changes them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from fedcli.digest import blake2b


class Purpose(IntEnum):
    """What a stream is drawn for. Values are part of every result: never reuse one."""

    SHUFFLE = 1
    COHORT = 2
    EVAL_CLIENTS = 3
    PARTITION = 4
    HOLD_OUT = 5
    LABEL_NOISE = 6
    FEATURE_NOISE = 7
    INITIAL_WEIGHTS = 8
    DROPOUT = 9
    CLIENT_DROPOUT = 10
    CLIENT_SPEED = 11


class StreamKey(NamedTuple):
    """The name of one stream, in the order the core takes it; every field is an unsigned 64-bit.

    Attributes:
        seed: The run's seed (for generated data, the data's own).
        client: `client_key` of the client, 0 for none.
        round_num: Rounds completed when the stream is drawn.
        purpose: A `Purpose`.
        occurrence: Which copy of the client in its cohort, 0 for the first.
    """

    seed: int
    client: int
    round_num: int
    purpose: int
    occurrence: int


def client_key(client_id: str) -> int:
    """Returns the 64-bit name of a client: BLAKE2b of its id in UTF-8, read little-endian."""
    return int.from_bytes(blake2b(client_id.encode(), digest_size=8).digest(), "little")


def stream_key(
    seed: int, purpose: Purpose, *, round_num: int = 0, client: int = 0, occurrence: int = 0
) -> StreamKey:
    """Returns the key of a stream; `client` is a `client_key`, or 0 for none."""
    return StreamKey(seed, client, round_num, int(purpose), occurrence)
