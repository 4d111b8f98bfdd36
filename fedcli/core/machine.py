"""Processors and memory that this process may use: limits of the machine and of its container.

A container's limits are in control groups, version 1 or 2 of the kernel's interface
(Documentation/admin-guide/cgroup-v1, cgroup-v2.rst). The limits of a group and of all its parents
apply. A limit that cannot be read is taken as absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def num_processors(root: Path = _ROOT) -> int:
    """Returns the number of processors that this process may use, 1 or more.

    It is the number of processors in the process's affinity mask, or the process's quota of
    processor time, rounded up, if that is smaller.

    Args:
        root: The root of the file system; tests give another folder.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    num = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = processor_quota(root)
    return num if quota is None else max(1, min(num, -int(-quota // 1)))


def processor_quota(root: Path = _ROOT) -> float | None:
    """Returns the quota of processor time from control groups, in processors; None: no quota.

    Args:
        root: See `num_processors`.
    """
    quotas = []
    for folder in _groups(root, "cpu"):
        text = _read(folder / "cpu.max")  # version 2: "QUOTA PERIOD", or "max PERIOD"
        if not text:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            text = " ".join(_read(folder / name) for name in names)
        quota, period = (*map(_number, text.split()), None, None)[:2]
        if quota is not None and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_left(root: Path = _ROOT) -> int | None:
    """Returns the bytes of memory that this process can still allocate; None if not known.

    Memory that the system can reclaim, such as cached files, is included.

    Args:
        root: See `num_processors`.
    """
    left = [_meminfo(root).get("MemAvailable")]
    for folder in _groups(root, "memory"):
        bound, used = _memory_group(folder)
        if bound is not None:
            left.append(max(0, bound - used))
    return min((each for each in left if each is not None), default=None)


def _memory_group(folder: Path) -> tuple[int | None, int]:
    """Returns a group's limit in bytes (None if it has none), and the bytes that it uses."""
    bound = _number(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes"))
    used = _number(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes"))
    facts = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if line)
    idle = _number(facts.get("total_inactive_file", facts.get("inactive_file", "")))
    if bound is not None and bound >= 1 << 60:  # version 1 writes a huge number for no limit
        bound = None
    return bound, max(0, (used or 0) - (idle or 0))


def _meminfo(root: Path) -> dict[str, int]:
    """Returns the entries of /proc/meminfo in bytes."""
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's group and its parents for a controller."""
    mounts = list(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        is_second = number == "0" and not controllers
        if not is_second and controller not in controllers.split(","):
            continue
        for kind, options, inside, folder in mounts:
            if (kind == "cgroup2") if is_second else (controller in options):
                yield from _above(folder, group, inside)


def _above(mount: Path, group: str, inside: str) -> Iterator[Path]:
    """Yields a group's folder and its parents up to the mount, whose root is the group `inside`."""
    prefix = inside.rstrip("/")
    below = group.removeprefix(prefix) if f"{group}/".startswith(f"{prefix}/") else ""
    parts = [part for part in below.split("/") if part not in ("", "..")]
    for num in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:num])


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, Path]]:
    """Yields mounts of control groups: type, options, the group at their root, and mount point."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        if len(fields) >= 5 and len(more) >= 3 and more[0] in ("cgroup", "cgroup2"):
            yield more[0], more[2].split(","), fields[3], root / fields[4].lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Returns a non-negative integer, or None if the text is not one."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else None
