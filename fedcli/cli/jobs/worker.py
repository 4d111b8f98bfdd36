"""Runs a long job in a thread while the main thread shows progress and handles signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from fedcli.cli.jobs.collection import begin_collection
from fedcli.cli.jobs.signals import Stopped, stop_on_request

if TYPE_CHECKING:
    from fedcli.core.native import CancelFlag

Result = TypeVar("Result")

_POLL_SECONDS = 0.1


class Worker(Generic[Result]):
    """A thread that runs one job. `result` returns the job's result or raises its error."""

    def __init__(self, job: Callable[[], Result]) -> None:
        """Starts the job."""
        self._job = job
        self._done = threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fedcli-job", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the job, at most `seconds`; returns whether it has ended.

        Without a limit it wakes up now and then. A signal that another thread has received, as
        after SIGSTOP and SIGCONT, does not end the main thread's wait, and Python handles signals
        in the main thread only.
        """
        while seconds is None and not self._done.wait(_POLL_SECONDS):
            pass
        return self._done.wait(seconds)

    def join(self) -> None:
        """Waits until the job and its thread have ended.

        Call it before Python exits: if the thread still runs and holds a lock, such as h5py's, the
        exit waits for that lock.
        """
        self.wait()
        self._thread.join()

    @property
    def has_failed(self) -> bool:
        """Whether the job has ended with an error."""
        return self._error is not None

    def result(self) -> Result:
        """Waits like `join`, then returns the job's result or raises its exception."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._job())
        except BaseException as err:  # raised in the main thread by `result`
            self._error = err
        finally:
            self._done.set()


def run_stoppable(
    job: Callable[[], Result],
    *,
    cancel: CancelFlag,
    describe_stop: Callable[[], str],
    attend: Callable[[Worker[Result]], None] = lambda _: None,
) -> Result:
    """Runs `job` in a thread and returns its result. SIGINT and SIGTERM stop it through `cancel`.

    Args:
        job: The work. It polls `cancel`; when that is set, it saves its state and raises
            `Cancelled`.
        cancel: Set by the first signal. A second signal ends the process at once.
        describe_stop: Called after a stopped job has ended; returns one line about what was saved.
        attend: Called in the main thread while the job runs. It may return before the job ends.

    Raises:
        Stopped: A signal stopped the job.
    """
    from fedcli.core.native import Cancelled

    begin_collection()
    with stop_on_request(cancel.set) as request:
        worker = Worker(job)
        try:
            _attend(worker, attend, cancel)
            return worker.result()
        except Cancelled as err:
            signal_num = request.signal_num or signal.SIGINT
            raise Stopped(signal_num, describe_stop()) from err


def _attend(
    worker: Worker[Result], attend: Callable[[Worker[Result]], None], cancel: CancelFlag
) -> None:
    """Calls `attend`. If it raises, as on a closed terminal, the job is stopped first."""
    try:
        attend(worker)
    except BaseException:
        cancel.set()
        worker.join()
        raise
