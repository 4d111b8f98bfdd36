"""BLAKE2b without the rest of hashlib, which loads OpenSSL, a fortieth of a short run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b as blake2b
else:
    try:
        from _blake2 import blake2b as blake2b  # what hashlib.blake2b is in CPython
    except ImportError:
        from hashlib import blake2b as blake2b
