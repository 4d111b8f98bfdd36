"""The pipeline of stages that changes individual updates before the aggregator combines them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import learning
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import from_arrays
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.client_states import RESIDUALS, ClientStates
from fedcli.learning.engines.deltas import ALL_ROWS
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.state import ServerState
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models.zoo import softmax_regression
from fedcli.runs.files import saved_states
from tests.kit.clients import draw

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (5, 5), 4
SIZES = (30, 1, 50, 0, 45, 8, 3, 17, 20, 11, 9)


@dataclass(frozen=True)
class _Scale:
    """Multiplies each update, and counts its rounds."""

    factor: float
    name: str = "scale"

    def init(self, num_params: int) -> dict[str, Any]:
        return {"rounds": 0}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        updates.rows[:] *= np.float32(self.factor)
        return {"rounds": state["rounds"] + 1}, {"clients": list(updates.round.client_ids)}


@dataclass(frozen=True)
class _Spoil:
    """Makes the updates of some clients non-finite."""

    clients: tuple[str, ...]
    name: str = "spoil"

    def init(self, num_params: int) -> dict[str, Any]:
        return {}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        for row, client_id in zip(updates.rows, updates.round.client_ids, strict=True):
            if client_id in self.clients:
                row[-1] = np.nan
        return {}, {}


@dataclass(frozen=True)
class _Keep:
    """Keeps the sum of a client's updates in the client states."""

    name: str = "keep"

    def init(self, num_params: int) -> dict[str, Any]:
        return {"sums": ClientStates(name=RESIDUALS)}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        following = state["sums"].next_version()
        for row, client_id in zip(updates.rows, updates.round.client_ids, strict=True):
            following.write(client_id, following.before.read(client_id, len(row)) + row)
        return {"sums": following.after}, {}


def _cohort(sizes: tuple[int, ...] = SIZES) -> tuple[Any, ...]:
    return tuple(
        from_arrays(*draw(size, seed, SHAPE, NUM_CLASSES), client_id=f"c{seed}", source="test")
        for seed, size in enumerate(sizes)
    )


def _process(
    *stages: UpdateStage,
    aggregator: str = "mean",
    algorithm: str = "fedavg",
    options: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> learning.LearningProcess:
    made = algorithms.build(
        algorithm,
        optimizers.sgd(0.5),
        optimizers.sgd(1.0),
        weighting="uniform" if algorithm in ("scaffold", "feddyn") else "num-examples",
        aggregator=aggregators.build(aggregator, options),
    )
    return learning.build_process(
        made,
        softmax_regression(SHAPE, NUM_CLASSES),
        engine=ThreadEngine(threads),
        num_clients=len(SIZES),
        stages=stages,
    )


def _rounds(process: learning.LearningProcess, cohort: Any, num_rounds: int = 3) -> ServerState:
    state = process.initialize()
    for _ in range(num_rounds):
        state = process.next(state, cohort).state
    return state


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold", "feddyn"])
def test_a_stage_that_changes_nothing_leaves_the_same_bytes(algorithm: str, threads: int) -> None:
    plain = _rounds(_process(algorithm=algorithm), _cohort())
    passed = _rounds(_process(_Scale(1.0), algorithm=algorithm, threads=threads), _cohort())
    assert plain.global_model_weights.tobytes() == passed.global_model_weights.tobytes()
    assert passed.updates == {"scale.rounds": 3}
    assert plain.updates == {}


def test_the_aggregator_gets_what_the_stages_made() -> None:
    before = _process().initialize().global_model_weights
    plain = _process().next(_process().initialize(), _cohort()).state.global_model_weights
    process = _process(_Scale(2.0), _Scale(0.25, name="again"))
    output = process.next(process.initialize(), _cohort())
    moved = output.state.global_model_weights - before
    np.testing.assert_allclose(moved, 0.5 * (plain - before), atol=1e-7)
    ids = [f"c{index}" for index in range(len(SIZES))]
    assert output.metrics["updates"] == {"scale": {"clients": ids}, "again": {"clients": ids}}


def test_clients_read_while_the_round_runs_are_named_too() -> None:
    process = _process(_Scale(1.0))
    output = process.next(process.initialize(), iter(_cohort()))
    assert output.metrics["updates"]["scale"]["clients"][-1] == f"c{len(SIZES) - 1}"


@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_updates_that_a_stage_makes_non_finite_do_not_count(aggregator: str) -> None:
    cohort = _cohort()
    others = tuple(each for each in cohort if each.client.client_id not in ("c1", "c4"))
    without = _process(aggregator=aggregator)
    spoilt = _process(_Spoil(("c1", "c4")), aggregator=aggregator)
    expected = without.next(without.initialize(), others)
    output = spoilt.next(spoilt.initialize(), cohort)
    np.testing.assert_allclose(
        output.state.global_model_weights, expected.state.global_model_weights, rtol=1e-6, atol=1e-8
    )
    assert output.metrics["client_work"]["train"]["num_non_finite_clients"] == 2


def test_bounds_apply_after_the_stages() -> None:
    bounded = _process(aggregator="norm-bound", options={"max_norm": 1e-3})
    passed = _process(_Scale(1.0), aggregator="norm-bound", options={"max_norm": 1e-3})
    wanted = bounded.next(bounded.initialize(), _cohort())
    output = passed.next(passed.initialize(), _cohort())
    np.testing.assert_allclose(
        output.state.global_model_weights, wanted.state.global_model_weights, rtol=1e-6, atol=1e-9
    )
    assert output.metrics["aggregator"] == wanted.metrics["aggregator"]
    for field in ("norm", "max_abs"):
        np.testing.assert_allclose(
            output.client_stats[field], wanted.client_stats[field], rtol=1e-6
        )


def test_an_aggregator_of_all_rows_gets_the_clients_of_its_round() -> None:
    seen = []

    class Watching:
        def init(self) -> dict[str, Any]:
            return {}

        def request(self, state: Mapping[str, Any]) -> Any:
            return ALL_ROWS

        def aggregate(self, state: Mapping[str, Any], deltas: Any) -> Any:
            seen.append(deltas.round)
            assert not deltas.rows.flags.writeable
            return deltas.weighted_mean(), {}, {}

    made = algorithms.build(
        "fedavg",
        optimizers.sgd(0.5),
        optimizers.sgd(1.0),
        weighting="uniform",
        aggregator=Watching(),
    )
    model = softmax_regression(SHAPE, NUM_CLASSES)
    process = learning.build_process(made, model, seed=5, stages=[_Scale(1.0)])
    cohort = _cohort((4, 5))
    _rounds(process, (*cohort, cohort[0]), 2)
    assert seen[1] == (5, 1, ("c0", "c1", "c0"), (0, 0, 1), 0)


def test_vectors_of_stages_and_of_the_algorithm_are_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    process = _process(_Keep(), algorithm="scaffold")
    state = saved_states.open_client_states(process.initialize(), tmp_path)
    for _ in range(2):
        state = process.next(state, _cohort()).state
    for states in saved_states.client_states_of(state):
        states.save([])
    digests = saved_states.digests_of(state)
    assert set(digests) == {"client_states", "residuals"}
    assert (tmp_path / "client_states.sqlite").is_file()
    kept = state.updates["keep.sums"].read("c2", process.model.layout.num_params)
    assert kept.any()
    reopened = saved_states.open_client_states(state, tmp_path, digests)
    again = reopened.updates["keep.sums"].read("c2", process.model.layout.num_params)
    assert again.tobytes() == kept.tobytes()
