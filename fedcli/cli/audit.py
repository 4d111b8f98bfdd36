"""`fedcli audit`: attacks the privacy of a run, to see what it reveals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.settings.options import choose
from fedcli.settings.tables.audits import AUDITS

if TYPE_CHECKING:
    from fedcli.audits.auditing import AuditResult
    from fedcli.cli.screen.output import Remarks

AUDIT = "Audit"


@click.command(cls=opt.SectionCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name", type=opt.Name(lambda: AUDITS))
@opt.pairs_option(
    "--option",
    "options",
    help="Option of the audit, such as shadows=32; fedcli info NAME lists them.",
    section=AUDIT,
)
@opt.option(
    "--plot",
    "plot_file",
    help="Write the images that gradient-inversion reconstructs, beside the originals, to this "
    "file: .png, .svg or .pdf; needs matplotlib.",
    section=AUDIT,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.option(
    "--threads",
    help="Threads; they change no result.",
    section=AUDIT,
    type=int,
    metavar="N",
)
@opt.best_option(section=opt.MODEL)
@opt.code_option(section=opt.MODEL)
@opt.output_options
def audit(
    *,
    run: Path,
    name: str,
    options: dict[str, Any],
    plot_file: Path | None,
    threads: int | None,
    best: bool,
    model: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Attack the privacy of RUN, a run directory or a checkpoint file, on its own data.

    NAME is gradient-inversion (reconstructs a client's examples from its update), loss-threshold
    (tells trained examples from others), lira (tells clients that took part from others), or canary
    (gives a lower bound on epsilon). lira and canary train shadow runs with the config of RUN.
    Nothing in RUN changes.

    \b
    Examples:
      fedcli audit runs/first gradient-inversion --plot read.png
      fedcli audit runs/first gradient-inversion --option examples=4
      fedcli audit runs/first loss-threshold --option others=unseen
      fedcli audit runs/first lira --option shadows=32
      fedcli audit runs/private canary --option shadows=100 --json
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    choose(AUDITS, name, "audit")  # before any import
    _check_plot(plot_file, name, run)
    result = _audited(run, name, options, remarks, threads=threads, best=best, model=model)
    for note in result.notes:
        remarks.note(note)
    if plot_file is not None:
        _plot(result, plot_file)
        remarks.note(f"wrote {plot_file}")
        opt.note_links(remarks, plot_file)
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({"audit": name, **result.to_json()})
        return
    from fedcli.cli.screen import audit_tables
    from fedcli.cli.screen.render import Screen

    audit_tables.show(Screen(), result)


def _check_plot(plot_file: Path | None, name: str, run: Path) -> None:
    """Refuses, before any work, a figure that cannot be drawn or written."""
    if plot_file is None:
        return
    from fedcli.errors import ConfigError
    from fedcli.files import check_is_no_input
    from fedcli.inspection import figures

    if name != "gradient-inversion":
        raise ConfigError(f"--plot {plot_file}: {name} makes no images; leave --plot out")
    if plot_file.suffix.lstrip(".") not in figures.FORMATS:
        endings = ", ".join(f".{each}" for each in figures.FORMATS)
        raise ConfigError(f"--plot {plot_file}: choose a name that ends in {endings}")
    figures.require()
    opt.check_outputs(plot_file)
    check_is_no_input(plot_file, [run], f"--plot {plot_file}")


def _audited(
    run: Path, name: str, options: dict[str, Any], remarks: Remarks, **how: Any
) -> AuditResult:
    """Runs the audit in a worker thread with a progress bar."""
    from fedcli.audits.auditing import audit_run
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.core.native import CancelFlag

    cancel: CancelFlag = CancelFlag()
    unit = "shadow runs" if name in ("lira", "canary") else "clients"
    return run_job(
        name,
        unit,
        lambda on_progress: audit_run(run, name, options, on_progress, cancel=cancel, **how),
        remarks=remarks,
        describe_stop=lambda: "stopped before the audit was done; nothing was written",
        cancel=cancel,
    )


def _plot(result: AuditResult, file: Path) -> None:
    """Draws the examples, and below each the image that was reconstructed from the update."""
    from fedcli.audits.inversion import Inversion
    from fedcli.cli.screen.audit_tables import captions
    from fedcli.inspection import figures

    assert isinstance(result, Inversion)
    figures.write_pairs(
        file,
        result.data,
        result.originals,
        result.images.astype(result.originals.dtype),
        captions=captions(result),
        title=f"Above: examples of {result.client_id}; below: reconstructed from its update",
    )
