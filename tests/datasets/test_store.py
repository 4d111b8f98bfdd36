"""The fedcli store: written data are read back, mapped; inconsistent files are refused."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcli import datasets
from fedcli.core.native import Cancelled
from fedcli.datasets import checks
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.partitions.assignment import assign_lists
from fedcli.datasets.partitions.partitioned_split import Change, PartitionedSplit
from fedcli.datasets.sources import store, store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError
from tests.kit.waiting import PATIENCE_SECONDS

INFO = StoreInfo(
    num_classes=10,
    pixel_convention="ink",
    class_names=tuple("0123456789"),
    same_people=False,
    source="drawn for tests",
    licence="none",
    partition="dirichlet-class",
    partition_parameters='{"alpha": 0.5}',
)


def make_client(
    client_id: str, num_examples: int, image: tuple[int, ...] = (4, 3), **changes: Any
) -> ClientDataset:
    rng = np.random.default_rng(len(client_id) + 100 * num_examples)
    pixels = rng.integers(0, 256, (num_examples, *image), dtype=np.uint8)
    labels = rng.integers(0, 10, num_examples, dtype=np.int32)
    client = ClientDataset(client_id, pixels, labels, 1 / 255, 0.0, "made data")
    return dataclasses.replace(client, **changes)


def create(path: Path, *clients: ClientDataset, info: StoreInfo = INFO) -> str:
    return store_writer.create(path, {"train": clients}, info)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two splits: train has three clients, one of them empty, and test has one."""
    path = tmp_path / "digits.h5"
    train = [make_client("a", 5), make_client("bé", 0), make_client("c", 2)]
    store_writer.create(path, {"train": train, "test": [make_client("a", 1)]}, INFO)
    return path


def assert_same(read: ClientDataset, written: ClientDataset) -> None:
    assert read.client_id == written.client_id
    assert (read.scale, read.offset) == (written.scale, written.offset)
    assert read.pixels.dtype == written.pixels.dtype
    np.testing.assert_array_equal(read.pixels, written.pixels)
    np.testing.assert_array_equal(read.labels, written.labels)


# ---- Round trip ----------------------------------------------------------------------------------


def test_written_data_are_read_back(path: Path) -> None:
    splits = datasets.open_splits(datasets.DataSource(str(path)))
    train, test = splits["train"], splits["test"]
    assert list(splits) == ["train", "test"]
    assert train.cache is None
    assert list(train.client_ids) == ["a", "bé", "c"]
    for written in (make_client("a", 5), make_client("bé", 0), make_client("c", 2)):
        assert_same(train.client(written.client_id), written)
        assert train.num_examples(written.client_id) == len(written)
        assert train.labels(written.client_id).tolist() == written.labels.tolist()
    assert_same(test.client("a"), make_client("a", 1))
    assert (train.total_examples(), test.total_examples()) == (7, 1)
    assert (train.num_classes, train.pixel_shape, train.split) == (10, (4, 3), "train")
    assert train.class_names == tuple("0123456789")
    assert (train.pixel_convention, train.source) == ("ink", str(path))
    assert store.read_info(path) == INFO


def client_ids() -> st.SearchStrategy[str]:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    return text.filter(lambda name: len(name.encode()) <= checks.MAX_ID_BYTES)


