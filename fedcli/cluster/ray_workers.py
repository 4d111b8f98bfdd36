"""Workers as Ray actors: starts them, gives them work, and recovers when one is lost.

The driver retries lost work itself, because Ray's own retries wait for ever for an actor that can
no longer be placed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

from fedcli.cluster.connection import LOCAL, Connection, last_line
from fedcli.cluster.messages import Part, PartResult, SharedWork, WorkerDescription, WorkerSetup
from fedcli.core import native
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.dataclass import dataclass
from fedcli.errors import FedcliError, RunError

_IN_FLIGHT = 2  # parts that each worker has, so that it need not wait for the driver
MAX_OPEN = 4  # unfinished parts per worker, which bounds the driver's memory
_POLL_SECONDS = 0.05
_SEE_LOGS = "see the worker's log on its node, in /tmp/ray/session_latest/logs"
_MAX_LOSSES = 3  # after this many losses of a part, its clients are assumed to be the cause


@dataclass(frozen=True)
class Placement:
    """Where the workers run.

    Attributes:
        address: `local` for a cluster on this machine alone, `auto` for the cluster to which this
            machine belongs, or HOST:PORT.
        num_workers: The number of workers; None for one on each node.
        num_threads: The threads of a worker; None for the processors of the smallest node, which
            the workers share if `address` is `local`.
        start_seconds: How long to wait for a worker.
    """

    address: str
    num_workers: int | None
    num_threads: int | None
    start_seconds: float


Check = Callable[[WorkerDescription], None]


class _Actor:
    """The driver's record of a worker."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.num_open = 0  # number of unfinished parts that it has
        self.probe: Any = None  # a call that a lost worker answers when it is back


