"""`BatchPlan` counts examples and batches as the core does."""

from __future__ import annotations

import numpy as np
import pytest

from fedcli.core.native import MAX_BATCH
from fedcli.datasets.batch_plan import FULL, BatchPlan
from fedcli.datasets.batches import from_arrays
from fedcli.errors import ConfigError


@pytest.mark.parametrize(
    ("plan", "num_examples", "visits", "num_batches"),
    [
        # The tutorial: 5 epochs of 94 examples; its batches of 20 cross the ends of epochs.
        (BatchPlan(5, 20, 100), 94, 470, 24),
        (BatchPlan(5, 20, 100, "shuffle-repeat"), 94, 470, 24),
        (BatchPlan(5, 20, 100, "per-epoch"), 94, 470, 25),
        (BatchPlan(3, 4, 1, "per-epoch", max_examples=11), 5, 11, 5),  # by epoch: 4+1, 4+1, 1
        (BatchPlan(3, 4, 1, max_examples=11), 5, 11, 3),
        (BatchPlan(2, 7, max_examples=100), 7, 14, 2),
        (BatchPlan(2, 7, 1, "per-epoch"), 0, 0, 0),
        (BatchPlan(), 0, 0, 0),
        (BatchPlan(), 1, 1, 1),
    ],
)
def test_plan_counts(plan: BatchPlan, num_examples: int, visits: int, num_batches: int) -> None:
    assert plan.num_visits(num_examples) == visits
    assert plan.num_batches(num_examples) == num_batches
    sizes = list(plan.batch_sizes(num_examples))
    assert (sum(sizes), len(sizes)) == (visits, num_batches)
    core_plan = plan.for_core()
    assert core_plan.visits(num_examples) == visits
    assert core_plan.batches(num_examples) == num_batches


@pytest.mark.parametrize(
    ("plan", "num_examples", "num_buffered"),
    [
        (BatchPlan(5, 20, 100), 94, 100),
        (BatchPlan(5, 20, 1000), 94, 470),
        (BatchPlan(5, 20, FULL), 94, 470),
        # The limit of examples does not shrink the buffer.
        (BatchPlan(5, 20, FULL, max_examples=3), 94, 470),
        (BatchPlan(5, 20, FULL, "shuffle-repeat"), 94, 94),
        (BatchPlan(5, 20, FULL, "per-epoch"), 94, 94),
        (BatchPlan(5, 20, 0), 94, 1),
        (BatchPlan(5, 20, FULL), 0, 0),
        (BatchPlan(2**31 - 1, 20, FULL), 94, 2**32 - 1),
    ],
)
def test_number_of_buffered_examples(plan: BatchPlan, num_examples: int, num_buffered: int) -> None:
    assert plan.num_buffered(num_examples) == num_buffered


@pytest.mark.parametrize(
    ("plan", "num_examples", "largest"),
    [
        (BatchPlan(5, 20), 94, 20),
        (BatchPlan(5, 2**31 - 1), 94, 470),
        (BatchPlan(5, 1000, pipeline="shuffle-repeat"), 94, 470),
        (BatchPlan(5, 1000, pipeline="per-epoch"), 94, 94),
        (BatchPlan(5, 1000, max_examples=7), 94, 7),
        (BatchPlan(3, 1000), 0.4, 2),
        (BatchPlan(), 0, 1),
        (BatchPlan(2**31 - 1, MAX_BATCH), 94, MAX_BATCH),
    ],
)
def test_the_largest_batch(plan: BatchPlan, num_examples: float, largest: int) -> None:
    assert plan.largest_batch(num_examples, "client 'a'") == largest


def test_a_client_with_a_batch_above_the_limit_of_the_core_is_refused() -> None:
    batches = from_arrays(np.zeros((2, 4, 4), np.float32), np.zeros(2, np.int32), client_id="a")
    batches.client.preprocess(epochs=MAX_BATCH // 2, batch_size=MAX_BATCH)
    words = r"^batch_size=16777217: a batch of client 'a' would have 16,777,217 examples; choose at"
    with pytest.raises(ConfigError, match=words):
        batches.client.preprocess(
            epochs=MAX_BATCH, batch_size=MAX_BATCH + 1, max_examples=MAX_BATCH + 1
        )
