from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.errors import DataError
from fedcli.inspection import statistics
from fedcli.inspection.statistics import (
    Bin,
    MeanImages,
    SplitCounts,
    count_labels,
    gini,
    label_skew,
    sampling_floor,
    size_histogram,
    summarize,
    summarize_sizes,
)

Rows = Sequence[Sequence[int]]


def count(labels: dict[str, list[int]], num_classes: int) -> SplitCounts:
    arrays = (np.array(each, np.int32) for each in labels.values())
    return count_labels("train", list(labels), arrays, num_classes)


def counts_of(rows: Rows) -> SplitCounts:
    ids = [f"c{index}" for index in range(len(rows))]
    return SplitCounts("train", ids, np.array(rows, np.int32))


def reference_skew(row: Sequence[int], totals: Sequence[int]) -> dict[str, float]:
    """The measures of one client, by their definitions, in plain loops."""
    size, total = sum(row), sum(totals)
    q, p = [n / size for n in row], [n / total for n in totals]
    js = 0.0
    for mine, theirs in zip(q, p, strict=True):
        middle = (mine + theirs) / 2
        js += mine / 2 * math.log2(mine / middle) if mine else 0.0
        js += theirs / 2 * math.log2(theirs / middle) if theirs else 0.0
    return {
        "tv": sum(abs(mine - theirs) for mine, theirs in zip(q, p, strict=True)) / 2,
        "tv_floor": reference_floor(size, p),
        "js": js,
        "effective_classes": math.exp(-sum(mine * math.log(mine) for mine in q if mine)),
        "num_present": sum(n > 0 for n in row),
        "max_share": max(q),
    }


def reference_floor(size: int, p: Sequence[float]) -> float:
    """Half the sum over classes of the mean absolute deviation of a binomial share from p."""
    deviations = 0.0
    for share in p:
        for k in range(size + 1):
            chance = math.comb(size, k) * share**k * (1 - share) ** (size - k)
            deviations += chance * abs(k / size - share)
    return deviations / 2


def test_count_labels() -> None:
    counts = count({"a": [0, 2, 2], "b": [], "c": [1]}, 4)
    assert counts.client_ids == ["a", "b", "c"]
    assert counts.label_counts.dtype == np.int32
    assert counts.label_counts.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert counts.sizes.tolist() == [3, 0, 1]
    assert counts.class_totals.tolist() == [1, 1, 2, 0]
    assert counts.num_examples == 4


def test_no_client_at_all() -> None:
    counts = count({}, 10)
    assert counts.label_counts.shape == (0, 10)
    assert counts.num_examples == 0
    assert counts.skew.tv.shape == (0,)


def test_counts_that_fill_the_memory_are_refused_before_they_do() -> None:
    with pytest.raises(DataError, match=r"2,000,000 clients x 1,000 classes .*--clients"):
        count_labels("train", range(2_000_000), iter([]), 1_000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("id", [0, 1, 2, 3, 4]),
        ("size", [1, 2, 0, 4, 3]),
        ("tv", [2, 0, 4, 1, 3]),
        ("js", [2, 0, 4, 1, 3]),
        ("classes", [1, 0, 4, 2, 3]),
    ],
)
def test_orders_are_largest_first_stable_and_empty_clients_last(key: str, order: list[int]) -> None:
    counts = counts_of([[2, 1, 0], [4, 3, 2], [0, 0, 5], [0, 0, 0], [2, 1, 0]])
    assert counts.order_by(key).tolist() == order


def test_order_by_classes_breaks_ties_by_effective_classes() -> None:
    counts = counts_of([[9, 1], [5, 5], [3, 0]])
    assert counts.order_by("classes").tolist() == [1, 0, 2]


def test_summarize_sizes() -> None:
    summary = summarize_sizes(np.array([4, 1, 1, 2]))
    assert (summary.minimum, summary.median, summary.maximum) == (1, 1.5, 4)
    assert (summary.p5, summary.p25, summary.p75) == (1.0, 1.0, 2.5)
    assert summary.p95 == pytest.approx(3.7)
    assert summary.mean == 2.0
    assert summary.std == pytest.approx(math.sqrt(1.5))
    assert summary.std_over_mean == pytest.approx(math.sqrt(1.5) / 2)
    assert summary.skewness == pytest.approx(((8 - 1 - 1) / 4) / 1.5**1.5)
    assert summary.gini == pytest.approx((-3 * 1 - 1 * 1 + 1 * 2 + 3 * 4) / (4 * 8))


def test_sizes_that_have_no_shape() -> None:
    alike = summarize_sizes(np.array([7, 7]))
    assert (alike.std, alike.std_over_mean, alike.gini) == (0.0, 0.0, 0.0)
    assert math.isnan(alike.skewness)
    empty = summarize_sizes(np.array([0]))
    assert math.isnan(empty.std_over_mean)
    assert math.isnan(empty.gini)


