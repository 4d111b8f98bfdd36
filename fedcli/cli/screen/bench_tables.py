"""The output of `fedcli bench`: the machine, its limits, and a line for each measurement."""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.benchmarks import limits
from fedcli.benchmarks.jobs import Job
from fedcli.benchmarks.layer_times import LayerTimes
from fedcli.benchmarks.reports import Report
from fedcli.benchmarks.running import Result, Row
from fedcli.benchmarks.timing import Spread
from fedcli.cli.screen.render import Screen
from fedcli.core.native import Phase
from fedcli.errors import plural

_HEADERS = ("job", "by", "threads", "median", "least - most", "each", "a second")
_LAST_HEADERS = ("of peak", "1 thread /", "fedcli /")
_NONE = "-"
_LEAST_SHARE = 0.001  # phases that take less than this share of a step are not shown
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def show_report(report: Report) -> None:
    """Prints all measurements."""
    screen = Screen()
    _show_machine(screen, report)
    _show_limits(screen, report)
    if report.results:
        screen.title("Jobs")
        screen.table(
            [*_HEADERS, *_LAST_HEADERS],
            [_cells(result, row) for result in report.results for row in result.rows],
            left=2,
        )
        for line in _EXPLANATIONS:
            screen.line(line, style="dim")
    _show_published(screen, report.results)
    if report.layers is not None:
        _show_layers(screen, report.layers)
    if report.is_quick:
        screen.line("--quick: little work and few turns; do not quote these figures.")


_EXPLANATIONS = (
    "of peak: multiply-adds per second, counted as in the textbook algorithm, as a share of the",
    "peak of the same number of threads. 1 thread /: how many times faster than fedcli on one",
    "thread. fedcli /: fedcli's time as a share of this program's time, on the same number of",
    "threads. All times are medians.",
)


def show_jobs(jobs: Sequence[tuple[Job, bool]]) -> None:
    """Prints the names and descriptions of all jobs, and which need a download."""
    screen = Screen()
    screen.prose(
        (job.name, job.title if is_here else f"{job.title} (needs a download)")
        for job, is_here in jobs
    )


def format_seconds(seconds: float) -> str:
    """Returns seconds with three digits: 1.23 s, 4.56 ms, 7.89 us."""
    factor, unit = _unit_of(seconds)
    return f"{_three_digits(seconds / factor)} {unit}"


def format_range(values: Spread) -> str:
    """Returns the smallest and the largest of some times, both in the unit of the largest."""
    factor, _ = _unit_of(values.most)
    return f"{_three_digits(values.least / factor)} - {format_seconds(values.most)}"


def _unit_of(seconds: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if seconds >= unit[0]), _UNITS[-1])


def _three_digits(number: float) -> str:
    if number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


def _show_machine(screen: Screen, report: Report) -> None:
    machine = report.machine
    versions = [
        f"{name} {machine[name]}" for name in ("python", "numpy", "torch") if name in machine
    ]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    threads = ", ".join(map(str, machine["threads"]))
    screen.line(f"fedcli {machine['fedcli']} on {machine['cpu']}", style="bold")
    screen.prose(
        [
            ("cores", f"{machine['cores']}{f'; caches {caches}' if caches else ''}"),
            ("instruction set", machine["isa"]),
            ("threads measured", threads if machine["openmp"] else "1 (built without OpenMP)"),
            ("platform", f"{machine['platform']}, {', '.join(versions)}"),
        ]
    )


def _show_limits(screen: Screen, report: Report) -> None:
    found = report.limits
    screen.title("Limits of this machine")
    screen.table(
        ["threads", "multiply-adds", "read, cached", "read, memory", "copy, memory"],
        [
            [
                str(threads),
                f"{found['fma'][threads].median / 1e9:,.1f} GFLOP/s",
                *(
                    f"{found[name][threads].median / 1e9:,.1f} GB/s"
                    for name in ("read_cached", "read_memory", "copy_memory")
                ),
            ]
            for threads in sorted(found["fma"])
        ],
        left=0,
    )
    cached, memory = limits.CACHED_BYTES / 1e6, 2 * report.memory_bytes / 1e6
    for line in (
        "multiply-adds: float32 in registers. read: bytes that NumPy's dot product of two arrays",
        f"takes in, {cached:,.1f} MB a thread (the size of the large kernel of McMahan's CNN) or "
        f"{memory:,.0f} MB in all.",
        f"copy: bytes read plus bytes written by NumPy, {memory / 2:,.0f} MB in all.",
        f"NumPy's BLAS, one thread, 1024 x 1024 matrices: {report.sgemm_share:.0%} of the peak.",
    ):
        screen.line(line, style="dim")


def _cells(result: Result, row: Row) -> list[str]:
    median = row.seconds.median
    return [
        result.job.name,
        row.by,
        str(row.threads),
        format_seconds(median),
        format_range(row.seconds),
        format_seconds(median / row.num_units),
        f"{row.num_units / median:,.0f} {result.job.unit}",
        _NONE if row.share_of_peak is None else f"{row.share_of_peak.median:.1%}",
        _NONE if row.speedup is None else f"{row.speedup.median:.2f}",
        _NONE if row.ratio is None else f"{row.ratio.median:.3f}",
    ]


def _with_threads(row: Row) -> str:
    return f"{row.by}, {plural(row.threads, 'thread')}"


def _show_layers(screen: Screen, times: LayerTimes) -> None:
    screen.title(f"Layers of {times.model}, batches of {times.batch_size}, one thread, an example")
    screen.table(
        ["layers", "phase", "median", "least - most", "of peak", "of the step"],
        [
            [
                " + ".join(each.layers),
                each.phase.name.lower(),
                format_seconds(each.seconds.median),
                format_range(each.seconds),
                _NONE if each.share_of_peak is None else f"{each.share_of_peak.median:.1%}",
                f"{each.seconds.median / times.total_seconds:.1%}",
            ]
            for each in times.stages
            if each.phase is not Phase.DERIVE
            or each.seconds.median > _LEAST_SHARE * times.total_seconds
        ],
        left=2,
    )
    for line in (
        f"All phases: {format_seconds(times.total_seconds)} an example. backward: with the update",
        "by plain SGD. derive: computes transformed copies of updated weights for the next step.",
    ):
        screen.line(line, style="dim")


def _show_published(screen: Screen, results: Sequence[Result]) -> None:
    """Prints published times for the same work beside those measured here."""
    shown = [result for result in results if result.job.published]
    if not shown:
        return
    screen.title("Beside published times (github.com/microsoft/msrflute; other machines)")
    for result in shown:
        screen.line(result.job.title)
        mine = [(_with_threads(row), row.seconds.median) for row in result.rows]
        theirs = list(result.job.published.items())
        screen.prose((f"  {name}", format_seconds(each)) for name, each in [*mine, *theirs])
