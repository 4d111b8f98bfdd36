"""Optional logs of a run beside metrics.jsonl: metrics.csv, TensorBoard's files, clients.h5.

A log only reads the results of training and changes no byte of it. The module that writes a log is
imported when it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import RunError, why_not_written
from fedcli.models.layout import ParamLayout
from fedcli.models.metrics import flatten
from fedcli.outputs import open_to_append, write_atomic
from fedcli.runs.files import folder as run_dir
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig

if TYPE_CHECKING:
    from fedcli.federation.participation import RoundReports
    from fedcli.runs.client_bytes import ByteRule
    from fedcli.runs.files.client_records import RecordWriter
    from fedcli.runs.files.event_files import EventFiles


@dataclass(frozen=True, eq=False)
class LoggedRound:
    """One round (0 is the evaluation of the initial model), or the closing evaluation.

    Attributes:
        line: Its line, as in metrics.jsonl, with NaN for null.
        weights: The global weights after the round, float32 [num_params].
        client_ids: The cohort; empty if this is not a round of training.
        client_stats: One row for each client that trained, as the engine returns them.
        round_reports: The outcomes of the cohort; None if all trained.
        payloads: The bytes of the encoded update of each client that trained, int64; None if
            updates are not compressed.
        is_closing: Whether the line is the closing evaluation, which is not in metrics.jsonl.
    """

    line: Mapping[str, Any]
    weights: NDArray[np.float32]
    client_ids: Sequence[str] = ()
    client_stats: NDArray[Any] | None = None
    round_reports: RoundReports | None = None
    payloads: NDArray[np.int64] | None = None
    is_closing: bool = False


class RunLog(Protocol):
    """A log to which each round is added. Its methods raise RunError."""

    def add(self, logged: LoggedRound) -> None:
        """Adds a round."""
        ...

    def flush(self) -> None:
        """Writes out all buffered rounds. It is called before a checkpoint is written."""
        ...

    def close(self) -> None:
        """Finishes the log. No round is added afterwards."""
        ...


def require(config: RunConfig) -> None:
    """Checks that the logs of a config can be written. Raises ConfigError."""
    if config.tensorboard:
        from fedcli.runs.files import event_files

        event_files.require()


def open_logs(
    config: RunConfig,
    path: Path,
    round_num: int,
    layout: ParamLayout,
) -> tuple[RunLog, ...]:
    """Opens the logs of a config, and drops rounds after `round_num` from them.

    Args:
        config: Config of the run.
        path: The run's folder, whose metrics.jsonl ends with `round_num`.
        round_num: Number of completed rounds.
        layout: Layout of the model's parameters.

    Raises:
        RunError: A file cannot be written.
    """
    logs: list[RunLog] = []
    if config.csv:
        logs.append(CsvLog(path))
    if config.tensorboard:
        from fedcli.runs.files import event_files

        folder = path / run_dir.EVENT_FILES
        files = event_files.EventFiles(folder, round_num, has_histograms=config.histograms)
        logs.append(EventLog(files, layout))
    if config.record_clients:
        from fedcli.runs.files.client_records import RecordWriter

        rule = _byte_rule(config, layout, run_dir.read_origin(path))
        logs.append(ClientLog(RecordWriter(path, round_num), rule, run_dir.read_metrics(path)))
    return tuple(logs)


def _byte_rule(config: RunConfig, layout: ParamLayout, origin: Mapping[str, Any]) -> ByteRule:
    """Returns the rule for a client's bytes; `origin` is the provenance of the run."""
    from fedcli.runs.client_bytes import ByteRule, with_amounts  # lazy: few runs record clients

    entry = tables.ALGORITHMS.find(config.algorithm) or tables.ALGORITHMS["fedavg"]
    return ByteRule.of(
        with_amounts(entry, origin),
        layout.num_params,
        is_compressed=config.compress is not None and not config.secure_sum,
        optimizer=config.client_optimizer,
        optimizer_options=config.client_options,
    )


class CsvLog:
    """metrics.csv: one line for each round, with nested names joined by slashes, as TFF writes it.

    It is written anew from metrics.jsonl when the columns change and when a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        """Writes the rounds that the run at `path` has completed."""
        self._path = path
        self._file = path / run_dir.METRICS_CSV
        self._names: list[str] = []
        self._rewrite()

    def add(self, logged: LoggedRound) -> None:
        """See RunLog."""
        if logged.is_closing:
            return
        values = flatten(logged.line)
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

    def add(self, logged: LoggedRound) -> None:
        """See RunLog."""
        tensors: dict[str, NDArray[np.float32]] = {}
        if self._files.has_histograms and not logged.is_closing:
            parts = self._layout.split(logged.weights)
            names = (tensor.name for tensor in self._layout.tensors)
            tensors = dict(zip(names, parts, strict=True))
        self._files.add(logged.line, tensors)

    def flush(self) -> None:
        """See RunLog."""
        self._files.flush()

    def close(self) -> None:
        """See RunLog."""
        self._files.close()


class ClientLog:
    """clients.h5."""

    def __init__(
        self, writer: RecordWriter, rule: ByteRule, lines: Iterable[Mapping[str, Any]]
    ) -> None:
        """Takes over `writer`.

        Args:
            writer: The file.
            rule: The rule for the bytes that a client receives and sends.
            lines: The lines of metrics.jsonl of the rounds so far.
        """
        self._writer = writer
        self._rule = rule
        self._delta_bytes = rule.dense
        for line in lines:
            self._delta_bytes = rule.delta_bytes(line, self._delta_bytes)

    def add(self, logged: LoggedRound) -> None:
        """See RunLog."""
        if logged.client_stats is None:
            return
        num_selected, round_reports = len(logged.client_ids), logged.round_reports
        reports: Sequence[int] = (
            range(num_selected) if round_reports is None else round_reports.used
        )
        unused: Sequence[int] = () if round_reports is None else round_reports.unused
        self._delta_bytes = self._rule.delta_bytes(logged.line, self._delta_bytes)
        num_bytes = self._rule.of_clients(
            logged.line, num_selected, reports, unused, logged.payloads, self._delta_bytes
        )
        self._writer.add(
            logged.line["round"],
            logged.client_ids,
            logged.client_stats,
            num_bytes,
            round_reports,
        )

    def flush(self) -> None:
        """See RunLog."""
        self._writer.flush()

    def close(self) -> None:
        """See RunLog."""
        self._writer.close()


def _cell(value: object) -> object:
    """A value as a cell; "" if it is missing or not finite."""
    is_empty = value is None or (isinstance(value, float) and value - value != 0)
    return "" if is_empty else value


def _csv_lines(rows: Sequence[Sequence[object]]) -> str:
    from fedcli.csv_text import CsvWriter  # lazy: few runs write CSV

    text = io.StringIO()
    CsvWriter(text).rows(rows)
    return text.getvalue()
