"""`fedcli clean`: lists files that finished runs no longer need, and removes them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.errors import ConfigError, plural

if TYPE_CHECKING:
    from fedcli.cli.screen.text_screen import TextScreen
    from fedcli.runs.cleaning import Plan, Removal

REMOVING = "Removing"


@click.command(cls=opt.SectionCommand)
@click.argument("runs", nargs=-1, type=opt.RunFolder(or_parent=True), metavar="[RUN|FOLDER]...")
@opt.option(
    "--client-states",
    "has_client_states",
    help="Also remove the state that clients keep between rounds (SCAFFOLD, FedDyn, local-only, "
    "local batch normalization, error feedback, foolsgold). The run cannot be resumed afterwards. "
    "If clients are evaluated with what they keep, it cannot be evaluated either.",
    section=REMOVING,
    is_flag=True,
)
@opt.option(
    "--dry-run",
    help="List the files without removing them.",
    section=REMOVING,
    is_flag=True,
)
@opt.option("-y", "--yes", help="Remove without asking.", section=REMOVING, is_flag=True)
@opt.output_options
def clean(
    *,
    runs: tuple[Path, ...],
    has_client_states: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Remove files that finished runs no longer need: old checkpoints and temporary files.

    The files are listed, and you are asked before they are removed. The newest checkpoint and the
    best one stay, so that eval, export, report and train --resume work as before. Nothing is
    removed from runs that are stopped or still training. Without RUN, all runs in the folder runs
    are cleaned. To remove downloaded datasets, use fedcli download --remove.

    \b
    Examples:
      fedcli clean
      fedcli clean runs/scaffold --client-states
      fedcli clean sweep --dry-run
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    from fedcli.runs import cleaning, listing

    found = [run for path in runs or (Path("runs"),) for run in listing.find_runs(path)]
    made = cleaning.plan(dict.fromkeys(found), has_client_states=has_client_states)
    for note in made.notes:
        remarks.detail(note)
    num_removed = 0
    if as_json:
        from fedcli.cli.screen.output import print_json

        if made.removals and not dry_run:
            _require(yes=yes)
            num_removed = cleaning.carry_out(made.removals)
        print_json({**_as_json(made), "removed_bytes": num_removed})
        return
    from fedcli.cli.screen.text_screen import open_text_screen
    from fedcli.reports.names import size_text

    is_removing = bool(made.removals) and not dry_run
    is_asking = is_removing and not yes and sys.stdin.isatty()
    if is_asking or not quiet:  # no question without a list of the files
        _show(open_text_screen(), made, len(found))
    if is_removing:
        if is_asking and not click.confirm("Remove them?"):
            click.echo("Nothing was removed")
            return
        _require(yes=yes or is_asking)
        num_removed = cleaning.carry_out(made.removals)
        if not quiet:
            click.echo(f"Removed {size_text(num_removed)}")


def _require(*, yes: bool) -> None:
    if not yes:
        raise ConfigError(
            "nothing was removed: without a terminal, or with --json, no confirmation is "
            "possible; give --yes"
        )


def _as_json(made: Plan) -> dict[str, Any]:
    def rows(removals: Sequence[Removal]) -> list[dict[str, Any]]:
        return [
            {
                "run": str(each.run),
                "what": each.what,
                "files": [str(file) for file in each.files],
                "num_bytes": each.num_bytes,
            }
            for each in removals
        ]

    return {"removals": rows(made.removals), "kept": rows(made.kept), "left_alone": made.notes}


def _show(screen: TextScreen, made: Plan, num_runs: int) -> None:
    from fedcli.reports.names import size_text

    if made.removals:
        screen.line("Files to remove", "bold")
        rows = [
            (str(each.run), each.what, f"{len(each.files):,}", size_text(each.num_bytes))
            for each in made.removals
        ]
        screen.table(["run", "what", "files", "size"], rows, left=2)
        total = sum(each.num_bytes for each in made.removals)
        screen.line("")
        screen.line(f"Total: {size_text(total)}")
        is_one = len({each.run for each in made.removals}) == 1
        counts = Counter(each.consequence for each in made.removals if each.consequence)
        for consequence, num in counts.items():
            which = "the run" if is_one else plural(num, "run")
            screen.line(f"Without client states {which} {consequence}")
    else:
        screen.line(f"Nothing to remove from {plural(num_runs, 'run')}")
    if made.kept:
        kept = size_text(sum(each.num_bytes for each in made.kept))
        count = plural(len(made.kept), "run")
        screen.line(f"Kept: {kept} of client states of {count}; --client-states also removes them")
    if made.notes:
        count = plural(len(made.notes), "run")
        screen.line(f"Unchanged: {count}, stopped, training or damaged (-v says which)")
