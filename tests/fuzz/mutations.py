"""Random changes of bytes: flips, extreme numbers, cuts, splices, tokens. The seed decides them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
_TOKENS = (
    *(
        b"0",
        b"-1",
        b"1e400",
        b"NaN",
        b"null",
        b"9" * 400,
        b"1" * 5000,
        b"true",
        b'""',
        b"[]",
        b"{}",
    ),
    *(
        b"[" * 3000,
        b'"\\ud800"',
        b'"\\u0000"',
        b"\xff\xfe",
        b"\x1b[31m",
        b"=1+1",
        b"../../x",
        b"\n",
    ),
)
_WORD = re.compile(rb"[-+\w.]+|\"[^\"\n]*\"")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Returns the content after one to four changes, which may also change its length."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_CHANGES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    """Returns a position; half of them are in the first 512 bytes, where formats have headers."""
    most = len(content) if rng.random() < 0.5 else min(len(content), 512)
    return rng.randrange(most) if most else 0


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        if changed:
            changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_number(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    at = _place(content, rng)
    number = rng.choice(_EDGES) % (1 << 8 * size)
    return (
        content[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]
    )


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _drop(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 4, 64, 1024)) :]


def _splice(content: bytes, rng: random.Random) -> bytes:
    source, at, size = _place(content, rng), _place(content, rng), rng.choice((1, 8, 64, 4096))
    rest = at + (size if rng.random() < 0.5 else 0)
    return content[:at] + content[source : source + size] + content[rest:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((1, 16, 256))
    return (
        content[:at] + content[at : at + size] * rng.choice((2, 100, 5000 // size)) + content[at:]
    )


def _token(content: bytes, rng: random.Random) -> bytes:
    words = list(_WORD.finditer(content[: 1 << 16]))
    if not words:
        return _flip(content, rng)
    word = rng.choice(words)
    return content[: word.start()] + rng.choice(_TOKENS) + content[word.end() :]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _set_number, _set_number, _cut, _drop, _splice, _repeat, _token, _token),
)
