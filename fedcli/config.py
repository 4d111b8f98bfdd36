"""What a run is: every option of `fedcli train` with its default, and the checks on it.

The only owner of defaults. Imports no NumPy and touches no file, so that a wrong option is refused
before any work starts.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from fedcli import presets, registry, schedules, stopping
from fedcli.errors import ConfigError
from fedcli.options import Entry, Value, check_number, choose, did_you_mean, resolve

PIXEL_CONVENTIONS = ("ink", "background")  # what 1.0 means
PIXELS = ("source", *PIXEL_CONVENTIONS)
PIPELINES = ("repeat-shuffle", "shuffle-repeat", "per-epoch")
SAMPLINGS = ("fixed", "uniform", "tff", "with-replacement", "poisson", "cyclic", "by-size")
HOLD_OUTS = ("within", "clients", "central")  # how a test split is made of train
WEIGHTINGS = ("num-examples", "uniform")
MAX_CLASSES = 1_000_000
MAX_THREADS = 1024  # as the core has it (FED_MAX_THREADS)

Options = Mapping[str, Value]
Clients = str | tuple[str, ...] | None

# Of the tutorial.
CLIENT_OPTIMIZER = "sgd"
CLIENT_LR = 0.02
SERVER_OPTIMIZER = "sgd"
CLIENT_WEIGHTING = "num-examples"

# TOML integers are signed 64-bit; visits of one client (epochs x examples) must stay countable too.
_MAX_SEED = 2**63 - 1
_MAX_TFF_SEED = 2**32 - 1  # of NumPy's RandomState, which draws TFF's cohorts
_MAX_COUNT = 2**31 - 1
# Of virtual seconds and examples a virtual second, so that clocks stay finite and move.
_MIN_VIRTUAL, _MAX_VIRTUAL = 1e-9, 1e9
_MAX_OVER_SELECTION = 100.0
MAX_SPEEDS = 1000  # tiers of clients


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, option by option: field `batch_size` is `--batch-size`. None stands for "not set".

    Attributes:
        preset: The preset that the rest was taken from, for the record; None: none.
        data: Name of an embedded dataset, or path of a file.
        data_options: `k=v` options of an embedded dataset.
        test_data: Path of a file with the test split.
        partition: How examples are dealt to clients, and what changes them; see
            `registry.find_partition`.
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
            of `schedules.COUNTED`; None: rounds, likewise.
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
        eval_clients: Who is evaluated, written as `clients`; None: the fixed cohort, or under
            random sampling everyone in moderation.
        stop_at: End once the held-out data are classified so well: "accuracy=0.97"; None: never.
        patience: End after so many evaluations in a row without a better accuracy; None: never.
        checkpoint_every: Save after every so many rounds; None: by the clock.
        csv: Write metrics.csv beside metrics.jsonl. Changes no result, nor do the next three.
        tensorboard: Write TensorBoard's event files.
        histograms: And in them histograms of the weights, each round.
        record_clients: Write what each client did in each round.
    """

    preset: str | None = None
    data: str = "synthetic-digits"
    data_options: Options = field(default_factory=dict)
    test_data: str | None = None
    partition: str = registry.NATURAL
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
    server_schedule: str = registry.CONSTANT
    server_schedule_options: Options = field(default_factory=dict)
    server_ema: float | None = None
    client_weighting: str | None = None
    aggregator: str = "mean"
    aggregator_options: Options = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    eval_every: int | None = None
    eval_clients: Clients = None
    stop_at: str | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    csv: bool = False
    tensorboard: bool = False
    histograms: bool = False
    record_clients: bool = False


# Whose options a map holds: the field that names the thing, and the table of such things.
_OPTION_OWNERS: dict[str, tuple[str, Mapping[str, Entry]]] = {
    "data_options": ("data", registry.DATASETS),
    "partition_options": ("partition", registry.PARTITIONS),
    "model_options": ("model", registry.MODELS),
    "algorithm_options": ("algorithm", registry.ALGORITHMS),
    "client_options": ("client_optimizer", registry.OPTIMIZERS),
    "client_schedule_options": ("client_schedule", registry.SCHEDULES),
    "server_options": ("server_optimizer", registry.OPTIMIZERS),
    "server_schedule_options": ("server_schedule", registry.SCHEDULES),
    "aggregator_options": ("aggregator", registry.AGGREGATORS),
}


# The fields that say which examples there are and who holds them.
DATA_FIELDS = ("data", "data_options", "test_data", "partition", "partition_options")

