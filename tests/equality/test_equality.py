"""Tests of the equality check: what it covers, finds and prints. Nothing is trained."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.equality import contents, coverage
from tests.equality.__main__ import SELF_CHECK, main
from tests.equality.configurations import CONFIGURATIONS, Configuration
from tests.equality.running import Comparison, Program

REPOSITORY = Path(__file__).parents[2]


def _fedcli(line: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "fedcli", *line.split()]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


# ---- What is covered -----------------------------------------------------------------------------


def test_configurations_use_all_that_fedcli_offers() -> None:
    offered = coverage.offered(_fedcli)
    assert {
        *("train --algorithm fedavg", "train --server-optimizer adafactor", "train --deadline"),
        *("train --sampling tff", "preprocess --format cifar", "train --partition shards"),
        *("train --model lenet5", "train --preset tff-tutorial", "eval --finetune"),
    } <= offered
    assert sorted(offered - coverage.used(CONFIGURATIONS).keys()) == []


def test_what_nothing_uses_is_named() -> None:
    fewer = [each for each in CONFIGURATIONS if "--format leaf" not in each.steps[0]]
    texts = {
        "preprocess --help": "  --format [idx|leaf]  What it is.\n  -q, --quiet  Less.\n",
        "info --json": json.dumps(
            {table: [{"name": "new"}] * (table == "models") for table in coverage.TABLES}
        ),
    }
    missing = coverage.missing(lambda line: texts.get(line, ""), fewer)
    assert missing == ["preprocess --format leaf", "train --model new"]


def test_there_are_fifty_configurations_or_more_with_unique_names() -> None:
    names = [each.name for each in CONFIGURATIONS]
    assert len(set(names)) == len(names) >= 50
    assert set(SELF_CHECK) <= set(names)
    assert sum(bool(each.later) for each in CONFIGURATIONS) >= 10


# ---- What is seen --------------------------------------------------------------------------------


def _text(path: Path, value: int) -> None:
    path.write_text(f"a\n{value}\n")


def _npz(path: Path, value: int) -> None:
    np.savez(path, kernel=np.array([1, value], np.float32))


def _dataset(path: Path, value: int) -> None:
    with h5py.File(path, "w", track_order=bool(value)) as file:
        file.create_dataset("train/pixels", data=np.array([value, 2]), track_times=True)


def _attribute(path: Path, value: int) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("train").attrs["name"] = f"writer {value}"


def _texts(path: Path, value: int) -> None:
    with h5py.File(path, "w") as file:
        file["ids"] = ["a", f"b{value}"]


def _rows(path: Path, value: int) -> None:
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE states (client TEXT, vector BLOB)")
        file.execute("INSERT INTO states VALUES ('a', ?)", (bytes([value]),))
    file.close()


def _nested(path: Path, value: int) -> None:
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        file["kernel"] = np.float32(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", inner.getvalue())


def _config(path: Path, value: int) -> None:
    path.with_name("config.toml").write_text(f"seed = {value}\n[provenance]\ncpu = 'x'\n")


def _fingerprint(path: Path, value: int) -> None:
    path.with_name("config.toml").write_text(f"[provenance]\ndata = '{value}'\ncpu = 'x'\n")


WRITERS: dict[Callable[[Path, int], None], str] = {
    _text: "out",
    _npz: "out.npz:kernel.npy",
    _dataset: "out:train/pixels",
    _attribute: "out:train@name",
    _texts: "out:ids",
    _rows: "out:states",
    _nested: "out:model.weights.h5:kernel",
    _config: "config.toml",
    _fingerprint: "config.toml",
}


@pytest.mark.parametrize(("write", "name"), WRITERS.items(), ids=WRITERS.values())
def test_one_value_that_differs_is_found(
    tmp_path: Path, write: Callable[[Path, int], None], name: str
) -> None:
    found = []
    for folder, value in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "out", value)
        found.append(contents.of_folder(tmp_path / folder))
    assert contents.differences(found[0], found[1]) == {}
    assert list(contents.differences(found[0], found[2])) == [name]


def test_types_and_shapes_and_absent_files_differ(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a", "w") as file:
        file["x"] = np.zeros((2, 3), np.int32)
    with h5py.File(tmp_path / "b", "w") as file:
        file["x"] = np.zeros((3, 2), np.int32)
    with h5py.File(tmp_path / "c", "w") as file:
        file["x"] = np.zeros((2, 3), np.float32)
    found = contents.of_folder(tmp_path)
    assert len({found["a:x"], found["b:x"], found["c:x"]}) == 3
    fewer = {name: each for name, each in found.items() if name != "b:x"}
    assert contents.differences(found, fewer) == {"b:x": "only made before"}
    assert contents.differences(fewer, found) == {"b:x": "only made after"}


def test_times_and_makers_are_left_out(tmp_path: Path) -> None:
    for name, second in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "timings.jsonl").write_text(f'{{"train": {second}}}')
        text = f"seed = 0\n[provenance]\ndata = 'x'\nnumpy = '{second}'\n"
        (tmp_path / name / "config.toml").write_text(text)
    assert contents.of_folder(tmp_path / "a") == contents.of_folder(tmp_path / "b")
    texts = [f'{{"runs": [{{"loss": 1, "seconds": {{"save": {each}}}}}]}}' for each in (1, 2)]
    assert contents.of_printed(texts[0]) == contents.of_printed(texts[1])
    assert contents.of_printed('{"loss": 1}') != contents.of_printed('{"loss": 2}')


# ---- What is run ---------------------------------------------------------------------------------

# A substitute for fedcli: `train` writes a number to a file; `eval` prints this number and a score.
_PROGRAM = """#!{python}
import json, pathlib, sys
run = pathlib.Path("run.json")
match sys.argv[1:]:
    case [command, "--help"]:
        print("  --only-of-{name}  An option." * (command == "train"))
    case ["train", *rest]:
        run.write_text("{written}" + " other" * ("--seed" in rest))
    case ["eval", *_]:
        print(json.dumps({{"model": run.read_text(), "score": {score}, "seconds": {seconds}}}))
    case ["info", "--json"]:
        tables = {tables}
        facts = dict.fromkeys(["numpy", "h5py", "python"], "1")
        print(json.dumps({{"isas": ["generic"], **facts, **tables}}))
    case _:
        sys.exit("fedcli: error: no such command")
