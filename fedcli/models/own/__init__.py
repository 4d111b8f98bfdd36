"""Users' own models in Python: NumPy objects, `torch.nn.Module`s, or models of fedcli's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.datasets.batches import ArraySpec as ArraySpec
    from fedcli.models.own.contract import BatchOutput as BatchOutput
    from fedcli.models.own.contract import OwnModel as OwnModel
    from fedcli.models.own.loading import PythonModel as PythonModel
    from fedcli.models.own.loading import load as load
    from fedcli.models.own.loading import wrap as wrap
    from fedcli.models.own.network import Network as Network
    from fedcli.settings.own.user_code import fingerprint as fingerprint
    from fedcli.settings.own.user_code import trace_lines as trace_lines
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "ArraySpec": "fedcli.datasets.batches",
            "BatchOutput": "fedcli.models.own.contract",
            "Network": "fedcli.models.own.network",
            "OwnModel": "fedcli.models.own.contract",
            "PythonModel": "fedcli.models.own.loading",
            "fingerprint": "fedcli.settings.own.user_code",
            "load": "fedcli.models.own.loading",
            "trace_lines": "fedcli.settings.own.user_code",
            "wrap": "fedcli.models.own.loading",
        },
    )
