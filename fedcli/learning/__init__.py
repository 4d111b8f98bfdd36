"""Learning processes as in TFF: `initialize` returns a state, `next` maps one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli import models as models
    from fedcli.learning.builders import build_fed_eval as build_fed_eval
    from fedcli.learning.builders import build_fed_sgd as build_fed_sgd
    from fedcli.learning.builders import (
        build_mime_lite_with_optimizer as build_mime_lite_with_optimizer,
    )
    from fedcli.learning.builders import build_process as build_process
    from fedcli.learning.builders import build_unweighted_fed_avg as build_unweighted_fed_avg
    from fedcli.learning.builders import build_weighted_fed_avg as build_weighted_fed_avg
    from fedcli.learning.named_builders import build_centralized as build_centralized
    from fedcli.learning.named_builders import build_fed_adagrad as build_fed_adagrad
    from fedcli.learning.named_builders import build_fed_adam as build_fed_adam
    from fedcli.learning.named_builders import build_fed_avg_m as build_fed_avg_m
    from fedcli.learning.named_builders import build_fed_dyn as build_fed_dyn
    from fedcli.learning.named_builders import build_fed_nova as build_fed_nova
    from fedcli.learning.named_builders import build_fed_prox as build_fed_prox
    from fedcli.learning.named_builders import build_fed_yogi as build_fed_yogi
    from fedcli.learning.named_builders import build_local_only as build_local_only
    from fedcli.learning.named_builders import build_mime as build_mime
    from fedcli.learning.named_builders import build_own as build_own
    from fedcli.learning.named_builders import build_scaffold as build_scaffold
    from fedcli.learning.process import LearningProcess as LearningProcess
    from fedcli.learning.state import ModelWeights as ModelWeights
    from fedcli.learning.state import ProcessOutput as ProcessOutput
    from fedcli.learning.state import ServerState as ServerState
    from fedcli.models.metrics import sum_then_finalize as sum_then_finalize
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "LearningProcess": "fedcli.learning.process",
            "ModelWeights": "fedcli.learning.state",
            "ProcessOutput": "fedcli.learning.state",
            "ServerState": "fedcli.learning.state",
            "build_centralized": "fedcli.learning.named_builders",
            "build_fed_adagrad": "fedcli.learning.named_builders",
            "build_fed_adam": "fedcli.learning.named_builders",
            "build_fed_avg_m": "fedcli.learning.named_builders",
            "build_fed_dyn": "fedcli.learning.named_builders",
            "build_fed_eval": "fedcli.learning.builders",
            "build_fed_nova": "fedcli.learning.named_builders",
            "build_fed_prox": "fedcli.learning.named_builders",
            "build_fed_sgd": "fedcli.learning.builders",
            "build_fed_yogi": "fedcli.learning.named_builders",
            "build_local_only": "fedcli.learning.named_builders",
            "build_mime": "fedcli.learning.named_builders",
            "build_mime_lite_with_optimizer": "fedcli.learning.builders",
            "build_process": "fedcli.learning.builders",
            "build_own": "fedcli.learning.named_builders",
            "build_scaffold": "fedcli.learning.named_builders",
            "build_unweighted_fed_avg": "fedcli.learning.builders",
            "build_weighted_fed_avg": "fedcli.learning.builders",
            "sum_then_finalize": "fedcli.models.metrics",
        },
        {"models": "fedcli.models"},
    )
