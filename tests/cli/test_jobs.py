"""Long jobs: the text of their line, and a real process that draws, is silent or is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from fedcli.cli.jobs import long_job
from fedcli.cli.jobs.long_job import Meter, run_job
from fedcli.cli.jobs.signals import SAME_SECONDS, Stopped, stop_on_request, stop_on_sigterm
from fedcli.cli.screen.output import Remarks, Verbosity
from fedcli.core.native import Cancelled
from fedcli.errors import DataError
from fedcli.progress import ProgressCallback
from tests.kit.command_line import draw_on_terminal
from tests.kit.waiting import PATIENCE_SECONDS, started

# A program with one command, which counts to a hundred or without end.
PROGRAM = """
import sys, time
from fedcli.cli import main as cli
from fedcli.cli.jobs import long_job
from fedcli.cli.screen.output import Remarks
from tests.kit.lock_step import wait_until_drawn

def count(on_progress):
    print("started", flush=True)
    for done in range(20, 101, 20) if LIMIT else range(10**9):
        on_progress(done, 100 if LIMIT else None)
        WAIT
    return "counted"

def main(arguments, **_):
    print(long_job.run_job("counting", "example", count, remarks=Remarks(VERBOSITY), **MORE))
    return 0

cli.group.main = main
sys.exit(cli.run([]))
"""


def program(
    limit: bool = True, verbosity: int = 1, more: str = "{}", wait: str = "time.sleep(0.01)"
) -> list[str]:
    text = PROGRAM.replace("LIMIT", str(limit)).replace("VERBOSITY", str(verbosity))
    return [sys.executable, "-c", text.replace("MORE", more).replace("WAIT", wait)]


def meter_at(done: int, total: int | None) -> Meter:
    meter = Meter()
    meter.done, meter.total = done, total
    return meter


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (0, None, "clients", "0 clients"),
        (950, 1000, "examples", "950/1k examples"),
        (12_345, None, "B", "12.3kB"),
        (1_500_000, 3_000_000, "B", "1.5M/3MB"),
        (1_500_000, None, "", "1.5M"),
    ],
)
def test_first_line_has_no_rate(done: int, total: int | None, unit: str, text: str) -> None:
    assert meter_at(done, total).describe(10.0, unit) == text


def test_rate_and_time_left() -> None:
    meter = meter_at(100, 1000)
    meter.describe(10.0, "examples")
    meter.done = 300
    assert meter.describe(14.0, "examples") == "300/1k examples  50 examples/s  0:14 left"
    meter.total = None
    meter.done = 500
    assert meter.describe(18.0, "examples") == "500 examples  50 examples/s"
    meter.total = 400  # the former total was an estimate
    assert meter.describe(18.0, "examples").endswith("  0:00 left")


def test_bytes_stand_right_behind_the_figures() -> None:
    meter = meter_at(0, 4_000_000)
    meter.describe(0.0, "B")
    meter.done = 1_000_000
    assert meter.describe(2.0, "B") == "1M/4MB  500kB/s  0:06 left"


def test_no_rate_while_nothing_moves_or_no_time_has_passed() -> None:
    meter = meter_at(5, 10)
    assert meter.describe(1.0, "x") == meter.describe(2.0, "x") == "5/10 x"
    other = meter_at(5, 10)
    other.describe(1.0, "x")
    other.done = 6
    assert other.describe(1.0, "x") == "6/10 x"


def test_rate_is_of_the_last_five_seconds() -> None:
    meter = meter_at(0, None)
    for tick in range(200):
        meter.done += 1000 if tick < 100 else 10
        text = meter.describe(tick * 0.1, "x")
    assert text.endswith("  100 x/s")


def test_next_part_of_a_job_starts_its_own_rate() -> None:
    meter = meter_at(0, 1000)
    meter.describe(0.0, "x")
    meter.done = 1000
    meter.describe(1.0, "x")
    meter.done, meter.total = 10, 50
    assert meter.describe(2.0, "x") == "10/50 x"
    meter.done = 20
    assert meter.describe(4.0, "x") == "20/50 x  5 x/s  0:06 left"


@pytest.mark.parametrize("verbosity", [0, 1])
def test_returns_what_the_job_returns_in_silence(
    verbosity: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(on_progress: ProgressCallback) -> tuple[str, bool]:
        on_progress(1, 2)
        on_progress(2, None)
        return "result", threading.current_thread() is threading.main_thread()

    assert run_job("t", "x", job, remarks=Remarks(verbosity)) == ("result", False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [DataError("broken"), ValueError("bug"), KeyboardInterrupt()])
def test_raises_what_the_job_raises(error: BaseException) -> None:
    def job(on_progress: ProgressCallback) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_job("t", "x", job, remarks=Remarks(0))
    assert caught.value is error


class _Slow:
    """An object that takes a while to be destroyed, such as a file that is closed last."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __del__(self) -> None:
        time.sleep(0.2)
        self.events.append("gone")


