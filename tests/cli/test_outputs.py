"""No output replaces a file of a run, its data, or another output of the command."""

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
    assert_is_one_line(fedcli("eval", source, "--per-client", "run/clients.h5"), "is also an input")
    assert_is_one_line(
        fedcli("eval", source, "--predictions", "run/metrics.csv"), "is also an input"
    )
    assert_is_one_line(
        fedcli("eval", source, "--predictions", "p.csv", "--per-client", "./p.csv"),
        "--predictions and --per-client name the same file",
    )
    assert not Path("p.csv").exists()
    assert {file: file.read_bytes() for file in inputs} == inputs


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "run", "--csv", "new.csv/"),
        ("report", "run", "--html", "new.html/."),
        ("eval", "run", "--predictions", "new.csv/"),
        ("export", "run", "new.npz/"),
        ("inspect-clients", "--csv", "new.csv//"),
    ],
)
def test_a_folder_s_name_is_no_file_to_write(fedcli: Fedcli, arguments: tuple[str, ...]) -> None:
    done = fedcli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert f"'{arguments[-1]}' is the name of a folder; give the name of a file" in done.err
    assert not list(Path().glob("new*"))


def test_export_and_report_write_over_nothing_they_read(
    fedcli: Fedcli, inputs: dict[Path, bytes]
) -> None:
    for file in inputs:
        for option in ("--csv", "--clients-csv", "--html"):
            assert_is_one_line(fedcli("report", "run", option, file), "is also an input")
        assert fedcli("export", "run", file).code == 1
    assert_is_one_line(fedcli("report", "run", "--csv", "a", "--html", "a"), "name the same file")
    assert not Path("a").exists()
    assert {file: file.read_bytes() for file in inputs} == inputs


def test_a_file_of_ones_own_in_a_run_is_replaced(fedcli: Fedcli, inputs: dict[Path, bytes]) -> None:
    for _ in range(2):
        assert fedcli("eval", "run", "--predictions", "run/p.csv").code == 0
        assert fedcli("report", "run", "--html", "run/page.html").code == 0


# ---- Every output: files that it replaces, and others -------------------------------------------

OUTPUTS = {
    "eval run --per-client": ".csv",
    "eval run --predictions": ".csv",
    "eval run --predictions ": ".npz",
    "export run": ".npz",
    "export run ": ".keras",
    "inspect-clients --data train.h5 --csv": ".csv",
    "preprocess train.h5 --out": ".h5",
    "report run --csv": ".csv",
    "report run --clients-csv": ".csv",
    "report run --html": ".html",
    "report run --plot": ".svg",
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_is_written_where_its_link_leads_and_that_is_told(
    fedcli: Fedcli, inputs: dict[Path, bytes], command: str, tmp_path: Path
) -> None:
    ending = OUTPUTS[command]
    target, link = tmp_path / f"target{ending}", tmp_path / f"link{ending}"
    target.write_bytes(b"old")
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    done = fedcli(*command.split(), link)
    assert done.code == 0
    assert f"{link} is a link; wrote {target}" in done.err
    assert link.is_symlink()
    assert target.read_bytes() not in (b"old", b"")


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_device_is_never_replaced_nor_a_folder(
    fedcli: Fedcli, inputs: dict[Path, bytes], command: str, tmp_path: Path
) -> None:
    ending = OUTPUTS[command]
    (tmp_path / f"folder{ending}").mkdir()
    done = fedcli(*command.split(), f"folder{ending}")
    assert_is_one_line(done, "is not a regular file; choose another name")
    (tmp_path / f"null{ending}").symlink_to("/dev/null")
    done = fedcli(*command.split(), f"null{ending}")
    assert done.code == (1 if ending == ".h5" else 0)  # preprocess cannot read its store back
    assert (tmp_path / f"null{ending}").is_symlink()
    assert Path("/dev/null").is_char_device()
