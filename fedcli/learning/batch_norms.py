"""Checks that a model with batch normalization is trained only by parts that support it.

The moving statistics of such a model are sent in the model deltas. They may be averaged, but must
not be corrected like gradients, bounded, covered by noise, or compressed. If each client keeps
batch normalization of its own, the clients' deltas start from different parameters, and the server
may use nothing but their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError
from fedcli.learning.algorithms.base import Algorithm
from fedcli.models.batch_norms import check_has_any, has_moving_statistics, local_indices
from fedcli.models.model import Model
from fedcli.settings import tables
from fedcli.settings.tables import AlgorithmEntry
from fedcli.settings.vocabulary import LOCAL_NORMS, LOCAL_STATISTICS

if TYPE_CHECKING:
    from fedcli.learning.aggregators.contract import Aggregator
    from fedcli.learning.updates.contract import UpdateStage


def check_batch_norms(model: Model, algorithm: Algorithm, stages: Sequence[UpdateStage]) -> None:
    """Refuses parts that change a model's moving statistics other than by averaging them.

    Args:
        model: A model with batch normalization.
        algorithm: The algorithm, with its aggregator.
        stages: The stages that change individual updates before they are aggregated.

    Raises:
        ConfigError: The algorithm, the aggregator or a stage changes the statistics in another way.
    """
    entry = algorithm.entry
    if not _averages(entry):
        fitting = ", ".join(name for name, each in tables.ALGORITHMS.items() if _averages(each))
        raise _refusal(model, f"algorithm {entry.name}", f"choose {fitting}")
    aggregator = algorithm.aggregator
    if not getattr(aggregator, "averages_coordinates", False):
        choice = "choose --aggregator mean, median, trimmed-mean or meamed alone"
        raise _refusal(model, _name_of(aggregator), choice)
    if stages:
        raise _refusal(model, f"--{stages[0].name}", "leave it out")


def own_indices(model: Model, algorithm: Algorithm) -> NDArray[np.int64]:
    """Returns the indices of the parameters that each client keeps for itself.

    Args:
        model: The model; `check_batch_norms` makes further checks.
        algorithm: The algorithm, with `local_norms`.

    Raises:
        ConfigError: `local_norms` is unknown, the model has no batch normalization or none that
            clients would change, or the algorithm or the aggregator does not support parameters
            that clients keep.
    """
    if algorithm.local_norms not in LOCAL_NORMS:
        names = " or ".join(LOCAL_NORMS)
        raise ConfigError(f"local_norms = {algorithm.local_norms!r}: choose {names}")
    check_has_any(model, algorithm.local_norms)
    option, entry = f"--batch-norm {algorithm.local_norms}", algorithm.entry
    if algorithm.local_norms == LOCAL_STATISTICS and not has_moving_statistics(model):
        raise ConfigError(
            f"{option}: all layers BatchNorm of model {model.name} are frozen, so that no client "
            "changes their statistics; leave the option out"
        )
    if not _shares_parts(entry):
        fitting = ", ".join(name for name, each in tables.ALGORITHMS.items() if _shares_parts(each))
        raise ConfigError(
            f"{option}: the clients of {entry.name} cannot keep a part of the model for themselves "
            f"and share the rest; choose --algorithm {fitting}, or leave the option out"
        )
    aggregator = algorithm.aggregator
    if aggregator.request(aggregator.init()).all_rows:
        raise ConfigError(
            f"{option}: the clients' deltas start from different parameters, so that only their "
            f"mean can be used, but {_name_of(aggregator)} needs more than the mean: choose "
            "--aggregator mean without other options of aggregation"
        )
    if algorithm.ema_decay is not None:
        raise ConfigError(
            f"{option}: each client is evaluated with its own batch normalization, which does not "
            "fit a running mean of the other weights; leave out --server-ema"
        )
    return local_indices(model.layout, algorithm.local_norms)


def _shares_parts(entry: AlgorithmEntry) -> bool:
    return entry.sends_deltas_alone and entry.has_local_steps


def _averages(entry: AlgorithmEntry) -> bool:
    return entry.sends_deltas_alone or entry.pools_clients or entry.has_own_models


def _name_of(aggregator: Aggregator) -> str:
    """Returns what messages call an aggregator: the option that selects it, or else its class."""
    kind = type(aggregator)
    code = f"{kind.__module__}:{kind.__name__}"
    names = (name for name, entry in tables.AGGREGATORS.items() if entry.code == code)
    default = next((f"--aggregator {name}" for name in names), f"the aggregator {kind.__name__}")
    return str(getattr(aggregator, "selected_by", default))


def _refusal(model: Model, part: str, choice: str) -> ConfigError:
    return ConfigError(
        f"model {model.name} has batch normalization, whose moving statistics can only be "
        f"averaged, but {part} does more than average: {choice}, or take a model with group "
        "normalization"
    )
