"""The tables of suspicious examples and clients."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedcli.cli.screen import suspect_tables
from fedcli.cli.screen.output import print_json
from fedcli.cli.screen.render import Screen
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.inspection.suspects import Broken, Suspect, SuspectClient, Suspects

FOUND = Suspects(
    measure="nats",
    criterion="a score above 5",
    num_examples=200,
    num_suspicious=11,
    examples=(Suspect("s0000000", 3, 4, 9, 41.26), Suspect("s0000001", 0, 7, 1, 0.5)),
    clients=(SuspectClient("s0000001", 80, 8, 0.055),),
    fault_counts={"blank": 0, "far": 1, "copy": 1},
    broken=(
        Broken("s0000000", 5, 2, "far", distance=31.0),
        Broken("s0000001", 8, 6, "copy", original=2),
    ),
)


@pytest.fixture
def data() -> ClientData:
    return open_splits(DataSource("synthetic-digits", data_options={"clients": 2}))["train"]


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_shows_each_suspect_with_its_picture(
    data: ClientData, capsys: pytest.CaptureFixture[str]
) -> None:
    suspect_tables.show(Screen(), data, FOUND)
    text = capsys.readouterr().out
    shown = cells(text)
    assert ["1", "s0000000", "3", "4", "9", "41.3"] in shown
    assert ["2", "s0000001", "0", "7", "1", "0.5"] in shown
    assert ["1:", "4>9", "2:", "7>1"] in shown
    assert "11 of 200 examples (5.5%) are suspicious: a score above 5" in text
    assert ["s0000001", "80", "8", "10.0%", "5.5%"] in shown
    assert ["s0000000", "far", "5", "2", "distance", "31.0"] in shown
    assert ["s0000001", "copy", "8", "6", "of", "example", "2"] in shown
    assert "█" in text or "@" in text


def test_shows_that_nothing_was_found(data: ClientData, capsys: pytest.CaptureFixture[str]) -> None:
    none = replace(
        FOUND, num_examples=0, num_suspicious=0, examples=(), clients=(), fault_counts={}, broken=()
    )
    suspect_tables.show(Screen(), data, none)
    shown = capsys.readouterr().out
    assert "0 of 0 examples (0.0%) are suspicious" in shown
    assert "none" in shown
    assert "Broken" not in shown


def test_no_fault_is_one_line(data: ClientData, capsys: pytest.CaptureFixture[str]) -> None:
    sound = replace(FOUND, fault_counts={"blank": 0, "far": 0, "copy": 0}, broken=())
    suspect_tables.show(Screen(), data, sound)
    lines = capsys.readouterr().out.partition("Broken examples (train)\n")[2].splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("none (blank: all pixels alike; ")


def test_uses_class_names(data: ClientData, capsys: pytest.CaptureFixture[str]) -> None:
    data.class_names = tuple("abcdefghij")
    suspect_tables.show(Screen(), data, FOUND)
    assert ["1", "s0000000", "3", "e", "j", "41.3"] in cells(capsys.readouterr().out)


def test_json_holds_all(data: ClientData, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(suspect_tables.to_json(data, FOUND))
    read = json.loads(capsys.readouterr().out)
    assert read["split"] == "train"
    assert read["examples"][0] == {
        "client_id": "s0000000",
        "index": 3,
        "label": 4,
        "likelier_label": 9,
        "score": 41.26,
    }
    assert read["clients"][0]["least_share"] == 0.055
    assert read["broken"][1]["original"] == 2
    assert read["fault_counts"] == {"blank": 0, "far": 1, "copy": 1}
    assert (read["num_examples"], read["num_suspicious"]) == (200, 11)