def test_gini_of_one_owner_among_many() -> None:
    assert gini(np.array([0, 0, 0, 10])) == 0.75


@pytest.mark.parametrize(
    ("sigma", "expected"), [(0.15, 0.085), (0.3, 0.166), (0.5, 0.276), (1, 0.52), (2, 0.82)]
)
def test_gini_of_log_normal_sizes(seed: int, sigma: float, expected: float) -> None:
    sizes = np.random.default_rng(seed).lognormal(math.log(1e6), sigma, 200_000)
    assert gini(sizes.astype(np.int64)) == pytest.approx(expected, abs=0.02 * sigma)


@given(
    st.integers(1, 6).flatmap(
        lambda classes: st.lists(
            st.lists(st.integers(0, 40), min_size=classes, max_size=classes), min_size=1, max_size=6
        )
    )
)
def test_label_skew_agrees_with_plain_loops(rows: Rows) -> None:
    counts = counts_of(rows)
    totals = counts.class_totals.tolist()
    for index, row in enumerate(rows):
        found = {
            name: values[index].item()
            for name, values in vars(counts.skew).items()
            if name != "num_present" or any(row)
        }
        if any(row):
            # JS is a difference of logs, so its error is a few units in the last place of 1.
            assert found == pytest.approx(reference_skew(row, totals), rel=1e-9, abs=1e-12)
        else:
            assert all(map(math.isnan, found.values()))
            assert counts.skew.num_present[index] == 0


def test_label_skew_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 9, (50, 4)).astype(np.int32)
    totals = rows.sum(axis=0, dtype=np.int64)
    whole = label_skew(rows, totals)
    monkeypatch.setattr(statistics, "_BLOCK_CELLS", 12)
    cut = label_skew(rows, totals)
    for name, values in vars(whole).items():
        assert np.array_equal(values, getattr(cut, name)), name


def test_clients_are_compared_with_the_population_they_were_given() -> None:
    chosen = SplitCounts("train", ["a"], np.array([[4, 0]], np.int32), np.array([1, 3]))
    assert chosen.skew.tv.tolist() == [0.75]
    assert counts_of([[4, 0]]).skew.tv.tolist() == [0.0]


# Published and measured values for Dirichlet label mixes over ten equal classes. The test rounds
# each mix to counts of a million examples, so sampling adds no noise. The tolerances cover the
# random draw of 20,000 mixes.
@pytest.mark.parametrize(
    ("alpha", "tv", "js", "effective"),
    [
        (100, 0.038, 0.002, 9.96),
        (10, 0.119, 0.016, 9.57),
        (1, 0.352, 0.141, 6.91),
        (0.5, 0.458, 0.233, 5.46),
        (0.1, 0.709, 0.512, 2.52),
    ],
)
def test_dirichlet_mixes_show_the_known_skew(
    seed: int, alpha: float, tv: float, js: float, effective: float
) -> None:
    mixes = np.random.default_rng(seed).dirichlet(np.full(10, alpha), 20_000)
    skew = label_skew(np.rint(mixes * 1e6).astype(np.int32), np.full(10, 1))
    assert skew.tv.mean() == pytest.approx(tv, abs=0.005)
    assert skew.js.mean() == pytest.approx(js, abs=0.005)
    assert skew.effective_classes.mean() == pytest.approx(effective, abs=0.06)


def test_floor_of_a_hundred_examples_of_ten_classes() -> None:
    (floor,) = sampling_floor(np.array([100]), np.full(10, 0.1))
    assert floor == pytest.approx(0.118679, abs=1e-6)


@pytest.mark.parametrize("size", [1, 7, 100, 1500])
def test_floor_is_the_mean_tv_of_drawn_clients(seed: int, size: int) -> None:
    p = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    drawn = np.random.default_rng(seed).multinomial(size, p, 40_000) / size
    simulated = np.abs(drawn - p).sum(axis=1) / 2
    error = 4 * simulated.std() / math.sqrt(len(simulated))
    assert sampling_floor(np.array([size]), p)[0] == pytest.approx(simulated.mean(), abs=error)


