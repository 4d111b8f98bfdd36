"""Tables of what a user can choose by name, with the options of each row. Imports no NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.settings.tables.algorithms import AGGREGATORS as AGGREGATORS
    from fedcli.settings.tables.algorithms import ALGORITHMS as ALGORITHMS
    from fedcli.settings.tables.algorithms import PRE_AGGREGATORS as PRE_AGGREGATORS
    from fedcli.settings.tables.algorithms import AlgorithmEntry as AlgorithmEntry
    from fedcli.settings.tables.algorithms import check_ema_decay as check_ema_decay
    from fedcli.settings.tables.algorithms import check_weighting as check_weighting
    from fedcli.settings.tables.attacks import ATTACKS as ATTACKS
    from fedcli.settings.tables.augmentations import AUGMENTATIONS as AUGMENTATIONS
    from fedcli.settings.tables.augmentations import find_augmentation as find_augmentation
    from fedcli.settings.tables.augmentations import moments_in as moments_in
    from fedcli.settings.tables.compressors import COMPRESSORS as COMPRESSORS
    from fedcli.settings.tables.datasets import DATASETS as DATASETS
    from fedcli.settings.tables.datasets import EMBEDDED_DATASETS as EMBEDDED_DATASETS
    from fedcli.settings.tables.datasets import PUBLIC_DATASETS as PUBLIC_DATASETS
    from fedcli.settings.tables.engines import ENGINES as ENGINES
    from fedcli.settings.tables.formats import FORMATS as FORMATS
    from fedcli.settings.tables.metrics import METRICS as METRICS
    from fedcli.settings.tables.metrics import SELECTION_METRICS as SELECTION_METRICS
    from fedcli.settings.tables.metrics import MetricEntry as MetricEntry
    from fedcli.settings.tables.metrics import more_is_better as more_is_better
    from fedcli.settings.tables.metrics import own_names as own_names
    from fedcli.settings.tables.metrics import short_name as short_name
    from fedcli.settings.tables.models import MODELS as MODELS
    from fedcli.settings.tables.models import is_model_file as is_model_file
    from fedcli.settings.tables.models import split_model_file as split_model_file
    from fedcli.settings.tables.optimizers import OPTIMIZERS as OPTIMIZERS
    from fedcli.settings.tables.optimizers import OptimizerEntry as OptimizerEntry
    from fedcli.settings.tables.optimizers import check_clip_norm as check_clip_norm
    from fedcli.settings.tables.optimizers import check_learning_rate as check_learning_rate
    from fedcli.settings.tables.partitions import CHANGES as CHANGES
    from fedcli.settings.tables.partitions import PARTITIONS as PARTITIONS
    from fedcli.settings.tables.partitions import SCHEMES as SCHEMES
    from fedcli.settings.tables.partitions import describe_partition as describe_partition
    from fedcli.settings.tables.partitions import find_partition as find_partition
    from fedcli.settings.tables.partitions import opened_partition as opened_partition
    from fedcli.settings.tables.partitions import split_code_of_scheme as split_code_of_scheme
    from fedcli.settings.tables.partitions import split_partition as split_partition
    from fedcli.settings.tables.privacy import PRIVACY as PRIVACY
    from fedcli.settings.tables.samplers import SAMPLERS as SAMPLERS
    from fedcli.settings.tables.schedules import ROUNDS_OF_RUN as ROUNDS_OF_RUN
    from fedcli.settings.tables.schedules import SCHEDULES as SCHEDULES
    from fedcli.settings.tables.schedules import resolve_schedule as resolve_schedule
    from fedcli.settings.tables.secure_sums import SECURE_SUMS as SECURE_SUMS
    from fedcli.settings.vocabulary import CONSTANT as CONSTANT
    from fedcli.settings.vocabulary import NATURAL as NATURAL
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "AGGREGATORS": "fedcli.settings.tables.algorithms",
            "ALGORITHMS": "fedcli.settings.tables.algorithms",
            "ATTACKS": "fedcli.settings.tables.attacks",
            "AlgorithmEntry": "fedcli.settings.tables.algorithms",
            "AUGMENTATIONS": "fedcli.settings.tables.augmentations",
            "CHANGES": "fedcli.settings.tables.partitions",
            "COMPRESSORS": "fedcli.settings.tables.compressors",
            "CONSTANT": "fedcli.settings.vocabulary",
            "DATASETS": "fedcli.settings.tables.datasets",
            "SCHEMES": "fedcli.settings.tables.partitions",
            "EMBEDDED_DATASETS": "fedcli.settings.tables.datasets",
            "ENGINES": "fedcli.settings.tables.engines",
            "FORMATS": "fedcli.settings.tables.formats",
            "SELECTION_METRICS": "fedcli.settings.tables.metrics",
            "METRICS": "fedcli.settings.tables.metrics",
            "MODELS": "fedcli.settings.tables.models",
            "MetricEntry": "fedcli.settings.tables.metrics",
            "NATURAL": "fedcli.settings.vocabulary",
            "OPTIMIZERS": "fedcli.settings.tables.optimizers",
            "OptimizerEntry": "fedcli.settings.tables.optimizers",
            "PARTITIONS": "fedcli.settings.tables.partitions",
            "PRIVACY": "fedcli.settings.tables.privacy",
            "PUBLIC_DATASETS": "fedcli.settings.tables.datasets",
            "PRE_AGGREGATORS": "fedcli.settings.tables.algorithms",
            "ROUNDS_OF_RUN": "fedcli.settings.tables.schedules",
            "SAMPLERS": "fedcli.settings.tables.samplers",
            "SCHEDULES": "fedcli.settings.tables.schedules",
            "SECURE_SUMS": "fedcli.settings.tables.secure_sums",
            "check_clip_norm": "fedcli.settings.tables.optimizers",
            "check_ema_decay": "fedcli.settings.tables.algorithms",
            "check_learning_rate": "fedcli.settings.tables.optimizers",
            "check_weighting": "fedcli.settings.tables.algorithms",
            "describe_partition": "fedcli.settings.tables.partitions",
            "find_augmentation": "fedcli.settings.tables.augmentations",
            "find_partition": "fedcli.settings.tables.partitions",
            "is_model_file": "fedcli.settings.tables.models",
            "moments_in": "fedcli.settings.tables.augmentations",
            "more_is_better": "fedcli.settings.tables.metrics",
            "own_names": "fedcli.settings.tables.metrics",
            "opened_partition": "fedcli.settings.tables.partitions",
            "resolve_schedule": "fedcli.settings.tables.schedules",
            "short_name": "fedcli.settings.tables.metrics",
            "split_code_of_scheme": "fedcli.settings.tables.partitions",
            "split_model_file": "fedcli.settings.tables.models",
            "split_partition": "fedcli.settings.tables.partitions",
        },
    )
