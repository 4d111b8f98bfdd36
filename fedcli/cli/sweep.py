"""`fedcli sweep`: runs a study of many runs, and prints the table of its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcli.cli import options as opt

STUDY = "Study"
_RESUMED = ("jobs", "cluster", "reuse", "fail_fast", "code", "spread")
_SPREADS = ("interval", "std", "none")


def _study_options(function: Any) -> Any:
    """Adds the options that say which runs there are and how the best is chosen."""
    number = click.IntRange(1)
    return opt.stack(
        opt.option(
            "--grid",
            help="Values of a train option; may be given again: every combination is run.",
            section=STUDY,
            multiple=True,
            metavar="K=V,V",
        ),
        opt.option(
            "--seeds",
            help="Seeds of each combination: 5 (0 to 4), 0..4 or 1,7.  [default: 0]",
            section=STUDY,
            metavar="N|A..B",
        ),
        opt.option(
            "--random",
            help="Draw this number of combinations from --range.",
            section=STUDY,
            type=number,
            metavar="N",
        ),
        opt.option(
            "--search",
            help="Search --range with this number of points, by TPE, which needs Optuna.",
            section=STUDY,
            type=number,
            metavar="N",
        ),
        opt.option(
            "--range",
            "ranges",
            help="Range of a train option, as in client_lr=log:1e-3..1, epochs=linear:1..5 or "
            "model=choice:a,b; may be given again.",
            section=STUDY,
            multiple=True,
            metavar="K=RANGE",
        ),
        opt.option(
            "--halving",
            help="Successive halving: after N, 3 N, 9 N ... rounds the best third continues. "
            "N,ETA uses ETA instead of 3.",
            section=STUDY,
            metavar="N[,ETA]",
        ),
        opt.option(
            "--redraw-partition",
            help="Use each seed also as the seed of the partition.",
            section=STUDY,
            is_flag=True,
            default=None,
        ),
        opt.option(
            "--select",
            "metric",
            help="Metric that ranks the combinations.  [default: accuracy]",
            section=STUDY,
            metavar="METRIC",
        ),
        opt.option(
            "--select-on",
            "split",
            help="Split whose metric is used; a note appears if it is the test split.  "
            "[default: validation]",
            section=STUDY,
            metavar="SPLIT",
        ),
    )(function)


class _SweepCommand(opt.OneValueCommand):
    named = ("clients", "model")


@click.command(cls=_SweepCommand)
@click.argument("study", required=False, type=click.Path(path_type=Path), metavar="[STUDY.toml]")
@_study_options
@opt.option(
    "--out",
    help="Folder of the study to make. Default: runs/<time>-<name of the study>.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
)
@opt.option(
    "--resume",
    help="Continue the study in this folder. Allows only --jobs, --cluster, --reuse, "
    "--fail-fast, --code and --spread.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
    metavar="DIR",
)
@opt.option(
    "--jobs",
    help="Number of runs at a time, each on one thread. It changes no result. Default: one "
    "for each processor.",
    section=opt.RUN,
    type=int,
    metavar="N",
)
@opt.option(
    "--cluster",
    help="Train the runs on a Ray cluster instead: local, auto (the cluster that this machine "
    "belongs to) or HOST:PORT. It changes no result.",
    section=opt.RUN,
    metavar="ADDRESS",
)
@opt.option(
    "--reuse",
    help="Copy the finished runs of this folder, instead of training them; may be given again.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
)
@opt.option(
    "--code",
    help="A Python file that the study may run; may be given again. No other code runs.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.py",
)
@opt.option("--dry-run", help="List the runs and train none.", section=opt.RUN, is_flag=True)
@opt.option("--fail-fast", help="Stop at the first run that fails.", section=opt.RUN, is_flag=True)
@opt.run_options
@opt.option(
    "--spread",
    help="The number after a mean over seeds: half the width of the 95 % interval, the standard "
    "deviation, or nothing.",
    section=opt.OUTPUT,
    type=click.Choice(_SPREADS),
    default="interval",
    show_default=True,
)
@opt.output_options
def sweep(  # one parameter for each option that is not a field of RunConfig
    *,
    study: Path | None,
    out: Path | None,
    resume: Path | None,
    jobs: int | None,
    cluster: str | None,
    reuse: tuple[Path, ...],
    code: tuple[Path, ...],
    dry_run: bool,
    fail_fast: bool,
    spread: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Run a study of many runs on all processors, and print the table of its results.

    STUDY.toml defines the runs. The options of this command and of fedcli train override it;
    without a file, they define the study. An interrupted study continues with --resume, and
    finished runs are not run again. The table has the mean over seeds of each combination, the best
    first, chosen on validation data. fedcli help sweeps has an example and all keys of the file.

    \b
    Examples:
      fedcli sweep --grid client_lr=0.01,0.1 --grid model=softmax-regression,mlp-2nn --seeds 0..4
      fedcli sweep study.toml --out studies/first
      fedcli sweep --resume studies/first
      fedcli sweep study.toml --dry-run
      fedcli sweep --random 20 --range client_lr=log:1e-3..1 --validation 0.1 --rounds 50
      fedcli report studies/first --by algorithm --best client_lr --format latex
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    from fedcli.cli.jobs import sweep_job
    from fedcli.sweeps.sweeping import SweepOptions

    given = opt.given({name: value for name, value in values.items() if value != ()})
    options = SweepOptions(jobs, reuse, fail_fast, cluster)
    if resume is not None:
        if study is not None or out is not None or given:
            raise click.UsageError(
                "--resume takes the study from its folder; leave out STUDY.toml, --out and all "
                "options "
                f"but {', '.join('--' + name.replace('_', '-') for name in _RESUMED)}",
                click.get_current_context(),
            )
        folder = sweep_job.continued(resume, code)
    else:
        wanted = sweep_job.new_study(study, given, code, remarks.note)
        if dry_run:
            sweep_job.list_runs(wanted)
            return
        folder = sweep_job.begun(wanted, out, study)
    if dry_run:
        with folder:
            sweep_job.list_runs(folder.study)
        return
    lines = sweep_job.carry_out(folder, options, remarks)
    sweep_job.show(folder.path, folder.study, lines, spread, remarks, as_json=as_json)
    sweep_job.check_failures(folder, lines, remarks)
