"""Ends the process of a command."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

_USER_CODE = "fedcli.settings.own.user_code"  # imported before a user's code runs


def end_process(code: int) -> NoReturn:
    """Ends the process with an exit code, without destroying Python's objects one by one.

    Destroying them takes a tenth of a short run. Functions registered with `atexit` are called, and
    the streams are flushed. The process ends as usual if a user's code has run, because its
    objects, such as open files, may have to be destroyed; or if other threads still run.
    """
    if _USER_CODE in sys.modules or threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # the stream is closed, or its reader has ended
        sys.exit(code)
    os._exit(code)
