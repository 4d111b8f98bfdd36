"""Shows the progress of training on stderr: a live line on a terminal, log lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedcli.cli.screen.output import Remarks, Verbosity, one_line
from fedcli.dataclass import dataclass
from fedcli.runs.stopping import Best, deciding_split
from fedcli.settings.tables.metrics import key_of, short_name
from fedcli.settings.vocabulary import ACCURACY

if TYPE_CHECKING:
    from fedcli.cli.jobs.live_line import Part
    from fedcli.cli.jobs.worker import Worker
    from fedcli.core.native import CancelFlag
    from fedcli.runs.loop import RoundResult, Training

REFRESH_SECONDS = 0.1
LOG_SECONDS = 10.0  # between two log lines with -v, without a terminal
_USUAL_LOG_SECONDS = 30.0  # between two log lines without -v
_POLL_SECONDS = 0.5
_SPEED_WINDOW = 30  # least number of refreshes over which the speed is averaged: three seconds
_MAX_OBSERVATIONS = 10_000
_MAX_FURTHER_METRICS = 3  # a line has room for this many metrics besides loss and accuracy
# A run with at most this many evaluations shows a line for each; others show one line per second.
_MAX_LINES = 100
_LINE_SECONDS = 1.0
_SHOWS_CLIENTS_AFTER = 1.0  # seconds since the round began


@dataclass(frozen=True)
class Snapshot:
    """The progress of training when the worker last reported it.

    Attributes:
        round_num: Rounds completed.
        num_rounds: Rounds in total.
        loss: Online loss of the last round; None before the first round.
        accuracy: Online accuracy of the last round; None before the first round.
        num_examples: Examples processed since training started.
        evaluated: Texts about the last evaluation and the best one; empty before the first.
        privacy: Text about the privacy that is spent; "" without --dp.
    """

    round_num: int
    num_rounds: int
    loss: float | None = None
    accuracy: float | None = None
    num_examples: int = 0
    evaluated: tuple[str, ...] = ()
    privacy: str = ""


class Monitor:
    """The progress of training. The worker writes it after each round; the main thread shows it."""

    def __init__(self) -> None:
        """Starts with nothing to show."""
        self.snapshot: Snapshot | None = None
        self._lines: deque[str] = deque()
        self._training: Training | None = None
        self._cancel: CancelFlag | None = None
        self._best = Best(ACCURACY)
        self._measures: list[str] = []
        self._every_line = True
        self._shown_at = 0.0
        self._round_began_at = 0.0

    def begin(self, training: Training, cancel: CancelFlag) -> None:
        """Records that a training begins or continues; `cancel` counts its trained clients."""
        from fedcli.runs.files import folder

        config = training.config
        self._training, self._cancel = training, cancel
        self._best = Best(config.keep_best or config.monitor or ACCURACY)
        self._measures = [short_name(each) for each in config.metrics or ()]
        evaluated: tuple[str, ...] = ()
        if training.round_num and config.eval_every:
            for line in folder.read_completed(training.path, training.round_num):
                evaluated = self._note(line) or evaluated
        if config.eval_every:
            self._every_line = training.num_rounds / config.eval_every <= _MAX_LINES
        self._round_began_at = time.monotonic()
        self.snapshot = Snapshot(training.round_num, training.num_rounds, evaluated=evaluated)
        self._lines.append(first_line(training))

    def update(self, result: RoundResult) -> None:
        """Records a completed round."""
        before = self.snapshot
        assert before is not None
        online = result.metrics.get("client_work", {}).get("train") or {}
        evaluated = before.evaluated
        if result.evaluation:
            evaluated = self._note(result.metrics)
            self._add_line(result, before.num_rounds)
        self._round_began_at = time.monotonic()
        self.snapshot = Snapshot(
            result.round_num,
            before.num_rounds,
            online.get("loss"),
            online.get("sparse_categorical_accuracy"),
            before.num_examples + result.num_examples,
            evaluated,
            _privacy(result.metrics),
        )

    def take_lines(self) -> list[str]:
        """Returns the lines that were added since the last call."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines

    def clients_done(self) -> tuple[int, int] | None:
        """Returns the numbers of trained clients and of all clients of the current round.

        None before the training, in the first second of a round, and for a round of one client.
        """
        if self._training is None or self._cancel is None:
            return None
        if time.monotonic() - self._round_began_at < _SHOWS_CLIENTS_AFTER:
            return None
        done, total = self._cancel.num_trained, self._training.num_trained_in_round
        return (min(done, total), total) if total > 1 else None

    def _note(self, line: Mapping[str, Any]) -> tuple[str, ...]:
        """Updates the best evaluation from a line of metrics; describes the last and the best."""
        evaluation = line.get("evaluation")
        if not evaluation:
            return ()
        self._best = self._best.after(line)
        split, measure = deciding_split(evaluation), self._best.measure
        what = split if measure == ACCURACY else f"{split} {measure}"
        text = f"{what} {_figure(evaluation[split].get(key_of(measure)))} @{line['round']}"
        if self._best.round_num == line["round"]:
            return (f"{text} (best)",)
        return text, f"best {_figure(self._best.value)} @{self._best.round_num}"

    def _add_line(self, result: RoundResult, num_rounds: int) -> None:
        now = time.monotonic()
        if self._every_line or now - self._shown_at >= _LINE_SECONDS:
            self._shown_at = now
            is_best = self._best.round_num == result.round_num
            line = evaluation_line(result.metrics, num_rounds, self._measures, is_best=is_best)
            self._lines.append(line)


