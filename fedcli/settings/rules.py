"""Rules between options. A valid config has all values checked and all option maps complete.

If an option needs another one, or needs a part that an algorithm may lack, its declaration says so.
The other rules are functions here, in `privacy_rules` and in `secure_sum_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.settings import tables
from fedcli.settings.declaration import option_name
from fedcli.settings.options import Entry, Value, choose, did_you_mean, is_code, resolve
from fedcli.settings.run_config import (
    GLOBAL_FIELDS,
    LOCAL_FIELDS,
    OPTION_OWNERS,
    OPTIONS,
    RunConfig,
)
from fedcli.settings.values import check_selection_metrics, in_order, split_target
from fedcli.settings.vocabulary import BY_ROUND, WITHOUT_TRAIN

_MAX_TFF_SEED = 2**32 - 1  # the largest of NumPy's RandomState, with which TFF draws cohorts


def from_options(values: Mapping[str, Any]) -> RunConfig:
    """Returns the valid config with these fields; the other fields take their defaults.

    Raises:
        ConfigError: See `validate`.
    """
    return validate(RunConfig.unchecked(values))


def validate(config: RunConfig) -> RunConfig:
    """Returns the config with all values checked and all `k=v` maps complete.

    Raises:
        ConfigError: A value is not allowed. The message names the option and the allowed values.
        PartError: A part in an installed package cannot be imported.
    """
    values = {
        name: declared.checked(option_name(name), getattr(config, name))
        for name, declared in OPTIONS.items()
    }
    _resolve_algorithm(values)
    _resolve_privacy(values)
    _resolve_sampling(values)
    _check_needs(values)
    _check_eval_split(values)
    _check_augmentation(values)
    _check_pre_aggregator(values)
    _resolve_attack(values)
    _check_records(values)
    _check_participation(values)
    _check_compression(values)
    _resolve_metrics(values)
    _check_secure_sum(values)
    _check_engine(values)
    for name, owner in OPTION_OWNERS.items():
        if values[owner] not in (None, False) and name != "metric_options":
            values[name] = _resolved(name, values[owner], values[name])
    for name in ("client_schedule", "server_schedule"):
        if values[name] is not None:
            _check_schedule(name, values)
    if values["fresh_weights"] and not tables.is_model_file(values["model"]):
        raise ConfigError(
            f"--fresh-weights is for models from files; {values['model']} always starts with fresh "
            "weights, so leave it out"
        )
    return RunConfig(**values)


def _check_engine(values: Mapping[str, Any]) -> None:
    if values["engine_options"] and values["engine"] is None:
        raise ConfigError(
            f"--engine-option {next(iter(values['engine_options']))} needs an engine; give "
            "--engine ray, too"
        )


def _resolve_algorithm(values: dict[str, Any]) -> None:
    """Sets an algorithm's optimizer defaults; refuses options of local steps if it has none."""
    entry = choose(tables.ALGORITHMS, values["algorithm"], option_name("algorithm"))
    if entry.has_own_models:
        _check_nothing_shared(values, entry)
    _resolve_server(values, entry)
    if entry.has_local_steps:
        for name in LOCAL_FIELDS:
            values[name] = OPTIONS[name].usual if values[name] is None else values[name]
        return
    for name in LOCAL_FIELDS:
        if values[name] is not None and values[name] != {}:
            raise ConfigError(
                f"{option_name(name)}: the clients of {entry.name} take no steps and have no "
                "optimizer; leave it out"
            )


def _check_nothing_shared(values: Mapping[str, Any], entry: tables.AlgorithmEntry) -> None:
    """Refuses options that act on the global model for an algorithm that has none."""
    without_effect: dict[str, tuple[Any, ...]] = {
        name: (OPTIONS[name].default,) for name in GLOBAL_FIELDS
    }
    without_effect["server_lr"] += (entry.server_lr,)
    for name, harmless in without_effect.items():
        value = values[name]
        if value in harmless or (isinstance(value, Mapping) and not any(value.values())):
            continue
        raise ConfigError(
            f"{option_name(name)}: the clients of {entry.name} share nothing, and there is no "
            "global model that changes; leave it out"
        )


def _resolve_server(values: dict[str, Any], entry: tables.AlgorithmEntry) -> None:
    """Sets the server optimizer of an algorithm that prescribes one; refuses another."""
    if values["server_lr"] is None:
        values["server_lr"] = entry.server_lr
    if values["server_ema"] is not None and entry.has_own_weights:
        raise ConfigError(
            f"--server-ema with {entry.name}, which already evaluates weights other than the "
            "global model's; leave it out"
        )
    prescribed = entry.server_optimizer
    if prescribed is None:
        values["server_optimizer"] = values["server_optimizer"] or OPTIONS["server_optimizer"].usual
        return
    if values["server_optimizer"] not in (None, prescribed):
        raise ConfigError(
            f"--server-optimizer {values['server_optimizer']}: {entry.name} uses {prescribed}; "
            "leave it out, or choose --algorithm fedavg"
        )
    values["server_optimizer"] = prescribed
    values["server_options"] = {**entry.server_options, **values["server_options"]}


