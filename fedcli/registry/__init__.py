"""Everything a user can choose by name, with its options: validates configs, feeds `fedcli info`.

One table a family, with its checks beside it. Imports no NumPy, so that a wrong option is refused
before anything heavy is loaded. The code behind each name stands in one dict of its own module
(`optimizers`, `models`, `algorithms`, `aggregators`, `datasets`), under the same key.
"""

from __future__ import annotations

from fedcli.registry.algorithms import (
    AGGREGATORS,
    ALGORITHMS,
    AlgorithmEntry,
    check_ema_decay,
    check_weighting,
)
from fedcli.registry.datasets import DATASETS, EMBEDDED_DATASETS, PUBLIC_DATASETS
from fedcli.registry.models import MODELS, is_model_file, split_model_file
from fedcli.registry.optimizers import (
    OPTIMIZERS,
    OptimizerEntry,
    check_clip_norm,
    check_learning_rate,
)
from fedcli.registry.partitions import (
    CHANGES,
    DEALS,
    NATURAL,
    PARTITIONS,
    describe_partition,
    find_partition,
    split_partition,
)
from fedcli.registry.schedules import CONSTANT, RUN_S_ROUNDS, SCHEDULES

__all__ = [
    "AGGREGATORS",
    "ALGORITHMS",
    "CHANGES",
    "CONSTANT",
    "DATASETS",
    "DEALS",
    "EMBEDDED_DATASETS",
    "MODELS",
    "NATURAL",
    "OPTIMIZERS",
    "PARTITIONS",
    "PUBLIC_DATASETS",
    "RUN_S_ROUNDS",
    "SCHEDULES",
    "AlgorithmEntry",
    "OptimizerEntry",
    "check_clip_norm",
    "check_ema_decay",
    "check_learning_rate",
    "check_weighting",
    "describe_partition",
    "find_partition",
    "is_model_file",
    "split_model_file",
    "split_partition",
]
