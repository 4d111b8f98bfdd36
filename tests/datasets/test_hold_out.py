"""Hold-out: each example is on one side, sides have the right sizes, clients are independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.datasets.partitions import hold_out
from fedcli.datasets.partitions.assignment import Assignment, assign_lists
from fedcli.errors import DataError

fractions = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
seeds = st.integers(0, 2**63 - 1)
sizes_of_clients = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def make_assignment(sizes: list[int]) -> Assignment:
    """Clients c00, c01, ... hold the examples in the reverse order of the table."""
    order = np.arange(sum(sizes))[::-1]
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return assign_lists([f"c{index:02d}" for index in range(len(sizes))], parts)


def held(assignment: Assignment) -> dict[str, list[int]]:
    return {
        name: assignment.indices(index).tolist() for index, name in enumerate(assignment.client_ids)
    }


@given(sizes=sizes_of_clients, fraction=fractions, seed=seeds)
def test_within_puts_each_example_on_one_side(sizes: list[int], fraction: float, seed: int) -> None:
    assignment = make_assignment(sizes)
    if max(sizes) < 2:
        with pytest.raises(DataError, match="no client has two examples"):
            hold_out.within(assignment, fraction, seed)
        return
    made = hold_out.within(assignment, fraction, seed)
    train, test = held(made.train), held(made.test)
    assert list(train) == list(assignment.client_ids)
    assert list(test) == [name for name, size in zip(train, sizes, strict=True) if size >= 2]
    assert made.num_whole == sizes.count(1)
    for name, mine in held(assignment).items():
        kept, taken = train[name], test.get(name, [])
        assert sorted(kept + taken) == sorted(mine)
        # Both sides keep the order of the client.
        assert kept == [each for each in mine if each in set(kept)]
        assert taken == [each for each in mine if each in set(taken)]
        if len(mine) >= 2:
            assert len(taken) == min(max(1, round(len(mine) * fraction)), len(mine) - 1)


@given(sizes=sizes_of_clients, fraction=fractions, seed=seeds)
def test_clients_puts_each_client_on_one_side(sizes: list[int], fraction: float, seed: int) -> None:
    assignment = make_assignment(sizes)
    if len(sizes) < 2:
        with pytest.raises(DataError, match="only one client"):
            hold_out.clients(assignment, fraction, seed)
        return
    made = hold_out.clients(assignment, fraction, seed)
    assert held(made.train).keys().isdisjoint(held(made.test))
    assert held(made.train) | held(made.test) == held(assignment)
    num_taken = min(max(1, round(len(sizes) * fraction)), len(sizes) - 1)
    assert len(made.test.client_ids) == num_taken


@given(labels=st.lists(st.integers(0, 5), min_size=2, max_size=200), fraction=fractions, seed=seeds)
def test_central_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels, np.int32)
    train, test = hold_out.central(array, fraction, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    assert len(test) == min(max(1, round(len(labels) * fraction)), len(labels) - 1)
    taken = np.bincount(array[test], minlength=6)
    share = np.bincount(array, minlength=6) * (len(test) / len(labels))
    assert (np.abs(taken - share) <= 1.0).all()


def test_central_of_one_example() -> None:
    with pytest.raises(DataError, match="only one example"):
        hold_out.central(np.zeros(1, np.int32), 0.5, 0)


def test_equal_seeds_are_equal_and_others_are_not() -> None:
    assignment = make_assignment([50] * 20)
    labels = np.arange(500, dtype=np.int32) % 10
    for draw in (
        lambda seed: held(hold_out.within(assignment, 0.3, seed).test),
        lambda seed: held(hold_out.clients(assignment, 0.3, seed).test),
        lambda seed: hold_out.central(labels, 0.3, seed)[1].tolist(),
    ):
        assert draw(5) == draw(5)
        assert draw(5) != draw(6)


def test_the_held_out_examples_of_a_client_do_not_depend_on_the_others() -> None:
    alone = held(hold_out.within(make_assignment([20]), 0.4, 3).test)["c00"]
    among = make_assignment([7, 20, 9])
    renamed = Assignment(["b", "c00", "z"], among.order, among.offsets)
    place = {example: rank for rank, example in enumerate(renamed.indices(1).tolist())}
    test = hold_out.within(renamed, 0.4, 3).test
    taken = [place[each] for each in test.indices(1).tolist()]
    # Example e of `alone` is at position 19 - e: make_assignment reverses the order.
    assert taken == [19 - each for each in alone]


def test_the_order_in_which_clients_are_held_out_does_not_depend_on_the_others() -> None:
    assignment = make_assignment([1] * 40)
    few = set(hold_out.clients(assignment, 0.25, 1).test.client_ids)
    most = set(hold_out.clients(assignment, 0.5, 1).test.client_ids)
    assert few < most
    without = assignment.choose(np.array([name not in few for name in assignment.client_ids]))
    assert set(hold_out.clients(without, 10 / 30, 1).test.client_ids) == most - few


def test_positions_are_drawn_evenly() -> None:
    assignment = make_assignment([10] * 400)
    test = hold_out.within(assignment, 0.5, 0).test
    counts = np.bincount(9 - test.order % 10, minlength=10)
    # Each position is expected in 200 of 400 clients. Five standard deviations of 10 are allowed.
    assert (np.abs(counts - 200) < 50).all()
