"""`fedcli eval`: federated evaluation of a run or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt

if TYPE_CHECKING:
    from fedcli.backend import CancelFlag
    from fedcli.evaluation import Evaluation


@click.command("eval", cls=opt.SectionCommand, short_help="Evaluate a run on any split or clients.")
@click.argument("run", type=click.Path(path_type=Path))
@opt.data_options(
    data_help="A name or file to evaluate on. Default: the run's own data.",
    clients_help="Who is evaluated. Default: the run's fixed cohort; all if it has none or the "
    "split none of it.",
    partition_default="Default: the run's for its own data, natural for other data.",
)
@opt.option(
    "--split",
    help="Which split. Default: test if the data has it, else central, else train.",
    section=opt.DATA,
    metavar="NAME",
)
@opt.best_option(section=opt.MODEL)
@opt.code_option(section=opt.MODEL)
@opt.option(
    "--epochs",
    help="Passes over the data.",
    section=opt.EVALUATION,
    type=int,
    default=1,
    show_default=True,
    metavar="N",
)
@opt.option(
    "--batch-size",
    help="Examples a batch; batches never cross clients. Default: the run's.",
    section=opt.EVALUATION,
    type=int,
    metavar="N",
)
@opt.option(
    "--threads",
    help="Threads; they change no result.",
    section=opt.EVALUATION,
    type=int,
    metavar="N",
)
@opt.option(
    "--by-class",
    help="Show precision and recall of each class and the confusion matrix.",
    section=opt.EVALUATION,
    is_flag=True,
)
@opt.option(
    "--top-k",
    "ks",
    help="Show how often the label is among the K most probable classes; may be given again.",
    section=opt.EVALUATION,
    type=click.IntRange(min=1),
    multiple=True,
    metavar="K",
)
@opt.option(
    "--per-client",
    help="Write what was found of each client to this file, .csv or .h5.",
    section=opt.EVALUATION,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.option(
    "--show-errors",
    "num_errors",
    help="Draw the N worst mistakes: the wrong examples of highest loss.",
    section=opt.PICTURES,
    type=click.IntRange(min=1),
    metavar="N",
)
@opt.option(
    "--predictions",
    "predictions_file",
    help="Write what the model says of each example to this file, .npz or .csv.",
    section=opt.OUTPUT,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.output_options
def evaluate(
    *,
    run: Path,
    per_client: Path | None,
    by_class: bool,
    ks: tuple[int, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Evaluate the model of RUN, a run directory or a checkpoint file, without training it.

    Loss and accuracy are means over the examples of all clients; below it stands how they spread
    over clients, each counting the same. A file of predictions has a row an example: client_id,
    index in the client, label, predicted (-1 where the model gives NaN), and the probability of
    each class. A .csv is written as it comes; an .npz has one array of each and is held in memory.
    An existing file is replaced.

    \b
    Examples:
      fedcli eval runs/first
      fedcli eval runs/first --best
      fedcli eval runs/first --by-class --top-k 3
      fedcli eval runs/first --show-errors 10
      fedcli eval runs/first --clients all --predictions predictions.csv
      fedcli eval runs/first --split train --clients all
      fedcli eval runs/first --clients all --per-client clients.csv
      fedcli eval runs/first --data other_writers.h5 --json
      fedcli eval runs/first/checkpoints/round-000010.h5
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if per_client is not None:
        from fedcli.per_client import check_name

        check_name(per_client)
    measures = None
    if by_class or ks:
        from fedcli.class_measures import ClassMeasures

        measures = ClassMeasures(sorted(set(ks)))
    takers = () if measures is None else (measures.add,)
    evaluation = _evaluate(run, {**opt.given(values), "takers": takers})
    file = values["predictions_file"]
    for note in evaluation.notes:
        remarks.note(note)
    remarks.detail(f"evaluated split {evaluation.split} of {evaluation.source}")
    if per_client is not None:
        from fedcli.per_client import write

        write(per_client, evaluation.client_ids, evaluation.client_stats)
        remarks.detail(f"wrote {per_client}")
    if as_json:
        from fedcli.cli.output import print_json

        print_json({**evaluation.metrics, **(measures.to_json() if measures else {})})
        return
    from fedcli import report, report_tables
    from fedcli.cli.render import Screen
    from fedcli.cli.run_tables import show_evaluation

    screen = Screen()
    screen.line(
        f"Federated evaluation after round {evaluation.round_num}, on {evaluation.source}",
        style="bold",
    )
    show_evaluation(screen, [report.evaluation_row(evaluation.metrics)])
    told = report_tables.spread({evaluation.split: evaluation.metrics})
    if told is not None and evaluation.num_clients > 1:
        screen.title(told.title)
        screen.table(told.headers, told.rows, left=told.num_texts)
    if measures is not None:
        from fedcli.cli import class_tables

        class_tables.show(screen, evaluation.data, measures, shows_classes=by_class)
    if evaluation.worst is not None:
        from fedcli.cli import error_tables

        error_tables.show(screen, evaluation.data, evaluation.worst)
    if file is not None:
        screen.line("")
        screen.line(f"Wrote {file}")


def _evaluate(run: Path, values: dict[str, Any]) -> Evaluation:
    """Evaluates in a worker thread, so that Ctrl-C works at once."""
    from fedcli import evaluation
    from fedcli.backend import CancelFlag
    from fedcli.cli.worker import run_stoppable

    cancel: CancelFlag = CancelFlag()
    return run_stoppable(
        lambda: evaluation.evaluate_run(run, **values, cancel=cancel),
        cancel=cancel,
        describe_stop=lambda: "stopped",
    )
