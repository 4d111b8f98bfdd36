"""Faults of data, runs and checkpoints give one line and exit code 1, and leave no file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.kit.command_line import Fedcli, WriteTff

COMMANDS = [
    ("train", "--out", "run", "--clients", "all"),
    ("inspect-clients",),
]


def replace(path: Path, name: str, value: np.ndarray) -> None:
    """Replaces a dataset of client b."""
    with h5py.File(path, "r+") as file:
        del file[f"examples/b/{name}"]
        file[f"examples/b/{name}"] = value


def set_labels(path: Path) -> None:
    replace(path, "label", np.array([0, 1, 2, 10, 4, 5], np.int32))


def set_nan(path: Path) -> None:
    pixels = np.zeros((6, 6, 4), np.float32)
    pixels[2, 3, 1] = np.nan
    replace(path, "pixels", pixels)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rename_group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("examples", "samples")


def drop_labels(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["examples/b/label"]


# For each fault, the change of the file and the words of the error.
FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "not HDF5": (lambda path: path.write_text("label,pixels\n1,0\n"), ["train.h5"]),
    "truncated": (truncate, ["train.h5"]),
    "wrong groups": (rename_group, ["train.h5", "examples"]),
    "no labels": (drop_labels, ["train.h5", "'b'", "label"]),
    "wrong dtype": (
        lambda path: replace(path, "pixels", np.zeros((6, 6, 4), np.int64)),
        ["train.h5", "'b'", "int64"],
    ),
    "wrong shape": (
        lambda path: replace(path, "pixels", np.zeros((6, 24), np.float32)),
        ["train.h5", "'b'", "[6, 24]", "[n, H, W]"],
    ),
    "counts differ": (
        lambda path: replace(path, "label", np.zeros(4, np.int32)),
        ["train.h5", "'b'", "6 images", "4 labels"],
    ),
    "label outside": (set_labels, ["train.h5", "'b'", "example 3", "label 10", "--num-classes 11"]),
    "NaN pixel": (set_nan, ["train.h5", "'b'", "example 2", "NaN"]),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path, fault: str, command: tuple[str, ...]
) -> None:
    spoil, words = FAULTS[fault]
    data = write_tff()
    spoil(data)
    done = fedcli(*command, "--data", data)
    assert (done.code, done.out) == (1, "")
    lines = [line for line in done.err.splitlines() if line.startswith("fedcli: error: ")]
    assert len(lines) == 1
    assert done.err.endswith(lines[0] + "\n")
    for word in words:
        assert word in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["train.h5"]


@pytest.mark.parametrize("command", ["train", "inspect-clients"])
def test_missing_file(fedcli: Fedcli, tmp_path: Path, command: str) -> None:
    done = fedcli(command, "--data", "nowhere.h5")
    assert (done.code, done.out) == (1, "")
    assert "nowhere.h5' is neither an existing file" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_quick_inspection_does_not_read_pixels(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    set_nan(data)
    assert fedcli("inspect-clients", "--data", data, "--quick").code == 0


def test_empty_client_is_counted_and_trains(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    replace(data, "label", np.zeros(0, np.int32))
    replace(data, "pixels", np.zeros((0, 6, 4), np.float32))
    done = fedcli("train", "--data", data, "--clients", "all", "--rounds", 1, "--out", "run")
    assert done.code == 0
    assert "b" in fedcli("inspect-clients", "--data", data).out
    told = json.loads(fedcli("eval", "run", "--clients", "b", "--json").out)
    assert told["client_work"]["eval"]["current_round_metrics"]["loss"] is None
    row = fedcli("eval", "run", "--clients", "b").out.splitlines()[-1]
    assert row.split() == ["train", "-", "-", "0", "0", "1"]
    refused = fedcli("eval", "run", "--split", "all").err
    assert refused.endswith("choose one of train; evaluate one split at a time\n")


@pytest.mark.parametrize("command", ["train", "inspect-clients"])
@pytest.mark.parametrize(
    ("clients", "words"),
    [("4", ["4", "3 clients"]), ("a,x", ["x"]), ("@none.txt", ["none.txt"])],
)
def test_clients_that_are_not_there(
    fedcli: Fedcli,
    write_tff: WriteTff,
    tmp_path: Path,
    command: str,
    clients: str,
    words: list[str],
) -> None:
    done = fedcli(command, "--data", write_tff(), "--clients", clients)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("fedcli: error: --clients ")
    assert all(word in done.err for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["train.h5"]


def test_unknown_client_to_show(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--show", "x")
    assert done.code == 1
    assert "--show x: no such client among the 3 in" in done.err


def test_train_and_test_of_different_shape(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path
) -> None:
    test = write_tff("test.h5")
    with h5py.File(test, "r+") as file:
        for name, client in file["examples"].items():
            count = len(client["label"])
            del file[f"examples/{name}/pixels"]
            file[f"examples/{name}/pixels"] = np.zeros((count, 5, 5), np.float32)
    done = fedcli("train", "--data", write_tff(), "--test-data", test, "--out", "run")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_place(fedcli: Fedcli, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    done = fedcli("train", "--out", "closed/run")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "closed" in done.err


def test_run_below_a_file(fedcli: Fedcli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = fedcli("train", "--out", "file/run")
    assert (done.code, done.err.count("\n")) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\nrest", None])
@pytest.mark.parametrize("command", [("eval",), ("export",)])
def test_corrupt_or_foreign_checkpoint(
    fedcli: Fedcli,
    write_tff: WriteTff,
    tmp_path: Path,
    command: tuple[str, ...],
    content: bytes | None,
) -> None:
    checkpoint = write_tff("foreign.h5")
    if content is not None:
        checkpoint.write_bytes(content)
    target = ["weights.npz"] if command == ("export",) else []
    done = fedcli(*command, checkpoint, *target)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "foreign.h5" in done.err
    assert not (tmp_path / "weights.npz").exists()


@pytest.mark.parametrize("arguments", [("eval", "none"), ("train", "--resume", "none")])
def test_run_that_is_not_there(fedcli: Fedcli, arguments: tuple[str, ...]) -> None:
    done = fedcli(*arguments)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "none" in done.err


ODD_NAMES = {"not UTF-8": b"odd \xff\xfe", "control characters": b"odd \x01\n\x1b[31m\x7f"}


@pytest.fixture(params=ODD_NAMES)
def odd_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory whose name neither TOML nor a terminal can represent."""
    folder = tmp_path / os.fsdecode(ODD_NAMES[request.param])
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("out", ["run", "absolute"])
def test_everything_works_in_a_folder_of_an_odd_name(
    fedcli: Fedcli, odd_folder: Path, out: str
) -> None:
    os.chdir(odd_folder)
    run = odd_folder / "run" if out == "absolute" else Path("run")
    few = ("--data-option", "clients=3", "--epochs", 1)
    for arguments in (
        ("train", *few, "--rounds", 1, "--out", run),
        ("train", "--resume", run, "--rounds", 2),
        ("train", "--config", run / "config.toml", "--out", "again"),
        ("report", run),
        ("report", run, "again", "--html", "page.html", "--csv", "all.csv"),
        ("report", run, "--html", "page.html", "--plot", "curves.svg"),
        ("report", run, "--plot", "curves.png"),
        ("report", run, "again", "--format", "latex"),
        ("report", run, "--json"),
        ("eval", run),
        ("eval", run, "--json", "--predictions", "p.csv", "--per-client", "c.h5"),
        ("export", run, "weights.npz"),
        ("inspect-clients", "--run", run),
    ):
        done = fedcli(*arguments)
        assert done.code == 0, (arguments, done.err)
        assert not any(mark in done.out + done.err for mark in ("\x01", "\x1b", "\x7f")), arguments


@pytest.mark.parametrize("option", ["--data", "--test-data", "--initial-weights", "--model"])
def test_a_file_whose_path_config_toml_cannot_hold_is_refused_before_any_work(
    fedcli: Fedcli, write_tff: WriteTff, odd_folder: Path, option: str
) -> None:
    os.chdir(odd_folder)
    name = "model.py" if option == "--model" else "given.h5"
    write_tff().rename(odd_folder / name)
    done = fedcli("train", option, name, "--out", "run")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith(
        f"fedcli: error: {option} {name}: config.toml must record its absolute "
    )
    assert "is not UTF-8 or has control characters" in done.err
    assert not any(mark in done.err for mark in ("\x01", "\x1b", "\x7f"))
    assert sorted(each.name for each in odd_folder.iterdir()) == [name]
