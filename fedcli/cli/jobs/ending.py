"""Ends the process of a command."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

_USER_CODE = "fedcli.settings.own.user_code"  # imported before a user's code runs


def end_process(code: int) -> NoReturn:
    """Ends the process with an exit code, and leaves its memory to the operating system.

    Python would first destroy each object of each module, which takes a tenth of a short run. What
    is registered with `atexit` runs, and the streams are flushed. Where objects may do more when
    they are destroyed, such as the open files of a user's code, or while other threads run, the
    process ends as usual.
    """
    if _USER_CODE in sys.modules or threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # closed, or nobody reads it
        sys.exit(code)
    os._exit(code)
