"""Every option of `fedcli train` with its default: the only owner of defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from fedcli.settings import tables
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import Entry, Value
from fedcli.settings.vocabulary import BY_ROUND

Options = Mapping[str, Value]
Clients = str | tuple[str, ...] | None

# Of the tutorial.
CLIENT_OPTIMIZER = "sgd"
CLIENT_LR = 0.02
SERVER_OPTIMIZER = "sgd"
CLIENT_WEIGHTING = "num-examples"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, option by option: field `batch_size` is `--batch-size`. None stands for "not set".

    Attributes:
        preset: The preset that the rest was taken from, for the record; None: none.
        data: Name of an embedded dataset, or path of a file.
        data_options: `k=v` options of an embedded dataset.
        test_data: Path of a file with the test split.
        partition: How examples are dealt to clients, and what changes them; see
            `tables.find_partition`.
        partition_options: Its `k=v` options.
        num_classes: Number of labels; None: the data's own.
        pixels: What 1.0 means in what the model sees; one of `PIXELS`.
        clients: `all`, a count, a share such as 0.1 for cohorts that are drawn, ids with commas,
            `@file`, or ids one by one; None: 10, or the whole population if that is smaller.
        sampling: How a round's cohort is chosen; one of `SAMPLINGS`.
        client_dropout: Chance of a client of the cohort to send no report in a round.
        client_speeds: Examples a virtual second of the tiers that clients fall in, each with the
            same chance and for the whole run; None: no virtual clock.
        communication_seconds: Virtual seconds of a client's transport in a round.
        deadline: Virtual seconds of a round after which reports are too late; None: all are waited
            for.
        over_selection: Clients drawn besides those wanted, as a share of them; the first to report
            are taken.
        min_reports: A round with fewer reports leaves the model as it is; None: any will do.
        rounds: Rounds of training in total.
        epochs: Local epochs.
        batch_size: Examples of a local step.
        shuffle_buffer: Examples in the shuffle buffer, 0 or 1 for none, or "full".
        pipeline: Order of repeat, shuffle and batch; one of `PIPELINES`.
        max_examples: Most examples a client processes in a round, counted after repeating.
        model: Name of a model, path of a Keras file, or FILE.py:FUNCTION.
        model_options: Its `k=v` options.
        fresh_weights: Draw initial weights, whatever weights a model's file has.
        initial_weights: Path of a weights file; None: the model's own start.
        algorithm: Name of an algorithm.
        algorithm_options: Its `k=v` options.
        client_optimizer: Name of the optimizer of the local steps; None: CLIENT_OPTIMIZER, or none
            at all where the algorithm has no local steps.
        client_lr: Its learning rate; None: CLIENT_LR, likewise.
        client_options: Its other options.
        client_schedule: Name of the schedule of that rate; None: constant, likewise.
        client_schedule_options: Its `k=v` options.
        client_schedule_by: What it counts, rounds or the local steps of a client in its round; one
            of `vocabulary.COUNTED`; None: rounds, likewise.
        client_clip_norm: Longer gradients of local steps are scaled to this L2 norm; None: none.
        server_optimizer: Name of the optimizer that takes the pseudo-gradient; None: the
            algorithm's own, or SERVER_OPTIMIZER.
        server_lr: Its learning rate; None: the algorithm's own.
        server_options: Its other options.
        server_schedule: Name of the schedule of that rate by round.
        server_schedule_options: Its `k=v` options.
        server_ema: Share that a running mean of the global weights keeps in each round; it is what
            is evaluated and exported. None: the weights themselves are.
        client_weighting: What a client weighs in the mean; one of `WEIGHTINGS`; None: the
            algorithm's own, or `uniform` where clients are drawn by size.
        aggregator: Name of an aggregator.
        aggregator_options: Its `k=v` options.
        seed: Seed of everything drawn in the run, but never of the data.
        threads: Number of threads; None: what the machine gives. Changes no result.
        eval_every: Evaluate before round 1 and after every so many rounds; None: only at the end.
        eval_split: What that evaluates, one of `EVAL_SPLITS`: held-out is test, else central, else
            train; None: all that the closing evaluation covers.
        eval_clients: Who is evaluated, written as `clients`; None: the fixed cohort, or under
            random sampling everyone in moderation.
        stop_at: End once the held-out data are classified so well: "accuracy=0.97"; None: never.
        patience: End after so many evaluations in a row without a better accuracy; None: never.
        checkpoint_every: Save after every so many rounds; None: by the clock.
        keep_checkpoints: How many of the newest are kept.
        keep_best: Keep that of the best evaluated round, too, by this, one of
            `vocabulary.MEASURES`; None: do not.
        csv: Write metrics.csv beside metrics.jsonl. Changes no result, nor do the next three.
        tensorboard: Write TensorBoard's event files.
        histograms: And in them histograms of the weights, each round.
        record_clients: Write what each client did in each round.
    """

    preset: str | None = None
    data: str = "synthetic-digits"
    data_options: Options = field(default_factory=dict)
    test_data: str | None = None
    partition: str = tables.NATURAL
    partition_options: Options = field(default_factory=dict)
    num_classes: int | None = None
    pixels: str = "source"
    clients: Clients = None
    sampling: str = "fixed"
    client_dropout: float = 0.0
    client_speeds: tuple[float, ...] | None = None
    communication_seconds: float = 0.0
    deadline: float | None = None
    over_selection: float = 0.0
    min_reports: int | None = None
    rounds: int = 10
    epochs: int = 5
    batch_size: int = 20
    shuffle_buffer: int | str = 100
    pipeline: str = "repeat-shuffle"
    max_examples: int | None = None
    model: str = "softmax-regression"
    model_options: Options = field(default_factory=dict)
    fresh_weights: bool = False
    initial_weights: str | None = None
    algorithm: str = "fedavg"
    algorithm_options: Options = field(default_factory=dict)
    client_optimizer: str | None = None
    client_lr: float | None = None
    client_options: Options = field(default_factory=dict)
    client_schedule: str | None = None
    client_schedule_options: Options = field(default_factory=dict)
    client_schedule_by: str | None = None
    client_clip_norm: float | None = None
    server_optimizer: str | None = None
    server_lr: float | None = None
    server_options: Options = field(default_factory=dict)
    server_schedule: str = tables.CONSTANT
    server_schedule_options: Options = field(default_factory=dict)
    server_ema: float | None = None
    client_weighting: str | None = None
    aggregator: str = "mean"
    aggregator_options: Options = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    eval_every: int | None = None
    eval_clients: Clients = None
    eval_split: str | None = None
    stop_at: str | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2  # the newest, and one before it should it be damaged on the disk
    keep_best: str | None = None
    csv: bool = False
    tensorboard: bool = False
    histograms: bool = False
    record_clients: bool = False

    @property
    def data_source(self) -> DataSource:
        """Which data the run is of."""
        return DataSource.of(self)


