"""trials.jsonl: a line for each finished trial of a study, in the order of their numbers.

A trial is a point with a seed, trained for some rounds. Its line is on the disk before the next
lines are written and before any decision uses it. Except for `seconds`, a line depends only on the
study, the data and this program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import RunError, why_not_written
from fedcli.files import json_text, read_bounded, write_all
from fedcli.outputs import open_to_append
from fedcli.settings.run_config import RunConfig

FILE = "trials.jsonl"
DONE, DIVERGED, FAILED = STATES = ("done", "diverged", "failed")
_MAX_BYTES = 1 << 30
_KEYS = ("number", "point", "options", "seed", "rounds", "key", "run", "state", "result", "seconds")


@dataclass(frozen=True, eq=False)
class Trial:
    """A run that a study requests.

    Attributes:
        number: Its number in the study, from 1.
        point: Number of its point.
        case: The case of the point; empty if there is none.
        options: The options that the study varies, by dotted name.
        config: The valid config of the run.
        key: See `keys`.
        run: The run's folder, below the study's.
    """

    number: int
    point: int
    case: str
    options: Mapping[str, Any]
    config: RunConfig
    key: str
    run: str

    def line(self, outcome: Outcome) -> dict[str, Any]:
        """Returns its line of trials.jsonl."""
        case = {"case": self.case} if self.case else {}
        error = {"error": outcome.error} if outcome.error else {}
        return {
            "number": self.number,
            "point": self.point,
            **case,
            "options": dict(self.options),
            "seed": self.config.seed,
            "rounds": self.config.rounds,
            "key": self.key,
            "run": self.run,
            "state": outcome.state,
            "result": outcome.result,
            **error,
            "seconds": round(outcome.seconds, 3),
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a trial.

    Attributes:
        state: One of STATES; `has_diverged` defines DIVERGED.
        result: The round and metrics of the closing evaluation, by split; None stands for numbers
            that are not finite.
        seconds: The time of the run's rounds and evaluations.
        error: Why the run failed; empty if it did not.
    """

    state: str
    result: dict[str, dict[str, Any]]
    seconds: float = 0.0
    error: str = ""


class TrialLog:
    """trials.jsonl, open to append. Lines are synced to the disk one by one."""

    def __init__(self, folder: Path) -> None:
        """Opens the file. Drops a half-written last line, and all lines from the first failure on.

        Failed trials are tried again. The lines after them are written again from their finished
        runs.

        Raises:
            RunError: It cannot be read or written, or a line is damaged.
        """
        self._path = folder / FILE
        self.lines, self._ends = _read(self._path, is_repaired=True)
        try:
            self._file = open_to_append(self._path)
            self.cut(len(self.lines))
        except OSError as err:
            raise RunError(f"cannot write {self._path}: {why_not_written(err)}") from err

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line. Raises RunError if it cannot be written, for example on a full disk."""
        content = json_text(line).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            write_all(self._file, content)
            os.fsync(self._file.fileno())
        except OSError as err:
            os.truncate(self._file.fileno(), before)
            raise RunError(f"cannot write {self._path}: {why_not_written(err)}") from err
        self.lines.append(json.loads(content))
        self._ends.append(before + len(content))

    def cut(self, num_lines: int) -> None:
        """Drops all lines after the first `num_lines`."""
        del self.lines[num_lines:], self._ends[num_lines:]
        os.truncate(self._file.fileno(), self._ends[-1] if self._ends else 0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> TrialLog:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a study's trials.jsonl; a half-written last line is left out.

    Raises:
        RunError: It cannot be read, or a line is damaged.
    """
    return _read(folder / FILE, is_repaired=False)[0]


def _read(path: Path, *, is_repaired: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """The whole lines, and the offset of the end of each.

    Args:
        path: The file.
        is_repaired: Whether the lines from the first failed trial on are left out.
    """
    try:
        content = read_bounded(path, _MAX_BYTES)
    except FileNotFoundError:
        return [], []
    except OSError as err:
        raise RunError(f"cannot read {path}: {err.strerror}") from err
    lines: list[dict[str, Any]] = []
    ends: list[int] = []
    for text in content.splitlines(keepends=True):
        if not text.endswith(b"\n"):
            break
        line = _parsed(text, path, len(lines) + 1)
        if is_repaired and line["state"] == FAILED:
            break
        lines.append(line)
        ends.append((ends[-1] if ends else 0) + len(text))
    return lines, ends


def _parsed(text: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    is_line = isinstance(line, dict) and all(key in line for key in _KEYS)
    if not is_line or line["number"] != number or line["state"] not in STATES:
        raise RunError(
            f"{path}: line {number} is damaged; delete it and the lines after it, and "
            f"fedcli sweep --resume {path.parent} writes them again from the finished runs"
        )
    return dict(line)