# What an algorithm without local steps has no use for.
_LOCAL_FIELDS = (
    *("client_optimizer", "client_lr", "client_options"),
    *("client_schedule", "client_schedule_options", "client_schedule_by", "client_clip_norm"),
)
# Of those that name a thing, what stands for None where there are local steps.
_LOCAL_NAMES = {
    "client_optimizer": CLIENT_OPTIMIZER,
    "client_schedule": registry.CONSTANT,
    "client_schedule_by": schedules.BY_ROUND,
}
_DEFAULT_NAMES = {**_LOCAL_NAMES, "server_optimizer": SERVER_OPTIMIZER}


def option_name(field_name: str) -> str:
    """Returns the command-line option of a field: `client_options` is `--client-option`."""
    if field_name in _OPTION_OWNERS:
        field_name = field_name.removesuffix("s")
    return "--" + field_name.replace("_", "-")


def from_options(values: Mapping[str, Any]) -> RunConfig:
    """Returns the validated config of some fields; the rest take their defaults.

    Raises:
        ConfigError: See `validate`.
    """
    return validate(RunConfig(**values))


def validate(config: RunConfig) -> RunConfig:
    """Returns the config with every value checked and every `k=v` map complete.

    Raises:
        ConfigError: A value is not allowed; the line names the option and what is.
    """
    values = {
        each.name: _checked(option_name(each.name), each.name, getattr(config, each.name))
        for each in fields(config)
    }
    _resolve_algorithm(values)
    _resolve_sampling(values)
    _check_logs(values)
    _check_participation(values)
    _check_stopping(values)
    for name, (owner, table) in _OPTION_OWNERS.items():
        if values[owner] is not None:
            values[name] = _resolved(name, values[owner], table, values[name])
    for name in ("client_schedule", "server_schedule"):
        if values[name] is not None:
            _check_schedule(name, values)
    if values["fresh_weights"] and not registry.is_model_file(values["model"]):
        raise ConfigError(
            f"--fresh-weights is for models from files; {values['model']} always starts with fresh "
            "weights: leave it out"
        )
    return RunConfig(**values)


def absolute_paths(config: RunConfig, folder: str) -> RunConfig:
    """Returns the config with relative paths taken from `folder`, so that it holds anywhere."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    is_file = {
        "data": config.data not in registry.DATASETS,
        "test_data": config.test_data not in (None, *registry.DATASETS),
        "model": registry.is_model_file(config.model),
        "initial_weights": config.initial_weights is not None,
    }
    for name in (each for each, is_one in is_file.items() if is_one):
        values[name] = os.path.normpath(os.path.join(folder, values[name]))  # noqa: PTH118
    return RunConfig(**values)


def merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `base` overridden by those of `given`.

    Maps of `k=v` options are merged key by key, unless `given` names another thing than `base`:
    one optimizer's options are not another's. The weights of clients drawn by size are not those
    of others.
    """
    merged = {**base, **given}
    _drop_defaults(base, merged, given)
    samplings = {each.get("sampling", RunConfig.sampling) for each in (base, merged)}
    if len(samplings) > 1 and "by-size" in samplings and "client_weighting" not in given:
        merged.pop("client_weighting", None)  # as with algorithms: it followed from the other
    for name, (owner, _) in _OPTION_OWNERS.items():
        default = _DEFAULT_NAMES.get(owner, getattr(RunConfig, owner))
        is_same = merged.get(owner, default) == base.get(owner, default)
        if name in merged:
            merged[name] = {**(base.get(name, {}) if is_same else {}), **given.get(name, {})}
    return merged


def _drop_defaults(
    base: Mapping[str, Any], merged: dict[str, Any], given: Mapping[str, Any]
) -> None:
    """Leaves out of `merged` what the algorithm of `base` said of optimizers and its own does not.

    Config files hold resolved values, so whether a server rate was asked for is not known.
    """
    before, after = (
        registry.ALGORITHMS.get(each.get("algorithm", RunConfig.algorithm))
        for each in (base, merged)
    )
    if before is None or after is None or before is after:
        return
    dropped: tuple[str, ...] = () if after.has_local_steps else _LOCAL_FIELDS
    if before.server_lr != after.server_lr:
        dropped = (*dropped, "server_lr")
    if before.server_optimizer or after.server_optimizer:
        dropped = (*dropped, "server_optimizer", "server_options")
    if before.weightings != after.weightings:
        dropped = (*dropped, "client_weighting")
    for name in dropped:
        if name not in given:
            merged.pop(name, None)


