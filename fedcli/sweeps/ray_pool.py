"""A pool of trainers on a Ray cluster, in place of processes of this machine.

A trainer has one processor and its own temporary folder. It receives the files of a run that is
continued, trains, and sends the run's files back, so the machines need no common file system. If a
trainer is lost, an event says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcli.cluster.connection import Connection, last_line
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.runs.files import folder as run_dir
from fedcli.sweeps.pool import Event

Files = dict[str, bytes]

_STOP_SECONDS = 30.0  # the time for saving; trainers that take longer are killed


class RayPool:
    """Trainers on a cluster, with the methods of `Pool`. As a context manager it ends them.

    Attributes:
        size: The largest number of trainers.
        max_threads: The largest number of threads of one run.
    """

    max_threads = 1  # a trainer has one processor

    def __init__(self, address: str, jobs: int | None, cancel: CancelFlag | None = None) -> None:
        """Connects to the cluster and starts no trainer yet.

        Args:
            address: See `Connection`.
            jobs: The largest number of trainers; None for one per processor of the cluster.
            cancel: Ends the wait for the cluster.

        Raises:
            Cancelled: `cancel` was set.
            ConfigError: Ray is not installed, or there is no cluster at the address.
        """
        self._connection = Connection(address, cancel)
        self._ray = self._connection.ray
        counts = (int(each["Resources"]["CPU"]) for each in self._connection.nodes())
        self.size = jobs or max(1, sum(counts))
        self._tasks: deque[tuple[int, dict[str, Any]]] = deque()  # tasks that no trainer has yet
        self._starting: dict[Any, Any] = {}  # new trainers, by their first call
        self._idle: list[Any] = []
        self._calls: dict[Any, tuple[int, Any, Path]] = {}  # by call: task, trainer, run's folder

    @property
    def num_free(self) -> int:
        """Number of further tasks that the pool can take now."""
        return self.size - len(self._calls) - len(self._tasks)

    def submit(self, number: int, task: Mapping[str, Any]) -> None:
        """Gives a task to the first trainer that is free; starts another one if there is none."""
        self._tasks.append((number, dict(task)))
        if len(self._tasks) > len(self._idle) + len(self._starting):
            self._start()
        self._submit_tasks()

    def wait(self, seconds: float) -> list[Event]:
        """Returns the messages that arrive within `seconds`, as soon as there are any."""
        calls = [*self._calls, *self._starting]
        if not calls:
            return []
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        events = []
        for call in ready:
            events += self._started(call) if call in self._starting else [self._ended(call)]
        self._submit_tasks()
        return events

    def stop(self) -> None:
        """Makes all runs save and stop; waits for them for at most half a minute."""
        self._tasks.clear()
        for _, trainer, _ in self._calls.values():
            trainer.stop.remote()
        calls = list(self._calls)
        if calls:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=_STOP_SECONDS)
            for call in ready:
                self._ended(call)

    def _start(self) -> None:
        actor_class = _trainer_class(self._ray).options(
            num_cpus=1,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"FEDCLI_ISA": native.isa_name()}},
        )
        trainer = actor_class.remote()
        self._starting[trainer.confirm_start.remote()] = trainer

    def _submit_tasks(self) -> None:
        """Gives tasks to idle trainers. A trainer that still waits for a processor gets none."""
        while self._tasks and self._idle:
            number, task = self._tasks.popleft()
            trainer, path = self._idle.pop(), Path(task["path"])
            self._calls[trainer.train.remote(task, read_files(path))] = number, trainer, path

    def _started(self, call: Any) -> list[Event]:
        """Adds a new trainer to the idle ones. If it could not start, a waiting task fails."""
        trainer = self._starting.pop(call)
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayError as err:
            return [_failed(self._tasks.popleft()[0], err)] if self._tasks else []
        self._idle.append(trainer)
        return []

    def _ended(self, call: Any) -> Event:
        """Writes the files that a finished call returned; returns its last message."""
        number, trainer, path = self._calls.pop(call)
        try:
            message, files = self._ray.get(call)
        except self._ray.exceptions.RayError as err:
            return _failed(number, err)
        self._idle.append(trainer)
        if files:
            write_files(path, files)
        return Event(number, message)

    def __enter__(self) -> RayPool:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends all trainers. A run can be killed at any time."""
        busy = (trainer for _, trainer, _ in self._calls.values())
        for trainer in (*self._starting.values(), *self._idle, *busy):
            self._ray.kill(trainer)
        self._starting.clear()
        self._calls.clear()
        self._idle.clear()
        self._connection.close()


def _failed(task: int, error: Exception) -> Event:
    return Event(task, {"ended": "died", "error": f"its trainer failed: {last_line(error)}"})


def read_files(path: Path) -> Files:
    """Returns the files of a run by their names below its folder; {} if there is no run."""
    if not path.is_dir():
        return {}
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in files
        if each.name != run_dir.LOCK
    }


def write_files(path: Path, files: Files) -> None:
    """Replaces the run at `path` by these files, all of them or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        new = Path(scratch, path.name)
        new.mkdir()
        for name, content in files.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if path.exists():
            path.rename(Path(scratch, "before"))
        new.rename(path)


def _trainer_class(ray: Any) -> Any:
    """A trainer as a Ray actor with a second thread, which receives `stop` during training."""

    class RemoteTrainer:
        def __init__(self) -> None:
            import io

            from fedcli.sweeps.trainer import Trainer

            self._trainer = Trainer(io.StringIO())

        def train(self, task: dict[str, Any], files: Files) -> tuple[dict[str, Any], Files]:
            scratch = Path(tempfile.mkdtemp(prefix="fedcli-run-"))
            try:
                path = scratch / "run"
                if files:
                    write_files(path, files)
                message = self._trainer.do({**task, "path": str(path)})
                return message, read_files(path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

        def confirm_start(self) -> None:
            """Returns at once: a result shows that the trainer has started."""

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def stop(self) -> None:
            self._trainer.stop()

    return ray.remote(concurrency_groups={"control": 1})(RemoteTrainer)
