"""`fedcli bundle`: packs runs so that others can verify them."""

from __future__ import annotations

from pathlib import Path

import click

from fedcli.cli import options as opt
from fedcli.errors import plural


@click.command(cls=opt.SectionCommand)
@click.argument("folder", metavar="RUN|FOLDER", type=opt.RunFolder(or_parent=True))
@click.argument("file", metavar="FILE.zip", type=opt.OutputFile())
@opt.option(
    "--weights",
    "has_weights",
    help="Also pack the last checkpoint of each run. Default: only a digest of its weights.",
    section=opt.RUN,
    is_flag=True,
)
@opt.output_options
def bundle(
    *, folder: Path, file: Path, has_weights: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Pack RUN, or all runs in FOLDER, as FILE.zip, for others to verify.

    The archive has the config, the metrics and the evaluation of each run, a digest of everything,
    and the two commands that verify it. It contains no data and, without --weights, no weights. The
    same runs always give the same bytes. An existing file is replaced.

    \b
    Examples:
      fedcli bundle runs/first first.zip
      fedcli bundle runs paper.zip --weights
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    opt.check_outputs(file)
    from fedcli.runs import bundling

    packed = bundling.write_bundle(folder, file, has_weights=has_weights)
    opt.note_links(remarks, file)
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({"file": str(file), "runs": packed.num_runs, "members": list(packed.members)})
        return
    if quiet:
        return
    runs = plural(packed.num_runs, "run")
    print(f"Wrote {file}: {runs}, {plural(len(packed.members), 'file')}")
