"""Aggregators, which make one mean delta of those of a cohort; `build` makes one by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import hand_on

if TYPE_CHECKING:
    from fedcli.learning.aggregators.contract import Aggregator as Aggregator
    from fedcli.learning.aggregators.contract import build as build
else:
    __getattr__, __dir__, __all__ = hand_on(
        __name__,
        {
            "Aggregator": "fedcli.learning.aggregators.contract",
            "build": "fedcli.learning.aggregators.contract",
        },
    )
