"""`fedcli eval`: federated evaluation of a run or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.run_config import OPTIONS

if TYPE_CHECKING:
    from fedcli.cli.screen.render import Screen
    from fedcli.core.native import CancelFlag
    from fedcli.evaluation.fine_tuning import FineTuningOptions
    from fedcli.evaluation.result import Evaluation


@click.command("eval", cls=opt.SectionCommand)
@click.argument("run", type=opt.RunFolder())
@opt.data_options(
    data="A name or file to evaluate on. Default: the run's own data.",
    partition=f"{OPTIONS['partition'].help} Default: the run's for its own data, natural for other "
    "data.",
    clients="Clients to evaluate. seen: clients that took part in the training. unseen: clients "
    "that never did. Default: the run's fixed cohort, or all clients if the run has no fixed "
    "cohort. If the split has no client of the cohort: all its clients, or a draw of 1,000 if it "
    "has more than 10,000.",
    clients_metavar="all|seen|unseen|N|ID,ID|@FILE",
)
@opt.option(
    "--split",
    help="Split to evaluate. Default: test if the data have it, else central, else validation, "
    "else train.",
    section=opt.DATA,
    metavar="NAME",
)
@opt.best_option(section=opt.MODEL)
@opt.code_option(section=opt.MODEL)
@opt.option(
    "--epochs",
    help="Number of times that each example is evaluated.",
    section=opt.EVALUATION,
    type=int,
    default=1,
    show_default=True,
    metavar="N",
)
@opt.option(
    "--batch-size",
    help="Examples in a batch. A batch never has examples of two clients. Default: the run's.",
    section=opt.EVALUATION,
    type=int,
    metavar="N",
)
@opt.option(
    "--threads",
    help="Number of threads; it changes no result.",
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
    help="Show how often the label is among the K most probable classes. Repeatable.",
    section=opt.EVALUATION,
    type=click.IntRange(min=1),
    multiple=True,
    metavar="K",
)
@opt.run_option(
    "metrics",
    help="Further metrics: macro_f1, auc, ece, ... (see fedcli info). Default: the run's, except "
    "your own.",
)
@opt.run_option("metric_options")
@opt.option(
    "--per-client",
    "per_client_file",
    help="Write the results of each client to this file, .csv or .h5.",
    section=opt.EVALUATION,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.option(
    "--finetune",
    "finetune_steps",
    help="Fine-tune the model on each client's train data for K local steps, and evaluate it on "
    "the client again.",
    section=opt.FINE_TUNING,
    type=int,
    metavar="K",
)
@opt.option(
    "--finetune-epochs",
    help="Fine-tune for N local epochs, instead of K steps.",
    section=opt.FINE_TUNING,
    type=int,
    metavar="N",
)
@opt.option(
    "--finetune-lr",
    help="Learning rate of fine-tuning. Default: the run's client learning rate, without its "
    "schedule.",
    section=opt.FINE_TUNING,
    type=float,
    metavar="X",
)
@opt.option(
    "--finetune-batch-size",
    help="Examples in a batch of fine-tuning. Default: the run's.",
    section=opt.FINE_TUNING,
    type=int,
    metavar="N",
)
@opt.option(
    "--finetune-optimizer",
    help="Optimizer of fine-tuning. Default: the run's client optimizer.",
    section=opt.FINE_TUNING,
    type=opt.Name(lambda: tables.OPTIMIZERS),
)
@opt.pairs_option(
    "--finetune-option",
    "finetune_options",
    help="Option of the optimizer of fine-tuning, such as momentum=0.9. Default: the run's.",
    section=opt.FINE_TUNING,
)
@opt.option(
    "--show-errors",
    "num_errors",
    help="Draw the N worst mistakes: the wrongly classified examples with the highest loss.",
    section=opt.PICTURES,
    type=click.IntRange(min=1),
    metavar="N",
)
@opt.option(
    "--predictions",
    "predictions_file",
    help="Write the prediction for each example to this file, .npz or .csv.",
    section=opt.OUTPUT,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.output_options
def evaluate(
    *,
    run: Path,
    by_class: bool,
    ks: tuple[int, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Evaluate the model of RUN, a run directory or a checkpoint file, without training it.

    Loss and accuracy are means over the examples of all clients. A second table shows how they vary
    over clients, each with the same weight. If some clients took part in the training and others
    did not, both groups are shown. With --finetune, each client also trains the model on its own
    train data, and the result is evaluated on its test data.

    A file of predictions has one row for each example: client_id, index in the client, label,
    predicted class (-1 if the model gives NaN), and the probability of each class. A .csv is
    written while predictions are made; an .npz is held in memory until the end. An existing file is
    replaced.

    \b
    Examples:
      fedcli eval runs/first
      fedcli eval runs/first --best
      fedcli eval runs/first --by-class --top-k 3
      fedcli eval runs/first --metrics macro_f1,auc,ece
      fedcli eval runs/first --show-errors 10
      fedcli eval runs/first --clients all --finetune 10
      fedcli eval runs/first --clients all --predictions predictions.csv
      fedcli eval runs/first --split train --clients all
      fedcli eval runs/first --clients unseen
      fedcli eval runs/first --clients all --per-client clients.csv
      fedcli eval runs/first --data other_writers.h5 --json
      fedcli eval runs/first/checkpoints/round-000010.h5
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    opt.check_outputs(values["predictions_file"], values["per_client_file"])
    measures = None
    if by_class or ks:
        from fedcli.evaluation.by_class import ClassMeasures

        measures = ClassMeasures(sorted(set(ks)))
    fine_tuning = _fine_tuning(values)
    if fine_tuning is not None and (measures or values["num_errors"] or values["predictions_file"]):
        raise ConfigError(
            "--finetune gives each client its own model, but --by-class, --top-k, --show-errors "
            "and --predictions are about the run's model; leave them out, or leave --finetune out"
        )
    callbacks = () if measures is None else (measures.add,)
    given = {
        **opt.given(values),
        "fine_tuning": fine_tuning,
        "prediction_callbacks": callbacks,
    }
    evaluation = _evaluate(run, given)
    for note in evaluation.notes:
        remarks.note(note)
    opt.note_links(remarks, values["predictions_file"], values["per_client_file"])
    remarks.detail(f"evaluated split {evaluation.split} of {evaluation.source}")
    if values["per_client_file"] is not None:
        remarks.detail(f"wrote {values['per_client_file']}")
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({**evaluation.metrics, **(measures.to_json() if measures else {})})
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    _show(screen, evaluation)
    if measures is not None:
        from fedcli.cli.screen import class_tables

        class_tables.show(screen, evaluation.data, measures, shows_classes=by_class)
    if evaluation.worst is not None:
        from fedcli.cli.screen import error_tables

        error_tables.show(screen, evaluation.data, evaluation.worst)
        if evaluation.attack is not None:
            error_tables.show_attack(screen, evaluation.attack)
    if values["predictions_file"] is not None:
        screen.line("")
        screen.line(f"Wrote {values['predictions_file']}")


def _fine_tuning(values: dict[str, Any]) -> FineTuningOptions | None:
    """Removes the options of fine-tuning from `values` and returns them, or None."""
    names = ("steps", "epochs", "optimizer", "lr", "options", "batch_size")
    given = {name: values.pop(f"finetune_{name}") for name in names}
    if given["steps"] is None and given["epochs"] is None:
        others = [name for name in names if given[name] not in (None, {})]
        if others:
            flag = others[0].removesuffix("s").replace("_", "-")
            raise ConfigError(f"--finetune-{flag} needs --finetune K or --finetune-epochs N")
        return None
    from fedcli.evaluation.fine_tuning import FineTuningOptions

    return FineTuningOptions(
        num_steps=given["steps"],
        num_epochs=given["epochs"],
        optimizer=given["optimizer"],
        learning_rate=given["lr"],
        options=given["options"] or {},
        batch_size=given["batch_size"],
    )


def _show(screen: Screen, evaluation: Evaluation) -> None:
    """Prints the metrics, their spread over clients, and the results of fine-tuning."""
    from fedcli.cli.screen.run_tables import show_evaluation
    from fedcli.evaluation.fine_tuning import describe
    from fedcli.reports import rows, tables

    screen.line(
        f"Federated evaluation after round {evaluation.round_num}, on {evaluation.source}",
        style="bold",
    )
    by_split = {evaluation.split: evaluation.metrics}
    show_evaluation(screen, rows.evaluation_rows(by_split))
    if evaluation.fine_tuned is not None:
        screen.line(f"Fine-tuned: {describe(evaluation.fine_tuned.strategy)}", "dim")
    if evaluation.num_clients < 2:
        return
    for table in (tables.spread(by_split), tables.gain(by_split)):
        if table is not None:
            screen.title(table.title)
            screen.table(table.headers, table.rows, left=table.num_texts)


def _evaluate(run: Path, values: dict[str, Any]) -> Evaluation:
    """Evaluates in a worker thread, so that Ctrl-C works at once."""
    from fedcli.cli.jobs.worker import run_stoppable
    from fedcli.core.native import CancelFlag
    from fedcli.runs import evaluating as evaluation

    cancel: CancelFlag = CancelFlag()
    return run_stoppable(
        lambda: evaluation.evaluate_run(run, **values, cancel=cancel),
        cancel=cancel,
        describe_stop=lambda: "stopped",
    )
