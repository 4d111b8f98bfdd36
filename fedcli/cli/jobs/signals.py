"""Handles Ctrl-C and SIGTERM: exceptions for short work, stop requests for long jobs."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_AGAIN_SECONDS = 0.01
# Programs such as timeout and some runners pass a signal on to a process that has also received it
# from the terminal. The same signal again within this time is taken for the first.
SAME_SECONDS = 0.25


class Stopped(BaseException):
    """A signal ended the command. The text says what was saved and how to continue."""

    def __init__(self, signal_num: int, text: str = "stopped") -> None:
        """Stores the signal's number, which determines the exit code."""
        super().__init__(text)
        self.signal_num = signal_num


def exit_code_of(signal_num: int) -> int:
    """Returns the exit code that a shell reports for a process ended by this signal."""
    return 128 + signal_num


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise `Stopped` in the main thread, so that temporary files are cleaned up."""

    def stop(signal_num: int, _frame: FrameType | None) -> None:
        raise Stopped(signal_num)

    with _handling({signal.SIGTERM: stop}), _resending_dropped_signals():
        yield


@contextlib.contextmanager
def _resending_dropped_signals() -> Iterator[None]:
    """Sends a signal again if it arrived where Python drops exceptions, as in `__del__`.

    Python would print the exception and continue. Here the signal is sent again a little later.
    """
    before = sys.unraisablehook

    def send_again(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if isinstance(error, Stopped):
            arrived = error.signal_num
        elif isinstance(error, KeyboardInterrupt):
            arrived = signal.SIGINT
        else:
            before(unraisable)
            return
        # threading.Timer is not used, because its start() waits until the thread runs. On a busy
        # machine the signal could arrive meanwhile, and in this function Python drops exceptions.
        _thread.start_new_thread(_send_later, (arrived,))

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _send_later(signal_num: int) -> None:
    time.sleep(_AGAIN_SECONDS)
    os.kill(os.getpid(), signal_num)


class StopRequest:
    """The signal that asks a long job to save and end; None if none has arrived."""

    signal_num: int | None = None
    arrived_at: float = 0.0  # by time.monotonic


@contextlib.contextmanager
def stop_on_request(on_request: Callable[[], None]) -> Iterator[StopRequest]:
    """Calls `on_request` at the first SIGINT or SIGTERM. A later one ends the process at once.

    The same signal again within `SAME_SECONDS` is ignored.
    """
    request = StopRequest()

    def stop(signal_num: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if signal_num == request.signal_num and now - request.arrived_at < SAME_SECONDS:
            return
        if request.signal_num is not None:
            _leave_at_once(signal_num)
        request.signal_num, request.arrived_at = signal_num, now
        on_request()

    with _handling({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield request


def _leave_at_once(signal_num: int) -> NoReturn:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\n")  # the cursor may be on the live line
    os._exit(exit_code_of(signal_num))


@contextlib.contextmanager
def _handling(handlers: dict[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
