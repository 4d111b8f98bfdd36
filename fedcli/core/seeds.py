"""Keys of random streams: (seed, client, round, purpose, occurrence); and the table of purposes.

The core draws the streams with a counter-based generator. They do not depend on the order of draws,
on the number of threads, or on whether a run was resumed.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import NamedTuple

from fedcli.digest import blake2b


@unique
class Purpose(IntEnum):
    """The purposes of streams. Results depend on these numbers: never use one for another purpose.

    The core itself draws the synthetic datasets; csrc/random/drawing.h repeats their purposes.
    """

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
    ATTACKERS = 12
    ATTACK_NOISE = 13
    POISONED_EXAMPLES = 14
    DP_NOISE = 15
    SYNTHETIC_STYLE = 16
    SYNTHETIC_PICTURE = 17
    SYNTHETIC_SIZE = 18
    SYNTHETIC_LABELS = 19
    BUCKETS = 20
    MASKS = 21
    ROOT_DATA = 22
    AUDIT = 23
    SEARCH = 24
    SIGN_FLIP = 25
    VALIDATION = 26
    COORDINATES = 27
    DP_COUNT_NOISE = 28
    QUANTISATION = 29
    ROTATION = 30
    SKETCH_HASHES = 31
    SECURE_ROUNDING = 32
    MIXUP = 33


class StreamKey(NamedTuple):
    """The key of one stream, in the core's order; every field is an unsigned 64-bit integer.

    Attributes:
        seed: The run's seed; for generated data, the seed of the data.
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
    """Returns a client's 64-bit key: BLAKE2b of its id in UTF-8, read as little-endian."""
    return int.from_bytes(blake2b(client_id.encode(), digest_size=8).digest(), "little")


def stream_key(
    seed: int, purpose: Purpose, *, round_num: int = 0, client: int = 0, occurrence: int = 0
) -> StreamKey:
    """Returns the key of a stream; `client` is a `client_key`, or 0 for none."""
    return StreamKey(seed, client, round_num, int(purpose), occurrence)
