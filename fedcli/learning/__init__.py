"""Learning processes as in TFF: `initialize` returns a state, `next` maps one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import hand_on

if TYPE_CHECKING:
    from fedcli.learning.builders import build_fed_eval as build_fed_eval
    from fedcli.learning.builders import build_fed_sgd as build_fed_sgd
    from fedcli.learning.builders import (
        build_mime_lite_with_optimizer as build_mime_lite_with_optimizer,
    )
    from fedcli.learning.builders import build_process as build_process
    from fedcli.learning.builders import build_unweighted_fed_avg as build_unweighted_fed_avg
    from fedcli.learning.builders import build_weighted_fed_avg as build_weighted_fed_avg
    from fedcli.learning.process import LearningProcess as LearningProcess
    from fedcli.learning.state import ModelWeights as ModelWeights
    from fedcli.learning.state import ProcessOutput as ProcessOutput
    from fedcli.learning.state import ServerState as ServerState
    from fedcli.models.metrics import sum_then_finalize as sum_then_finalize
else:
    __getattr__, __dir__, __all__ = hand_on(
        __name__,
        {
            "LearningProcess": "fedcli.learning.process",
            "ModelWeights": "fedcli.learning.state",
            "ProcessOutput": "fedcli.learning.state",
            "ServerState": "fedcli.learning.state",
            "build_fed_eval": "fedcli.learning.builders",
            "build_fed_sgd": "fedcli.learning.builders",
            "build_mime_lite_with_optimizer": "fedcli.learning.builders",
            "build_process": "fedcli.learning.builders",
            "build_unweighted_fed_avg": "fedcli.learning.builders",
            "build_weighted_fed_avg": "fedcli.learning.builders",
            "sum_then_finalize": "fedcli.models.metrics",
        },
    )
