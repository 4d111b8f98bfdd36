"""Runs a long job in a thread, while the main thread waits, draws and listens to signals."""

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


class Worker(Generic[Result]):
    """One thread that does one job; its result or its error is handed over by `result`."""

    def __init__(self, job: Callable[[], Result]) -> None:
        """Starts the job."""
        self._job = job
        self._done = threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fedcli-job", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the job, at most so long; returns True when it has ended."""
        return self._done.wait(seconds)

    def join(self) -> None:
        """Waits until the job and its thread have ended.

        A thread that is cut off at Python's exit may hold a lock that the exit waits for, such as
        that of h5py.
        """
        self._thread.join()

    @property
    def has_failed(self) -> bool:
        """Whether the job has ended by an error."""
        return self._error is not None

    def result(self) -> Result:
        """Waits as `join` does and returns what the job returned, or raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._job())
        except BaseException as err:  # handed to the main thread
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
    """Returns what `job` returns, run in a thread that SIGINT and SIGTERM end by way of `cancel`.

    Args:
        job: The work; it polls `cancel` and raises `Cancelled` once what it has is saved.
        cancel: Raised by the first signal. A second signal ends the process at once.
        describe_stop: Says in one line what was saved, after the job has ended.
        attend: What the main thread does meanwhile; returns when the job has ended, or sooner.

    Raises:
        Stopped: A signal came and the job gave way to it.
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
    """Waits beside the worker; where that fails, as on a closed terminal, the job ends first."""
    try:
        attend(worker)
    except BaseException:
        cancel.set()
        worker.join()
        raise