@settings(max_examples=40)
@given(
    sizes=st.dictionaries(client_ids(), st.integers(0, 6), min_size=1, max_size=6),
    image=st.tuples(st.integers(1, 5), st.integers(1, 5))
    | st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    is_float=st.booleans(),
)
def test_any_small_population_is_read_back(
    sizes: dict[str, int], image: tuple[int, ...], is_float: bool
) -> None:
    clients = [make_client(name, sizes[name], image) for name in sorted(sizes, key=str.encode)]
    if is_float:
        clients = [
            dataclasses.replace(
                client, pixels=client.images() * np.float32(0.3), scale=1.0, offset=0.0
            )
            for client in clients
        ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.h5"
        fingerprint = create(path, *clients)
        data = store.open_store(path)["train"]
        assert list(data.client_ids) == [client.client_id for client in clients]
        for client in clients:
            assert client.client_id in data.client_ids
            # A split without examples has no scale and offset to compare.
            if not len(client) and not data.total_examples():
                assert data.num_examples(client.client_id) == 0
                continue
            assert_same(data.client(client.client_id), client)
        assert store.verify(path) == fingerprint


def test_clients_are_slices_of_one_mapping(path: Path) -> None:
    train = store.open_store(path)["train"]
    first, again = train.client("a"), train.client("a")
    assert np.shares_memory(first.pixels, again.pixels)
    assert np.shares_memory(first.labels, again.labels)
    assert not first.pixels.flags.owndata
    assert not first.pixels.flags.writeable
    assert not first.labels.flags.writeable
    last = train.client("c")
    assert last.pixels.ctypes.data - first.pixels.ctypes.data == first.pixels.nbytes


def test_ids_are_a_lazy_sorted_sequence(path: Path) -> None:
    ids = store.open_store(path)["train"].client_ids
    assert (len(ids), ids[0], ids[-1], ids[1:]) == (3, "a", "c", ["bé", "c"])
    assert ids.index("bé") == 1
    assert "b" not in ids
    assert "d" not in ids
    with pytest.raises(ValueError, match="'a' is not in"):
        ids.index("a", 1)
    with pytest.raises(IndexError):
        ids[3]


def test_pixels_option_flips_by_scale_and_offset(path: Path) -> None:
    background = datasets.open_splits(datasets.DataSource(str(path), pixels="background"))["train"]
    ink = datasets.open_splits(datasets.DataSource(str(path), pixels="ink"))["train"]
    assert (background.pixel_convention, ink.pixel_convention) == ("background", "ink")
    background_images, ink_images = background.client("a").images(), ink.client("a").images()
    np.testing.assert_allclose(background_images, 1 - ink_images, rtol=0, atol=1.2e-7)


def test_store_opens_whatever_its_suffix_and_as_test_data(path: Path, tmp_path: Path) -> None:
    other = path.rename(tmp_path / "digits.txt")
    train_only = tmp_path / "train.h5"
    create(train_only, make_client("a", 4))
    splits = datasets.open_splits(datasets.DataSource(str(train_only), test_data=str(other)))
    assert splits["test"].total_examples() == 1  # the test split of `other`
    splits = datasets.open_splits(datasets.DataSource(str(other), test_data=str(train_only)))
    assert splits["test"].total_examples() == 4  # `train_only` has no split but train
    assert splits["test"].split == "test"


def test_clients_that_decode_differently_become_float32(tmp_path: Path) -> None:
    ink = make_client("a", 3)
    inverted = make_client("b", 2, scale=-1 / 255, offset=1.0)
    real = make_client("c", 2, pixels=np.full((2, 4, 3), 0.3, np.float32), scale=1.0)
    path = tmp_path / "mixed.h5"
    create(path, ink, inverted, real)
    train = store.open_store(path)["train"]
    for client in (ink, inverted, real):
        read = train.client(client.client_id)
        assert read.pixels.dtype == np.float32
        np.testing.assert_array_equal(read.images(), client.images())


def test_create_streams(tmp_path: Path) -> None:
    taken = 0

    def clients() -> Iterator[ClientDataset]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield make_client(f"{number:03d}", number % 4)

    store_writer.create(tmp_path / "s.h5", {"train": clients()}, INFO)
    assert taken == 50
    assert store.open_store(tmp_path / "s.h5")["train"].total_examples() == 73


def test_num_classes_option_overrides_the_store(path: Path) -> None:
    assert (
        datasets.open_splits(datasets.DataSource(str(path), num_classes=62))["train"].num_classes
        == 62
    )
    with pytest.raises(
        DataError, match=r"client 'a': example \d: label \d is outside 0 to 0; pass"
    ):
        datasets.open_splits(datasets.DataSource(str(path), num_classes=1))


def test_train_and_test_of_different_classes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "letters.h5"
    info = dataclasses.replace(INFO, num_classes=26, class_names=())
    create(other, make_client("a", 4), info=info)
    with pytest.raises(DataError, match=r"train has 10 classes .* but test has 26"):
        datasets.open_splits(datasets.DataSource(str(path), test_data=str(other)))


def test_unknown_client_names_the_nearest(path: Path) -> None:
    with pytest.raises(DataError, match="no client 'be' among the 3 of split 'train'; did you"):
        store.open_store(path)["train"].client("be")
    with pytest.raises(DataError, match="a client id is of type int; give a string from client_id"):
        store.open_store(path)["train"].client(0)  # type: ignore[arg-type]


# ---- Fingerprint ---------------------------------------------------------------------------------


def test_fingerprint_follows_the_content_alone(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    same = create(other, make_client("a", 5))
    assert create(other, make_client("a", 5)) == same
    assert datasets.fingerprint(datasets.DataSource(str(other))) == same
    changed_label = make_client("a", 5)
    changed_label.labels[0] = (changed_label.labels[0] + 1) % 10
    for client in (make_client("b", 5), changed_label, make_client("a", 5, offset=0.5)):
        assert create(other, client) != same


def test_verify_finds_a_changed_pixel(path: Path) -> None:
    assert store.verify(path) == datasets.fingerprint(datasets.DataSource(str(path)))
    with h5py.File(path, "r+") as file:
        file["splits/train/pixels"][3, 0, 0] ^= 1
    store.open_store(path)  # opening reads no pixel
    with pytest.raises(DataError, match="it was changed or damaged, so write it again"):
        store.verify(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("source", "drawn for  tests"), ("same_people", True), ("pixel_convention", "background")],
)
def test_verify_finds_a_changed_attribute(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    store.open_store(path)
    with pytest.raises(DataError, match=r"its attributes .* are not those it was written with"):
        store.verify(path)


def test_an_attribute_of_a_damaged_type_is_not_read(path: Path) -> None:
    """The attribute's strings become lists of strings, with which HDF5 would crash."""
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "fedcli-store"  # of variable length
    content = bytearray(path.read_bytes())
    place = content.index(b"format\0\0\x19\x01") + len(b"format\0\0\x19")
    content[place] = 3
    path.write_bytes(content)
    program = (
        f"from fedcli.datasets.sources import store; store.open_store(store.Path({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.returncode
    assert "is not a fedcli store" in done.stderr


def test_a_heap_with_an_endless_list_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["source"] = "a text of variable length, which lies in a heap"
    store.open_store(path)
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)  # a free object of length 0 leads to itself
    path.write_bytes(content)
    program = (
        f"from fedcli.datasets.sources import store; store.open_store(store.Path({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done.returncode
    assert "garbled heap of texts" in done.stderr


def test_a_damaged_root_is_reported(path: Path) -> None:
    content = bytearray(path.read_bytes())
    root = int.from_bytes(content[64:72], "little")  # from the root's symbol table entry
    content[root : root + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: damaged .*; fetch or write"):
        store.open_store(path)


def test_a_text_of_variable_length_beside_the_pixels_is_not_read(path: Path) -> None:
    """Opening reads a text of variable length only where the format has one."""
    with h5py.File(path, "r+") as file:
        file["splits/train/pixels"].attrs["scale"] = "1"
    with pytest.raises(
        DataError, match="attribute scale is not of type float; write the store again"
    ):
        store.open_store(path)


def test_texts_of_a_store_are_in_no_heap(path: Path) -> None:
    """Otherwise opening a store would search its pixels for heaps."""
    assert b"GCOL" not in path.read_bytes()


# ---- Writing that fails --------------------------------------------------------------------------


def test_failed_write_leaves_the_old_store_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()

    def clients() -> Iterator[ClientDataset]:
        yield make_client("a", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_writer.create(path, {"train": clients()}, INFO)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([make_client("b", 1), make_client("a", 1)], "client 'a': comes after client 'b'"),
        ([make_client("a", 1), make_client("a", 1)], "client 'a': comes after client 'a'"),
        ([make_client("", 1)], "client '': an id must have 1 to 255 bytes"),
        ([make_client("x\0y", 1)], "no zero byte"),
        ([make_client("x" * 256, 1)], "an id must have 1 to 255 bytes"),
        (
            [make_client("a", 1), make_client("b", 1, (3, 3))],
            r"images have shape \[3, 3\] but earlier ones",
        ),
        ([make_client("a", 1, (9,))], r"pixels have shape \[1, 9\]"),
        ([make_client("a", 2, labels=np.zeros(1, np.int32))], "2 images but 1 label"),
        ([make_client("a", 1, labels=np.array([10], np.int32))], "label 10 is outside 0 to 9"),
        (
            [make_client("a", 1, pixels=np.full((1, 2, 2), np.nan, np.float32))],
            "made data: client 'a': example 0: a pixel is NaN",
        ),
        ([], "split 'train' holds no clients"),
    ],
)
def test_client_that_cannot_be_stored(
    tmp_path: Path, clients: list[ClientDataset], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        create(tmp_path / "s.h5", *clients)
    assert not any(tmp_path.iterdir())


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write .*: No such file or directory"):
        create(tmp_path / "absent" / "s.h5", make_client("a", 1))
    with pytest.raises(DataError, match="is not a regular file; choose another name"):
        create(tmp_path, make_client("a", 1))
    with pytest.raises(DataError, match="no splits were given"):
        store_writer.create(tmp_path / "s.h5", {}, INFO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes 0: choose"),
        ({"pixel_convention": "paper"}, "pixel convention 'paper': choose one of ink, background"),
        ({"class_names": ("a", "b")}, "2 class names for 10 classes"),
        ({"source": "caf\udce9"}, "is not valid Unicode"),
        ({"class_names": ("a",) * 9 + ("caf\udce9",)}, "is not valid Unicode"),
        ({"partition_parameters": "[1]"}, "give a JSON object"),
        ({"partition_parameters": "{"}, "give a JSON object"),
    ],
)
def test_info_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(INFO, **change)


# ---- Equal bytes, killed writers, full disks -----------------------------------------------------


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    create(tmp_path / "one.h5", make_client("a", 5), make_client("b", 3))
    time.sleep(1.1)  # by default HDF5 writes times in seconds
    create(tmp_path / "two.h5", make_client("a", 5), make_client("b", 3))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def temporary_name(path: Path, digits: str) -> Path:
    return path.with_name(f".{path.name}.{digits}.tmp")


def test_file_of_a_killed_writer_is_removed_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    dead, alive = temporary_name(path, "0123456789ab"), temporary_name(path, "fedcba987654")
    of_another = temporary_name(tmp_path / "s.h5x", "0123456789ab")
    unlike = temporary_name(path, "0123456789xy")
    for file in (dead, alive, of_another, unlike):
        file.write_bytes(b"half")
    with alive.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        create(path, make_client("a", 2))
        assert sorted(tmp_path.iterdir()) == sorted([alive, of_another, unlike, path])
    create(path, make_client("a", 2))
    assert sorted(tmp_path.iterdir()) == sorted([of_another, unlike, path])


def test_writers_of_one_file_do_not_remove_each_others_files(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"

    def clients() -> Iterator[ClientDataset]:
        yield make_client("a", 1)
        create(path, make_client("inner", 4))
        yield make_client("b", 1)

    store_writer.create(path, {"train": clients()}, INFO)
    assert list(store.open_store(path)["train"].client_ids) == ["a", "b"]
    assert os.listdir(tmp_path) == ["s.h5"]  # noqa: PTH208


def test_name_taken_while_it_was_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may remove a new file in the moment before it is locked."""
    lock = fcntl.flock
    locked: list[int] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not locked:
            next(tmp_path.glob(".s.h5.*.tmp")).unlink()
        locked.append(descriptor)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    create(tmp_path / "s.h5", make_client("a", 2))
    assert len(locked) == 2
    assert os.listdir(tmp_path) == ["s.h5"]  # noqa: PTH208


# The limit of 4 kB is reached while the layout is written, 200 kB while pixels are written.
# Pixels are copied, or gathered if the split is partitioned.
@pytest.mark.parametrize("limit", [100, 4000, 200_000])
@pytest.mark.parametrize("is_partitioned", [False, True])
def test_full_disk_leaves_nothing(tmp_path: Path, limit: int, is_partitioned: bool) -> None:
    path = tmp_path / "s.h5"
    splits = {"train": partitioned_split(400_000) if is_partitioned else [make_client("a", 40_000)]}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*s\.h5: .*[Ff]ile too large") as caught:
            store_writer.create(path, splits, INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


# ---- Partitioned splits --------------------------------------------------------------------------


def partitioned_split(
    num_examples: int, *changes: Change, num_clients: int = 3
) -> PartitionedSplit:
    """A split with some of a table's examples in random order; one client has none."""
    rng = np.random.default_rng(num_examples)
    table = ExampleTable(
        source="table",
        pixels=rng.integers(0, 256, (num_examples, 2, 3), dtype=np.uint8),
        labels=rng.integers(0, 10, num_examples).astype(np.int32),
        scale=1 / 255,
        offset=0.0,
        owner_ids=[],
        owners=np.empty(0, np.int64),
    )
    order = rng.permutation(num_examples)[: num_examples * 3 // 4]
    cuts = np.sort(rng.integers(0, len(order) + 1, num_clients - 1))
    assignment = assign_lists(
        [f"c{index}" for index in range(num_clients + 1)],
        [*np.split(order, cuts), np.empty(0, np.int64)],
    )
    return PartitionedSplit(
        table,
        assignment,
        split="train",
        num_classes=10,
        class_names=None,
        pixel_convention="ink",
        pixels="background",
        changes=changes,
    )


@given(num_examples=st.integers(2, 300), num_clients=st.integers(1, 8))
def test_a_gathered_store_has_the_bytes_of_its_clients(num_examples: int, num_clients: int) -> None:
    split = partitioned_split(num_examples, num_clients=num_clients)
    with tempfile.TemporaryDirectory() as folder:
        gathered, taken = Path(folder) / "gathered.h5", Path(folder) / "taken.h5"
        store_writer.create(gathered, {"train": split}, INFO)
        store_writer.create(taken, {"train": map(split.client, split.client_ids)}, INFO)
        assert gathered.read_bytes() == taken.read_bytes()
        assert store.verify(gathered) == datasets.fingerprint(datasets.DataSource(str(taken)))


class Shift(Change):
    """Changes the labels of all clients, and the scale of the pixels of client c1."""

    def labels(self, client_id: str, labels: Any) -> Any:
        return (labels + 1) % 10

    def client(self, client: ClientDataset) -> ClientDataset:
        scale = 0.5 if client.client_id == "c1" else client.scale
        return dataclasses.replace(client, scale=scale)


def test_changed_clients_are_stored_changed(tmp_path: Path) -> None:
    split = partitioned_split(100, Shift())
    store_writer.create(tmp_path / "s.h5", {"train": split}, INFO)
    stored = store.open_store(tmp_path / "s.h5")["train"]
    for client_id in split.client_ids:
        client = stored.client(client_id)
        np.testing.assert_array_equal(client.labels, split.labels(client_id))
        np.testing.assert_array_equal(client.images(), split.client(client_id).images())


def test_partitioned_split_that_cannot_be_stored(tmp_path: Path) -> None:
    split = partitioned_split(50)
    few = dataclasses.replace(INFO, num_classes=2, class_names=())
    with pytest.raises(DataError, match=r"table: example \d+: label \d is outside 0 to 1"):
        store_writer.create(tmp_path / "s.h5", {"train": split}, few)
    split.client_ids = ["a", "b", "b", "c"]
    with pytest.raises(DataError, match="client 'b': comes after client 'b'"):
        store_writer.create(tmp_path / "s.h5", {"train": split}, INFO)
    split.client_ids = []
    with pytest.raises(DataError, match="split 'train' holds no clients"):
        store_writer.create(tmp_path / "s.h5", {"train": split}, INFO)
    assert not any(tmp_path.iterdir())


# ---- Progress ------------------------------------------------------------------------------------


def test_create_and_verify_tell_how_far_they_are_and_can_be_ended(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    told: list[tuple[int, int | None]] = []
    split = partitioned_split(3_000_000)  # 13 MB of pixels, which is more than one block
    store_writer.create(path, {"train": split}, INFO, lambda *figures: told.append(figures))
    assert told[-1] == (2_250_000, 2_250_000)
    assert len({done for done, _ in told}) > 2
    told.clear()
    store.verify(path, lambda *figures: told.append(figures))
    assert told[-1][0] == told[-1][1]
    assert len(told) > 4
    assert told == sorted(told)

    def stop(done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        store.verify(path, stop)
    before = path.read_bytes()
    with pytest.raises(Cancelled):
        store_writer.create(path, {"train": split}, INFO, stop)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.h5"]  # noqa: PTH208


def test_verify_finds_pixels_that_are_no_numbers(tmp_path: Path) -> None:
    """A right fingerprint is not enough: the writer may have computed it from such pixels."""
    path = tmp_path / "s.h5"
    create(path, make_client("a", 3, (2, 2), pixels=np.zeros((3, 2, 2), np.float32)))
    with h5py.File(path, "r+") as file:
        file["splits/train/pixels"][1, 1, 1] = np.nan
    with pytest.raises(DataError, match="split 'train': example 1: a pixel is NaN"):
        store.verify(path)


# ---- Files that are refused ----------------------------------------------------------------------

Damage = Callable[[Any], None]


def set_attribute(name: str, value: Any) -> Damage:
    def damage(file: Any) -> None:
        file.attrs[name] = value

    return damage


def drop(name: str) -> Damage:
    def damage(file: Any) -> None:
        del file[name]

    return damage


def replace(name: str, values: Any, **storage: Any) -> Damage:
    """Replaces the dataset `name` of split train by `values`; keeps its attributes."""

    def damage(file: Any) -> None:
        group = file["splits/train"]
        attrs = dict(group[name].attrs)
        del group[name]
        group.create_dataset(name, data=values, **storage).attrs.update(attrs)

    return damage


def pixel_attribute(name: str, value: Any) -> Damage:
    def damage(file: Any) -> None:
        file["splits/train/pixels"].attrs[name] = value

    return damage


def drop_attribute(name: str) -> Damage:
    def damage(file: Any) -> None:
        del file.attrs[name]

    return damage


def drop_all_splits(file: Any) -> None:
    del file["splits/train"], file["splits/test"]


def link_pixels(file: Any) -> None:
    del file["splits/train/pixels"]
    file["splits/train/pixels"] = h5py.SoftLink("/splits/test/pixels")


LABELS = np.arange(7, dtype=np.int32)
PIXELS = np.zeros((7, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            set_attribute("version", 2),
            "is a fedcli store of version 2, but this fedcli reads version 1",
        ),
        (set_attribute("version", "1"), "attribute version is not of type int"),
        (drop_attribute("num_classes"), "attribute num_classes is missing"),
        (set_attribute("num_classes", 2**40), "num_classes 1099511627776: choose"),
        (set_attribute("num_classes", 1.5), "attribute num_classes is not of type int"),
        (set_attribute("same_people", "yes"), "attribute same_people is not of type bool"),
        (set_attribute("pixel_convention", "x"), "pixel convention 'x': choose one of"),
        (set_attribute("class_names", "[1]"), "attribute class_names is not a JSON list"),
        (set_attribute("class_names", "[["), "damaged"),
        (set_attribute("class_names", json.dumps(["a"])), "1 class names for 10 classes"),
        (drop("splits"), "has no 'splits'"),
        (drop_all_splits, "has no splits"),
        (drop("splits/train/labels"), "split 'train': has no 'labels'"),
        (link_pixels, "split 'train': 'pixels' is a link"),
        (pixel_attribute("scale", np.nan), "scale nan and offset 0.0 must be finite"),
        (pixel_attribute("scale", "1"), "attribute scale is not of type float"),
        (replace("labels", LABELS.astype(np.int64)), "labels has the unexpected type int64"),
        (replace("labels", LABELS.astype(">i4")), "labels has the unexpected type >i4"),
        (
            replace("labels", LABELS.reshape(7, 1)),
            r"labels has the unexpected type int32 and shape \(7, 1\)",
        ),
        (replace("labels", LABELS[:6]), "client_offsets do not increase from 0 to 6"),
        (replace("labels", np.full(7, 10, np.int32)), "client 'a': example 0: label 10"),
        (replace("labels", np.array([0] * 6 + [-5], np.int32)), "client 'c': example 1: label -5"),
        (replace("labels", LABELS, chunks=(7,)), "labels is chunked or compressed"),
        (replace("pixels", PIXELS, compression="gzip"), "pixels is chunked or compressed"),
        (replace("pixels", PIXELS.astype(np.float64)), "pixels has the unexpected type float64"),
        (
            replace("pixels", PIXELS.reshape(7, 12)),
            r"pixels has the unexpected type uint8 and shape \(7, 12\)",
        ),
        (replace("pixels", PIXELS[:5]), "5 images but 7 labels"),
        (replace("pixels", np.zeros((7, 1, 5000), np.uint8)), "are too large"),
        (replace("pixels", np.zeros((7, 0, 3), np.uint8)), r"pixels have shape \[7, 0, 3\]"),
        (replace("client_offsets", np.array([0, 5, 5, 8])), "do not increase from 0 to 7"),
        (replace("client_offsets", np.array([1, 5, 5, 7])), "do not increase from 0 to 7"),
        (replace("client_offsets", np.array([0, 6, 5, 7])), "do not increase from 0 to 7"),
        (
            replace("client_offsets", np.array([0, 2**62, -(2**62), 7])),
            "do not increase from 0 to 7",
        ),
        (replace("client_offsets", np.array([0, 5, 7])), "3 clients but 2 sizes"),
        (replace("client_offsets", np.zeros(0, np.int64)), "3 clients but 0 sizes"),
        (
            replace("client_offsets", np.array([0.0, 5, 5, 7])),
            "client_offsets has the unexpected type float64",
        ),
        (replace("client_ids", np.array([b"a", b"c", b"b"])), "b'b' comes after b'c'"),
        (replace("client_ids", np.array([b"a", b"a", b"b"])), "not sorted and unique"),
        (replace("client_ids", np.array([b"", b"a", b"b"])), "a client id is empty or holds"),
        (replace("client_ids", np.array([b"a", b"b\0b", b"c"])), "a client id is empty or holds"),
        (replace("client_ids", np.array([b"a", b"b", b"\xff"])), "is not UTF-8"),
        # The second and the third id are the two halves of a character: neither is UTF-8.
        (replace("client_ids", np.array([b"a", b"\xc3", b"\xc4"])), "is not UTF-8"),
        (replace("client_ids", np.zeros(0, "S1")), "holds no clients"),
        (replace("client_ids", ["a", "b", "c"]), "client_ids has the unexpected type object"),
    ],
)
def test_inconsistent_store_is_refused(path: Path, damage: Damage, message: str) -> None:
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as caught:
        datasets.open_splits(datasets.DataSource(str(path)))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_pixels_in_another_file_are_never_mapped(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    with h5py.File(path, "r+") as file:
        group = file["splits/train"]
        del group["pixels"]
        group.create_dataset("pixels", (7, 4, 3), np.uint8, external=[(str(secret), 0, 84)])
    with pytest.raises(DataError, match="the data of 'pixels' lie in other files"):
        store.open_store(path)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_truncated_store(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match="truncated HDF5 file, "):
        datasets.open_splits(datasets.DataSource(str(path)))


def test_the_message_of_a_truncated_store_has_its_size(path: Path) -> None:
    whole = path.stat().st_size
    os.truncate(path, whole - 100)
    with pytest.raises(DataError) as caught:
        datasets.open_splits(datasets.DataSource(str(path)))
    assert str(caught.value) == (
        f"{path}: truncated HDF5 file, {whole - 100:,} bytes of {whole:,}; fetch or write it again"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(DataError, match=r"no permission to read it; change its mode or copy it$"):
        datasets.open_splits(datasets.DataSource(str(path)))


def test_dataset_that_was_never_written(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file["splits/train"]
        del group["client_offsets"]
        group.create_dataset("client_offsets", (2**40,), np.int64)
    with pytest.raises(DataError, match="claims 8796093022208 bytes but the file holds 0"):
        store.open_store(path)


def test_bad_pixel_of_a_float_store_is_found_when_its_client_is_read(tmp_path: Path) -> None:
    path = tmp_path / "float.h5"
    pixels = np.full((3, 2, 2), 0.3, np.float32)
    clients = [make_client(name, 3, (2, 2), pixels=pixels, scale=1.0) for name in "ab"]
    create(path, *clients)
    with h5py.File(path, "r+") as file:
        file["splits/train/pixels"][4, 1, 1] = np.inf
    train = store.open_store(path)["train"]
    np.testing.assert_array_equal(train.client("a").pixels, pixels)
    for _ in range(2):
        with pytest.raises(DataError, match="client 'b': example 1: a pixel is NaN or infinite"):
            train.client("b")


def test_other_hdf5_files_are_not_recognised_as_stores(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "fedcli-checkpoint"
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match=r"neither a TFF file .* nor a fedcli store"):
        datasets.open_splits(datasets.DataSource(str(path)))
    with pytest.raises(DataError, match="is not a fedcli store; choose another file"):
        store.open_store(path)


# ---- Real data -----------------------------------------------------------------------------------


def test_real_writers_are_read_back(shared_data: Path, tmp_path: Path) -> None:
    source = datasets.open_splits(datasets.DataSource(str(shared_data / "mnist_writers_test.h5")))[
        "train"
    ]
    path = tmp_path / "writers.h5"
    info = StoreInfo(num_classes=10, pixel_convention=source.pixel_convention)
    clients: Iterable[ClientDataset] = map(source.client, source.client_ids)
    store_writer.create(path, {"test": clients}, info)
    stored = store.open_store(path)["test"]
    assert stored.total_examples() == 5997
    for client_id in source.client_ids[:20]:
        assert stored.client(client_id).pixels.dtype == np.uint8
        assert_same(stored.client(client_id), source.client(client_id))
    with pytest.raises(DataError, match="has no split 'train', only test"):
        datasets.load(str(path))
