"""Damaged, cut or edited files of a run: each gives one line of error, or the same results."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcli.cli import main as cli
from fedcli.runs.files import client_records
from fedcli.runs.files import folder as run_dir
from tests.kit.command_line import Fedcli, assert_is_one_line

RUN = (
    *("train", "--data-option", "clients=12", "--max-examples", "40", "--rounds", "4", "-q"),
    *("--checkpoint-every", "1", "--eval-every", "1", "--keep-best", "loss"),
    *("--server-option", "momentum=0.9", "--client-speeds", "10,100"),
    *("--csv", "--record-clients", "--out", "run"),
)
RESUME = ("train", "--resume", "run", "-q")
EVAL, EXPORT, REPORT = ("eval", "run"), ("export", "run", "weights.npz"), ("report", "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.run(list(RUN)) == 0
    finally:
        os.chdir(before)
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A finished run of four rounds, which the command lines find at ./run."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :]


def test_every_region_of_a_checkpoint(fedcli: Fedcli, run: Path) -> None:
    """The parts are superblock, object headers, attributes, config, weights, state and checksum."""
    file = run_dir.latest_checkpoint(run)
    whole = file.read_bytes()
    commands = [RESUME, EVAL, EXPORT, ("eval", file), ("export", file, "weights.npz")]
    num_regions = 0
    for number, place in enumerate(range(0, len(whole), 199)):
        file.write_bytes(flipped(whole, place))
        done = fedcli(*commands[number % len(commands)])
        assert_is_one_line(done, file.name)
        num_regions += 1
    assert num_regions > 300
    for num_bytes in (0, 1, 7, 8, 512, 2048, len(whole) // 2, len(whole) - 48, len(whole) - 1):
        file.write_bytes(whole[:num_bytes])
        for command in commands:
            assert_is_one_line(fedcli(*command), file.name)
    file.write_bytes(whole)
    assert not Path("weights.npz").exists()
    assert [fedcli(*command).code for command in commands] == [0] * len(commands)


def test_a_damaged_newest_checkpoint_is_not_the_end_of_a_run(
    fedcli: Fedcli, run: Path, made: Path
) -> None:
    file = run_dir.latest_checkpoint(run)
    file.write_bytes(b"")
    assert_is_one_line(
        fedcli(*RESUME), file.name, "delete it to continue from the checkpoint before"
    )
    file.unlink()
    assert fedcli(*RESUME).code == 0
    for name in ("metrics.jsonl", "metrics.csv", "evaluation.json"):
        assert (run / name).read_bytes() == (made / name).read_bytes()
    assert file.read_bytes() == run_dir.latest_checkpoint(made).read_bytes()
    one, other = client_records.load(run), client_records.load(made)
    assert (one.rows.tobytes(), one.client_ids) == (other.rows.tobytes(), other.client_ids)


# Changes bytes that the checksum covers and computes the checksum again, so that HDF5 parses them.
# This runs in a process of its own, because HDF5 might crash and end the whole process.
SIGNED = """
import os, random, sys
from hashlib import blake2b
from pathlib import Path
from fedcli.cli import main as cli
file, seed, num = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
image = file.read_bytes()[:-48]
draws = random.Random(seed)
streams = sys.stdout, sys.stderr
for number in range(num):
    changed = bytearray(image)
    for _ in range(draws.choice((1, 1, 3))):
        near = draws.choice((0, 0, len(image) - 16000))
        changed[draws.randrange(near, near + 16000) % len(image)] = draws.choice((0, 1, 127, 255))
    file.write_bytes(changed + b"\\nfedcli-blake2b\\n" + blake2b(changed, digest_size=32).digest())
    with open("said", "w") as said:
        sys.stdout = sys.stderr = said
        try:
            codes = [cli.run(["export", "run", "weights.npz"]), cli.run(["eval", "run"])]
        finally:
            sys.stdout, sys.stderr = streams
    lines = Path("said").read_text().splitlines()
    assert set(codes) <= {0, 1}, (number, codes, lines)
    assert not any("Traceback" in line for line in lines), (number, lines)
    assert sum(line.startswith("fedcli: error: ") for line in lines) == sum(codes), (number, lines)
