"""What a run writes beside metrics.jsonl if asked: metrics.csv, TensorBoard's files, clients.h5.

They only read what training has done, so they change no byte of it. What writes a file is imported
when one is to be written.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import RunError, why_not_written
from fedcli.federation.participation import RoundReports
from fedcli.models.layout import ParamLayout
from fedcli.models.metrics import flatten
from fedcli.outputs import open_to_append, write_atomic
from fedcli.runs.files import folder as run_dir
from fedcli.settings.run_config import RunConfig

if TYPE_CHECKING:
    from fedcli.runs.files.client_records import RecordWriter
    from fedcli.runs.files.event_files import EventFiles


@dataclass(frozen=True, eq=False)
class LoggedRound:
    """One round whose line is in metrics.jsonl, or the evaluation of the initial model.

    Attributes:
        line: That line, with NaN where the file has null.
        weights: After it, float32 [num_params].
        client_ids: The cohort; none in what is not a round of training.
        client_stats: One row for each of them that trained, as the engine returns them.
        round_reports: What became of the cohort; None: all trained.
        is_closing: The line is no line of metrics.jsonl but the closing evaluation.
    """

    line: Mapping[str, Any]
    weights: NDArray[np.float32]
    client_ids: Sequence[str] = ()
    client_stats: NDArray[Any] | None = None
    round_reports: RoundReports | None = None
    is_closing: bool = False


class RunLog(Protocol):
    """One kind of record that follows a run round by round. Its methods raise RunError."""

    def add(self, done: LoggedRound) -> None:
        """Takes note of a round."""
        ...

    def flush(self) -> None:
        """Hands everything so far to the system; the round's checkpoint is written next."""
        ...

    def close(self) -> None:
        """Finishes; nothing follows."""
        ...


def require(config: RunConfig) -> None:
    """Sees to it that what a config asks for can be written. Raises ConfigError."""
    if config.tensorboard:
        from fedcli.runs.files import event_files

        event_files.require()


def open_logs(
    config: RunConfig,
    path: Path,
    round_num: int,
    layout: ParamLayout,
) -> tuple[RunLog, ...]:
    """Returns the logs that a config asks for, cut back to `round_num` completed rounds.

    Args:
        config: Of the run.
        path: Its folder, whose metrics.jsonl ends with that round.
        round_num: Rounds completed.
        layout: Of the model.

    Raises:
        RunError: A file cannot be written.
    """
    logs: list[RunLog] = []
    if config.csv:
        logs.append(CsvLog(path))
    if config.tensorboard:
        from fedcli.runs.files import event_files

        folder = path / event_files.FOLDER
        files = event_files.EventFiles(folder, round_num, has_histograms=config.histograms)
        logs.append(EventLog(files, layout))
    if config.record_clients:
        from fedcli.runs.files.client_records import RecordWriter

        logs.append(ClientLog(RecordWriter(path, round_num), layout.num_params))
    return tuple(logs)


class CsvLog:
    """metrics.csv: one line a round, nested names joined by slashes, as TFF's manager writes it.

    It is made of metrics.jsonl whenever its columns change, and when a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        """Writes what the run at `path` has done so far."""
        self._path = path
        self._file = path / run_dir.METRICS_CSV
        self._names: list[str] = []
        self._rewrite()

    def add(self, done: LoggedRound) -> None:
        """See RunLog."""
        if done.is_closing:
            return
        values = flatten(done.line)
        if not values.keys() <= set(self._names):
            self._rewrite()
            return
        try:
            with open_to_append(self._file) as file:
                line = _csv_lines([[_cell(values.get(name)) for name in self._names]])
                file.write(line.encode())
        except OSError as err:
            raise RunError(f"cannot write {self._file}: {why_not_written(err)}") from err

    def flush(self) -> None:
        """See RunLog."""

    def close(self) -> None:
        """See RunLog."""

    def _rewrite(self) -> None:
        lines = [flatten(line) for line in run_dir.read_metrics(self._path)]
        self._names = list(dict.fromkeys(name for line in lines for name in line)) or ["round"]
        rows = [[_cell(line.get(name)) for name in self._names] for line in lines]
        write_atomic(self._file, _csv_lines([self._names, *rows]).encode())


class EventLog:
    """TensorBoard's event files."""

    def __init__(self, files: EventFiles, layout: ParamLayout) -> None:
        """Takes over `files`."""
        self._files = files
        self._layout = layout

    def add(self, done: LoggedRound) -> None:
        """See RunLog."""
        tensors: dict[str, NDArray[np.float32]] = {}
        if self._files.has_histograms and not done.is_closing:
            parts = self._layout.split(done.weights)
            names = (tensor.name for tensor in self._layout.tensors)
            tensors = dict(zip(names, parts, strict=True))
        self._files.add(done.line, tensors)

    def flush(self) -> None:
        """See RunLog."""
        self._files.flush()

    def close(self) -> None:
        """See RunLog."""
        self._files.close()


class ClientLog:
    """clients.h5."""

    def __init__(self, writer: RecordWriter, num_params: int) -> None:
        """Takes over `writer`."""
        self._writer = writer
        self._num_params = num_params

    def add(self, done: LoggedRound) -> None:
        """See RunLog."""
        if done.client_stats is not None:
            self._writer.add(
                done.line["round"],
                done.client_ids,
                done.client_stats,
                self._num_params,
                done.round_reports,
            )

    def flush(self) -> None:
        """See RunLog."""
        self._writer.flush()

    def close(self) -> None:
        """See RunLog."""
        self._writer.close()


def _cell(value: object) -> str:
    """A value; nothing for what is not there or not finite."""
    is_nothing = value is None or (isinstance(value, float) and value - value != 0)
    return "" if is_nothing else str(value)


def _csv_lines(rows: list[list[str]]) -> str:
    from fedcli.csv_text import CsvWriter  # late: few runs write it

    text = io.StringIO()
    CsvWriter(text).rows(rows)
    return text.getvalue()
