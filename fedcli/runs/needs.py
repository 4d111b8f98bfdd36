"""Estimates the memory, disk space and time that a run needs, before it starts.

Everything large consists of vectors with one value for each parameter of the model, so memory is
counted in such vectors. Their largest number at a time was measured from the peak memory of runs on
one and on several threads; tests/runs/test_needs.py measures it again. The numbers are rounded
down, so that no run is refused that could succeed. Seconds are correct to an order of magnitude.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcli.core import machine, native
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.contract import first_state
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.client_states import ClientStates
from fedcli.learning.engines.contract import BLOCK_CLIENTS
from fedcli.models.layout import ParamLayout
from fedcli.settings.run_config import RunConfig

if TYPE_CHECKING:
    from fedcli.learning.updates.contract import UpdateStage

# Numbers of float32 vectors with one value for each parameter.
_FIXED = 11  # two states, sums in float64, and a checkpoint while it is written
_PER_THREAD = 3.9  # for each thread: parameters, and sums in float64
_PER_STATE_PART = 4  # for each vector of the state: two states, and a checkpoint being written
_PER_CLIENT = 2.5  # for each client in a block, if clients keep vectors: old, sent and new ones
_PER_DELTA = 2  # for each client in a block, if the aggregator needs all deltas

# Multiply-adds per second of one thread, and bytes per second that local steps move.
_MULTIPLY_ADDS = {"generic": 2e9, "avx2": 1e10, "avx512": 1.5e10}
_MOVED_BYTES = 8e9
_BYTES_PER_STEP = 12  # for each parameter: read it, read its gradient, write it
_INDEX_BYTES = 4  # for each example in a shuffle buffer

# Needs above these are mentioned in a note.
_NOTED_BYTES = 1 << 30
_NOTED_SECONDS = 60.0
_CHECKED_BYTES = 64 << 20  # smaller disk needs are not checked; the write itself reports an error
_CLIENTS_SAMPLED = 20  # the mean number of examples is estimated from this many clients or more


@dataclass(frozen=True)
class Workload:
    """The size of the training, beside the model.

    Attributes:
        cohort: Number of clients in a round.
        population: Number of clients that may take part.
        examples: Mean number of examples of a client.
        threads: Number of threads.
    """

    cohort: int
    population: int
    examples: float
    threads: int


@dataclass(frozen=True)
class Needs:
    """A lower bound of what a run needs.

    Attributes:
        memory: Bytes by purpose: parameters, threads, clients, batches, shuffling.
        disk: Bytes in the run's folder by purpose: checkpoints, clients (their states).
        scratch: Bytes of temporary files in a round.
        seconds: Seconds of a round, roughly.
        summary: Describes the model and the training, for messages.
    """

    memory: dict[str, int]
    disk: dict[str, int]
    scratch: int
    seconds: float
    summary: str

    def notes(self) -> list[str]:
        """Returns one line if the run needs much, else an empty list."""
        large = []
        memory, disk = sum(self.memory.values()), sum(self.disk.values())
        if memory >= _NOTED_BYTES:
            large.append(f"{_size(memory)} of memory")
        if disk >= _NOTED_BYTES:
            large.append(f"{_size(disk)} of disk in its folder")
        if self.scratch >= _NOTED_BYTES:
            large.append(f"{_size(self.scratch)} of temporary files")
        if self.seconds >= _NOTED_SECONDS:
            large.append(f"{_duration(self.seconds)} a round")
        return [f"this run needs about {', '.join(large)}: {self.summary}"] if large else []

    def check(self, folder: Path, root: Path = Path("/")) -> None:
        """Checks that the run fits in memory and on the disks to which it writes.

        Args:
            folder: The run's folder, which need not exist yet.
            root: See `machine.num_processors`.

        Raises:
            ConfigError: It does not fit. The message says which option makes it smaller.
        """
        memory = sum(self.memory.values())
        left = machine.memory_left(root)
        if left is not None and memory > left:
            largest = max(self.memory, key=lambda part: self.memory[part])
            raise ConfigError(
                f"this run needs at least {_size(memory)} of memory, but {_size(left)} are free "
                f"({self.summary}); {_MEMORY_REMEDIES[largest]}"
            )
        disk, free = sum(self.disk.values()), _free_bytes(folder)
        if free is not None and disk > max(free, _CHECKED_BYTES):
            largest = max(self.disk, key=lambda part: self.disk[part])
            raise ConfigError(
                f"this run needs at least {_size(disk)} of disk, but {_size(free)} are free for "
                f"{folder} ({self.summary}); make room there, choose another --out, or "
                f"{_DISK_REMEDIES[largest]}"
            )
        if self.scratch:
            self._check_scratch()

    def _check_scratch(self) -> None:
        import tempfile  # lazy: few runs need it

        folder = Path(tempfile.gettempdir())
        free = _free_bytes(folder)
        if free is not None and self.scratch > free:
            raise ConfigError(
                f"this run needs at least {_size(self.scratch)} for temporary files, but "
                f"{_size(free)} are free in {folder} ({self.summary}); let TMPDIR name another "
                "folder, choose fewer --clients, or another --aggregator"
            )


_MEMORY_REMEDIES = {
    "parameters": "take a smaller --model, or fewer classes (--num-classes)",
    "threads": "give fewer --threads, or take a smaller --model",
    "clients": "choose fewer --clients (below 8), an --algorithm, --aggregator or --compress that "
    "needs no vector of each client, or a smaller --model",
    "batches": "give a smaller --batch-size, or fewer --threads",
    "shuffling": "give a smaller --shuffle-buffer, fewer --epochs, or fewer --threads",
}
_DISK_REMEDIES = {
    "checkpoints": "keep fewer checkpoints (--keep-checkpoints)",
    "clients": "choose an --algorithm, --aggregator, --compress and --batch-norm that keep "
    "nothing for each client",
}


def estimate(
    config: RunConfig,
    algorithm: Algorithm,
    stages: Sequence[UpdateStage],
    layout: ParamLayout,
    plan: BatchPlan,
    load: Workload,
) -> Needs:
    """Estimates the needs of a run.

    Args:
        config: Config of the run.
        algorithm: Its algorithm.
        stages: The stages that change individual updates before they are aggregated.
        layout: Layout of the model's parameters.
        plan: How a client's examples become batches.
        load: The size of the training.

    Raises:
        ConfigError: Batches have more examples than the core takes.
    """
    vector = 4 * layout.num_params
    parts = _state_parts(algorithm, stages)
    entry = algorithm.entry
    keeps = entry.has_own_models or any(isinstance(part, ClientStates) for part in parts)
    kept_vector = vector
    if algorithm.local_norms is not None:
        from fedcli.models.batch_norms import local_indices  # lazy: few runs keep any

        keeps, kept_vector = True, 4 * len(local_indices(layout, algorithm.local_norms))
    num_state = sum(part.nbytes / 4 for part in parts if isinstance(part, np.ndarray))
    num_state += entry.has_own_weights or config.server_ema is not None
    request = algorithm.aggregator.request(algorithm.aggregator.init())
    needs_rows = request.all_rows or bool(stages)
    in_block = min(load.cohort, BLOCK_CLIENTS)
    visits = _visits(config, load.examples)
    batch_size = plan.largest_batch(load.examples, f"a client of {load.examples:,.0f} examples")
    workers = max(1, min(load.threads, load.cohort))
    memory = {
        "parameters": int(vector * (_FIXED + _PER_STATE_PART * num_state)),
        "threads": int(vector * _PER_THREAD * workers),
        "clients": int(vector * in_block * (_PER_CLIENT * keeps or _PER_DELTA * needs_rows)),
        "batches": _batch_bytes(layout, batch_size, load),
        "shuffling": _INDEX_BYTES * workers * plan.num_buffered(math.floor(load.examples)),
    }
    num_kept = config.keep_checkpoints + (config.keep_best is not None)
    kept = min(config.rounds + 1, num_kept)
    disk = {
        "checkpoints": int(vector * (1 + num_state) * kept),
        "clients": kept_vector * _expected_clients(load, config.rounds) * keeps,
    }
    return Needs(
        memory,
        disk,
        vector * load.cohort * needs_rows * (2 if config.pre_aggregator else 1),
        _seconds(layout, load.cohort * visits, batch_size, workers),
        f"{config.model} of {layout.num_params:,} parameters, {load.cohort:,} "
        f"client{'s' * (load.cohort != 1)} a round on {load.threads} "
        f"thread{'s' * (load.threads != 1)}",
    )


def workload(train: ClientData, cohort: int, population: int, threads: int) -> Workload:
    """Returns the size of the training; the mean number of examples is that of a few clients.

    Args:
        train: The train split; no examples are read.
        cohort: Number of clients in a round.
        population: Number of clients that may take part.
        threads: Number of threads.

    Raises:
        DataError: The file is damaged.
    """
    ids = train.client_ids
    counts = [train.num_examples(each) for each in ids[:: max(1, len(ids) // _CLIENTS_SAMPLED)]]
    mean = sum(counts) / max(1, len(counts))
    return Workload(max(1, cohort), population, mean, threads)


def _batch_bytes(layout: ParamLayout, batch_size: int, load: Workload) -> int:
    """The bytes of the batches that are processed at a time; 0 for a model that is Python code."""
    if not layout.layers:
        return 0
    return native.batch_bytes(
        layout.core_rows(),
        layout.num_params,
        batch_size,
        num_clients=load.cohort,
        num_threads=load.threads,
    )


def _state_parts(algorithm: Algorithm, stages: Iterable[UpdateStage]) -> list[object]:
    """The parts of the initial server state beside the weights, for a model of one parameter."""
    one = np.zeros(1, np.float32)
    server = algorithm.server_optimizer.for_tensors([(1,)])
    return [
        *server.init(one).values(),
        *algorithm.client_work.init(one).values(),
        *first_state(algorithm.aggregator, 1).values(),
        *(part for stage in stages for part in stage.init(1).values()),
    ]


def _visits(config: RunConfig, examples: float) -> float:
    """Examples that a client processes in a round."""
    visits = examples * (config.epochs or 1)
    return visits if config.max_examples is None else min(visits, config.max_examples)


def _expected_clients(load: Workload, rounds: int) -> int:
    """The expected number of different clients that take part if each round draws a new cohort."""
    if load.cohort >= load.population:
        return load.population
    share = 1 - (1 - load.cohort / load.population) ** rounds
    return max(load.cohort, math.floor(load.population * share))


def _seconds(layout: ParamLayout, visits: float, batch_size: int, workers: int) -> float:
    """Returns the seconds of a round: those to compute, and those to move parameters."""
    # Three passes: forward, gradient of the kernel, gradient of the inputs. models.costs is exact.
    multiply_adds = 3 * sum(layer.multiply_adds for layer in layout.layers)
    computing = visits * multiply_adds / _MULTIPLY_ADDS.get(native.isa_name(), 1e10)
    moving = visits / batch_size * layout.num_params * _BYTES_PER_STEP / _MOVED_BYTES
    return (computing + moving) / workers


def _free_bytes(folder: Path) -> int | None:
    """Returns the free bytes on the disk where a folder is or will be; None if not known."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            disk = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize
    return None


def _size(num_bytes: float) -> str:
    """`512 MB` or `5.1 GB`."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    """`40 seconds`, `5 minutes` or `3 hours`."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
