"""Disables garbage collection while a command's modules are imported.

Imports create many objects and hardly any garbage. While numpy, h5py and the command are imported,
Python would scan the same objects 80 times, which takes 5 % of a short run.
"""

from __future__ import annotations

import gc

_NEVER = 1 << 30  # a threshold, in objects, that is never reached

_thresholds: list[tuple[int, int, int]] = []  # those before the collection was put off


def put_off_collection() -> None:
    """Stops garbage collection until `begin_collection` is called."""
    _thresholds.append(gc.get_threshold())
    gc.set_threshold(_NEVER, *_thresholds[-1][1:])


def begin_collection() -> None:
    """Starts garbage collection and excludes all existing objects. A second call does nothing."""
    if _thresholds:
        gc.freeze()
        gc.set_threshold(*_thresholds[0])
        _thresholds.clear()
