"""Suspects: flipped labels and broken images are found, and all scores are finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.core.native import Cancelled
from fedcli.datasets.batches import ClientDataset, Pixels
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.errors import DataError
from fedcli.inspection import suspects
from fedcli.inspection.densities import Moments, fit
from fedcli.inspection.suspects import Suspects, least_shares, rank_examples, shrink

Flips = dict[str, NDArray[np.bool_]]


class ArrayData(ClientData):
    """Clients given as arrays."""

    def __init__(self, clients: Mapping[str, ClientDataset], num_classes: int = 10) -> None:
        self.clients = dict(clients)
        self.source, self.split = "arrays", "train"
        self.client_ids = sorted(self.clients)
        self.num_classes, self.class_names = num_classes, None
        self.pixel_shape = next(iter(clients.values())).pixels.shape[1:]
        self.pixel_convention = "ink"

    def num_examples(self, client_id: str) -> int:
        return len(self.clients[client_id])

    def client(self, client_id: str) -> ClientDataset:
        return self.clients[client_id]


def make_client(client_id: str, pixels: Pixels, labels: object) -> ClientDataset:
    scale = 1 / 255 if pixels.dtype == np.uint8 else 1.0
    return ClientDataset(client_id, pixels, np.array(labels, np.int32), scale, 0.0, "arrays")


def flip(data: ClientData, rng: np.random.Generator, share: float) -> tuple[ArrayData, Flips]:
    """Changes a share of each client's labels to one of the other nine, with equal probability."""
    clients, flips = {}, {}
    for client_id in data.client_ids:
        client = data.client(client_id)
        is_flipped = rng.random(len(client)) < share
        shifts = rng.integers(1, 10, len(client)) * is_flipped
        labels = ((client.labels + shifts) % 10).astype(np.int32)
        clients[client_id] = replace(client, labels=labels)
        flips[client_id] = is_flipped
    return ArrayData(clients), flips


def precision(found: Suspects, flips: Flips) -> float:
    """The share of the listed examples whose labels were flipped."""
    return float(np.mean([flips[each.client_id][each.index] for each in found.examples]))


def num_flipped(flips: Flips) -> int:
    return sum(int(each.sum()) for each in flips.values())


@pytest.fixture
def digits() -> ClientData:
    return open_splits(
        DataSource("synthetic-digits", data_options={"clients": 25, "label_noise": 0.0})
    )["train"]


@pytest.fixture
def few_digits(digits: ClientData) -> ArrayData:
    """Few clients, for tests that do not depend on the number of clients."""
    return ArrayData({client_id: digits.client(client_id) for client_id in digits.client_ids[:5]})


def test_finds_flipped_labels_of_synthetic_digits(digits: ClientData, seed: int) -> None:
    noisy, flips = flip(digits, np.random.default_rng(seed), 0.05)
    found = rank_examples(noisy, noisy.client_ids, top=num_flipped(flips))
    # A random pick has a precision of 0.05; 0.92 to 0.96 were measured with six seeds.
    assert precision(found, flips) > 0.85
    right = [
        each.likelier_label == digits.client(each.client_id).labels[each.index]
        for each in found.examples
        if flips[each.client_id][each.index]
    ]
    assert np.mean(right) > 0.9


def test_finds_flipped_labels_of_real_writers(shared_data: Path, seed: int) -> None:
    data = open_splits(DataSource(str(shared_data / "mnist_writers_train.h5")))["train"]
    chosen = ArrayData({client_id: data.client(client_id) for client_id in data.client_ids[::8]})
    noisy, flips = flip(chosen, np.random.default_rng(seed), 0.05)
    found = rank_examples(noisy, noisy.client_ids, top=num_flipped(flips))
    assert precision(found, flips) > 0.8  # a random pick has 0.05


def test_finds_a_mistake_made_often(shared_data: Path) -> None:
    data = open_splits(DataSource(str(shared_data / "mnist_writers_train.h5")))["train"]
    clients, flips = {}, {}
    for client_id in data.client_ids[::8]:
        client = data.client(client_id)
        is_flipped = (client.labels == 4) & (np.arange(len(client)) % 10 < 3)
        labels = np.where(is_flipped, 9, client.labels).astype(np.int32)
        clients[client_id], flips[client_id] = replace(client, labels=labels), is_flipped
    noisy = ArrayData(clients)
    found = rank_examples(noisy, noisy.client_ids, top=num_flipped(flips))
    # The precision would be 0.4 if the densities were not estimated a second time.
    assert precision(found, flips) > 0.5


