"""Checks that a model with batch normalization is trained only by parts that support it.

The moving statistics of such a model are sent in the model deltas. They may be averaged, but must
not be corrected like gradients, bounded, covered by noise, or compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedcli.errors import ConfigError
from fedcli.learning.algorithms.base import Algorithm
from fedcli.models.model import Model
from fedcli.settings import tables
from fedcli.settings.tables import AlgorithmEntry

if TYPE_CHECKING:
    from fedcli.learning.updates.contract import UpdateStage


def check_batch_norms(model: Model, algorithm: Algorithm, stages: Sequence[UpdateStage]) -> None:
    """Refuses parts that change a model's moving statistics other than by averaging them.

    Args:
        model: A model with batch normalization.
        algorithm: The algorithm, with its aggregator.
        stages: What changes individual updates before they are aggregated.

    Raises:
        ConfigError: The algorithm, the aggregator or a stage changes the statistics in another way.
    """
    entry = algorithm.entry
    if not _averages(entry):
        fitting = ", ".join(name for name, each in tables.ALGORITHMS.items() if _averages(each))
        raise _refusal(model, f"algorithm {entry.name}", f"choose {fitting}")
    aggregator = algorithm.aggregator
    if not getattr(aggregator, "averages_coordinates", False):
        name = getattr(aggregator, "selected_by", f"the aggregator {type(aggregator).__name__}")
        choice = "choose --aggregator mean, median, trimmed-mean or meamed alone"
        raise _refusal(model, name, choice)
    if stages:
        raise _refusal(model, f"--{stages[0].name}", "leave it out")


def _averages(entry: AlgorithmEntry) -> bool:
    return entry.sends_deltas_alone or entry.pools_clients or entry.has_own_models


def _refusal(model: Model, part: str, choice: str) -> ConfigError:
    return ConfigError(
        f"model {model.name} has batch normalization, whose moving statistics can only be "
        f"averaged, but {part} does more than average: {choice}, or take a model with group "
        "normalization"
    )
