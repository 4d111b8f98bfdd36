"""The progress of a study: the thread of the study updates it, and another one displays it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fedcli.dataclass import dataclass
from fedcli.sweeps.study_values import options_text
from fedcli.sweeps.trials import DIVERGED, DONE, FAILED, Trial


@dataclass(frozen=True)
class Running:
    """A run that trains now.

    Attributes:
        number: Number of its trial.
        text: Its options in words.
        rounds: Rounds in total.
        round_num: Rounds done.
        loss: Online loss of the last round; None before the first round, and if it is not finite.
    """

    number: int
    text: str
    rounds: int
    round_num: int = 0
    loss: float | None = None


class Message(NamedTuple):
    """A message for the user.

    Attributes:
        text: The line.
        is_usual: Whether it is about a run that ended normally.
    """

    text: str
    is_usual: bool


class StudyProgress:
    """The progress of a study.

    Attributes:
        total: Number of runs that are planned so far.
        finished: Number of runs that have ended, including failed, earlier and reused ones.
        earlier: Number of runs that were complete before this command.
        reused: Number of runs copied from other folders.
        failed: Number of runs that failed.
        diverged: Number of runs that diverged.
        running: The runs that train now, by number.
    """

    def __init__(self) -> None:
        """Starts with no runs."""
        self.total = self.finished = self.earlier = self.reused = self.failed = self.diverged = 0
        self.running: dict[int, Running] = {}
        self._lines: deque[Message] = deque()
        self._noted: set[str] = set()

    @property
    def position(self) -> float:
        """Number of finished runs, plus the finished shares of the runs that train now."""
        shares = (each.round_num / each.rounds for each in list(self.running.values()))
        return self.finished + sum(shares)

    def begin(self, trial: Trial) -> None:
        """Records that a run begins."""
        self.running[trial.number] = Running(trial.number, trial_text(trial), trial.config.rounds)

    def note_round(self, number: int, message: Mapping[str, Any]) -> None:
        """Records that a run has completed a round."""
        before = self.running.get(number)
        if before is not None:
            self.running[number] = replace(before, round_num=message["round"], loss=message["loss"])

    def end(self, number: int) -> None:
        """Records that a run has stopped training."""
        self.running.pop(number, None)

    def note_line(self, line: Mapping[str, Any], result_text: str, *, is_new: bool) -> None:
        """Records a finished trial.

        Args:
            line: Its line of trials.jsonl.
            result_text: The result in words.
            is_new: Whether it ended during this command; only then a line about it is displayed.
        """
        self.finished += 1
        self.failed += line["state"] == FAILED
        self.diverged += line["state"] == DIVERGED
        if is_new:
            case = [line["case"]] if "case" in line else []
            text = ", ".join([*case, *filter(None, [options_text(line["options"])])])
            result = line.get("error") or result_text
            state = "" if line["state"] == DONE else f" {line['state']},"
            where = f"run {line['number']}: {text}{', ' * bool(text)}seed {line['seed']}"
            is_usual = line["state"] == DONE
            self._lines.append(Message(f"{where}:{state} {result}", is_usual=is_usual))

    def note(self, text: str) -> None:
        """Adds a line for the user, unless it was added before."""
        if text not in self._noted:
            self._noted.add(text)
            self._lines.append(Message(text, is_usual=False))

    def take_lines(self) -> list[Message]:
        """Returns the lines that were added since the last call."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines


def trial_text(trial: Trial) -> str:
    """Returns a trial in words: its case, options and seed."""
    parts = [trial.case, options_text(trial.options), f"seed {trial.config.seed}"]
    return ", ".join(filter(None, parts))
