"""Runs with robust aggregators: refusals, skipped rounds and their notes, the root set."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import datasets, learning, settings
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError
from fedcli.federation.root_data import ROOT_ID, draw_root_data
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.client_states import HISTORIES, SUFFIX
from fedcli.models.metrics import flatten
from fedcli.models.zoo import softmax_regression
from fedcli.reports.rows import round_row
from fedcli.reports.verdict import verdict
from fedcli.runs import starting
from fedcli.runs.files import checkpoint, client_records, folder
from fedcli.settings import tables
from tests.kit.clients import draw
from tests.kit.training import make_config, train, trained

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (4, 4), 3


def _clients(num: int) -> list[BatchedDataset]:
    return [
        from_arrays(
            *draw(20 + seed, seed, SHAPE, NUM_CLASSES), client_id=f"c{seed}"
        ).client.preprocess(batch_size=10, seed=5)
        for seed in range(num)
    ]


def _process(
    aggregator: Any, algorithm: str = "fedavg", root: BatchedDataset | None = None
) -> learning.LearningProcess:
    entry = tables.ALGORITHMS[algorithm]
    server = optimizers.build(
        entry.server_optimizer or "sgd", entry.server_lr, entry.server_options
    )
    built = algorithms.build(
        algorithm,
        optimizers.sgd(0.1) if entry.has_local_steps else None,
        server,
        weighting=entry.weightings[0],
        aggregator=aggregator,
    )
    model = softmax_regression(SHAPE, NUM_CLASSES)
    return learning.build_process(built, model, num_clients=9, root_data=root)


# ---- Refused before any work ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"aggregator": "krum", "aggregator_options": {"num_byzantine": 1}},
            "--aggregator krum: with 1 wrong delta it needs at least 5 deltas in a round, not 4; "
            "choose more clients or a smaller num_byzantine",
        ),
        (
            {"aggregator": "trimmed-mean", "aggregator_options": {"trim": 2}},
            "--aggregator trimmed-mean: with 2 wrong deltas "
            "it needs at least 5 deltas in a round, not 4; "
            "choose more clients or a smaller trim",
        ),
        (
            {"aggregator": "bulyan", "aggregator_options": {"num_byzantine": 0.25}},
            "--aggregator bulyan: with 1 wrong delta it needs at least 7 deltas in a round, not 4; "
            "choose more clients or a smaller num_byzantine",
        ),
        (
            {"aggregator": "krum", "algorithm": "centralized"},
            "--aggregator krum: with 0 wrong deltas it needs at least 3 deltas in a round, not 1; "
            "choose more clients or a smaller num_byzantine",
        ),
        (
            {"aggregator": "multi-krum", "aggregator_options": {"select": 5}},
            "--aggregator multi-krum: select 5 is more than the 4 of 4 deltas that are assumed "
            "correct; choose more clients or a smaller select",
        ),
        (
            {
                "aggregator": "krum",
                "pre_aggregator": "bucketing",
                "pre_aggregator_options": {"size": 3},
            },
            "--pre-aggregator bucketing and --aggregator krum: the 4 deltas of a round become 2; "
            "with 0 wrong deltas "
            "it needs at least 3 deltas in a round, not 2; choose more clients or a smaller "
            "num_byzantine",
        ),
        (
            {"aggregator": "fltrust", "aggregator_options": {"root_examples": 10**6}},
            "--aggregator-option root_examples=1000000: the train split has ",
        ),
        (
            {"aggregator": "foolsgold", "clients": "1"},
            "--aggregator foolsgold: it compares clients, but a round has 1; choose 2 clients or "
            "more",
        ),
        (
            {"aggregator": "foolsgold", "pre_aggregator": "nnm"},
            "--pre-aggregator nnm with --aggregator foolsgold: foolsgold needs the deltas that "
            "clients sent, which a pre-aggregator mixes or clips; choose mean, median or another "
            "robust rule",
        ),
        (
            {"aggregator": "norm-bound", "pre_aggregator": "arc"},
            "--pre-aggregator arc with --aggregator norm-bound: norm-bound bounds the deltas of "
            "individual clients; choose mean, median or another robust rule",
        ),
    ],
)
def test_impossible_options_are_refused_before_there_is_a_run(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        starting.start(make_config(**values), tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"aggregator": "krum", "aggregator_options": {"num_byzantine": 0.7}},
            "--aggregator-option: krum: num_byzantine 0.7: choose a share below 0.5 or a whole "
            "number",
        ),
        (
            {"aggregator": "trimmed-mean", "aggregator_options": {"trim": 0.5}},
            "--aggregator-option: trimmed-mean: trim 0.5: choose a share below 0.5 or a whole "
            "number",
        ),
        (
            {"aggregator": "geometric-median", "aggregator_options": {"start": "zero"}},
            "--aggregator-option: geometric-median option start 'zero': choose median or mean",
        ),
        (
            {"aggregator": "centered-clipping", "aggregator_options": {"radius": 0.0}},
            "--aggregator-option: centered-clipping option radius 0.0: choose a finite number",
        ),
        (
            {"pre_aggregator_options": {"size": 2}},
            "--pre-aggregator-option size is for --pre-aggregator; choose one of arc, bucketing, "
            "nnm",
        ),
        (
            {"pre_aggregator": "bucketing", "pre_aggregator_options": {"size": 0}},
            "--pre-aggregator-option: bucketing option size 0: choose a whole number",
        ),
        (
            {"pre_aggregator": "nnm", "pre_aggregator_options": {"num_byzantine": 1.5}},
            "--pre-aggregator-option: nnm: num_byzantine 1.5: choose a share below 0.5 or a whole "
            "number",
        ),
    ],
)
def test_options_that_are_not_allowed_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.from_options(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_geometric_median_is_also_called_rfa(tmp_path: Path) -> None:
    assert aggregators.build("rfa") == aggregators.build("geometric-median")
    found = [
        folder.read_metrics(trained(tmp_path / name, aggregator=name, rounds=2))
        for name in ("rfa", "geometric-median")
    ]
    assert found[0] == found[1]


# ---- Rounds --------------------------------------------------------------------------------------


def test_each_round_records_the_kept_clients(tmp_path: Path) -> None:
    out = trained(tmp_path / "run", aggregator="multi-krum", aggregator_options={"select": 2})
    ids = {f"s{index:07d}" for index in range(4)}
    for line in folder.read_metrics(out):
        found = line["aggregator"]
        assert found["skipped"] == 0
        assert found["num_kept"] == len(set(found["kept"])) == 2
        assert set(found["kept"]) <= ids


def test_a_skipped_round_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    """So many clients drop out that fewer are left than Krum needs."""
    values: dict[str, Any] = {
        "aggregator": "krum",
        "client_dropout": 0.9,
        "seed": 3,
    }
    config = make_config(**values)
    closing = train(tmp_path / "run", config)
    lines = folder.read_metrics(tmp_path / "run")
    assert [line["aggregator"]["skipped"] for line in lines] == [1] * 6
    assert [line["aggregator"]["num_skipped"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(round_row(line).is_skipped for line in lines)
    assert closing["test"]["client_work"]["eval"]["current_round_metrics"]["loss"] == pytest.approx(
        np.log(10)
    )
    assert verdict(lines, closing, config) == (
        "none of 6 rounds changed the model: --aggregator krum got too few valid updates, or "
        "trusted none; choose more --clients, or another aggregator"
    )


@pytest.mark.parametrize("name", [*tables.AGGREGATORS])
def test_every_aggregator_trains_with_metrics_csv_and_client_records(
    tmp_path: Path, name: str
) -> None:
    """metrics.csv has the aggregator's metrics, and clients.h5 a row of each client and round."""
    run = trained(tmp_path / "run", aggregator=name, csv=True, record_clients=True, rounds=2)
    lines = [flatten(line) for line in folder.read_metrics(run)]
    rows = list(csv.DictReader((run / folder.METRICS_CSV).read_text().splitlines()))
    assert [
        {key: json.loads(value) for key, value in row.items() if value} for row in rows
    ] == lines
    assert [line["round"] for line in lines] == [1, 2]
    records = client_records.load(run)
    assert records.rows["round"].tolist() == [1] * 4 + [2] * 4
    assert len(set(records.client_ids)) == 4


