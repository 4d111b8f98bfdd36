"""The output in a pipe without rich has the same bytes as with rich."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcli.cli.screen.render import Screen
from fedcli.cli.screen.text_screen import PipeScreen, TextScreen, needs_rich, open_text_screen

CELLS = st.text(st.sampled_from("ab 0.9-_|\n\x1b\té漢"), max_size=9)
LINES = st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4)
capturing = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def printed(
    screen: TextScreen, capsys: pytest.CaptureFixture[str], *calls: tuple[str, tuple]
) -> str:
    for name, arguments in calls:
        getattr(screen, name)(*arguments)
    return capsys.readouterr().out


@capturing
@given(rows=LINES, left=st.integers(0, 3), text=CELLS)
def test_lines_and_tables_are_those_of_rich(
    rows: list[list[str]], left: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = ["name", "loss", "x"]
    calls = (
        ("line", (text, "dim")),
        ("title", (text,)),
        ("table", (headers, rows, left)),
        ("title", ("end",)),
    )
    wanted = printed(Screen(), capsys, *calls)
    assert printed(PipeScreen(), capsys, *calls) == wanted


@capturing
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=4))
def test_prose_is_that_of_rich(
    rows: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = printed(Screen(), capsys, ("prose", (rows,)))
    assert printed(PipeScreen(), capsys, ("prose", (rows,))) == wanted


@pytest.mark.parametrize("kind", [Screen, PipeScreen])
def test_an_encoding_without_plus_minus_has_two_letters(
    kind: Callable[[], TextScreen], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", out)
    screen = kind()
    screen.line("a ± b")
    screen.table(["run", "loss"], [["x", "0.5 ± 0.1"]])
    out.seek(0)
    assert out.read().split("\n") == [
        *("a +- b", "run         loss", "----------------", "x     0.5 +- 0.1", "")
    ]


def test_a_terminal_is_for_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(open_text_screen(), PipeScreen)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert needs_rich()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_text_screen(), Screen)
