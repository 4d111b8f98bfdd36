"""The weighted sum of vectors adds in the order of a recursive reference_sum in NumPy."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core._core import CoreError
from fedcli.core.native import WeightedSum

pytestmark = pytest.mark.numeric

NUM_VALUES = 66_000  # more values of a vector than the core adds at a time
BLOCK = 8

Vectors = NDArray[np.float32]


def block_of(vectors: Vectors, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums a block from left to right. Products of float32 and whole weights are exact."""
    total = np.zeros(vectors.shape[1])
    for vector, weight in zip(vectors, weights, strict=True):
        if weight > 0:
            total += weight * vector.astype(np.float64)
    return total


def reference_sum(vectors: Vectors, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums all blocks in a binary tree. In each left branch their number is a power of two."""
    num_blocks = math.ceil(len(vectors) / BLOCK)
    if num_blocks <= 1:
        return block_of(vectors, weights)
    left = BLOCK * 2 ** ((num_blocks - 1).bit_length() - 1)
    first = reference_sum(vectors[:left], weights[:left])
    return first + reference_sum(vectors[left:], weights[left:])


def draw(seed: int, count: int) -> tuple[Vectors, NDArray[np.float64]]:
    """Vectors of very different sizes, so that another order of addition gives other bytes."""
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.integers(-6, 7, (count, 1))
    vectors = (sizes * random.standard_normal((count, NUM_VALUES))).astype(np.float32)
    return vectors, random.integers(0, 3, count) * random.integers(1, 1000, count).astype(float)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 23, 61, 100])
def test_order_is_the_tree_to_the_byte(seed: int, count: int) -> None:
    vectors, weights = draw(seed, count)
    total = WeightedSum(NUM_VALUES)
    total.add(list(vectors), weights.tolist())
    found, weight = total.total()
    assert found.tobytes() == reference_sum(vectors, weights).tobytes()
    assert weight == weights.sum()
    for num_threads in 1, 2, 3, 7:
        whole = native.sum_vectors(list(vectors), weights, NUM_VALUES, num_threads)
        assert whole.tobytes() == found.tobytes()


def test_order_matters_to_the_bytes(seed: int) -> None:
    vectors, weights = draw(seed, 100)
    assert reference_sum(vectors, weights).tobytes() != block_of(vectors, weights).tobytes()


@pytest.mark.parametrize("step", [1, 3, 8, 13])
def test_the_number_of_vectors_per_call_changes_no_byte(seed: int, step: int) -> None:
    vectors, weights = draw(seed, 50)
    total = WeightedSum(NUM_VALUES)
    for _ in range(2):
        total.reset()
        for first in range(0, 50, step):
            total.add(list(vectors[first : first + step]), weights[first : first + step].tolist())
        assert total.total()[0].tobytes() == reference_sum(vectors, weights).tobytes()


@pytest.mark.parametrize("num_values", [5001, 33001, 66001])
def test_the_number_of_threads_changes_no_byte_of_rounded_products(num_values: int) -> None:
    """Products with such weights are rounded in some loops, and fused with the sum in others."""
    rng = np.random.default_rng(num_values)
    vectors = list(rng.standard_normal((9, num_values)).astype(np.float32))
    weights = rng.uniform(0.1, 1, 9)
    sums = [native.sum_vectors(vectors, weights, num_values, each) for each in (1, 2, 3, 7)]
    assert len({each.tobytes() for each in sums}) == 1


def test_a_common_factor_of_the_weights_changes_no_mean(seed: int) -> None:
    vectors, weights = draw(seed, 20)
    means = []
    for factor in 1.0, 4.0, 7.0:
        total = WeightedSum(NUM_VALUES)
        total.add(list(vectors), (factor * weights).tolist())
        weighted, weight = total.total()
        means.append(weighted / weight)
    # The factor 4 is a power of two, so nothing is rounded differently.
    assert means[1].tobytes() == means[0].tobytes()
    spread = 1e-14 * np.abs(vectors).max()  # with the factor 7, float64 rounds differently
    np.testing.assert_allclose(means[2], means[0], rtol=0, atol=spread)


def test_nothing_of_a_vector_of_weight_0_counts() -> None:
    total = WeightedSum(3)
    poison = np.array([np.nan, np.inf, 1], np.float32)
    total.add([poison, np.ones(3, np.float32)], [0.0, 2.0])
    assert total.total()[0].tolist() == [2, 2, 2]
    vectors, weights = [poison, np.ones(3, np.float32)], np.array([0.0, 2.0])
    assert native.sum_vectors(vectors, weights, 3, 1).tolist() == [2, 2, 2]


def test_a_total_is_written_again_only_if_nothing_refers_to_it() -> None:
    total = WeightedSum(3)
    total.add([np.ones(3, np.float32)], [1.0])
    held = total.total()[0]
    total.add([np.ones(3, np.float32)], [1.0])
    view = total.total()[0][1:]
    total.add([np.ones(3, np.float32)], [1.0])
    third = total.total()[0]
    place = third.ctypes.data
    assert [held.tolist(), view.tolist(), third.tolist()] == [[1] * 3, [2] * 2, [3] * 3]
    del third
    assert total.total()[0].ctypes.data == place


def test_what_does_not_fit_is_refused_and_adds_nothing() -> None:
    total = WeightedSum(3)
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"1 weights for 2 vectors"):
        total.add([ones, ones], [1.0])
    with pytest.raises(ValueError, match=r"vector 1 is \[2\], not \[3\]"):
        total.add([ones, ones[:2]], [1.0, 1.0])
    with pytest.raises(CoreError, match="FED_ERR_ARGUMENT"):
        total.add([ones, ones], [1.0, -1.0])
    found, weight = total.total()
    assert not found.any()
    assert weight == 0
    with pytest.raises(ValueError, match=r"1 weights for 2 vectors"):
        native.sum_vectors([ones, ones], np.ones(1), 3, 1)
    with pytest.raises(ValueError, match=r"vector 1 is \[2\], not \[3\]"):
        native.sum_vectors([ones, ones[:2]], np.ones(2), 3, 1)
    with pytest.raises(CoreError, match="FED_ERR_ARGUMENT"):
        native.sum_vectors([ones], -np.ones(1), 3, 1)


def test_no_values_have_an_empty_sum() -> None:
    total = WeightedSum(0)
    total.add([np.zeros(0, np.float32)], [1.0])
    assert total.total()[0].shape == (0,)
    assert native.sum_vectors([np.zeros(0, np.float32)], np.ones(1), 0, 1).shape == (0,)


def test_vectors_whose_byte_order_is_named_are_read() -> None:
    """Arrays from files may name the byte order. Their buffer format is then "<f", not "f"."""
    named: Any = np.dtype("f4").newbyteorder("<" if sys.byteorder == "little" else ">")
    vector: Any = np.arange(5).astype(named)
    assert memoryview(vector).format in ("<f", ">f")
    total = WeightedSum(5)
    total.add([vector], [2.0])
    np.testing.assert_array_equal(total.total()[0], 2.0 * vector)
    swapped = vector.astype(vector.dtype.newbyteorder())
    with pytest.raises(ValueError, match="are not float32"):
        total.add([swapped], [1.0])
