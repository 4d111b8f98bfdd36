"""Locks on files: one holder at a time, with and without waiting, and no file is left behind."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from fedcli.core.native import Cancelled
from fedcli.locks import ReplacedError, is_locked, lock_now, locked
from tests.kit.waiting import PATIENCE_SECONDS, wait_until


def test_lock_is_waited_for_and_can_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "data.bin.lock"
    notes: list[str] = []
    order: list[str] = []

    def wait() -> None:
        with locked(path, on_note=notes.append):
            order.append("second")

    def give_up(done: int, total: int | None) -> None:
        raise Cancelled

    with locked(path):
        with pytest.raises(Cancelled), locked(path, give_up):
            pass
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: notes, thread)
        order.append("first")
    thread.join(PATIENCE_SECONDS)
    assert order == ["first", "second"]
    assert notes == ["another process has locked data.bin; waiting for it to end"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_held_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(BlockingIOError):
        lock_now(path)
    os.close(lock_now(path))


def test_who_asks_for_a_lock_does_not_disturb_who_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    path.touch()
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)  # as `is_locked` does, but it holds the lock longer
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3000:
            os.close(asking)

    monkeypatch.setattr(time, "sleep", pause)
    taken = lock_now(path)
    assert sum(pauses) == pytest.approx(3.0)  # as long as the other process held the lock
    assert is_locked(path)
    os.close(taken)
    assert not is_locked(path)


def test_a_file_replaced_while_it_is_being_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    lock = fcntl.flock

    def replace_and_lock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        path.unlink()
        path.write_text("")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    num_open = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(ReplacedError):
        lock_now(path)
    assert len(list(Path("/dev/fd").iterdir())) == num_open
    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    with locked(path):  # tries again
        assert path.exists()
    assert not path.exists()
