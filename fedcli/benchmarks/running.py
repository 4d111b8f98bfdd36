"""Runs a job with each program that can do it, in turns that also measure the machine's peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fedcli.benchmarks.jobs import Job, Setting, Work
from fedcli.benchmarks.limits import PEAK, Peak, rates
from fedcli.benchmarks.peers import Peer
from fedcli.benchmarks.timing import Pace, Runner, Spread, Timer, in_turn, ratio, timed
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.outputs import scratch_folder
from fedcli.progress import ProgressCallback

OWN = "fedcli"


@dataclass(frozen=True)
class PeerProcess:
    """How the processes of other programs are started.

    Attributes:
        names: Their names: installed keys of `peers.PEERS`.
        module: The module that Python runs in their processes.
        environment: The environment of these processes.
    """

    names: tuple[str, ...]
    module: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Conditions:
    """The conditions of the measurement.

    Attributes:
        counts: Numbers of threads, ascending from 1.
        pace: Number and length of turns.
        timer: The clock.
        peers: Other programs.
        is_quick: Whether to do as little work as possible.
    """

    counts: tuple[int, ...]
    pace: Pace
    timer: Timer
    peers: PeerProcess
    is_quick: bool


@dataclass(frozen=True)
class Row:
    """The times of one runner in one job.

    Attributes:
        by: fedcli, or a peer.
        threads: Number of threads.
        seconds: Seconds of one call.
        num_units: Number of units that a call processes.
        share_of_peak: Multiply-adds as a share of the number that the same threads could do in that
            time; None if the work is not arithmetic.
        speedup: For fedcli on several threads, its seconds on one thread divided by `seconds`.
        ratio: For peers, fedcli's seconds on the same number of threads, divided by `seconds`.
    """

    by: str
    threads: int
    seconds: Spread
    num_units: int
    share_of_peak: Spread | None = None
    speedup: Spread | None = None
    ratio: Spread | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values; shares and ratios are medians over turns."""
        median = self.seconds.median
        return {
            "by": self.by,
            "threads": self.threads,
            "median_seconds": median,
            "min_seconds": self.seconds.least,
            "max_seconds": self.seconds.most,
            "num_units": self.num_units,
            "units_per_second": self.num_units / median,
            "ms_per_unit": 1e3 * median / self.num_units,
            "share_of_peak": self.share_of_peak and self.share_of_peak.median,
            "speedup": self.speedup and self.speedup.median,
            "fedcli_over_this": self.ratio and self.ratio.median,
            "all_seconds": list(self.seconds.values),
        }


@dataclass(frozen=True)
class Result:
    """The results of a job."""

    job: Job
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        return {
            "job": self.job.name,
            "title": self.job.title,
            "unit": self.job.unit,
            "published_seconds": dict(self.job.published),
            "rows": [row.to_json() for row in self.rows],
        }


def thread_counts(num_threads: int) -> tuple[int, ...]:
    """Returns 1, 2, 4, ... and the number itself."""
    counts = {num_threads}
    count = 1
    while count < num_threads:
        counts.add(count)
        count *= 2
    return tuple(sorted(counts))


def run(job: Job, how: Conditions, on_progress: ProgressCallback, cancel: CancelFlag) -> Result:
    """Measures a job with fedcli and with the peers that can do it.

    fedcli runs on each number of threads, peers on the smallest and the largest.

    Args:
        job: The job.
        how: The conditions.
        on_progress: Called with the number of turns done; may raise to end the job.
        cancel: Ends fedcli's own calls within a local step.

    Raises:
        Cancelled: The flag `cancel` was set, or `on_progress` raised this exception.
        DataError: The job's data are not downloaded.
        ConfigError: A peer cannot do the job.
    """
    last = _Last(on_progress)
    timer = how.timer
    with ExitStack() as resources:
        folder = resources.enter_context(scratch_folder(None, "fedcli-bench-"))
        work = job.make(Setting(max(how.counts), how.is_quick, folder, cancel))
        counts = how.counts if work.has_threads else (1,)
        peaks = [Peak(count, resources) for count in counts] if work.operations else []
        runners = [
            *(peak.runner(timer) for peak in peaks),
            *(Runner(OWN, count, timed(timer, work.own(count))) for count in counts),
            *_peers(job, work, counts, how.peers, resources, last.repeat),
        ]
        seconds = in_turn(runners, how.pace, timer, last.on_progress)
        limits = {
            peak.num_threads: rates(peak, taken)
            for peak, taken in zip(peaks, seconds, strict=False)
        }
        # A quick job does less work than the published one.
        shown = replace(job, published={}) if how.is_quick else job
        return Result(shown, _rows(work, runners, seconds, limits))


class _Last:
    """Passes progress on to a callback. `repeat` passes it again, so that it can notice Ctrl-C."""

    def __init__(self, on_progress: ProgressCallback) -> None:
        self._on_progress = on_progress
        self._latest: tuple[int, int | None] = 0, None

    def on_progress(self, done: int, total: int | None) -> None:
        self._latest = done, total
        self._on_progress(done, total)

    def repeat(self) -> None:
        self._on_progress(*self._latest)


def _peers(
    job: Job,
    work: Work,
    counts: Sequence[int],
    peers: PeerProcess,
    resources: ExitStack,
    poll: Callable[[], None],
) -> list[Runner]:
    if work.task is None:
        return []
    return [
        Peer(
            name,
            work.task,
            count,
            module=peers.module,
            environment=peers.environment,
            poll=poll,
            resources=resources,
        ).runner()
        for count in sorted({min(counts), max(counts)})
        for name in peers.names
        if name in job.peers
    ]


def _rows(
    work: Work,
    runners: Sequence[Runner],
    seconds: Sequence[Spread],
    limits: Mapping[int, Spread],
) -> tuple[Row, ...]:
    own = {
        each.threads: taken for each, taken in zip(runners, seconds, strict=True) if each.by == OWN
    }
    rows = []
    for each, taken in zip(runners, seconds, strict=True):
        if each.by == PEAK:
            continue
        is_own = each.by == OWN
        rows.append(
            Row(
                each.by,
                each.threads,
                taken,
                work.num_units,
                _share(work.operations, taken, limits.get(each.threads)),
                ratio(own[1], taken) if is_own and each.threads > 1 and 1 in own else None,
                None if is_own else ratio(own[each.threads], taken),
            )
        )
    return tuple(sorted(rows, key=lambda row: row.threads))


def _share(operations: float, seconds: Spread, limit: Spread | None) -> Spread | None:
    """Operations per second as a share of the machine's peak in the same turn."""
    if limit is None:
        return None
    pairs = zip(seconds.values, limit.values, strict=True)
    return Spread(tuple(operations / each / most for each, most in pairs))
