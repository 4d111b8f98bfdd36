"""Public datasets: the catalogue, files given by the user, import, and the expected numbers.

The real files are too large for tests, so small sets of the same kinds are used.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import datasets
from fedcli.datasets import data_folder
from fedcli.datasets.download import installing
from fedcli.datasets.download.fetching import FetchError, TransferLimits
from fedcli.datasets.download.public import CATALOGUE, Expected, Member, PublicDataset, RemoteFile
from fedcli.datasets.sources import store
from fedcli.errors import DataError
from fedcli.progress import ignore_progress
from fedcli.settings import tables
from fedcli.settings.options import Entry
from tests.kit import misbehaving_server as web
from tests.kit.waiting import PATIENCE_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS = TransferLimits(pause_seconds=0.01)
CIFAR_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
ENTRY = Entry("fake", "A set for tests.", "invented", licence="none needed")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx_bytes(values: np.ndarray, code: int) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def remote(server: web.Script, name: str, content: bytes, **fields: Any) -> RemoteFile:
    return RemoteFile(
        name=name,
        folder="fake",
        urls=(server.add(name, content),),
        size=len(content),
        sha256=sha256(content),
        max_bytes=10_000_000,
        **fields,
    )


def tff_bytes(path: Path, num_clients: int, num_each: int, first_label: int = 1) -> bytes:
    rng = np.random.default_rng(num_each)
    with h5py.File(path, "w") as file:
        for index in range(num_clients):
            client = file.create_group(f"examples/f{index:04}_00")
            client["label"] = ((np.arange(num_each) + first_label) % 10).astype(np.int32)
            pixels = rng.integers(0, 256, (num_each, 4, 4)) / 255
            client["pixels"] = pixels.astype(np.float32)
    return path.read_bytes()


@pytest.fixture
def tff(server: web.Script, tmp_path: Path) -> PublicDataset:
    """A pair of TFF files in an archive: 12 clients with 6 train and 2 test examples each."""
    contents = {
        "fake_train.h5": tff_bytes(tmp_path / "a.h5", 12, 6),
        "fake_test.h5": tff_bytes(tmp_path / "b.h5", 12, 2),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = tuple(
        Member(name=name, size=len(each), max_bytes=10_000_000, sha256=sha256(each))
        for name, each in contents.items()
    )
    return PublicDataset(
        entry=ENTRY,
        files=(remote(server, "fake.tar.bz2", buffer.getvalue(), members=members),),
        format="tff-h5",
        expected=(
            Expected(
                splits=("train",),
                num_clients=12,
                num_examples=72,
                num_examples_of_ten=60,
                first_label=1,
            ),
            Expected(splits=("test",), num_clients=12, num_examples=24, num_examples_of_ten=20),
        ),
        sources=("fake_train.h5",),
        test_source="fake_test.h5",
    )


@pytest.fixture
def idx(server: web.Script) -> PublicDataset:
    """Six small files like those of MNIST: 20 writers with 10 images each, 5 others with 4 each."""
    rng = np.random.default_rng(3)
    files = []
    for stem, table_stem, num_writers, num_each, first in (
        ("train", "train", 20, 10, 0),
        ("t10k", "test", 5, 4, 100),
    ):
        count = num_writers * num_each
        labels = (np.arange(count) % 10).astype(np.uint8)
        table = np.zeros((count, 8), np.int32)
        table[:, 0] = labels
        table[:, 2] = rng.permutation(np.arange(count) // num_each) + first
        images = rng.integers(0, 256, (count, 5, 5)).astype(np.uint8)
        for name, content in (
            (f"{stem}-images-idx3-ubyte", idx_bytes(images, 8)),
            (f"{stem}-labels-idx1-ubyte", idx_bytes(labels, 8)),
            (f"qmnist-{table_stem}-labels-idx2-int", idx_bytes(table, 12)),
        ):
            packed = gzip.compress(content)
            files.append(remote(server, f"{name}.gz", packed, unpacked_sha256=sha256(content)))
    names = [file.name for file in files]
    return PublicDataset(
        entry=ENTRY,
        files=tuple(files),
        format="idx",
        expected=(
            Expected(splits=("train", "test"), num_clients=20, num_examples=200),
            Expected(splits=("central",), num_clients=5, num_examples=20),
        ),
        sources=tuple(names[:3]),
        central_sources=tuple(names[3:]),
        hold_out="within",
    )


def get(dataset: PublicDataset, folder: Path, **options: Any) -> Path:
    files, _ = installing.fetch_files(dataset, folder, limits=LIMITS)
    return installing.install(dataset, files, folder, **options)


# ---- The catalogue -------------------------------------------------------------------------------


def test_the_catalogue_is_the_registry() -> None:
    assert list(CATALOGUE) == list(tables.PUBLIC_DATASETS)
    for name, dataset in CATALOGUE.items():
        assert dataset.entry is tables.PUBLIC_DATASETS[name]
        assert dataset.entry.licence


def test_the_published_numbers_of_emnist_digits_are_checked() -> None:
    train, test = CATALOGUE["emnist-digits"].expected
    assert (train.num_clients, train.num_examples) == (3_383, 341_873)
    assert (train.num_examples_of_ten, train.first_label) == (972, 1)
    assert (test.num_clients, test.num_examples, test.num_examples_of_ten) == (3_383, 40_832, 116)


@pytest.mark.parametrize("dataset", CATALOGUE.values(), ids=CATALOGUE)
def test_every_file_has_addresses_and_checksums(dataset: PublicDataset) -> None:
    for file in dataset.files:
        assert file.urls
        assert all(url.endswith(f"/{file.name}") for url in file.urls)
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.limit <= file.max_bytes <= 2 << 30
        assert all(each.limit <= each.max_bytes <= 2 << 30 for each in file.members)
    targets = {(file.folder, file.name) for file in dataset.files}
    assert len(targets) == len(dataset.files)
    names = {file.name for file in dataset.files}
    names |= {part for file in dataset.files for each in file.members for part in _parts(each.name)}
    assert {*dataset.sources, *dataset.central_sources} <= names
    assert dataset.test_source is None or dataset.test_source in names
    assert not dataset.class_names or len(dataset.class_names) == dataset.num_classes


def _parts(name: str) -> set[str]:
    return {name, name.partition("/")[0]}


def test_equal_file_names_of_different_sets_have_different_folders(tmp_path: Path) -> None:
    files = {file.sha256: file for each in CATALOGUE.values() for file in each.files}
    places = {installing._target(tmp_path, file) for file in files.values()}
    assert len(places) == len(files)


# ---- Import --------------------------------------------------------------------------------------


def test_an_archive_becomes_a_store(tff: PublicDataset, tmp_path: Path) -> None:
    path = get(tff, tmp_path / "data")
    splits = store.open_store(path)
    assert list(splits) == ["train", "test"]
    with h5py.File(tmp_path / "a.h5") as file:
        for client_id in splits["train"].client_ids:
            client = splits["train"].client(client_id)
            decoded = client.scale * client.pixels.astype(np.float64) + client.offset
            assert np.abs(decoded - file[f"examples/{client_id}/pixels"][()]).max() < 1e-6
            assert (client.labels == file[f"examples/{client_id}/label"][()]).all()
    info = store.read_info(path)
    assert (info.source, info.licence, info.partition) == ("invented", "none needed", "natural")
    store.verify(path)
    left = sorted(each.relative_to(tmp_path / "data") for each in (tmp_path / "data").rglob("*.*"))
    assert list(map(str, left)) == ["datasets/fake.h5", "downloads/fake/fake.tar.bz2"]


def test_writers_become_clients_and_others_the_central_test(
    idx: PublicDataset, tmp_path: Path
) -> None:
    path = get(idx, tmp_path)
    splits = store.open_store(path)
    assert list(splits) == ["train", "test", "central"]
    assert splits["train"].client_ids[:2] == ["w0000", "w0001"]
    assert splits["train"].client_ids[:] == splits["test"].client_ids[:]
    assert splits["central"].client_ids[:] == [f"w{number:04}" for number in range(100, 105)]
    assert (splits["train"].total_examples(), splits["test"].total_examples()) == (180, 20)
    assert splits["train"].pixel_convention == "ink"
    assert "within" in store.read_info(path).partition_parameters
    store.verify(path)


def test_a_set_without_owners_is_divided_evenly_and_has_a_note(
    idx: PublicDataset, tmp_path: Path
) -> None:
    files = tuple(file for file in idx.files if not file.name.startswith("qmnist"))
    dataset = replace(
        idx,
        files=files,
        sources=tuple(file.name for file in files),
        central_sources=(),
        hold_out=None,
        partition="iid",
        partition_options={"clients": 2},
        class_names=tuple("abcdefghij"),
        expected=(
            Expected(splits=("train",), num_clients=2, num_examples=200),
            Expected(splits=("test",), num_clients=2, num_examples=20),
        ),
    )
    path = get(dataset, tmp_path)
    info = store.read_info(path)
    assert info.partition == "iid"
    assert json.loads(info.partition_parameters)["clients"] == 2
    assert info.class_names == tuple("abcdefghij")
    splits = store.open_store(path)
    assert {splits["train"].num_examples(each) for each in splits["train"].client_ids} == {100}


def test_cifar_batches_are_read_from_an_archive(server: web.Script, tmp_path: Path) -> None:
    """An archive like CIFAR-10's, with 20 records per batch and one file that is not extracted."""
    rng = np.random.default_rng(5)
    names = [each.name for each in CATALOGUE["cifar10"].files[0].members]
    contents = {"cifar-10-batches-bin/readme.html": b"<html>"}
    for name in names:
        records = rng.integers(0, 256, (20, 3073)).astype(np.uint8)
        records[:, 0] = np.arange(20) % 10
        contents[name] = records.tobytes()
    contents[names[-1]] = "\n".join(CIFAR_NAMES).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = tuple(Member(name=name, max_bytes=10**6) for name in names)
    path = get(
        replace(
            CATALOGUE["cifar10"],
            files=(remote(server, "cifar.tar.gz", buffer.getvalue(), members=members),),
            partition_options={"clients": 2},
            expected=(
                Expected(splits=("train",), num_clients=2, num_examples=100),
                Expected(splits=("test",), num_clients=2, num_examples=20),
            ),
        ),
        tmp_path,
    )
    assert store.read_info(path).class_names == CIFAR_NAMES
    assert store.open_store(path)["train"].pixel_shape == (32, 32, 3)


