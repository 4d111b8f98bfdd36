"""The provenance of a run, as config.toml records it: versions, machine and data."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.learning.engines.contract import Engine
from fedcli.runs.files import checkpoint
from fedcli.settings.options import Value
from fedcli.settings.run_config import RunConfig, may_have_code
from fedcli.version import __version__


def provenance_of(
    engine: Engine,
    fingerprint: str,
    config: RunConfig,
    num_params: int,
    class_weights: NDArray[np.float32] | None = None,
) -> dict[str, Value]:
    """Returns the table [provenance] of config.toml.

    Args:
        engine: The engine of the run.
        fingerprint: The fingerprint of its data.
        config: The config. The files of the user's code that it names are fingerprinted.
        num_params: Number of parameters of its model, which determines the bytes of its rounds.
        class_weights: Weights of the classes in the training loss, float32 [num_classes]; None:
            there are none.
    """
    inputs: dict[str, Value] = {}
    if may_have_code(config):
        from fedcli.settings.own import permission  # late: few runs have code

        inputs.update(permission.fingerprints(vars(config)))
    if class_weights is not None:
        from fedcli.learning.class_weights import digest_of  # late: few runs have them

        inputs["class_weights"] = digest_of(class_weights)
    return {
        "fedcli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": checkpoint.H5PY_VERSION,
        "cpu": _cpu_model(),
        "isa": native.isa_name(),
        "openmp": native.has_openmp(),
        "threads": engine.num_threads,
        "data": fingerprint,
        "parameters": num_params,
        **inputs,
    }


def _cpu_model() -> str:
    """The processor's name from Linux's /proc/cpuinfo; elsewhere from Python's platform module."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
