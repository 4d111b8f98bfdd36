"""One Ray cluster of this machine for all tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

NODE: dict[str, Any] = {"object_store_memory": 100 << 20}
MARKER = "FEDCLI_TEST_CLUSTER"  # processes of the cluster have this variable
NUM_TRIES = 3  # the node of a cluster must answer within 30 s, which a busy machine may exceed


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