@pytest.mark.parametrize("error", [None, DataError("broken")])
def test_the_thread_of_a_job_has_ended_before_its_result_is_there(error: DataError | None) -> None:
    """Otherwise Python's exit could wait for a lock that the thread holds."""
    events: list[str] = []

    def job(on_progress: ProgressCallback) -> None:
        kept = threading.local()  # is destroyed with its thread
        kept.slow = _Slow(events)
        jobs.append((threading.current_thread(), kept))
        if error is not None:
            raise error

    jobs: list[tuple[threading.Thread, threading.local]] = []
    with pytest.raises(DataError) if error else nullcontext():
        run_job("t", "x", job, remarks=Remarks(0))
    assert not jobs[0][0].is_alive()
    assert events == ["gone"]


def test_a_job_has_ended_before_an_error_outside_it_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example, the terminal on which the line of the job is drawn was closed."""
    events = []

    def job(on_progress: ProgressCallback) -> None:
        try:
            while True:
                on_progress(1, 1)
        finally:
            events.append("cleaned up")

    def fail(*_: object) -> None:
        raise BrokenPipeError

    remarks = Remarks(Verbosity.VERBOSE)
    monkeypatch.setattr(long_job, "LOG_SECONDS", 0.02)
    monkeypatch.setattr(remarks, "detail", fail)
    with pytest.raises(BrokenPipeError):
        run_job("t", "x", job, remarks=remarks)
    assert events == ["cleaned up"]


class _Deaf:
    """Like many objects of h5py, it gets a signal in `__del__`, where Python drops exceptions."""

    def __init__(self, signal_num: signal.Signals) -> None:
        self.signal_num = signal_num

    def __del__(self) -> None:
        os.kill(os.getpid(), self.signal_num)
        time.sleep(0)


@pytest.mark.parametrize(
    ("signal_num", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_is_heard_though_python_drops_its_exception(
    signal_num: signal.Signals, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def drop_a_signal() -> None:
        with stop_on_sigterm():
            _Deaf(signal_num)
            time.sleep(PATIENCE_SECONDS)

    before = sys.unraisablehook
    # Programs that a shell starts in the background may ignore SIGINT.
    ignoring = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error):
            drop_a_signal()
    finally:
        signal.signal(signal.SIGINT, ignoring)
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is before


def test_other_exceptions_that_python_drops_are_told_as_ever() -> None:
    told: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda each: told.append(each.exc_type)
    try:
        with stop_on_sigterm():
            sys.unraisablehook(SimpleNamespace(exc_type=ValueError, exc_value=ValueError()))
    finally:
        sys.unraisablehook = before
    assert told == [ValueError]


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_job("t", "x", lambda on_progress: None, remarks=Remarks(0))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("signal_num", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_job_where_it_tells(signal_num: signal.Signals) -> None:
    events = []

    def job(on_progress: ProgressCallback) -> None:
        on_progress(1, 1)
        os.kill(os.getpid(), signal_num)
        try:
            while True:
                on_progress(1, 1)
        except Cancelled:
            events.append("cleaned up")
            raise

    def describe_stop() -> str:
        events.append("described")
        return "half done; run it again"

    with pytest.raises(Stopped, match=r"^half done; run it again$") as caught:
        run_job("t", "x", job, remarks=Remarks(0), describe_stop=describe_stop)
    assert caught.value.signal_num == signal_num
    assert events == ["cleaned up", "described"]


def test_verbose_writes_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_job, "LOG_SECONDS", 0.02)
    written = threading.Event()
    remarks = Remarks(Verbosity.VERBOSE)
    detail = remarks.detail

    def detail_and_report(text: str) -> None:
        detail(text)
        written.set()

    monkeypatch.setattr(remarks, "detail", detail_and_report)

    def job(on_progress: ProgressCallback) -> None:
        on_progress(3, 9)
        assert written.wait(PATIENCE_SECONDS)

    run_job("reading", "clients", job, remarks=remarks)
    out, err = capsys.readouterr()
    assert out == ""
    assert set(err.splitlines()) <= {"fedcli: reading: 0 clients", "fedcli: reading: 3/9 clients"}


@pytest.mark.parametrize(
    ("signal_num", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("{}", "fedcli: stopped; nothing was written\n"),
        ("dict(describe_stop=lambda: 'kept half')", "fedcli: kept half\n"),
    ],
    ids=["default", "described"],
)
def test_stopped_process_has_the_signals_exit_code(
    process_arguments: dict[str, Any], signal_num: signal.Signals, code: int, more: str, line: str
) -> None:
    with started(
        program(limit=False, more=more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_arguments,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal_num)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (code, "", line)


STUBBORN = """
import sys, time
from fedcli.cli import main as cli
from fedcli.cli.jobs import long_job
from fedcli.cli.screen.output import Remarks
from fedcli.core.native import CancelFlag