def test_full_disk_while_importing_leaves_nothing(tff: PublicDataset, tmp_path: Path) -> None:
    files, _ = installing.fetch_files(tff, tmp_path, limits=LIMITS)
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, 10_000):  # reached while unpacking, or while writing the store
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old_limits[1]))
        try:
            with pytest.raises(DataError, match=r"File too large|cannot be written"):
                installing.install(tff, files, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
        assert list((tmp_path / "datasets").iterdir()) == []
    get(tff, tmp_path)


def test_the_store_records_whether_equal_ids_are_the_same_people(
    tff: PublicDataset, tmp_path: Path
) -> None:
    path = get(replace(tff, same_people=False), tmp_path)
    assert not store.read_info(path).same_people


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_clients": 13}, "expected 13 clients in train, got 12"),
        ({"num_examples": 1_000}, "expected 1,000 examples in train, got 72"),
        ({"num_examples_of_ten": 61}, "expected 61 examples of the first 10 clients in .*, got 60"),
        ({"first_label": 2}, "expected 2 as the first label in train, got 1"),
        ({"splits": ("central",)}, "expected a split central, got train, test"),
    ],
)
def test_other_numbers_than_expected_install_nothing(
    tff: PublicDataset, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    wrong = replace(tff, expected=(replace(tff.expected[0], **changes), tff.expected[1]))
    with pytest.raises(DataError, match=f"^fake: {match}; nothing was installed$"):
        get(wrong, tmp_path / "data")
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_an_existing_store_is_kept_unless_force_is_given(
    tff: PublicDataset, server: web.Script, tmp_path: Path
) -> None:
    path = get(tff, tmp_path)
    os.utime(path, (0, 0))
    content = path.read_bytes()
    get(tff, tmp_path)
    assert path.stat().st_mtime == 0
    get(tff, tmp_path, force=True)
    assert path.stat().st_mtime > 0
    assert path.read_bytes() == content  # the same sources give the same bytes
    assert len(server.requests) == 1


def test_verify_finds_every_damage(tff: PublicDataset, tmp_path: Path) -> None:
    path = get(tff, tmp_path)
    assert [each.problem for each in installing.verify(tff, tmp_path)] == [None, None]
    archive = data_folder.download_path(tmp_path, "fake", "fake.tar.bz2")
    for damaged in (archive, path):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    first, second = installing.verify(tff, tmp_path)
    assert first.problem is not None
    assert first.problem.startswith("sha256 is ")
    assert (second.path, second.problem is None) == (path, False)
    assert installing.verify(tff, tmp_path / "elsewhere") == []


def test_state_of_an_installed_set(tff: PublicDataset, tmp_path: Path) -> None:
    state = installing.state_of(tff, tmp_path)
    assert (state.has_store, state.num_files, state.num_bytes) == (False, 0, 0)
    get(tff, tmp_path)
    state = installing.state_of(tff, tmp_path)
    assert (state.has_store, state.num_files) == (True, 1)
    assert state.num_bytes > (tff.num_bytes or 0) > 0


# ---- Files given by hand -------------------------------------------------------------------------


def test_files_are_known_by_hash_whatever_their_names(tff: PublicDataset, tmp_path: Path) -> None:
    data = tmp_path / "data"
    archive, _ = installing.fetch_files(tff, data, limits=LIMITS)
    by_name = archive["fake.tar.bz2"].rename(tmp_path / "renamed")
    for given in ([by_name], [tmp_path / "a.h5", tmp_path / "b.h5"]):
        files = installing.find_given(tff, data, given)
        path = installing.install(tff, files, data, force=True)
        assert store.open_store(path)["train"].total_examples() == 72


def test_raw_and_packed_files_and_folders_are_taken(idx: PublicDataset, tmp_path: Path) -> None:
    files, _ = installing.fetch_files(idx, tmp_path / "elsewhere", limits=LIMITS)
    packed = installing.find_given(idx, tmp_path, [tmp_path / "elsewhere/downloads/fake"])
    assert packed == files
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, path in files.items():
        (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    (raw / "unrelated").write_bytes(b"x")
    found = installing.find_given(idx, tmp_path / "data", [raw])
    assert {path.parent for path in found.values()} == {raw}
    path = installing.install(idx, found, tmp_path / "data")
    assert store.open_store(path)["central"].total_examples() == 20
    one = raw / "train-images-idx3-ubyte"
    others = [path for path in found.values() if path != one]
    with pytest.raises(DataError, match=r"^fake also needs train-images-idx3-ubyte.gz; give"):
        installing.find_given(idx, tmp_path / "data", others)
    assert installing.find_given(idx, tmp_path / "data", [*others, one]) == found


def test_a_wrong_file_is_refused(idx: PublicDataset, tmp_path: Path) -> None:
    wrong = tmp_path / "train-images-idx3-ubyte.gz"
    wrong.write_bytes(b"x" * (idx.files[0].size or 0))
    match = "sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; it is not the published file of fake$"
    for given in (wrong, tmp_path):
        with pytest.raises(DataError, match=match):
            installing.find_given(idx, tmp_path, [given])
    other = wrong.rename(tmp_path / "other")
    with pytest.raises(
        DataError, match=r"its hash is not that of a file of fake; give train-images"
    ):
        installing.find_given(idx, tmp_path, [other])
    with pytest.raises(DataError, match=r"--from-file /no/such: there is no such file or folder"):
        installing.find_given(idx, tmp_path, [Path("/no/such")])


def test_a_rebuilt_mnist_is_not_accepted_as_the_published_one(
    shared_data: Path, server: web.Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the rebuilt files some pixels differ by one grey level from the published ones.

    A folder, a file and a mirror that offer them are refused with different messages.
    """
    mnist, folder = CATALOGUE["mnist"], shared_data / "mnist-idx"
    with pytest.raises(
        DataError, match=r"mnist also needs train-images-idx3-ubyte.gz, t10k-images"
    ):
        installing.find_given(mnist, tmp_path, [folder])  # the labels are the published ones
    images = folder / "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match="has 9,475,657 bytes, expected 9,912,422; it is not the"):
        installing.find_given(mnist, tmp_path, [images])
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # so that no real server is reached
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.add(images.name, images.read_bytes())
    with pytest.raises(FetchError, match="offers 9,475,657 bytes, expected 9,912,422"):
        installing.fetch_files(mnist, tmp_path, bases=[server.url], limits=LIMITS)
    assert not any(each.is_file() for each in tmp_path.rglob("*"))


def test_a_raw_real_file_is_recognised_by_its_hash(shared_data: Path, tmp_path: Path) -> None:
    """The shared label file has the hash of the published file, compressed and unpacked."""
    mnist = CATALOGUE["mnist"]
    labels = shared_data / "mnist-idx" / "train-labels-idx1-ubyte.gz"
    raw = tmp_path / "raw"
    raw.write_bytes(gzip.decompress(labels.read_bytes()))
    known = installing._known_hashes(mnist)
    for path in (labels, raw):
        assert known[installing._hash(path, ignore_progress)] == labels.name


def test_offline_a_damaged_file_is_the_one_that_failed(idx: PublicDataset, tmp_path: Path) -> None:
    files, _ = installing.fetch_files(idx, tmp_path, limits=LIMITS)
    damaged = idx.files[1]
    files[damaged.name].write_bytes(b"x")
    with pytest.raises(FetchError, match=r"has 1 bytes, expected .*, and FEDCLI_OFF") as caught:
        installing.fetch_files(idx, tmp_path, is_offline=True)
    assert caught.value.file is damaged


def test_offline_uses_only_existing_files(
    tff: PublicDataset, server: web.Script, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"fake.tar.bz2 is not here, and FEDCLI_OFFLINE") as caught:
        installing.fetch_files(tff, tmp_path, is_offline=True)
    assert caught.value.file is tff.files[0]
    assert server.requests == []
    files, _ = installing.fetch_files(tff, tmp_path, limits=LIMITS)
    assert installing.fetch_files(tff, tmp_path, is_offline=True) == (files, 0)


# ---- The name in --data --------------------------------------------------------------------------


def test_the_name_of_a_missing_set_is_an_error_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(data_folder.VARIABLE, str(tmp_path))
    for name in tables.PUBLIC_DATASETS:
        with pytest.raises(
            DataError, match=rf"^{name} is not downloaded yet .*: fedcli download {name}"
        ):
            datasets.open_splits(datasets.DataSource(name))


def test_the_name_of_an_installed_set_opens_its_store(
    tff: PublicDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(data_folder.VARIABLE, str(tmp_path))
    path = get(replace(tff, entry=replace(ENTRY, name="mnist")), tmp_path)
    assert path == tmp_path / "datasets" / "mnist.h5"
    train, test = datasets.load("mnist")
    assert test is not None
    assert (len(train.client_ids), test.total_examples()) == (12, 24)
    assert datasets.fingerprint(datasets.DataSource("mnist")) == store.stored_fingerprint(path)


def test_the_folder_is_given_or_from_the_environment_or_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(data_folder.VARIABLE, str(tmp_path / "set"))
    assert data_folder.find_data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder.find_data_folder() == tmp_path / "set"
    monkeypatch.delenv(data_folder.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = data_folder.find_data_folder()
    assert found.name == "fedcli"
    assert tmp_path in found.parents


# ---- Processes -----------------------------------------------------------------------------------

_INSTALL = textwrap.dedent(
    """
    import pickle, sys
    from pathlib import Path
    from fedcli.datasets.download import installing
    dataset, folder = pickle.load(sys.stdin.buffer), Path(sys.argv[1])
    files, _ = installing.fetch_files(dataset, folder)
    print("fetched", flush=True)
    print(installing.install(dataset, files, folder), flush=True)
    """
)


def _start(dataset: PublicDataset, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _INSTALL, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdin is not None
    pickle.dump(dataset, process.stdin.buffer)  # type: ignore[attr-defined] # of text
    process.stdin.close()
    process.stdin = None  # otherwise communicate() would use the closed file
    return process


def test_after_a_killed_import_the_next_process_makes_the_store(
    idx: PublicDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    path = data_folder.store_path(folder, "fake")
    for moment in (0.0, 0.005, 0.01, 0.02, 0.04):
        process = _start(idx, folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "fetched\n"
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if path.exists():  # a store that exists is complete
            assert installing.find_miscount(idx, path) is None
            path.unlink()
    get(idx, folder)
    assert installing.find_miscount(idx, path) is None
    assert [each.name for each in path.parent.iterdir()] == ["fake.h5"]


def test_a_kill_at_the_last_moment_leaves_nothing_large(
    tff: PublicDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def look(folder: Path) -> None:  # called right after the rename
        seen.append([each.name for each in folder.rglob("*") if each.is_file()])

    monkeypatch.setattr(installing, "sync_folder", look)
    get(tff, tmp_path)
    assert [sorted(names) for names in seen] == [["fake.h5", "fake.h5.lock"]]


def test_two_processes_at_once_end_with_one_store(idx: PublicDataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    processes = [_start(idx, folder) for _ in range(2)]
    outputs = [
        process.communicate(timeout=PATIENCE_SECONDS)[0].splitlines() for process in processes
    ]
    path = data_folder.store_path(folder, "fake")
    assert outputs == [["fetched", str(path)]] * 2
    assert installing.find_miscount(idx, path) is None
    assert [each.name for each in path.parent.iterdir()] == ["fake.h5"]
