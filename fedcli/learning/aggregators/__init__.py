"""Aggregators, which combine the deltas of a cohort into one; `build` makes one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.learning.aggregators.contract import Aggregator as Aggregator
    from fedcli.learning.aggregators.contract import build as build
    from fedcli.learning.aggregators.pre_aggregation import build_after as build_after
    from fedcli.learning.engines.deltas import ALL_ROWS as ALL_ROWS
    from fedcli.learning.engines.deltas import SUM as SUM
    from fedcli.learning.engines.deltas import DeltaBounds as DeltaBounds
    from fedcli.learning.engines.deltas import DeltaRequest as DeltaRequest
    from fedcli.learning.engines.deltas import Deltas as Deltas
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "ALL_ROWS": "fedcli.learning.engines.deltas",
            "Aggregator": "fedcli.learning.aggregators.contract",
            "DeltaBounds": "fedcli.learning.engines.deltas",
            "DeltaRequest": "fedcli.learning.engines.deltas",
            "Deltas": "fedcli.learning.engines.deltas",
            "SUM": "fedcli.learning.engines.deltas",
            "build": "fedcli.learning.aggregators.contract",
            "build_after": "fedcli.learning.aggregators.pre_aggregation",
        },
    )
