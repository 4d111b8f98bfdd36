"""Client and server optimizers, made by name or by a function for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.learning.optimizers.named import adafactor as adafactor
    from fedcli.learning.optimizers.named import adagrad as adagrad
    from fedcli.learning.optimizers.named import adam as adam
    from fedcli.learning.optimizers.named import adamw as adamw
    from fedcli.learning.optimizers.named import build as build
    from fedcli.learning.optimizers.named import clip_gradients as clip_gradients
    from fedcli.learning.optimizers.named import rmsprop as rmsprop
    from fedcli.learning.optimizers.named import schedule_learning_rate as schedule_learning_rate
    from fedcli.learning.optimizers.named import sgd as sgd
    from fedcli.learning.optimizers.named import yogi as yogi
    from fedcli.learning.optimizers.optimizer import Optimizer as Optimizer
    from fedcli.learning.optimizers.own import ServerOptimizer as ServerOptimizer
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "Optimizer": "fedcli.learning.optimizers.optimizer",
            "ServerOptimizer": "fedcli.learning.optimizers.own",
            "adafactor": "fedcli.learning.optimizers.named",
            "adagrad": "fedcli.learning.optimizers.named",
            "adam": "fedcli.learning.optimizers.named",
            "adamw": "fedcli.learning.optimizers.named",
            "build": "fedcli.learning.optimizers.named",
            "clip_gradients": "fedcli.learning.optimizers.named",
            "rmsprop": "fedcli.learning.optimizers.named",
            "schedule_learning_rate": "fedcli.learning.optimizers.named",
            "sgd": "fedcli.learning.optimizers.named",
            "yogi": "fedcli.learning.optimizers.named",
        },
    )
