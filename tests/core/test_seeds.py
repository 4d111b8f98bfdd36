from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from fedcli.core.seeds import Purpose, StreamKey, client_key, stream_key

pytestmark = pytest.mark.numeric

SOURCES = Path(__file__).parents[2] / "csrc"


def test_client_key_is_the_little_endian_blake2b_of_the_id() -> None:
    digest = hashlib.blake2b("schön_01".encode(), digest_size=8).digest()
    assert client_key("schön_01") == sum(byte << (8 * place) for place, byte in enumerate(digest))
    assert client_key("w0000") == 0x0637D8960BA3945E


def test_ids_that_look_alike_have_their_own_keys() -> None:
    ids = ["", "1", "01", "w1", "W1", "w1 "]
    assert len({client_key(client_id) for client_id in ids}) == len(ids)


def test_a_stream_key_is_in_the_core_s_order() -> None:
    key = stream_key(7, Purpose.SHUFFLE, round_num=3, client=11, occurrence=2)
    assert key == (7, 11, 3, 1, 2)
    assert key == StreamKey(seed=7, client=11, round_num=3, purpose=1, occurrence=2)


def test_purposes_never_change_their_numbers() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "SHUFFLE": 1,
        "COHORT": 2,
        "EVAL_CLIENTS": 3,
        "PARTITION": 4,
        "HOLD_OUT": 5,
        "LABEL_NOISE": 6,
        "FEATURE_NOISE": 7,
        "INITIAL_WEIGHTS": 8,
        "DROPOUT": 9,
        "CLIENT_DROPOUT": 10,
        "CLIENT_SPEED": 11,
        "ATTACKERS": 12,
        "ATTACK_NOISE": 13,
        "POISONED_EXAMPLES": 14,
        "DP_NOISE": 15,
        "SYNTHETIC_STYLE": 16,
        "SYNTHETIC_PICTURE": 17,
        "SYNTHETIC_SIZE": 18,
        "SYNTHETIC_LABELS": 19,
        "BUCKETS": 20,
        "MASKS": 21,
        "ROOT_DATA": 22,
        "AUDIT": 23,
        "SEARCH": 24,
        "SIGN_FLIP": 25,
        "VALIDATION": 26,
        "COORDINATES": 27,
        "DP_COUNT_NOISE": 28,
        "QUANTISATION": 29,
        "ROTATION": 30,
        "SKETCH_HASHES": 31,
        "SECURE_ROUNDING": 32,
        "MIXUP": 33,
    }


def test_no_two_purposes_share_a_number() -> None:
    # `Purpose.__members__` also has aliases: names whose number another name has already.
    assert len(Purpose) == len(Purpose.__members__)


def test_the_core_s_purposes_are_in_the_table() -> None:
    sources = [*SOURCES.rglob("*.c"), *SOURCES.rglob("*.h")]
    numbers = {
        name.removeprefix("FED_"): int(number)
        for name, number in re.findall(
            r"(FED_SYNTHETIC_\w+) = (\d+)", (SOURCES / "random" / "drawing.h").read_text()
        )
    }
    assert numbers == {each.name: int(each) for each in Purpose if "SYNTHETIC" in each.name}
    used = {
        name
        for source in sources
        for name in re.findall(r"\.purpose = ([^,}\s]+)", source.read_text())
    }
    assert used == {f"FED_{name}" for name in numbers}
