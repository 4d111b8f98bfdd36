"""Writes TensorBoard's event files with tensorboardX, an extra that is imported on use.

Each series has its own folder, so that TensorBoard draws all of them in one plot: `train` has the
training metrics, `eval/SPLIT` has those of the evaluations of a split. Scalars have the names of
TFF's tutorial: loss, sparse_categorical_accuracy, num_examples, num_batches. For a private run,
`train` also has privacy/epsilon, privacy/epsilon_rdp, privacy/delta and privacy/clip_norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError, RunError, why_not_written
from fedcli.files import make_folders

_NUM_BINS = 64
_PRIVACY = ("epsilon", "epsilon_rdp", "delta", "clip_norm")


def require() -> None:
    """Checks, before any work, that event files can be written.

    Raises:
        ConfigError: tensorboardX is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as err:
        raise ConfigError(
            f"--tensorboard needs tensorboardX ({err}); run pip install 'fedcli[tensorboard]'"
        ) from err


class EventFiles:
    """The event files of one process. They replace earlier processes' events of the same rounds."""

    def __init__(self, folder: Path, round_num: int, *, has_histograms: bool) -> None:
        """Opens nothing yet.

        Args:
            folder: The folder of all series.
            round_num: Number of completed rounds. TensorBoard discards events of later rounds.
            has_histograms: Whether to write histograms of weights.
        """
        self.has_histograms = has_histograms
        self._folder = folder
        self._round_num = round_num
        self._writers: dict[str, Any] = {}

    def add(self, line: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Writes one line of metrics.jsonl, and histograms of the tensors by name.

        Raises:
            RunError: A file cannot be written.
        """
        from tensorboardX import summary

        round_num = line["round"]
        train = line.get("client_work", {}).get("train")
        values = [] if train is None else _scalars(train)
        privacy = line.get("aggregator", {})
        values += _scalars({f"privacy/{name}": privacy.get(name) for name in _PRIVACY})
        for name, tensor in tensors.items():
            if np.isfinite(tensor).all():
                values += summary.histogram(f"weights/{name}", tensor.ravel(), _NUM_BINS).value
        self._write("train", round_num, values)
        for split, group in line.get("evaluation", {}).items():
            self._write(f"eval/{split}", round_num, _scalars(group))

    def flush(self) -> None:
        """Writes out the buffered events. Raises RunError."""
        with self._writing():
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Flushes and closes. Raises RunError."""
        with self._writing():
            for writer in self._writers.values():
                writer.close()
        self._writers.clear()

    def _write(self, series: str, round_num: int, values: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if not values:
            return
        with self._writing():
            if series not in self._writers:
                self._writers[series] = self._open(series)
            event = Event(step=round_num, wall_time=_now(), summary=Summary(value=values))
            self._writers[series].write_event(event)

    def _open(self, series: str) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._folder / series
        make_folders(folder)
        # tensorboardX names files by second and host. The round is added to the name, because a run
        # may be resumed within the same second.
        writer = EventsWriter(str(folder / "events"), f".{self._round_num:06d}")
        if self._round_num:
            first = self._round_num + 1
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(step=first, wall_time=_now(), session_log=start))
        return writer

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as err:
            raise RunError(f"cannot write {self._folder}: {why_not_written(err)}") from err


def _scalars(group: Mapping[str, Any]) -> list[Any]:
    from tensorboardX.proto.summary_pb2 import Summary

    return [
        Summary.Value(tag=name, simple_value=float(value))
        for name, value in group.items()
        if value is not None and np.isfinite(value)
    ]


def _now() -> float:
    from time import time

    return time()
