"""The fingerprint that is computed while data are opened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from fedcli import datasets
from fedcli.errors import DataError
from fedcli.federation.opened_data import fingerprinting
from fedcli.settings.data_source import DataSource


def _reading() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "fedcli-fingerprint"]


def _fail_to_open() -> None:
    with fingerprinting(DataSource(), None):
        assert _reading()
        raise DataError("no split")


def test_nothing_reads_on_once_opening_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that reads when Python exits may keep h5py's lock, and the exit waits for it."""

    def slow(source: DataSource, *, is_cancelled: Callable[[], bool]) -> str:
        while not is_cancelled():
            time.sleep(0.001)
        time.sleep(0.1)  # simulates reading the rest of a block
        return ""

    monkeypatch.setattr(datasets, "fingerprint", slow)
    with pytest.raises(DataError, match="no split"):
        _fail_to_open()
    assert not _reading()
