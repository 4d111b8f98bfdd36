"""The provenance of a run, as config.toml records it: versions, machine and data."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.datasets.opening import fingerprint as fingerprint_of
from fedcli.digest import blake2b
from fedcli.errors import ConfigError, RunError
from fedcli.files import read_bounded
from fedcli.learning.engines.contract import Engine
from fedcli.runs.files import checkpoint, folder
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import Value
from fedcli.settings.run_config import DATA_FIELDS, OPTIONS, RunConfig, may_have_code
from fedcli.settings.tables.algorithms import AlgorithmEntry
from fedcli.version import __version__

_DIGEST_BYTES = 10
_MAX_FILE_BYTES = 8 << 30
# Increased when a purpose in core.seeds gets another number. Since value 2, compression, stochastic
# rounding and the noise on counts no longer share numbers with the synthetic datasets. In earlier
# runs, the provenance lacks this value.
STREAMS = 2
_DRAW_NOTHING = ("sign", "top-k")  # compressors
_FILE = "_file"  # the suffix of the names of file digests in the provenance


def provenance_of(
    engine: Engine,
    fingerprint: str,
    config: RunConfig,
    algorithm: AlgorithmEntry,
    num_params: int,
    class_weights: NDArray[np.float32] | None = None,
) -> dict[str, Value]:
    """Returns the table [provenance] of config.toml.

    Args:
        engine: The engine of the run.
        fingerprint: The fingerprint of its data.
        config: The config. The files of the user's code that it names are fingerprinted.
        algorithm: The row of its algorithm. What clients send is recorded for the user's own
            algorithm, because a report does not run the user's code.
        num_params: Number of parameters of its model, which determines the bytes of its rounds.
        class_weights: Weights of the classes in the training loss, float32 [num_classes]; None
            if there are none.
    """
    inputs: dict[str, Value] = {}
    if may_have_code(config):
        from fedcli.settings.own import permission  # lazy: few runs have code

        inputs.update(permission.fingerprints(vars(config)))
    if class_weights is not None:
        from fedcli.learning.class_weights import digest_of  # lazy: few runs have them

        inputs["class_weights"] = digest_of(class_weights)
    if (attack_data := attack_data_of(config)) is not None:
        inputs["attack_data"] = fingerprint_of(attack_data)
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
        **_own_amounts(algorithm),
        "streams": STREAMS,
        **inputs,
        **{f"{name}{_FILE}": file_digest(path, name) for name, path in files_of(config)},
    }


def _own_amounts(algorithm: AlgorithmEntry) -> dict[str, int]:
    """Returns what a client of a user's own algorithm receives and sends; {} for a built-in one."""
    if not algorithm.file:
        return {}
    from fedcli.runs.client_bytes import amounts_of  # lazy: few runs have an own algorithm

    return amounts_of(algorithm)


def attack_data_of(config: RunConfig) -> DataSource | None:
    """Returns the dataset from which the attackers take images; None if there is none."""
    name = config.attack_options.get("data")
    return DataSource(name) if name and isinstance(name, str) else None


def check_streams(config: RunConfig, origin: Mapping[str, Any], path: Path) -> None:
    """Rejects a run that would continue with random numbers other than those it began with.

    Args:
        config: The run's config.
        origin: Its provenance.
        path: Its folder.

    Raises:
        RunError: It was begun by an earlier version, which drew other numbers for its options.
    """
    if origin.get("streams") == STREAMS:
        return
    from fedcli.settings.tables.secure_sums import STOCHASTIC  # lazy: only older runs need it

    rounding = config.secure_sum_options.get("rounding")
    changed = [
        option
        for option, is_changed in (
            (f"--compress {config.compress}", config.compress not in (None, *_DRAW_NOTHING)),
            (f"--dp {config.dp}", config.dp == "gaussian-adaptive"),
            ("--secure-sum", config.secure_sum and rounding == STOCHASTIC),
        )
        if is_changed
    ]
    if changed:
        raise RunError(
            f"{path} was begun by an earlier version, which drew other random numbers for "
            f"{' and '.join(changed)}; finish it with that version, or train it anew with "
            f"--config {path / folder.CONFIG}"
        )


def files_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields the options that name a file other than data or code, with the file."""
    for name, value in vars(config).items():
        is_path = OPTIONS[name].kind.is_path
        is_file = is_path is not None and isinstance(value, str) and is_path(value)
        if is_file and name not in DATA_FIELDS and ".py" not in value:
            yield name, value


def file_digest(path: str, option: str) -> str:
    """Returns the BLAKE2b of the content of a file that an option names. Raises ConfigError."""
    try:
        content = read_bounded(Path(path), _MAX_FILE_BYTES)
    except OSError as err:
        raise ConfigError(f"{option} {path}: cannot be read ({err.strerror})") from err
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def recorded_digest(provenance: Mapping[str, Any], option: str) -> str | None:
    """Returns the digest of an option's file when the run began; None if it is not recorded."""
    digest = provenance.get(f"{option}{_FILE}")
    return digest if isinstance(digest, str) else None


def _cpu_model() -> str:
    """The processor's name from Linux's /proc/cpuinfo; elsewhere from Python's platform module."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
