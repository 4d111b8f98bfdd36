"""One call of an engine at a time, whichever threads ask, and after a fork, too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from fedcli.errors import ConfigError


class Turns:
    """Makes calls wait for each other; one that would wait for itself is refused."""

    def __init__(self, start_afresh: Callable[[], None] | None = None) -> None:
        """Nobody's turn.

        Args:
            start_afresh: Called in a process that was forked, in which no call goes on.
        """
        self._start_afresh = start_afresh
        self._forget()
        _ALL.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._engaged: set[int] = set()  # threads that a call keeps: its caller's, and its own

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits for this thread's turn.

        Raises:
            ConfigError: It is in a call already.
        """
        if threading.get_ident() in self._engaged:
            raise ConfigError(
                "an engine was called by what one of its own calls reads (clients, a model's code, "
                "or a signal's handler); give the inner process an engine of its own"
            )
        with self._lock, self.engage():
            yield

    @contextmanager
    def engage(self) -> Iterator[None]:
        """Notes that the call whose turn it is keeps this thread, too."""
        thread = threading.get_ident()
        self._engaged.add(thread)
        try:
            yield
        finally:
            self._engaged.discard(thread)

    def begin_in_fork(self) -> None:
        """In a process just forked, where this is the only thread: nobody's turn."""
        self._forget()
        if self._start_afresh is not None:
            self._start_afresh()


_ALL: WeakSet[Turns] = WeakSet()


def _begin_all_in_fork() -> None:
    for turns in list(_ALL):
        turns.begin_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all_in_fork)
