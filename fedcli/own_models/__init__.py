"""Models that users write in Python: their contract, their files, and the checks on both.

Such a model is an object (`OwnModel`), a `torch.nn.Module`, or layers of fedcli, which the core
trains. It computes batches; engine, optimizers, algorithms and aggregators are those of all models.
"""

from __future__ import annotations

from fedcli.batches import ArraySpec
from fedcli.own_models.contract import BatchOutput, OwnModel
from fedcli.own_models.loading import PythonModel, fingerprint, load, wrap
from fedcli.own_models.network import Network
from fedcli.own_models.user_code import trace_lines

__all__ = [
    "ArraySpec",
    "BatchOutput",
    "Network",
    "OwnModel",
    "PythonModel",
    "fingerprint",
    "load",
    "trace_lines",
    "wrap",
]