def parse_options(texts: Iterable[str], option: str) -> dict[str, Value]:
    """Returns a map from the `k=v` texts given to `option`; what is not TOML is text.

    Raises:
        ConfigError: A text has no key or no equals sign, or a key stands twice.
    """
    parsed: dict[str, Value] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not key or not equals:
            raise ConfigError(f"{option} {text!r} is not of the form key=value")
        if key in parsed:
            raise ConfigError(f"{option} {key} is given twice; give it once")
        parsed[key] = _toml_value(value.strip())
    return parsed


def to_toml(config: RunConfig, provenance: Mapping[str, Any]) -> str:
    """Returns the text of config.toml: `[run]` repeats the run, `[provenance]` is its origin."""
    import tomli_w  # late: one millisecond that only a new run needs

    values = {each.name: getattr(config, each.name) for each in fields(config)}
    plain = {name: value for name, value in values.items() if name not in _OPTION_OWNERS}
    run: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in plain.items()
        if value is not None
    }
    run.update((name, dict(values[name])) for name in _OPTION_OWNERS if values[name])
    return tomli_w.dumps({"run": run, "provenance": dict(provenance)})


def from_toml(text: str, source: str) -> dict[str, Any]:
    """Returns the fields that a config.toml sets; `source` names it in errors.

    Raises:
        ConfigError: The text is not TOML, or holds a key or a type that no option has.
    """
    document = _parse_toml(text, source)
    run = document.get("run")
    if not isinstance(run, dict) or not document.keys() <= {"run", "provenance"}:
        have = ", ".join(document) or "nothing"
        raise ConfigError(f"{source} holds {have}; it needs one table [run] of train options")
    known = {each.name for each in fields(RunConfig)}
    for key in run:
        if key not in known:
            raise ConfigError(
                f"{source}: [run] has no key '{key}'; keys are the options of fedcli train, "
                "with underscores"
            )
    return {key: _checked(f"{source}: {key}", key, value) for key, value in run.items()}


def read_provenance(text: str, source: str) -> dict[str, Any]:
    """Returns what a config.toml says of its origin; empty if it says nothing.

    Raises:
        ConfigError: The text is not TOML.
    """
    provenance = _parse_toml(text, source).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _resolve_algorithm(values: dict[str, Any]) -> None:
    """Fills in what an algorithm says of optimizers; refuses local ones where it has no use."""
    entry = choose(registry.ALGORITHMS, values["algorithm"], option_name("algorithm"))
    _resolve_server(values, entry)
    if entry.has_local_steps:
        for name, default in _LOCAL_NAMES.items():
            values[name] = values[name] or default
        values["client_lr"] = CLIENT_LR if values["client_lr"] is None else values["client_lr"]
        return
    for name in _LOCAL_FIELDS:
        if values[name] is not None and values[name] != {}:
            raise ConfigError(
                f"{option_name(name)}: the clients of {entry.name} take no steps and have no "
                "optimizer; leave it out"
            )


def _resolve_server(values: dict[str, Any], entry: registry.AlgorithmEntry) -> None:
    """Fills in an algorithm's server optimizer; refuses another where the name says which."""
    if values["server_lr"] is None:
        values["server_lr"] = entry.server_lr
    if values["server_ema"] is not None and entry.has_own_weights:
        raise ConfigError(
            f"--server-ema with {entry.name}: that evaluates other weights than the global model's "
            "already; leave it out"
        )
    wanted = entry.server_optimizer
    if wanted is None:
        values["server_optimizer"] = values["server_optimizer"] or SERVER_OPTIMIZER
        return
    if values["server_optimizer"] not in (None, wanted):
        raise ConfigError(
            f"--server-optimizer {values['server_optimizer']}: {entry.name} is with {wanted}; "
            "leave it out, or choose --algorithm fedavg"
        )
    values["server_optimizer"] = wanted
    values["server_options"] = {**entry.server_options, **values["server_options"]}


def _check_logs(values: Mapping[str, Any]) -> None:
    if values["histograms"] and not values["tensorboard"]:
        raise ConfigError("--histograms goes into TensorBoard's files; add --tensorboard")
    algorithm = values["algorithm"]
    if values["record_clients"] and registry.ALGORITHMS[algorithm].pools_clients:
        raise ConfigError(
            f"--record-clients with --algorithm {algorithm}, which pools the clients: there is "
            "nothing to record of each; choose one of the two"
        )


