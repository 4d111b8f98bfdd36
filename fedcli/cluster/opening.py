"""Opens the workers of a run, and checks that they compute the same bytes as the driver."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli import datasets
from fedcli.cluster import probe
from fedcli.cluster.engine import ClusterEngine
from fedcli.cluster.messages import WorkerDescription, WorkerSetup
from fedcli.cluster.ray_workers import Placement, RayWorkers
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, RunError
from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.models.model import Model
from fedcli.settings.data_source import IN_MEMORY, DataSource
from fedcli.settings.options import is_code, resolve
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.engines import ENGINES, RAY
from fedcli.version import __version__

_SHIP = "ship"


def open_workers(
    config: RunConfig,
    model: Model,
    local: Engine,
    splits: Mapping[str, ClientData],
    cancel: CancelFlag | None = None,
) -> tuple[Engine, RayWorkers]:
    """Starts the workers of a run.

    Args:
        config: A valid config.
        model: Its model.
        local: The engine that computes the clients that are not sent to workers.
        splits: Its data.
        cancel: Ends the wait for the workers.

    Returns:
        The engine that uses them, and the workers, which the caller closes.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: Ray is not installed, or the model or the data cannot be sent to workers.
        RunError: No worker starts, or one would compute other bytes.
    """
    options = resolve(ENGINES[RAY], config.engine_options)
    if choosing.is_python(model):
        raise ConfigError(
            f"--engine ray computes only models of fedcli's layers, and {model.name} is a Python "
            "model; choose --engine threads"
        )
    source = None if options["data"] == _SHIP else _readable(config.data_source)
    place = Placement(
        str(options["address"]),
        int(str(options["workers"])) or None,
        int(str(options["threads"])) or None,
        float(str(options["start_seconds"])),
    )
    check = _Check(source)
    workers = RayWorkers(place, WorkerSetup(source, num_threads=1), check, cancel)
    return ClusterEngine(workers, local, splits, ships_data=source is None), workers


def _readable(source: DataSource) -> DataSource:
    """The data source, if workers can open it. Raises ConfigError if not."""
    if str(source.data).startswith(IN_MEMORY) or is_code(source.partition):
        what = source.data if str(source.data).startswith(IN_MEMORY) else source.partition
        raise ConfigError(
            f"the workers of a cluster cannot open {what}; send them the clients with "
            "--engine-option data=ship"
        )
    return source


class _Check:
    """Rejects workers with another version, instruction set, data or arithmetic."""

    def __init__(self, source: DataSource | None) -> None:
        """Describes this machine. `source`: the data that workers read; None if they read none."""
        self._source = source
        self._fingerprint = None if source is None else datasets.fingerprint(source)
        self._probe = probe.digest()

    def __call__(self, description: WorkerDescription) -> None:
        """Raises RunError for a worker that would compute other bytes."""
        if description.fedcli != __version__:
            raise RunError(
                f"{description.host} has fedcli {description.fedcli}, but this machine has "
                f"{__version__}; install the same version on all nodes"
            )
        if description.isa != native.isa_name():
            raise RunError(
                f"{description.host} computes with {description.isa}, but this machine computes "
                f"with {native.isa_name()}; set FEDCLI_ISA to an instruction set that all nodes "
                f"have: "
                f"FEDCLI_ISA={description.isa} fedcli train ..."
            )
        if description.fingerprint != self._fingerprint:
            assert self._source is not None
            raise RunError(
                f"{description.host} has other data at {self._source.data} than this machine; copy "
                "the data there, or use --engine-option data=ship"
            )
        if description.probe != self._probe:
            raise RunError(
                f"{description.host} has the same version and instruction set as this machine, but "
                "computes other bytes; build fedcli with the same compiler and C library on all "
                "nodes"
            )
