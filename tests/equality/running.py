"""Runs the configurations with two programs and compares the files that they leave.

Both programs work in the same folder, one after the other, so that absolute paths in files are the
same.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.equality import contents
from tests.equality.configurations import Configuration
from tests.equality.contents import Contents

TIMEOUT_SECONDS = 120


class StepError(Exception):
    """A command line that failed."""


@dataclass(frozen=True)
class Result:
    """The result of comparing one configuration.

    Attributes:
        name: Name of the configuration.
        differences: Differences in words, by the name of the output.
        num_compared: Number of files, parts of files and printed JSON that were compared.
        failure: The command that failed, and its message; None if none failed.
        skipped: Why the configuration was not run; None if it was run.
        seconds: Wall-clock time in seconds.
    """

    name: str
    differences: dict[str, str] = field(default_factory=dict)
    num_compared: int = 0
    failure: str | None = None
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether the configuration was run and nothing differs."""
        return not self.differences and self.failure is None and self.skipped is None


def run_command(fedcli: Path, words: Sequence[str], folder: Path, **environment: str) -> str:
    """Returns what a command prints on stdout.

    Raises:
        StepError: The command failed, or took longer than TIMEOUT_SECONDS.
    """
    command = f"{fedcli} {shlex.join(words)}"
    try:
        done = subprocess.run(
            [fedcli, *words],
            cwd=folder,
            env=_environment(folder, environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise StepError(f"{command}: {err}") from err
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise StepError(f"{command}: exit code {done.returncode}: {' '.join(said)}")
    return done.stdout


def _environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    """Returns this process's environment for a program, with `more` and with new caches.

    Variables of fedcli, Python and OpenMP are left out.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FEDCLI", "PYTHON", "OMP_", "GOMP_"))
    }
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "FEDCLI_OFFLINE": "1", "NO_COLOR": "1"}
    return {**ours, **own, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", **more}


@dataclass(frozen=True)
class Program:
    """One of the two programs that are compared.

    Attributes:
        fedcli: The executable.
        change: Changes each step before it is run. In the self-check it causes the differences.
    """

    fedcli: Path
    change: Callable[[str], str] = str


@dataclass(frozen=True)
class Comparison:
    """Two programs, and the folders in which they work.

    Attributes:
        before: The program whose results are right.
        after: The program that is compared with it.
        inputs: Folder of the inputs, copied for each configuration.
        scratch: Folder in which a folder for each configuration is made and removed.
    """

    before: Program
    after: Program
    inputs: Path
    scratch: Path

    def run(self, configuration: Configuration) -> Result:
        """Runs a configuration with both programs, one after the other."""
        start = time.monotonic()
        folder = self.scratch / configuration.name
        try:
            found, count = self._differences(configuration, folder)
        except StepError as err:
            return Result(configuration.name, failure=str(err))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Result(configuration.name, found, count, seconds=time.monotonic() - start)

    def _differences(self, each: Configuration, folder: Path) -> tuple[dict[str, str], int]:
        """Returns the differences by name, and the number of outputs compared.

        AFTER runs `later` on the files that BEFORE left, not on its own files. Differences between
        these two sets of files have already been found when `steps` were compared.
        """
        work, kept = folder / "work", folder / "kept"
        self._set_up(work)
        before = _results(self.before, each.steps, each, work)
        if each.later:
            shutil.copytree(work, kept)
            later = _results(self.before, each.later, each, work)
        self._set_up(work)
        after = _results(self.after, each.steps, each, work)
        found, count = contents.differences(before, after), len(before)
        if each.later:
            shutil.rmtree(work)
            kept.rename(work)
            read = _results(self.after, each.later, each, work)
            across = contents.differences(later, read)
            found |= {f"{name} (written before, read after)": text for name, text in across.items()}
            count += len(later)
        return found, count

    def _set_up(self, work: Path) -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        shutil.copytree(self.inputs, work / "inputs")


def _results(
    program: Program, steps: Sequence[str], configuration: Configuration, work: Path
) -> Contents:
    """Runs the steps; returns what steps with --json print, and the contents of the folder."""
    found = {}
    for step in steps:
        words = shlex.split(program.change(step))
        text = run_command(program.fedcli, words, work, **configuration.environment)
        if "--json" in words:
            found[f"printed by: {step}"] = contents.of_printed(text)
    return found | contents.of_folder(work, skipped=frozenset({"inputs", "cache"}))
