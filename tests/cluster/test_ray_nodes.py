"""Nodes that leave and join while a run trains; a cluster of several nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcli.runs import starting
from fedcli.settings import RunConfig

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")

SMALL: dict[str, Any] = {
    "data_options": {"clients": 60},
    "sampling": "uniform",
    "clients": "40",
    "max_examples": 30,
    "eval_clients": "10",
    "model": "mlp-2nn",
}
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes with a processor each, which this process has joined."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def train(out: Path, rounds: int, callback: Any = None, **options: Any) -> tuple[bytes, int]:
    """Trains, and returns the bytes of the metrics with the number of workers at the end."""
    with starting.start(RunConfig(**{**SMALL, "rounds": rounds, **options}), out) as training:
        training.complete([] if callback is None else [callback])
        workers = training._federation.workers
        num_workers = 0 if workers is None else workers.num_workers
    return (out / "metrics.jsonl").read_bytes(), num_workers


def test_a_node_that_joins_gets_a_worker_and_one_that_leaves_is_done_without(
    tmp_path: Path, cluster: Any
) -> None:
    nodes = []

    def change(result: Any) -> None:
        if result.round_num == 2:
            nodes.append(cluster.add_node(**NODE))
        elif result.round_num == 200:
            cluster.remove_node(nodes[0], allow_graceful=False)

    far, num_workers = train(
        tmp_path / "ray", 300, change, engine="ray", engine_options={"address": "auto"}
    )
    near, _ = train(tmp_path / "threads", 300)
    assert far == near
    assert num_workers == 3
