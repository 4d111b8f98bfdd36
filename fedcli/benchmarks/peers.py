"""Other programs that do the same tasks, each in its own process with its own threads and BLAS."""

from __future__ import annotations

import importlib.util
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from tempfile import TemporaryFile

from fedcli.benchmarks.tasks import Task
from fedcli.benchmarks.timing import Runner
from fedcli.errors import ConfigError, FedcliError

# The name of each peer, which is also its module, and the command that installs it.
PEERS = {"numpy": "pip install numpy", "torch": "pip install 'fedcli[torch]'"}
READY = "ready"
_POLL_SECONDS = 0.1
# The environment variables that set the threads of the libraries.
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)


def choose(names: str) -> tuple[list[str], list[str]]:
    """Returns the named peers that are installed, and those that are not.

    Args:
        names: Separated by commas.

    Raises:
        ConfigError: A name is unknown.
    """
    chosen, missing = [], []
    for name in dict.fromkeys(each.strip() for each in names.split(",")):
        if name not in PEERS:
            raise ConfigError(f"--compare '{name}': choose from {', '.join(PEERS)}")
        if importlib.util.find_spec(name) is None:
            missing.append(name)
        else:
            chosen.append(name)
    return chosen, missing


class Peer:
    """A process that does one task on request. It ends with `close`, or with this process."""

    def __init__(
        self,
        name: str,
        task: Task,
        num_threads: int,
        *,
        module: str,
        environment: Mapping[str, str],
        poll: Callable[[], None],
        resources: ExitStack,
    ) -> None:
        """Starts it and waits until it is ready.

        Args:
            name: A key of `PEERS`.
            task: The task.
            num_threads: Threads of its BLAS or operators.
            module: The module that Python runs with the arguments name, threads and task. It prints
                `READY`. Then, for each line on stdin with a number of calls, it makes these calls
                and prints the seconds that they took.
            environment: Its environment.
            poll: Called repeatedly while it works; may raise to end it.
            resources: The stack that ends the process.

        Raises:
            FedcliError: It ended before it was ready.
        """
        self.name, self.threads = name, num_threads
        self._poll = poll
        self._errors = TemporaryFile("w+")  # noqa: SIM115 - until `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(num_threads), task.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**environment, **dict.fromkeys(_THREAD_VARIABLES, str(num_threads))},
            start_new_session=True,  # Ctrl-C reaches fedcli, which ends this process
        )
        resources.callback(self.close)
        if self._answer() != READY:
            raise self._failure()

    def runner(self) -> Runner:
        """Returns the peer as a runner."""
        return Runner(self.name, self.threads, self.run)

    def run(self, num_calls: int) -> float:
        """Returns the seconds that `num_calls` calls took in the process.

        Raises:
            FedcliError: The process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{num_calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        answer = self._answer()
        if not answer:
            raise self._failure()
        return float(answer)

    def close(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], _POLL_SECONDS)[0]:
            self._poll()
        return self._process.stdout.readline().strip()

    def _failure(self) -> FedcliError:
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        reason = lines[-1] if lines else f"exit code {self._process.returncode}"
        return ConfigError(
            f"--compare {self.name}: its process ended: {reason}; leave {self.name} out, or choose "
            "other --jobs"
        )
