"""Disables garbage collection while a command's modules are imported.

Imports create many objects and hardly any garbage. While numpy, h5py and the command are imported,
Python would scan the same objects 80 times, which takes 5 % of a short run.
"""

from __future__ import annotations

import gc

_NEVER = 1 << 30  # a threshold, in objects, that is never reached


def put_off_collection() -> None:
    """Stops garbage collection until `begin_collection` is called."""
    gc.set_threshold(_NEVER, *gc.get_threshold()[1:])


def begin_collection() -> None:
    """Starts garbage collection and excludes all existing objects. A second call does nothing."""
    if gc.get_threshold()[0] == _NEVER:
        gc.freeze()
        gc.set_threshold(700, *gc.get_threshold()[1:])  # the default of CPython up to 3.12
