"""Federated algorithms, one file a paper; `build` makes one by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import hand_on

if TYPE_CHECKING:
    from fedcli.learning.algorithms.building import build as build
else:
    __getattr__, __dir__, __all__ = hand_on(
        __name__,
        {
            "build": "fedcli.learning.algorithms.building",
        },
    )