print("done")
"""


def test_signed_nonsense_is_one_line_too(
    run: Path, tmp_path: Path, process_arguments: dict[str, Any], seed: int
) -> None:
    file = run_dir.latest_checkpoint(run)
    done = subprocess.run(
        [sys.executable, "-c", SIGNED, str(file), str(seed), "80"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
        **process_arguments,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def edit(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "wrong key": (edit("seed = 0", "sead = 0"), "[run] has no key 'sead'"),
    "wrong type": (edit("seed = 0", 'seed = "zero"'), "seed"),
    "out of range": (edit("seed = 0", "seed = -1"), "seed"),
    "no such name": (edit('algorithm = "fedavg"', 'algorithm = "fedevg"'), "fedevg"),
    "list for a number": (edit("rounds = 4", "rounds = [4]"), "rounds"),
    "number for a table": (edit("[run.server_options]\n", "[run]\n"), "config.toml"),
    "no TOML": (lambda text: text[: len(text) // 2] + '\n"', "config.toml"),
    "no table": (lambda text: text.replace("[run]", "[walk]"), "config.toml"),
    "empty": (lambda text: "", "config.toml"),
    "nul": (lambda text: text + "\0", "config.toml"),
    "fewer rounds": (edit("rounds = 4", "rounds = 2"), "has rounds = 2, but 4 are completed"),
    "another run": (edit("client_lr = 0.02", "client_lr = 0.2"), "client_lr is 0.2"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_an_edited_config_is_told(fedcli: Fedcli, run: Path, fault: str) -> None:
    change, words = CONFIGS[fault]
    file = run / "config.toml"
    file.write_text(change(file.read_text()))
    more = () if fault == "fewer rounds" else ("--rounds", 9)
    assert_is_one_line(fedcli(*RESUME, *more), words)
    assert fedcli(*EVAL).code == 0  # it reads the config in the checkpoint
    if fault not in ("out of range", "no such name", "fewer rounds", "another run"):
        assert_is_one_line(fedcli(*REPORT), "config.toml")


METRICS: dict[str, Callable[[list[str]], list[str]]] = {
    "cut in a line": lambda lines: [*lines[:3], lines[3][:50]],
    "cut after a line": lambda lines: lines[:3],
    "gone": lambda lines: [],
    "a line missing": lambda lines: [*lines[:2], *lines[3:]],
    "a line twice": lambda lines: [*lines[:2], *lines[1:]],
    "not JSON": lambda lines: [*lines[:2], "junk\n", *lines[3:]],
    "another object": lambda lines: [*lines[:2], '{"round": 2, "evaluation": 3}\n', *lines[3:]],
    "text for a number": lambda lines: [
        *lines[:2],
        lines[2].replace('"loss": ', '"loss": "low", "more": '),
        *lines[3:],
    ],
    "accuracy above 1": lambda lines: [
        *lines[:2],
        lines[2].replace('"sparse_categorical_accuracy": 0.', '"sparse_categorical_accuracy": 9.'),
        *lines[3:],
    ],
    "a negative count": lambda lines: [
        *lines[:2],
        lines[2].replace('"num_examples": ', '"num_examples": -'),
        *lines[3:],
    ],
    "no UTF-8": lambda lines: [*lines[:2], lines[2].replace("loss", "l\udcffss"), *lines[3:]],
}


@pytest.mark.parametrize("fault", METRICS)
def test_damaged_metrics_are_told(fedcli: Fedcli, run: Path, fault: str) -> None:
    file = run / "metrics.jsonl"
    lines = METRICS[fault](file.read_text().splitlines(keepends=True))
    file.write_text("".join(lines), errors="surrogateescape")
    before = file.read_bytes()
    assert_is_one_line(fedcli(*RESUME, "--rounds", 6), "metrics.jsonl")
    assert file.read_bytes() == before
    if fault not in ("cut after a line", "gone"):  # a report shows the rounds that exist
        assert_is_one_line(fedcli(*REPORT), "metrics.jsonl")
    assert fedcli(*EVAL).code == 0


def test_damaged_client_records_are_told(fedcli: Fedcli, run: Path) -> None:
    file = run / "clients.h5"
    for content in (b"", b"junk", file.read_bytes()[:2000]):
        file.write_bytes(content)
        done = fedcli(*REPORT, "--clients-csv", "clients.csv")
        assert_is_one_line(done, "run/clients.h5 is damaged", "restore it, or move it away\n")


def test_resume_removes_lines_after_the_checkpoint(fedcli: Fedcli, run: Path, made: Path) -> None:
    (run / "evaluation.json").unlink()
    for rest in ('{"round": 5, "client_wo', '{"round": 7}\n', "\0\0\0\0"):
        whole = (made / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(whole + rest)
        with (run / "timings.jsonl").open("a") as file:
            file.write(rest)
        assert fedcli(*RESUME).code == 0
        assert (run / "metrics.jsonl").read_text() == whole
        assert (run / "evaluation.json").read_bytes() == (made / "evaluation.json").read_bytes()
        timings = (run / "timings.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in timings] == [0, 1, 2, 3, 4]
        (run / "evaluation.json").unlink()


@pytest.mark.parametrize("text", ["", "junk", "[1]\n", '{"round": "x"}\n', '{"train": {}}\n'])
def test_damaged_timings_spoil_nothing(fedcli: Fedcli, run: Path, text: str) -> None:
    (run / "timings.jsonl").write_text(text)
    assert fedcli(*REPORT).code == 0
    assert fedcli(*RESUME, "--rounds", 5).code == 0
    assert [line["round"] for line in run_dir.read_metrics(run)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics.jsonl", "timings.jsonl", "evaluation.json"]
)
def test_random_damage_is_one_line_or_none(
    fedcli: Fedcli, run: Path, made: Path, name: str, seed: int
) -> None:
    draws = random.Random(f"{seed} {name}")
    whole = (made / name).read_bytes()
    pieces = [b"", b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 30, b'"x"', b"\xff"]
    for number in range(40):
        start = draws.randrange(len(whole))
        end = start + draws.choice((1, 1, 8, len(whole)))
        (run / name).write_bytes(whole[:start] + draws.choice(pieces) + whole[end:])
        commands = (REPORT, ("report", "run", "--json"), ("eval", "run", "--best"), RESUME)
        done = fedcli(*commands[number % len(commands)])
        if done.code:
            assert_is_one_line(done, "run")
    # No command has damaged another file: the run can be evaluated with the original file.
    (run / name).write_bytes(whole)
    done = fedcli(*EVAL)
    assert done.code == 0, done.err


def _damaged(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields copies of the value with one entry, at any depth, missing or of another type."""
    wrongs: list[Any] = [None, -1, "x", [], {}]
    for name, entry in value.items():
        yield {other: each for other, each in value.items() if other != name}
        yield from ({**value, name: wrong} for wrong in wrongs)
        if isinstance(entry, dict):
            yield from ({**value, name: each} for each in _damaged(entry))


