"""The folder of a study: study.toml, trials.jsonl, table.csv, the runs, and a lock."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType

from fedcli.errors import RunError, why_not_written
from fedcli.files import make_folders, sync_folder, write_synced
from fedcli.locks import ReplacedError, check_unlocked, lock_now
from fedcli.outputs import TEMPORARY_NAME, locked_folder, sweep_folders, temporary_name
from fedcli.runs.files.folder import free_path
from fedcli.sweeps import study as study_file
from fedcli.sweeps.code import resume_command
from fedcli.sweeps.study import Study
from fedcli.sweeps.trials import FILE as TRIALS

STUDY = "study.toml"
TABLE = "table.csv"
RUNS = "runs"
LOCK = "lock"

# After a sweep is killed, its processes still hold the lock until they notice this and end.
_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.02


class StudyFolder:
    """A study's folder, which this process has locked until `close` or the end of the process.

    Attributes:
        path: The folder.
        study: The study.
        lock: The descriptor of the lock.
    """

    def __init__(self, path: Path, study: Study, lock: int) -> None:
        """Takes over the lock. Use `create` or `open`."""
        self.path = path
        self.study = study
        self.lock = lock

    @classmethod
    def create(cls, path: Path, study: Study) -> StudyFolder:
        """Makes the folder of a new study, under a temporary name until it is complete.

        Raises:
            RunError: `path` exists or cannot be written.
        """
        check_is_new(path)
        temporary = temporary_name(path)
        try:
            make_folders(path.parent)
            sweep_folders(path.parent, TEMPORARY_NAME, _is_left_over)
            with locked_folder(temporary):
                (temporary / RUNS).mkdir()
                lock = _lock(temporary, path)
                write_synced(temporary / STUDY, study_file.to_toml(study).encode())
                (temporary / TRIALS).touch()
                sync_folder(temporary)
                temporary.rename(path)
                sync_folder(path.parent)
        except OSError as err:
            raise RunError(f"cannot make the study {path}: {why_not_written(err)}") from err
        return cls(path, study, lock)

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """Locks the study at `path` to continue it.

        Raises:
            ConfigError: study.toml cannot be read.
            RunError: There is no study, or another process works on it.
        """
        check_is_study(path)
        lock = _lock(path, path)
        try:
            return cls(path, study_file.read_file(path / STUDY), lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Releases the lock."""
        os.close(self.lock)

    def __enter__(self) -> StudyFolder:
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


def is_study(path: Path) -> bool:
    """Returns whether a folder is the folder of a study."""
    return (path / STUDY).is_file() and (path / RUNS).is_dir()


def check_is_study(path: Path) -> None:
    """Raises RunError unless `path` is the folder of a study."""
    if not path.exists():
        raise RunError(f"there is no study {path}; give the folder that fedcli sweep made")
    if not is_study(path):
        raise RunError(
            f"{path} is not a study: it has no {STUDY} and {RUNS}; give the folder that fedcli "
            "sweep made"
        )


def check_is_new(path: Path) -> None:
    """Raises RunError if a new study cannot be made at `path`."""
    if is_study(path):
        study = study_file.read_file(path / STUDY)
        raise RunError(f"the study {path} exists; {resume_command(path, study)} continues it")
    if os.path.lexists(path):
        raise RunError(f"{path} exists; choose another --out")


def default_folder(now: datetime, name: str) -> Path:
    """Returns the default of `--out`: runs/<time>-<name of the study's file>."""
    return free_path(Path("runs") / f"{now:%Y%m%d-%H%M%S}-{name}")


def _is_left_over(folder: Path) -> bool:
    """Whether a folder with a temporary name is a study whose process was killed at its start."""
    if not (folder / RUNS).is_dir():
        return False
    check_unlocked(folder / LOCK)  # raises OSError if a process uses it
    return True


def _lock(folder: Path, path: Path) -> int:
    """Locks a study's folder, which is called `path` in messages."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return lock_now(folder / LOCK)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RunError(
                    f"the study {path} is in use by another process; wait for it to end"
                ) from None
        except ReplacedError:
            raise RunError(f"the study {path} has just been replaced; try again") from None
        except OSError as err:
            raise RunError(f"cannot lock the study {path}: {why_not_written(err)}") from err
        time.sleep(_POLL_SECONDS)
