"""`fedcli verify`: trains runs again and compares the results byte by byte."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.settings.run_config import CODE_FIELDS

if TYPE_CHECKING:
    from fedcli.cli.screen.output import Remarks
    from fedcli.runs.verifying import Verification

_CODE = opt.stack(
    *(
        opt.option(
            f"--{name.replace('_', '-')}",
            name,
            help=f"Python file to execute, if the run has --{name.replace('_', '-')} FILE.py.",
            section=opt.MODEL,
            metavar="FILE.py[:NAME]",
        )
        for name in CODE_FIELDS
    )
)


@click.command(cls=opt.SectionCommand)
@click.argument("path", metavar="RUN|FOLDER", type=opt.RunFolder(or_parent=True))
@opt.option(
    "--sample",
    "num_sampled",
    help="Verify only N runs of a folder, spread evenly over their names.",
    section=opt.RUN,
    type=click.IntRange(min=1),
    metavar="N",
)
@opt.option(
    "--from-checkpoint",
    "from_checkpoint",
    help="Train only the rounds after the oldest checkpoint that a run keeps.",
    section=opt.RUN,
    is_flag=True,
)
@opt.option(
    "--data", help="Path of the run's data, if they were moved.", section=opt.DATA, metavar="PATH"
)
@opt.option(
    "--test-data",
    help="Path of its test data, if they were moved.",
    section=opt.DATA,
    metavar="PATH",
)
@opt.option(
    "--threads",
    help="Threads; they change no result. Default: the run's.",
    section=opt.RUN,
    type=int,
    metavar="N",
)
@_CODE
@opt.output_options
def verify(
    *,
    path: Path,
    num_sampled: int | None,
    from_checkpoint: bool,
    data: str | None,
    test_data: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **code: str | None,
) -> int:
    """Train RUN again, or each run in FOLDER, and compare the results.

    The run is repeated in a temporary folder from its config and seed; the run itself is not
    changed. Clients are computed by threads, also if the run used a cluster. Its metrics of every
    round, closing evaluation and weights must be identical. The first value that differs is shown,
    and the exit code is 1. If the run was made with another instruction set or version of fedcli,
    numbers may differ by 0.1 %, and the result says so. A folder unpacked from fedcli bundle can be
    verified, too.

    \b
    Examples:
      fedcli verify runs/first
      fedcli verify runs --sample 3
      fedcli verify paper --data /data/femnist
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    runs = _runs_in(path, num_sampled)
    given = {name: text for name, text in code.items() if text is not None}
    places = {"data": data, "test_data": test_data}
    options = {"threads": threads, **places, "code": given, "from_checkpoint": from_checkpoint}
    _select_instruction_set(runs)
    found = [_verify(run, options, remarks) for run in runs]
    if as_json:
        from fedcli.cli.screen.output import print_json

        results = [_as_json(each) for each in found]
        print_json({"verified": all(each.is_verified for each in found), "runs": results})
    elif not quiet or not all(each.is_verified for each in found):
        _show(found)
    return 0 if all(each.is_verified for each in found) else 1


def _runs_in(path: Path, num_sampled: int | None) -> Sequence[Path]:
    """The runs to verify: those in the folder `path`, or `path` itself if it is a run."""
    from fedcli.errors import RunError
    from fedcli.runs import listing

    runs = listing.find_runs(path)
    if not runs:
        raise RunError(f"{path} contains no run; give a run, or a folder of runs")
    if num_sampled is None or num_sampled >= len(runs):
        return runs
    return [runs[index * len(runs) // num_sampled] for index in range(num_sampled)]


def _select_instruction_set(runs: Sequence[Path]) -> None:
    """Selects the instruction set of the runs, if this machine has it. A process has only one."""
    from fedcli.runs.files import folder

    recorded = {folder.read_origin(run).get("isa") for run in runs}
    if len(recorded) != 1 or "FEDCLI_ISA" in os.environ:
        return
    (isa,) = recorded
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if isa == "generic" or (isa == "avx2" and " avx2 " in flags):  # the best one is the default
        os.environ["FEDCLI_ISA"] = isa


def _verify(run: Path, options: dict[str, Any], remarks: Remarks) -> Verification:
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.core.native import CancelFlag
    from fedcli.progress import ProgressCallback
    from fedcli.runs import verifying
    from fedcli.runs.files import folder

    num_rounds = int(folder.read_config(run).get("rounds", 0)) or None
    cancel = CancelFlag()

    def job(on_progress: ProgressCallback) -> Verification:
        return verifying.verify_run(
            run,
            **options,
            on_round=lambda result: on_progress(result.round_num, num_rounds),
            cancel=cancel,
        )

    stopped = f"stopped; {run} was not verified"
    return run_job(
        f"verify {run.name}",
        "rounds",
        job,
        remarks=remarks,
        describe_stop=lambda: stopped,
        cancel=cancel,
    )


def _show(found: Sequence[Verification]) -> None:
    from fedcli.cli.screen.text_screen import open_text_screen

    screen = open_text_screen()
    rows = [
        (
            str(each.path),
            f"{each.num_rounds:,}",
            _verdict(each),
            ", ".join(each.compared),
        )
        for each in found
    ]
    screen.table(["run", "rounds", "result", "compared"], rows)
    for each in found:
        if each.difference is not None:
            screen.line(f"{each.path}: {each.difference}")
        if each.unlike:
            screen.line(f"{each.path}: {each.unlike}, so differences up to 0.1 % are allowed.")
            if command := _command_with_own_set(each.path):
                screen.line(f"To repeat it with its own instruction set: {command}")


def _command_with_own_set(run: Path) -> str:
    """The command that repeats a run with its instruction set.

    Empty if this process has that set, or if this machine lacks it.
    """
    from fedcli.core import native
    from fedcli.runs.files import folder

    isa = folder.read_origin(run).get("isa")
    if isa == native.isa_name() or isa not in native.isa_names():
        return ""
    return f"FEDCLI_ISA={isa} fedcli verify {shlex.quote(str(run))}"


def _verdict(each: Verification) -> str:
    if not each.is_verified:
        return "DIFFERS"
    return "within 0.1 %" if each.unlike else "the same bytes"


def _as_json(each: Verification) -> dict[str, Any]:
    difference = None if each.difference is None else each.difference._asdict()
    return {
        "run": str(each.path),
        "verified": each.is_verified,
        "rounds": each.num_rounds,
        "compared": list(each.compared),
        "exact": not each.unlike,
        "unlike": each.unlike or None,
        "difference": difference,
    }