class Speed:
    """Computes rates over the last few seconds, or over the last round if that takes longer."""

    def __init__(self) -> None:
        """Starts without an observation."""
        self._observations: deque[tuple[float, float, int]] = deque(maxlen=_MAX_OBSERVATIONS)

    def observe(
        self, now: float, snapshot: Snapshot, share: float = 0.0
    ) -> tuple[float | None, float | None]:
        """Returns examples per second and the seconds left; None while they are unknown.

        Args:
            now: Seconds of a monotonic clock.
            snapshot: The progress at that time.
            share: The completed share of the current round, from 0 to 1.
        """
        position = snapshot.round_num + share
        window = self._observations
        window.append((now, position, snapshot.num_examples))
        while len(window) > _SPEED_WINDOW and position - window[1][1] >= 1:
            window.popleft()
        then, first, examples = window[0]
        seconds = now - then
        if position <= first or seconds <= 0:
            return None, None
        left = (snapshot.num_rounds - position) * seconds / (position - first)
        done = snapshot.num_examples - examples
        return (done / seconds if done else None), left


def attend(worker: Worker[Any], monitor: Monitor, remarks: Remarks) -> None:
    """Shows the worker's progress until the worker has ended.

    On a terminal, one line is redrawn at most ten times a second; the lines of evaluations stay
    above it. Without a terminal, a line is written at the start of the run, after each evaluation
    (in a run of more than 100 evaluations at most one a second), and whenever 30 s (10 s with -v)
    have passed without a line. With -q nothing is shown.
    """
    if remarks.verbosity == Verbosity.QUIET:
        worker.wait()
    elif sys.stderr.isatty() and _can_redraw():
        _draw(worker, monitor, remarks)
    else:
        _log(worker, monitor, remarks)


def first_line(training: Training) -> str:
    """Returns the first line of a run's log: its folder, rounds, algorithm and data.

    For a run with nothing left to train: that it ended early, or how to train more.
    """
    config = training.config
    if training.is_finished:
        return _nothing_left(training)
    begun = f"continues after round {training.round_num:,} of " if training.round_num else ""
    rounds = f"{begun}{training.num_rounds:,} {'rounds' if training.num_rounds > 1 else 'round'}"
    return f"run {training.path}: {rounds}, {config.algorithm} on {config.data}"


def _nothing_left(training: Training) -> str:
    done, rounds = training.round_num, training.num_rounds
    if done < rounds:
        early = f"ended early after round {done:,} of {rounds:,}"
        return f"run {training.path}: {early}; nothing is left to train"
    more = "".join(f" {option} {shlex.quote(text)}" for option, text in training.code.items())
    path = shlex.quote(str(training.path))
    return (
        f"run {training.path}: nothing is left to train after round {done:,} of {rounds:,}; to "
        f"train more, raise the number: fedcli train --resume {path}{more} --rounds "
        f"{rounds + max(1, rounds // 2)}"
    )


def evaluation_line(
    line: Mapping[str, Any], num_rounds: int, measures: Sequence[str], *, is_best: bool
) -> str:
    """Returns the text of a log line with the results of a round's evaluations.

    Args:
        line: The round's line of metrics.jsonl.
        num_rounds: Number of rounds of the run.
        measures: Names of further metrics. They are shown if there are at most three.
        is_best: Whether the round is the best so far.
    """
    parts = [f"round {line['round']:>{len(str(num_rounds))}}/{num_rounds}"]
    for split, scores in line["evaluation"].items():
        loss, accuracy = (_figure(scores[key_of(measure)]) for measure in ("loss", ACCURACY))
        further = [f" {name} {_figure(scores[name])}" for name in measures if name in scores]
        more = "".join(further) if len(further) <= _MAX_FURTHER_METRICS else ""
        parts.append(f"{split} loss {loss} acc. {accuracy}{more}")
    privacy = _privacy(line)
    return "  ".join([*parts, *([privacy] if privacy else []), *(["best"] if is_best else [])])


