"""Chooses the engine of a model: `ThreadEngine`, or `PythonEngine` for a model in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from fedcli.errors import ConfigError
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.metrics import OwnMetrics
from fedcli.models.model import Model

if TYPE_CHECKING:
    from fedcli.models.own.loading import PythonModel


def is_python(model: Model) -> TypeGuard[PythonModel]:
    """Returns whether a model is computed in Python; only such a model has no layers."""
    return not model.layout.layers


def make_engine(model: Model, num_threads: int | None = None) -> Engine:
    """Returns a new engine for a model; `num_threads` has no effect on a model in Python.

    Raises:
        ConfigError: See `ThreadEngine`.
    """
    if is_python(model):
        from fedcli.learning.engines.python_models import PythonEngine

        return PythonEngine(model)
    return ThreadEngine(num_threads)


def engine_for(model: Model, engine: Engine | None) -> Engine:
    """Returns the given engine, or a new engine for the model if none is given.

    Raises:
        ConfigError: The given engine cannot compute the model.
    """
    if engine is None:
        return make_engine(model)
    if is_python(model) and isinstance(engine, ThreadEngine):
        raise ConfigError(
            f"a ThreadEngine computes only models of fedcli's layers, and {model.name} is a model "
            "in Python; leave out engine"
        )
    return engine


def own_metrics(model: Model) -> OwnMetrics:
    """Returns the metrics that a model defines itself; models of layers define none."""
    return model.metrics if is_python(model) else OwnMetrics()
