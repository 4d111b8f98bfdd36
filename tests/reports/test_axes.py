from __future__ import annotations

import pytest

from fedcli.reports.axes import Axis, tick_texts


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.09834, 0.8123, [0.2, 0.4, 0.6, 0.8]),
        (2.0, 2.0, [2]),
        (-3.0, 41.0, [0, 20, 40]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(
    low: float, high: float, ticks: list[float]
) -> None:
    assert Axis(low, high).ticks(5) == pytest.approx(ticks)


def test_an_axis_has_two_ticks_where_there_is_room_for_two() -> None:
    assert Axis(0, 30).ticks(2, is_whole=True) == [0, 20]
    assert len(Axis(1, 2).ticks(2)) >= 2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1, 3, [1, 2, 3]), (0, 300, [0, 100, 200, 300]), (7, 7, [7])],
)
def test_rounds_have_whole_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high).ticks(6, is_whole=True) == ticks


def test_a_logarithmic_axis() -> None:
    axis = Axis.of([0.5, 1.0, 1.0, 5000.0])
    assert axis.is_log
    assert axis.ticks(6) == [1, 10, 100, 1000]
    assert axis.share(0.5) == 0
    assert axis.share(50.0) == pytest.approx(0.5)
    assert axis.share(5000.0) == 1
    assert Axis.of([2.0, 3.0, 6.0], is_log=True).ticks(6) == [2, 5]
    assert Axis.of([2.3, 2.2, 30.0, 31.0], [2.3, 2.3]).is_log  # 31 is far above both first values
    assert not Axis.of([2.3, 0.3, 0.05, 0.04], [2.3]).is_log
    assert not Axis.of([0.0, 1.0, 1.0, 5000.0]).is_log  # zero has no logarithm
    assert not Axis.of([0.5, 1.0, 1.0, 5000.0], is_log=False).is_log


def test_texts_of_ticks_have_as_many_decimals_as_tell_them_apart() -> None:
    assert tick_texts([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_texts([0, 0.5, 1]) == ["0.0", "0.5", "1.0"]
    assert tick_texts([0, 1000, 2000]) == ["0", "1,000", "2,000"]
    assert tick_texts([1e-9, 2e-9]) == ["1e-09", "2e-09"]
