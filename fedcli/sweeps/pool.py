"""A pool of processes that train runs. Each process trains many runs, one by one.

Processes are kept because starting one takes as long as a short run. If a process dies, for example
because there is too little memory, an event says so, and another process replaces it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from fedcli.core.machine import num_processors
from fedcli.dataclass import dataclass

# NumPy's BLAS gets one thread: it is hardly used, and its threads would compete with the runs.
_PROGRAM = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from fedcli.sweeps.trainer import main
main()
"""
_STOP_SECONDS = 30.0  # the time for saving; processes that take longer are killed
_POLL_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class Event:
    """A message of a process about its task.

    Attributes:
        task: The number of the task.
        message: See `trainer`; `{"ended": "died", "error": ...}` if the process has ended.
    """

    task: int
    message: Mapping[str, Any]


class _Process:
    """One process. Its `task` is the number of the task that it trains, or None if it is idle."""

    def __init__(self, kept_open: Sequence[int]) -> None:
        # The new process inherits the blocked SIGINT. Otherwise Ctrl-C could end it before `main`
        # ignores SIGINT.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=tuple(kept_open),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.task: int | None = None
        self.num_threads = 1  # threads of its task
        self._rest = b""

    @property
    def out(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # the process has died, which `read` will report
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """Returns the messages that have arrived; None if the process has ended."""
        chunk = os.read(self.out.fileno(), 1 << 16)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def why_ended(self) -> str:
        code = self.popen.wait()
        if code < 0:
            return f"its process was ended by the signal {signal.Signals(-code).name}"
        return f"its process ended with code {code}"

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


class Pool:
    """Processes that train. As a context manager it ends them.

    Attributes:
        size: The largest number of threads at a time. Each process has at least one.
        max_threads: The largest number of threads of one run.
    """

    def __init__(self, size: int, kept_open: Sequence[int] = ()) -> None:
        """Starts no process yet.

        Args:
            size: The largest number of threads at a time, and therefore also of processes.
            kept_open: Descriptors that the processes inherit. If this process is killed, locks on
                these descriptors are held until the last process of the pool has ended.
        """
        self.size = size
        self.max_threads = num_processors()
        self._kept_open = kept_open
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()

    @property
    def num_free(self) -> int:
        """Number of further threads that tasks can have now."""
        busy = (each for each in self._processes if each.task is not None)
        return self.size - sum(each.num_threads for each in busy)

    def submit(self, number: int, task: Mapping[str, Any]) -> None:
        """Gives a task, with its number of `threads`, to an idle process, or to a new one."""
        idle = next((each for each in self._processes if each.task is None), None)
        if idle is None:
            idle = _Process(self._kept_open)
            self._processes.append(idle)
            self._selector.register(idle.out, selectors.EVENT_READ, idle)
        idle.task = number
        idle.num_threads = task["threads"]
        idle.send(task)

    def wait(self, seconds: float) -> list[Event]:
        """Returns the messages that arrive within `seconds`, as soon as there are any."""
        events = []
        for key, _ in self._selector.select(seconds):
            events += self._events_of(key.data)
        return events

    def stop(self) -> None:
        """Makes all runs save and stop; waits for them for at most half a minute."""
        for each in self._processes:
            if each.task is not None:
                each.send({"stop": True})
        end = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < end and self.num_free < self.size:
            self.wait(_POLL_SECONDS)

    def _events_of(self, process: _Process) -> list[Event]:
        task = process.task
        messages = process.read()
        if messages is None:
            self._selector.unregister(process.out)
            self._processes.remove(process)
            messages = [] if task is None else [{"ended": "died", "error": process.why_ended()}]
            process.end()
        if any("ended" in message for message in messages):
            process.task = None
        return [] if task is None else [Event(task, message) for message in messages]

    def __enter__(self) -> Pool:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends all processes. A run can be killed at any time."""
        for each in self._processes:
            each.end()
        self._processes.clear()
        self._selector.close()
