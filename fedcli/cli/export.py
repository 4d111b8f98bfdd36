"""`fedcli export`: a model's weights as a file that other programs read."""

from __future__ import annotations

from pathlib import Path

import click

from fedcli.cli import options as opt
from fedcli.errors import ConfigError


@click.command(cls=opt.SectionCommand, short_help="Write the weights of a run to a .npz file.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@opt.output_options
def export(*, run: Path, file: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Write the weights of RUN, a run directory or a checkpoint file, to FILE.npz.

    One array for each tensor, in layer order, kernel then bias, in Keras layout; an existing file
    is replaced.

    \b
    Examples:
      fedcli export runs/first weights.npz
      python -c "import numpy; print(dict(numpy.load('weights.npz')))"
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if file.suffix != ".npz":
        raise ConfigError(f"{file}: the formats of weights are .npz; choose a name that ends so")
    from fedcli import evaluation

    tensors = evaluation.export_run(run, file)
    remarks.detail(f"read {run}")
    if as_json:
        from fedcli.cli.output import print_json

        named = [{"name": name, "shape": list(shape)} for name, shape in tensors]
        print_json({"file": str(file), "tensors": named})
        return
    from fedcli.cli.render import Screen

    screen = Screen()
    screen.line(f"Wrote {file}")
    rows = [(name, " x ".join(map(str, shape)) or "scalar") for name, shape in tensors]
    screen.table(["tensor", "shape"], rows)
