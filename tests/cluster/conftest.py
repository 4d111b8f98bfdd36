"""One Ray cluster of this machine for all tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

NODE: dict[str, Any] = {"object_store_memory": 100 << 20}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of one node with two processors, which this process has joined."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 2, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
