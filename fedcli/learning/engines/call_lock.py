"""A lock by which an engine runs one call at a time. It is released in a forked process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet

from fedcli.errors import ConfigError

T = TypeVar("T")


class CallLock:
    """A lock that calls of an engine hold one after the other.

    A call from inside the running call would wait for ever, so it is rejected.
    """

    def __init__(self, start_afresh: Callable[[], None] | None = None) -> None:
        """Makes a lock that is free.

        Args:
            start_afresh: Called in a forked process, in which no call is running.
        """
        self._start_afresh = start_afresh
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # The threads of the running call: the caller's, and those that run a part of it.
        self._threads: set[int] = set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Waits until no call is running, then holds the lock.

        Raises:
            ConfigError: This thread belongs to the running call.
        """
        caller, threads = self._caller(), self._threads
        with self._lock:
            threads.add(caller)
            try:
                yield
            finally:
                threads.discard(caller)

    def run(self, work: Callable[[], T]) -> T:
        """Holds the lock while `work` runs, and returns the result of `work`.

        `hold` would do the same, but its generator adds about 1 microsecond to a call that takes
        about 30. An interrupt never leaves the lock held, because `with` acquires and releases it
        itself.
        """
        caller, threads = self._caller(), self._threads
        with self._lock:
            threads.add(caller)
            try:
                return work()
            finally:
                threads.discard(caller)

    def _caller(self) -> int:
        """Returns this thread; raises ConfigError if it belongs to the running call."""
        thread = threading.get_ident()
        if thread in self._threads:
            raise ConfigError(
                "an engine was called from inside one of its own calls (by the iterable of "
                "clients, a model's code, or a signal handler); give the inner process an engine "
                "of its own"
            )
        return thread

    def run_part(self, work: Callable[[], T]) -> T:
        """Runs a part of the running call on another thread, which then belongs to the call."""
        thread = threading.get_ident()
        self._threads.add(thread)
        try:
            return work()
        finally:
            self._threads.discard(thread)

    def reset_in_fork(self) -> None:
        """Frees the lock in a process just forked, where this is the only thread."""
        self._reset()
        if self._start_afresh is not None:
            self._start_afresh()


_ALL: WeakSet[CallLock] = WeakSet()


def _reset_all_in_fork() -> None:
    for lock in list(_ALL):
        lock.reset_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all_in_fork)
