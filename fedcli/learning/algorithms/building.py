"""Builds an algorithm from its row of the table of algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.algorithms.client_work import ClientWork
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import WEIGHTINGS


def build(
    name: str | Path | Callable[..., ClientWork],
    client_optimizer: Optimizer | None,
    server_optimizer: Optimizer,
    *,
    weighting: str,
    aggregator: Aggregator,
    options: Mapping[str, Value] | None = None,
) -> Algorithm:
    """Returns the algorithm called `name` with the given parts.

    Args:
        name: A key of `tables.ALGORITHMS`; FILE.py or FILE.py:NAME, which is run; the name of an
            algorithm in an installed package; or your own class (not an object of it).
        client_optimizer: Takes the local steps; None for an algorithm without local steps.
        server_optimizer: Updates the global model with the pseudo-gradient of each round.
        weighting: Client weights, `num-examples` or `uniform`; some algorithms allow only one.
        aggregator: Combines the deltas of a cohort into one mean delta; an object of your own class
            is checked as the part of a run is.
        options: The algorithm's own options; missing ones take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, the client optimizer
            is missing or not used by the algorithm, or the algorithm does not support one of the
            optimizers.
        PartError: The user's file fails, or breaks the contract.
    """
    part = name if callable(name) else None
    if part is None:
        entry = opt.choose(tables.ALGORITHMS, opt.path_text(_no_object(name)), "algorithm")
    else:
        entry = load("fedcli.settings.own.parts:row_of")(tables.ALGORITHMS, part)
    name = entry.name
    if (client_optimizer is not None) != entry.has_local_steps:
        wants = "needs a" if entry.has_local_steps else "takes no"
        raise ConfigError(f"{name} {wants} client optimizer")
    if weighting not in WEIGHTINGS:
        names = " or ".join(WEIGHTINGS)
        raise ConfigError(f"unknown client weighting '{weighting}'; choose {names}")
    for side, optimizer in (("client", client_optimizer), ("server", server_optimizer)):
        if not isinstance(optimizer, Optimizer | None):
            raise ConfigError(
                f"{side}_optimizer is of type {type(optimizer).__name__}; give one of "
                "fedcli.optimizers, such as sgd(0.02) or build('FILE.py', 0.02)"
            )
    tables.check_weighting(entry, weighting)
    required = entry.server_optimizer
    if required is not None and server_optimizer.name != required:
        raise ConfigError(
            f"{name} uses server optimizer {required}, not {server_optimizer.name}; leave it out, "
            "or choose fedavg"
        )
    aggregator = _checked(aggregator)
    entry = opt.opened(entry)
    own = opt.resolve(entry, options or {})
    if entry.file:
        from fedcli.learning.algorithms.own import OwnWork  # lazy: few runs have one

        own_work = OwnWork.of(entry, client_optimizer, own, part)
        entry = replace(entry, **own_work.amounts)
        return Algorithm(entry, own_work, weighting, aggregator, server_optimizer)
    make = load(entry.code)
    work: ClientWork = make(client_optimizer, **own) if entry.has_local_steps else make(**own)
    return Algorithm(entry, work, weighting, aggregator, server_optimizer)


def _no_object(algorithm: Any) -> Any:
    """Returns its argument; raises ConfigError for an object of a class in place of the class."""
    if all(hasattr(algorithm, method) for method in ("init", "run")):
        kind = type(algorithm).__name__
        raise ConfigError(
            f"algorithm is an object of {kind}; give the class {kind} itself, or its file"
        )
    return algorithm


def _checked(aggregator: Aggregator) -> Aggregator:
    """Returns an aggregator; one with the user's own code is checked, now and in each round."""
    combine = getattr(type(aggregator), "aggregate", None)
    if isinstance(aggregator, type) or getattr(combine, "__module__", "").split(".")[0] != "fedcli":
        from fedcli.learning.aggregators.own import OwnAggregator  # lazy: few programs give one

        return OwnAggregator.around(aggregator)
    return aggregator