# Whose options a map holds: the field that names the thing, and the table of such things.
OPTION_OWNERS: dict[str, tuple[str, Mapping[str, Entry]]] = {
    "data_options": ("data", tables.DATASETS),
    "partition_options": ("partition", tables.PARTITIONS),
    "model_options": ("model", tables.MODELS),
    "algorithm_options": ("algorithm", tables.ALGORITHMS),
    "client_options": ("client_optimizer", tables.OPTIMIZERS),
    "client_schedule_options": ("client_schedule", tables.SCHEDULES),
    "server_options": ("server_optimizer", tables.OPTIMIZERS),
    "server_schedule_options": ("server_schedule", tables.SCHEDULES),
    "aggregator_options": ("aggregator", tables.AGGREGATORS),
}

# The fields that change no result.
WITHOUT_EFFECT = (
    *("preset", "threads", "checkpoint_every", "keep_checkpoints", "keep_best", "eval_split"),
    *("csv", "tensorboard", "histograms", "record_clients"),
)

# What an algorithm without local steps has no use for.
LOCAL_FIELDS = (
    *("client_optimizer", "client_lr", "client_options"),
    *("client_schedule", "client_schedule_options", "client_schedule_by", "client_clip_norm"),
)
# Of those that name a thing, what stands for None where there are local steps.
LOCAL_NAMES = {
    "client_optimizer": CLIENT_OPTIMIZER,
    "client_schedule": tables.CONSTANT,
    "client_schedule_by": BY_ROUND,
}


def option_name(field_name: str) -> str:
    """Returns the command-line option of a field: `client_options` is `--client-option`."""
    if field_name in OPTION_OWNERS:
        field_name = field_name.removesuffix("s")
    return "--" + field_name.replace("_", "-")


def absolute_paths(config: RunConfig, folder: str) -> RunConfig:
    """Returns the config with relative paths taken from `folder`, so that it holds anywhere."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    is_file = {
        "data": config.data not in tables.DATASETS,
        "test_data": config.test_data not in (None, *tables.DATASETS),
        "model": tables.is_model_file(config.model),
        "initial_weights": config.initial_weights is not None,
    }
    for name in (each for each, is_one in is_file.items() if is_one):
        values[name] = os.path.normpath(os.path.join(folder, values[name]))  # noqa: PTH118
    return RunConfig(**values)
