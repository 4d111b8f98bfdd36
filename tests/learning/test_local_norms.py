"""Clients that keep batch norms of their own, compared with rounds in float64."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning, models
from fedcli.core.seeds import StreamKey
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError, RunError
from fedcli.evaluation.fine_tuning import FineTuningOptions
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.batch_norms import local_indices
from fedcli.models.keras import formats
from fedcli.models.layers import Activation, BatchNorm, Conv2D, Dense, GroupNorm
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.runs import evaluating
from fedcli.runs.files import folder
from fedcli.runs.record import load_run
from fedcli.runs.trained import export_run, load_trained
from fedcli.settings import tables
from fedcli.settings.vocabulary import LOCAL_NORMS
from tests.kit import reference, reference_net
from tests.kit.clients import make_clients
from tests.kit.command_line import Fedcli
from tests.kit.training import trained

pytestmark = pytest.mark.numeric

SHAPE = (5, 4)
SIZES = (17, 1, 0, 40, 9)
RATE, SERVER_RATE = 0.1, 0.5
COHORTS = ((0, 1, 3), (3, 0, 2, 4), (1, 4, 3))
KEY = StreamKey(0, 0, 0, 0, 0)  # there is no dropout

RUN: dict[str, Any] = {
    "data": "synthetic-shapes",
    "data_options": {"clients": 6},
    "sampling": "uniform",
    "clients": "2",
    "rounds": 2,
    "max_examples": 12,
    "batch_norm": "local-statistics",
    "eval_clients": "all",
    "threads": 2,
}


def make_model() -> Model:
    specs = [
        *(Conv2D(5, 3, padding="same"), BatchNorm(0.8), Activation("tanh")),
        *(Dense(6), BatchNorm(0.6, scale=False), Activation("tanh"), Dense(3)),
    ]
    return models.sequential(specs, SHAPE, seed=4)


def clients() -> list[BatchedDataset]:
    plan = BatchPlan(epochs=2, batch_size=6, shuffle_buffer=9)
    return make_clients(SIZES, SHAPE, plan=plan)


def process_of(
    local_norms: str | None, name: str = "fedavg", num_threads: int = 2, **parts: Any
) -> learning.LearningProcess:
    entry = tables.ALGORITHMS[name]
    algorithm = algorithms.build(
        name,
        optimizers.sgd(RATE) if entry.has_local_steps else None,
        parts.pop("server", optimizers.sgd(SERVER_RATE)),
        weighting=entry.weightings[0],
        aggregator=aggregators.build(parts.pop("aggregator", "mean")),
    )
    algorithm = replace(algorithm, local_norms=local_norms, ema_decay=parts.pop("ema_decay", None))
    model = parts.pop("model", None) or make_model()
    return learning.build_process(algorithm, model, engine=ThreadEngine(num_threads), **parts)


def rounds(process: learning.LearningProcess, cohorts: Sequence[Sequence[int]] = COHORTS) -> Any:
    state, population = process.initialize(), clients()
    for cohort in cohorts:
        state = process.next(state, [population[each] for each in cohort]).state
    return state


class Reference:
    """Rounds in float64, written from the description of the method."""

    def __init__(self, layout: ParamLayout, params: NDArray[Any], kept: NDArray[Any]) -> None:
        self.layout = layout
        self.params = params.astype(np.float64)
        self.kept = kept
        self.own: dict[int, NDArray[np.float64]] = {}

    def model(self, number: int) -> NDArray[np.float64]:
        model = self.params.copy()
        model[self.kept] = self.own.get(number, model[self.kept])
        return model

    def round(self, round_num: int, cohort: Sequence[int]) -> None:
        population = clients()
        total, num_examples = np.zeros_like(self.params), 0
        for number in cohort:
            client = population[number]
            if not len(client.client):
                continue
            batches = [(each["x"], each["y"][:, 0]) for each in client.in_round(round_num)]
            one = [reference_net.Client(batches, KEY)]
            trained, stats = reference_net.fedavg_round(
                self.layout, self.model(number), one, reference.Sgd(RATE)
            )
            total += stats.num_examples * trained
            num_examples += stats.num_examples
            self.own[number] = trained[self.kept]
        mean = total / num_examples
        stepped = self.params + SERVER_RATE * (mean - self.params)
        stepped[self.kept] = mean[self.kept]
        self.params = stepped


def names_at(layout: ParamLayout, indices: NDArray[Any]) -> set[str]:
    names = np.concatenate([np.full(each.size, each.name) for each in layout.tensors])
    return set(names[indices].tolist())


def test_the_kept_parameters_are_those_of_batch_norms() -> None:
    layout = make_model().layout
    first, second = "batch_normalization/", "batch_normalization_1/"
    moving = {f"{each}moving_{what}" for each in (first, second) for what in ("mean", "variance")}
    trained = {f"{first}gamma", f"{first}beta", f"{second}beta"}
    assert names_at(layout, local_indices(layout, "local-statistics")) == moving
    assert names_at(layout, local_indices(layout, "local-layers")) == moving | trained
    assert len(local_indices(layout, "local-statistics")) == 22
    assert len(local_indices(layout, "local-layers")) == 22 + 10 + 6


@pytest.mark.parametrize("local_norms", LOCAL_NORMS)
@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_rounds_are_those_of_the_reference(local_norms: str, num_threads: int) -> None:
    model = make_model()
    process = process_of(local_norms, num_threads=num_threads)
    kept = local_indices(model.layout, local_norms)
    wanted = Reference(model.layout, model.initial_params, kept)
    state, population = process.initialize(), clients()
    for round_num, cohort in enumerate(COHORTS):
        state = process.next(state, [population[each] for each in cohort]).state
        wanted.round(round_num, cohort)
        np.testing.assert_allclose(state.global_model_weights, wanted.params, rtol=2e-5, atol=2e-5)
        for number in range(len(SIZES)):
            found = state.weights_for(f"client {number}")
            np.testing.assert_allclose(found, wanted.model(number), rtol=2e-5, atol=2e-5)
    shared = np.delete(np.arange(len(wanted.params)), kept)
    left, right = (state.weights_for(f"client {number}") for number in (0, 3))
    assert np.abs(left - right)[kept].max() > 0.01
    np.testing.assert_array_equal(left[shared], right[shared])
    np.testing.assert_array_equal(state.weights_for("client 2"), state.global_model_weights)


@pytest.mark.parametrize("local_norms", LOCAL_NORMS)
def test_threads_change_no_bit(local_norms: str) -> None:
    found = []
    for num_threads in (1, 2, 7):
        state = rounds(process_of(local_norms, num_threads=num_threads))
        each = [state.weights_for(f"client {number}") for number in range(len(SIZES))]
        found.append([one.tobytes() for one in (state.global_model_weights, *each)])
    assert found[0] == found[1] == found[2]


def test_threads_that_share_a_client_change_no_bit() -> None:
    found = set()
    for num_threads in (1, 2, 7):
        state = rounds(process_of("local-layers", num_threads=num_threads), ((3,), (3,)))
        found.add(state.weights_for("client 3").tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("local_norms", LOCAL_NORMS)
def test_the_first_round_averages_as_without_local_norms(local_norms: str) -> None:
    """All clients then start alike. Gamma and beta are averaged, not stepped by the server."""
    server = optimizers.sgd(1.0)
    plain = rounds(process_of(None, server=server), COHORTS[:1])
    state = rounds(process_of(local_norms, server=server), COHORTS[:1])
    np.testing.assert_array_equal(state.global_model_weights, plain.global_model_weights)
    later = rounds(process_of(local_norms, server=server), COHORTS[:2])
    plain = rounds(process_of(None, server=server), COHORTS[:2])
    assert np.abs(later.global_model_weights - plain.global_model_weights).max() > 1e-4


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_the_server_optimizer_does_not_act_on_what_clients_keep(name: str) -> None:
    entry = tables.ALGORITHMS[name]
    server = optimizers.adam(0.1) if name == "fedadam" else optimizers.sgd(0.3, momentum=0.9)
    assert entry.server_optimizer == server.name
    model = make_model()
    kept = local_indices(model.layout, "local-layers")
    mean = rounds(process_of(None, server=optimizers.sgd(1.0)), COHORTS[:1]).global_model_weights
    found = rounds(process_of("local-layers", name, server=server), COHORTS[:1])
    np.testing.assert_array_equal(found.global_model_weights[kept], mean[kept])
    shared = np.delete(np.arange(len(mean)), kept)
    assert np.abs(found.global_model_weights - mean)[shared].max() > 1e-3


def test_a_client_that_is_lost_keeps_its_values() -> None:
    process = process_of("local-layers")
    state = rounds(process, COHORTS[:1])
    population = clients()
    wild = [replace(population[0].client, scale=1e30, offset=0.0), population[3].client]
    cohort = [BatchedDataset(each, population[0].plan, 0) for each in wild]
    output = process.next(state, cohort)
    assert output.metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    kept = local_indices(make_model().layout, "local-layers")
    before, after = (
        [one.weights_for(f"client {number}")[kept] for number in (0, 3)]
        for one in (rounds(process_of("local-layers"), COHORTS[:1]), output.state)
    )
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).any()


def test_a_client_that_comes_twice_keeps_the_second_of_two_trainings() -> None:
    kept = local_indices(make_model().layout, "local-layers")
    once = rounds(process_of("local-layers"), ((3,), (3,)))
    twice = rounds(process_of("local-layers"), ((3,), (3, 3)))
    assert (once.weights_for("client 3") != twice.weights_for("client 3"))[kept].any()
    mean = (once.weights_for("client 3")[kept] + twice.weights_for("client 3")[kept]) / 2
    np.testing.assert_allclose(twice.global_model_weights[kept], mean, rtol=1e-5, atol=1e-6)


def test_the_proximal_term_pulls_to_a_clients_own_values() -> None:
    model, population = make_model(), clients()
    process = process_of("local-layers", "fedprox")
    state = rounds(process, ((3,), (0,)))
    before = state.weights_for("client 3")
    state = process.next(state, [population[3]]).state
    lone = process_of(None, "fedprox", server=optimizers.sgd(1.0))
    start = replace(lone.initialize(), round_num=2, global_model_weights=before)
    wanted = lone.next(start, [population[3]]).state.global_model_weights
    kept = local_indices(model.layout, "local-layers")
    np.testing.assert_allclose(
        state.weights_for("client 3")[kept], wanted[kept], rtol=1e-6, atol=1e-6
    )


def test_norms_are_of_what_a_client_changed() -> None:
    process = process_of("local-layers", measures_deltas=True)
    state = rounds(process, ((3,), (0,)))
    before = state.weights_for("client 3")
    output = process.next(state, [clients()[3]])
    lone = process_of(None, measures_deltas=True)
    start = replace(lone.initialize(), round_num=2, global_model_weights=before)
    wanted = lone.next(start, [clients()[3]])
    np.testing.assert_array_equal(output.client_stats, wanted.client_stats)


# ---- Runs ----------------------------------------------------------------------------------------


def write_model(folder: Path, momentum: float) -> str:
    specs = [Conv2D(4, 3, strides=2), BatchNorm(momentum), Activation("relu"), Dense(10)]
    model = models.sequential(specs, (32, 32, 3), seed=2)
    formats.write_keras(folder / "small.keras", model.layout, model.initial_params)
    return str(folder / "small.keras")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_model: str) -> Path:
    return trained(tmp_path_factory.mktemp("local") / "run", model=small_model, **RUN)


def test_clients_are_evaluated_with_their_own_statistics(run: Path) -> None:
    found = evaluating.evaluate_run(run, clients="all")
    closing = folder.read_evaluation(run)
    assert closing is not None
    assert closing["test"] == found.metrics
    assert "its own moving statistics, or with the global model's" in found.notes[0]
    assert found.is_seen is not None
    with load_trained(run, 1) as loaded:
        layout, state = loaded.model.layout, loaded.state
        for client_id, stats, is_seen in zip(
            found.client_ids, found.client_stats, found.is_seen, strict=True
        ):
            weights = state.weights_for(client_id)
            assert (weights != state.global_model_weights).any() == is_seen
            tested = BatchedDataset(found.data.client(client_id), BatchPlan())
            batches = [(each["x"], each["y"][:, 0]) for each in tested]
            (x, y) = (np.concatenate(each) for each in zip(*batches, strict=True))
            wanted = reference_net.logits(layout, layout.split(weights.astype(np.float64)), x)
            assert stats["num_correct"] == np.count_nonzero(wanted.argmax(axis=1) == y)
        assert 0 < found.is_seen.sum() < len(found.is_seen)


def test_predictions_and_reports_use_a_clients_own_statistics(
    run: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    file = tmp_path / "p.npz"
    found = evaluating.evaluate_run(run, clients="all", predictions_file=file)
    with np.load(file) as said:
        is_right = said["label"] == said["predicted"]
        for client_id, stats in zip(found.client_ids, found.client_stats, strict=True):
            own = is_right[said["client_id"] == client_id]
            assert np.count_nonzero(own) == stats["num_correct"]
    assert fedcli("report", run, "--html", "page.html").code == 0
    assert fedcli("inspect-clients", "--run", run, "--clients", 2).code == 0


def test_fine_tuning_starts_from_a_clients_own_values(tmp_path: Path) -> None:
    """With a momentum of 1, statistics do not move, so steps with a tiny rate change nothing."""
    options = {**RUN, "model": write_model(tmp_path, 1.0), "batch_norm": "local-layers"}
    run = trained(tmp_path / "run", **options, client_lr=0.1)
    still = FineTuningOptions(num_steps=2, learning_rate=1e-30)
    found = evaluating.evaluate_run(run, clients="all", fine_tuning=still)
    assert found.fine_tuned is not None
    np.testing.assert_array_equal(found.fine_tuned.client_stats, found.client_stats)
    with load_trained(run, 1) as loaded:
        models_of_clients = {loaded.state.weights_for(each).tobytes() for each in found.client_ids}
    assert len(models_of_clients) > 2


def test_exports_have_the_global_models_statistics(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as arrays, load_trained(run, 1) as loaded:
        tensors = loaded.model.layout.split(loaded.state.global_model_weights)
        for found, wanted in zip(arrays.values(), tensors, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert (tensors[-1] != 1).all()  # the moving variance is no longer the initial one


def test_a_run_without_its_client_states_is_refused(run: Path, tmp_path: Path) -> None:
    file = folder.latest_checkpoint(run)
    alone = tmp_path / "elsewhere" / "checkpoints" / file.name
    alone.parent.mkdir(parents=True)
    alone.write_bytes(file.read_bytes())
    with pytest.raises(RunError, match=r"client_states.sqlite is missing, and the run needs it"):
        evaluating.evaluate_run(alone)


def test_the_global_model_is_read_without_what_clients_keep(
    run: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    cleaned = tmp_path / "cleaned"
    shutil.copytree(run, cleaned)
    assert fedcli("clean", cleaned, "--client-states", "--yes").code == 0
    assert not (cleaned / "client_states.sqlite").exists()
    for path, name in ((run, "whole.npz"), (cleaned, "cleaned.npz")):
        assert fedcli("export", path, tmp_path / name).code == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "cleaned.npz") as found:
        assert set(found) == set(whole)
        for name in whole:
            np.testing.assert_array_equal(found[name], whole[name])
    model = load_run(cleaned).model()
    np.testing.assert_array_equal(model.initial_params, load_run(run).model().initial_params)


def test_clean_and_audit_know_what_clients_keep(run: Path, fedcli: Fedcli) -> None:
    done = fedcli("clean", run, "--client-states", "--dry-run")
    assert "can neither be resumed nor evaluated" in done.out
    done = fedcli("audit", run, "lira")
    assert "whose clients start from different parameters; audit a run with" in done.err
    assert len(done.err.splitlines()) == 1


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("local_norms", LOCAL_NORMS)
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": "local-only"}, "the clients of local-only cannot keep a part"),
        ({"name": "centralized"}, "the clients of centralized cannot keep a part"),
        ({"name": "fedsgd"}, "choose algorithm fedavg, fedprox, fedavgm, fedadagrad, fedadam"),
        ({"aggregator": "median"}, "aggregator median needs more than the mean"),
        ({"aggregator": "krum"}, "aggregator krum needs more than the mean"),
        ({"name": "scaffold"}, "the clients of scaffold cannot keep a part"),
        ({"ema_decay": 0.9}, "leave out server_ema"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    local_norms: str, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^batch_norm={local_norms}: .*{message}"):
        process_of(local_norms, **parts)


def test_models_without_batch_norm_have_nothing_to_keep() -> None:
    model = models.sequential([Dense(4), GroupNorm(2), Dense(3)], SHAPE)
    message = "batch_norm=local-layers: model .* has no layer BatchNorm; leave the option out"
    with pytest.raises(ConfigError, match=message):
        process_of("local-layers", model=model)
    with pytest.raises(ConfigError, match="'local': choose local-statistics or local-layers"):
        process_of("local")


def test_statistics_that_never_change_are_not_kept() -> None:
    """A model whose norms are all frozen has local layers, but no local statistics."""
    frozen, mixed = (
        models.sequential([Dense(4), BatchNorm(frozen=True), norm, Dense(3)], SHAPE)
        for norm in (BatchNorm(frozen=True), BatchNorm())
    )
    with pytest.raises(ConfigError, match="are frozen, so that no client changes their statistics"):
        process_of("local-statistics", model=frozen)
    for local_norms, model in (("local-layers", frozen), ("local-statistics", mixed)):
        assert rounds(process_of(local_norms, model=model), COHORTS[:1]).has_own_models


MINE = """
from fedcli.aggregators import SUM