def _resolve_sampling(values: dict[str, Any]) -> None:
    """Fills in the weights of clients; refuses what a way of drawing cohorts cannot take."""
    is_by_size = values["sampling"] == "by-size"
    entry = registry.ALGORITHMS[values["algorithm"]]
    if values["client_weighting"] is None:
        values["client_weighting"] = "uniform" if is_by_size else entry.weightings[0]
    registry.check_weighting(entry, values["client_weighting"], "--client-weighting")
    if is_by_size and values["client_weighting"] == "num-examples":
        raise ConfigError(
            "--client-weighting num-examples with --sampling by-size would count examples twice: "
            "large clients come more often already; choose uniform"
        )
    if values["sampling"] == "tff" and values["seed"] > _MAX_TFF_SEED:
        raise ConfigError(
            f"--seed {values['seed']} with --sampling tff: TFF's generator takes seeds from 0 to "
            f"{_MAX_TFF_SEED}"
        )


def _check_participation(values: Mapping[str, Any]) -> None:
    """Refuses what needs a virtual clock without one, and more clients where none are drawn."""
    if values["client_speeds"] is None:
        for name in ("communication_seconds", "deadline", "over_selection"):
            if values[name]:
                raise ConfigError(
                    f"{option_name(name)} {values[name]:g} needs a virtual clock; give the speeds "
                    "of clients in examples a second, for example --client-speeds 100,10"
                )
    if values["deadline"] is not None and values["deadline"] <= values["communication_seconds"]:
        raise ConfigError(
            f"--deadline {values['deadline']:g} leaves no time beside --communication-seconds "
            f"{values['communication_seconds']:g}; choose a later one"
        )
    if values["over_selection"] and values["sampling"] in ("fixed", "poisson"):
        raise ConfigError(
            f"--over-selection {values['over_selection']:g} draws more clients than are wanted; "
            f"--sampling {values['sampling']} has no such number; choose uniform"
        )


def _check_stopping(values: Mapping[str, Any]) -> None:
    """Refuses to wait for an accuracy that nobody measures."""
    for name in ("stop_at", "patience"):
        if values[name] is not None and values["eval_every"] is None:
            raise ConfigError(
                f"{option_name(name)} {values[name]} needs evaluations; give how often, for "
                "example --eval-every 1"
            )


def _resolved(
    name: str, owner: str, table: Mapping[str, Entry], given: Mapping[str, Value]
) -> dict[str, Value]:
    """One option map, complete. A data file has no entry and takes no options."""
    if name == "data_options" and owner not in table:
        if given:
            names = ", ".join(sorted(registry.EMBEDDED_DATASETS))
            raise ConfigError(
                f"--data-option {next(iter(given))} does not go with a data file; it is for {names}"
            )
        return {}
    if name == "model_options" and registry.is_model_file(owner):
        return dict(given)  # a function's own, which only it can check
    if name == "model_options" and owner not in table:
        raise ConfigError(
            f"unknown --model '{owner}'; choose one of {', '.join(sorted(table))}, or a file: "
            f"./{owner}{did_you_mean(owner, table)}"
        )
    if name == "partition_options":
        entry = registry.find_partition(owner)
    else:
        entry = choose(table, owner, option_name(_OPTION_OWNERS[name][0]))
    try:
        return resolve(entry, given)
    except ConfigError as err:
        raise ConfigError(f"{option_name(name)}: {err}") from err


def _check_schedule(name: str, values: Mapping[str, Any]) -> None:
    """Refuses a schedule that does not go with the number of rounds."""
    options_name = f"{name}_options"
    is_by_round = values.get(f"{name}_by", schedules.BY_ROUND) == schedules.BY_ROUND
    num_rounds = values["rounds"] if is_by_round else None
    try:
        schedules.build(values[name], values[options_name], num_rounds=num_rounds)
    except ConfigError as err:
        raise ConfigError(f"{option_name(options_name)}: {err}") from err


def _checked(label: str, name: str, value: Any) -> Any:
    """The value of one field in its own type; None stands only where the default is None."""
    if value is None and name in _OPTIONAL:
        return None
    return _CHECKS[name](label, value)


def _count(label: str, value: object, *, minimum: int = 1, maximum: int = _MAX_COUNT) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ConfigError(
            f"{label} {_shown(value)}: choose a whole number from {minimum} to {maximum}"
        )
    return value


def _buffer(label: str, value: object) -> int | str:
    if value == "full":
        return "full"
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        raise ConfigError(
            f"{label} {_shown(value)}: choose a whole number of examples (0 or 1: no shuffling) "
            "or full"
        )
    return value