@pytest.mark.parametrize(
    "options",
    [
        ("--attack", "sign-flip", "--attackers", "1", "--compress", "qsgd"),
        ("--attack", "sign-flip", "--attackers", "1", "--aggregator", "krum"),
        ("--secure-sum", "--client-dropout", "0.1"),
    ],
    ids=["compressed", "robust", "secure sum"],
)
def test_metrics_of_updates_with_an_entry_damaged(
    fedcli: Fedcli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    train = [*("train", "-q", "--out", "run", "--rounds", "1", "--max-examples", "20")]
    data = ["--data-option", "clients=12", "--eval-clients", "1"]
    assert fedcli(*train, *data, *options).code == 0
    file = tmp_path / "run" / "metrics.jsonl"
    *before, text = file.read_text().splitlines(keepends=True)
    line = json.loads(text)
    parts = {name: line[name] for name in line if name not in ("round", "evaluation")}
    codes = set()
    for number, damaged in enumerate(_damaged(parts)):
        file.write_text("".join([*before, json.dumps({"round": 1, **damaged}) + "\n"]))
        done = fedcli(*(REPORT if number % 2 else ("report", "run", "--json")))
        if done.code:
            assert_is_one_line(done, "metrics.jsonl")
        codes.add(done.code)
    assert codes == {0, 1}