class Mine:
    def init(self):
        return {}

    def request(self, state):
        return SUM

    def aggregate(self, state, deltas):
        return deltas.delta_sum / deltas.weight_sum, state, {}
"""


def test_the_command_line_refuses_before_any_work(
    fedcli: Fedcli, small_model: str, tmp_path: Path
) -> None:
    train = ("train", "--data", "synthetic-shapes", "--model", small_model, "--out", "run")
    done = fedcli(*train, "--batch-norm", "local-layers", "--aggregator", "trimmed-mean")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "choose --aggregator mean without other options of aggregation" in done.err
    done = fedcli(*train, "--batch-norm", "local-layers", "--secure-sum")
    assert "only their mean can be used, but --secure-sum needs more than the mean" in done.err
    done = fedcli(*train, "--batch-norm", "local-layers", "--pre-aggregator", "bucketing")
    assert "but --pre-aggregator needs more than the mean" in done.err
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    done = fedcli(*train, "--batch-norm", "local-layers", "--aggregator", mine)
    assert "but the aggregator Mine does more than average" in done.err
    done = fedcli(*train, "--batch-norm", "local-layers", "--compress", "top-k")
    assert "compress does more than average" in done.err
    done = fedcli(*train, "--batch-norm", "local")
    assert "local-statistics" in done.err
    assert done.code == 2
