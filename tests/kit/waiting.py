"""Waiting for other threads and processes, without an assumption about the speed of the machine."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 120.0  # enough for busy machines; tests usually wait for milliseconds
# The most rounds of a run, and the most epochs of a round: it trains for days unless it is stopped.
ENDLESS = 2**31 - 1


def wait_until(
    condition: Callable[[], object], worker: threading.Thread | subprocess.Popen[str] | None = None
) -> None:
    """Waits until `condition()` is true.

    Args:
        condition: It is asked again and again.
        worker: The thread or process that makes it true. If it ends before, the test fails.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        ended = worker is not None and not _is_alive(worker)  # asked before the condition
        if condition():
            return
        assert not ended, f"{worker} ended too early"
        assert time.monotonic() < deadline, f"waited for {PATIENCE_SECONDS:g} s"
        time.sleep(0.005)


def _is_alive(worker: threading.Thread | subprocess.Popen[str]) -> bool:
    if isinstance(worker, threading.Thread):
        return worker.is_alive()
    return worker.poll() is None


@contextmanager
def started(arguments: Sequence[str], **process_arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """Starts a process. It is killed at the end of the block if it still runs."""
    with subprocess.Popen(arguments, **process_arguments) as process:
        try:
            yield process
        finally:
            process.kill()
