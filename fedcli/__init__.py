"""Federated learning of image classifiers, simulated on one machine, with the arithmetic in C.

The public names load on first use, so that `fedcli --help` stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli import datasets as datasets
    from fedcli import learning as learning
    from fedcli import models as models
    from fedcli.errors import FedcliError as FedcliError
    from fedcli.errors import StopTraining as StopTraining
    from fedcli.evaluation import personalization as personalization
    from fedcli.inspection import figures as figures
    from fedcli.inspection import statistics as statistics
    from fedcli.learning import aggregators as aggregators
    from fedcli.learning import algorithms as algorithms
    from fedcli.learning import optimizers as optimizers
    from fedcli.models import layers as layers
    from fedcli.models import metrics as metrics
    from fedcli.models import own as own_models  # noqa: F401
    from fedcli.runs.evaluating import evaluate_run as evaluate_run
    from fedcli.runs.python_api import resume as resume
    from fedcli.runs.python_api import train as train
    from fedcli.runs.record import load_run as load_run
    from fedcli.settings import own as own_parts  # noqa: F401
    from fedcli.settings.options import Option as Option
    from fedcli.settings.run_config import RunConfig as RunConfig
    from fedcli.sweeps.python_api import load_study as load_study
    from fedcli.sweeps.python_api import sweep as sweep
    from fedcli.version import __version__ as __version__
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "FedcliError": "fedcli.errors",
            "Option": "fedcli.settings.options",
            "RunConfig": "fedcli.settings.run_config",
            "StopTraining": "fedcli.errors",
            "__version__": "fedcli.version",
            "evaluate_run": "fedcli.runs.evaluating",
            "load_run": "fedcli.runs.record",
            "load_study": "fedcli.sweeps.python_api",
            "resume": "fedcli.runs.python_api",
            "sweep": "fedcli.sweeps.python_api",
            "train": "fedcli.runs.python_api",
        },
        {
            "aggregators": "fedcli.learning.aggregators",
            "algorithms": "fedcli.learning.algorithms",
            "datasets": "fedcli.datasets",
            "figures": "fedcli.inspection.figures",
            "layers": "fedcli.models.layers",
            "learning": "fedcli.learning",
            "metrics": "fedcli.models.metrics",
            "models": "fedcli.models",
            "optimizers": "fedcli.learning.optimizers",
            "own_models": "fedcli.models.own",
            "own_parts": "fedcli.settings.own",
            "personalization": "fedcli.evaluation.personalization",
            "statistics": "fedcli.inspection.statistics",
        },
        "fedcli.settings.tables.former_modules:FORMER_MODULES",
    )
