"""What options say of each other: a valid config has every value checked and every map complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.options import Entry, Value, choose, did_you_mean, resolve
from fedcli.settings.run_config import (
    CLIENT_LR,
    LOCAL_FIELDS,
    LOCAL_NAMES,
    OPTION_OWNERS,
    SERVER_OPTIMIZER,
    RunConfig,
    option_name,
)
from fedcli.settings.values import checked
from fedcli.settings.vocabulary import BY_ROUND

_MAX_TFF_SEED = 2**32 - 1  # of NumPy's RandomState, which draws TFF's cohorts


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
        each.name: checked(option_name(each.name), each.name, getattr(config, each.name))
        for each in fields(config)
    }
    _resolve_algorithm(values)
    _resolve_sampling(values)
    _check_logs(values)
    _check_participation(values)
    _check_stopping(values)
    for name, (owner, table) in OPTION_OWNERS.items():
        if values[owner] is not None:
            values[name] = _resolved(name, values[owner], table, values[name])
    for name in ("client_schedule", "server_schedule"):
        if values[name] is not None:
            _check_schedule(name, values)
    if values["fresh_weights"] and not tables.is_model_file(values["model"]):
        raise ConfigError(
            f"--fresh-weights is for models from files; {values['model']} always starts with fresh "
            "weights: leave it out"
        )
    return RunConfig(**values)


def _resolve_algorithm(values: dict[str, Any]) -> None:
    """Fills in what an algorithm says of optimizers; refuses local ones where it has no use."""
    entry = choose(tables.ALGORITHMS, values["algorithm"], option_name("algorithm"))
    if entry.has_own_models:
        _check_nothing_shared(values, entry)
    _resolve_server(values, entry)
    if entry.has_local_steps:
        for name, default in LOCAL_NAMES.items():
            values[name] = values[name] or default
        values["client_lr"] = CLIENT_LR if values["client_lr"] is None else values["client_lr"]
        return
    for name in LOCAL_FIELDS:
        if values[name] is not None and values[name] != {}:
            raise ConfigError(
                f"{option_name(name)}: the clients of {entry.name} take no steps and have no "
                "optimizer; leave it out"
            )


def _check_nothing_shared(values: Mapping[str, Any], entry: tables.AlgorithmEntry) -> None:
    """Refuses what would be done to what clients share, where they share nothing."""
    has_effect = {
        "server_lr": values["server_lr"] not in (None, entry.server_lr),
        "server_options": any(values["server_options"].values()),
        "server_schedule": values["server_schedule"] != tables.CONSTANT,
        "server_ema": values["server_ema"] is not None,
        "aggregator": values["aggregator"] != RunConfig.aggregator,
        "histograms": values["histograms"],
    }
    for name in (name for name, is_given in has_effect.items() if is_given):
        raise ConfigError(
            f"{option_name(name)}: the clients of {entry.name} share nothing, and there is no "
            "global model that changes; leave it out"
        )


def _resolve_server(values: dict[str, Any], entry: tables.AlgorithmEntry) -> None:
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
    if values["record_clients"] and tables.ALGORITHMS[algorithm].pools_clients:
        raise ConfigError(
            f"--record-clients with --algorithm {algorithm}, which pools the clients: there is "
            "nothing to record of each; choose one of the two"
        )


def _resolve_sampling(values: dict[str, Any]) -> None:
    """Fills in the weights of clients; refuses what a way of drawing cohorts cannot take."""
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
    """Refuses to wait for an accuracy that nobody measures, and to choose among no evaluations."""
    for name in ("stop_at", "patience", "keep_best", "eval_split"):
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
            names = ", ".join(sorted(tables.EMBEDDED_DATASETS))
            raise ConfigError(
                f"--data-option {next(iter(given))} does not go with a data file; it is for {names}"
            )
        return {}
    if name == "model_options" and tables.is_model_file(owner):
        return dict(given)  # a function's own, which only it can check
    if name == "model_options" and owner not in table:
        raise ConfigError(
            f"unknown --model '{owner}'; choose one of {', '.join(sorted(table))}, or a file: "
            f"./{owner}{did_you_mean(owner, table)}"
        )
    if name == "partition_options":
        entry = tables.find_partition(owner)
    else:
        entry = choose(table, owner, option_name(OPTION_OWNERS[name][0]))
    try:
        return resolve(entry, given)
    except ConfigError as err:
        raise ConfigError(f"{option_name(name)}: {err}") from err


def _check_schedule(name: str, values: Mapping[str, Any]) -> None:
    """Refuses a schedule that does not go with the number of rounds."""
    options_name = f"{name}_options"
    is_by_round = values.get(f"{name}_by", BY_ROUND) == BY_ROUND
    num_rounds = values["rounds"] if is_by_round else None
    try:
        tables.resolve_schedule(values[name], values[options_name], num_rounds)
    except ConfigError as err:
        raise ConfigError(f"{option_name(options_name)}: {err}") from err
