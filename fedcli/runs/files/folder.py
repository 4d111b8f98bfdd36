"""The folder of a run: config.toml, checkpoints, metrics, timings, evaluation and the lock.

The folder has a temporary name until it is complete enough to be resumed. Only one process at a
time writes to it. This module imports no NumPy and does not interpret checkpoints.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcli import settings
from fedcli.errors import ConfigError, RunError, why_not_written
from fedcli.files import (
    json_text,
    make_folders,
    read_bounded,
    sync_folder,
    write_synced,
)
from fedcli.locks import ReplacedError, check_unlocked, lock_now
from fedcli.outputs import (
    TEMPORARY_NAME,
    locked_folder,
    open_to_append,
    sweep_folders,
    temporary_name,
    write_atomic,
)
from fedcli.runs.files.lines import (
    find_end,
    is_evaluation,
    is_number,
    parse_metrics,
    parse_together,
)
from fedcli.runs.stopping import Best
from fedcli.settings import tables

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
METRICS_CSV = "metrics.csv"  # the same metrics, written with --csv
TIMINGS = "timings.jsonl"
EVALUATION = "evaluation.json"
CHECKPOINTS = "checkpoints"
EVENT_FILES = "tensorboard"
LOCK = "lock"

# The largest files that are read. A line of metrics has about 400 bytes.
MAX_CONFIG_BYTES = 4 << 20
MAX_LINES_BYTES = 512 << 20
MAX_EVALUATION_BYTES = 64 << 20

_MAX_NAME = 60  # characters of the data's name in the name of a default folder
_CHECKPOINT_NAME = re.compile(r"round-(\d{6,})\.h5")


class RunDirectory:
    """A run's folder, which this process has locked until `close` or the end of the process.

    Make one with `create` or `open`. It is not safe for use by several threads.
    """

    def __init__(self, path: Path, lock: int) -> None:
        """Takes over `lock`, the open and locked descriptor of the lock file in `path`."""
        self.path = path
        self._lock = lock
        with contextlib.ExitStack() as opened:
            self._metrics = opened.enter_context(open_to_append(path / METRICS))
            self._timings = opened.enter_context(open_to_append(path / TIMINGS))
            opened.pop_all()  # both are open, and `close` will close them

    @classmethod
    def create(
        cls,
        path: Path,
        config_text: str,
        checkpoint: bytes,
        *,
        force: bool = False,
        is_numbered: bool = False,
    ) -> RunDirectory:
        """Makes the folder with its config and its checkpoint of round 0, then names it `path`.

        Args:
            path: The folder; missing parents are made.
            config_text: Content of config.toml.
            checkpoint: Content of the checkpoint of round 0.
            force: Replace an existing run when the new one is ready.
            is_numbered: Whether to append the first free number to the name if `path` exists.

        Raises:
            RunError: `path` cannot be written, or exists; with `force`, an existing path is refused
                only if it is not a run or is in use.
        """
        check_target(free_path(path) if is_numbered else path, force=force)
        temporary = temporary_name(path)
        lock = -1
        try:
            make_folders(path.parent)
            sweep_folders(path.parent, TEMPORARY_NAME, _is_left_over)
            with locked_folder(temporary):
                (temporary / CHECKPOINTS).mkdir()
                lock = _lock(temporary)
                write_synced(temporary / CONFIG, config_text.encode())
                write_synced(temporary / CHECKPOINTS / checkpoint_name(0), checkpoint)
                sync_folder(temporary / CHECKPOINTS)
                for name in (METRICS, TIMINGS):  # synced with the folder, so a power cut keeps them
                    (temporary / name).touch()
                sync_folder(temporary)
                if is_numbered:
                    path = _move_to_free_path(temporary, path)
                else:
                    _move_into_place(temporary, path)
            return cls(path, lock)
        except (OSError, RunError) as err:
            if lock >= 0:
                os.close(lock)
            if isinstance(err, RunError):
                raise
            raise RunError(f"cannot make the run {path}: {why_not_written(err)}") from err
        finally:
            _remove(temporary)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Locks the run at `path` to continue it.

        Raises:
            RunError: There is no run, another process uses it, or it is not writable.
        """
        check_is_run(path)
        lock = _lock(path)
        try:
            return cls(path, lock)
        except RunError:
            os.close(lock)
            raise
        except OSError as err:
            os.close(lock)
            raise RunError(f"cannot write to the run {path}: {why_not_written(err)}") from err

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one whole line to metrics.jsonl. Non-finite numbers become null.

        Raises:
            RunError: It cannot be written, for example because the disk is full.
        """
        self._append(self._metrics, METRICS, line)

    def append_timings(self, line: Mapping[str, Any]) -> None:
        """Adds one whole line to timings.jsonl.

        The line of the closing evaluation has no round.

        Raises:
            RunError: It cannot be written, for example because the disk is full.
        """
        self._append(self._timings, TIMINGS, line)

    def cut_back(self, round_num: int) -> None:
        """Drops the lines of rounds after `round_num`; if that is 0, also the lines of round 0.

        Also removes a half-written last line, temporary files of killed processes, and the closing
        evaluation's line in timings.jsonl, because that evaluation will be repeated.

        Raises:
            RunError: metrics.jsonl lacks a round up to `round_num`, or is damaged before it.
        """
        try:
            metrics = read_bounded(self.path / METRICS, MAX_LINES_BYTES)
            end, last = find_end(metrics, round_num)
            parse_metrics(metrics[:end], self.path / METRICS)
            if last != round_num:
                raise RunError(
                    f"{self.path / METRICS} ends with round {last}, but the checkpoint is of round "
                    f"{round_num}; restore the file, or start a new run"
                )
            os.truncate(self._metrics.fileno(), end)
            timings = read_bounded(self.path / TIMINGS, MAX_LINES_BYTES)
            os.truncate(self._timings.fileno(), find_end(timings, round_num)[0])
            for folder in (self.path, self.path / CHECKPOINTS):
                for temporary in folder.glob(".*.tmp"):  # of a process that was killed
                    temporary.unlink()
        except OSError as err:
            raise RunError(
                f"cannot remove later rounds from the run {self.path}: {why_not_written(err)}"
            ) from err

    def save_checkpoint(self, round_num: int, content: bytes) -> None:
        """Syncs the metrics to the disk, then writes a checkpoint.

        Raises:
            RunError: It cannot be written. Older checkpoints stay.
        """
        try:
            os.fsync(self._metrics.fileno())
        except OSError as err:
            raise RunError(f"cannot write {self.path / METRICS}: {why_not_written(err)}") from err
        write_atomic(self.path / CHECKPOINTS / checkpoint_name(round_num), content)

    def drop_checkpoints(self, *, num_kept: int, best_round: int | None) -> None:
        """Deletes old checkpoints.

        Args:
            num_kept: Number of the newest checkpoints to keep, 1 or more.
            best_round: The round whose checkpoint is also kept; None for none.
        """
        for old_round, old in _numbered_checkpoints(self.path)[:-num_kept]:
            if old_round != best_round:
                with contextlib.suppress(OSError):
                    old.unlink()

    def write_config(self, text: str) -> None:
        """Replaces config.toml. Raises RunError."""
        write_atomic(self.path / CONFIG, text.encode())

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Replaces evaluation.json. Raises RunError."""
        write_atomic(self.path / EVALUATION, (json_text(evaluation, indented=True) + "\n").encode())

    def close(self) -> None:
        """Closes the files and releases the lock. A second call does nothing."""
        if self._lock < 0:
            return
        self._metrics.close()
        self._timings.close()
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> RunDirectory:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the folder."""
        self.close()

    def _append(self, file: io.FileIO, name: str, line: Mapping[str, Any]) -> None:
        """Adds a whole line. If the disk is full, the written part of the line is removed."""
        content = json_text(line).encode() + b"\n"
        written = 0
        try:
            while written < len(content):
                written += file.write(content[written:])
        except OSError as err:
            with contextlib.suppress(OSError):
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
            raise RunError(f"cannot write {self.path / name}: {why_not_written(err)}") from err


def default_out(now: datetime, data: str, algorithm: str, seed: int) -> Path:
    """Returns the default of `--out`: runs/<time>-<data>-<algorithm>-s<seed>.

    If that exists, the first free number is appended.

    Args:
        now: The time at the start of the command.
        data: The data's name, or the path of its file.
        algorithm: The algorithm's name, or the file of its code.
        seed: The seed of the run.
    """
    names = (
        re.sub(r"[^A-Za-z0-9_-]+", "-", Path(each).stem).strip("-") for each in (data, algorithm)
    )
    stem = "-".join(name[:_MAX_NAME] for name in names if name) or "run"
    return free_path(Path("runs") / f"{now:%Y%m%d-%H%M%S}-{stem}-s{seed}")


def free_path(path: Path) -> Path:
    """Returns the path, or the path with the first free number appended if it exists."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


