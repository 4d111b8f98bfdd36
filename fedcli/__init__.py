"""Federated learning of image classifiers, simulated on one machine, with the arithmetic in C.

The public names load on first use, so that `fedcli --help` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcli import datasets, layers, learning, metrics, models, optimizers
    from fedcli.config import RunConfig
    from fedcli.errors import FedcliError, StopTraining
    from fedcli.evaluation import evaluate_run
    from fedcli.run_record import load_run
    from fedcli.runs import resume, train

__version__ = "0.1.0"

__all__ = [
    "FedcliError",
    "RunConfig",
    "StopTraining",
    "__version__",
    "datasets",
    "evaluate_run",
    "layers",
    "learning",
    "load_run",
    "metrics",
    "models",
    "optimizers",
    "resume",
    "train",
]

_HOMES = {
    "FedcliError": "errors",
    "RunConfig": "config",
    "StopTraining": "errors",
    "evaluate_run": "evaluation",
    "load_run": "run_record",
    "resume": "runs",
    "train": "runs",
}
_MODULES = frozenset({"datasets", "layers", "learning", "metrics", "models", "optimizers"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fedcli.{name}")
    if name in _HOMES:
        return getattr(import_module(f"fedcli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fedcli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