def test_order_of_clients_and_size_of_blocks_change_no_score(
    few_digits: ClientData, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, _ = flip(few_digits, np.random.default_rng(seed), 0.05)
    whole = rank_examples(noisy, noisy.client_ids, top=10**6)
    monkeypatch.setattr(suspects, "_BLOCK_EXAMPLES", 7)
    blocked = rank_examples(noisy, noisy.client_ids[::-1], top=10**6)

    def scores(found: Suspects) -> dict[tuple[str, int], float]:
        return {(each.client_id, each.index): each.score for each in found.examples}

    # Sums in another order differ in the last digits, and a score is a difference of sums.
    assert scores(blocked) == pytest.approx(scores(whole), rel=1e-6, abs=1e-6)
    assert {each.client_id for each in blocked.clients} == {e.client_id for e in whole.clients}


def test_same_call_gives_the_same(few_digits: ClientData) -> None:
    first, second = (rank_examples(few_digits, few_digits.client_ids) for _ in range(2))
    assert first == second
    assert first.examples


def test_pixels_as_ink_or_background_change_no_score(digits: ClientData, seed: int) -> None:
    noisy, _ = flip(digits, np.random.default_rng(seed), 0.05)
    turned = ArrayData(
        {name: replace(c, scale=-c.scale, offset=1 - c.offset) for name, c in noisy.clients.items()}
    )
    first = rank_examples(noisy, noisy.client_ids).examples
    second = rank_examples(turned, turned.client_ids).examples
    assert [each.score for each in second] == pytest.approx([each.score for each in first], 1e-4)


def test_noisy_client_comes_first_and_a_tiny_one_does_not(digits: ClientData, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clients = {client_id: digits.client(client_id) for client_id in digits.client_ids}
    noisy = max(clients, key=lambda client_id: len(clients[client_id]))
    shifted = (clients[noisy].labels + (rng.random(len(clients[noisy])) < 0.5)) % 10
    clients[noisy] = replace(clients[noisy], labels=shifted.astype(np.int32))
    victim = next(name for name in clients if name != noisy)
    one = clients[victim]
    wrong = ((one.labels[:1] + 5) % 10).astype(np.int32)
    clients[victim] = replace(one, pixels=one.pixels[:1], labels=wrong)
    data = ArrayData(clients)
    found = rank_examples(data, data.client_ids)
    assert (victim, 0) in {(each.client_id, each.index) for each in found.examples}
    assert found.clients[0].client_id == noisy
    assert found.clients[0].least_share > 0.2
    assert victim not in {each.client_id for each in found.clients}


def test_least_share_is_chernoffs_bound() -> None:
    bounds = least_shares(np.array([0, 0, 1, 5, 5]), np.array([0, 5, 1, 5, 10]))
    # Worked out by hand: n of n gives p = 0.001^(1/n); n/2 of n gives p with
    # p (1 - p) = 0.001^(2/n) / 4.
    half = (1 - (1 - 0.001**0.2) ** 0.5) / 2
    assert bounds == pytest.approx([0.0, 0.0, 0.001, 0.001**0.2, half])


def test_chernoffs_bound_keeps_its_promise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, 200_000)
    shares = rng.choice([0.01, 0.05, 0.3], len(sizes))
    is_over = least_shares(rng.binomial(sizes, shares), sizes) > shares
    assert is_over.mean() < 0.001


def test_broken_examples_are_found(digits: ClientData) -> None:
    clients = {client_id: digits.client(client_id) for client_id in digits.client_ids}
    broken, *_ = clients
    pixels = clients[broken].pixels.copy()
    pixels[3] = 17
    pixels[5] = 255 - pixels[5]
    pixels[8] = pixels[2]
    clients[broken] = replace(clients[broken], pixels=pixels)
    data = ArrayData(clients)
    found = rank_examples(data, data.client_ids)
    assert found.fault_counts == {"blank": 1, "far": 1, "copy": 1}
    blank, far, copy = found.broken
    assert (blank.client_id, blank.index, blank.fault) == (broken, 3, "blank")
    assert (far.index, far.fault) == (5, "far")
    assert far.distance is not None
    assert far.distance > 10
    assert (copy.index, copy.fault, copy.original) == (8, "copy", 2)
    assert 3 not in {each.index for each in found.examples if each.client_id == broken}


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((0, 4, 4), np.uint8), []),
        (np.arange(16, dtype=np.uint8).reshape(1, 4, 4), [3]),
        (np.arange(32, dtype=np.uint8).reshape(2, 4, 4) * 7, [0, 1]),
        (np.full((30, 4, 4), 9, np.uint8), [0, 1, 2] * 10),
        (np.full((30, 4, 4), 1e30, np.float32), [0, 1, 2] * 10),
        (np.repeat(np.eye(4, dtype=np.float32)[None], 30, axis=0), [0, 1, 2] * 10),
    ],
    ids=["none", "one", "two", "blank", "blank and huge", "all the same"],
)
def test_nothing_to_compare_leaves_nobody_suspect(pixels: Pixels, labels: list[int]) -> None:
    found = rank_examples(ArrayData({"a": make_client("a", pixels, labels)}), ["a"])
    assert found.num_examples == len(labels)
    assert found.num_suspicious == 0
    assert found.examples == ()
    assert found.clients == ()


