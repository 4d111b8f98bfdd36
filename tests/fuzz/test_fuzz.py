"""The fuzzer: its unchanged inputs are correct, and it finds planted faults."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import runner
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, Part, Target

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the path so that commands for making inputs can import fedcli in any folder."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.mark.parametrize("name", TARGETS)
def test_unchanged_inputs_are_correct(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = TARGETS[name]
    ends = []
    for number, parts in enumerate(target.make()):
        place = tmp_path / f"place-{number}"
        (place / "input").mkdir(parents=True)
        monkeypatch.setattr("tests.fuzz.targets.mutate", lambda content, rng: content)
        how, finding = runner._run(place, target, parts, random.Random(0))
        assert finding is None
        ends.append((how, (place / "stderr").read_text()))
    if name == "download":  # only two of the answers give the whole file, or its missing rest
        assert [how for how, _ in ends].count("exit 0") == 2
    else:
        assert {how for how, _ in ends} == {"exit 0"}, ends


def test_a_change_depends_only_on_the_seed() -> None:
    content = bytes(range(256)) * 8
    changed = [mutate(content, random.Random(f"{seed}/x")) for seed in range(200)]
    assert changed == [mutate(content, random.Random(f"{seed}/x")) for seed in range(200)]
    assert len(set(changed)) > 150
    assert all(isinstance(mutate(b"", random.Random(seed)), bytes) for seed in range(200))


def _say(text: str) -> int:
    os.write(2, text.encode())
    return 1


def _hang() -> int:
    while True:
        time.sleep(60)


def _crash() -> int:
    faulthandler.disable()  # pytest has enabled it, and it would print the stacks
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


@pytest.mark.parametrize(
    ("run", "finding"),
    [
        (lambda: 0, None),
        (lambda: _say("fedcli: error: d: damaged; fetch it again\n"), None),
        (lambda: 1, "0 lines"),
        (lambda: 3, "exit code 3"),
        (lambda: 1 // 0, "exit code 70: ZeroDivisionError"),
        (_crash, "exit code -11"),
        (_hang, "no end within 1 s"),
        (lambda: _say("Traceback (most recent call last):\n"), "Python's insides"),
        (lambda: _say("fedcli: error: <ast.BinOp object at 0x7f>\n"), "Python's insides"),
        (lambda: _say("something\n"), "1 lines"),
        (lambda: _say("fedcli: error: " + "x" * 5000), "text without end"),
        (lambda: _say("fedcli: error: a\nfedcli: error: b\n"), "text without end"),
        (lambda: _say("fedcli: error: \x1b[31m\n"), "what is no character"),
        (lambda: len(bytearray(1 << 31)) * 0, "exit code 70: MemoryError"),
    ],
)
def test_planted_faults_are_found(
    run: Callable[[], int], finding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finding is not None and "Memory" in finding and not Path("/proc/self/statm").exists():
        pytest.skip("memory is bounded on Linux alone")
    if run is _hang:
        monkeypatch.setattr(runner, "MAX_SECONDS", 1)
    target = Target(lambda: [{"file": Part(b"content")}], lambda _: run())
    report = runner.fuzz("planted", target, 0.0, 0)
    assert report.num_inputs == 1
    if finding is None:
        assert report.findings == []
    else:
        assert finding in report.findings[0]
        assert "planted 0 (seed 0)" in report.findings[0]


def test_an_input_that_led_to_a_finding_is_kept(tmp_path: Path) -> None:
    target = Target(lambda: [{"file": Part(b"content")}], lambda _: 3)
    runner.fuzz("planted", target, 0.0, 5, tmp_path)
    assert (tmp_path / "planted-5-0" / "input" / "file").exists()