def check_target(path: Path, *, force: bool) -> None:
    """Checks, before any work, that a new run can be made at `path`.

    Raises:
        RunError: `path` cannot be written, or exists; with `force`, an existing path is refused
            only if it is not a run or is in use.
    """
    if not os.path.lexists(path):
        _check_writable(path)
        return
    is_run = not path.is_symlink() and looks_like_run(path)
    if not force:
        replace = ", or --force to replace it" if is_run else ""
        raise RunError(f"{path} exists; choose another --out{replace}")
    if not is_run:
        raise RunError(f"{path} is not a run, so --force does not replace it; choose another --out")
    os.close(_lock(path))


def check_is_run(path: Path) -> None:
    """Raises RunError unless `path` is the folder of a run."""
    if not path.exists():
        raise RunError(f"there is no run {path}; give the folder that fedcli train wrote")
    if not looks_like_run(path):
        raise RunError(
            f"{path} is not a run: it has no {CONFIG} and {CHECKPOINTS}; give the folder that "
            "fedcli train wrote"
        )


def checkpoint_name(round_num: int) -> str:
    """Returns the file name of a round's checkpoint."""
    return f"round-{round_num:06d}.h5"


def round_of_checkpoint(file: Path) -> int | None:
    """Returns the round in the file name of a checkpoint; None if it has another name."""
    match = _CHECKPOINT_NAME.fullmatch(file.name)
    return int(match[1]) if match else None


