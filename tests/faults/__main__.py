"""Runs commands on a disk that fails, and checks the files that remain and the next run.

    python -m tests.faults [--seconds S] [--seed N] [--only NAME] [--fault CALL] [--list]

For each scenario, each kind of call (write, half a write, fsync, rename, open, unlink, truncate,
mkdir) and each n, the n-th such call in the scenario's folder fails: once with EIO, once with
ENOSPC, and for writes also together with all later calls. Then these are checked:

  * The command ends within a minute, with status 0, or with status 1 and one line.
  * If the status is 0, the results are those of a run without a fault.
  * If the command is run again (a run is resumed), it gives those results or refuses in one line,
    and leaves no temporary file.

Without --seconds all faults are injected; with it, as many as the time allows, in an order that
--seed decides. This program needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import itertools
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "FEDCLI_FAULT_LIBRARY"
KINDS = ("write", "short write", "fsync", "rename", "open", "unlink", "truncate", "mkdir")
CODES = (errno.ENOSPC, errno.EIO)
SECONDS = 60  # a command that takes longer hangs
CRASHED = 99  # the status of a command that raised an exception

# Patterns of temporary files; none may remain after a command that succeeded.
LEFT_OVERS = ("**/*.tmp", "**/*-journal", "**/*.part", "**/.*.tmp*")


def _preload() -> None:
    """Compiles the library and starts this program again with it preloaded."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "inject.so"
        source = Path(__file__).with_name("inject.c")
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
        )
        environment = {**os.environ, "LD_PRELOAD": str(library), LIBRARY: str(library)}
        arguments = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        sys.exit(subprocess.run(arguments, env=environment, check=False).returncode)


if LIBRARY not in os.environ:
    _preload()
os.environ.pop("LD_PRELOAD", None)  # processes that commands start must not load the library

from tests.faults import scenarios  # noqa: E402 - after the library is loaded
from tests.faults.scenarios import Scenario, Work  # noqa: E402

_library = ctypes.CDLL(os.environ[LIBRARY])
_library.fault_count.restype = ctypes.c_long


@dataclass(frozen=True)
class Fault:
    """The call that fails, and its error."""

    kind: int
    nth: int
    code: int = errno.EIO
    lasts: bool = False

    def __str__(self) -> str:
        rest = " and all after it" if self.lasts else ""
        return f"{KINDS[self.kind]} {self.nth}{rest}: {errno.errorcode[self.code]}"


COUNT_ONLY = Fault(0, 0)


@dataclass(frozen=True)
class Ended:
    """The exit status of a command, its text on stderr, and its number of calls of each kind."""

    status: int
    said: str
    counts: tuple[int, ...] = ()

    @property
    def problem(self) -> str | None:
        """What is wrong with the status or the text; None if nothing is."""
        if self.status == 0:
            return None
        lines = self.said.splitlines()
        errors = [line for line in lines if line.startswith("fedcli: error: ")]
        if self.status == 1 and len(errors) == 1 and lines[-1] == errors[0]:
            return None
        what = {-signal.SIGALRM: "hangs", CRASHED: "raises"}.get(
            self.status, f"ends with {self.status}"
        )
        return f"{what}: {self.said[-400:]!r}"


def _run(work: Work, folder: Path, fault: Fault, said: Path) -> Ended:
    """Runs work in a child process, in a folder in which one call fails."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(work, folder, fault, said, sender)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        counts = tuple(map(int, pipe.read().split()))
    _, waited = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(waited), said.read_text(errors="replace"), counts)


def _be_child(work: Work, folder: Path, fault: Fault, said: Path, sender: int) -> None:
    """Runs the work with the fault, sends the numbers of calls, and ends the process."""
    signal.alarm(SECONDS)
    status = CRASHED
    try:
        os.chdir(folder)
        (folder / "tmp").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDWR)
        for old, new in ((nothing, 0), (nothing, 1), (out, 2)):
            os.dup2(old, new)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        _library.fault_arm(
            os.fsencode(folder), fault.kind, ctypes.c_long(fault.nth), fault.code, fault.lasts
        )
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        counts = [_library.fault_count(kind) for kind in range(len(KINDS))]
        os.write(sender, " ".join(map(str, counts)).encode())
        sys.stderr.flush()
        os._exit(status)


def _results(scenario: Scenario, folder: Path) -> dict[str, bytes]:
    """The contents of the result files, by name."""
    found = itertools.chain.from_iterable(map(folder.glob, scenario.results))
    return {str(each.relative_to(folder)): each.read_bytes() for each in found if each.is_file()}


class Bench:
    """Runs scenarios in a folder: once without a fault, then with faults."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said = folder / "said"
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []

    def straight(self, scenario: Scenario) -> tuple[dict[str, bytes], tuple[int, ...]]:
        """Runs a scenario without a fault; returns its results and its numbers of calls."""
        case = self._fresh()
        ended = _run(scenario.command, case, COUNT_ONLY, self._said)
        results = _results(scenario, case)
        assert ended.status == 0, f"{scenario.name}: {ended.said}"
        assert results, scenario.name
        return results, ended.counts

    def try_fault(self, scenario: Scenario, fault: Fault, expected: dict[str, bytes]) -> None:
        """Runs a scenario with a fault, runs or resumes it without one, and records the outcome."""
        case = self._fresh()
        ended = _run(scenario.command, case, fault, self._said)
        outcome = "went through" if ended.status == 0 else "failed"
        problem = ended.problem
        if problem is None and ended.status == 0:
            problem = _difference(_results(scenario, case), expected, "")
        elif problem is None and scenario.resumes is None:
            problem = _difference(
                _results(scenario, case), expected, "what failed left ", some=True
            )
        if problem is None:
            again = _run(scenario.next_work(case), case, COUNT_ONLY, self._said)
            problem = again.problem
            if problem is None and again.status != 0:
                outcome += ", then refused"
            elif problem is None:
                outcome += ", then the same"
                problem = _difference(_results(scenario, case), expected, "run again, ")
                problem = problem or _left_overs(case)
            else:
                problem = f"run again, it {problem}"
        if problem is not None:
            outcome = "FAULT"
            said = ended.said.strip().splitlines()[-1:] or [""]
            self.problems.append(f"{scenario.name}, {fault}: {problem} (said {said[0][:160]!r})")
        self.outcomes[scenario.name, outcome] += 1

    def _fresh(self) -> Path:
        case = self._folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        return case


