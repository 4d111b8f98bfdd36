"""The results of one run of the benchmark, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.benchmarks.layer_times import LayerTimes
from fedcli.benchmarks.running import Result
from fedcli.benchmarks.timing import Spread
from fedcli.dataclass import dataclass


@dataclass(frozen=True)
class Report:
    """The results.

    Attributes:
        machine: The result of `machine.describe`.
        limits: The result of `limits.measure`, by name and number of threads.
        memory_bytes: Size of each of the two arrays with which memory was measured.
        results: One result for each job.
        layers: The layer times of a model; None: not requested.
        is_quick: Whether as little work as possible was done. Then the figures mean nothing.
        missing: Requested programs for comparison that are not installed.
    """

    machine: Mapping[str, Any]
    limits: Mapping[str, Mapping[int, Spread]]
    memory_bytes: int
    results: Sequence[Result]
    layers: LayerTimes | None
    is_quick: bool
    missing: Sequence[str]

    @property
    def sgemm_share(self) -> float:
        """The speed of NumPy's BLAS as a share of one thread's peak: the median over turns."""
        pairs = zip(self.limits["sgemm"][1].values, self.limits["fma"][1].values, strict=True)
        return Spread(tuple(reached / most for reached, most in pairs)).median

    def to_json(self) -> dict[str, Any]:
        """Returns the report for --json. Limits are operations or bytes per second."""
        return {
            "machine": dict(self.machine),
            "limits": {
                **{
                    name: {str(threads): _spread(values) for threads, values in found.items()}
                    for name, found in self.limits.items()
                },
                "sgemm_share_of_peak": self.sgemm_share,
                "memory_bytes": 2 * self.memory_bytes,
            },
            "jobs": [result.to_json() for result in self.results],
            "layers": self.layers and self.layers.to_json(),
            "quick": self.is_quick,
            "missing": list(self.missing),
        }


def _spread(values: Spread) -> dict[str, float]:
    return {"median": values.median, "min": values.least, "max": values.most}
