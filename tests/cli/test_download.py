"""`fedcli download`: a small public dataset, from a server to a trained model."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from fedcli.cli.download import acquire
from fedcli.cli.screen.output import Remarks
from fedcli.datasets.data_folder import download_path
from fedcli.datasets.download import installing
from fedcli.datasets.download.public import CATALOGUE, Expected, Member, PublicDataset, RemoteFile
from fedcli.errors import DataError
from fedcli.locks import locked
from fedcli.settings import tables
from fedcli.settings.options import Entry
from tests.kit import misbehaving_server as web
from tests.kit.command_line import Fedcli, WriteTff, assert_is_one_line
from tests.kit.waiting import PATIENCE_SECONDS, started, wait_until

DATA = "FEDCLI_DATA_DIR"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA, str(tmp_path / "data"))
    monkeypatch.delenv("FEDCLI_OFFLINE", raising=False)
    return tmp_path / "data"


@pytest.fixture
def fake(server: web.Script, write_tff: WriteTff) -> PublicDataset:
    """A dataset whose name --data knows; its archive has small TFF files of clients a, b and c."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name in ("train.h5", "test.h5"):
            tar.add(write_tff(name), name)
    content = buffer.getvalue()
    archive = RemoteFile(
        name="pair.tar.bz2",
        folder="fake",
        urls=(server.add("pair.tar.bz2", content),),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        max_bytes=10_000_000,
        members=tuple(Member(name=each, max_bytes=10_000_000) for each in ("train.h5", "test.h5")),
    )
    return PublicDataset(
        entry=Entry("emnist-digits", "A pair.", "invented", licence="none needed"),
        files=(archive,),
        format="tff-h5",
        expected=tuple(
            Expected(splits=(split,), num_clients=3, num_examples=18) for split in ("train", "test")
        ),
        sources=("train.h5",),
        test_source="test.h5",
    )


def run_acquire(fake: PublicDataset, folder: Path, *given: Path, **options: Any) -> None:
    options = {"force": False, "remarks": Remarks(1), "as_json": False, **options}
    acquire(fake, folder, given, [], **options)


