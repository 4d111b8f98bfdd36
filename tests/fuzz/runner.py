"""Runs changed inputs, each in a child process with limits of time and memory, and checks its end.

The child must end with exit code 0, 1 or 2. If the code is not 0, one line on stderr must say why.
Anything else is a finding: another exit code, a signal, a traceback, more lines, a very long
line, a run of more than `MAX_SECONDS`, or more memory than `MAX_MEBIBYTES`.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import fedcli
from tests.fuzz.targets import Part, Target, write_input

MAX_SECONDS = 20
MAX_MEBIBYTES = 1024  # in addition to the memory of Python and its libraries
_ROOM = 1 << 30  # free bytes needed for inputs and outputs
_MAX_LINE = 1100  # characters of a message with its prefix
_PYTHONS_INSIDES = re.compile(r"Traceback|object at 0x|<built-in|<class '")
_CRASHED = 70


@dataclass
class Report:
    """The results of the inputs of a target: how they ended, and the findings."""

    name: str
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return sum(self.ends.values())

    def line(self) -> str:
        """Returns a line: the number of inputs, how they ended, and the number of findings."""
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        return f"{self.name:15} {self.num_inputs:6} inputs, {len(self.findings)} findings ({ends})"


def fuzz(
    name: str,
    target: Target,
    seconds: float,
    seed: int,
    keep: Path | None = None,
    most: int = sys.maxsize,
) -> Report:
    """Runs changed inputs of a target until the time is over, but at least one input.

    Args:
        name: The name of the target. An input depends only on `seed`, `name` and its number.
        target: The target.
        seconds: The time for running inputs; the time for making them does not count.
        seed: The seed of the changes.
        keep: A folder for inputs with findings, or None.
        most: The largest number of inputs.
    """
    report = Report(name)
    with tempfile.TemporaryDirectory(prefix="fedcli-fuzz-", dir=_in_memory()) as folder:
        made = _made(Path(folder) / "made", target)
        end = time.monotonic() + seconds
        number = 0
        while number == 0 or (number < most and time.monotonic() < end):
            place = Path(folder) / str(number)
            rng = random.Random(f"{seed}/{name}/{number}")
            parts = made[rng.randrange(len(made))]
            place.mkdir()
            (place / "input").mkdir()
            how, finding = _run(place, target, parts, rng)
            report.ends[how] += 1
            if finding is not None:
                report.findings.append(f"{name} {number} (seed {seed}): {finding}")
                if keep is not None:
                    shutil.copytree(place, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            number += 1
    return report


def _in_memory() -> str | None:
    """Returns a folder in memory, so that no child waits for a disk; None if there is no room."""
    memory = Path("/dev/shm")
    is_there = memory.is_dir() and os.access(memory, os.W_OK)
    return str(memory) if is_there and shutil.disk_usage(memory).free > _ROOM else None


def import_all() -> None:
    """Imports all of fedcli. Children would otherwise spend most of their time on imports."""
    for module in pkgutil.walk_packages(fedcli.__path__, "fedcli."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                import_module(module.name)


def _made(folder: Path, target: Target) -> list[dict[str, Part]]:
    """Makes and returns the unchanged inputs of a target."""
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        return target.make()
    finally:
        os.chdir(before)


def _run(
    place: Path, target: Target, parts: Mapping[str, Part], rng: random.Random
) -> tuple[str, str | None]:
    """Runs one input; returns how it ended, and the finding or None."""
    child = os.fork()
    if child == 0:
        os._exit(_be_the_child(place, target, parts, rng))
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    said = (place / "stderr").read_text(errors="replace") if (place / "stderr").exists() else ""
    mebibytes = usage.ru_maxrss >> (20 if sys.platform == "darwin" else 10)
    return f"exit {code}", _judge(code, said, mebibytes)


def _be_the_child(
    place: Path, target: Target, parts: Mapping[str, Part], rng: random.Random
) -> int:
    """Runs the input in this process and returns its exit code."""
    try:
        os.chdir(place / "input")
        nowhere = os.open(os.devnull, os.O_RDWR)
        errors = os.open(place / "stderr", os.O_WRONLY | os.O_CREAT)
        for descriptor, stream in ((nowhere, 0), (nowhere, 1), (errors, 2)):
            os.dup2(descriptor, stream)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        write_input(parts, rng)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(MAX_SECONDS)
        _bound_memory()
        code = target.run(rng)
    except BaseException:
        traceback.print_exc()
        code = _CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _bound_memory() -> None:
    """Limits the memory of this process to `MAX_MEBIBYTES` more than it has now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: the peak of memory is checked afterwards
        return
    most = pages * resource.getpagesize() + (MAX_MEBIBYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _judge(code: int, said: str, mebibytes: int) -> str | None:
    """Returns the finding, or None."""
    lines = said.splitlines()
    last = lines[-1][:200] if lines else ""
    if code == -signal.SIGALRM:
        return f"no end within {MAX_SECONDS} s"
    if code not in (0, 1, 2):
        return f"exit code {code}: {last}"
    if _PYTHONS_INSIDES.search(said):
        return f"Python's insides: {last}"
    if mebibytes > MAX_MEBIBYTES or "out of memory" in said:
        return f"{mebibytes} MiB of memory: {last}"
    if code and (not lines or not all(line.startswith("fedcli") for line in lines)):
        return f"{len(lines)} lines: {last}"
    if sum(": error: " in line for line in lines) > 1 or any(
        len(each) > _MAX_LINE for each in lines
    ):
        return f"text without end: {last}"
    if not all(char.isprintable() or char == "\n" for char in said):
        return f"what is no character: {last!r}"
    return None
