"""Federated algorithms, one file a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedcli import options as opt
from fedcli import registry
from fedcli.aggregators import Aggregator
from fedcli.algorithms import fedavg, fedprox
from fedcli.algorithms.base import Algorithm
from fedcli.config import WEIGHTINGS
from fedcli.errors import ConfigError
from fedcli.optimizers import Optimizer
from fedcli.options import Value

# The code behind each row of registry.ALGORITHMS, called with its options by name.
BUILDERS: dict[str, Callable[..., Algorithm]] = {
    "fedavg": fedavg.build,
    "fedprox": fedprox.build,
}


def build(
    name: str,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer,
    *,
    weighting: str,
    aggregator: Aggregator,
    options: Mapping[str, Value] | None = None,
) -> Algorithm:
    """Returns the algorithm of the registry called `name`, made of the given parts.

    Args:
        name: A key of `registry.ALGORITHMS`.
        client_optimizer: Takes the local steps.
        server_optimizer: Takes the pseudo-gradient of each round.
        weighting: Client weights, `num-examples` or `uniform`.
        aggregator: Makes one mean delta of a cohort's.
        options: The algorithm's own options; those not given take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(registry.ALGORITHMS, name, "algorithm")
    if weighting not in WEIGHTINGS:
        names = " or ".join(WEIGHTINGS)
        raise ConfigError(f"unknown client weighting '{weighting}'; choose {names}")
    return BUILDERS[name](
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        **opt.resolve(entry, options or {}),
    )