def never_end(on_progress):
    print("started", flush=True)
    while not cancel.is_set():
        time.sleep(0.01)
    print("heard", flush=True)
    while True:  # without telling, so that no signal ends it
        time.sleep(0.01)

def main(arguments, **_):
    long_job.run_job("t", "x", never_end, remarks=Remarks(1), cancel=cancel)

cancel = CancelFlag()
cli.group.main = main
sys.exit(cli.run([]))
"""


def test_second_ctrl_c_ends_a_job_that_does_not_listen(process_arguments: dict[str, Any]) -> None:
    with started(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_arguments,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n"
        time.sleep(2 * SAME_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert process.returncode == 130


def test_a_signal_that_arrives_twice_counts_once() -> None:
    """As from `timeout`, which signals its process and then the process group."""
    requests: list[None] = []
    with stop_on_request(lambda: requests.append(None)) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert (len(requests), request.signal_num) == (1, signal.SIGINT)


def test_pipe_shows_nothing(process_arguments: dict[str, Any]) -> None:
    done = subprocess.run(program(), capture_output=True, check=True, **process_arguments)
    assert (done.stdout, done.stderr) == ("started\ncounted\n", "")


def test_terminal_shows_a_bar_that_does_not_stay(process_arguments: dict[str, Any]) -> None:
    out, drawn = draw_on_terminal(program(wait="wait_until_drawn()"), **process_arguments)
    for word in ("counting", "example/s", " left"):
        assert word in drawn
    shares = re.findall(r"(━*)[╸╺]? *(\d+)/100 example", drawn)
    assert {int(done) for _, done in shares} >= {20, 40, 60, 80, 100}
    for bar, done in shares:
        assert abs(len(bar) - int(done) / 5) <= 1
    assert drawn.endswith("\x1b[2K")  # the line is erased
    assert out == "started\ncounted\n"


def test_quiet_terminal_shows_nothing(process_arguments: dict[str, Any]) -> None:
    assert draw_on_terminal(program(verbosity=0), **process_arguments) == ("started\ncounted\n", "")
