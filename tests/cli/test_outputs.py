"""What is read is never written over: the files of a run, its data, one output by another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.command_line import Fedcli, WriteTff, assert_is_one_line

INPUTS = (
    *("run/checkpoints/round-000001.h5", "run/clients.h5", "run/metrics.csv", "run/metrics.jsonl"),
    *("run/config.toml", "run/evaluation.json", "link.h5", "train.h5"),
)


@pytest.fixture
def inputs(fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path) -> dict[Path, bytes]:
    """A run and its data, by file."""
    write_tff()
    options = ("--rounds", 1, "--csv", "--record-clients", "--out", "run", "-q")
    assert fedcli("train", "--data", "train.h5", *options).code == 0
    (tmp_path / "link.h5").symlink_to("run/clients.h5")
    return {tmp_path / name: (tmp_path / name).read_bytes() for name in INPUTS}


@pytest.mark.parametrize("source", ["run", "run/checkpoints/round-000001.h5"])
def test_eval_writes_over_nothing_it_reads(
    fedcli: Fedcli, inputs: dict[Path, bytes], source: str
) -> None:
    for file in inputs:
        assert fedcli("eval", source, "--per-client", file).code == 1
        assert fedcli("eval", source, "--predictions", file).code == 1
    assert_is_one_line(fedcli("eval", source, "--per-client", "run/clients.h5"), "is what is read")
    assert_is_one_line(fedcli("eval", source, "--predictions", "run/metrics.csv"), "what is read")
    assert_is_one_line(
        fedcli("eval", source, "--predictions", "p.csv", "--per-client", "./p.csv"),
        "--predictions and --per-client name one file",
    )
    assert not Path("p.csv").exists()
    assert {file: file.read_bytes() for file in inputs} == inputs


def test_export_and_report_write_over_nothing_they_read(
    fedcli: Fedcli, inputs: dict[Path, bytes]
) -> None:
    for file in inputs:
        for option in ("--csv", "--clients-csv", "--html"):
            assert_is_one_line(fedcli("report", "run", option, file), "is what is read")
        assert fedcli("export", "run", file).code == 1
    assert_is_one_line(fedcli("report", "run", "--csv", "a", "--html", "a"), "name one file")
    assert not Path("a").exists()
    assert {file: file.read_bytes() for file in inputs} == inputs


def test_a_file_of_ones_own_in_a_run_is_replaced(fedcli: Fedcli, inputs: dict[Path, bytes]) -> None:
    for _ in range(2):
        assert fedcli("eval", "run", "--predictions", "run/p.csv").code == 0
        assert fedcli("report", "run", "--html", "run/page.html").code == 0
