"""`fedcli train`: rounds of federated training that end in a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.best_round import MEASURES
from fedcli.cli import options as opt
from fedcli.cli.output import Remarks
from fedcli.config import (
    CLIENT_LR,
    CLIENT_OPTIMIZER,
    CLIENT_WEIGHTING,
    DATA_FIELDS,
    PIPELINES,
    SAMPLINGS,
    SERVER_OPTIMIZER,
    WEIGHTINGS,
    RunConfig,
)
from fedcli.errors import RunError
from fedcli.presets import PRESETS
from fedcli.registry import AGGREGATORS, ALGORITHMS, CONSTANT, MODELS, OPTIMIZERS, SCHEDULES
from fedcli.schedules import BY_ROUND, COUNTED

if TYPE_CHECKING:
    from fedcli.backend import CancelFlag
    from fedcli.cli.worker import Worker
    from fedcli.rounds import Training

    Start = Callable[[CancelFlag], AbstractContextManager[Training]]

# Besides these, --resume takes its options from the run.
RESUME_OPTIONS = frozenset({"rounds", "threads", "model"})


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
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    given = opt.given(values)
    if resume is None:
        start = _new_run(config_file, given, out, force=force)
    else:
        others = {"out": out, "config": config_file, "force": force or None}
        start = _continued_run(resume, given, opt.given(others))
    path, code = _train(start, remarks, shows_tables=not as_json)
    _show(path, code, as_json=as_json)


def _read_config(config_file: Path | None, given: Mapping[str, Any]) -> RunConfig:
    """The config of a new run: what is given, over the file if there is one, over the defaults."""
    from fedcli import config, run_dir

    if config_file is not None and "preset" in given:
        raise click.UsageError(
            "--preset and --config each give all options; choose one of them",
            click.get_current_context(),
        )
    name = given.get("preset")
    base = dict(PRESETS[name].values) if name is not None and name in PRESETS else {}
    if config_file is not None:
        base = run_dir.read_config(config_file)
    given = _with_code_allowed(base, given)
    return config.from_options(config.merge(base, given))


def _with_code_allowed(base: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is given, with the file of a user's code as the config names it, where it is the same.

    Raises:
        ConfigError: The config names a user's code, and --model nothing.
    """
    of_config, wanted = base.get("model", ""), given.get("model")
    if ".py" not in of_config:  # so that few runs import what tells for certain
        return given
    from fedcli import model_sources

    if model_sources.python_file(of_config) is None:
        return given
    if wanted is None:
        model_sources.allowed_code(of_config, None)
    elif model_sources.is_same_code(of_config, wanted):
        return {**given, "model": of_config}  # so that its options are the config's
    return given


def _new_run(
    config_file: Path | None, given: Mapping[str, Any], out: Path | None, *, force: bool
) -> Start:
    from datetime import datetime

    from fedcli import rounds, run_dir

    config = _read_config(config_file, given)
    expected_data = expected_model = None
    if config_file is not None:
        origin = run_dir.read_origin(config_file)
        expected_data = origin.get("data") if given.keys().isdisjoint(DATA_FIELDS) else None
        is_same = run_dir.read_config(config_file).get("model") == config.model
        expected_model = origin.get("model") if is_same else None
    path = out or run_dir.default_out(datetime.now().astimezone(), config.data)
    return lambda cancel: rounds.start(
        config,
        path,
        force=force,
        expected_data=expected_data,
        expected_model=expected_model,
        cancel=cancel,
    )


def _continued_run(run: Path, given: Mapping[str, Any], others: Mapping[str, Any]) -> Start:
    from fedcli import model_sources, rounds
    from fedcli.config import option_name

    code = given.get("model")
    is_code = code is not None and model_sources.python_file(code) is not None
    allowed = RESUME_OPTIONS if is_code else RESUME_OPTIONS - {"model"}
    refused = sorted(option_name(name) for name in [*(given.keys() - allowed), *others])
    if refused:
        raise click.UsageError(
            f"--resume takes everything but --rounds and --threads from the run; drop "
            f"{', '.join(refused)}",
            click.get_current_context(),
        )
    return lambda cancel: rounds.resume(
        run,
        rounds=given.get("rounds"),
        threads=given.get("threads"),
        model=code,
        cancel=cancel,
    )


def _train(start: Start, remarks: Remarks, *, shows_tables: bool) -> tuple[Path, str | None]:
    """Trains in one worker thread; signals save and end it. Returns the run's path and its code."""
    from fedcli.backend import CancelFlag
    from fedcli.cli import progress
    from fedcli.cli.worker import run_stoppable

    cancel = CancelFlag()
    monitor = progress.Monitor()
    trainings: list[Training] = []

    def job() -> tuple[Path, str | None]:
        with start(cancel) as training:
            trainings.append(training)
            _follow(training, monitor, remarks)
            return training.path, training.code

    def attend(worker: Worker[tuple[Path, str | None]]) -> None:
        if shows_tables:
            from fedcli.cli import render  # noqa: F401 - loads rich while the worker trains
        progress.attend(worker, monitor, remarks)

    def describe_stop() -> str:
        if not trainings:
            return "stopped before the first round of this command; nothing was changed"
        done = f"stopped after round {trainings[0].round_num} and saved"
        code = trainings[0].code
        more = f" --model {code}" if code else ""
        return f"{done}; fedcli train --resume {trainings[0].path}{more} continues"

    return run_stoppable(job, cancel=cancel, describe_stop=describe_stop, attend=attend)


def _follow(training: Training, monitor: Any, remarks: Remarks) -> None:
    r"""Runs all rounds and the closing evaluation, passing on what there is to say."""
    remarks.detail(f"{training.num_threads} threads; run directory {training.path}")
    num_said = _say(training.notes, 0, remarks)
    for result in training.run():
        monitor.update(result, training.num_rounds)
    training.finish()
    _say(training.notes, num_said, remarks)
    cache = training.train.cache
    if cache is not None:
        kept = f"{cache.bytes / 2**20:.1f} of {cache.max_bytes / 2**20:.0f} MiB"
        remarks.detail(f"client cache: {len(cache)} clients, {kept}, {cache.hits:,} hits")


def _say(notes: list[str], first: int, remarks: Remarks) -> int:
    for note in notes[first:]:
        remarks.note(note)
    return len(notes)


def _show(path: Path, code: str | None, *, as_json: bool) -> None:
    r"""Prints the whole run from its files, so that a resumed run shows all of its rounds."""
    from fedcli import run_dir, stopping
    from fedcli.cli.output import print_json
    from fedcli.published import compare

    lines = run_dir.read_metrics(path)
    if not lines:
        raise RunError(f"{path / run_dir.METRICS} holds no round; restore it, or train anew")
    evaluation = run_dir.read_evaluation(path) or {}
    values = run_dir.read_config(path)
    progress = stopping.progress_for(values.get("stop_at"), values.get("patience"))
    if progress is not None:
        progress = progress.after_all(lines)
    name = values.get("preset")
    comparison = None
    if name is not None:
        comparison = compare(PRESETS[name], values, lines, evaluation, progress)
    if as_json:
        beside = {} if comparison is None else {"preset": comparison.summary()}
        ended = {} if progress is None else {"stopping": progress.summary()}
        print_json({"run": str(path), "rounds": lines, "evaluation": evaluation, **ended, **beside})
        return
    from fedcli.cli.render import Screen
    from fedcli.cli.run_tables import show_run

    show_run(Screen(), path, lines, evaluation, progress, comparison, code)
