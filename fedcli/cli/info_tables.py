"""All tables of what a user can choose by name, as `fedcli info` lists them."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.settings.options import Entry
from fedcli.settings.presets import PRESETS
from fedcli.settings.tables.algorithms import AGGREGATORS, ALGORITHMS, PRE_AGGREGATORS
from fedcli.settings.tables.attacks import ATTACKS
from fedcli.settings.tables.audits import AUDITS
from fedcli.settings.tables.augmentations import AUGMENTATIONS
from fedcli.settings.tables.compressors import COMPRESSORS
from fedcli.settings.tables.datasets import DATASETS
from fedcli.settings.tables.engines import ENGINES
from fedcli.settings.tables.metrics import METRICS
from fedcli.settings.tables.models import MODELS
from fedcli.settings.tables.optimizers import OPTIMIZERS
from fedcli.settings.tables.partitions import PARTITIONS
from fedcli.settings.tables.privacy import PRIVACY
from fedcli.settings.tables.samplers import SAMPLERS
from fedcli.settings.tables.schedules import SCHEDULES
from fedcli.settings.tables.secure_sums import SECURE_SUMS

# The heading of each table, which is also its JSON key.
TABLES: Mapping[str, Mapping[str, Entry]] = {
    "datasets": DATASETS,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
    "models": MODELS,
    "augmentations": AUGMENTATIONS,
    "algorithms": ALGORITHMS,
    "aggregators": AGGREGATORS,
    "pre-aggregators": PRE_AGGREGATORS,
    "attacks": ATTACKS,
    "secure-sums": SECURE_SUMS,
    "privacy": PRIVACY,
    "metrics": METRICS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "engines": ENGINES,
    "compressors": COMPRESSORS,
    "presets": PRESETS,
    "audits": AUDITS,
}