@pytest.mark.parametrize("name", ["foolsgold", "krum", "fltrust"])
def test_threads_change_no_byte_of_a_run(tmp_path: Path, name: str) -> None:
    found = []
    for threads in (1, 3):
        out = trained(tmp_path / str(threads), aggregator=name, rounds=3, threads=threads)
        content = checkpoint.load(folder.latest_checkpoint(out)).components
        weights = content["global_model_weights"].values()
        found.append([folder.read_metrics(out), *(np.asarray(each).tobytes() for each in weights)])
    assert found[0] == found[1]


def test_histories_have_a_file_of_their_own(tmp_path: Path) -> None:
    out = trained(tmp_path / "run", algorithm="scaffold", aggregator="foolsgold", rounds=2)
    names = {each.name for each in out.iterdir()}
    assert {f"{HISTORIES}{SUFFIX}", "client_states.sqlite"} <= names


# ---- The root set --------------------------------------------------------------------------------


def test_fltrust_compares_with_the_delta_of_the_root_set() -> None:
    """The expected delta is computed here from the deltas of each client and of the root set."""
    clients = _clients(4)
    root = from_arrays(*draw(15, 99, SHAPE, NUM_CLASSES), client_id=ROOT_ID)
    root_data = root.client.preprocess(batch_size=10, seed=5)
    process = _process(aggregators.build("fltrust"), root=root_data)
    mean = _process(aggregators.build("mean"))
    start = mean.initialize()
    params = start.global_model_weights.astype(np.float64)
    *deltas, g = (
        mean.next(start, [each]).state.global_model_weights - params
        for each in [*clients, root_data]
    )
    output = process.next(process.initialize(), tuple(clients))
    norms = [float(np.linalg.norm(delta)) for delta in deltas]
    trust = [
        max(0.0, float(delta @ g) / norm / float(np.linalg.norm(g)))
        for delta, norm in zip(deltas, norms, strict=True)
    ]
    scaled = [
        t * delta * (np.linalg.norm(g) / norm)
        for t, delta, norm in zip(trust, deltas, norms, strict=True)
    ]
    expected = np.sum(scaled, axis=0) / sum(trust)
    moved = output.state.global_model_weights - params
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.metrics["aggregator"]["trust"], trust, rtol=1e-4)
    assert len(output.client_stats) == 4