def _difference(
    found: dict[str, bytes], expected: dict[str, bytes], when: str, *, some: bool = False
) -> str | None:
    """Describes how `found` differs from `expected`; with `some`, files may be missing."""
    missing = set() if some else expected.keys() - found.keys()
    more = found.keys() - expected.keys()
    other = {name for name in found.keys() & expected.keys() if found[name] != expected[name]}
    if not (missing or more or other):
        return None
    return f"{when}missing {sorted(missing)}, more {sorted(more)}, other {sorted(other)}"


def _left_overs(case: Path) -> str | None:
    found = {
        str(each.relative_to(case)) for pattern in LEFT_OVERS for each in case.glob(pattern)
    } | {f"tmp/{each.name}" for each in (case / "tmp").iterdir()}
    return f"left over: {sorted(found)}" if found else None


def _faults(counts: tuple[int, ...]) -> Iterator[Fault]:
    """Yields all faults of a scenario; counts[kind] is its number of calls of a kind."""
    for kind, num in enumerate(counts):
        for nth, code in itertools.product(range(1, num + 1), CODES):
            yield Fault(kind, nth, code)
            if code == errno.ENOSPC and KINDS[kind] in ("write", "short write"):
                yield Fault(kind, nth, code, lasts=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, help="stop after this time; default: all faults")
    parser.add_argument("--seed", type=int, default=42, help="seed of the order; default: 42")
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument(
        "--fault", default="", help="only faults whose text begins so, as in 'fsync 3: EIO'"
    )
    parser.add_argument("--list", action="store_true", help="only count the calls")
    return parser.parse_args()


def main() -> int:
    """Injects the requested faults; returns 1 if anything is wrong."""
    given = _arguments()
    _import_all()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedcli-faults-", dir=memory) as name:
        folder = Path(name).resolve()
        (folder / "inputs").mkdir()
        url, server = scenarios.serve(folder / "inputs")
        bench = Bench(folder)
        jobs = []
        for scenario in _made(folder / "inputs", url):
            if given.only in scenario.name:
                expected, counts = bench.straight(scenario)
                told = json.dumps(dict(zip(KINDS, counts, strict=True)))
                print(f"{scenario.name}: {told}", flush=True)
                chosen = (each for each in _faults(counts) if str(each).startswith(given.fault))
                jobs += [(scenario, fault, expected) for fault in chosen]
        random.Random(given.seed).shuffle(jobs)
        ends_at = time.monotonic() + (given.seconds or float("inf"))
        for job in [] if given.list else jobs:
            if time.monotonic() > ends_at:
                break
            bench.try_fault(*job)
        server.kill()
    return _report(bench, len(jobs))


def _import_all() -> None:
    """Imports the modules that each child would otherwise have to import."""
    rooms = ("cli", "reports", "inspection", "runs", "evaluation", "federation", "learning")
    for room in (*rooms, "models", "datasets", "core", "settings"):
        package = importlib.import_module(f"fedcli.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module.name)
    importlib.import_module("sqlite3")


def _made(inputs: Path, url: str) -> list[Scenario]:
    """Returns the scenarios; a child makes their inputs, so that this process has no threads."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        scenarios.write_inputs(inputs)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return scenarios.listed(inputs, url)


def _report(bench: Bench, num_all: int) -> int:
    print(f"{bench.outcomes.total()} of {num_all} faults injected")
    for (name, outcome), num in sorted(bench.outcomes.items()):
        print(f"  {name:24} {outcome:34} {num:6}")
    for problem in bench.problems:
        print(f"FAULT {problem}")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
