"""What a run will need of memory, disk and time, told before any of it is taken.

Bytes are counted in vectors of the model's parameters, of which everything large is made; how many
there are at a time was measured (peaks of runs on one and more threads, tests/runs/test_needs.py
measures them again) and is here rounded down, so that a run which could go through is not refused.
Seconds are of the order of magnitude that processors of this kind reach.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from fedcli.core import machine, native
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.client_states import ClientStates
from fedcli.learning.engines.contract import BLOCK_CLIENTS
from fedcli.models.layout import ParamLayout
from fedcli.settings.run_config import RunConfig

# Vectors of float32, one value a parameter.
_FIXED = 11  # the state and the next, sums in float64, and a checkpoint as it is written
_A_THREAD = 4  # parameters, and sums in float64
_A_STATE_PART = 4  # in the state, the next, and a checkpoint as it is written
_A_CLIENT = 2.5  # of a block whose clients keep vectors: what it had, was sent, and makes of it
_A_DELTA = 2  # of a block whose deltas an aggregator wants all of

# Multiply-adds a second that one thread reaches, and bytes a second that local steps move.
_MULTIPLY_ADDS = {"generic": 2e9, "avx2": 1e10, "avx512": 1.5e10}
_MOVED_BYTES = 8e9
_BYTES_A_STEP = 12  # of a parameter: read, its gradient, written
_INDEX_BYTES = 4  # of an example in a shuffle buffer

_TOLD_BYTES = 1 << 30
_TOLD_SECONDS = 60.0
_CHECKED_BYTES = 64 << 20  # of disk: where less is missing, the write itself says so
_CLIENTS_WEIGHED = 20


@dataclass(frozen=True)
class Workload:
    """What needs follow from, beside the model.

    Attributes:
        cohort: Clients of a round.
        population: Clients that may take part.
        examples: Of a client, as many as the mean.
        threads: Threads that compute.
    """

    cohort: int
    population: int
    examples: float
    threads: int


@dataclass(frozen=True)
class Needs:
    """What a run needs, at least.

    Attributes:
        memory: Bytes by what they are for: parameters, threads, clients, batches, shuffling.
        disk: Bytes in the run's folder: checkpoints, what clients keep.
        scratch: Bytes of temporary files in a round.
        seconds: Of a round, roughly.
        summary: Of what, for messages.
    """

    memory: dict[str, int]
    disk: dict[str, int]
    scratch: int
    seconds: float
    summary: str

    def notes(self) -> list[str]:
        """Returns a line if the run needs much, else none."""
        told = []
        memory, disk = sum(self.memory.values()), sum(self.disk.values())
        if memory >= _TOLD_BYTES:
            told.append(f"{_size(memory)} of memory")
        if disk >= _TOLD_BYTES:
            told.append(f"{_size(disk)} of disk in its folder")
        if self.scratch >= _TOLD_BYTES:
            told.append(f"{_size(self.scratch)} of temporary files")
        if self.seconds >= _TOLD_SECONDS:
            told.append(f"{_duration(self.seconds)} a round")
        return [f"this run needs about {', '.join(told)}: {self.summary}"] if told else []

    def check(self, folder: Path, root: Path = Path("/")) -> None:
        """Refuses what cannot fit in memory, or on the disks that are written to.

        Args:
            folder: The run's, or where it will be.
            root: See `machine.num_processors`.

        Raises:
            ConfigError: It cannot; the line says which option makes it less.
        """
        memory = sum(self.memory.values())
        left = machine.memory_left(root)
        if left is not None and memory > left:
            largest = max(self.memory, key=lambda part: self.memory[part])
            raise ConfigError(
                f"this run needs {_size(memory)} of memory or more, {_size(left)} are left here "
                f"({self.summary}); {_MEMORY_REMEDIES[largest]}"
            )
        disk, free = sum(self.disk.values()), _free_bytes(folder)
        if free is not None and disk > max(free, _CHECKED_BYTES):
            largest = max(self.disk, key=lambda part: self.disk[part])
            raise ConfigError(
                f"this run needs {_size(disk)} of disk or more, {_size(free)} are free for "
                f"{folder} ({self.summary}); make room there, choose another --out, or "
                f"{_DISK_REMEDIES[largest]}"
            )
        if self.scratch:
            self._check_scratch()

    def _check_scratch(self) -> None:
        import tempfile  # late: few runs need it

        folder = Path(tempfile.gettempdir())
        free = _free_bytes(folder)
        if free is not None and self.scratch > free:
            raise ConfigError(
                f"this run needs {_size(self.scratch)} of temporary files or more, {_size(free)} "
                f"are free in {folder} ({self.summary}); let TMPDIR name another folder, choose "
                "fewer --clients, or another --aggregator"
            )


_MEMORY_REMEDIES = {
    "parameters": "take a smaller --model, or fewer classes (--num-classes)",
    "threads": "give fewer --threads, or take a smaller --model",
    "clients": "choose --clients below 8, an --algorithm or --aggregator that needs no vector of "
    "each client, or a smaller --model",
    "batches": "give a smaller --batch-size, or fewer --threads",
    "shuffling": "give a smaller --shuffle-buffer, fewer --epochs, or fewer --threads",
}
_DISK_REMEDIES = {
    "checkpoints": "keep fewer with --keep-checkpoints",
    "clients": "choose an --algorithm whose clients keep nothing",
}


def estimate(
    config: RunConfig, algorithm: Algorithm, layout: ParamLayout, plan: BatchPlan, load: Workload
) -> Needs:
    """Returns what a run needs.

    Args:
        config: Of the run.
        algorithm: What it trains with.
        layout: The model's.
        plan: How a client's examples become batches.
        load: How much is trained.
    """
    vector = 4 * layout.num_params
    parts = _state_parts(algorithm)
    entry = algorithm.entry
    keeps = entry.has_own_models or any(isinstance(part, ClientStates) for part in parts)
    num_state = sum(part.nbytes / 4 for part in parts if isinstance(part, np.ndarray))
    num_state += entry.has_own_weights or config.server_ema is not None
    wants_rows = algorithm.aggregator.request(algorithm.aggregator.init()).all_rows
    in_block = min(load.cohort, BLOCK_CLIENTS)
    visits = _visits(config, load.examples)
    batch_size = max(1, math.ceil(min(visits, plan.batch_size)))
    workers = max(1, min(load.threads, load.cohort))
    memory = {
        "parameters": int(vector * (_FIXED + _A_STATE_PART * num_state)),
        "threads": vector * _A_THREAD * workers,
        "clients": int(vector * in_block * (_A_CLIENT * keeps or _A_DELTA * wants_rows)),
        "batches": 4 * workers * batch_size * sum(layer.num_outputs for layer in layout.layers),
        "shuffling": _INDEX_BYTES * workers * plan.num_buffered(math.floor(load.examples)),
    }
    num_kept = config.keep_checkpoints + (config.keep_best is not None)
    kept = min(config.rounds + 1, num_kept)
    disk = {
        "checkpoints": int(vector * (1 + num_state) * kept),
        "clients": vector * _expected_clients(load, config.rounds) * keeps,
    }
    return Needs(
        memory,
        disk,
        vector * load.cohort * wants_rows,
        _seconds(layout, load.cohort * visits, batch_size, workers),
        f"{config.model} of {layout.num_params:,} parameters, {load.cohort:,} "
        f"client{'s' * (load.cohort != 1)} a round on {load.threads} "
        f"thread{'s' * (load.threads != 1)}",
    )


def workload(train: ClientData, cohort: int, population: int, threads: int) -> Workload:
    """Returns what needs follow from; some clients are looked at, without reading their examples.

    Args:
        train: Of which clients are trained.
        cohort: Clients of a round.
        population: Clients that may take part.
        threads: Threads that compute.

    Raises:
        DataError: The file is damaged.
    """
    ids = train.client_ids
    weighed = [train.num_examples(each) for each in ids[:: max(1, len(ids) // _CLIENTS_WEIGHED)]]
    mean = sum(weighed) / max(1, len(weighed))
    return Workload(max(1, cohort), population, mean, threads)


def _state_parts(algorithm: Algorithm) -> list[object]:
    """The parts of the first server state beside the weights, of a model of one parameter."""
    one = np.zeros(1, np.float32)
    server = algorithm.server_optimizer.for_tensors([(1,)])
    return [*server.init(one).values(), *algorithm.client_work.init(one).values()]


def _visits(config: RunConfig, examples: float) -> float:
    """Examples that a client processes in a round."""
    visits = examples * (config.epochs or 1)
    return visits if config.max_examples is None else min(visits, config.max_examples)


def _expected_clients(load: Workload, rounds: int) -> int:
    """How many different clients take part, where each round draws anew."""
    if load.cohort >= load.population:
        return load.population
    share = 1 - (1 - load.cohort / load.population) ** rounds
    return max(load.cohort, math.floor(load.population * share))


def _seconds(layout: ParamLayout, visits: float, batch_size: int, workers: int) -> float:
    """Of a round: what local steps compute, and what they move."""
    # Forward, to the kernel's gradient, and to that of the inputs: models.costs counts exactly.
    multiply_adds = 3 * sum(layer.multiply_adds for layer in layout.layers)
    computing = visits * multiply_adds / _MULTIPLY_ADDS.get(native.isa_name(), 1e10)
    moving = visits / batch_size * layout.num_params * _BYTES_A_STEP / _MOVED_BYTES
    return (computing + moving) / workers


def _free_bytes(folder: Path) -> int | None:
    """What is free on the disk where a folder is or will be; None: not known."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            found = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return found.f_bavail * found.f_frsize
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
