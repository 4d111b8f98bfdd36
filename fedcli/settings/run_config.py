"""The options of `fedcli train`, each declared once.

A new option needs a field here and the code that uses it. `declaration.option` explains the parts
of a declaration. A rule that concerns several options is in `rules`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from os import PathLike
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, refuse_unknown, worded
from fedcli.settings import tables
from fedcli.settings.data_source import IN_MEMORY, DataSource
from fedcli.settings.declaration import (
    EDIT,
    EXAMPLES,
    GIVE,
    GLOBAL_MODEL,
    KEEP,
    LOCAL_STEPS,
    NOTHING,
    Needs,
    RunOption,
    declared_option,
    option,
    option_name,
    options_of,
)
from fedcli.settings.options import Value, choose, is_code
from fedcli.settings.sections import ALGORITHM, ATTACK, COHORT, DATA, EVALUATION, LOCAL, MODEL, RUN
from fedcli.settings.values import (
    CLASS_WEIGHTS,
    CLIP_NORM,
    COUNT,
    EMA_DECAY,
    LEARNING_RATE,
    MAX_SEED,
    MAX_VIRTUAL,
    METRIC_NAMES,
    MIN_VIRTUAL,
    NORMALIZATION,
    PATH,
    PRESET,
    SELECTION_METRIC,
    SHUFFLE_BUFFER,
    SPEEDS,
    SWITCH,
    TARGET,
    check_selection_metrics,
    client_selection,
    name_in,
    name_or_code,
    name_or_path,
    number,
    one_of,
    switch_of,
    whole,
)
from fedcli.settings.vocabulary import (
    ACCURACY,
    BATCH_NORMS,
    BY_ROUND,
    CONSTANT,
    COUNTED,
    EVAL_SPLITS,
    MAX_CLASSES,
    MAX_SMOOTHING,
    MAX_THREADS,
    MAX_VALIDATION,
    MIN_VALIDATION,
    PIPELINES,
    PIXELS,
    WEIGHTINGS,
)

Options = Mapping[str, Value]
Clients = str | tuple[str, ...] | None

_CLOCK = Needs(
    "client_speeds",
    "needs a virtual clock; give the speeds of clients in examples a second, for example "
    "--client-speeds 100,10",
)
_EVALUATIONS = Needs("eval_every", "needs evaluations; give how often, for example --eval-every 1")
_ATTACK = Needs(
    "attack", "chooses the attackers; give their attack as well, for example --attack alie"
)
_PATIENCE = Needs("patience", "is for --patience; give that as well, for example --patience 5")
_EVENT_FILES = Needs(
    "tensorboard", "is written into TensorBoard's files; give --tensorboard as well"
)


def _is_data_file(text: str) -> bool:
    return text not in tables.DATASETS and not text.startswith(IN_MEMORY)


def _is_model_file(text: str) -> bool:
    return tables.is_model_file(text) and not text.startswith(IN_MEMORY)


def _is_partition_file(text: str) -> bool:
    return tables.split_code_of_scheme(text)[0] is not None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of one run: field `batch_size` is `--batch-size`. None means "not set".

    The defaults are those of TFF's image classification tutorial. Each value is checked when the
    object is made. Rules between options are checked when the run begins.
    """

    preset: str | None = option(
        None,
        PRESET,
        help="Settings of a published experiment. Options given beside it override them. fedcli "
        "info lists the presets.",
        section=DATA,
        changes=NOTHING,
    )
    data: str = option(
        str(DataSource.data),
        name_or_path(lambda: tables.DATASETS, _is_data_file),
        help="A named dataset, or a TFF HDF5 file or fedcli store.",
        section=DATA,
        changes=EXAMPLES,
        on_resume=EDIT,
    )
    data_options: Options = options_of(
        "data",
        help="Option of a named dataset, such as clients=1000.",
        section=DATA,
        changes=EXAMPLES,
    )
    test_data: str | None = option(
        None,
        name_or_path(lambda: tables.DATASETS, _is_data_file),
        help="File or named dataset with the test split. It replaces the test split of --data.",
        section=DATA,
        changes=EXAMPLES,
        on_resume=EDIT,
    )
    partition: str = option(
        DataSource.partition,
        name_or_code(lambda: tables.PARTITIONS, _is_partition_file, "NAME[+NAME]|FILE.py[:NAME]"),
        help="Divide the examples among clients anew (iid, shards, dirichlet-class, ...), change "
        "them (label-noise, ...), or both, joined by +. fedcli info lists the schemes. Or a "
        "function of your own in a Python file.",
        section=DATA,
        changes=EXAMPLES,
    )
    partition_options: Options = options_of(
        "partition",
        help="Option of the partition, such as clients=50, alpha=0.1 or seed=1.",
        section=DATA,
        changes=EXAMPLES,
    )
    validation: float | None = option(
        None,
        number(MIN_VALIDATION, MAX_VALIDATION, "SHARE"),
        help="Hold out this share of each client's train examples, after a partition, as the split "
        "validation. Default: the split validation of the data, if they have one.",
        section=DATA,
        changes=EXAMPLES,
    )
    num_classes: int | None = option(
        None,
        whole(maximum=MAX_CLASSES),
        help="Number of classes. Default: as stated in the data; 10 for a TFF file.",
        section=DATA,
    )
    pixels: str = option(
        DataSource.pixels,
        one_of(PIXELS),
        help="Meaning of the pixel value 1.0 in the model's input: as in the source, ink, or "
        "background.",
        section=DATA,
    )
    clients: Clients = option(
        None,
        client_selection("all|N|ID,ID|@FILE|SHARE"),
        help="The cohort: all clients, the first N in sorted order, or the listed ones. If cohorts "
        "are drawn: how many clients, as N or as a share of all, such as 0.1.",
        section=DATA,
        usual=10,
    )
    sampling: str = option(
        "fixed",
        name_or_code(lambda: tables.SAMPLERS),
        help="How the cohort is chosen. fixed: the same clients in every round. The others draw N "
        "clients for each round. uniform: without replacement. tff: as TFF draws with this seed. "
        "with-replacement: a client may be drawn twice. poisson: each client with probability N "
        "/ all, so that the number varies. cyclic: all clients in turn, in a new order in each "
        "pass. "
        "by-size: with replacement, in proportion to the number of examples. Or a class of your "
        "own in a Python file.",
        section=COHORT,
    )
    sampling_options: Options = options_of(
        "sampling", help="Option of a sampler of your own.", section=COHORT
    )
    client_dropout: float = option(
        0.0,
        number(0.0, 1.0, "P"),
        help="Probability that a sampled client fails to report in a round (unrelated to dropout "
        "layers).",
        section=COHORT,
    )
    client_speeds: tuple[float, ...] | None = option(
        None,
        SPEEDS,
        help="Speeds of clients in examples per virtual second, one for each tier. A client is in "
        "one tier for the whole run; all tiers are equally likely. Adds a virtual clock to "
        "metrics.jsonl. Default: no clock.",
        section=COHORT,
    )
    communication_seconds: float = option(
        0.0,
        number(0.0, MAX_VIRTUAL, "S"),
        help="Virtual seconds that a client spends on communication in a round.",
        section=COHORT,
        needs=_CLOCK,
    )
    deadline: float | None = option(
        None,
        number(MIN_VIRTUAL, MAX_VIRTUAL, "S"),
        help="Virtual seconds of a round after which reports are too late. Default: the server "
        "waits for all.",
        section=COHORT,
        needs=_CLOCK,
    )
    over_selection: float = option(
        0.0,
        number(0.0, 100.0, "SHARE"),
        help="Clients drawn in addition to N, as a share of N, such as 0.3. The server "
        "takes the first N reports by the virtual clock.",
        section=COHORT,
        needs=_CLOCK,
    )
    min_reports: int | None = option(
        None,
        COUNT,
        help="Skip a round with fewer than N reports: the model stays as it is. Default: any "
        "number is enough.",
        section=COHORT,
    )
    rounds: int = option(
        10, COUNT, help="Rounds of training in total.", section=COHORT, on_resume=GIVE
    )
    epochs: int = option(5, COUNT, help="Local epochs per round.", section=LOCAL)
    batch_size: int = option(20, COUNT, help="Examples per local step.", section=LOCAL)
    shuffle_buffer: int | str = option(
        100,
        SHUFFLE_BUFFER,
        help="Examples in the shuffle buffer. 0 or 1: no shuffling; full: all of the client.",
        section=LOCAL,
    )
    pipeline: str = option(
        "repeat-shuffle",
        one_of(PIPELINES),
        help="Order of repeating and shuffling. With per-epoch, batches do not cross epochs.",
        section=LOCAL,
    )
    max_examples: int | None = option(
        None,
        COUNT,
        help="Maximum number of examples that a client processes in a round, all epochs together. "
        "Default: no limit.",
        section=LOCAL,
    )
    class_weights: str | None = option(
        None,
        CLASS_WEIGHTS,
        help="Weight of each class in the training loss. balanced: rare classes of the training "
        "split weigh more. A JSON or CSV file gives the weights by class. Default: the same "
        "for all.",
        section=LOCAL,
        on_resume=EDIT,
    )
    label_smoothing: float = option(
        0.0,
        number(0.0, MAX_SMOOTHING),
        help="Share of each label's weight that is divided equally among all classes in the "
        "training loss.",
        section=LOCAL,
    )
    model: str = option(
        "softmax-regression",
        name_or_path(
            lambda: tables.MODELS, _is_model_file, "NAME|FILE[:FUNCTION]", takes_code=True
        ),
        help="Model to train: a name (see fedcli info), a Keras file, or a function in a Python "
        "file.",
        section=MODEL,
    )
    model_options: Options = options_of("model", help="Option of the model.", section=MODEL)
    augment: str | None = option(
        None,
        name_in(lambda: tables.AUGMENTATIONS, "NAME[+NAME]"),
        help="Change training images at random, differently at each use: crop, flip, shift, "
        "rotation, cutout, color-jitter, mixup, or several joined by +, in the order in which they "
        "act.",
        section=MODEL,
    )
    augment_options: Options = options_of(
        "augment", help="Option of the augmentation, such as padding=4.", section=MODEL
    )
    normalize: str | None = option(
        None,
        NORMALIZATION,
        help="Subtract each channel's mean and divide by its standard deviation. train: computed "
        "from the train split; published: as published for the dataset; image: computed from each "
        "image; or given numbers. The model stores them.",
        section=MODEL,
    )
    batch_norm: str = option(
        BATCH_NORMS[0],
        one_of(BATCH_NORMS),
        help="How the moving statistics of batch normalization change. average: the server "
        "averages the clients' statistics. local-statistics: each client keeps its own (SiloBN). "
        "local-layers: it keeps its own gamma and beta, too (FedBN). frozen: they do not change, "
        "and training normalizes by them, too.",
        section=MODEL,
    )
    fresh_weights: bool = option(
        False,
        SWITCH,
        help="Draw initial weights, even if the model's file has some.",
        section=MODEL,
    )
    initial_weights: str | None = option(
        None,
        PATH,
        help="File of initial weights (.npz, .weights.h5, .keras, .h5). Default: the model's own.",
        section=MODEL,
        on_resume=EDIT,
    )
    algorithm: str = option(
        "fedavg",
        name_or_code(lambda: tables.ALGORITHMS),
        help="Federated algorithm: how clients train, and how the server uses their updates; or a "
        "class of your own in a Python file.",
        section=ALGORITHM,
    )
    algorithm_options: Options = options_of(
        "algorithm", help="Option of the algorithm.", section=ALGORITHM
    )
    client_optimizer: str | None = option(
        None,
        name_in(lambda: tables.OPTIMIZERS),
        help="Optimizer of the local steps; fedsgd has none.",
        section=ALGORITHM,
        usual="sgd",
        acts_on=LOCAL_STEPS,
    )
    client_lr: float | None = option(
        None,
        LEARNING_RATE,
        help="Learning rate of the client optimizer.",
        section=ALGORITHM,
        usual=0.02,
        acts_on=LOCAL_STEPS,
    )
    client_options: Options = options_of(
        "client_optimizer",
        help="Another option of the client optimizer, such as momentum=0.9.",
        section=ALGORITHM,
        acts_on=LOCAL_STEPS,
    )
    client_schedule: str | None = option(
        None,
        name_in(lambda: tables.SCHEDULES),
        help="How the client learning rate changes from round to round.",
        section=ALGORITHM,
        usual=CONSTANT,
        acts_on=LOCAL_STEPS,
    )
    client_schedule_options: Options = options_of(
        "client_schedule",
        help="Option of the client schedule, such as warmup_rounds=10.",
        section=ALGORITHM,
        acts_on=LOCAL_STEPS,
    )
    client_schedule_by: str | None = option(
        None,
        one_of(COUNTED),
        help="What the client schedule counts: rounds, or a client's local steps, from 0 in each "
        "round.",
        section=ALGORITHM,
        usual=BY_ROUND,
        acts_on=LOCAL_STEPS,
    )
    client_clip_norm: float | None = option(
        None,
        CLIP_NORM,
        help="Scale longer gradients of local steps down to this L2 norm, before a proximal term "
        "is added. Default: no clipping.",
        section=ALGORITHM,
        acts_on=LOCAL_STEPS,
    )
    client_weight_decay: float | None = option(
        None,
        number(0.0, 1.0),
        help="Add this factor times the parameters to the gradient of each local step, after it is "
        "clipped: an L2 penalty. Default: none. adamw has a decay of its own.",
        section=ALGORITHM,
        acts_on=LOCAL_STEPS,
    )
    server_optimizer: str | None = option(
        None,
        name_or_code(lambda: tables.OPTIMIZERS),
        help="Optimizer that applies the mean of the clients' model deltas; fedavgm, fedadagrad, "
        "fedadam and fedyogi have their own. Or a class of your own in a Python file.",
        section=ALGORITHM,
        usual="sgd",
    )
    server_lr: float | None = option(
        None,
        LEARNING_RATE,
        help="Learning rate of the server optimizer. Default: that of the algorithm, usually 1.0; "
        "see fedcli info NAME.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    server_options: Options = options_of(
        "server_optimizer",
        help="Another option of the server optimizer, such as momentum=0.9.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    server_schedule: str = option(
        CONSTANT,
        name_in(lambda: tables.SCHEDULES),
        help="How the server learning rate changes from round to round.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    server_schedule_options: Options = options_of(
        "server_schedule", help="Option of the server schedule.", section=ALGORITHM
    )
    server_ema: float | None = option(
        None,
        EMA_DECAY,
        help="Evaluate and export a running mean of the global weights. Each round keeps the "
        "share DECAY of the mean, and a smaller share in the first rounds. Default: the weights of "
        "the last round.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    client_weighting: str | None = option(
        None,
        one_of(WEIGHTINGS),
        help="Weight of a client in the mean: the number of examples that it processes in the "
        "round, or the same for all. scaffold, feddyn, --dp and --sampling by-size need uniform.",
        section=ALGORITHM,
        usual="num-examples",
    )
    aggregator: str = option(
        "mean",
        name_or_code(lambda: tables.AGGREGATORS),
        help="How the server averages the model deltas; or a class of your own in a Python file.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    aggregator_options: Options = options_of(
        "aggregator", help="Option of the aggregator.", section=ALGORITHM
    )
    pre_aggregator: str | None = option(
        None,
        name_in(lambda: tables.PRE_AGGREGATORS),
        help="Change the model deltas before they are averaged. bucketing: average small groups; "
        "nnm: average nearest neighbours; arc: clip the largest. Default: no change.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    pre_aggregator_options: Options = options_of(
        "pre_aggregator", help="Option of the pre-aggregator.", section=ALGORITHM
    )
    attack: str | None = option(
        None,
        name_in(lambda: tables.ATTACKS),
        help="What the attackers do: send updates that they have not trained (sign-flip, alie, "
        "min-max, ...), or train on poisoned examples (label-flip, backdoor, ...). fedcli info "
        "attacks lists them.",
        section=ATTACK,
        acts_on=GLOBAL_MODEL,
    )
    attackers: Clients = option(
        None,
        client_selection("N|SHARE|ID,ID|@FILE"),
        help="Which clients attack: N, or a share (such as 0.1) of the clients that may take part, "
        "drawn once from these; or the listed clients. 0: none.",
        section=ATTACK,
        usual="0.1",
        needs=_ATTACK,
    )
    attack_options: Options = options_of(
        "attack", help="Option of the attack, such as start=10.", section=ATTACK
    )
    compress: str | None = option(
        None,
        name_in(lambda: tables.COMPRESSORS),
        help="Encode the clients' model deltas in fewer bytes, count the bytes, and aggregate the "
        "decoded deltas. fedcli info compressors lists the methods. Default: 4 bytes per "
        "parameter.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    compress_options: Options = options_of(
        "compress",
        help="Option of the compression, such as bits=4 or fraction=0.05.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    secure_sum: bool = option(
        False,
        switch_of(lambda: tables.SECURE_SUMS),
        help="Give the server only the sum of the updates, quantised and masked as in a secure "
        "aggregation. This is simulated: no cryptography takes place.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    secure_sum_options: Options = options_of(
        "secure_sum",
        help="Option of --secure-sum, such as bits=16, bound=0.5 or threshold=0.7.",
        section=ALGORITHM,
    )
    dp: str | None = option(
        None,
        name_in(lambda: tables.PRIVACY),
        help="Differential privacy of clients, simulated: the server clips each update, adds noise "
        "to the sum, and prints the epsilon that is spent. gaussian, gaussian-adaptive or tree.",
        section=ALGORITHM,
        acts_on=GLOBAL_MODEL,
    )
    dp_options: Options = options_of(
        "dp",
        help="Option of --dp, such as noise_multiplier=1, target_epsilon=8, clip=0.5 or "
        "delta=1e-3.",
        section=ALGORITHM,
    )
    seed: int = option(
        0,
        whole(0, MAX_SEED),
        help="Seed of initial weights, shuffling and sampling. It never changes the data.",
        section=RUN,
    )
    threads: int | None = option(
        None,
        whole(maximum=MAX_THREADS),
        help="Number of threads; it changes no result. Default: as many as the machine has.",
        section=RUN,
        changes=NOTHING,
        on_resume=GIVE,
    )
    engine: str | None = option(
        None,
        name_in(lambda: tables.ENGINES),
        help="Where clients are computed; it changes no result.",
        section=RUN,
        usual="threads",
        changes=NOTHING,
        on_resume=GIVE,
    )
    engine_options: Options = options_of(
        "engine",
        help="Option of the engine, such as address=auto.",
        section=RUN,
        changes=NOTHING,
        on_resume=GIVE,
    )
    eval_every: int | None = option(
        None,
        COUNT,
        help="Evaluate before round 1 and after every N rounds. Default: only at the end.",
        section=EVALUATION,
        on_resume=EDIT,
    )
    eval_clients: Clients = option(
        None,
        client_selection(),
        help="Clients to evaluate. Default: the fixed cohort; if cohorts are drawn, all clients, "
        "or a sample of a large population.",
        section=EVALUATION,
        on_resume=EDIT,
    )
    eval_split: str | None = option(
        None,
        one_of(EVAL_SPLITS),
        help="Split that --eval-every evaluates. held-out: test, else central, else validation, "
        "else train. At the end of the run all splits are evaluated. without-train: all splits "
        "except train, also at the end; it does not need --eval-every. Default: all splits each "
        "time.",
        section=EVALUATION,
        changes=NOTHING,
    )
    metrics: tuple[str, ...] | None = option(
        None,
        METRIC_NAMES,
        help="Further metrics of evaluations: macro_f1, auc, ece, ... (see fedcli info), or a "
        "class of your own in a Python file. They take a second pass over the examples. Default: "
        "only loss and accuracy.",
        section=EVALUATION,
        changes=NOTHING,
    )
    metric_options: Options = options_of(
        "metrics",
        help="Option of a metric of your own. Each such metric that has an option of this name "
        "receives it.",
        section=EVALUATION,
        changes=NOTHING,
    )
    stop_at: str | None = option(
        None,
        TARGET,
        help="Stop once the accuracy, or another metric, on validation data (else test, else "
        "central, else train) reaches X, and report how many rounds it took. Default: never.",
        section=EVALUATION,
        on_resume=EDIT,
        needs=_EVALUATIONS,
    )
    patience: int | None = option(
        None,
        COUNT,
        help="Stop after N evaluations in a row without a better accuracy. Default: never.",
        section=EVALUATION,
        on_resume=EDIT,
        needs=_EVALUATIONS,
    )
    monitor: str | None = option(
        None,
        SELECTION_METRIC,
        help="Metric that --patience watches in place of accuracy: loss, macro_f1, auc, ...",
        section=EVALUATION,
        usual=ACCURACY,
        on_resume=EDIT,
        needs=_PATIENCE,
    )
    checkpoint_every: int | None = option(
        None,
        COUNT,
        help="Save a checkpoint after every N rounds. Default: when 30 s have passed since the "
        "last one.",
        section=RUN,
        changes=NOTHING,
    )
    keep_checkpoints: int = option(
        2,  # the newest, and the one before it in case the newest is damaged on the disk
        COUNT,
        help="Keep the newest N checkpoints.",
        section=RUN,
        changes=NOTHING,
    )
    keep_best: str | None = option(
        None,
        SELECTION_METRIC,
        help="Also keep the checkpoint of the best evaluated round, by its loss, accuracy or "
        "another metric on validation data (else test, else central, else train). eval and export "
        "use it with --best.",
        section=RUN,
        changes=NOTHING,
        needs=_EVALUATIONS,
    )
    csv: bool = option(
        False,
        SWITCH,
        help="Write metrics.csv beside metrics.jsonl.",
        section=RUN,
        changes=NOTHING,
    )
    tensorboard: bool = option(
        False, SWITCH, help="Write event files for TensorBoard.", section=RUN, changes=NOTHING
    )
    histograms: bool = option(
        False,
        SWITCH,
        help="Write a histogram of the weights to the event files in each round.",
        section=RUN,
        changes=NOTHING,
        acts_on=GLOBAL_MODEL,
        needs=_EVENT_FILES,
    )
    record_clients: bool = option(
        False,
        SWITCH,
        help="Record what each client did in each round, in clients.h5. fedcli report "
        "--clients-csv makes CSV of it.",
        section=RUN,
        changes=NOTHING,
    )

    def __new__(cls, *values: Any, **options: Any) -> RunConfig:
        """Refuses unknown options; the message suggests similar names."""
        refuse_unknown("RunConfig", options, OPTIONS, "option")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Checks each value, but not rules between options."""
        for name, declared in OPTIONS.items():
            value = getattr(self, name)
            if name in ("data", "model") and not isinstance(value, str | PathLike):
                raise ConfigError(
                    f"{name} is of type {type(value).__name__}; a RunConfig takes a name or a "
                    f"path, and fedcli.train(config, out, {name}=...) takes objects"
                )
            try:
                checked = declared.checked(option_name(name), value)
                _check_name(name, declared, checked)
            except ConfigError as err:
                raise ConfigError(worded(str(err))) from err
            if checked is not value:
                object.__setattr__(self, name, checked)
        try:
            check_selection_metrics(vars(self))
        except ConfigError as err:
            raise ConfigError(worded(str(err))) from err

    def _given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != OPTIONS[name].default}

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._given().items())
        return f"RunConfig({arguments})"

    def _repr_html_(self) -> str:
        """Returns the options that are not at their defaults as a table."""
        from fedcli.settings import notebooks  # lazy: notebooks alone need it

        note = "All other options are at their defaults."
        return notebooks.table("RunConfig", ("option", "value"), self._given().items(), note)

    @classmethod
    def unchecked(cls, values: Mapping[str, Any]) -> RunConfig:
        """Returns a config of unchecked fields; the other fields take their defaults."""
        config = object.__new__(cls)
        for each in fields(cls):
            default = each.default if each.default is not MISSING else {}
            object.__setattr__(config, each.name, values.get(each.name, default))
        return config

    def computed_by_threads(self, num_threads: int | None) -> RunConfig:
        """Returns the config with which this machine repeats a run, with the same results.

        The clients of the run itself may have been computed on a cluster, which may no longer
        exist.

        Args:
            num_threads: Number of threads; None for as many as the machine has.
        """
        return replace(self, threads=num_threads, engine=None, engine_options={})

    @property
    def data_source(self) -> DataSource:
        """The fields that name the data."""
        return DataSource.of(self)


def _check_name(field: str, declared: RunOption, value: Any) -> None:
    """Refuses an unknown name. Files are not opened.

    The kind of a list checks its names; `check_selection_metrics` checks metrics that rank rounds.
    """
    kind = declared.kind
    if kind.names is None or not isinstance(value, str) or (kind.is_path and kind.is_path(value)):
        return
    if value.startswith(IN_MEMORY) or kind is SELECTION_METRIC:
        return
    if field == "partition":
        tables.find_partition(value)
    elif field == "augment":
        tables.find_augmentation(value)
    elif field != "model" or not tables.is_model_file(value):
        choose(kind.names(), value, option_name(field))


# The declaration of each field, in the order of the fields.
OPTIONS: dict[str, RunOption] = {each.name: declared_option(each) for each in fields(RunConfig)}

RunConfig.__doc__ = "\n".join(
    [
        f"{RunConfig.__doc__}\n    Attributes:",
        *(f"        {name}: {declared.help_with_default}" for name, declared in OPTIONS.items()),
    ]
)

# For each field of `k=v` options, the field that names the part to which they belong.
OPTION_OWNERS = {name: declared.owner for name, declared in OPTIONS.items() if declared.owner}


def _declared(**values: str) -> tuple[str, ...]:
    """The fields whose declarations have these values."""
    return tuple(
        name
        for name, declared in OPTIONS.items()
        if all(getattr(declared, key) == value for key, value in values.items())
    )


# The fields that determine the examples and their owners.
DATA_FIELDS = _declared(changes=EXAMPLES)
# The fields that say how data are read, in every command that reads data.
READING_FIELDS = tuple(name for name in _declared(section=DATA) if name != "preset")
# The fields that change no result.
WITHOUT_EFFECT = _declared(changes=NOTHING)
# The fields that a resumed run keeps, and those that may be given beside --resume.
KEPT_FIELDS = _declared(on_resume=KEEP)
RESUME_FIELDS = _declared(on_resume=GIVE)
# The fields that an algorithm without local steps refuses, and those that an algorithm without a
# global model refuses.
LOCAL_FIELDS = _declared(acts_on=LOCAL_STEPS)
GLOBAL_FIELDS = _declared(acts_on=GLOBAL_MODEL)
# The fields that may name a user's code.
CODE_FIELDS = tuple(name for name, declared in OPTIONS.items() if declared.kind.takes_code)


def may_have_code(config: RunConfig) -> bool:
    """Tells whether a config may name a user's code; `own.permission` says for certain."""
    return any(".py" in str(getattr(config, name) or "") for name in CODE_FIELDS)


def absolute_paths(config: RunConfig, folder: str) -> RunConfig:
    """Returns the config with absolute paths; relative ones are relative to `folder`."""
    values = {name: getattr(config, name) for name in OPTIONS}
    for name, declared in OPTIONS.items():
        is_path = declared.kind.is_path
        if is_path is not None and values[name] is not None and is_path(values[name]):
            values[name] = os.path.normpath(os.path.join(folder, values[name]))  # noqa: PTH118
    other = config.attack_options.get("data")  # the other dataset of the attack edge-case
    if isinstance(other, str) and other and _is_data_file(other):
        path = os.path.normpath(os.path.join(folder, other))  # noqa: PTH118
        values["attack_options"] = {**config.attack_options, "data": path}
    if config.metrics is not None:
        values["metrics"] = tuple(
            os.path.normpath(os.path.join(folder, each)) if is_code(each) else each  # noqa: PTH118
            for each in config.metrics
        )
    return RunConfig.unchecked(values)
