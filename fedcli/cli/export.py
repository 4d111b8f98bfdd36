"""`fedcli export`: a trained model as a file that other programs read."""

from __future__ import annotations

from pathlib import Path

import click

from fedcli.cli import options as opt
from fedcli.settings.vocabulary import WEIGHTS_FORMATS


@click.command(cls=opt.SectionCommand)
@click.argument("run", type=opt.RunFolder())
@click.argument("file", type=opt.OutputFile())
@opt.option(
    "--format",
    "file_format",
    type=click.Choice(tuple(WEIGHTS_FORMATS)),
    help="Format of FILE. Default: by its suffix.",
    section=opt.MODEL,
)
@opt.best_option(section=opt.MODEL)
@opt.output_options
def export(
    *,
    run: Path,
    file: Path,
    file_format: str | None,
    best: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the model of RUN, a run directory or a checkpoint file, to FILE.

    \b
    The suffix of FILE chooses the format:
      .npz         the weights: one array for each tensor, in layer order; moving statistics of
                   batch normalization follow all others
      .keras       the whole model, for keras.models.load_model of Keras 3
      .weights.h5  the weights, for load_weights of the same model in Keras 3
      .pt          the weights, for load_state_dict of the same model in PyTorch

    Tensors have Keras's layout, kernel before bias; in a .pt file they have PyTorch's (fedcli help
    models). The model in a .keras file ends in a softmax, so that predict() gives probabilities,
    even if the model was read from a file without a softmax. An existing file is replaced.

    \b
    Examples:
      fedcli export runs/first weights.npz
      fedcli export runs/first model.keras
      fedcli export runs/first best.npz --best
      fedcli export runs/first weights.pt
      python -c "import keras; keras.models.load_model('model.keras').summary()"
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    opt.check_outputs(file)
    from fedcli.runs import trained

    tensors = trained.export_run(run, file, best=best, file_format=file_format, note=remarks.note)
    opt.note_links(remarks, file)
    remarks.detail(f"read {run}")
    if as_json:
        from fedcli.cli.screen.output import print_json

        named = [{"name": name, "shape": list(shape)} for name, shape in tensors]
        print_json({"file": str(file), "tensors": named})
        return
    if quiet:
        return
    from fedcli.cli.screen.render import Screen
    from fedcli.runs.files.folder import round_of_checkpoint

    screen = Screen()
    round_num = round_of_checkpoint(trained.checkpoint_file(run, best=best))
    which = "the best evaluated one" if best else "the newest checkpoint"
    of_round = "" if round_num is None else f": the model after round {round_num:,}, {which}"
    screen.line(f"Wrote {file}{of_round}")
    rows = [(name, " x ".join(map(str, shape)) or "scalar") for name, shape in tensors]
    screen.table(["tensor", "shape"], rows)
