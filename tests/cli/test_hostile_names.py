"""Names from files that would move the cursor, or be run as formulas by a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fedcli.csv_text import shown_cell
from tests.kit.command_line import Fedcli

ESCAPES = "\033]0;owned\007\033[31mcat"
IDS = ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\u202ereversed", "\x9b31m")
OUT = "run\033[31m"


@pytest.fixture
def hostile(fedcli: Fedcli, tmp_path: Path) -> None:
    """A store and a run whose clients, classes and folder have hostile names."""
    rows = ["client_id,label,a,b,c,d"]
    for index, name in enumerate(IDS * 2):
        rows += [f'"{name}","{ESCAPES}",1,2,3,{index}', f'"{name}",=dog,4,5,6,{index}']
    (tmp_path / "c.csv").write_text("\n".join(rows) + "\n")
    assert fedcli("preprocess", "c.csv", "--out", "c.h5", "-q", "--hold-out", "within").code == 0
    options = ("--clients", "all", "--rounds", 2, "--record-clients", "--csv", "--eval-every", 1)
    done = fedcli("train", "--data", "c.h5", *options, "--out", OUT)
    assert done.code == 0
    assert not (set(done.out + done.err) & {"\033", "\007", "\x9b", "\u202e"})


COMMANDS = (
    "inspect-clients --data c.h5",
    "inspect-clients --data c.h5 --means --top 6",
    "inspect-clients --data c.h5 --show =1+1",
    "inspect-clients --data c.h5 --suspects",
    "inspect-clients --data c.h5 --json",
    "inspect-clients --data c.h5 --csv o.csv",
    "inspect-clients --data c.h5 --split nowhere",
    "eval RUN --by-class --clients all --split train",
    "eval RUN --show-errors 3 --clients all",
    "eval RUN --predictions p.csv --clients all",
    "eval RUN --per-client q.csv --clients all --split train",
    "eval RUN --clients nobody",
    "report RUN",
    "report RUN RUN",
    "report RUN --format markdown",
    "report RUN --format latex",
    "report RUN --format csv",
    "report RUN --csv r.csv",
    "report RUN --clients-csv s.csv",
    "report RUN RUN --html page.html --plot plot.svg",
    "export RUN w.npz",
    "export RUN w.npz --json",
    "train --resume RUN --rounds 3",
    "train --data c.h5 --out RUN",
)


@pytest.mark.usefixtures("hostile")
def test_no_name_reaches_the_screen_as_it_is(fedcli: Fedcli, tmp_path: Path) -> None:
    for command in COMMANDS:
        done = fedcli(*(OUT if word == "RUN" else word for word in command.split(" ")))
        assert done.code in (0, 1), command
        shown = set(done.out + done.err) - {"\n"}
        assert all(map(str.isprintable, shown)), (command, done.out, done.err)
    for name in ("page.html", "plot.svg"):
        assert all(each.isprintable() or each == "\n" for each in (tmp_path / name).read_text())
    files = [*tmp_path.glob("*.csv"), tmp_path / OUT / "metrics.csv"]
    assert len(files) == 7
    for file in files:
        if file.name != "c.csv":
            with file.open(newline="") as opened:
                cells = {cell for row in csv.reader(opened) for cell in row}
            assert cells == set(map(shown_cell, cells)), file
            assert not set("".join(cells)) & {"\033", "\007", "\x9b", "\u202e"}, file


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        *((each, f"'{each}") for each in ("=1+1", "+a", "-a", "@a", "\ta", "\ra", "=", "-", "\n")),
        *(
            (each, each)
            for each in ("", "a=1", "-1", "-0.5e-3", "+5", "inf", "-inf", 1, -2.5, None)
        ),
        ("-1\t", "'-1\t"),
        ("\uff1d1", "'\uff1d1"),
        ("\033]0;a\007\x9b1m\x7f\u202eb", r"\x1b]0;a\x07\x9b1m\x7f\u202eb"),
        ("\xa0é a\nb\tc", "\xa0é a\nb\tc"),
    ],
)
def test_a_cell_has_no_control_characters_and_is_no_formula(cell: object, shown: object) -> None:
    assert shown_cell(cell) == shown
