"""Messages about users' own data, and about runs that cannot do what the user intends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedcli.cli import main as cli
from fedcli.cli.peer_options import advice_on
from fedcli.cli.screen.output import Remarks, Verbosity
from fedcli.runs.files import folder
from tests.kit.command_line import Fedcli

RNG = np.random.default_rng(4)


def write_tff(
    path: Path, *, top: float = 1.0, num_classes: int = 10, num_clients: int = 4, size: int = 8
) -> Path:
    with h5py.File(path, "w") as file:
        for index in range(num_clients):
            labels = (np.arange(20) + index) % num_classes
            images = RNG.random((20, size, size)) * 0.2
            images[np.arange(20), labels % size] += 0.8
            client = file.create_group(f"examples/c{index}")
            client["pixels"] = (images * top).astype(np.float32)
            client["label"] = labels.astype(np.int64)
    return path


# ---- Files of other programs ---------------------------------------------------------------------


def test_pixels_of_another_range_are_told(fedcli: Fedcli, tmp_path: Path) -> None:
    write_tff(tmp_path / "grey.h5", top=255)
    write_tff(tmp_path / "unit.h5")
    line = "where 0 to 1 is expected"
    assert line in fedcli("inspect-clients", "--data", "grey.h5").err
    assert line not in fedcli("inspect-clients", "--data", "unit.h5").err
    options = ("--rounds", "1", "--threads", "1", "--clients", "all")
    done = fedcli("train", "--data", "unit.h5", "--test-data", "grey.h5", "--out", "r", *options)
    assert "pixels of test (grey.h5)" in done.err.replace(f"{tmp_path}/", "")
    assert line in fedcli("eval", "r", "--data", "grey.h5").err


def test_a_file_without_splits_is_evaluated_as_train_and_that_is_said(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    write_tff(tmp_path / "train.h5")
    write_tff(tmp_path / "test.h5")
    fedcli("train", "--data", "train.h5", "--rounds", "1", "--clients", "all", "--out", "r")
    done = fedcli("eval", "r", "--data", "test.h5")
    assert "\ntrain " in done.out
    line = "which has no split named test; if it holds test data, give it as --test-data\n"
    assert f"fedcli: the row train is about test.h5, {line}" in done.err
    named = fedcli("eval", "r", "--test-data", "test.h5")
    assert "\ntest " in named.out
    assert "the row" not in named.err
    for options in (["--split", "train"], ["--data", "test.h5", "--split", "train"]):
        assert "the row" not in fedcli("eval", "r", *options).err


def test_classes_that_labels_cannot_fill_are_told(fedcli: Fedcli, tmp_path: Path) -> None:
    write_tff(tmp_path / "two.h5", num_classes=2)
    options = ("--rounds", "1", "--threads", "1", "--clients", "all")
    done = fedcli("train", "--data", "two.h5", "--out", "a", *options)
    assert "its largest label is 1; pass --num-classes 2" in done.err
    done = fedcli("train", "--data", "two.h5", "--out", "b", *options, "--num-classes", "2")
    assert "its largest label" not in done.err
    write_tff(tmp_path / "one.h5", num_classes=1)
    done = fedcli("train", "--data", "one.h5", "--out", "c", *options)
    assert "with one class" in done.err


def test_label_noise_stays_among_the_classes_there_are(fedcli: Fedcli, tmp_path: Path) -> None:
    write_tff(tmp_path / "two.h5", num_classes=2)
    noise = ("--partition", "label-noise", "--partition-option", "rate=0.5")
    done = fedcli("preprocess", "two.h5", "--out", "s.h5", "--num-classes", "5", *noise)
    assert done.code == 0
    with h5py.File("s.h5") as file:
        assert set(file["splits/train/labels"][:].tolist()) == {0, 1}


def test_a_file_open_in_another_program_is_not_called_damaged(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    path = write_tff(tmp_path / "a.h5")
    code = (
        "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); "
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = fedcli("inspect-clients", "--data", str(path))
    finally:
        holder.communicate()
    if done.code == 0:
        pytest.skip("this file system locks nothing")
    assert "is open for writing in another program" in done.err
    assert "damaged" not in done.err


# ---- Data that have moved ------------------------------------------------------------------------


def test_a_moved_data_set_is_known_again(fedcli: Fedcli, tmp_path: Path) -> None:
    write_tff(tmp_path / "a.h5")
    options = ("--threads", "1", "--clients", "2")
    fedcli("train", "--data", "a.h5", "--out", "r", "--rounds", "1", *options)
    before = fedcli("eval", "r", "--json").out
    (tmp_path / "new").mkdir()
    shutil.move("a.h5", "new")
    done = fedcli("eval", "r")
    assert done.code == 1
    assert "does not exist any more; give its new path with --data" in done.err
    assert fedcli("eval", "r", "--json", "--data", "new/a.h5").out == before
    resume = ("train", "--resume", "r", "--rounds", "2", "--threads", "1")
    assert "give its new path with --data together with --resume" in fedcli(*resume).err
    write_tff(tmp_path / "other.h5")
    done = fedcli(*resume, "--data", "other.h5")
    assert done.code == 1
    assert "not the data that the run was trained on" in done.err
    assert fedcli(*resume, "--data", "new/a.h5").code == 0
    assert str(tmp_path / "new" / "a.h5") in (tmp_path / "r" / "config.toml").read_text()
    assert fedcli("train", "--resume", "r", "--rounds", "3", "--threads", "1").code == 0


def test_runs_that_begin_in_one_second_get_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "20250101-000000-a"
    runs = [folder.RunDirectory.create(path, "", b"checkpoint", is_numbered=True) for _ in range(3)]
    assert [run.path.name for run in runs] == [path.name, f"{path.name}-2", f"{path.name}-3"]
    for run in runs:
        run.close()


# ---- Options of other tools ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "option", "wanted"),
    [
        ("train", "--lr", "--client-lr"),
        ("train", "--learning_rate", "--client-lr"),
        ("train", "--momentum", "--client-option momentum=X"),
        ("train", "--local-epochs", "--epochs"),
        ("train", "--num-rounds", "--rounds"),
        ("train", "--n-rounds", "--rounds"),
        ("train", "--num-clients", "--clients says"),
        ("train", "--seed-value", "--seed"),
        ("train", "--bs", "--batch-size"),
        ("train", "--mu", "--algorithm fedprox --algorithm-option proximal_strength=X"),
        ("train", "--gpus", "fedcli computes on the CPU"),
        ("train", "--device", "fedcli computes on the CPU"),
        ("train", "--image-size", "fedcli preprocess SOURCE makes a store"),
        ("train", "--weight-decay", "--client-weight-decay sets it"),
        ("preprocess", "--image-size", "--size"),
        ("preprocess", "--num_clients", "--partition iid --partition-option clients=N"),
        ("preprocess", "--val-split", "--hold-out"),
    ],
)
def test_options_of_other_tools_lead_to_ours(
    fedcli: Fedcli, command: str, option: str, wanted: str
) -> None:
    done = fedcli(command, option, "1")
    assert done.code == 2
    assert wanted in done.err
    assert done.err.count("\n") == 1


def test_no_guess_where_nothing_is_near(fedcli: Fedcli) -> None:
    assert "Did you mean" not in fedcli("train", "--foo", "1").err
    assert "Did you mean '--rounds'?" in fedcli("train", "--round-s", "1").err
    assert advice_on("--lr", ["--data"]) == ""


def test_options_that_are_advised_exist() -> None:
    from fedcli.cli import peer_options
    from fedcli.cli.preprocess import preprocess
    from fedcli.cli.train import train

    known = {name for param in (*train.params, *preprocess.params) for name in param.opts}
    named = {
        word.strip(",;'")
        for advice in peer_options._ADVICE
        for word in advice.split()
        if word.startswith("-")
    }
    assert {name.removesuffix("'s") for name in named} <= known


# ---- Training that does not learn ----------------------------------------------------------------


def test_training_that_moves_nothing_says_so(fedcli: Fedcli, tmp_path: Path) -> None:
    path = write_tff(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        empty = file.create_group("examples/empty")
        empty["pixels"] = np.empty((0, 8, 8), np.float32)
        empty["label"] = np.empty(0, np.int64)
    options = ("train", "--data", "a.h5", "--rounds", "2", "--threads", "1", "--json")
    diverges = ("--model", "mlp-2nn", "--client-lr", "1e6", "--clients", "c0,c1")
    done = fedcli(*options, *diverges, "--out", "a")
    assert "none of 2 rounds changed the model" in done.err
    assert "(--clients c0,c1), had parameters or losses that were not finite" in done.err
    assert "lower --client-lr, now 1e+06" in done.err
    assert json.loads(done.out)["failure"] in done.err
    done = fedcli(*options, "--clients", "empty,", "--out", "b")
    assert "(--clients empty) holds no examples" in done.err
    done = fedcli(*options, "--clients", "c0,c1", "--out", "c")
    assert "failure" not in json.loads(done.out)
    assert "changed the model" not in done.err


def test_arithmetic_warnings_of_fedcli_are_hidden_and_others_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        cli._hide_arithmetic_warnings()
        for module in ("fedcli.learning.state", "my_model", "numpy.linalg"):
            warnings.warn_explicit(module, RuntimeWarning, "file.py", 1, module)
        warnings.warn_explicit("deprecated", DeprecationWarning, "file.py", 1, "fedcli.learning")
    assert [str(each.message) for each in shown] == ["my_model", "numpy.linalg", "deprecated"]


def test_a_note_that_quotes_very_much_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    Remarks(Verbosity.NORMAL).note("all are of one class " + "A" * 60_000 + "; mend it")
    said = capsys.readouterr().err
    assert said.startswith("fedcli: all are of one class A")
    assert said.endswith("A; mend it\n")
    assert len(said) < 1100
