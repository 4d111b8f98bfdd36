"""`fedcli train`: trains a model by federated learning and writes a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcli.cli import options as opt
from fedcli.settings.declaration import option_name
from fedcli.settings.run_config import RESUME_FIELDS


class _TrainCommand(opt.OneValueCommand):
    sweep = "fedcli sweep "
    named = ("model",)


@click.command(cls=_TrainCommand)
@opt.option(
    "--out",
    help="Run directory to make. Default: runs/<time>-<data>-<algorithm>-s<seed>.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
)
@opt.option("--force", help="Replace the run at --out.", section=opt.RUN, is_flag=True)
@opt.option(
    "--resume",
    help=f"Continue this run. Allows only {', '.join(map(option_name, RESUME_FIELDS))}, and "
    "--model FILE.py (--algorithm FILE.py, ...) if the model (the algorithm, ...) is code.",
    section=opt.RUN,
    type=opt.RunFolder(),
    metavar="RUN",
)
@opt.option(
    "--config",
    "config_file",
    help="Options from a config.toml; options on the command line override them.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
)
@opt.run_options
@opt.output_options
def train(  # one parameter for each option that is not a field of RunConfig
    *,
    out: Path | None,
    force: bool,
    resume: Path | None,
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Train a model by federated learning, then evaluate it on train and test data.

    Without options: ten rounds on ten writers of the embedded digits. Results are written to a run
    directory. The same options and seed give the same results, for any number of threads.

    \b
    Examples:
      fedcli train
      fedcli train --data train.h5 --test-data test.h5
      fedcli train --sampling uniform --clients 10 --rounds 100 --epochs 1
      fedcli train --sampling poisson --clients 0.1
      fedcli train --preset tff-tutorial
      fedcli train --server-option momentum=0.9 --eval-every 5 --out runs/momentum
      fedcli train --resume runs/momentum --rounds 200
      fedcli train --config runs/momentum/config.toml --seed 1
    """  # noqa: D301 - \b keeps click from wrapping
    from fedcli.cli.jobs.training_job import (
        carry_out,
        continued_run,
        new_run,
        show,
    )

    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    given = opt.given(values)
    if resume is None:
        start = new_run(config_file, given, out, force=force, note=remarks.note)
    else:
        others = {"out": out, "config": config_file, "force": force or None}
        start = continued_run(resume, given, opt.given(others))
    run = carry_out(start, remarks, shows_tables=not as_json)
    show(run, remarks, as_json=as_json)
