"""The typed face of the core, and its only importer: its types, its draws, its facts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core import machine
from fedcli.core.seeds import StreamKey
from fedcli.errors import ConfigError
from fedcli.settings.vocabulary import MAX_THREADS

# libgomp's idle threads spin for some 10 ms by default. On a busy machine that is where the next
# round waits: a spinning thread holds the processor that a working one needs, and rounds of 0.6 ms
# were seen to take 8. 1 ms spans the gap between two rounds. Read when libgomp is loaded, which is
# below; what other processes do that this one starts is theirs to choose.
_HAS_SPINCOUNT = "GOMP_SPINCOUNT" in os.environ
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

try:
    from fedcli.core import _core
    from fedcli.core._core import (
        MAX_LAYERS,
        STATS,
        CancelFlag,
        Cancelled,
        ChangedFault,
        Client,
        Cohort,
        DeltaSum,
        LabelFault,
        Model,
        Plan,
        Step,
        Team,
        Terms,
    )
except ImportError as err:
    if str(err).startswith("FEDCLI_ISA="):
        raise ConfigError(str(err)) from err
    if find_spec("fedcli.core._core") is not None:  # it is there and does not load
        raise
    raise ConfigError(
        f"{Path(__file__).parents[1]} is a source folder in which fedcli was not compiled, and "
        "Python found it before an installed fedcli; start Python in another folder, or run "
        "pip install -e . here"
    ) from err
finally:
    if not _HAS_SPINCOUNT:
        del os.environ["GOMP_SPINCOUNT"]

__all__ = [
    "MAX_LAYERS",
    "STATS",
    "CancelFlag",
    "Cancelled",
    "ChangedFault",
    "Client",
    "Cohort",
    "DeltaSum",
    "FrozenSlots",
    "LabelFault",
    "Model",
    "Phase",
    "Plan",
    "Step",
    "StepKind",
    "StepRow",
    "Team",
    "Terms",
    "WeightedSum",
    "add_change",
    "apply_step",
    "count_synthetic",
    "draw_synthetic",
    "example_order",
    "exercise",
    "fma_peak_run",
    "has_openmp",
    "initial_slots",
    "isa_name",
    "isa_names",
    "move_own",
    "random_u64",
    "resolve_threads",
    "stages",
]

StepRow = tuple[int, tuple[float, ...]]
# One layer: the fields of struct fed_layer in their order, the kind by its name, shapes nested.
ModelRow = tuple[str | int | float | tuple[int, int, int], ...]


class StepKind(IntEnum):
    """Kinds of rows of the core's client-step table: enum fed_step_kind, which lists options."""

    SGD = 0
    PROXIMAL = 1
    ADAM = 2
    ADAMW = 3
    YOGI = 4
    ADAGRAD = 5
    RMSPROP = 6
    GRADIENT = 7
    CLIP = 8
    LINEAR = 9
    ANCHOR = 10
    ADAFACTOR = 11


class FrozenSlots(NamedTuple):
    """The optimizer state that every local step starts from; what it makes of it is forgotten.

    Attributes:
        slots: float32 [num_slots, num_params], in the order of the rows.
        step_num: The number of each step, from 1.
    """

    slots: NDArray[np.float32]
    step_num: int


def apply_step(
    rows: Sequence[StepRow],
    step_num: int,
    params: NDArray[np.float32],
    server_params: NDArray[np.float32],
    gradient: NDArray[np.float32],
    slots: NDArray[np.float32],
    shapes: Sequence[tuple[int, ...]] = (),
) -> None:
    """Takes one local step of the core in place; `gradient` is scratch afterwards.

    Args:
        rows: The client-step table.
        step_num: Which of the client's local steps it is, from 1.
        params: [num_params], moved.
        server_params: [num_params].
        gradient: [num_params].
        slots: What `initial_slots` returned, moved.
        shapes: Of the tensors that lie side by side in `params`; only Adafactor's row looks at
            them.
    """
    _core.Step(rows, shapes).apply(step_num, params, server_params, gradient, slots)


def initial_slots(rows: Sequence[StepRow], num_params: int) -> NDArray[np.float32]:
    """Returns the state vectors of a table before a client's first step: [slots, num_params]."""
    return _core.Step(rows).initial_slots(num_params)


def move_own(scale: float, sent: NDArray[np.float32], delta: NDArray[np.float32]) -> bool:
    """Makes `scale * delta - sent` of a delta, in place.

    Args:
        scale: What the delta is multiplied with.
        sent: [num_params].
        delta: [num_params], contiguous.

    Returns:
        Whether all of it is finite.
    """
    return _core.move_own(scale, sent, delta)


