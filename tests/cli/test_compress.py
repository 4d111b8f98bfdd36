"""--compress on the command line, the bytes in `fedcli report`, and bad options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.command_line import Fedcli, assert_is_one_line

RUN = ("train", "-q", "--rounds", 3, "--epochs", 1, "--data-option", "clients=6", "--clients", 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--compress", "zip"), ("--compress 'zip'", "uniform")),
        (("--compress-option", "bits=4"), ("--compress-option bits needs a compression",)),
        (
            ("--compress", "uniform", "--compress-option", "bits=0"),
            ("--compress-option: uniform option bits 0", "from 1 to 16"),
        ),
        (
            ("--compress", "uniform", "--compress-option", "fraction=0.1"),
            ("uniform has no option 'fraction'", "its options are bits"),
        ),
        (
            ("--compress", "top-k", "--compress-option", "fraction=2"),
            ("top-k option fraction 2", "to 1"),
        ),
        (
            ("--compress", "drive", "--compress-option", "block=1000"),
            ("block 1000 is not a power of two; choose 512 or 1024",),
        ),
        (
            ("--compress", "drive", "--compress-option", "error_feedback=true"),
            ("the scale of unbiased=true", "unbiased=false"),
        ),
        (
            ("--compress", "sketch", "--aggregator", "median"),
            ("--compress sketch with --aggregator median", "--aggregator mean"),
        ),
        (
            ("--compress", "sign", "--algorithm", "centralized"),
            ("--compress sign with --algorithm centralized", "leave it out"),
        ),
        (
            ("--compress", "sign", "--algorithm", "local-only"),
            ("--compress: the clients of local-only share nothing",),
        ),
    ],
)
def test_bad_options_are_refused_before_any_work(
    fedcli: Fedcli, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = fedcli(*RUN, "--out", "run", *arguments)
    if done.code == 2:  # the command line refuses unknown names
        assert "'zip'" in done.err
        assert "uniform" in done.err
    else:
        assert_is_one_line(done, *words)
    assert not Path("run").exists()


def test_the_report_shows_the_bytes(fedcli: Fedcli) -> None:
    assert fedcli(*RUN, "--out", "dense").code == 0
    assert fedcli(*RUN, "--out", "signs", "--compress", "sign").code == 0
    rows = [line.split() for line in fedcli("report", "dense").out.splitlines()]
    dense = 3 * 4 * (31_400 + 4)
    assert ["clients", "received", "0.3768", "MB"] in rows  # 3 rounds of 4 clients, 31,400 bytes
    assert ["clients", "sent", "0.3768", "MB,", "100", "%", "of", "dense", "deltas"] in rows
    rows = [line.split() for line in fedcli("report", "signs").out.splitlines()]
    assert ["clients", "sent", "0.01193", "MB,", "3.17", "%", "of", "dense", "deltas"] in rows
    told = json.loads(fedcli("report", "dense", "signs", "--json").out)["runs"]
    assert told[0]["bytes"]["up"] == dense
    assert told[1]["bytes"]["up"] == 3 * 4 * (990 + 4)
    assert [each["bytes_up"] for each in told[1]["bytes"]["by_round"]] == 3 * [4 * 994]
    table = fedcli("report", "dense", "signs").out
    header = next(line for line in table.splitlines() if line.startswith("run "))
    assert header.split()[-4:] == ["received", "sent", "time", "memory"]


def test_curves_run_along_megabytes(fedcli: Fedcli) -> None:
    fedcli(*RUN, "--out", "dense", "--eval-every", 1)
    fedcli(*RUN, "--out", "signs", "--compress", "sign", "--eval-every", 1)
    both = fedcli("report", "dense", "signs", "--x", "megabytes", "--plot", "a.svg")
    assert "Accuracy by MB received and sent" in both.out
    assert "MB received and sent" in Path("a.svg").read_text()
    one = fedcli("report", "signs", "--x", "megabytes-up")
    assert "Loss by MB sent" in one.out
    assert fedcli("report", "signs", "--x", "bytes").code == 2


def test_curves_along_unknown_megabytes_are_refused(fedcli: Fedcli) -> None:
    fedcli(*RUN, "--out", "pooled", "--algorithm", "centralized")
    assert "clients sent" not in fedcli("report", "pooled").out
    done = fedcli("report", "pooled", "--x", "megabytes", "--plot", "a.png")
    assert_is_one_line(
        done, "the number of bytes that clients of pooled sent is not known", "--x round"
    )


@pytest.mark.parametrize("compress", ["uniform", "top-k", "powersgd", "sketch", "eden"])
def test_threads_change_no_byte_of_a_run(fedcli: Fedcli, compress: str) -> None:
    for threads in (1, 2, 7):
        done = fedcli(*RUN, "--compress", compress, "--threads", threads, "--out", f"t{threads}")
        assert done.code == 0
    lines = {Path(f"t{threads}/metrics.jsonl").read_bytes() for threads in (1, 2, 7)}
    assert len(lines) == 1
    told = {Path(f"t{threads}/evaluation.json").read_bytes() for threads in (1, 2, 7)}
    assert len(told) == 1


def test_a_run_keeps_its_compression_when_it_goes_on(fedcli: Fedcli) -> None:
    fedcli(*RUN, "--compress", "top-k", "--out", "run")
    assert fedcli("train", "-q", "--resume", "run", "--rounds", 5).code == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 5
    done = fedcli("train", "--resume", "run", "--rounds", 6, "--compress", "sign")
    assert done.code != 0
    assert "--compress" in done.err
    Path("run/residuals.sqlite").unlink()
    done = fedcli("train", "--resume", "run", "--rounds", 6)
    assert_is_one_line(done, "residuals.sqlite is missing")
