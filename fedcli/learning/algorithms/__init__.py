"""Federated algorithms, one module per paper; `build` makes one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.core.native import StepKind as StepKind
    from fedcli.learning.algorithms.base import Algorithm as Algorithm
    from fedcli.learning.algorithms.building import build as build
    from fedcli.learning.algorithms.client_work import ClientWork as ClientWork
    from fedcli.learning.algorithms.client_work import CohortCall as CohortCall
    from fedcli.learning.algorithms.client_work import WorkResult as WorkResult
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "Algorithm": "fedcli.learning.algorithms.base",
            "ClientWork": "fedcli.learning.algorithms.client_work",
            "CohortCall": "fedcli.learning.algorithms.client_work",
            "StepKind": "fedcli.core.native",
            "WorkResult": "fedcli.learning.algorithms.client_work",
            "build": "fedcli.learning.algorithms.building",
        },
    )