def _check_needs(values: Mapping[str, Any]) -> None:
    """Refuses an option if its declaration names another option that is needed and not given."""
    for name, declared in OPTIONS.items():
        needs, value = declared.needs, values[name]
        if needs is None or not value or values[needs.option]:
            continue
        words = [] if value is True else [f"{value:g}" if isinstance(value, float) else str(value)]
        raise ConfigError(" ".join([option_name(name), *words, needs.why]))


def _check_eval_split(values: Mapping[str, Any]) -> None:
    """Refuses a split for evaluations during the run if there are no such evaluations."""
    split = values["eval_split"]
    if split not in (None, WITHOUT_TRAIN) and not values["eval_every"]:
        raise ConfigError(
            f"--eval-split {split} needs evaluations during the run; give how often, for example "
            "--eval-every 1"
        )


def _check_augmentation(values: Mapping[str, Any]) -> None:
    if values["augment_options"] and values["augment"] is None:
        raise ConfigError(
            f"--augment-option {next(iter(values['augment_options']))} is for --augment; choose "
            f"from {', '.join(tables.AUGMENTATIONS)}, joined by +"
        )


def _check_pre_aggregator(values: Mapping[str, Any]) -> None:
    if values["pre_aggregator_options"] and values["pre_aggregator"] is None:
        raise ConfigError(
            f"--pre-aggregator-option {next(iter(values['pre_aggregator_options']))} is for "
            f"--pre-aggregator; choose one of {', '.join(sorted(tables.PRE_AGGREGATORS))}"
        )


def _resolve_attack(values: dict[str, Any]) -> None:
    """Sets the number of attackers; refuses options without attack, and attacks on pooled data."""
    if values["attack"] is None:
        if values["attack_options"]:
            raise ConfigError(
                f"--attack-option {next(iter(values['attack_options']))} needs an attack; give "
                "one, for example --attack alie --attackers 0.1"
            )
        return
    if values["attackers"] is None:
        values["attackers"] = OPTIONS["attackers"].usual
    algorithm = values["algorithm"]
    if tables.ALGORITHMS[algorithm].pools_clients:
        raise ConfigError(
            f"--attack {values['attack']} with --algorithm {algorithm}, which pools the clients: "
            "none of them sends an update; choose fedavg"
        )


def _check_secure_sum(values: Mapping[str, Any]) -> None:
    if values["secure_sum"] or values["secure_sum_options"]:
        from fedcli.settings import secure_sum_rules  # lazy: few runs have secure sums

        secure_sum_rules.check(values)


def _check_records(values: Mapping[str, Any]) -> None:
    algorithm = values["algorithm"]
    if values["record_clients"] and tables.ALGORITHMS[algorithm].pools_clients:
        raise ConfigError(
            f"--record-clients with --algorithm {algorithm}, which pools the clients: there is "
            "no individual client to record; leave out one of the two"
        )


def _resolve_privacy(values: dict[str, Any]) -> None:
    if values["dp"] is not None:
        from fedcli.settings import privacy_rules  # lazy: few runs are private

        privacy_rules.resolve(values)
    elif values["dp_options"]:
        name = next(iter(values["dp_options"]))
        raise ConfigError(
            f"--dp-option {name} is for --dp; give that too, for example --dp gaussian"
        )


def _resolve_sampling(values: dict[str, Any]) -> None:
    """Sets the default client weighting; refuses values that the sampling does not allow."""
    is_by_size = values["sampling"] == "by-size"
    entry = tables.ALGORITHMS[values["algorithm"]]
    if values["client_weighting"] is None:
        values["client_weighting"] = "uniform" if is_by_size else entry.weightings[0]
    tables.check_weighting(entry, values["client_weighting"], "--client-weighting")
    if is_by_size and values["client_weighting"] == "num-examples":
        raise ConfigError(
            "--client-weighting num-examples with --sampling by-size would count examples twice: "
            "large clients come more often already; choose uniform"
        )
    if values["sampling"] == "tff" and values["seed"] > _MAX_TFF_SEED:
        raise ConfigError(
            f"--seed {values['seed']} with --sampling tff: TFF's generator takes seeds from 0 to "
            f"{_MAX_TFF_SEED}; choose such a seed, or --sampling uniform"
        )


