"""Nodes that leave and join while a run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcli.runs import starting
from fedcli.settings import RunConfig

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")

ROUNDS = 12
SMALL: dict[str, Any] = {
    "data_options": {"clients": 60},
    "sampling": "uniform",
    "clients": "40",
    "rounds": ROUNDS,
    "max_examples": 30,
    "eval_clients": "10",
    "model": "mlp-2nn",
}
JOIN_SECONDS = 600.0  # enough for busy machines


def test_a_node_that_joins_gets_a_worker_and_one_that_leaves_is_replaced(
    tmp_path: Path, cluster: Any
) -> None:
    with starting.start(RunConfig(**SMALL), tmp_path / "threads") as training:
        training.complete()
    nodes = []
    numbers = []
    engine: dict[str, Any] = {"address": "auto", "threads": 1, "workers": 0}
    engine["start_seconds"] = JOIN_SECONDS
    far = RunConfig(**SMALL, engine="ray", engine_options=engine)
    with starting.start(far, tmp_path / "ray") as training:
        workers = training._federation.workers
        assert workers is not None

        def change(result: Any) -> None:
            numbers.append(workers.num_workers)
            if result.round_num == 2:
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
            elif result.round_num == 3:  # the worker of the new node was started in this round
                calls = list(workers._joining)
                if calls:
                    workers._ray.wait(calls, num_returns=len(calls), timeout=JOIN_SECONDS)
            elif result.round_num == 7:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        training.complete([change])
    # Until the cluster knows that the node is gone, it may place the actors of later tests there.
    cluster.wait_for_nodes(JOIN_SECONDS)
    # Still two after the node was removed, because Ray restarts the lost worker.
    assert numbers[:2] == [1, 1]
    assert numbers[3:] == [2] * (ROUNDS - 3)
    names = ("metrics.jsonl", "evaluation.json")
    assert [(tmp_path / "ray" / each).read_bytes() for each in names] == [
        (tmp_path / "threads" / each).read_bytes() for each in names
    ]