def find_checkpoints(path: Path) -> list[Path]:
    """Returns the checkpoints of the run at `path`, oldest round first."""
    return [each for _, each in _numbered_checkpoints(path)]


def checkpoint_rounds(path: Path) -> list[int]:
    """Returns the rounds of the checkpoints of the run at `path`, ascending."""
    return [round_num for round_num, _ in _numbered_checkpoints(path)]


def _numbered_checkpoints(path: Path) -> list[tuple[int, Path]]:
    return sorted(
        (int(match.group(1)), each)
        for each in (path / CHECKPOINTS).iterdir()
        if (match := _CHECKPOINT_NAME.fullmatch(each.name))
    )


def latest_checkpoint(path: Path) -> Path:
    """Returns the newest checkpoint of the run at `path`.

    Raises:
        RunError: There is no run, or it has no checkpoint.
    """
    check_is_run(path)
    checkpoints = find_checkpoints(path)
    if not checkpoints:
        raise RunError(f"{path / CHECKPOINTS} holds no checkpoint; start a new run")
    return checkpoints[-1]


def best_checkpoint(path: Path) -> Path:
    """Returns the checkpoint of the best round so far of the run at `path`.

    Rounds after the newest checkpoint do not count.

    Raises:
        ConfigError: config.toml cannot be read.
        RunError: There is no run, it does not keep its best round, it has no evaluation yet, or the
            checkpoint is missing.
    """
    check_is_run(path)
    last = max(checkpoint_rounds(path), default=0)
    measure = read_config(path).get("keep_best")
    if measure is None:
        raise RunError(
            f"{path} keeps no best round; train with --keep-best, or give one of its checkpoints"
        )
    lines = [line for line in read_metrics(path) if line["round"] <= last]
    best_round = Best(measure).after_all(lines).round_num
    if best_round is None:
        raise RunError(
            f"{path} has no evaluation yet, so no best round is known; leave out --best, or "
            "resume the run"
        )
    file = path / CHECKPOINTS / checkpoint_name(best_round)
    if not file.exists():
        raise RunError(f"{file}, of the best round, is missing; restore it, or start a new run")
    return file


def read_config(path: Path) -> dict[str, Any]:
    """Returns the fields that a config.toml sets.

    Args:
        path: The file, or the folder of a run.

    Raises:
        ConfigError: The file cannot be read, a key is no option, or a value is not allowed.
    """
    file = path / CONFIG if path.is_dir() else path
    return settings.from_toml(read_text(file), str(file))


def read_origin(path: Path) -> dict[str, Any]:
    """Returns the provenance in a config.toml.

    `data` and, for a model in Python, `model` are fingerprints.

    Args:
        path: The file, or the folder of a run.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    file = path / CONFIG if path.is_dir() else path
    return settings.read_provenance(read_text(file), str(file))


def read_text(file: Path) -> str:
    """Returns the text of a config file. Raises ConfigError if it cannot be read."""
    try:
        return read_bounded(file, MAX_CONFIG_BYTES).decode()
    except OSError as err:
        raise ConfigError(f"cannot read {file}: {err.strerror}; check the path") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file} is not TOML: it is not UTF-8 text; save it as UTF-8") from err


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl of the run at `path`; null becomes None.

    Raises:
        RunError: The file cannot be read or is damaged.
    """
    return parse_metrics(_read_bytes(path / METRICS), path / METRICS)


