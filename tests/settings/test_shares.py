"""Shares of numbers are exact in decimal notation, as users write them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.learning.aggregators.robust import count_of
from fedcli.settings.shares import rounded_down, rounded_up


@pytest.mark.parametrize(
    ("share", "number", "down", "up"),
    [
        (0.29, 100, 29, 29),  # in binary it is a little less
        (0.07, 100, 7, 7),  # and this a little more
        (0.1, 3383, 338, 339),
        (0.0, 5, 0, 0),
        (1.0, 7, 7, 7),
        (1e-7, 10**7, 1, 1),
        (0.5, 0, 0, 0),
    ],
)
def test_a_share_is_what_is_written(share: float, number: int, down: int, up: int) -> None:
    assert rounded_down(share, number) == down
    assert rounded_up(share, number) == up


@given(st.integers(0, 999), st.integers(0, 10**6))
def test_shares_of_three_digits_are_exact(thousandths: int, number: int) -> None:
    share = float(Decimal(thousandths) / 1000)
    assert rounded_down(share, number) == thousandths * number // 1000
    assert rounded_up(share, number) == -(-thousandths * number // 1000)


def test_the_number_of_wrong_deltas_is_exact() -> None:
    assert count_of(0.29, 100) == 29
    assert count_of(2.0, 100) == 2
