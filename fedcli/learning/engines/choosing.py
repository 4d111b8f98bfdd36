"""Which engine computes a model: the core's threads, or `python_engine` for models in Python."""

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
    """Tells whether Python computes a model: only such a one has no layers."""
    return not model.layout.layers


def make_engine(model: Model, num_threads: int | None = None) -> Engine:
    """Returns the engine of a model; one in Python has one thread, whatever is asked.

    Raises:
        ConfigError: See `ThreadEngine`.
    """
    if is_python(model):
        from fedcli.learning.engines.python_models import PythonEngine

        return PythonEngine(model)
    return ThreadEngine(num_threads)


def engine_for(model: Model, engine: Engine | None) -> Engine:
    """Returns the engine that a caller chose for a model, or that of the model if they did not.

    Raises:
        ConfigError: It cannot compute the model.
    """
    if engine is None:
        return make_engine(model)
    if is_python(model) and isinstance(engine, ThreadEngine):
        raise ConfigError(
            f"a ThreadEngine computes layers of fedcli, but the model {model.name} is in Python; "
            "leave out engine"
        )
    return engine


def own_metrics(model: Model) -> OwnMetrics:
    """Returns the metrics that a model brings; those of layers have none."""
    return model.metrics if is_python(model) else OwnMetrics()
