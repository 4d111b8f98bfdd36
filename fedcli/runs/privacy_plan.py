"""The plan of a private run: which accountant fits its cohorts, and how much noise they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedcli.errors import ConfigError, plural
from fedcli.federation.cohorts import Cohorts
from fedcli.lazy import load
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.aggregators.private import PrivacyPlan
from fedcli.learning.algorithms.base import Algorithm
from fedcli.privacy.accountant import Accountant, noise_for
from fedcli.privacy.schemes import REPLACE, Scheme, rounds_of_pass, scheme_of, tree_scheme
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig

# The options from which a plan is made; all others belong to the aggregator.
_OF_PLAN = ("noise_multiplier", "target_epsilon", "delta", "accountant")


def unplanned_mean(config: RunConfig) -> Aggregator:
    """Returns the aggregator of a private run when nothing is trained, as in an evaluation."""
    return _aggregator(config, None, max(1, _restart_every(config)))


def make_private(
    algorithm: Algorithm, config: RunConfig, cohorts: Cohorts, notes: list[str]
) -> Algorithm:
    """Returns the algorithm with a private mean; adds lines on epsilon to the notes.

    Args:
        algorithm: An algorithm that `settings.privacy_rules` allows.
        config: A valid config with `dp` set.
        cohorts: The cohorts of the run.
        notes: Notes for the user.

    Raises:
        ConfigError: The number of clients does not fit the options.
    """
    size = len(cohorts.fixed or ()) if cohorts.sampler is None else cohorts.sampler.size
    population = len(cohorts.population) if cohorts.fixed is None else size
    delta = _number(config, "delta")
    if delta * population >= 1.0:
        raise ConfigError(
            f"--dp-option delta={delta:g}: with {population:,} clients it must be below "
            f"{1.0 / population:g}, because otherwise publishing all data of one client would "
            "count as private; choose a smaller delta"
        )
    restart_every = _restart_every(config)
    if config.dp == "tree":
        restart_every = restart_every or rounds_of_pass(population, size)
        scheme = tree_scheme(population, size, restart_every)
    else:
        scheme = scheme_of(config.sampling, population, size)
    accountant = _accountant(config, scheme, delta)
    plan = PrivacyPlan(size, size / population, accountant)
    notes += _notes(config, plan)
    return replace(algorithm, aggregator=_aggregator(config, plan, restart_every))


def _aggregator(config: RunConfig, plan: PrivacyPlan | None, restart_every: int) -> Aggregator:
    assert config.dp is not None
    options: dict[str, Any] = {
        name: value for name, value in config.dp_options.items() if name not in _OF_PLAN
    }
    if "restart_every" in options:
        options["restart_every"] = restart_every
    make = load(tables.PRIVACY[config.dp].code)
    aggregator: Aggregator = make(config.seed, plan, **options)
    return aggregator


def _accountant(config: RunConfig, scheme: Scheme, delta: float) -> Accountant:
    method = str(config.dp_options["accountant"])
    if "target_epsilon" in config.dp_options:
        target = _number(config, "target_epsilon")
        noise = noise_for(scheme, target, config.rounds, delta, method)
    else:
        noise = _number(config, "noise_multiplier")
    return Accountant(scheme, noise, delta, method)


def _notes(config: RunConfig, plan: PrivacyPlan) -> list[str]:
    """Returns a note on the epsilon that a run will spend, or on why it is not private."""
    accountant = plan.accountant
    z, rounds = accountant.noise_multiplier, config.rounds
    if z == 0.0:
        return ["--dp without noise: updates are clipped, but the run is not private"]
    spent = accountant.spent(rounds)
    notes = [
        f"simulated differential privacy of clients: noise_multiplier {z:g} spends epsilon "
        f"{spent.epsilon:.4f} (delta {accountant.delta:g}, {accountant.method}, "
        f"{accountant.scheme.neighbours}) in {plural(rounds, 'round')}; whoever knows the seed can "
        "subtract the noise"
    ]
    if accountant.scheme.neighbours == REPLACE:
        notes.append(
            f"--sampling {config.sampling} draws cohorts of a fixed size, for which only a loose "
            "bound on epsilon is known; --sampling poisson gives a much smaller epsilon"
        )
    return notes


def _number(config: RunConfig, name: str) -> float:
    value = config.dp_options[name]
    assert isinstance(value, float)
    return value


def _restart_every(config: RunConfig) -> int:
    value = config.dp_options.get("restart_every", 0)
    assert isinstance(value, int)
    return value