"""


def _program(folder: Path, name: str, written: str, score: int, seconds: int) -> Path:
    path = folder / name
    tables: dict[str, list] = {table: [] for table in coverage.TABLES}
    parts = {"name": name, "written": written, "score": score, "seconds": seconds}
    path.write_text(_PROGRAM.format(python=sys.executable, tables=tables, **parts))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, Path]:
    """Returns executables. "same" gives the results of "first"; "writes" and "scores" do not."""
    values = {"first": ("1", 5, 1), "same": ("1", 5, 2), "writes": ("2", 5, 1)}
    values |= {"scores": ("1", 6, 1)}
    return {name: _program(tmp_path, name, *value) for name, value in values.items()}


def _compared(tmp_path: Path, before: Path, after: Path) -> Comparison:
    (tmp_path / "inputs").mkdir()
    return Comparison(Program(before), Program(after), tmp_path / "inputs", tmp_path / "runs")


@pytest.mark.parametrize(
    ("after", "differing"),
    [
        ("same", []),
        ("writes", ["run.json"]),
        ("scores", ["printed by: eval --json (written before, read after)"]),
    ],
)
def test_programs_are_compared(
    tmp_path: Path, programs: dict[str, Path], after: str, differing: list[str]
) -> None:
    comparison = _compared(tmp_path, programs["first"], programs[after])
    result = comparison.run(Configuration("one", ("train",), ("eval --json",)))
    assert result.failure is None
    assert list(result.differences) == differing
    assert result.is_equal == (not differing)
    assert result.num_compared == 3
    assert not list((tmp_path / "runs").glob("*"))


def test_a_command_that_fails_is_no_equality(tmp_path: Path, programs: dict[str, Path]) -> None:
    comparison = _compared(tmp_path, programs["first"], programs["same"])
    result = comparison.run(Configuration("one", ("train", "export run")))
    assert not result.is_equal
    assert result.failure is not None
    assert result.failure.endswith("first export run: exit code 1: fedcli: error: no such command")


def test_exit_code_and_summary(
    programs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = (
        Configuration("one", ("train",), ("eval --json",)),
        Configuration("two", ("train",), environment={"FEDCLI_ISA": "avx2"}),
    )
    monkeypatch.setattr("tests.equality.__main__.CONFIGURATIONS", rows)

    def run(after: str, *more: str) -> tuple[int, str]:
        code = main([str(programs["first"]), str(programs[after]), *more])
        return code, capsys.readouterr().out

    code, text = run("same")
    assert "skipped    two: this machine has no avx2" in text
    assert "1 of 2 configurations equal, 1 skipped, 0 different or failed" in text
    # The exit code is 1 although nothing differs, because no configuration uses this option.
    assert (code, "not used   by any configuration: train --only-of-same" in text) == (1, True)

    used = Configuration("three", ("train --only-of-same --only-of-writes",))
    monkeypatch.setattr("tests.equality.__main__.CONFIGURATIONS", (*rows, used))
    assert run("same")[0] == 0
    code, text = run("writes")
    assert code == 1
    assert "DIFFERENT  one: 1 of 3 outputs\n           run.json: line 1: '1', now '2'" in text
    code, text = run("writes", "--leave-out", "run.json")
    assert (code, "left out   one: run.json" in text) == (0, True)
    code, text = run("writes", "--only", "none*")
    assert (code, "no configuration is called none*" in text) == (2, True)
    programs["first"].unlink()
    code, text = run("same")
    assert (code, "No such file or directory" in text) == (2, True)
