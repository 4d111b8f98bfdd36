"""BLAKE2b without the rest of hashlib: hashlib loads OpenSSL, which takes 2.5 % of a short run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b as blake2b
else:
    try:
        from _blake2 import blake2b as blake2b  # in CPython hashlib.blake2b is this class
    except ImportError:
        from hashlib import blake2b as blake2b
