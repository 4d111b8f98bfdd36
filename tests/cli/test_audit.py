"""`fedcli audit`: its tables, pictures, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.training import trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("audit") / "run", rounds=2, clients="3")


def test_an_example_is_drawn_beside_what_was_read(fedcli: Fedcli, run: Path) -> None:
    done = fedcli("audit", run, "gradient-inversion")
    assert done.code == 0
    lines = done.out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("Above: the example"))
    drawn = [line.rstrip() for line in lines[place + 2 :]]
    blocks = [block.strip("\n") for block in "\n".join(drawn).split("\n\n") if block.strip("\n")]
    assert len(blocks) == 2
    assert blocks[0] == blocks[1]
    assert "The label that the update reveals" in done.out


def test_figures_are_written(fedcli: Fedcli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        file = tmp_path / f"read{ending}"
        options = ["--option", "examples=3", "--plot", file]
        done = fedcli("audit", run, "gradient-inversion", *options)
        assert done.code == 0
        assert f"wrote {file}" in done.err
        assert "gives one mixture of the" in done.err
        first = file.read_bytes()
        assert first.startswith(start)
        fedcli("audit", run, "gradient-inversion", *options)
        assert file.read_bytes() == first


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("loss-threshold", [], ["AUC", "advantage", "TPR at FPR 0.1 %"]),
        ("lira", ["shadows=4"], ["LiRA", "4 shadow runs", "clients that took part: 3"]),
        ("canary", ["shadows=4"], ["epsilon is at least", "reports no epsilon"]),
    ],
)
def test_tables_and_json(
    fedcli: Fedcli, run: Path, name: str, options: list[str], words: list[str]
) -> None:
    given = [text for each in options for text in ("--option", each)]
    done = fedcli("audit", run, name, *given)
    assert done.code == 0
    assert done.err == ""
    assert all(word in done.out for word in words)
    found = json.loads(fedcli("audit", run, name, *given, "--json").out)
    assert found["audit"] == name
    assert 0.0 <= found["auc"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["unknown audit 'nothing'", "lira"]),
        (["lira", "--option", "shadow=4"], ["no option 'shadow'", "shadows"]),
        (["lira", "--plot", "a.png"], ["--plot a.png", "makes no images"]),
        (["gradient-inversion", "--plot", "a.jpg"], ["a.jpg", ".png, .svg, .pdf"]),
        (["gradient-inversion", "--best"], ["--keep-best"]),
    ],
)
def test_mistakes_are_one_line(
    fedcli: Fedcli, run: Path, arguments: list[str], words: list[str]
) -> None:
    done = fedcli("audit", run, *arguments)
    assert done.code == 1
    assert_is_one_line(done, *words)


def test_a_run_that_is_not_there(fedcli: Fedcli, tmp_path: Path) -> None:
    done = fedcli("audit", tmp_path / "no", "lira")
    assert done.code == 1
    assert_is_one_line(done, "there is no run or checkpoint")


def test_audits_are_listed_by_info(fedcli: Fedcli) -> None:
    assert "gradient-inversion, loss-threshold, lira, canary" in fedcli("info").out
    assert "Carlini" in fedcli("info", "lira").out
    assert "fedcli audit RUN NAME" in fedcli("info", "audits").out
