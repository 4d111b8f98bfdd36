"""Garbage collection around the imports of a command, which make objects and next to no garbage.

While numpy, h5py and the command are imported, Python would search the same objects for garbage 80
times, a twentieth of a short run.
"""

from __future__ import annotations

import gc

_NEVER = 1 << 30  # objects; as a threshold


def put_off_collection() -> None:
    """Lets garbage wait until `begin_collection`; for a process that does one command alone."""
    gc.set_threshold(_NEVER, *gc.get_threshold()[1:])


def begin_collection() -> None:
    """Collects garbage from now on, but not among what has been imported; once is enough."""
    if gc.get_threshold()[0] == _NEVER:
        gc.freeze()
        gc.set_threshold(700, *gc.get_threshold()[1:])  # as Python starts
