from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from fedcli.cli.jobs.bars import Snapshot, Speed, clock, describe, short_number
from fedcli.cli.jobs.live_line import LiveLine, Part
from fedcli.cli.screen import pictures
from fedcli.cli.screen.output import Remarks
from fedcli.cli.screen.render import Bar, Screen


def screen_on(output: io.StringIO, **console: object) -> Screen:
    screen = Screen()
    screen.__dict__["console"] = Console(file=output, legacy_windows=False, **console)  # type: ignore[arg-type]
    return screen


def true_colour(output: io.StringIO, **console: object) -> Screen:
    settings = {"force_terminal": True, "color_system": "truecolor", "no_color": False, "width": 80}
    return screen_on(output, **(settings | console))


def drawn(screen: Screen, picture: np.ndarray) -> list[str]:
    return [line.plain for line in screen.picture(picture)]


def test_ink_is_one_minus_background() -> None:
    images = np.array([[[0.0, 1.0], [0.25, 2.0]]], np.float32)
    assert pictures.pictures_of(images, "background").tolist() == [[[1, 0], [0.75, 0]]]
    assert pictures.pictures_of(images, "ink").tolist() == [[[0, 1], [0.25, 1]]]


def test_three_channels_are_colours_and_others_are_averaged() -> None:
    coloured = np.zeros((1, 2, 2, 3), np.float32)
    coloured[..., 0] = 0.75
    assert pictures.pictures_of(coloured, "ink").tolist() == coloured.tolist()
    assert pictures.pictures_of(coloured, "background")[0, 0, 0].tolist() == [0.25, 1, 1]
    for num_channels in (1, 2, 4):
        layers = np.zeros((1, 2, 2, num_channels), np.float32)
        layers[..., 0] = 0.5
        shown = pictures.pictures_of(layers, "ink")
        assert shown.tolist() == [[[0.5 / num_channels] * 2] * 2]


def test_crop_removes_the_margin_common_to_all() -> None:
    ink = np.zeros((2, 6, 5), np.float32)
    ink[0, 1, 2] = ink[1, 4, 3] = 1
    cropped = pictures.crop(ink)
    assert cropped.shape == (2, 4, 2)
    assert (cropped[0, 0, 0], cropped[1, 3, 1], cropped.sum()) == (1, 1, 2)
    blank = np.zeros((1, 3, 3), np.float32)
    assert pictures.crop(blank).shape == (1, 3, 3)
    assert pictures.crop(np.zeros((0, 3, 3), np.float32)).shape == (0, 3, 3)
    coloured = np.repeat(ink[..., None], 3, axis=3)
    assert pictures.crop(coloured).shape == coloured.shape


def test_shrink_averages_squares_and_repeats_odd_edges() -> None:
    ink = np.array([[[1, 1, 0.5], [0, 0, 0], [1, 0, 0]]], np.float32)
    assert pictures.shrink(ink, 1).tolist() == ink.tolist()
    assert pictures.shrink(ink, 2).tolist() == [[[0.5, 0.25], [0.5, 0]]]
    assert pictures.shrink(ink, 5).shape == (1, 1, 1)
    coloured = np.repeat(ink[..., None], 3, axis=3)
    assert pictures.shrink(coloured, 2)[..., 1].tolist() == pictures.shrink(ink, 2).tolist()


def test_stretch_makes_each_picture_reach_full_ink() -> None:
    ink = np.array([[[0.25, 0.5]], [[0, 0]]], np.float32)
    assert pictures.stretch(ink).tolist() == [[[0.5, 1]], [[0, 0]]]
    coloured = np.full((1, 1, 1, 3), 0.5, np.float32)
    assert pictures.stretch(coloured).tolist() == coloured.tolist()


def test_half_blocks_and_ascii() -> None:
    ink = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0]], np.float32)
    levels = pictures.cells(ink)
    assert levels.shape == (2, 4, 2)
    assert pictures.half_blocks(levels) == [" ▀▄█", "▀   "]
    assert pictures.ascii_art(levels) == [" ==@", "=   "]


def test_greys_hold_both_pixels_of_a_cell() -> None:
    output = io.StringIO()
    screen = true_colour(output)
    (line,) = screen.picture(np.array([[0, 0.2, 1, 1], [0, 1, 0.2, 1]], np.float32))
    assert line.plain == " ▄▀█"
    screen.console.print(line)
    printed = output.getvalue()
    assert "\x1b[38;2;255;255;255;48;2;51;51;51m▄" in printed
    assert "\x1b[38;2;255;255;255;48;2;51;51;51m▀" in printed


def test_colours_hold_both_pixels_of_a_cell() -> None:
    output = io.StringIO()
    screen = true_colour(output)
    picture = np.array([[[1, 0, 0]], [[0, 0, 0.2]], [[0, 1, 0]]], np.float32)
    lines = screen.picture(picture)
    assert [line.plain for line in lines] == ["▀", "▀"]
    for line in lines:
        screen.console.print(line)
    assert "\x1b[38;2;255;0;0;48;2;0;0;51m▀" in output.getvalue()
    assert "\x1b[38;2;0;255;0;48;2;0;0;0m▀" in output.getvalue()


