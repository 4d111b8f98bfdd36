from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fedcli.cli import pictures
from fedcli.cli.progress import Snapshot, Speed, clock, describe, short_number
from fedcli.cli.render import Bar, Screen


def screen_on(output: io.StringIO, **console: object) -> Screen:
    screen = Screen()
    screen.__dict__["console"] = Console(file=output, legacy_windows=False, **console)  # type: ignore[arg-type]
    return screen


def test_ink_is_one_minus_background() -> None:
    images = np.array([[[0.0, 1.0], [0.25, 2.0]]], np.float32)
    assert pictures.ink_of(images, "background").tolist() == [[[1, 0], [0.75, 0]]]
    assert pictures.ink_of(images, "ink").tolist() == [[[0, 1], [0.25, 1]]]
    coloured = np.zeros((1, 2, 2, 3), np.float32)
    coloured[..., 0] = 0.75
    assert pictures.ink_of(coloured, "ink").tolist() == [[[0.25, 0.25], [0.25, 0.25]]]


def test_crop_removes_the_margin_common_to_all() -> None:
    ink = np.zeros((2, 6, 5), np.float32)
    ink[0, 1, 2] = ink[1, 4, 3] = 1
    cropped = pictures.crop(ink)
    assert cropped.shape == (2, 4, 2)
    assert (cropped[0, 0, 0], cropped[1, 3, 1], cropped.sum()) == (1, 1, 2)
    blank = np.zeros((1, 3, 3), np.float32)
    assert pictures.crop(blank).shape == (1, 3, 3)


def test_halve_averages_four_pixels_and_pads_odd_edges() -> None:
    ink = np.array([[[1, 1, 0.5], [0, 0, 0], [1, 0, 0]]], np.float32)
    assert pictures.halve(ink).tolist() == [[[0.5, 0.125], [0.25, 0]]]


def test_half_blocks_and_ascii() -> None:
    ink = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0]], np.float32)
    levels = pictures.cells(ink)
    assert levels.shape == (2, 4, 2)
    assert pictures.half_blocks(levels) == [" ▀▄█", "▀   "]
    assert pictures.ascii_art(levels) == [" ==@", "=   "]


def test_greys_hold_both_pixels_of_a_cell() -> None:
    output = io.StringIO()
    screen = screen_on(output, force_terminal=True, color_system="truecolor", no_color=False)
    (line,) = screen.picture(np.array([[0, 0.2, 1, 1], [0, 1, 0.2, 1]], np.float32))
    assert line.plain == " ▄▀█"
    screen.console.print(line)
    drawn = output.getvalue()
    assert "\x1b[38;2;255;255;255;48;2;51;51;51m▄" in drawn
    assert "\x1b[38;2;255;255;255;48;2;51;51;51m▀" in drawn


@pytest.mark.parametrize("console", [{"no_color": True}, {"color_system": "standard"}])
def test_no_greys_without_colours(console: dict[str, object]) -> None:
    screen = screen_on(io.StringIO(), force_terminal=True, **console)
    (line,) = screen.picture(np.array([[0, 1], [0, 1]], np.float32))
    assert (line.plain, line.spans) == (" █", [])


def test_bars_are_scaled_to_the_greatest() -> None:
    screen = screen_on(io.StringIO(), width=80)
    lines = screen.bar_lines([Bar("a", 1000), Bar("bb", 500), Bar("c", 0)], width=20)
    assert [line.plain for line in lines] == [
        " a ███████████ 1,000",
        "bb █████▌        500",
        " c                 0",
    ]


def test_speed_and_time_left() -> None:
    speed = Speed()
    assert speed.observe(10.0, Snapshot(5, 100, 1.0, 0.5, 500)) == (None, None)
    assert speed.observe(12.0, Snapshot(15, 100, 1.0, 0.5, 1500)) == (500.0, 17.0)


def test_progress_line() -> None:
    snapshot = Snapshot(5, 100, 1.25, 0.5, 500)
    assert describe(snapshot, None, None) == "loss 1.2500  accuracy 0.5000"
    assert describe(snapshot, 12_345.0, 65.0) == (
        "loss 1.2500  accuracy 0.5000  12.3k examples/s  1:05 left"
    )


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1500, "1.5k"), (6.29e6, "6.29M"), (2e9, "2G")]
)
def test_short_number(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
