"""`fedcli train`: rounds of federated training that end in a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcli.cli import options as opt
from fedcli.settings.presets import PRESETS
from fedcli.settings.run_config import (
    CLIENT_LR,
    CLIENT_OPTIMIZER,
    CLIENT_WEIGHTING,
    SERVER_OPTIMIZER,
    RunConfig,
)
from fedcli.settings.tables.algorithms import AGGREGATORS, ALGORITHMS
from fedcli.settings.tables.models import MODELS
from fedcli.settings.tables.optimizers import OPTIMIZERS
from fedcli.settings.tables.schedules import CONSTANT, SCHEDULES
from fedcli.settings.vocabulary import (
    BY_ROUND,
    COUNTED,
    EVAL_SPLITS,
    MEASURES,
    PIPELINES,
    SAMPLINGS,
    WEIGHTINGS,
)


@click.command(cls=opt.SectionCommand, short_help="Train a model; results go to a run directory.")
@opt.run_option(
    "--preset",
    "An experiment of the literature: options that repeat it, which those given beside it "
    "override. fedcli info lists them.",
    section=opt.DATA,
    type=opt.Name(PRESETS),
)
@opt.data_options(
    data_help=f"{opt.DATA_HELP}  [default: {RunConfig.data}]",
    clients_help="Cohort: everyone, the first N in sorted order, or these; if it is drawn, N or a "
    "share of all, such as 0.1.  [default: 10]",
    clients_syntax=f"{opt.CLIENTS_SYNTAX}|SHARE",
)
@opt.run_option(
    "--sampling",
    "fixed: the same cohort every round. The others draw N clients for each round: uniform; tff, "
    "as TFF draws with this seed; with-replacement, so that one may come twice; poisson, each with "
    "chance N / all, so that N varies; cyclic, all in turn, in a new order each time; by-size, in "
    "proportion to their examples, with replacement.",
    section=opt.COHORT,
    type=click.Choice(SAMPLINGS),
)
@opt.run_option(
    "--client-dropout",
    "Chance, 0 to 1, of each client of the cohort to send no report in a round; not a model's "
    "dropout.",
    section=opt.COHORT,
    type=float,
    metavar="P",
)
@opt.run_option(
    "--client-speeds",
    "Examples a virtual second of the speed tiers; each client falls in one for the whole run, all "
    "with the same chance. Puts a virtual clock in metrics.jsonl. Default: no clock.",
    section=opt.COHORT,
    metavar="X,X,...",
)
@opt.run_option(
    "--communication-seconds",
    "Virtual seconds that a client's transport takes in a round.",
    section=opt.COHORT,
    type=float,
    metavar="S",
)
@opt.run_option(
    "--deadline",
    "Virtual seconds of a round after which reports are too late. Default: all are waited for.",
    section=opt.COHORT,
    type=float,
    metavar="S",
)
@opt.run_option(
    "--over-selection",
    "Share of clients drawn besides the N wanted, such as 0.3; the first N to report by the "
    "virtual clock are taken.",
    section=opt.COHORT,
    type=float,
    metavar="SHARE",
)
@opt.run_option(
    "--min-reports",
    "Skip a round with fewer reports than N: the model stays as it is. Default: any will do.",
    section=opt.COHORT,
    type=int,
    metavar="N",
)
@opt.run_option("--rounds", "Rounds of training.", section=opt.COHORT, type=int, metavar="N")
@opt.run_option("--epochs", "Local epochs a round.", section=opt.LOCAL, type=int, metavar="N")
@opt.run_option("--batch-size", "Examples a local step.", section=opt.LOCAL, type=int, metavar="N")
@opt.run_option(
    "--shuffle-buffer",
    "Examples in the shuffle buffer; 0 or 1: no shuffling.",
    section=opt.LOCAL,
    type=opt.ShuffleBuffer(),
    metavar="N|full",
)
@opt.run_option(
    "--pipeline",
    "Order of repeating and shuffling; with per-epoch, batches do not cross epochs.",
    section=opt.LOCAL,
    type=click.Choice(PIPELINES),
)
@opt.run_option(
    "--max-examples",
    "Most examples a client processes in a round, counted after repeating.",
    section=opt.LOCAL,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--model",
    "What is trained: a name (see fedcli info), a Keras file, or a function in a Python file.",
    section=opt.MODEL,
    type=opt.Name(MODELS, or_path=True),
    metavar="NAME|FILE[:FUNCTION]",
)
@opt.pairs_option("--model-option", "Option of the model.", section=opt.MODEL)
@opt.option(
    "--fresh-weights",
    help="Draw initial weights, even if the model's file has some.",
    section=opt.MODEL,
    is_flag=True,
    default=None,
)
@opt.run_option(
    "--initial-weights",
    "File of weights to start from (.npz, .weights.h5, .keras, .h5).",
    section=opt.MODEL,
    type=click.Path(),
)
@opt.run_option(
    "--algorithm", "How clients train.", section=opt.ALGORITHM, type=opt.Name(ALGORITHMS)
)
@opt.pairs_option("--algorithm-option", "Option of the algorithm.", section=opt.ALGORITHM)
@opt.run_option(
    "--client-optimizer",
    f"Optimizer of the local steps; fedsgd has none.  [default: {CLIENT_OPTIMIZER}]",
    section=opt.ALGORITHM,
    type=opt.Name(OPTIMIZERS),
)
@opt.run_option(
    "--client-lr",
    f"Its learning rate.  [default: {CLIENT_LR}]",
    section=opt.ALGORITHM,
    type=float,
    metavar="X",
)
@opt.pairs_option(
    "--client-option", "Its other options, such as momentum=0.9.", section=opt.ALGORITHM
)
@opt.run_option(
    "--client-schedule",
    f"How its learning rate changes from round to round.  [default: {CONSTANT}]",
    section=opt.ALGORITHM,
    type=opt.Name(SCHEDULES),
)
@opt.pairs_option(
    "--client-schedule-option",
    "Option of that schedule, such as warmup_rounds=10.",
    section=opt.ALGORITHM,
)
@opt.run_option(
    "--client-schedule-by",
    "What that schedule counts: rounds, or a client's local steps in its round, from 0 again.  "
    f"[default: {BY_ROUND}]",
    section=opt.ALGORITHM,
    type=click.Choice(COUNTED),
)
@opt.run_option(
    "--client-clip-norm",
    "Scale longer gradients of local steps down to this L2 norm, before a proximal term is added. "
    "Default: as they are.",
    section=opt.ALGORITHM,
    type=float,
    metavar="X",
)
@opt.run_option(
    "--server-optimizer",
    "Optimizer that applies the mean of the clients' model deltas; fedavgm, fedadagrad, fedadam "
    f"and fedyogi have their own.  [default: {SERVER_OPTIMIZER}]",
    section=opt.ALGORITHM,
    type=opt.Name(OPTIMIZERS),
)
@opt.run_option(
    "--server-lr",
    "Its learning rate. Default: the algorithm's, 1.0 but for fedsgd and the adaptive ones; see "
    "fedcli info.",
    section=opt.ALGORITHM,
    type=float,
    metavar="X",
)
@opt.pairs_option("--server-option", "Its other options.", section=opt.ALGORITHM)
@opt.run_option(
    "--server-schedule",
    "How its learning rate changes from round to round.",
    section=opt.ALGORITHM,
    type=opt.Name(SCHEDULES),
)
@opt.pairs_option("--server-schedule-option", "Option of that schedule.", section=opt.ALGORITHM)
@opt.run_option(
    "--server-ema",
    "Evaluate and export a running mean of the global weights, of which each round keeps the share "
    "DECAY, less in the first rounds. Default: the weights themselves.",
    section=opt.ALGORITHM,
    type=float,
    metavar="DECAY",
)
@opt.run_option(
    "--client-weighting",
    "What a client counts for in the mean; all alike if drawn by-size, or with scaffold or feddyn. "
    f" [default: {CLIENT_WEIGHTING}]",
    section=opt.ALGORITHM,
    type=click.Choice(WEIGHTINGS),
)
@opt.run_option(
    "--aggregator",
    "How the deltas are averaged.",
    section=opt.ALGORITHM,
    type=opt.Name(AGGREGATORS),
)
@opt.pairs_option("--aggregator-option", "Option of the aggregator.", section=opt.ALGORITHM)
@opt.run_option(
    "--eval-every",
    "Evaluate before round 1 and after every N rounds. Default: only at the end.",
    section=opt.EVALUATION,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--eval-clients",
    "Who is evaluated. Default: the fixed cohort, or with random cohorts everyone.",
    section=opt.EVALUATION,
    metavar=opt.CLIENTS_SYNTAX,
)
@opt.run_option(
    "--eval-split",
    "What --eval-every evaluates; held-out: test, or else central. At the end all are. Default: "
    "all each time.",
    section=opt.EVALUATION,
    type=click.Choice(EVAL_SPLITS),
)
@opt.run_option(
    "--stop-at",
    "End once the accuracy on test data (without them, train) reaches this; takes --eval-every. "
    "The rounds to it are told.",
    section=opt.EVALUATION,
    metavar="accuracy=X",
)
@opt.run_option(
    "--patience",
    "End after N evaluations in a row without a better accuracy; takes --eval-every. Default: "
    "never.",
    section=opt.EVALUATION,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--seed",
    "Seed of initial weights, shuffling and sampling; it never changes the data.",
    section=opt.RUN,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--threads", "Threads; they change no result.", section=opt.RUN, type=int, metavar="N"
)
@opt.option(
    "--out",
    help="Run directory to make. Default: runs/<time>-<data>.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
)
@opt.option("--force", help="Replace the run at --out.", section=opt.RUN, is_flag=True)
@opt.option(
    "--resume",
    help="Continue this run; goes with --rounds and --threads only, and with --model FILE.py where "
    "the run's model is code.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
    metavar="RUN",
)
@opt.run_option(
    "--checkpoint-every",
    "Save after every N rounds. Default: when 30 s have passed since the last save.",
    section=opt.RUN,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--keep-checkpoints",
    "Keep the newest N checkpoints.",
    section=opt.RUN,
    type=int,
    metavar="N",
)
@opt.run_option(
    "--keep-best",
    "Save and keep the best evaluated round, too, by its accuracy or loss on test data (without "
    "them, train); takes --eval-every. eval and export take it with --best.",
    section=opt.RUN,
    type=click.Choice(tuple(MEASURES)),
)
@opt.switch("--csv", "Write metrics.csv beside metrics.jsonl.", section=opt.RUN)
@opt.switch("--tensorboard", "Write event files for TensorBoard.", section=opt.RUN)
@opt.switch(
    "--histograms", "Write histograms of the weights there too, each round.", section=opt.RUN
)
@opt.switch(
    "--record-clients",
    "Keep what each client did in each round, in clients.h5; fedcli report makes CSV of it.",
    section=opt.RUN,
)
@opt.option(
    "--config",
    "config_file",
    help="Options from a config.toml; those on the command line win.",
    section=opt.RUN,
    type=click.Path(path_type=Path),
)
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

    Without options: ten rounds on ten writers of the embedded digits. Results go to a run
    directory; the same options and seed give the same bytes there, for any number of threads.

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
    from fedcli.cli.jobs.training_job import carry_out, continued_run, new_run, show

    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    given = opt.given(values)
    if resume is None:
        start = new_run(config_file, given, out, force=force)
    else:
        others = {"out": out, "config": config_file, "force": force or None}
        start = continued_run(resume, given, opt.given(others))
    path, code = carry_out(start, remarks, shows_tables=not as_json)
    show(path, code, as_json=as_json)