class RayWorkers:
    """The workers of one run. As a context manager it ends them."""

    def __init__(
        self, place: Placement, setup: WorkerSetup, check: Check, cancel: CancelFlag | None = None
    ) -> None:
        """Joins or starts the cluster, and starts the workers.

        Args:
            place: Where they run.
            setup: The settings with which they start.
            check: Called with the description of each worker, including those that join later. It
                raises an error if that worker must not be used.
            cancel: Ends the wait for the cluster and the workers.

        Raises:
            Cancelled: `cancel` was set.
            ConfigError: Ray is not installed, or there is no cluster at the address.
            RunError: No worker starts in time, or `check` rejects one.
        """
        self._check = check
        self._joining: dict[Any, _Actor] = {}  # started workers, by the call that they must answer
        self._place = place
        self._num_calls = 0
        self._connection = Connection(place.address, cancel)
        self._ray = self._connection.ray
        try:
            self._num_threads = place.num_threads or self._default_threads()
            self._setup = setup._replace(num_threads=self._num_threads)
            self._actors = [self._start() for _ in range(self._num_requested())]
            self._await_descriptions(cancel)
        except BaseException:
            self.close()
            raise

    @property
    def num_threads(self) -> int:
        """The number of threads of all workers."""
        return self._num_threads * len(self._actors)

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return len(self._actors)

    def run(
        self, shared: SharedWork, parts: Iterable[Part], cancel: CancelFlag | None
    ) -> Iterator[tuple[Part, PartResult]]:
        """Yields the results of parts in their order, each with its part.

        A part is taken from `parts` when a worker will soon be free for it. If a worker is lost,
        its parts are given to others.

        Raises:
            Cancelled: `cancel` was set.
            FedcliError: A worker raised it.
            RunError: No worker is left, or a part was lost several times.
        """
        self._add_new_workers()
        self._num_calls += 1
        call = _Call(self, self._num_calls, shared, iter(parts), cancel)
        try:
            yield from call.results()
        except BaseException:
            self._cancel_call()
            raise

    def close(self) -> None:
        """Ends the workers, and the cluster if it was started here."""
        for actor in (*getattr(self, "_actors", ()), *self._joining.values()):
            self._kill(actor)
        self._actors, self._joining = [], {}
        self._connection.close()

    def __enter__(self) -> RayWorkers:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the workers."""
        self.close()

    def _default_threads(self) -> int:
        """The processors of the smallest node, so that each has room for a worker."""
        counts = [int(each["Resources"]["CPU"]) for each in self._connection.nodes()]
        if not counts:
            raise RunError("the Ray cluster has no node with a processor; add one with 'ray start'")
        if self._place.num_workers is None or self._place.address != LOCAL:
            return min(counts)
        return max(1, min(counts) // self._place.num_workers)

    def _num_requested(self) -> int:
        return self._place.num_workers or len(self._connection.nodes())

    def _start(self) -> _Actor:
        actor_class = _actor_class(self._ray).options(
            num_cpus=self._num_threads,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"FEDCLI_ISA": native.isa_name()}},
        )
        return _Actor(actor_class.remote(self._setup))

    def _add_new_workers(self) -> None:
        """Starts workers on nodes that have joined the cluster, and uses those that are ready.

        Raises:
            RunError: A new worker would compute other bytes.
        """
        if self._place.num_workers is not None:
            return
        for _ in range(len(self._connection.nodes()) - len(self._actors) - len(self._joining)):
            actor = self._start()
            self._joining[actor.handle.describe.remote()] = actor
        if not self._joining:
            return
        ready, _ = self._ray.wait(list(self._joining), num_returns=len(self._joining), timeout=0)
        for call in ready:
            actor = self._joining.pop(call)
            try:
                description = _answer(self._ray, call)
            except _LostError:  # its node has left again
                self._kill(actor)
                continue
            self._check(description)
            self._actors.append(actor)

    def _await_descriptions(self, cancel: CancelFlag | None) -> None:
        """Waits for all workers and checks their descriptions. Raises RunError after a timeout."""
        calls = [actor.handle.describe.remote() for actor in self._actors]
        waiting = calls
        end = monotonic() + self._place.start_seconds
        while waiting and monotonic() < end:
            _check_not_cancelled(cancel)
            _, waiting = self._ray.wait(calls, num_returns=len(calls), timeout=_POLL_SECONDS)
        if waiting:
            raise RunError(
                f"{len(calls) - len(waiting)} of {len(calls)} Ray workers with "
                f"{self._num_threads} processors started in {self._place.start_seconds:g} s; "
                "choose fewer with --engine-option workers=N or threads=N, or wait longer with "
                "start_seconds=S"
            )
        for call in calls:
            try:
                description = _answer(self._ray, call)
            except _LostError as err:
                raise RunError(
                    f"a Ray worker could not start: {err}; {_SEE_LOGS}, and check that each node "
                    "has this version of fedcli"
                ) from err
            self._check(description)

    def _cancel_call(self) -> None:
        """Stops the work of the current call. Does not wait: workers may be busy or lost."""
        for actor in self._actors:
            if actor.num_open:
                actor.handle.cancel.remote(self._num_calls)
                actor.num_open = 0

    def _kill(self, actor: _Actor) -> None:
        with suppress(Exception):  # the worker, or the whole cluster, has already ended
            self._ray.kill(actor.handle)


class _Call:
    """The unfinished parts of one call of the engine."""

    def __init__(
        self,
        workers: RayWorkers,
        number: int,
        shared: SharedWork,
        parts: Iterator[Part],
        cancel: CancelFlag | None,
    ) -> None:
        self._workers = workers
        self._ray = workers._ray
        self._number = number
        self._shared = self._ray.put(shared)
        self._parts = parts
        self._cancel = cancel
        self._is_exhausted = False
        self._taken: dict[int, Part] = {}  # parts whose result is not yielded yet, by number
        self._waiting: deque[int] = deque()  # parts that no worker has
        self._open: dict[Any, tuple[int, _Actor]] = {}  # by Ray's reference
        self._done: dict[int, PartResult] = {}
        self._losses: dict[int, int] = {}
        self._num_taken = self._num_yielded = 0
        self._alone_since = monotonic()  # the last time that a worker was alive

    def results(self) -> Iterator[tuple[Part, PartResult]]:
        """Yields each part with its result, in order."""
        while True:
            self._submit_parts()
            while self._num_yielded in self._done:
                number = self._num_yielded
                self._num_yielded += 1
                yield self._taken.pop(number), self._done.pop(number)
            if self._is_exhausted and not self._taken:
                return
            self._submit_parts()
            self._await()

    def _next_number(self) -> int | None:
        """Returns the number of the next part to hand out; None if there is none now."""
        if self._waiting:
            return self._waiting.popleft()
        if self._is_exhausted or len(self._taken) >= MAX_OPEN * self._workers.num_workers:
            return None
        part = next(self._parts, None)
        if part is None:
            self._is_exhausted = True
            return None
        number = self._num_taken
        self._taken[number] = part
        self._num_taken += 1
        return number

    def _submit_parts(self) -> None:
        """Gives parts to workers that have room, the least busy first."""
        while True:
            free = [
                actor
                for actor in self._workers._actors
                if actor.num_open < _IN_FLIGHT and actor.probe is None
            ]
            if not free:
                return
            number = self._next_number()
            if number is None:
                return
            actor = min(free, key=lambda each: each.num_open)
            call = actor.handle.answer.remote(self._number, self._shared, self._taken[number])
            self._open[call] = number, actor
            actor.num_open += 1

    def _await(self) -> None:
        """Waits a short time for results, and takes those that have arrived."""
        _check_not_cancelled(self._cancel)
        probes = {actor.probe: actor for actor in self._workers._actors if actor.probe is not None}
        calls = [*self._open, *probes]
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=_POLL_SECONDS)
        for call in ready:
            if call in probes:
                self._take_probe(probes[call])
            else:
                self._take(call)
        is_any_alive = any(actor.probe is None for actor in self._workers._actors)
        if ready or is_any_alive:
            self._alone_since = monotonic()
        elif monotonic() - self._alone_since > self._workers._place.start_seconds:
            raise RunError(
                "no Ray worker is left; the run is saved up to its last round, and --resume "
                "continues it when the cluster is back"
            )

    def _take(self, call: Any) -> None:
        """Takes the result of a call; puts its part back in the queue if its worker was lost."""
        number, actor = self._open.pop(call)
        actor.num_open -= 1
        try:
            self._done[number] = _answer(self._ray, call)
        except _LostError as err:
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] >= _MAX_LOSSES:
                raise RunError(
                    f"a Ray worker was lost {_MAX_LOSSES} times with the same clients "
                    f"({err}); give workers fewer threads or more memory"
                ) from err
            self._waiting.appendleft(number)
            if actor.probe is None:
                actor.probe = actor.handle.process_id.remote()

    def _take_probe(self, actor: _Actor) -> None:
        """Uses a lost worker again if it has answered; else sends it another call."""
        probe, actor.probe = actor.probe, None
        try:
            self._ray.get(probe)
        except Exception:
            actor.probe = actor.handle.process_id.remote()


def _check_not_cancelled(cancel: CancelFlag | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled


class _LostError(Exception):
    """The worker of a call was lost before it answered, or its answer was lost."""


def _answer(ray: Any, call: Any) -> Any:
    """The result of a finished call.

    Raises:
        FedcliError: The worker raised it.
        MemoryError: The worker raised it.
        _LostError: The worker or the result was lost.
        RunError: The worker failed in another way.
    """
    errors = ray.exceptions
    try:
        return ray.get(call)
    except errors.RayTaskError as err:
        cause = err.cause if isinstance(err.cause, BaseException) else err
        if isinstance(cause, FedcliError | MemoryError):
            raise cause from None
        raise RunError(f"a Ray worker failed: {last_line(err)}; {_SEE_LOGS}") from err
    except (
        *(errors.RayActorError, errors.RaySystemError, errors.ObjectLostError),
        errors.OutOfMemoryError,
    ) as err:
        raise _LostError(last_line(err)) from err


def _actor_class(ray: Any) -> Any:
    """The worker as a Ray actor with a second thread, which answers while the first computes."""
    from fedcli.cluster.worker import Worker

    class Actor(Worker):
        def answer(self, call: int, shared: SharedWork, part: Part) -> PartResult | None:
            try:
                return self.compute(call, shared, part)
            except Cancelled:
                return None  # the driver has dropped the call; Ray would report an error

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def cancel(self, call: int) -> None:
            super().cancel(call)

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def process_id(self) -> int:
            return super().process_id()

    return ray.remote(concurrency_groups={"control": 1})(Actor)
