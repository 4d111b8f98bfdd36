"""Processors and memory of containers, read from files as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedcli.core import machine, native

V2_MOUNT = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "40 30 0:35 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "41 30 0:36 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
MEMINFO = "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n"


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def _v2(root: Path, group: str, **files: str) -> Path:
    """Writes the files of cgroups version 2: cpu_max for `group`, above_cpu_max for its parent."""
    made = {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": f"0::{group}\n"}
    made["proc/meminfo"] = MEMINFO
    for name, content in files.items():
        above = name.startswith("above_")
        folder = "" if above else group
        made[f"sys/fs/cgroup{folder}/{name.removeprefix('above_').replace('_', '.', 1)}"] = content
    return _write(root, made)


def test_nothing_told_bounds_nothing(tmp_path: Path) -> None:
    assert machine.processor_quota(tmp_path) is None
    assert machine.memory_left(tmp_path) is None
    assert machine.num_processors(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu_max": "150000 100000\n"}, 1.5),
        ({"cpu_max": "max 100000\n"}, None),
        ({"cpu_max": "400000 100000\n", "above_cpu_max": "50000 100000\n"}, 0.5),
        ({"cpu_max": "garbled\n"}, None),
        ({"cpu_max": "100000 0\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_version_2(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert machine.processor_quota(_v2(tmp_path, "/box/inner", **files)) == quota


@pytest.mark.parametrize("shown", ["/", "/docker/f00"])
def test_bounds_of_version_1(tmp_path: Path, shown: str) -> None:
    """The mounted folder may show all control groups, or only the group of the container."""
    inside = "" if shown != "/" else "/docker/f00"
    cpu, memory = f"sys/fs/cgroup/cpu,cpuacct{inside}", f"sys/fs/cgroup/memory{inside}"
    root = _write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/mountinfo": V1_MOUNTS.format(root=shown),
            "proc/self/cgroup": "4:memory:/docker/f00\n3:cpu,cpuacct:/docker/f00\n2:pids:/x\n",
            f"{cpu}/cpu.cfs_quota_us": "250000\n",
            f"{cpu}/cpu.cfs_period_us": "100000\n",
            f"{memory}/memory.limit_in_bytes": "6000000\n",
            f"{memory}/memory.usage_in_bytes": "3000000\n",
            f"{memory}/memory.stat": "cache 5\ntotal_inactive_file 1000000\n",
        },
    )
    assert machine.processor_quota(root) == 2.5
    assert machine.memory_left(root) == 4_000_000
    (root / cpu / "cpu.cfs_quota_us").write_text("-1\n")
    (root / memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.processor_quota(root) is None
    assert machine.memory_left(root) == 8000 << 10


def test_memory_of_version_2(tmp_path: Path) -> None:
    root = _v2(
        tmp_path,
        "/box",
        memory_max="max\n",
        above_memory_max="5000000\n",
        above_memory_current="4000000\n",
        above_memory_stat="anon 3\ninactive_file 500000\n",
    )
    assert machine.memory_left(root) == 1_500_000


def test_threads_are_no_more_than_the_time_they_get(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    for quota, threads in (("20000", 1), ("100000", 1), ("100001", 2), ("99900000", allowed)):
        root = _v2(tmp_path / quota, "/", cpu_max=f"{quota} 100000\n")
        assert machine.num_processors(root) == min(threads, allowed)


def test_default_threads_follow_affinity_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert native.resolve_threads() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert native.resolve_threads() == (3 if native.has_openmp() else 1)


@pytest.mark.parametrize("given", [None, "7"])
def test_processes_that_are_started_inherit_nothing_of_ours(given: str | None) -> None:
    """fedcli sets GOMP_SPINCOUNT only while libgomp is loaded, then restores the user's value."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    code = (
        "import subprocess, sys\nimport fedcli.core.native\n"
        "print(subprocess.run([sys.executable, '-c', 'import os; "
        'print(os.environ.get(\\"GOMP_SPINCOUNT\\"))\'], capture_output=True, text=True).stdout)'
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(given)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "30000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_the_user_decides_how_threads_wait(given: dict[str, str], seen: str) -> None:
    """libgomp would obey GOMP_SPINCOUNT rather than OMP_WAIT_POLICY."""
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    code = (
        "import os, sys\n"
        "def hear(event, details):\n"
        "    if event == 'import' and details[0] == 'fedcli.core._core':\n"
        "        print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.addaudithook(hear)\n"
        "import fedcli.core.native"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == seen
