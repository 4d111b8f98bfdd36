"""The connection to a cluster, with a slow stand-in for Ray, which need not be installed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from fedcli.cluster import connection
from fedcli.cluster.connection import LOCAL, Connection, await_end
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import ConfigError


class SlowRay:
    """Has the functions of Ray that a connection uses; `init` and `shutdown` wait for the test."""

    def __init__(self) -> None:
        self.may_start, self.may_end = threading.Event(), threading.Event()
        self.num_started = 0
        self._is_initialized = False

    def is_initialized(self) -> bool:
        return self._is_initialized

    def init(self, **options: Any) -> None:
        assert not self._is_initialized
        self._is_initialized = True
        self.num_started += 1
        self.folder = Path(options["_temp_dir"])
        self.thread = threading.get_ident()
        assert self.may_start.wait(60)

    def shutdown(self) -> None:
        # Ray's own shutdown takes 5 s if another thread than that of init calls it.
        assert threading.get_ident() == self.thread
        assert self.may_end.wait(60)
        self._is_initialized = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SlowRay:
    slow = SlowRay()
    monkeypatch.setattr(connection, "_import_ray", lambda: slow)
    return slow


def test_closing_does_not_wait_for_ray_and_the_next_connection_does(ray: SlowRay) -> None:
    ray.may_start.set()
    first = Connection(LOCAL)
    folder = ray.folder
    first.close()
    assert ray.is_initialized()
    assert folder.is_dir()
    ray.may_end.set()
    second = Connection(LOCAL)  # starts a new cluster, because the first one is about to end
    assert ray.num_started == 2
    assert not folder.exists()
    second.close()
    await_end()
    assert not ray.is_initialized()
    assert not ray.folder.exists()


def test_the_wait_for_a_cluster_can_be_cancelled(ray: SlowRay) -> None:
    cancel = CancelFlag()
    cancel.set()
    with pytest.raises(Cancelled):
        Connection(LOCAL, cancel)
    for event in (ray.may_start, ray.may_end):
        event.set()
    await_end()
    assert (ray.num_started, ray.is_initialized()) == (1, False)
    assert not ray.folder.exists()


def test_an_error_of_ray_is_raised_where_the_connection_is_opened(
    ray: SlowRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ConfigError, match="at the address local: nobody answers; start one"):
        Connection(LOCAL)
    await_end()


def test_an_error_while_the_cluster_ends_is_one_line(
    ray: SlowRay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("Traceback of Ray\n  line 1\nthe store is gone\n")

    monkeypatch.setattr(ray, "shutdown", fail)
    ray.may_start.set()
    Connection(LOCAL).close()
    await_end()  # an exception in the thread would make pytest fail
    (record,) = caplog.records
    assert record.getMessage() == (
        "could not end the connection to the Ray cluster at the address local: the store is gone; "
        "saved results are complete"
    )
    assert record.exc_info is None
    assert not ray.folder.exists()
