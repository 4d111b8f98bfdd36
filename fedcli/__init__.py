"""Federated learning of image classifiers, simulated on one machine, with the arithmetic in C.

The public names load on first use, so that `fedcli --help` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcli import datasets, layers, learning, models, optimizers
    from fedcli.errors import FedcliError

__version__ = "0.1.0"

__all__ = ["FedcliError", "__version__", "datasets", "layers", "learning", "models", "optimizers"]

_MODULES = frozenset({"datasets", "layers", "learning", "models", "optimizers"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fedcli.{name}")
    if name == "FedcliError":
        return import_module("fedcli.errors").FedcliError
    raise AttributeError(f"module 'fedcli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
