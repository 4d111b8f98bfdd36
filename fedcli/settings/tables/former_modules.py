"""The present places of modules that were at the top of fedcli before it had its subpackages.

Scripts that import them by their former names go on working; fedcli itself uses no former name.
`fedcli.lazy.reexport` reads the table. Submodules of a moved module are found below its new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# By present package, the modules that kept their names.
_MOVED = {
    "fedcli.core": ("_core", "draws", "seeds"),
    "fedcli.datasets": ("batch_plan", "batches"),
    "fedcli.datasets.download": ("archives", "part_file", "transport"),
    "fedcli.evaluation": ("predictions",),
    "fedcli.federation": ("participation", "samplers", "tff_sampling"),
    "fedcli.inspection": ("densities", "population", "suspects"),
    "fedcli.learning": ("client_states", "signatures"),
    "fedcli.learning.optimizers": ("schedules",),
    "fedcli.models": ("costs", "weights_files"),
    "fedcli.reports": ("comparison", "published"),
    "fedcli.runs": ("stopping",),
    "fedcli.runs.files": ("checkpoint", "client_records", "event_files"),
    "fedcli.settings": ("options", "presets"),
}
_RENAMED = {
    "acquisition": "fedcli.datasets.download.installing",
    "aggregators.robust": "fedcli.learning.aggregators.bounded",
    "backend": "fedcli.core.native",
    "class_measures": "fedcli.evaluation.by_class",
    "client_spread": "fedcli.evaluation.spread",
    "cohort": "fedcli.federation.cohorts",
    "config": "fedcli.settings",
    "config.fields": "fedcli.settings.run_config",
    "config.files": "fedcli.settings.config_file",
    "datasets.changes": "fedcli.datasets.partitions.changes",
    "datasets.deal": "fedcli.datasets.partitions.assignment",
    "datasets.hdf5": "fedcli.hdf5",
    "datasets.hold_out": "fedcli.datasets.partitions.hold_out",
    "datasets.label_mixes": "fedcli.datasets.partitions.label_mixes",
    "datasets.partition": "fedcli.datasets.partitions.partitioning",
    "datasets.public": "fedcli.datasets.download.public",
    "datasets.schemes": "fedcli.datasets.partitions.schemes",
    "datasets.store": "fedcli.datasets.sources.store",
    "datasets.store_writer": "fedcli.datasets.sources.store_writer",
    "datasets.synthetic": "fedcli.datasets.sources.synthetic",
    "datasets.tff_h5": "fedcli.datasets.sources.tff_h5",
    "download": "fedcli.datasets.download.fetching",
    "engine": "fedcli.learning.engines.contract",
    "engines": "fedcli.learning.engines.choosing",
    "examination": "fedcli.inspection.suspects_by_loss",
    "federation.data": "fedcli.federation.opened_data",
    "federation.opening": "fedcli.runs.opening",
    "federation.saved_states": "fedcli.runs.files.saved_states",
    "html_page": "fedcli.reports.html",
    "keras_archives": "fedcli.models.keras.archives",
    "keras_files": "fedcli.models.keras.formats",
    "keras_graphs": "fedcli.models.keras.graphs",
    "learning.client_data": "fedcli.learning.cohort_data",
    "learning.evaluating": "fedcli.learning.evaluation_process",
    "learning.training": "fedcli.learning.training_process",
    "model_sources": "fedcli.models.sources",
    "params": "fedcli.models.layout",
    "per_client": "fedcli.evaluation.client_file",
    "preparation": "fedcli.datasets.preparation",
    "python_engine": "fedcli.learning.engines.python_models",
    "registry": "fedcli.settings.tables",
    "report": "fedcli.reports.rows",
    "report_tables": "fedcli.reports.tables",
    "rounds": "fedcli.runs.starting",
    "rounds.provenance": "fedcli.runs.provenance",
    "rounds.training": "fedcli.runs.loop",
    "run_dir": "fedcli.runs.files.folder",
    "run_lines": "fedcli.runs.files.lines",
    "run_logs": "fedcli.runs.files.logs",
    "run_record": "fedcli.runs.record",
    "stacks": "fedcli.models.sizing",
    "text_tables": "fedcli.reports.text",
    "thread_engine": "fedcli.learning.engines.threads",
}

FORMER_MODULES: Mapping[str, str] = MappingProxyType(
    {**{name: f"{room}.{name}" for room, names in _MOVED.items() for name in names}, **_RENAMED}
)
