"""`fedcli preprocess` makes a store of each format; it may be killed, stopped, or refuse."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from fedcli import datasets
from fedcli.datasets.sources import store
from fedcli.settings.tables import FORMATS
from fedcli.settings.vocabulary import HOLD_OUTS
from tests.kit.command_line import Fedcli, WriteTff
from tests.kit.waiting import PATIENCE_SECONDS, started

NUM_TRIES = 20  # each may come too late: the process writes for less than a second


def made(fedcli: Fedcli, *arguments: object, out: str = "out.h5") -> dict[str, Any]:
    """Runs preprocess, checks that the store is whole, and returns the output of --json."""
    done = fedcli("preprocess", *arguments, "--out", out, "--json")
    assert done.code == 0, done.err
    told: dict[str, Any] = json.loads(done.out)
    assert store.verify(Path(out)) == told["fingerprint"]
    return told


def sizes(told: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        name: (split["num_clients"], split["num_examples"])
        for name, split in told["splits"].items()
    }


def refusal(fedcli: Fedcli, *arguments: object, code: int = 1) -> str:
    """The line of error of a preprocess that must fail."""
    before = sorted(os.listdir())  # noqa: PTH208
    done = fedcli("preprocess", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
    assert sorted(os.listdir()) == before  # noqa: PTH208
    return done.err


# ---- Formats -------------------------------------------------------------------------------------


def test_tff_pair(fedcli: Fedcli, write_tff: WriteTff) -> None:
    train, test = write_tff("train.h5", 4), write_tff("test.h5", 3)
    told = made(fedcli, train, "--test-data", test)
    assert told["format"] == "tff-h5"
    assert sizes(told) == {"train": (4, 26), "test": (3, 18)}
    source = datasets.open_splits(datasets.DataSource(str(train), test_data=str(test)))
    stored = datasets.open_splits(datasets.DataSource("out.h5"))
    for name, split in source.items():
        assert list(stored[name].client_ids) == list(split.client_ids)
        for client_id in split.client_ids:
            ours, theirs = stored[name].client(client_id), split.client(client_id)
            np.testing.assert_array_equal(ours.images(), theirs.images())
            np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert fedcli("train", "--data", "out.h5", "--rounds", 1, "--out", "run").code == 0


def test_summary_names_the_next_command(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("preprocess", write_tff(), "--out", "my store.h5", "--hold-out", "within")
    assert done.code == 0
    assert done.out.startswith("Wrote my store.h5 from tff-h5\n")
    for words in (
        "train         3         15",
        "test          3          3",
        "6 x 4, grey levels, uint8, 1.0 is background",
        "natural hold_out(fraction=0.1, kind=within, seed=0)",
        datasets.fingerprint(datasets.DataSource("my store.h5")),
    ):
        assert words in done.out
    assert done.out.endswith("Next: fedcli train --data 'my store.h5'\n")
    again = fedcli("preprocess", write_tff(), "--out", "my store.h5")
    assert again.out.startswith(
        "Wrote my store.h5 from tff-h5; the file that was there is replaced\n"
    )


def test_real_idx_folder(fedcli: Fedcli, shared_data: Path) -> None:
    told = made(fedcli, shared_data / "mnist-idx")
    assert told["pixel_convention"] == "ink"
    assert sizes(told) == {"train": (539, 60_000)}
    ours = datasets.open_splits(datasets.DataSource("out.h5", pixels="background"))["train"]
    pair = datasets.open_splits(
        datasets.DataSource(
            str(shared_data / "mnist_writers_train.h5"),
            test_data=str(shared_data / "mnist_writers_test.h5"),
        )
    )
    for client_id in ours.client_ids:
        both = [pair[name].client(client_id) for name in ("train", "test")]
        theirs = sorted(zip_examples(*both), key=sort_key)
        mine = sorted(zip_examples(ours.client(client_id)), key=sort_key)
        assert len(mine) == len(theirs)
        assert [label for _, label in mine] == [label for _, label in theirs]
        if client_id < "w0010":
            assert_nearest_within_one_level(mine, theirs)


def zip_examples(*clients: Any) -> list[tuple[np.ndarray, int]]:
    """Grey levels and labels of all examples."""
    return [
        (np.rint(image * 255).astype(np.int16), int(label))
        for client in clients
        for image, label in zip(client.images(), client.labels, strict=True)
    ]


def sort_key(example: tuple[np.ndarray, int]) -> int:
    return example[1]


def assert_nearest_within_one_level(
    mine: list[tuple[np.ndarray, int]], theirs: list[tuple[np.ndarray, int]]
) -> None:
    """Each image of `mine` is in `theirs` with the same label, to within one grey level."""
    for image, label in mine:
        twins = [other for other, other_label in theirs if other_label == label]
        assert min(int(np.abs(image - other).max()) for other in twins) <= 1


def test_real_samples_agree(fedcli: Fedcli, shared_data: Path) -> None:
    """The writers of the SQLite and LEAF samples have the same images as in the HDF5 files."""
    made(
        fedcli,
        shared_data / "mnist_writers_train.h5",
        "--test-data",
        shared_data / "mnist_writers_test.h5",
        out="tff.h5",
    )
    sample = made(fedcli, shared_data / "emnist_schema_sample.sqlite.lzma", out="sqlite.h5")
    assert sample["format"] == "tff-sqlite"
    assert sample["splits"]["train"]["num_clients"] == 12
    leaf = made(fedcli, shared_data / "leaf_femnist_sample", out="leaf.h5")
    assert leaf["format"] == "leaf"
    assert sizes(leaf) == {"train": (8, 160), "test": (8, 79)}
    tff, sqlite, rounded = (
        datasets.open_splits(datasets.DataSource(f"{n}.h5")) for n in ("tff", "sqlite", "leaf")
    )
    for name in ("train", "test"):
        for client_id in sqlite[name].client_ids:
            ours, theirs = sqlite[name].client(client_id), tff[name].client(client_id)
            assert ours.pixels.dtype == np.uint8
            assert ours.pixels.tobytes() == theirs.pixels.tobytes()
            assert ours.labels.tobytes() == theirs.labels.tobytes()
            assert (ours.scale, ours.offset) == (theirs.scale, theirs.offset)
        for client_id in rounded[name].client_ids:
            ours, theirs = rounded[name].client(client_id), tff[name].client(client_id)
            exact = theirs.images()[: len(ours)]
            np.testing.assert_array_equal(ours.labels, theirs.labels[: len(ours)])
            # LEAF's pixels are rounded to 4 digits. Their error is far below a grey level, 0.0039.
            np.testing.assert_allclose(ours.images(), exact, rtol=0, atol=5.1e-5)


def draw_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_npz(fedcli: Fedcli, tmp_path: Path, seed: int) -> None:
    arrays = {"x_train": draw_images(seed, 60, 5, 4), "y_train": np.arange(60) % 3}
    np.savez(tmp_path / "a.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    done = fedcli("preprocess", "a.npz", "--out", "out.h5")
    assert "names no owners: divided at random among 3 clients" in done.err
    told = made(fedcli, "a.npz")
    assert told["partition"] == "iid"
    assert told["partition_parameters"] == {"clients": 3, "seed": 0}
    assert sizes(told) == {"train": (3, 60)}
    split = store.open_store(Path("out.h5"))["train"]
    pixels = np.concatenate([split.client(each).pixels for each in split.client_ids])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, arrays["x_train"]))


def test_csv_with_clients(fedcli: Fedcli, tmp_path: Path) -> None:
    rows = [f"{'ann' if row % 2 else 'bob'},{row % 3},{row},0,255,7" for row in range(9)]
    (tmp_path / "a.csv").write_text("\n".join(["who,digit,p0,p1,p2,p3", *rows]))
    told = made(fedcli, "a.csv", "--id-column", "who", "--label-column", "digit")
    assert (told["format"], told["num_classes"], told["pixel_shape"]) == ("csv", 3, [2, 2])
    split = store.open_store(Path("out.h5"))["train"]
    assert list(split.client_ids) == ["ann", "bob"]
    assert split.client("ann").pixels[:, 0, 0].tolist() == [1, 3, 5, 7]


def test_folder_of_images_becomes_a_trained_federation(fedcli: Fedcli, tmp_path: Path) -> None:
    for index in range(24):
        folder = tmp_path / "photos" / ["cat", "dog"][index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw_images(index, 9 + index % 3, 12, 3))
        image.save(folder / f"{index}.png")
    told = made(
        fedcli,
        "photos",
        "--size",
        8,
        "--hold-out",
        "within",
        "--partition",
        "iid",
        "--partition-option",
        "clients=4",
    )
    assert told["class_names"] == ["cat", "dog"]
    assert told["pixel_shape"] == [8, 8, 3]
    assert sizes(told) == {"train": (4, 20), "test": (4, 4)}
    assert fedcli("train", "--data", "out.h5", "--rounds", 1, "--out", "run").code == 0
    assert made(fedcli, "photos", "--size", "6x8")["pixel_shape"] == [6, 8, 3]


def test_cifar_with_its_test_file(fedcli: Fedcli, tmp_path: Path, seed: int) -> None:
    for number, name in enumerate(["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]):
        records = draw_images(seed + number, 80, 3073)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(records.tobytes())
    told = made(
        fedcli, *tmp_path.glob("*.bin"), "--partition", "shards", "--partition-option", "clients=8"
    )
    assert (told["format"], told["pixel_shape"]) == ("cifar", [32, 32, 3])
    assert sizes(told)["train"] == (8, 160)
    assert sizes(told)["test"][1] == 80


def test_partition_with_its_options(fedcli: Fedcli, shared_data: Path) -> None:
    told = made(
        fedcli, shared_data / "mnist_writers_test.h5", "--partition", "dirichlet-client",
        "--partition-option", "clients=20", "--partition-option", "alpha=0.3", "--seed", 4,
    )  # fmt: skip
    assert told["partition_parameters"] == {"alpha": 0.3, "clients": 20, "seed": 4}
    assert sizes(told)["train"][0] == 20


def test_store_is_dealt_anew_and_keeps_its_history(fedcli: Fedcli, write_tff: WriteTff) -> None:
    made(fedcli, write_tff(num_clients=6), "--hold-out", "within", out="a.h5")
    dealt = made(
        fedcli,
        "a.h5",
        "--partition",
        "iid",
        "--partition-option",
        "clients=2",
        "--partition-option",
        "seed=9",
        out="b.h5",
    )
    assert dealt["format"] == "store"
    assert dealt["partition_parameters"] == {"clients": 2, "seed": 9}
    assert sizes(dealt)["train"] == (2, 39)
    kept = made(fedcli, "b.h5", "--partition", "label-noise", out="c.h5")
    assert kept["partition"] == "iid+label-noise"
    assert kept["partition_parameters"]["before"] == {"clients": 2, "seed": 9}
    same = made(fedcli, "a.h5", out="d.h5")
    assert Path("d.h5").read_bytes() == Path("a.h5").read_bytes()
    assert same["partition_parameters"]["hold_out"]["kind"] == "within"


# ---- Same seed, same bytes -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOLD_OUTS)
def test_same_seed_same_bytes(fedcli: Fedcli, write_tff: WriteTff, kind: str) -> None:
    source = write_tff(num_clients=9)
    scheme = ("--partition", "dirichlet-client+label-noise", "--partition-option", "clients=4")
    arguments = (source, "--hold-out", kind, *scheme, "--seed")
    first = made(fedcli, *arguments, 5, out="a.h5")
    made(fedcli, *arguments, 5, out="b.h5")
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes()
    other = made(fedcli, *arguments, 6, out="c.h5")
    assert first["fingerprint"] != other["fingerprint"]
    assert set(first["splits"]) == {"train", "central" if kind == "central" else "test"}
    assert first["same_people"] is (kind != "clients")


# ---- Refused -------------------------------------------------------------------------------------


def test_help_says_what_each_format_is(fedcli: Fedcli) -> None:
    lines = fedcli("preprocess", "--help").out.splitlines()
    for name, row in FORMATS.items():
        assert f"    {name:<14}{row.doc}" in lines


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["missing SOURCE"]),
        (["train.h5"], 2, ["missing --out FILE"]),
        (
            ["--verify", "train.h5", "--seed", "1"],
            2,
            ["--verify cannot be combined with other options", "--seed"],
        ),
        (
            ["train.h5", "--verify", "train.h5"],
            2,
            ["--verify cannot be combined with other options", "SOURCE"],
        ),
        (["train.h5", "--out", "o", "--hold-out", "x"], 2, ["--hold-out", "central"]),
        (["train.h5", "--out", "o", "--hold-out-fraction", "0.2"], 2, ["needs --hold-out"]),
        (["train.h5", "--out", "o", "--size", "3x"], 2, ["--size", "N or HxW"]),
        (["train.h5", "--out", "o", "--size", "0"], 2, ["--size"]),
        (["none.h5", "--out", "o"], 1, ["none.h5", "no such file"]),
        (["train.h5", "--out", "no/o"], 1, ["no folder no"]),
        (["train.h5", "--out", "."], 1, ["not a regular file"]),
        (["train.h5", "--out", "train.h5"], 1, ["is a source itself"]),
        (["train.h5", "--out", "o", "--test-data", "none.h5"], 1, ["none.h5", "no such file"]),
        (["train.h5", "--out", "o", "--partition", "x"], 1, ["x", "dirichlet-class"]),
        (["train.h5", "--out", "o", "--partition-option", "a=1"], 1, ["also choose a partition"]),
        (
            ["train.h5", "--out", "o", "--partition", "iid", "--partition-option", "alpha=1"],
            1,
            ["iid has no option 'alpha'"],
        ),
        (["train.h5", "--out", "o", "--seed", "-1"], 1, ["--seed -1"]),
        (["train.h5", "--out", "o", "--min-examples", "-1"], 1, ["--min-examples -1"]),
        (["train.h5", "--out", "o", "--min-examples", "99"], 1, ["99", "--min-examples"]),
        (["train.h5", "--out", "o", "--num-classes", "0"], 1, ["--num-classes 0"]),
        (["train.h5", "--out", "o", "--num-classes", "2"], 1, ["'a'", "label 2", "--num-classes"]),
        (
            ["train.h5", "--out", "o", "--hold-out", "test=within", "--test-data", "train.h5"],
            1,
            ["--hold-out test= and --test-data"],
        ),
        (
            ["train.h5", "--out", "o", "--hold-out", "within", "--hold-out-fraction", "1"],
            1,
            ["--hold-out-fraction 1"],
        ),
        (
            ["train.h5", "--out", "o", "--hold-out", "within", "--hold-out-fraction", "nan"],
            1,
            ["--hold-out-fraction nan"],
        ),
        (["train.h5", "--out", "o", "--format", "idx"], 1, ["train.h5"]),
        (["--verify", "none.h5"], 1, ["none.h5"]),
        (["--verify", "train.h5"], 1, ["train.h5", "not a fedcli store"]),
    ],
)
def test_refused_in_one_line(
    fedcli: Fedcli, write_tff: WriteTff, arguments: list[str], code: int, words: list[str]
) -> None:
    write_tff()
    line = refusal(fedcli, *arguments, code=code)
    for word in words:
        assert word in line


def test_source_with_a_test_split_refuses_another(fedcli: Fedcli, write_tff: WriteTff) -> None:
    made(fedcli, write_tff(), "--hold-out", "within", out="two.h5")
    line = refusal(fedcli, "two.h5", "--out", "o", "--hold-out", "test=clients")
    assert "--hold-out clients" in line
    assert "has a split 'test' of its own" in line
    line = refusal(fedcli, "two.h5", "--out", "o", "--test-data", "train.h5")
    assert "has a split 'test' of its own; leave --test-data out" in line


def test_no_store_is_written_into_a_source(fedcli: Fedcli, tmp_path: Path) -> None:
    for name in ("cats/1.png", "dogs/1.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_images(0, 4, 4)).save(path)
    content = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for out in ("photos/dogs/1.png", "photos/new.h5", "link/cats/new.h5"):
        line = refusal(fedcli, "photos", "--out", out)
        assert f"--out {out} lies in the source photos; choose a place outside" in line
    assert path.read_bytes() == content
    line = refusal(fedcli, "photos/cats", "--test-data", "photos", "--out", "photos/new.h5")
    assert "lies in the source photos" in line


def test_a_store_with_a_test_split_is_called_as_it_was_typed(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    made(fedcli, write_tff(), "--hold-out", "within", out="two.h5")
    assert "two.h5 has a split 'test'" in refusal(
        fedcli, "two.h5", "--out", "o", "--hold-out", "test=within"
    )
    line = refusal(fedcli, "two.h5", "--out", "o", "--test-data", write_tff("b.h5"))
    assert "two.h5 has a split 'test'" in line


def test_colours_are_not_called_ink(fedcli: Fedcli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(draw_images(0, 4, 5, 3)).save(tmp_path / "photos" / name / "1.png")
    done = fedcli("preprocess", "photos", "--out", "out.h5")
    assert done.code == 0, done.err
    assert "4 x 5 x 3, RGB, uint8\n" in done.out
    assert "ink" not in done.out


def test_bad_source_leaves_the_old_store(fedcli: Fedcli, write_tff: WriteTff) -> None:
    made(fedcli, write_tff("good.h5"))
    before = Path("out.h5").read_bytes()
    bad = write_tff("bad.h5")
    with h5py.File(bad, "r+") as file:
        file["examples/b/pixels"][2, 1, 1] = np.nan
    line = refusal(fedcli, bad, "--out", "out.h5")
    assert "bad.h5: client 'b': example 2: a pixel is NaN" in line
    assert Path("out.h5").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "no permission" in refusal(fedcli, write_tff(), "--out", "closed/o.h5")


# ---- Verify --------------------------------------------------------------------------------------


def test_verify_says_whether_a_store_is_whole(fedcli: Fedcli, write_tff: WriteTff) -> None:
    told = made(fedcli, write_tff())
    done = fedcli("preprocess", "--verify", "out.h5")
    assert (done.code, done.out) == (0, f"out.h5 is intact: {told['fingerprint']}\n")
    done = fedcli("preprocess", "--verify", "out.h5", "--json")
    assert json.loads(done.out) == {
        "file": "out.h5", "fingerprint": told["fingerprint"], "is_whole": True,
    }  # fmt: skip
    with h5py.File("out.h5", "r+") as file:
        file["splits/train/pixels"][1, 0, 0] ^= 1
    assert "was changed or damaged" in refusal(fedcli, "--verify", "out.h5")


# ---- Killed, stopped, disk full ------------------------------------------------------------------


@pytest.fixture
def long_job(fedcli: Fedcli, tmp_path: Path) -> Callable[[str], list[str]]:
    """The arguments of a preprocess that takes about a second, most of it in writing."""
    with h5py.File(tmp_path / "source.h5", "w") as file:
        for index in range(40):
            client = file.create_group(f"examples/c{index:02d}")
            client["pixels"] = draw_images(index, 150, 28, 28)
            client["label"] = np.arange(150) % 10
    return lambda out: [
        "preprocess", "source.h5", "--out", out, "--hold-out", "within",
        "--partition", "iid+feature-noise", "-q",
    ]  # fmt: skip


def test_killed_at_any_moment_and_run_again(
    long_job: Callable[[str], list[str]],
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    seed: int,
) -> None:
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, **process_arguments}
    started = time.monotonic()
    subprocess.run([*command, *long_job("whole.h5")], check=True, **quiet)
    whole_seconds = time.monotonic() - started
    whole = (tmp_path / "whole.h5").read_bytes()
    rng = random.Random(seed)
    moments = [None, None, *(rng.uniform(0.1, 0.95) * whole_seconds for _ in range(4))]
    for moment in moments:
        for _ in range(NUM_TRIES):
            is_killed = kill_after(moment, [*command, *long_job("out.h5")], tmp_path, quiet)
            if (tmp_path / "out.h5").exists():
                assert (tmp_path / "out.h5").read_bytes() == whole
                (tmp_path / "out.h5").unlink()
            if is_killed or moment is not None:
                break
        assert is_killed or moment is not None
    subprocess.run([*command, *long_job("out.h5")], check=True, **quiet)
    assert (tmp_path / "out.h5").read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "source.h5", "whole.h5"]  # noqa: PTH208


def kill_after(
    moment: float | None, command: list[str], folder: Path, process_arguments: dict[str, Any]
) -> bool:
    """Kills a process after some seconds, or while it writes; tells whether it had not ended."""
    before = temporary_files(folder)
    with started(command, **process_arguments) as process:
        if moment is None:
            wait_for_writing(process, folder, before)
        else:
            time.sleep(moment)
        process.kill()
        return process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def temporary_files(folder: Path) -> set[Path]:
    return set(folder.glob(".out.h5.*.tmp"))


def wait_for_writing(process: subprocess.Popen[str], folder: Path, before: set[Path]) -> None:
    """Waits until the process writes the store, or has ended.

    Args:
        process: The process.
        folder: Its folder.
        before: Temporary files of other processes.
    """
    while process.poll() is None and not temporary_files(folder) - before:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("signal_num", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_stopped_while_writing_leaves_nothing(
    long_job: Callable[[str], list[str]],
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    signal_num: signal.Signals,
    code: int,
) -> None:
    start = [*command, *long_job("out.h5")]
    for _ in range(NUM_TRIES):
        with started(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments) as process:
            wait_for_writing(process, tmp_path, set())
            process.send_signal(signal_num)
            _, err = process.communicate(timeout=PATIENCE_SECONDS)
        if not (tmp_path / "out.h5").exists():
            break
        assert "nothing was written" not in err
        (tmp_path / "out.h5").unlink()  # the signal came too late
    assert (process.returncode, err) == (code, "fedcli: stopped; nothing was written\n")
    assert os.listdir(tmp_path) == ["source.h5"]  # noqa: PTH208


@pytest.mark.parametrize("blocks", [1, 1000, 8000])
def test_full_disk(
    long_job: Callable[[str], list[str]],
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    blocks: int,
) -> None:
    """A limit is reached when pixels are read, the store is laid out, or its pixels are written."""
    line = f"ulimit -f {blocks}; exec {shlex.join([*command, *long_job('out.h5')])}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, check=False, capture_output=True, **process_arguments
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "ile too large" in done.stderr
    assert os.listdir(tmp_path) == ["source.h5"]  # noqa: PTH208