def read_timings(path: Path) -> list[dict[str, float]]:
    """Returns the complete lines of timings.jsonl of the run at `path`.

    Timings are not results, so a missing or damaged file is not an error.
    """
    try:
        content = read_bounded(path / TIMINGS, MAX_LINES_BYTES)
    except OSError:
        return []
    values = parse_together(content)
    if values is None:
        values = []
        for text in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                values.append(json.loads(text))
    lines = (each for each in values if isinstance(each, dict))
    return [each if all(map(is_number, each.values())) else _numbers_of(each) for each in lines]


def _numbers_of(line: dict[str, Any]) -> dict[str, float]:
    return {name: each for name, each in line.items() if is_number(each)}


def read_completed(path: Path, round_num: int) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl up to a round; none for round 0 (see `cut_back`).

    Later lines, which may be half-written, are ignored.

    Raises:
        RunError: The file cannot be read or is damaged.
    """
    content = _read_bytes(path / METRICS)
    return parse_metrics(content[: find_end(content, round_num)[0]], path / METRICS)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Returns the content of evaluation.json of the run at `path`; None if there is none yet.

    Raises:
        RunError: The file cannot be read or is damaged.
    """
    file = path / EVALUATION
    try:
        evaluation = json.loads(read_bounded(file, MAX_EVALUATION_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        reason = err.strerror if isinstance(err, OSError) else err
        raise RunError(
            f"cannot read {file}: {reason}; delete it, and resume the run to write it again"
        ) from err
    if not isinstance(evaluation, dict) or not all(map(is_evaluation, evaluation.values())):
        raise RunError(
            f"{file} holds no evaluation by split; delete it, and resume the run to write it again"
        )
    return evaluation


def looks_like_run(path: Path) -> bool:
    """Returns whether a folder has the files that each run has."""
    return (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir()


def refuse_as_data(data: str) -> None:
    """Raises ConfigError if a name of data is a run's folder, unless a dataset has this name."""
    try:
        is_run = data not in tables.DATASETS and looks_like_run(Path(data))
    except OSError:  # a path that cannot be accessed is refused when it is opened
        return
    if is_run:
        raise ConfigError(
            f"--data {data} is the folder of a run, not of data; give the file or the name of a "
            "dataset"
        )


def _check_writable(path: Path) -> None:
    """Checks that the nearest existing parent of a path is a writable folder. Raises RunError."""
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir():
        raise RunError(
            f"cannot make the run {path}: {parent} is not a folder; choose another --out"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(
            f"cannot make the run {path}: {parent} is not writable; choose another --out"
        )


def _is_left_over(folder: Path) -> bool:
    """Whether a folder with a temporary name is a run that never began or was replaced.

    If the process that replaced a run was killed half-way, the folder may be the only copy and
    stays.
    """
    match = TEMPORARY_NAME.fullmatch(folder.name)
    assert match is not None
    metrics = folder / METRICS
    is_new = not metrics.exists() or not metrics.stat().st_size
    if not is_new and not os.path.lexists(folder.with_name(match[1])):
        return False
    check_unlocked(folder / LOCK)  # raises OSError if a process uses it
    return True


def _move_to_free_path(temporary: Path, path: Path) -> Path:
    """Renames a folder to the result of `free_path`; retries if another process takes that name."""
    while True:
        free = free_path(path)
        try:
            temporary.rename(free)  # fails if a folder with content has that name
        except OSError:
            if not os.path.lexists(free):
                raise
        else:
            sync_folder(free.parent)
            return free


def _move_into_place(new: Path, path: Path) -> None:
    """Renames `new` to `path`; then deletes the run that was there before, if any."""
    if not os.path.lexists(path):
        new.rename(path)
        sync_folder(path.parent)
        return
    old = temporary_name(path)
    lock = _lock(path)
    try:
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        sync_folder(path.parent)
        _remove(old)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Deletes a folder with its content, if it exists, as far as possible."""
    if os.path.lexists(folder):
        import shutil  # lazy: a new run leaves nothing to delete

        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int:
    """Locks the run in `folder` and returns the descriptor of the lock."""
    try:
        return lock_now(folder / LOCK)
    except BlockingIOError:
        problem = f"the run {folder} is in use by another process; wait for it to end"
    except ReplacedError:
        problem = f"the run {folder} has just been replaced; try again"
    except OSError as err:
        problem = f"cannot lock the run {folder}: {why_not_written(err)}"
    raise RunError(problem)


def _read_bytes(file: Path) -> bytes:
    try:
        return read_bounded(file, MAX_LINES_BYTES)
    except OSError as err:
        raise RunError(f"cannot read {file}: {err.strerror}") from err
