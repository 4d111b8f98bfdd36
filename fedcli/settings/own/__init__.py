"""Users' own parts: the contracts of algorithms, aggregators, samplers and so on, as one import.

The modules of this folder find parts in files and installed packages, run them and check their
results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.datasets.partitions.own import Partition as Partition
    from fedcli.errors import PartError as PartError
    from fedcli.evaluation.own_metrics import Metric as Metric
    from fedcli.federation.own_samplers import Sampler as Sampler
    from fedcli.learning.aggregators.contract import Aggregator as Aggregator
    from fedcli.learning.algorithms.client_work import ClientWork as ClientWork
    from fedcli.learning.optimizers.own import ServerOptimizer as ServerOptimizer
    from fedcli.settings.options import Option as Option
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "Aggregator": "fedcli.learning.aggregators.contract",
            "ClientWork": "fedcli.learning.algorithms.client_work",
            "Metric": "fedcli.evaluation.own_metrics",
            "Option": "fedcli.settings.options",
            "PartError": "fedcli.errors",
            "Partition": "fedcli.datasets.partitions.own",
            "Sampler": "fedcli.federation.own_samplers",
            "ServerOptimizer": "fedcli.learning.optimizers.own",
        },
    )
