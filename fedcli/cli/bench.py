"""`fedcli bench`: the speed of this machine on reproducible jobs, and its limits."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedcli.cli import options as opt
from fedcli.errors import ConfigError
from fedcli.settings.tables.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedcli.benchmarks.layer_times import LayerTimes
    from fedcli.benchmarks.reports import Report
    from fedcli.benchmarks.running import Conditions
    from fedcli.cli.screen.output import Remarks
    from fedcli.core.native import CancelFlag
    from fedcli.models.model import Model
    from fedcli.progress import ProgressCallback

Measured = TypeVar("Measured")

WORK = "What is measured"
DEFAULT_REPEATS, QUICK_REPEATS = 5, 2
DEFAULT_BATCH_SIZE = 10
_TURN_SECONDS, _QUICK_TURN_SECONDS = 0.2, 0.005
_PAUSE_SECONDS = 0.05  # threads of OpenMP and of BLAS spin for about 30 ms after their work
_QUICK_BYTES = 8 << 20
_PEER_MODULE = "fedcli.cli.bench_peer"


@click.command(cls=opt.SectionCommand)
@opt.option(
    "--jobs",
    help="Jobs to measure, by name or by the beginning of names, such as cnn-mcmahan or eval. "
    "Default: all that need no download.",
    section=WORK,
    metavar="NAME,NAME",
)
@opt.option(
    "--list", "is_list", help="List the jobs, and measure nothing.", section=WORK, is_flag=True
)
@opt.option(
    "--layers",
    help="Measure each layer of this model, forward and backward, on one thread. Jobs are "
    "measured only if --jobs names them.",
    section=WORK,
    type=opt.Name(lambda: MODELS),
)
@opt.option(
    "--batch-size",
    help=f"Examples in a batch, for --layers. [default: {DEFAULT_BATCH_SIZE}]",
    section=WORK,
    type=click.IntRange(1, 10_000),
    metavar="N",
)
@opt.option(
    "--compare",
    help="Measure the same training, evaluation and averages with these programs, too, in turn "
    "with fedcli: numpy, torch.",
    section=WORK,
    metavar="NAME,NAME",
)
@opt.option(
    "--threads",
    help="Largest number of threads; 1, 2, 4, ... up to it are measured. Default: as many as this "
    "machine has.",
    section=WORK,
    type=int,
    metavar="N",
)
@opt.option(
    "--repeats",
    help=f"Number of measurements of each program in each job. [default: {DEFAULT_REPEATS}]",
    section=WORK,
    type=click.IntRange(1, 10_000),
    metavar="N",
)
@opt.option(
    "--quick",
    help="Do as little work as possible, to see that everything works. The times mean nothing.",
    section=WORK,
    is_flag=True,
)
@opt.output_options
def bench(*, as_json: bool, quiet: bool, verbose: bool, is_list: bool, **values: Any) -> None:
    """Measure this machine's limits, and fedcli's speed in standard jobs.

    The limits are the fused multiply-adds per second on one and on several threads, the speed of
    reading and copying memory, and NumPy's BLAS. Shares of the peak count the multiply-adds of the
    textbook algorithm; a faster algorithm (Winograd's convolution, skipped zeros behind a max-pool)
    can exceed 100 %.

    \b
    Examples:
      fedcli bench
      fedcli bench --jobs tutorial-round,cnn-mcmahan --threads 1
      fedcli bench --compare numpy,torch --repeats 11
      fedcli bench --layers cnn-mcmahan
      fedcli bench --quick --json
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if is_list:
        _list(as_json=as_json)
        return
    report = _measure(remarks, **values)
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json(report.to_json())
        return
    from fedcli.cli.screen.bench_tables import show_report

    show_report(report)


def _list(*, as_json: bool) -> None:
    from fedcli.benchmarks import jobs

    listed = jobs.catalogue().values()
    if as_json:
        from fedcli.cli.screen.output import print_json

        described = [
            {"job": job.name, "title": job.title, "is_here": jobs.is_here(job)} for job in listed
        ]
        print_json({"jobs": described})
        return
    from fedcli.cli.screen.bench_tables import show_jobs

    show_jobs([(job, jobs.is_here(job)) for job in listed])


def _measure(
    remarks: Remarks,
    *,
    jobs: str | None,
    layers: str | None,
    batch_size: int | None,
    compare: str | None,
    threads: int | None,
    repeats: int | None,
    quick: bool,
) -> Report:
    """Checks the options, then measures."""
    environment = dict(os.environ)  # a copy, because the core changes the settings of OpenMP
    from fedcli import models
    from fedcli.benchmarks import jobs as canonical
    from fedcli.benchmarks import limits, machine, reports, running
    from fedcli.benchmarks.timing import Pace, Timer
    from fedcli.core.native import resolve_threads

    if batch_size is not None and layers is None:
        raise ConfigError(
            f"--batch-size {batch_size} needs --layers MODEL; add that, or leave --batch-size out"
        )
    model = None if layers is None else models.build(layers)
    chosen = canonical.choose(jobs) if model is None or jobs is not None else []
    names, missing = _choose_peers(compare, remarks)
    counts = running.thread_counts(resolve_threads(threads))
    how = running.Conditions(
        counts=counts,
        pace=Pace(
            repeats or (QUICK_REPEATS if quick else DEFAULT_REPEATS),
            _QUICK_TURN_SECONDS if quick else _TURN_SECONDS,
            _PAUSE_SECONDS,
        ),
        timer=Timer(time.perf_counter, time.sleep),
        peers=running.PeerProcess(names, _PEER_MODULE, environment),
        is_quick=quick,
    )
    num_bytes = _QUICK_BYTES if quick else limits.MEMORY_BYTES
    return reports.Report(
        machine=machine.describe(counts, dict.fromkeys(("numpy", *names))),
        limits=_run(
            "limits",
            lambda on_progress, _: limits.measure(
                counts, how.pace, how.timer, on_progress, num_bytes=num_bytes
            ),
            remarks,
        ),
        memory_bytes=num_bytes,
        results=[_run(job.name, partial(running.run, job, how), remarks) for job in chosen],
        layers=None
        if model is None
        else _measure_layers(model, batch_size or DEFAULT_BATCH_SIZE, how, remarks),
        is_quick=quick,
        missing=missing,
    )


def _measure_layers(model: Model, batch_size: int, how: Conditions, remarks: Remarks) -> LayerTimes:
    from fedcli.benchmarks import layer_times

    return _run(
        f"layers of {model.name}",
        lambda on_progress, _: layer_times.measure(
            model, batch_size, how.pace, how.timer, on_progress
        ),
        remarks,
    )


def _run(
    title: str, measure: Callable[[ProgressCallback, CancelFlag], Measured], remarks: Remarks
) -> Measured:
    """Runs a measurement in a thread, with a progress bar on stderr. Ctrl-C ends the command."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.core.native import CancelFlag

    cancel: CancelFlag = CancelFlag()
    started = time.monotonic()
    measured = run_job(
        title,
        "turns",
        lambda on_progress: measure(on_progress, cancel),
        remarks=remarks,
        describe_stop=lambda: "stopped; nothing was printed",
        cancel=cancel,
    )
    remarks.detail(f"{title}: measured in {time.monotonic() - started:.1f} s")
    return measured


def _choose_peers(compare: str | None, remarks: Remarks) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The peers that are installed, and those that are not. A note says how to install them."""
    from fedcli.benchmarks import peers

    names, missing = peers.choose(compare) if compare is not None else ([], [])
    for name in missing:
        remarks.note(f"{name} is not installed and is left out; {peers.PEERS[name]} adds it")
    return tuple(names), tuple(missing)
