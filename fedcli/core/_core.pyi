from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Key = tuple[int, int, int, int, int]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Options = tuple[int, int, float, float, int]  # pictures, seed, spread, label noise, sizes
LayerRow = tuple[str | int | float | tuple[int, int, int], ...]

ISA: str
ISAS: tuple[str, ...]
HAS_OPENMP: bool
MAX_BATCH: int
MAX_LAYERS: int
STATS: np.dtype[np.void]

class CoreError(Exception): ...

class LabelFault(CoreError):  # noqa: N818
    client_index: int
    example_index: int
    label: int

class ChangedFault(CoreError): ...  # noqa: N818
class Cancelled(Exception): ...  # noqa: N818

class CancelFlag:
    num_trained: int
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool: ...

class Model:
    def __init__(self, layers: Sequence[LayerRow], num_params: int) -> None: ...

class Step:
    def __init__(
        self,
        rows: Sequence[tuple[int, Sequence[float]]],
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> None: ...
    @property
    def num_slots(self) -> int: ...
    def initial_slots(self, num_params: int) -> Float32: ...
    def apply(
        self,
        step_num: int,
        params: Float32,
        server_params: Float32,
        gradient: Float32,
        slots: Float32,
        linear: Float32 | None = None,
    ) -> None: ...

class Plan:
    def __init__(
        self, pipeline: int, epochs: int, batch_size: int, shuffle_buffer: int, max_examples: int
    ) -> None: ...
    def visits(self, num_examples: int) -> int: ...
    def batches(self, num_examples: int) -> int: ...

class Client:
    def __init__(
        self,
        pixels: npt.NDArray[Any],
        labels: npt.NDArray[np.int32],
        scale: float,
        offset: float,
        plan: Plan,
        shuffle_key: Key,
        dropout_key: Key,
        mixup_key: Key,
    ) -> None: ...

class Cohort:
    def __init__(self, clients: Sequence[Client]) -> None: ...
    def prepare(self, model: Model) -> None: ...

class DeltaSum:
    def __init__(self, model: Model) -> None: ...
    def reset(self) -> None: ...
    def total(self) -> tuple[npt.NDArray[np.float64], float]: ...

class VectorSum:
    def __init__(self, num_values: int) -> None: ...
    def add(self, vectors: Sequence[Float32], weights: npt.NDArray[np.float64]) -> None: ...
    def reset(self) -> None: ...
    def total(self) -> tuple[npt.NDArray[np.float64], float]: ...

SIZES: np.dtype[np.void]

def bound_rows(
    rows: Float32, bounds: tuple[float, float] | None, num_threads: int
) -> npt.NDArray[np.void]: ...
def sum_vectors(
    vectors: Sequence[Float32], weights: Float64, num_values: int, num_threads: int
) -> npt.NDArray[np.float64]: ...
def sum_rows(rows: Float32, weights: Float64, num_threads: int) -> npt.NDArray[np.float64]: ...

class Terms:
    def __init__(
        self,
        weighting: int,
        bounds: tuple[float, float] | None,
        frozen: tuple[Float32, int] | None,
        rate_factors: npt.NDArray[np.float64] | None = None,
        class_weights: Float32 | None = None,
        label_smoothing: float = 0.0,
    ) -> None: ...

class Team:
    def __init__(self, num_threads: int) -> None: ...
    def train_cohort(
        self,
        model: Model,
        step: Step,
        server_params: Float32,
        cohort: Cohort,
        round_num: int,
        terms: Terms,
        cancel: CancelFlag,
        delta_sum: DeltaSum | None,
        linear: Float32 | None = None,
        deltas: Float32 | None = None,
        factors: npt.NDArray[np.float64] | None = None,
        starts: Float32 | None = None,
        max_distances: npt.NDArray[np.float64] | None = None,
    ) -> npt.NDArray[np.void]: ...
    def evaluate(
        self,
        model: Model,
        params: Float32,
        cohort: Cohort,
        cancel: CancelFlag,
        starts: Float32 | None = None,
    ) -> npt.NDArray[np.void]: ...
    def predict(
        self,
        model: Model,
        params: Float32,
        cohort: Cohort,
        cancel: CancelFlag,
        starts: Float32 | None = None,
    ) -> Float32: ...

SENT: np.dtype[np.void]

class PayloadFault(CoreError): ...  # noqa: N818

class Codec:
    def __init__(
        self,
        kind: str,
        shapes: Sequence[tuple[int, ...]],
        *,
        bits: int = 0,
        levels: int = 0,
        is_short: bool = False,
        is_unbiased: bool = False,
        step: float = 0,
        clip: float = 0,
        count: int = 0,
        block: int = 0,
        rank: int = 0,
        depth: int = 0,
        width: int = 0,
        factors: Float32 | None = None,
    ) -> None: ...
    @property
    def capacity(self) -> int: ...
    def encode(self, values: Float32, key: Key) -> bytes: ...
    def decode(self, payload: bytes | npt.NDArray[np.uint8], key: Key) -> Float32: ...
    def compress_rows(
        self,
        rows: Float32,
        chosen: npt.NDArray[np.int64],
        keys: Sequence[Key],
        before: Sequence[Float32 | None] | None,
        after: Sequence[Float32] | None,
        decay: float,
        num_threads: int,
    ) -> npt.NDArray[np.void]: ...
    def encode_rows(
        self,
        rows: Float32,
        chosen: npt.NDArray[np.int64],
        keys: Sequence[Key],
        before: Sequence[Float32 | None] | None,
        decay: float,
        num_threads: int,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]: ...

def next_client_vector(scale: float, sent: Float32, delta: Float32) -> bool: ...
def add_change(before: Float32, after: Float32, change: npt.NDArray[np.float64]) -> None: ...
def divide(total: Float64, divisor: float) -> Float32: ...

class Rows:
    def __init__(
        self, matrix: Float32, chosen: npt.NDArray[np.int64], num_threads: int
    ) -> None: ...
    def trimmed_mean(
        self,
        trim: int,
        mean: Float64 | None = None,
        rounded: Float32 | None = None,
        squares: Float64 | None = None,
    ) -> None: ...
    def mean_near_median(
        self, num_nearest: int, mean: Float64 | None = None, rounded: Float32 | None = None
    ) -> None: ...
    def sign_votes(self, origin: Float64 | None = None) -> npt.NDArray[np.int32]: ...
    def move(
        self, kept: float, factors: Float64, vector: Float64, squares: Float64 | None = None
    ) -> None: ...
    def mix(
        self,
        factors: Float64,
        offsets: Float64 | None,
        offset: Float64 | None,
        out: Float32,
    ) -> None: ...
    def measure(
        self, origin: Float64 | None = None, direction: Float64 | None = None
    ) -> tuple[Float64, Float64]: ...
    def pairs(self, is_product: bool) -> Float64: ...

def least_diameter(distances: Float64, num_chosen: int) -> npt.NDArray[np.int64]: ...
def stages(model: Model) -> list[int]: ...
def run_inputs(model: Model, images: Float32, key: Key | None, first_visit: int) -> Float32: ...
def mixup_draw(
    alpha: float, key: Key, first_visit: int, num_rows: int
) -> tuple[float, npt.NDArray[np.uint32]]: ...
def batch_bytes(model: Model, batch_size: int, num_clients: int, num_threads: int) -> int: ...
def exercise(
    model: Model, params: Float32, batch_size: int, stage: int, phase: int, repeats: int
) -> None: ...
def fma_chain(num_steps: int) -> float: ...
def example_order(plan: Plan, num_examples: int, key: Key) -> npt.NDArray[np.uint32]: ...
def random_u64(key: Key, count: int) -> npt.NDArray[np.uint64]: ...
def secure_sum(
    rows: Float32,
    weights: Sequence[int],
    factors: npt.NDArray[np.float64],
    rounding_keys: Sequence[Key] | None,
    masks: Key,
    levels: tuple[float, float, int, int, float, bool],
    *,
    center: npt.NDArray[np.float64] | None = None,
    num_threads: int,
    returns_sent: bool = False,
) -> tuple[npt.NDArray[np.uint64], int, npt.NDArray[np.uint64] | None]: ...
def noised_mean(
    keys: Sequence[Key],
    factors: npt.NDArray[np.float64],
    groups: npt.NDArray[np.float64] | None,
    takes_halves: bool,
    total: npt.NDArray[np.float64],
    divisor: float,
    num_threads: int,
) -> npt.NDArray[np.float32]: ...
def synthetic_count(options: Options, client_key: int, split: int) -> int: ...
def synthetic_draw(
    options: Options, client_key: int, split: int, first: int, num: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]: ...