@pytest.mark.parametrize(
    "algorithm",
    [name for name, entry in tables.ALGORITHMS.items() if not entry.has_own_models],
)
def test_the_root_set_goes_with_every_algorithm(algorithm: str) -> None:
    """If all clients have the root set's examples, FLTrust gives the same weights as the mean.

    A batch holds all examples of a client, so the mean gradient is the same for each client, in
    any order of the examples, and if each occurs three times (centralized). In scaffold and
    feddyn, clients keep vectors after their first round; the root set keeps none.
    """
    images, labels = draw(20, 0, SHAPE, NUM_CLASSES)
    root, *clients = (
        from_arrays(images, labels, client_id=each).client.preprocess(batch_size=60, seed=5)
        for each in (ROOT_ID, "c0", "c1", "c2")
    )
    num_rounds = 1 if algorithm in ("scaffold", "feddyn") else 2
    found = []
    for name in ("mean", "fltrust"):
        process = _process(aggregators.build(name), algorithm, root)
        state = process.initialize()
        for _ in range(num_rounds):
            state = process.next(state, clients).state
        found.append(state.global_model_weights)
    assert np.abs(found[0]).max() > 1e-3
    # Weights are float32; FLTrust computes scales and cosines with rounding.
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-8)


def test_the_root_set_is_a_new_client_to_scaffold() -> None:
    """With equal deltas d, FLTrust's sum is d scaled to the norm of the root set's delta."""
    images, labels = draw(20, 0, SHAPE, NUM_CLASSES)
    root, *clients = (
        from_arrays(images, labels, client_id=each).client.preprocess(batch_size=60, seed=5)
        for each in (ROOT_ID, "c0", "c1", "c2")
    )

    def moved(name: str, second_cohort: list[BatchedDataset]) -> NDArray[np.float64]:
        process = _process(aggregators.build(name), "scaffold", root)
        first = process.next(process.initialize(), clients).state
        second = process.next(first, second_cohort).state
        moved = second.global_model_weights.astype(np.float64)
        moved -= first.global_model_weights
        return moved

    delta, alone = moved("mean", clients), moved("mean", [root])
    expected = delta * (np.linalg.norm(alone) / np.linalg.norm(delta))
    assert np.linalg.norm(expected - delta) > 0.1 * np.linalg.norm(delta)
    np.testing.assert_allclose(moved("fltrust", clients), expected, rtol=1e-3, atol=1e-6)


def test_a_root_set_must_be_given() -> None:
    process = _process(aggregators.build("fltrust"))
    with pytest.raises(ConfigError, match="give these examples as root_data"):
        process.next(process.initialize(), _clients(2))


def test_root_examples_are_drawn_from_all_clients_without_replacement() -> None:
    train_split = datasets.load("synthetic-digits", data_options={"clients": 30})[0]
    plan = BatchPlan(epochs=1, batch_size=20, shuffle_buffer=1)
    drawn = draw_root_data(train_split, 100, plan, seed=3)
    assert len(drawn.client) == 100
    known = [train_split.client(each) for each in train_split.client_ids]
    images = {image.tobytes(): each.client_id for each in known for image in each.images()}
    owners = [images[image.tobytes()] for image in drawn.client.images()]
    assert len({image.tobytes() for image in drawn.client.images()}) == 100
    assert len(set(owners)) > 15
    again = draw_root_data(train_split, 100, plan, seed=3)
    np.testing.assert_array_equal(again.client.pixels, drawn.client.pixels)
    other = draw_root_data(train_split, 100, plan, seed=4)
    assert (other.client.pixels != drawn.client.pixels).any()
    total = train_split.total_examples()
    everything = draw_root_data(train_split, total, plan, seed=3)
    assert np.bincount(everything.client.labels).sum() == total
    with pytest.raises(ConfigError, match="choose fewer"):
        draw_root_data(train_split, total + 1, plan, seed=3)
