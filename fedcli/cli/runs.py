"""`fedcli runs`: lists the runs below a folder with their state, last metrics and size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.errors import plural

if TYPE_CHECKING:
    from fedcli.runs.listing import ListedRun

SORTING = "Sorting"
_KEYS: dict[str, Callable[[ListedRun], Any]] = {
    "name": lambda run: str(run.path),
    "time": lambda run: -run.changed_at,
    "accuracy": lambda run: -(run.accuracy if run.accuracy is not None else -1.0),
    "size": lambda run: -run.num_bytes,
}


@click.command(cls=opt.SectionCommand)
@click.argument("folder", required=False, default=Path("runs"), type=opt.RunFolder(or_parent=True))
@opt.option(
    "--sort",
    "key",
    help="Order: name; time, the newest first; accuracy or size, the largest first.",
    section=SORTING,
    type=click.Choice(tuple(_KEYS)),
    default="name",
    show_default=True,
)
@opt.output_options
def runs(*, folder: Path, key: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the runs in FOLDER and below it, with state, last accuracy and size.

    The default FOLDER is runs. A run is finished once its closing evaluation is written. It is
    training while a process writes to it. Otherwise it is stopped: fedcli train --resume continues
    it. The accuracy is that of the last evaluation, else of the last round of training.

    \b
    Examples:
      fedcli runs
      fedcli runs studies --sort accuracy
      fedcli runs --json
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    from fedcli.runs import listing

    listed = sorted(map(listing.list_run, listing.find_runs(folder)), key=_KEYS[key])
    for run in listed:
        if run.problem:
            remarks.note(f"{run.path} is damaged: {run.problem}")
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({"folder": str(folder), "runs": [_as_json(run) for run in listed]})
        return
    _show(folder, listed)


def _as_json(run: ListedRun) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "state": run.state,
        "rounds": run.round_num,
        "of_rounds": run.num_rounds,
        "algorithm": run.options.get("algorithm"),
        "data": run.options.get("data"),
        "split": run.judged_by or None,
        "loss": run.loss,
        "accuracy": run.accuracy,
        "num_bytes": run.num_bytes,
        "changed_at": run.changed_at,
        "problem": run.problem or None,
    }


def _show(folder: Path, listed: Sequence[ListedRun]) -> None:
    from fedcli.cli.screen.text_screen import open_text_screen
    from fedcli.reports.names import size_text

    screen = open_text_screen()
    if not listed:
        screen.line(f"There is no run in {folder}; fedcli train makes one")
        return
    now = time.time()
    screen.line(f"Runs in {folder}", "bold")
    screen.table(
        ["run", "state", "rounds", "accuracy", "size", "changed"],
        [
            (
                _name(run.path, folder),
                run.state,
                _rounds(run),
                _accuracy(run),
                size_text(run.num_bytes),
                _ago(now - run.changed_at) if run.changed_at else "-",
            )
            for run in listed
        ],
        left=2,
    )
    count = plural(len(listed), "run")
    screen.line("")
    total = size_text(sum(run.num_bytes for run in listed))
    screen.line(f"{count}, {total}; fedcli clean {folder} lists what can be removed")


def _rounds(run: ListedRun) -> str:
    if run.state == "finished" or run.round_num == run.num_rounds:
        return f"{run.round_num:,}"
    return f"{run.round_num:,} of {run.num_rounds:,}"


def _accuracy(run: ListedRun) -> str:
    return "-" if run.accuracy is None else f"{run.accuracy:.4f} {run.judged_by}"


def _name(path: Path, folder: Path) -> str:
    """Returns the path of a run relative to the listed folder."""
    return "." if path == folder else str(path.relative_to(folder))


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
