"""Plans of batches count as the core does."""

from __future__ import annotations

import pytest

from fedcli.datasets.batch_plan import FULL, BatchPlan


@pytest.mark.parametrize(
    ("plan", "num_examples", "visits", "num_batches"),
    [
        # The tutorial: 5 epochs of 94 examples, 20 a batch, cross epochs.
        (BatchPlan(5, 20, 100), 94, 470, 24),
        (BatchPlan(5, 20, 100, "shuffle-repeat"), 94, 470, 24),
        (BatchPlan(5, 20, 100, "per-epoch"), 94, 470, 25),
        (BatchPlan(3, 4, 1, "per-epoch", max_examples=11), 5, 11, 5),  # 4+1, 4+1, 1
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
        (BatchPlan(5, 20, FULL, max_examples=3), 94, 470),  # the rest is drawn from all the same
        (BatchPlan(5, 20, FULL, "shuffle-repeat"), 94, 94),
        (BatchPlan(5, 20, FULL, "per-epoch"), 94, 94),
        (BatchPlan(5, 20, 0), 94, 1),
        (BatchPlan(5, 20, FULL), 0, 0),
        (BatchPlan(2**31 - 1, 20, FULL), 94, 2**32 - 1),
    ],
)
def test_a_shuffle_keeps_as_many_as_it_draws_from(
    plan: BatchPlan, num_examples: int, num_buffered: int
) -> None:
    assert plan.num_buffered(num_examples) == num_buffered