def _resolve_metrics(values: dict[str, Any]) -> None:
    """Adds the metrics that rank rounds to the metrics that evaluations compute.

    The options of a user's own metrics are checked when their files run, by `own.permission`.
    """
    check_selection_metrics(values)
    ranking = {values["monitor"], values["keep_best"]}
    if values["stop_at"] is not None:
        ranking.add(split_target(values["stop_at"])[0])
    names = {*(values["metrics"] or ()), *ranking}
    known_or_named = {
        name for name in names if name in tables.METRICS or name in (values["metrics"] or ())
    }
    values["metrics"] = in_order(known_or_named) or None
    if values["metric_options"] and not tables.own_names(values["metrics"]):
        raise ConfigError(
            f"--metric-option {next(iter(values['metric_options']))}: fedcli's metrics have no "
            "options; it is for a metric of your own, which --metrics FILE.py adds"
        )
    if values["metric_options"] and not any(map(is_code, values["metrics"])):
        # Installed metrics can be looked at now; files run later, see `own.permission.complete`.
        complete_metrics = load("fedcli.settings.own.permission:complete_metrics")
        complete_metrics(values["metrics"], values["metric_options"])


def _check_participation(values: Mapping[str, Any]) -> None:
    """Refuses a deadline that no client can meet, and over-selection without a cohort size."""
    if values["deadline"] is not None and values["deadline"] <= values["communication_seconds"]:
        raise ConfigError(
            f"--deadline {values['deadline']:g} leaves no time after --communication-seconds "
            f"{values['communication_seconds']:g}; choose a later deadline"
        )
    if values["over_selection"] and values["sampling"] in ("fixed", "poisson"):
        raise ConfigError(
            f"--over-selection {values['over_selection']:g} draws more than N clients, but "
            f"--sampling {values['sampling']} does not draw N clients; choose --sampling uniform"
        )


def _check_compression(values: Mapping[str, Any]) -> None:
    """Refuses compression if clients send nothing or the server needs individual updates."""
    compress = values["compress"]
    if compress is None:
        if values["compress_options"]:
            raise ConfigError(
                f"--compress-option {next(iter(values['compress_options']))} needs a compression; "
                f"give one of {', '.join(tables.COMPRESSORS)} with --compress"
            )
        return
    if tables.ALGORITHMS[values["algorithm"]].pools_clients:
        raise ConfigError(
            f"--compress {compress} with --algorithm {values['algorithm']}, which pools the "
            "clients: they send no updates; leave it out"
        )
    if compress == "sketch" and values["aggregator"] != "mean":
        raise ConfigError(
            f"--compress sketch with --aggregator {values['aggregator']}: the server has only the "
            "sum of the sketches, not individual updates; choose --aggregator mean or another "
            "--compress"
        )


# For options of rows that "+" can join, the function that finds the joined row.
_JOINED: Mapping[str, Callable[[str], Entry]] = {
    "partition_options": lambda name: tables.find_partition(name),
    "augment_options": lambda name: tables.find_augmentation(name),
}


def _resolved(name: str, owner: str | bool, options: Mapping[str, Value]) -> dict[str, Value]:
    """Returns one complete option map. A data file has no row in a table and takes no options."""
    names = OPTIONS[OPTION_OWNERS[name]].kind.names
    assert names is not None
    table: Mapping[str, Entry] = names()
    is_switch = isinstance(owner, bool)
    if isinstance(owner, bool):  # a switch turns on the only row
        (owner,) = table
    if name == "data_options" and owner not in table:
        if options:
            takers = ", ".join(sorted(tables.EMBEDDED_DATASETS))
            raise ConfigError(
                f"--data-option {next(iter(options))} is not for data files; it is for {takers}"
            )
        return {}
    if name == "model_options" and tables.is_model_file(owner):
        return dict(options)  # parameters of the user's function, which checks them itself
    if name == "model_options" and owner not in table:
        raise ConfigError(
            f"unknown --model '{owner}'; choose one of {', '.join(sorted(table))}, or a file: "
            f"./{owner}{did_you_mean(owner, table)}"
        )
    find = _JOINED.get(name)
    entry = find(owner) if find else choose(table, owner, option_name(OPTION_OWNERS[name]))
    if name == "client_options" and entry.file:
        raise ConfigError(
            f"--client-optimizer {owner}: only the server's optimizer may be a part of your own; "
            f"choose one of {', '.join(sorted(table))}"
        )
    try:
        return resolve(entry, options)
    except ConfigError as err:
        text = str(err)
        if is_switch:  # the user has not typed the name of the only row
            text = text.replace(entry.name, option_name(OPTION_OWNERS[name]))
        raise ConfigError(f"{option_name(name)}: {text}") from err


def _check_schedule(name: str, values: Mapping[str, Any]) -> None:
    """Refuses a schedule that does not fit the number of rounds."""
    options_name = f"{name}_options"
    is_by_round = values.get(f"{name}_by", BY_ROUND) == BY_ROUND
    num_rounds = values["rounds"] if is_by_round else None
    try:
        tables.resolve_schedule(values[name], values[options_name], num_rounds)
    except ConfigError as err:
        raise ConfigError(f"{option_name(options_name)}: {err}") from err
