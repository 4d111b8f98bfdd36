"""The interface of aggregators, which combine the deltas of a cohort into one mean delta.

Before each round an aggregator requests what it needs: the sum of the deltas, the sum of bounded
deltas, or the individual deltas as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.lazy import load
from fedcli.learning.engines.deltas import DeltaRequest, Deltas
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value


class Aggregator(Protocol):
    """Combines the deltas of a cohort into one mean delta.

    It holds settings only. Its state between rounds is part of the server state: arrays, ints and
    floats by name, which keep their names, shapes and types from round to round. In fedcli's own
    aggregators it may also have `ClientStates`.

    Three more methods are optional. An aggregator whose state has vectors defines
    `init_for(num_params)`, which is called instead of `init`. `problem(num_clients)` returns why
    the deltas of `num_clients` clients cannot be combined, or None if they can; a run whose cohorts
    have a problem does not begin. `for_cohort(num_clients)` returns the aggregator for cohorts of
    `num_clients`, with shares of clients turned into numbers of clients.

    Two attributes are optional. `averages_coordinates` is true if each coordinate of the mean delta
    is a mean of the values that some or all deltas have there. Only such an aggregator is allowed
    for a model with batch normalization. `selected_by` is what messages call the aggregator, such
    as the option that selects it. By default they name its class.
    """

    def init(self) -> dict[str, Any]:
        """Returns the aggregator's part of the server state before the first round."""
        ...

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Returns what the engine must provide about the deltas of the coming round.

        It returns `SUM` for the weighted sum alone, `ALL_ROWS` for the individual deltas as well,
        or `DeltaRequest(bounds=DeltaBounds(max_abs, norm))` for a sum of bounded deltas.
        """
        ...

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state, and metrics: numbers by name.

        A mean delta that is not finite is rejected, and the round does not change the model. The
        class `Deltas` describes the sum, the mean and the individual deltas that it offers.
        """
        ...


def first_state(aggregator: Aggregator, num_params: int) -> dict[str, Any]:
    """Returns an aggregator's state before the first round, for a model of `num_params`."""
    init_for = getattr(aggregator, "init_for", None)
    state: dict[str, Any] = aggregator.init() if init_for is None else init_for(num_params)
    return state


def problem_of(aggregator: Aggregator, num_clients: int) -> str | None:
    """Returns why an aggregator cannot combine `num_clients` deltas; None if it can."""
    problem = getattr(aggregator, "problem", None)
    why: str | None = None if problem is None else problem(num_clients)
    return why


def build(name: str | Path, options: Mapping[str, Value] | None = None) -> Aggregator:
    """Returns the aggregator called `name` in the table of aggregators.

    Args:
        name: A name that `fedcli info aggregators` lists; FILE.py or FILE.py:NAME, which is run;
            or the name of an aggregator in an installed package.
        options: Its options; those not given take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
        PartError: The user's file fails, or breaks the contract.
    """
    entry = opt.opened(opt.choose(tables.AGGREGATORS, opt.path_text(name), "aggregator"))
    resolved = opt.resolve(entry, options or {})
    if entry.file:
        from fedcli.learning.aggregators.own import OwnAggregator  # lazy: few runs have one

        return OwnAggregator.of(entry, resolved)
    aggregator: Aggregator = load(entry.code)(**resolved)
    return aggregator