def _choice(label: str, value: object, *, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{label} {_shown(value)}: choose one of {', '.join(choices)}")
    return str(value)


def _rate(label: str, value: object) -> float:
    return registry.check_learning_rate(value, label)


def _norm(label: str, value: object) -> float:
    return registry.check_clip_norm(value, label)


def _decay(label: str, value: object) -> float:
    return registry.check_ema_decay(value, label)


def _number(label: str, value: object, *, minimum: float = 0.0, maximum: float) -> float:
    return check_number(label, value, minimum, maximum)


def _speeds(label: str, value: object) -> tuple[float, ...]:
    """Numbers with commas as on the command line; in a file also a number or a list of them."""
    if isinstance(value, str):
        value = [_toml_value(each.strip()) for each in value.split(",")]
    given = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(given) <= MAX_SPEEDS:
        raise ConfigError(f"{label}: {len(given)} tiers; choose 1 to {MAX_SPEEDS}")
    return tuple(check_number(label, each, _MIN_VIRTUAL, _MAX_VIRTUAL) for each in given)


def _text(label: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{label} {_shown(value)}: give a name or a path")
    if not value.isprintable():  # a name that a terminal, TOML or UTF-8 cannot hold
        raise ConfigError(f"{label} {_shown(value)} holds characters that cannot be printed")
    return value


def _flag(label: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {_shown(value)}: choose true or false")
    return value


def _clients(label: str, value: object) -> str | tuple[str, ...]:
    """Text as on the command line; in a file also a bare number or share, or a list of ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, float) and 0.0 < value < 1.0:
        value = str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{label} {_shown(value)}: give all, a number, id,id,... or @file")
    return value


def _switch(label: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {_shown(value)}: choose true or false")
    return value


def _preset(label: str, value: object) -> str:
    return choose(presets.PRESETS, str(value), label.partition(" ")[0]).name


def _map(label: str, value: object) -> dict[str, Value]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {_shown(value)}: give a table of options")
    return dict(value)


def _shown(value: object) -> str:
    """`value` on one short line."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml() -> Any:
    """The TOML reader: of the standard library from Python 3.11. Imported late: it takes 12 ms."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    toml = _toml()
    try:
        document: dict[str, Any] = toml.loads(text)
    except (toml.TOMLDecodeError, RecursionError) as err:
        raise ConfigError(f"{source} is not TOML: {str(err) or 'nested too deeply'}") from err
    return document


def _toml_value(text: str) -> Value:
    """One value as TOML reads it; text that is no TOML boolean, number, string or list, as it is.

    Raises nothing: `style=reddi` is text. Python's True and False are taken, too.
    """
    if text in ("True", "False"):
        return text == "True"
    toml = _toml()
    try:
        document = toml.loads(f"value = {text}")
    except (toml.TOMLDecodeError, RecursionError):
        return text
    value = document["value"]
    if len(document) == 1 and isinstance(value, bool | int | float | str | list):
        return value
    return text


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "preset": _preset,
    "data": _text,
    "test_data": _text,
    "partition": _text,
    "num_classes": partial(_count, maximum=MAX_CLASSES),
    "pixels": partial(_choice, choices=PIXELS),
    "clients": _clients,
    "sampling": partial(_choice, choices=SAMPLINGS),
    "client_dropout": partial(_number, maximum=1.0),
    "client_speeds": _speeds,
    "communication_seconds": partial(_number, maximum=_MAX_VIRTUAL),
    "deadline": partial(_number, minimum=_MIN_VIRTUAL, maximum=_MAX_VIRTUAL),
    "over_selection": partial(_number, maximum=_MAX_OVER_SELECTION),
    "min_reports": _count,
    "rounds": _count,
    "epochs": _count,
    "batch_size": _count,
    "shuffle_buffer": _buffer,
    "pipeline": partial(_choice, choices=PIPELINES),
    "max_examples": _count,
    "model": _text,
    "fresh_weights": _flag,
    "initial_weights": _text,
    "algorithm": _text,
    "client_optimizer": _text,
    "client_lr": _rate,
    "client_schedule": _text,
    "client_schedule_by": partial(_choice, choices=schedules.COUNTED),
    "client_clip_norm": _norm,
    "server_optimizer": _text,
    "server_lr": _rate,
    "server_schedule": _text,
    "server_ema": _decay,
    "client_weighting": partial(_choice, choices=WEIGHTINGS),
    "aggregator": _text,
    "seed": partial(_count, minimum=0, maximum=_MAX_SEED),
    "threads": partial(_count, maximum=MAX_THREADS),
    "eval_every": _count,
    "eval_clients": _clients,
    "stop_at": stopping.parse_target,
    "patience": _count,
    "checkpoint_every": _count,
    **dict.fromkeys(("csv", "tensorboard", "histograms", "record_clients"), _switch),
    **dict.fromkeys(_OPTION_OWNERS, _map),
}
_OPTIONAL = frozenset(each.name for each in fields(RunConfig) if each.default is None)
