"""Batches: orders are permutations, and batches hold the examples that the core uses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.datasets import batches
from fedcli.datasets.batch_plan import FULL, BatchPlan
from fedcli.datasets.batches import BatchedDataset, ClientDataset, from_arrays
from fedcli.errors import ConfigError, DataError
from fedcli.settings.vocabulary import PIPELINES


def grey_client(num_examples: int, client_id: str = "a") -> ClientDataset:
    """Returns a client. The first pixel of its image i is i, and the label is i mod 10."""
    pixels = np.zeros((num_examples, 2, 3), np.uint8)
    pixels[:, 0, 0] = np.arange(num_examples)
    labels = (np.arange(num_examples) % 10).astype(np.int32)
    return ClientDataset(client_id, pixels, labels, -1 / 255, 1.0, "test data")


@given(
    plan=st.builds(
        BatchPlan,
        epochs=st.integers(1, 4),
        batch_size=st.integers(1, 9),
        shuffle_buffer=st.sampled_from([FULL, 0, 1, 2, 5, 100]),
        pipeline=st.sampled_from(PIPELINES),
        max_examples=st.none() | st.integers(1, 60),
    ),
    num_examples=st.integers(0, 17),
)
def test_order_has_every_example_once_per_epoch(plan: BatchPlan, num_examples: int) -> None:
    dataset = BatchedDataset(grey_client(num_examples), plan, seed=3)
    order = dataset.order()
    assert len(order) == plan.num_visits(num_examples)
    if plan.max_examples is None:
        expected = dict.fromkeys(range(num_examples), plan.epochs)
        assert Counter(order.tolist()) == expected
    if plan.pipeline != "repeat-shuffle":
        for first in range(0, len(order), max(1, num_examples)):
            epoch = order[first : first + num_examples]
            assert len(set(epoch.tolist())) == len(epoch)
    assert [len(batch["y"]) for batch in dataset] == list(plan.batch_sizes(num_examples))


def test_order_depends_on_seed_round_client_and_occurrence() -> None:
    plan = BatchPlan(shuffle_buffer=FULL)
    base = BatchedDataset(grey_client(50), plan, seed=1)
    assert base.order().tolist() == BatchedDataset(grey_client(50), plan, seed=1).order().tolist()
    others = [
        BatchedDataset(grey_client(50), plan, seed=2).order(),
        BatchedDataset(grey_client(50, "b"), plan, seed=1).order(),
        base.order(round_num=1),
        base.order(occurrence=1),
    ]
    orders = {tuple(order.tolist()) for order in [base.order(), *others]}
    assert len(orders) == 5


def test_unshuffled_batches_hold_decoded_pixels_in_file_order() -> None:
    first, second = grey_client(5).preprocess(batch_size=3)
    assert first["x"].dtype == np.float32
    assert first["x"].shape == (3, 6)
    assert second["x"].shape == (2, 6)
    decoded = np.float32(-1 / 255) * np.arange(3, dtype=np.float32) + np.float32(1)
    np.testing.assert_array_equal(first["x"][:, 0], decoded)
    np.testing.assert_array_equal(first["x"][:, 1:], 1)
    assert first["y"].dtype == np.int32
    assert second["y"].tolist() == [[3], [4]]


def test_batches_follow_the_order() -> None:
    dataset = grey_client(30).preprocess(epochs=2, shuffle_buffer=10, batch_size=7, seed=5)
    seen = np.concatenate([batch["x"][:, 0] for batch in dataset])
    levels = np.rint((1 - seen) * 255).astype(int)
    np.testing.assert_array_equal(levels, dataset.order())
    assert not np.array_equal(levels, np.sort(levels))


def test_full_shuffle_is_spelled_full() -> None:
    assert grey_client(9).preprocess(shuffle_buffer="full").plan.shuffle_buffer == FULL


def test_iterating_a_client_yields_tff_elements() -> None:
    client = grey_client(3)
    examples = list(client)
    assert [example["label"] for example in examples] == [0, 1, 2]
    assert list(examples[0]) == ["label", "pixels"]
    np.testing.assert_array_equal(
        np.stack([example["pixels"] for example in examples]), client.images()
    )
    assert str(client.element_spec["pixels"]) == "ArraySpec(shape=(2, 3), dtype=float32)"
    spec = client.preprocess().element_spec
    assert (spec["x"].shape, spec["y"].shape) == ((None, 6), (None, 1))
    assert "shape=(None, 6)" in repr(client.preprocess())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0: choose a whole number from 1"),
        ({"batch_size": 0}, "batch size 0: choose"),
        ({"batch_size": 2.5}, "batch size 2.5: choose"),
        ({"batch_size": True}, "batch size True: choose"),
        ({"batch_size": 2**40}, "to 2147483647"),
        ({"shuffle_buffer": -2}, "shuffle buffer -2: choose"),
        ({"shuffle_buffer": "all"}, "shuffle buffer 'all': choose"),
        ({"max_examples": 0}, "max examples 0: choose"),
        ({"pipeline": "shuffle"}, "unknown pipeline 'shuffle'; choose one of repeat-shuffle, "),
        ({"seed": -1}, "seed -1: choose"),
    ],
)
def test_wrong_plan_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grey_client(3).preprocess(**options)  # type: ignore[arg-type]


def test_from_arrays_borrows_what_the_core_can_read() -> None:
    images = np.ones((4, 2, 2), np.float32)
    labels = np.arange(4, dtype=np.int32)
    client = from_arrays(images, labels).client
    assert np.shares_memory(client.pixels, images)
    assert np.shares_memory(client.labels, labels)
    assert (client.scale, client.offset) == (1.0, 0.0)


def test_from_arrays_converts_other_types_and_layouts() -> None:
    grey = np.array([[[0, 51], [102, 255]]], np.uint8)
    np.testing.assert_allclose(
        from_arrays(grey, [3]).client.images().ravel(), [0, 0.2, 0.4, 1], atol=6e-8
    )
    wide = np.linspace(0, 1, 24).reshape(2, 3, 4)[:, :, ::-1]
    client = from_arrays(wide, np.array([[1], [2]], np.int64)).client
    np.testing.assert_array_equal(client.pixels, wide.astype(np.float32))
    assert client.pixels.flags.c_contiguous
    assert client.labels.tolist() == [1, 2]
    swapped = from_arrays(wide.astype(">f4"), np.array([1, 2], ">i8")).client
    np.testing.assert_array_equal(swapped.pixels, client.pixels)
    assert swapped.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 2, 2)), [1], "2 images but 1 label"),
        (np.zeros((2, 2, 2)), [0.0, 1.0], "labels are float64"),
        (np.zeros((2, 2, 2)), [0, -1], "example 1: label -1 is outside"),
        (np.zeros((2, 2, 2)), np.array([0, 2**40]), "example 1: label 1099511627776 is outside"),
        (np.full((1, 2, 2), np.nan), [0], "example 0: a pixel is NaN or infinite"),
        (np.full((1, 2, 2), 1e300), [0], "example 0: a pixel is NaN or infinite"),
        (np.zeros(2), [0, 1], "pixels are float64"),
        (np.zeros((1, 2, 2), np.int16), [0], "pixels are int16"),
    ],
)
def test_from_arrays_names_what_is_wrong(
    pixels: np.ndarray, labels: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(pixels, labels, client_id="w1")
    assert "client 'w1'" in str(caught.value)


def test_finite_pixels_whose_sum_overflows_are_accepted() -> None:
    largest = np.full((2, 3), np.finfo(np.float64).max)
    assert batches.first_non_finite(largest) is None
    largest[1, 2] = np.inf
    assert batches.first_non_finite(largest) == 1