@given(st.integers(1, 60), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_floor_agrees_with_the_sum_over_outcomes(size: int, weights: list[int]) -> None:
    p = np.array(weights) / max(1, sum(weights))
    expected = reference_floor(size, p.tolist())
    assert sampling_floor(np.array([size, size]), p) == pytest.approx([expected] * 2, abs=1e-12)


def test_floor_of_very_large_clients_falls_as_one_over_the_root() -> None:
    sizes = np.array([10**6, 2**31 - 1])
    normal = 10 * math.sqrt(2 / math.pi * 0.09) / 2 / np.sqrt(sizes)  # de Moivre and Laplace
    assert sampling_floor(sizes, np.full(10, 0.1)) == pytest.approx(normal, rel=1e-3)


def test_floor_of_one_class_and_of_all_but_one_is_nothing() -> None:
    assert sampling_floor(np.array([1, 50]), np.array([1.0, 0.0])).tolist() == [0.0, 0.0]
    assert sampling_floor(np.array([1]), np.array([1 - 1e-16, 1e-16]))[0] < 1e-15


def test_spread_leaves_out_clients_without_examples() -> None:
    spread = summarize(np.array([1.0, math.nan, 3.0]), np.array([1, 0, 3]))
    assert spread is not None
    assert (spread.minimum, spread.mean, spread.median, spread.maximum) == (1, 2, 2, 3)
    assert spread.weighted_mean == 2.5
    assert spread.p90 == pytest.approx(2.8)
    assert summarize(np.array([math.nan]), np.array([0])) is None


def test_size_histogram() -> None:
    assert size_histogram(np.array([17, 40, 59, 118])) == [
        Bin(0, 19, 1),
        Bin(20, 39, 0),
        Bin(40, 59, 2),
        Bin(60, 79, 0),
        Bin(80, 99, 0),
        Bin(100, 119, 1),
    ]
    assert size_histogram(np.array([7])) == [Bin(7, 7, 1)]


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 30))
def test_histogram_holds_every_client_in_few_bins(sizes: list[int], max_bins: int) -> None:
    bins = size_histogram(np.array(sizes), max_bins)
    assert len(bins) <= max(max_bins, 1)
    assert sum(each.num_clients for each in bins) == len(sizes)
    for each in bins:
        assert each.num_clients == sum(each.low <= size <= each.high for size in sizes)


@pytest.mark.parametrize("max_bins", [1, 2])
def test_histogram_of_few_bins_still_ends(max_bins: int) -> None:
    assert len(size_histogram(np.array([0, 999]), max_bins)) <= max_bins


def mean_images(
    pixels: NDArray, labels: NDArray, scale: float = 1.0, offset: float = 0.0
) -> MeanImages:
    means = MeanImages(3, pixels.shape[1:])
    for first in range(0, len(labels), 2):  # two images in each call
        part = slice(first, first + 2)
        means.add(pixels[part], labels[part], scale, offset)
    return means


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 3)])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_mean_images(
    seed: int, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], block: int
) -> None:
    monkeypatch.setattr(statistics, "_BLOCK_PIXELS", block)
    rng = np.random.default_rng(seed)
    labels = np.array([2, 0, 2, 2, 0], np.int32)
    levels = rng.integers(0, 256, (5, *shape), np.uint8)
    means = mean_images(levels, labels, -1 / 255, 1.0)
    assert means.counts.tolist() == [2, 0, 3]
    for label in (0, 2):
        expected = (1 - levels[labels == label] / 255).mean(axis=0)
        assert means.image(label).dtype == np.float32
        np.testing.assert_allclose(means.image(label), expected, atol=1e-7)
    floats = levels.astype(np.float32) / 255
    np.testing.assert_allclose(
        mean_images(floats, labels).image(2), floats[labels == 2].mean(axis=0), atol=1e-7
    )


def test_mean_images_know_what_fits() -> None:
    assert MeanImages.fits(62, (28, 28))
    assert not MeanImages.fits(1 << 20, (28, 28))


def test_real_writers_have_the_known_sizes_and_skew(shared_data: Path) -> None:
    """MNIST's 60,000 training images by writer; the numbers were noted when the files were made."""
    rows: dict[str, NDArray] = {}
    for name in ("train", "test"):
        with h5py.File(shared_data / f"mnist_writers_{name}.h5") as file:
            for client_id, client in file["examples"].items():
                labels = np.bincount(client["label"][()], minlength=10)
                rows[client_id] = rows.get(client_id, 0) + labels
    counts = SplitCounts("all", list(rows), np.array(list(rows.values()), np.int32))
    sizes = summarize_sizes(counts.sizes)
    assert (len(rows), counts.num_examples) == (539, 60_000)
    assert (sizes.minimum, sizes.p25, sizes.median, sizes.p75) == (19, 103, 116, 123)
    assert sizes.maximum == 131
    assert (round(sizes.mean, 1), round(sizes.std, 1)) == (111.3, 15.6)
    assert round(sizes.gini, 3) == 0.074
    assert round(counts.skew.tv.mean(), 3) == 0.055
    assert int((counts.skew.num_present == 10).sum()) == 536