def test_colours_without_colour_are_shades_of_characters() -> None:
    picture = np.array([[[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]], np.float32)
    assert drawn(true_colour(io.StringIO(), no_color=True), picture) == [" @"]
    assert drawn(screen_on(io.StringIO()), picture) == [" @"]


def test_ascii_where_blocks_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert drawn(screen_on(io.StringIO()), np.ones((2, 1), np.float32)) == ["@"]


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


def test_bars_take_the_scale_they_are_given() -> None:
    screen = screen_on(io.StringIO(), width=80)
    lines = screen.bar_lines([Bar("a", 5)], width=20, greatest=1000)
    assert [line.plain for line in lines] == ["a                  5"]
    lines = screen.bar_lines([Bar("a", 500)], width=20, greatest=1000)
    assert [line.plain for line in lines] == ["a ██████         500"]


def test_blocks_stand_in_rows_of_equal_length() -> None:
    output = io.StringIO()
    # Four of the six blocks would fit in a row, but three in each make two equal rows.
    screen_on(output, width=80).beside([[Text("x" * 18)]] * 6)
    lines = output.getvalue().splitlines()
    assert [line.count("x" * 18) for line in lines] == [3, 0, 3]


def test_a_pipe_gets_no_blanks_at_the_ends_of_lines() -> None:
    output = io.StringIO()
    screen = screen_on(output, width=200)
    screen.table(["client", "n"], [["a", "1"], ["long name", "1,000"]])
    screen.bars([Bar("a", 0), Bar("b", 3)], 20)
    screen.pictures(np.eye(4, dtype=np.float32)[None].repeat(2, axis=0), ["x", "yyyyyy"])
    screen.line("text  ")
    lines = output.getvalue().split("\n")
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines[:4] == ["client          n", "-" * 17, "a               1", "long name   1,000"]
    assert lines[6:9] == ["x     yyyy", "▀▄    ▀▄", "  ▀▄    ▀▄"]


def test_a_narrow_terminal_gets_every_figure_whole() -> None:
    output = io.StringIO()
    screen = true_colour(output, width=20, color_system=None)
    screen.table(["a name of some length", "n"], [["x" * 30, "1,234,567"]])
    assert "1,234,567" in output.getvalue()
    assert output.getvalue().count("x") == 30
    assert not screen.has_room_for(["client", "examples", "n"], [["x", "1,234,567", "1"]])
    assert screen.has_room_for(["client", "n"], [["x", "1,234,567"]])


@pytest.mark.parametrize(
    ("width", "line"), [(17, "a   bb   2,000"), (12, "a  bb  2,000"), (10, "a bb 2,000")]
)
def test_columns_stand_closer_where_there_is_no_room(width: int, line: str) -> None:
    output = io.StringIO()
    screen = true_colour(output, width=max(width, 10), color_system=None)
    screen.table(["x", "yy", "n"], [["a", "bb", "2,000"]], left=2)
    assert output.getvalue().splitlines()[2].rstrip() == line


@pytest.mark.parametrize(
    ("count", "width", "factor"),
    [(1, 28, 1), (4, 28, 1), (5, 28, 2), (10, 32, 2), (1, 224, 3), (10, 224, 14), (1, 1, 1)],
)
def test_pictures_shrink_until_they_are_small_or_fill_two_rows(
    count: int, width: int, factor: int
) -> None:
    assert true_colour(io.StringIO()).shrink_factor(count, width) == factor


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_pictures_fit_the_narrowest_terminal(columns: int) -> None:
    output = io.StringIO()
    screen = true_colour(output, width=columns, color_system=None)
    screen.pictures(np.ones((3, 8, 8), np.float32))
    assert max(map(len, output.getvalue().splitlines())) <= columns


def test_each_picture_below_is_in_the_column_of_the_picture_above() -> None:
    output = io.StringIO()
    ink = np.zeros((2, 2, 3), np.float32)
    ink[1] = 1
    screen_on(output).pictures(ink, ["a", "b"], below=1 - ink)
    assert output.getvalue().splitlines() == ["a    b", "     ███", "", "███"]


def test_speed_and_time_left() -> None:
    speed = Speed()
    assert speed.observe(10.0, Snapshot(5, 100, 1.0, 0.5, 500)) == (None, None)
    assert speed.observe(12.0, Snapshot(15, 100, 1.0, 0.5, 1500)) == (500.0, 17.0)


def test_speed_within_a_long_round() -> None:
    speed = Speed()
    # The speed is averaged over three seconds, or over one round if that takes longer.
    for tick in range(100):
        speed.observe(tick, Snapshot(0, 4), tick / 200)
    examples, left = speed.observe(100.0, Snapshot(0, 4), 0.5)
    assert examples is None
    assert left == pytest.approx(700.0)


def test_parts_of_the_progress_line() -> None:
    def texts(*arguments: Any) -> list[str]:
        return [part.text for part in describe(*arguments)]

    snapshot = Snapshot(5, 100, 1.25, 0.5, 500)
    assert texts(snapshot, None, None) == ["loss 1.2500", "accuracy 0.5000"]
    assert texts(snapshot, 12_345.0, 65.0, (3, 10)) == [
        *("3/10 clients", "loss 1.2500", "accuracy 0.5000"),
        *("12.3k examples/s", "1:05 left"),
    ]
    evaluated = Snapshot(100, 100, None, 0.5, 500, ("test 0.8 @40", "best 0.9 @20"))
    assert texts(evaluated, None, 0.0) == [
        *("test 0.8 @40", "best 0.9 @20", "loss not finite", "accuracy 0.5000"),
        "closing evaluation",
    ]


PARTS = [Part("last and best", 5), Part("loss", 3), Part("speed", 1), Part("time left", 6)]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (100, f"round 1/2  {'━' * 10}{' ' * 10}  last and best  loss  speed  time left"),
        (62, f"round 1/2  {'━' * 5}{' ' * 5}  last and best  loss  speed  time left"),
        (40, "round 1/2  last and best  time left"),
        (25, "round 1/2  time left"),
        (12, "round 1/2"),
        (6, "roun"),
    ],
)
def test_a_live_line_never_wraps_and_keeps_the_round(
    columns: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    LiveLine(stream, Remarks(1)).show("round 1/2", PARTS, 0.5)
    stream.seek(0)
    shown = stream.read()
    assert shown == f"\r{line}\x1b[K"
    assert len(line) <= columns - len("^C")


def test_a_window_made_narrower_leaves_no_copies_of_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XTERM_VERSION", raising=False)
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    live = LiveLine(stream, Remarks(1))
    monkeypatch.setenv("COLUMNS", "100")
    live.show("round 1/2", PARTS)
    monkeypatch.setenv("COLUMNS", "20")  # the line of 44 columns now fills three rows
    live.show("round 1/2", PARTS)
    live.show("round 2/2", PARTS)
    stream.seek(0)
    second = stream.read().split("\x1b[K")[1]
    assert second == "\r\x1b[2A\x1b[Jround 1/2"
    stream.seek(0)
    assert stream.read().endswith("\x1b[K\rround 2/2\x1b[K")


def test_remarks_stand_above_a_live_line() -> None:
    stream, remarks = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), Remarks(1)
    before = remarks.write
    with LiveLine(stream, remarks) as live:
        live.show("counting", [])
        remarks.note("a remark")
    assert remarks.write == before
    stream.seek(0)
    assert stream.read() == "\rcounting\x1b[K\r\x1b[2Kfedcli: a remark\n\r\r\x1b[2K"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (0.0004, "0.0004"), (0.349, "0.35"), (7, "7"), (9.97, "10"), (12.4, "12")),
        *((999, "999"), (1500, "1.5k"), (999_999, "1M"), (6.29e6, "6.29M"), (2e9, "2G")),
    ],
)
def test_short_number(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def table_at(width: int, headers: list[str], rows: list[list[str]], left: int) -> list[str]:
    output = io.StringIO()
    true_colour(output, width=width, color_system=None).table(headers, rows, left=left)
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_a_table_too_wide_is_several_with_every_column() -> None:
    measures = [f"measure {index}" for index in range(12)]
    names = ["runs/a-long-name-of-a-run-1", "runs/a-long-name-of-a-run-2"]
    rows = [[name, *(f"{row}.{i:04}" for i in range(12))] for row, name in enumerate(names)]
    lines = table_at(80, ["run", *measures], rows, 1)
    headers = [line for line in lines if line.startswith("run ")]
    assert len(headers) > 1
    assert [word for line in headers for word in line.split() if word.isdigit()] == [
        str(index) for index in range(12)
    ]
    figures = [word for line in lines for word in line.split() if "." in word]
    assert sorted(figures) == sorted(cell for row in rows for cell in row[1:])
    assert sum("runs/a-long-name" in line for line in lines) == 2 * len(headers)


def test_a_table_of_many_texts_is_turned() -> None:
    options = ["--client-option momentum", "--server-optimizer", "--aggregator"]
    rows = [
        [f"0.{row}", "adagrad-with-a-long-name", "robust", "3", f"0.{row}234 ± 0.0123 (2 of 3)"]
        for row in range(4)
    ]
    lines = table_at(60, [*options, "seeds", "test accuracy"], rows, 3)
    starts = [line for line in lines if line.startswith(options[0])]
    assert len(starts) == 4  # the table has four parts, with one configuration in each
    text = "\n".join(lines)
    for row in range(4):
        assert f"0.{row}234 ± 0.0123 (2 of 3)" in text
    for header in (*options[1:], "seeds", "test accuracy"):
        assert sum(line.startswith(header) for line in lines) == 4


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_table_in_no_room_loses_nothing(width: int) -> None:
    output = io.StringIO()
    headers, rows = ["name of it", "b", "number"], [["x", "a text that is long", "1,234,567.8"]]
    true_colour(output, width=width, color_system=None).table(headers, rows, left=2)
    assert "1,234,567.8" in output.getvalue()
