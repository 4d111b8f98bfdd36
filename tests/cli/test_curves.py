"""Curves in characters: the places of lines, marks and ticks, and the colour of each piece."""

from __future__ import annotations

import math

import pytest

from fedcli.cli.screen import curves


def texts(series: dict[str, list[tuple[float, float]]], width: int, **how: object) -> list[str]:
    picture = curves.draw(series, width, **how)  # type: ignore[arg-type]
    assert picture is not None
    return picture.texts


def test_a_line_goes_from_corner_to_corner_with_ticks_at_round_numbers() -> None:
    rising = {"a": [(float(x), x / 100) for x in range(101)]}
    assert texts(rising, 31, height=5) == [
        "        1 ┤                ⣀⡤⠖⠋",
        "          │            ⣀⠤●⠋⠁",
        "          │        ⣀⠤⠒⠉",
        "          │   ⢀⣠●⠒⠉",
        "        0 ┤⣠⠴⠚⠉",
        "          └┬──────────────────┬",
        "           0                100",
    ]
    assert texts(rising, 31, height=7)[3] == "      0.5 ┤        ⢀⡤⠚⠁"


def test_without_braille_points_have_marks_and_lines_are_dots() -> None:
    series = {"a": [(0.0, 0.0), (10.0, 1.0)], "b": [(0.0, 1.0)]}
    assert texts(series, 22, height=3, has_braille=False) == [
        "        1 |x       ..o",
        "          |   .....",
        "        0 |o..",
        "          ++---------+",
        "           0        10",
    ]


def test_one_point_and_none() -> None:
    assert curves.draw({"a": []}, 40) is None
    lines = texts({"a": [(3.0, 0.5)]}, 30, height=3)
    assert lines[1] == "      0.5 ┤         ●"
    assert lines[-1].split() == ["3"]


def test_the_scale_is_logarithmic_where_one_curve_would_flatten_the_others() -> None:
    calm = {f"run {number}": [(x, 1 + x / 10) for x in range(10)] for number in range(3)}
    picture = curves.draw({**calm, "diverged": [(x, 10.0 ** (x / 2)) for x in range(10)]}, 60)
    assert picture is not None
    assert picture.is_log
    assert any(text.split()[:1] == ["10,000"] for text in picture.texts)
    for series, may_be_log in (
        (calm, True),
        ({"falling": [(x, 2.3 / (x + 1)) for x in range(20)]}, True),
        ({"rising": [(x, 0.1 + x / 25) for x in range(20)]}, False),
    ):
        quiet = curves.draw(series, 60, may_be_log=may_be_log)
        assert quiet is not None
        assert not quiet.is_log


@pytest.mark.parametrize("count", [2, 8, 9, 26])
def test_each_series_has_a_colour_and_a_mark_of_its_own(count: int) -> None:
    series = {
        str(number): [(float(x), number + math.sin(x / 9)) for x in range(60)]
        for number in range(count)
    }
    picture = curves.draw(series, 120, height=3 * count)
    assert picture is not None
    seen: dict[int, str] = {}
    for piece in (piece for line in picture.lines for piece in line):
        if piece.series is not None:
            seen[piece.series] = seen.get(piece.series, "") + piece.text
    assert sorted(seen) == list(range(count))
    marks = [curves.mark_of(number, count) for number in range(count)]
    assert len(set(marks)) == count
    for number, mark in enumerate(marks):
        assert seen[number].count(mark) >= 2, number
        assert not set(marks) - {mark} & set(seen[number])


def test_no_line_is_wider_than_asked_and_labels_do_not_run_together() -> None:
    for width in (22, 40, 80, 120):
        lines = texts({"a": [(0, 1e-4), (123_456, 2e-4)]}, width)
        assert max(map(len, lines)) <= width
        ticks = [float(each.replace(",", "")) for each in lines[-1].split()]
        assert ticks == sorted(set(ticks))
        assert all(each == int(each) for each in ticks)


def test_legend_says_which_mark_is_whose_and_its_last_value() -> None:
    assert curves.legend(["a", "b"], ["0.5", "0.75"]) == [
        curves.Piece("● a 0.5", 0),
        curves.Piece("▲ b 0.75", 1),
    ]
    assert curves.legend(["a"], has_braille=False) == [curves.Piece("o a", 0)]