def test_one_class_leaves_nobody_suspect(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 5, 5)).astype(np.uint8)
    found = rank_examples(ArrayData({"a": make_client("a", pixels, [1] * 50)}), ["a"])
    assert (found.num_suspicious, found.examples, found.clients) == (0, (), ())


def test_no_client_gives_no_suspect(digits: ClientData) -> None:
    assert rank_examples(digits, []).num_examples == 0


def test_classes_of_one_image_each_are_told_apart() -> None:
    images = np.stack([np.tril(np.ones((6, 6))), np.triu(np.ones((6, 6)))]).astype(np.float32)
    labels = np.arange(40) % 2
    said = labels.copy()
    said[7] = 0
    found = rank_examples(ArrayData({"a": make_client("a", images[labels], said)}), ["a"])
    assert [(each.index, each.likelier_label) for each in found.examples] == [(7, 1)]


def test_colours_tell_labels_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    pixels = rng.integers(0, 60, (120, 40, 30, 3)).astype(np.uint8)
    pixels[np.arange(120), :, :, labels] += 150
    said = np.array([1, 4, 7])[labels]
    said[[11, 50]] = 1
    found = rank_examples(ArrayData({"a": make_client("a", pixels, said)}), ["a"])
    assert {(each.index, each.likelier_label) for each in found.examples[:2]} == {(11, 7), (50, 7)}


@pytest.mark.parametrize(("num_rare", "is_proposed"), [(4, False), (6, True)])
def test_rare_label_is_not_proposed(seed: int, num_rare: int, is_proposed: bool) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 4, 4)).astype(np.uint8)
    labels = np.arange(300) % 2
    labels[:num_rare] = 2
    pixels[:num_rare] = pixels[:num_rare] // 8  # dark images, and one more that is labelled 0
    pixels[10] = pixels[10] // 8
    found = rank_examples(ArrayData({"a": make_client("a", pixels, labels)}), ["a"])
    assert (2 in {each.likelier_label for each in found.examples}) == is_proposed


def test_label_of_one_example_is_not_doubted(digits: ClientData) -> None:
    clients = {client_id: digits.client(client_id) for client_id in digits.client_ids}
    name, *_ = clients
    labels = clients[name].labels.copy()
    labels[0] = 11
    clients[name] = replace(clients[name], labels=labels)
    data = ArrayData(clients, num_classes=12)
    found = rank_examples(data, data.client_ids, top=10**6)
    assert (name, 0) not in {(each.client_id, each.index) for each in found.examples}


shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
)


@st.composite
def populations(draw: st.DrawFn) -> ArrayData:
    shape = draw(shapes)
    clients = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        size = draw(st.integers(0, 30))
        values: st.SearchStrategy[float] = st.floats(-(2.0**126), 2.0**126, width=32)
        kind, elements = draw(
            st.sampled_from([(np.uint8, st.integers(0, 255)), (np.float32, values)])
        )
        pixels = draw(hnp.arrays(kind, (size, *shape), elements=elements))
        labels = draw(hnp.arrays(np.int32, size, elements=st.integers(0, 3)))
        clients[name] = make_client(name, pixels, labels)
    return ArrayData(clients, 4)