def add_change(
    before: NDArray[np.float32], after: NDArray[np.float32], change: NDArray[np.float64]
) -> None:
    """Adds `after - before` to `change`; each is [num_params] and contiguous."""
    _core.add_change(before, after, change)


class WeightedSum:
    """The sum of weighted vectors as a round's: float64, in an order that nothing changes."""

    def __init__(self, num_values: int) -> None:
        """Starts at zero."""
        self._sum = _core.VectorSum(num_values)

    def add(self, vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> None:
        """Adds weight * vector, float32 [num_values], for each in turn; 0 adds nothing.

        Many at once are read once from memory each, and little else is.
        """
        self._sum.add(vectors, np.asarray(weights, np.float64))

    def reset(self) -> None:
        """Starts at zero again, in the same memory."""
        self._sum.reset()

    def total(self) -> tuple[NDArray[np.float64], float]:
        """Returns the sum, float64 [num_values], and the sum of the weights."""
        return self._sum.total()


def example_order(plan: Plan, num_examples: int, key: StreamKey) -> NDArray[np.uint32]:
    """Returns the indices of the examples a client visits, in order: uint32 [num_visits]."""
    return _core.example_order(plan, num_examples, key)


def random_u64(key: StreamKey, count: int) -> NDArray[np.uint64]:
    """Returns the first `count` values of a stream: uint64 [count]."""
    return _core.random_u64(key, count)


def count_synthetic(options: tuple[int, float, float, int], client: int, split: int) -> int:
    """Returns the examples a client of synthetic-digits holds in a split.

    Args:
        options: (seed, style spread, label noise, 0 for natural or 1 for skewed sizes).
        client: Its `client_key`.
        split: 0 train, 1 test, 2 central.
    """
    return _core.synthetic_count(options, client, split)


def draw_synthetic(
    options: tuple[int, float, float, int], client: int, split: int, first: int, num: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Returns examples first..first+num-1 of a client: pixels uint8 [num, 28, 28], labels int32.

    255 is ink. Arguments as `count_synthetic`.
    """
    return _core.synthetic_draw(options, client, split, first, num)


def isa_name() -> str:
    """Returns the instruction set the core runs on: generic, avx2 or avx512."""
    return _core.ISA


def isa_names() -> tuple[str, ...]:
    """Returns the instruction sets this build holds and this machine can run, widest last."""
    return _core.ISAS


def has_openmp() -> bool:
    """Tells whether the core was built with OpenMP, so that it has threads."""
    return _core.HAS_OPENMP


def resolve_threads(requested: int | None = None) -> int:
    """Returns the number of threads: `requested`, else OMP_NUM_THREADS, else what we may use.

    That is the processors of this process's affinity, or as many as a container's processor time is
    worth.

    A core built without OpenMP has one thread, whatever is asked.

    Raises:
        ConfigError: The number asked for is not in 1..MAX_THREADS.
    """
    if requested is not None and not 1 <= requested <= MAX_THREADS:
        raise ConfigError(f"--threads {requested}: give a number from 1 to {MAX_THREADS}")
    if not _core.HAS_OPENMP:
        return 1
    if requested is not None:
        return requested
    from_environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if from_environment.isdecimal() and int(from_environment) > 0:
        return min(int(from_environment), MAX_THREADS)
    return min(machine.num_processors(), MAX_THREADS)


class Phase(IntEnum):
    """What a stage of a model does in a local step: enum fed_phase."""

    FORWARD = 0
    BACKWARD = 1  # and the update by plain SGD
    DERIVE = 2  # gets moved weights ready for the next forward pass


def stages(rows: Sequence[ModelRow], num_params: int) -> list[int]:
    """Returns the first layer of each stage: a layer, or a convolution with the pool after it.

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        num_params: Number of parameters of all its layers.
    """
    return _core.stages(_core.Model(rows, num_params))


def exercise(
    rows: Sequence[ModelRow],
    params: NDArray[np.float32],
    batch_size: int,
    stage: int,
    phase: Phase,
    repeats: int,
) -> None:
    """Runs one phase of one stage over and over on a made-up batch, on this thread.

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        params: float32 [num_params].
        batch_size: Examples of the batch.
        stage: Which one, from 0.
        phase: What it does.
        repeats: How often, after one local step of the whole model.
    """
    model = _core.Model(rows, params.size)
    _core.exercise(model, params, batch_size, stage, phase, repeats)


def fma_peak_run(num_steps: int) -> float:
    """Runs `num_steps` groups of fused multiply-adds on one thread; returns the operations done."""
    return _core.fma_chain(num_steps)
