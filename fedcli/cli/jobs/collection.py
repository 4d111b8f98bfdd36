"""Disables garbage collection during the imports of a command.

Imports make many objects and hardly any garbage. While numpy, h5py and the command are imported,
Python would scan the same objects 80 times, which takes 5 % of a short run.
"""

from __future__ import annotations

import gc

_NEVER = 1 << 30  # a threshold, in objects, that is never reached


def put_off_collection() -> None:
    """Stops garbage collection until `begin_collection`; for a process that runs one command."""
    gc.set_threshold(_NEVER, *gc.get_threshold()[1:])


def begin_collection() -> None:
    """Starts garbage collection, without the objects of the imports. A second call does nothing."""
    if gc.get_threshold()[0] == _NEVER:
        gc.freeze()
        gc.set_threshold(700, *gc.get_threshold()[1:])  # Python's own default