def test_from_a_server_to_a_trained_model(
    fedcli: Fedcli,
    fake: PublicDataset,
    folder: Path,
    server: web.Script,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.behaviours["/pair.tar.bz2"] = [web.serve(cut_after=100), web.status(503, Retry_After=0)]
    run_acquire(fake, folder)
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["emnist-digits:", str(folder / "datasets" / "emnist-digits.h5")]
    assert lines[1] == ["split", "clients", "examples"]
    assert lines[3:5] == [["train", "3", "18"], ["test", "3", "18"]]
    assert shown.out.endswith(
        "Licence: none needed\nTo use it: fedcli train --data emnist-digits\n"
    )
    assert "HTTP 503" in shown.err
    done = fedcli("train", "--data", "emnist-digits", "--rounds", 2, "--out", "run", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["rounds"]) == 2
    assert fedcli("eval", "run", "--json").code == 0
    assert fedcli("inspect-clients", "--data", "emnist-digits", "--json").code == 0
    assert 'data = "emnist-digits"' in Path("run/config.toml").read_text()  # the name, not the path
    done = fedcli("train", "--data", "emnist-digits", "--data-option", "clients=3")
    assert done.err == (
        "fedcli: error: --data-option: emnist-digits has no option 'clients'; it takes none\n"
    )


def test_what_is_here_is_not_fetched_again(
    fake: PublicDataset, folder: Path, server: web.Script, capsys: pytest.CaptureFixture[str]
) -> None:
    run_acquire(fake, folder, as_json=True)
    first = json.loads(capsys.readouterr().out)
    assert first["downloaded_bytes"] == fake.num_bytes
    assert first["splits"]["train"] == {"num_clients": 3, "num_examples": 18}
    assert first["fingerprint"].startswith("blake2b:")
    run_acquire(fake, folder, as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {**first, "downloaded_bytes": 0}
    assert shown.err == (
        "fedcli: emnist-digits is already in the data folder; --verify checks it, --force fetches "
        "it again\n"
    )
    assert len(server.requests) == 1
    run_acquire(fake, folder, force=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == first
    assert len(server.requests) == 2


def test_a_folder_of_its_own_is_told_by_path(
    fake: PublicDataset, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_acquire(fake, tmp_path / "own")
    path = tmp_path / "own" / "datasets" / "emnist-digits.h5"
    assert capsys.readouterr().out.endswith(f"To use it: fedcli train --data {path}\n")
    assert not folder.exists()


def test_from_a_file_without_a_network(
    fake: PublicDataset, folder: Path, server: web.Script, tmp_path: Path
) -> None:
    archive = tmp_path / "brought.bin"
    archive.write_bytes(server.contents["/pair.tar.bz2"])
    run_acquire(fake, folder, archive)
    assert (folder / "datasets" / "emnist-digits.h5").is_file()
    assert not (folder / "downloads").exists()
    assert server.requests == []


def test_offline_lists_all_that_has_to_be_brought(fedcli: Fedcli, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDCLI_OFFLINE", "1")
        done = fedcli("download", "mnist-writers", "-q")
    assert (done.code, done.out) == (1, "")
    for file in CATALOGUE["mnist-writers"].files:
        assert f"  {file.name}  {file.size:,} bytes\n    sha256  {file.sha256}\n" in done.err
        assert f"    to      {folder / 'downloads' / file.folder / file.name}\n" in done.err
        for url in file.urls:
            assert f"    from    {url}\n" in done.err
    assert done.err.startswith("fedcli: mnist-writers needs:\n")
    last = done.err.splitlines()[-1]
    assert last.startswith("fedcli: error: train-images-idx3-ubyte.gz is not here, and FEDCLI_OFF")
    assert "fedcli download mnist-writers --from-file PATH" in last
    assert "--data synthetic-digits needs no download" in last


def test_no_server_is_the_same_as_offline(
    fake: PublicDataset, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = fake.files
    object.__setattr__(file, "urls", ("http://name.invalid/pair.tar.bz2",))
    with pytest.raises(
        DataError, match=r"cannot be reached .*; copy the files listed above to this machine"
    ):
        run_acquire(fake, folder)
    assert "pair.tar.bz2  " in capsys.readouterr().err


def test_list_shows_every_set_and_what_is_here(
    fedcli: Fedcli, fake: PublicDataset, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(fedcli("download", "--list", "--json").out)
    assert [row["name"] for row in told["datasets"]] == list(tables.PUBLIC_DATASETS)
    assert {row["state"] for row in told["datasets"]} == {"none"}
    run_acquire(fake, folder)
    capsys.readouterr()
    done = fedcli("download", "--list")
    rows = {line.split()[0]: line for line in done.out.splitlines()[2:]}
    assert rows["emnist-digits"].split()[1] == "yes"
    assert "not stated" in rows["emnist-digits"]
    assert rows["mnist"].split()[1] == "no"
    assert "11.6" in rows["mnist"]
    assert f"\nThe files in {folder} take 0.0 MB; --remove removes them\n" in done.out
    one = json.loads(fedcli("download", "mnist", "--list", "--json").out)
    assert [row["name"] for row in one["datasets"]] == ["mnist"]


def test_verify_reads_everything_and_fails_on_damage(
    fedcli: Fedcli, fake: PublicDataset, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = fedcli("download", "--verify")
    assert done.code == 1
    assert "no file of emnist-digits" in done.err
    run_acquire(fake, folder)
    capsys.readouterr()
    done = fedcli("download", "emnist-digits", "--verify", "--json")
    (row,) = json.loads(done.out)["files"]  # only the store: the archive is not the published one
    assert row["path"].endswith("emnist-digits.h5")
    assert "expected 3,383 clients in train, got 3" in row["problem"]
    assert done.code == 1
    assert "to replace it: fedcli download emnist-digits --force" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "fedcli download: give the NAME of a dataset, or --list; see"),
        (["--list", "--verify"], 2, "--list and --verify contradict each other"),
        (["mnist", "--list", "--force"], 2, "--list fetches nothing; give only NAME with it"),
        (["mnist", "--verify", "--mirror", "http://a/"], 2, "--verify fetches nothing"),
        (["mnist", "--mirror", "http://a/", "--from-file", "b"], 2, "contradict each other; see"),
        (["-q", "-v", "mnist"], 2, "-q and -v contradict each other"),
        (["emnist"], 1, "unknown dataset 'emnist'; choose one of cifar10, cifar100, emnist-62"),
        (["synthetic-digits"], 1, "unknown dataset 'synthetic-digits'; choose one of"),
        (["mnist", "--mirror", "http://[::1"], 1, "give an address that starts with http"),
        (["mnist", "--mirror", "/files"], 1, "for files on this machine use --from-file"),
        (
            ["mnist", "--from-file", "nothing"],
            1,
            "--from-file nothing: there is no such file or folder",
        ),
    ],
)
def test_usage(fedcli: Fedcli, folder: Path, arguments: list[str], code: int, line: str) -> None:
    done = fedcli("download", *arguments)
    assert (done.code, done.out) == (code, "")
    assert line in done.err
    assert done.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_names_the_variable(
    fedcli: Fedcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(DATA, str(tmp_path / "file"))
    done = fedcli("download", "mnist")
    assert done.code == 1
    assert "set FEDCLI_DATA_DIR to a folder for datasets, or give --data-dir" in done.err
    assert done.err.count("\n") == 1


def test_a_store_that_cannot_be_written_is_told_before_anything_is_fetched(
    fake: PublicDataset, folder: Path, server: web.Script
) -> None:
    folder.mkdir()
    (folder / "datasets").write_text("")
    with pytest.raises(DataError, match="set FEDCLI_DATA_DIR to a folder for datasets"):
        run_acquire(fake, folder)
    assert server.requests == []


def test_a_name_not_fetched_is_one_line_for_every_command(
    fedcli: Fedcli, folder: Path, write_tff: WriteTff
) -> None:
    run = ("--data", write_tff("own.h5"), "--rounds", 1, "--clients", 1, "--out", "run", "-q")
    assert fedcli("train", *run).code == 0
    line = (
        f"fedcli: error: mnist is not downloaded yet ({folder / 'datasets' / 'mnist.h5'} is "
        "missing); "
        "fetch it with: fedcli download mnist\n"
    )
    for arguments in (
        ("train", "--data", "mnist"),
        ("train", "--data", "own.h5", "--test-data", "mnist"),
        ("eval", "run", "--data", "mnist"),
        ("inspect-clients", "--data", "mnist"),
    ):
        done = fedcli(*arguments)
        assert (done.code, done.out, done.err) == (1, "", line)


@pytest.mark.parametrize(
    "words",
    [
        ("download", "mn"),
        ("info", "mn"),
        ("train", "--data", "mn"),
        ("train", "--test-data", "mn"),
        ("inspect-clients", "--data", "mn"),
    ],
)
def test_the_shell_completes_the_names(
    command: list[str], process_arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    typed = " ".join(("fedcli", *words))
    variables = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words))}
    arguments = {
        **process_arguments,
        "env": {**process_arguments["env"], **variables, "_FEDCLI_COMPLETE": "bash_complete"},
    }
    done = subprocess.run(command, capture_output=True, check=True, **arguments)
    assert {"plain,mnist", "plain,mnist-writers"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("signal_num", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_stopped_it_keeps_what_it_has_and_says_how_to_go_on(
    server: web.Script,
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    signal_num: signal.Signals,
    code: int,
) -> None:
    file = CATALOGUE["mnist"].files[0]
    server.add(file.name, bytes(file.size or 0), web.serve(stall_after=100_000))
    arguments = ["download", "mnist", "--mirror", server.url, "--data-dir", str(tmp_path)]
    part = tmp_path / "downloads" / "mnist" / f"{file.name}.part"
    with started(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **process_arguments
    ) as process:
        wait_until(lambda: part.exists() and part.stat().st_size == 100_000, process)
        process.send_signal(signal_num)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == (
        f"fedcli: stopped; what was fetched is kept in {tmp_path}; "
        "run the same command again to continue"
    )
    assert part.stat().st_size == 100_000


def test_a_failed_download_leaves_no_empty_folders(
    fedcli: Fedcli, folder: Path, fake: PublicDataset, server: web.Script
) -> None:
    server.behaviours["/pair.tar.bz2"] = [web.status(404)]
    with pytest.raises(DataError):
        run_acquire(fake, folder / "deep")
    assert not folder.exists()
    server.behaviours["/pair.tar.bz2"] = [web.serve(cut_after=100), web.status(404)]
    with pytest.raises(DataError):
        run_acquire(fake, folder)
    assert [path.name for path in folder.iterdir()] == ["downloads"]
    assert (folder / "downloads/fake/pair.tar.bz2.part").stat().st_size == 100


def test_a_folder_that_was_there_stays(fake: PublicDataset, folder: Path, tmp_path: Path) -> None:
    (folder / "downloads").mkdir(parents=True)
    with pytest.raises(DataError):
        run_acquire(fake, folder, tmp_path / "nowhere")
    assert [path.name for path in folder.iterdir()] == ["downloads"]


def test_what_is_here_can_be_removed(
    fedcli: Fedcli,
    fake: PublicDataset,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(CATALOGUE, "emnist-digits", fake)
    run_acquire(fake, folder)
    capsys.readouterr()
    store, archive = folder / "datasets/emnist-digits.h5", folder / "downloads/fake/pair.tar.bz2"
    archive.with_name("pair.tar.bz2.part").write_bytes(b"x" * 10)
    (folder / "mine.txt").write_text("kept")
    assert_is_one_line(fedcli("download", "mnist", "--remove"), "no file of mnist is in")
    refused = fedcli("download", "emnist-digits", "--remove")
    assert (refused.code, "give --yes" in refused.err) == (1, True)
    assert refused.out.count("\n") == 3
    num_bytes = store.stat().st_size + archive.stat().st_size + 10
    told = json.loads(fedcli("download", "emnist-digits", "--remove", "--yes", "--json").out)
    assert told["num_bytes"] == num_bytes
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert "fetch it with: fedcli download" in fedcli("train", "--data", "emnist-digits").err


def test_what_another_process_makes_is_removed_after_it(folder: Path, fake: PublicDataset) -> None:
    run_acquire(fake, folder)
    files = installing.find_files([fake], folder)
    remarks: list[str] = []
    order: list[str] = []

    def make() -> None:
        with locked(files[0].with_name(f"{files[0].name}.lock")):
            is_held.set()
            wait_until(lambda: remarks)
            order.append("made")

    is_held = threading.Event()
    other = threading.Thread(target=make)
    other.start()
    assert is_held.wait(PATIENCE_SECONDS)
    installing.remove(files, folder, remarks.append)
    order.append("removed")
    other.join(PATIENCE_SECONDS)
    assert order == ["made", "removed"]
    assert remarks == [f"another process has locked {files[0].name}; waiting for it to end"]
    assert not any(file.exists() for file in files)


def test_a_download_that_two_datasets_need_goes_with_both(tmp_path: Path) -> None:
    mnist, writers = CATALOGUE["mnist"], CATALOGUE["mnist-writers"]
    shared = next(file for file in mnist.files if file in writers.files)
    target = download_path(tmp_path, shared.folder, shared.name)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x")
    assert installing.find_files([mnist], tmp_path) == []
    assert installing.find_files([mnist, writers], tmp_path) == [target]