def describe(
    snapshot: Snapshot,
    examples_a_second: float | None,
    seconds_left: float | None,
    clients: tuple[int, int] | None = None,
) -> list[Part]:
    """Returns the parts of the live line that describe a snapshot, in order.

    Args:
        snapshot: The snapshot.
        examples_a_second: Speed; None: not known.
        seconds_left: Estimated time to the end; None: not known.
        clients: Numbers of trained clients and of all clients of the round; None: not shown.
    """
    from fedcli.cli.jobs.live_line import Part

    parts = []
    if clients is not None:
        parts.append(Part(f"{clients[0]:,}/{clients[1]:,} clients", 4))
    for text, weight in zip(snapshot.evaluated, (5, 4), strict=False):  # the last, the best
        parts.append(Part(text, weight))
    if snapshot.privacy:
        parts.append(Part(snapshot.privacy, 4))
    if snapshot.loss is not None or snapshot.accuracy is not None:
        parts.append(Part(f"loss {_figure(snapshot.loss)}", 3))
        parts.append(Part(f"accuracy {_figure(snapshot.accuracy)}", 2))
    if examples_a_second is not None:
        parts.append(Part(f"{short_number(examples_a_second)} examples/s", 1))
    if snapshot.round_num >= snapshot.num_rounds:
        parts.append(Part("closing evaluation", 6))
    elif seconds_left is not None:
        parts.append(Part(f"{clock(seconds_left)} left", 6))
    return parts


def short_number(number: float) -> str:
    """Returns a number of at least 0.001 in at most six characters: 0.35, 950, 12.3k, 4.56M."""
    rounded = float(f"{number:.3g}")  # first, or 999,999 would be 1e+03k
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= factor:
            return f"{rounded / factor:.3g}{unit}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def clock(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figure(value: float | None) -> str:
    if value is None or value - value != 0:
        return "not finite"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _privacy(line: Mapping[str, Any]) -> str:
    """Epsilon after a round; "" without --dp or before the first round."""
    epsilon = line.get("aggregator", {}).get("epsilon")
    if "private" not in line.get("aggregator", {}):
        return ""
    is_infinite = epsilon is None or epsilon - epsilon != 0
    return "epsilon infinite" if is_infinite else f"epsilon {epsilon:.4f}"


def _title(snapshot: Snapshot) -> str:
    return f"round {snapshot.round_num}/{snapshot.num_rounds}"


def _share(clients: tuple[int, int] | None) -> float:
    return 0.0 if clients is None else clients[0] / clients[1]


def _can_redraw() -> bool:
    from fedcli.cli.jobs.live_line import can_redraw  # imported late: only terminals need it

    return can_redraw(sys.stderr)


def _log(worker: Worker[Any], monitor: Monitor, remarks: Remarks) -> None:
    is_verbose = remarks.verbosity == Verbosity.VERBOSE
    pause = LOG_SECONDS if is_verbose else _USUAL_LOG_SECONDS
    speed, logged_at = Speed(), time.monotonic()
    while not worker.wait(_POLL_SECONDS):
        now, lines, snapshot = time.monotonic(), monitor.take_lines(), monitor.snapshot
        for line in lines:
            remarks.note(line)
        if lines:
            logged_at = now
        if snapshot is None:
            continue
        clients = monitor.clients_done()
        rates = speed.observe(now, snapshot, _share(clients))
        if now - logged_at >= pause:
            logged_at = now
            parts = [part.text for part in describe(snapshot, *rates, clients)]
            remarks.note("  ".join([_title(snapshot), *parts]))
    if not worker.has_failed:  # after a failure only the error is shown
        for line in monitor.take_lines():
            remarks.note(line)


def _draw(worker: Worker[Any], monitor: Monitor, remarks: Remarks) -> None:
    if worker.wait(2 * REFRESH_SECONDS):  # a short run needs no bar
        return
    from fedcli.cli.jobs.live_line import LiveLine

    speed = Speed()
    with LiveLine(sys.stderr, remarks) as live:
        while not worker.wait(REFRESH_SECONDS):
            snapshot = monitor.snapshot
            for line in monitor.take_lines():
                live.above(one_line(line))
            if snapshot is None:
                live.show("opening the data", [])
                continue
            clients = monitor.clients_done()
            share = _share(clients)
            rates = speed.observe(time.monotonic(), snapshot, share)
            parts = describe(snapshot, *rates, clients)
            done = (snapshot.round_num + share) / max(1, snapshot.num_rounds)
            live.show(_title(snapshot), parts, done)
        for line in monitor.take_lines():
            live.above(one_line(line))