@given(populations())
@settings(max_examples=60)
def test_any_small_population_gives_finite_scores(data: ArrayData) -> None:
    found = rank_examples(data, data.client_ids, top=10**6)
    for each in found.examples:
        assert np.isfinite(each.score)
        assert each.score > 0
        assert each.label != each.likelier_label
        assert data.client(each.client_id).labels[each.index] == each.label
    assert all(np.isfinite(each.distance or 0.0) for each in found.broken)
    assert found.num_suspicious <= found.num_examples == data.total_examples()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 10))
def test_shrink_averages_squares(height: int, width: int, channels: int, factor: int) -> None:
    shape = (2, height, width, channels)
    images = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = [
        images[:, y : y + factor, x : x + factor].mean(axis=(1, 2), dtype=np.float64)
        for y in range(0, height, factor)
        for x in range(0, width, factor)
    ]
    shrunk = shrink(images, factor)
    np.testing.assert_allclose(shrunk, np.stack(expected, axis=1).reshape(2, -1), rtol=1e-12)


def test_scores_are_those_of_the_t_density() -> None:
    """The expected densities are computed here by their formulas."""
    rng = np.random.default_rng(7)
    features = rng.normal(size=(600, 3)) @ rng.normal(size=(3, 3))
    labels = np.arange(600) % 2
    features[labels == 1] += 2.0
    moments = Moments(2, 3)
    moments.add(features, labels)
    everyone = np.ones(600, np.bool_)
    judged = fit(moments).score(features, labels, everyone)
    parts = [features[labels == k] for k in range(2)]
    ridge = 1e-3 * np.trace(np.cov(features.T, bias=True)) / 3 * np.eye(3)
    covariances = [np.cov(part.T, bias=True) + ridge for part in parts]
    pooled = sum(covariances) / 2
    logs = []
    for k in range(2):
        covariance = (300 * covariances[k] + 15 * pooled) / 315
        offsets = features - parts[k].mean(axis=0)
        squared = np.einsum("ij,jk,ik->i", offsets, np.linalg.inv(covariance), offsets)
        for i in np.flatnonzero(labels == k):  # mean and covariance leave example i out
            rest = covariance - 300 / 299 / 315 * np.outer(offsets[i], offsets[i])
            squared[i] = (300 / 299) ** 2 * offsets[i] @ np.linalg.solve(rest, offsets[i])
        log_det = np.linalg.slogdet(covariance)[1]
        logs.append(-0.5 * (13 * np.log1p(squared / 10) + log_det))
    expected = np.where(labels == 0, logs[1] - logs[0], logs[0] - logs[1])
    np.testing.assert_allclose(judged.scores, expected, rtol=1e-8, atol=1e-8)
    assert (judged.likelier == 1 - labels).all()


def test_many_labels_shrink_images_further_and_then_are_refused(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (60, 8, 8)).astype(np.uint8)
    data = ArrayData({"a": make_client("a", pixels, np.arange(60) % 6)})
    monkeypatch.setattr(suspects, "MAX_MOMENT_BYTES", 8 * 6 * 16**2)
    assert rank_examples(data, ["a"]).num_examples == 60
    monkeypatch.setattr(suspects, "MAX_MOMENT_BYTES", 40)
    with pytest.raises(DataError, match=r"arrays: 6 labels are too many to compare for"):
        rank_examples(data, ["a"])


def test_tells_clients_and_can_be_ended(few_digits: ClientData) -> None:
    told: list[tuple[int, int | None]] = []
    rank_examples(few_digits, few_digits.client_ids, lambda done, total: told.append((done, total)))
    assert told == [(done, 25) for done in range(1, 26)]

    def refuse(after: int) -> Callable[[int, int | None], None]:
        def on_progress(done: int, total: int | None) -> None:
            if done == after:
                raise Cancelled

        return on_progress

    for after in (1, 9, 25):
        with pytest.raises(Cancelled):
            rank_examples(few_digits, few_digits.client_ids, refuse(after))
