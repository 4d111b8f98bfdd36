"""Describes the machine and the software versions of a benchmark."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from fedcli.core import native
from fedcli.version import __version__

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe(thread_counts: tuple[int, ...], packages: Iterable[str]) -> dict[str, Any]:
    """Returns the machine and the versions, by name.

    Args:
        thread_counts: The numbers of threads that are measured.
        packages: Names of installed packages whose versions are listed.
    """
    return {
        "cpu": cpu_name(_CPUINFO),
        "cores": native.resolve_threads(None),
        "caches": cache_sizes(_CACHES),
        "isa": native.isa_name(),
        "openmp": native.has_openmp(),
        "threads": list(thread_counts),
        "platform": f"{platform.system()} {platform.machine()}",
        "fedcli": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def cpu_name(cpuinfo: Path) -> str:
    """Returns the processor's model name, or another name from the system."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = [facts[name] for name in ("cpu family", "model", "stepping") if name in facts]
    suffix = f" (family {'/'.join(numbers)})" if len(numbers) == 3 else ""
    return facts["model name"] + suffix


def cache_sizes(folder: Path) -> dict[str, str]:
    """Returns the sizes of a core's data caches by level, such as {"L2": "2048K"}; may be empty."""
    sizes = {}
    for cache in sorted(folder.glob("index*")):
        try:
            kind, level, size = (
                (cache / name).read_text().strip() for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes
