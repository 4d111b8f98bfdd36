"""One Ray cluster of this machine for all tests of a session, and its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

NODE: dict[str, Any] = {"object_store_memory": 100 << 20}
MARKER = "FEDCLI_TEST_CLUSTER"  # processes of the cluster have this variable
NUM_TRIES = 3  # the node of a cluster must answer within 30 s, which a busy machine may exceed


def processes_titled(title: str) -> Iterator[Path]:
    """Yields the folder in /proc of each process of the cluster whose title begins with `title`.

    Ray sets the title of a process to the call that it executes.
    """
    marker = f"{MARKER}={os.environ[MARKER]}".encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # the process has ended, or is not a process of this user
            if not (entry / "cmdline").read_bytes().startswith(title.encode()):
                continue
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                yield entry


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of one node with two processors, which this process has joined."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ[MARKER] = str(os.getpid())
    made = _make_cluster()
    try:
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def _make_cluster() -> Any:
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 2, "include_dashboard": False}
    for _ in range(NUM_TRIES - 1):
        with suppress(Exception):  # Ray raises no class of its own
            return Cluster(initialize_head=True, head_node_args=head)
    return Cluster(initialize_head=True, head_node_args=head)
