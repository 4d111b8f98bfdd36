"""Tables of examples, assignments to clients, and partitioned splits, against naive loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli import datasets
from fedcli.datasets.batches import ClientDataset, decode
from fedcli.datasets.partitions.assignment import Assignment, assign_lists, assign_to_owners
from fedcli.datasets.partitions.partitioned_split import Change, PartitionedSplit
from fedcli.datasets.sources import store, store_writer
from fedcli.datasets.spool import PixelSpool
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError

GREY: dict[str, Any] = {"scale": 1 / 255, "offset": 0.0}


def images(count: int, first: int = 0, shape: tuple[int, ...] = (2, 3)) -> NDArray[np.uint8]:
    """Images that differ from each other, numbered from `first`."""
    rows = np.arange(first, first + count, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    return np.broadcast_to(rows, (count, *shape)).copy()


def labels(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def table_of(owners: list[str], held: list[int] | None = None) -> ExampleTable:
    """A table with one image for each of `owners`. Image i has label held[i]; if None, label i."""
    with TableWriter("made") as writer:
        values = range(len(owners)) if held is None else held
        writer.add(images(len(owners)), labels(*values), **GREY, owners=owners)
        return writer.table()


# ---- Writing a table -----------------------------------------------------------------------------


def test_examples_keep_the_order_they_are_added_in(tmp_path: Path) -> None:
    with TableWriter("made", tmp_path) as writer:
        writer.add(images(2), labels(5, 6), **GREY, owners="bob")
        writer.add(images(3, 2), np.array([7, 8, 9], np.uint8), **GREY, owners=["z", "bob", "ann"])
        assert writer.num_examples == 5
        table = writer.table()
    assert list(tmp_path.iterdir()) == []  # the file has no name
    assert (len(table), table.source) == (5, "made")
    assert table.pixels[:, 1, 2].tolist() == [0, 1, 2, 3, 4]
    assert not table.pixels.flags.writeable
    assert (str(table.pixels.dtype), table.scale, table.offset) == ("uint8", 1 / 255, 0.0)
    assert (table.labels.tolist(), str(table.labels.dtype)) == ([5, 6, 7, 8, 9], "int32")
    assert list(table.owner_ids) == ["ann", "bob", "z"]
    assert (table.owners.tolist(), str(table.owners.dtype)) == ([1, 1, 2, 1, 0], "int64")


def test_examples_without_owners() -> None:
    with TableWriter("made") as writer:
        writer.add(images(2), labels(0, 1), **GREY)
        table = writer.table()
    assert (list(table.owner_ids), table.owners.tolist()) == ([], [])
    assert assign_to_owners(table).client_ids == []


def test_owner_without_examples_is_an_owner() -> None:
    with TableWriter("made") as writer:
        writer.add(images(0), labels(), **GREY, owners="a")
        writer.add(images(1), labels(4), **GREY, owners="c")
        writer.add(images(0), labels(), **GREY, owners="b")
        assignment = assign_to_owners(writer.table())
    assert (list(assignment.client_ids), assignment.sizes.tolist()) == (["a", "b", "c"], [0, 0, 1])


ONES = np.ones((1, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("blocks", "dtype", "scale", "offset"),
    [
        ([(images(2), 0.5, 0.25), (images(1, 2), 0.5, 0.25)], np.uint8, 0.5, 0.25),
        ([(ONES, 2.0, 1.0), (3 * ONES, 2.0, 1.0)], np.float32, 2.0, 1.0),
        ([(images(2), 1 / 255, 0.0), (images(2), -1 / 255, 1.0)], np.float32, 1.0, 0.0),
        ([(images(2), 0.5, 0.0), (images(2), 0.5, 0.125)], np.float32, 1.0, 0.0),
        ([(images(2), 1 / 255, 0.0), (ONES, 1.0, 0.0)], np.float32, 1.0, 0.0),
        ([(ONES, 1.0, 0.0), (images(2), 1 / 255, 0.0)], np.float32, 1.0, 0.0),
        ([(ONES, 2.0, 1.0), (images(2), 0.5, 0.0), (ONES, 3.0, 0.0)], np.float32, 1.0, 0.0),
        ([(ONES[:0], 1.0, 0.0), (images(2), 0.5, 0.25)], np.uint8, 0.5, 0.25),
        ([(images(2), 0.5, 0.25), (ONES[:0], 1.0, 0.0)], np.uint8, 0.5, 0.25),
        ([(ONES[:0], 2.0, 1.0)], np.float32, 2.0, 1.0),
    ],
    ids=[
        *("alike", "floats-alike", "scale", "offset", "bytes-floats", "floats-bytes", "three"),
        *("empty-first", "empty-last", "empty-alone"),
    ],
)
def test_pixels_widen_only_where_blocks_decode_differently(
    blocks: list[tuple[Any, float, float]], dtype: Any, scale: float, offset: float
) -> None:
    with TableWriter("made") as writer:
        for pixels, *decoding in blocks:
            writer.add(
                pixels, np.zeros(len(pixels), np.int32), scale=decoding[0], offset=decoding[1]
            )
        table = writer.table()
    assert (table.pixels.dtype, table.scale, table.offset) == (dtype, scale, offset)
    seen = decode(table.pixels, table.scale, table.offset)
    expected = np.concatenate([decode(*block) for block in blocks])
    np.testing.assert_array_equal(seen, expected)


def test_widening_spans_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcli.datasets.spool._BLOCK_BYTES", 16)
    spool = PixelSpool()
    spool.add(images(50), 0.5, 0.0)
    spool.add(images(1), 0.25, 0.0)
    np.testing.assert_array_equal(spool.mapped()[:50], decode(images(50), 0.5, 0.0))
    spool.close()


def test_disk_full_while_widening_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TableWriter("made", tmp_path)
    writer.add(images(2), labels(0, 0), **GREY)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedcli.datasets.spool.decode", fail)
    with pytest.raises(OSError, match="No space left"), writer:
        writer.add(images(2), labels(0, 0), scale=1.0, offset=0.0)
    del writer  # if its file were open, a ResourceWarning would make the test fail


def test_fit_brings_every_image_to_one_size() -> None:
    def fit(pixels: Any) -> Any:
        return pixels[:, :2, :2]

    with TableWriter("made", fit=fit) as writer:
        writer.add(images(1, 0, (2, 3)), labels(0), **GREY)
        writer.add(images(1, 1, (5, 4)), labels(0), **GREY)
        assert writer.table().pixels.shape == (2, 2, 2)
        with pytest.raises(DataError, match="2 images but 1 label"):
            writer.add(images(2, 0, (9, 9)), labels(0), **GREY)
        with pytest.raises(DataError, match="pixels have shape"):  # before `fit` is called
            writer.add(images(1, 0, ()), labels(0), **GREY)


NAN = np.full((3, 2, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("pixels", "held", "owners", "text"),
    [
        (images(2), [1], None, "2 images but 1 label; each image needs one"),
        (images(1, 0, (3, 3)), [1], None, "images have shape [3, 3] but earlier ones [2, 3]"),
        (images(1), [-1], None, "example 0: label -1 is outside 0 to 2147483646"),
        (NAN, [1, 2, 3], None, "example 0: a pixel is NaN or infinite"),
        (images(1, 0, ()), [1], None, "pixels have shape [1]"),
        (images(2), [1, 2], ["a"], "2 examples but 1 owner; give one owner per"),
        (images(2), [1, 2], ["a", "b", "c"], "2 examples but 3 owners; give one owner per"),
    ],
    ids=["labels", "shape", "negative", "nan", "rank", "few-owners", "many-owners"],
)
@pytest.mark.parametrize(("where", "start"), [(None, "made: "), ("made: row 7", "made: row 7: ")])
def test_invalid_examples_are_refused(
    pixels: Any, held: list[int], owners: list[str] | None, text: str, where: str | None, start: str
) -> None:
    with TableWriter("made") as writer:
        writer.add(images(1), labels(0), **GREY)
        with pytest.raises(DataError) as caught:
            writer.add(pixels, labels(*held), **GREY, owners=owners, where=where)
    assert str(caught.value).startswith(start + text)


def test_message_about_a_client_names_it() -> None:
    client = ClientDataset("ann", images(1), labels(-1), 1.0, 0.0, "file.h5")
    with TableWriter("made") as writer, pytest.raises(DataError) as caught:
        writer.add_client(client)
    assert str(caught.value).startswith("file.h5: client 'ann': example 0: label -1")


def test_table_needs_examples_and_owners_for_all_or_none() -> None:
    with TableWriter("made") as writer:
        with pytest.raises(DataError, match=r"^made: holds no examples; give at least one$"):
            writer.table()
        writer.add(images(2), labels(0, 0), **GREY)
        writer.add(images(1), labels(0), **GREY, owners="a")
        with pytest.raises(DataError, match=r"^made: only 1 of 3 examples have an owner; give all"):
            writer.table()


def test_table_outlives_its_writer() -> None:
    table = table_of(["b", "a"])
    assert table.pixels[1].tolist() == [[1, 1, 1], [1, 1, 1]]


# ---- Tables of splits ----------------------------------------------------------------------------


def assert_table_holds(table: ExampleTable, split: datasets.ClientData) -> None:
    """Checks that owners, their examples, the order and the pixels are those of the split."""
    assert list(table.owner_ids) == list(split.client_ids)
    assignment = assign_to_owners(table)
    assert assignment.order.tolist() == list(range(len(table)))  # source order is client order
    for index, client_id in enumerate(split.client_ids):
        client, chosen = split.client(client_id), assignment.indices(index)
        assert table.labels[chosen].tolist() == client.labels.tolist()
        seen = decode(table.pixels[chosen], table.scale, table.offset)
        np.testing.assert_array_equal(seen, client.images())


def told_by(split: datasets.ClientData, folder: Path) -> tuple[ExampleTable, list[Any]]:
    told: list[Any] = []
    return split.to_table(folder, lambda *now: told.append(now)), told


def test_table_of_a_tff_file(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for name, count in (("b", 3), ("a", 0), ("c", 2)):
            group = file.create_group(f"examples/{name}")
            group["label"] = rng.integers(0, 10, count).astype(np.int32)
            # These grey levels are read as 1 - k / 255.
            levels = rng.integers(1, 255, (count, 4, 3)).astype(np.float32)
            group["pixels"] = 1 - levels * np.float32(1 / 255)
    split = datasets.open_splits(datasets.DataSource(str(tmp_path / "train.h5")))["train"]
    table, told = told_by(split, tmp_path)
    assert_table_holds(table, split)
    assert table.pixels.dtype == np.uint8
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_table_of_a_store_is_its_mapping(tmp_path: Path) -> None:
    clients = [
        ClientDataset("a", images(2), labels(0, 1), 1 / 255, 0.0, "made"),
        ClientDataset("b", images(0), labels(), 1 / 255, 0.0, "made"),
        ClientDataset("c", images(1, 5), labels(2), 1 / 255, 0.0, "made"),
    ]
    path = tmp_path / "data.store"
    store_writer.create(
        path, {"train": clients}, store.StoreInfo(num_classes=3, pixel_convention="ink")
    )
    for pixels in ("source", "background"):
        split = datasets.open_splits(datasets.DataSource(str(path), pixels=pixels))["train"]
        table = split.to_table()
        assert_table_holds(table, split)
        assert np.shares_memory(table.pixels, split.client("a").pixels)
        assert np.shares_memory(table.labels, split.client("a").labels)


@pytest.mark.parametrize("name", ["train", "central"])
def test_table_of_synthetic_digits(tmp_path: Path, name: str) -> None:
    options = {"clients": 4}
    split = datasets.open_splits(datasets.DataSource("synthetic-digits", data_options=options))[
        name
    ]
    table, told = told_by(split, tmp_path)
    assert_table_holds(table, split)
    assert table.pixels.dtype == np.uint8
    assert told[-1] == (len(split.client_ids), len(split.client_ids))


# ---- Assignments ---------------------------------------------------------------------------------

Holdings = dict[str, list[int]]  # client -> examples: an assignment


def as_holdings(assignment: Assignment) -> Holdings:
    assert assignment.offsets[0] == 0
    assert assignment.offsets.dtype == assignment.order.dtype == np.int64
    return {
        name: assignment.indices(index).tolist() for index, name in enumerate(assignment.client_ids)
    }


@st.composite
def holdings(draw: Callable[..., Any]) -> Holdings:
    """Returns clients that hold some of the examples; some clients are empty."""
    order = draw(st.permutations(range(draw(st.integers(0, 30)))))
    names = sorted(draw(st.sets(st.text("abcé", min_size=1, max_size=3), max_size=6)))
    held: Holdings = {name: [] for name in names}
    for example in order if names else []:
        held[draw(st.sampled_from(names))].append(example)
    return held


def make_assignment(held: Holdings) -> Assignment:
    return assign_lists(list(held), [np.array(each, np.int64) for each in held.values()])


@given(holdings())
def test_assignment_of_lists(held: Holdings) -> None:
    assignment = make_assignment(held)
    assert as_holdings(assignment) == held
    assert assignment.sizes.tolist() == [len(each) for each in held.values()]
    naive = [index for index, each in enumerate(held.values()) for _ in each]
    assert assignment.holders.tolist() == naive


@given(holdings(), st.data())
def test_keep_drops_entries_and_no_client(held: Holdings, data: st.DataObject) -> None:
    assignment = make_assignment(held)
    is_kept = np.array([data.draw(st.booleans()) for _ in assignment.order], bool)
    kept = set(assignment.order[is_kept].tolist())
    expected = {name: [k for k in each if k in kept] for name, each in held.items()}
    assert as_holdings(assignment.keep(is_kept)) == expected
    assert as_holdings(assignment) == held


@given(holdings(), st.data())
def test_choose_drops_clients_whole(held: Holdings, data: st.DataObject) -> None:
    assignment = make_assignment(held)
    is_chosen = np.array([data.draw(st.booleans()) for _ in held], bool)
    expected = {
        name: each for (name, each), chosen in zip(held.items(), is_chosen, strict=True) if chosen
    }
    assert as_holdings(assignment.choose(is_chosen)) == expected


@given(st.lists(st.sampled_from(["ann", "bob", "é", "z"]), min_size=1, max_size=30))
def test_natural_assignment_gives_each_owner_its_examples_in_order(owners: list[str]) -> None:
    expected: Holdings = {name: [] for name in sorted(set(owners))}
    for index, name in enumerate(owners):
        expected[name].append(index)
    assert as_holdings(assign_to_owners(table_of(owners))) == expected


# ---- Partitioned splits --------------------------------------------------------------------------


def split_of(table: ExampleTable, held: Holdings, **options: Any) -> PartitionedSplit:
    defaults: dict[str, Any] = {
        "split": "train",
        "num_classes": 100,
        "class_names": None,
        "pixel_convention": "ink",
    }
    return PartitionedSplit(table, make_assignment(held), **{**defaults, **options})


@given(holdings())
def test_client_holds_the_assigned_examples_in_that_order(held: Holdings) -> None:
    table = table_of(["x"] * 30)
    split = split_of(table, held)
    assert list(split.client_ids) == list(held)
    assert split.total_examples() == sum(map(len, held.values()))
    for name, examples in held.items():
        client = split.client(name)
        assert split.num_examples(name) == len(client) == len(examples)
        assert client.labels.tolist() == split.labels(name).tolist() == examples
        assert client.pixels[:, 0, 0].tolist() == examples
        assert client.pixels.shape[1:] == split.pixel_shape == (2, 3)
        assert not client.pixels.flags.writeable
        assert not client.labels.flags.writeable
    assert (table.labels == np.arange(30)).all()


class Add(Change):
    """Adds to every label and pixel."""

    def __init__(self, number: int) -> None:
        self.number = number

    def labels(self, client_id: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        return (labels + self.number).astype(np.int32)

    def client(self, client: ClientDataset) -> ClientDataset:
        pixels = (client.pixels + self.number).astype(np.uint8)
        return dataclasses.replace(client, pixels=pixels)


class Double(Change):
    """Doubles only the labels."""

    def labels(self, client_id: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        return (2 * labels).astype(np.int32)


def test_changes_are_applied_once_and_in_order() -> None:
    split = split_of(table_of(["x"] * 3), {"a": [2, 0], "b": [1]}, changes=[Add(1), Double()])
    client = split.client("a")
    assert client.labels.tolist() == split.labels("a").tolist() == [6, 2]
    assert client.pixels[:, 0, 0].tolist() == [3, 1]
    assert split.num_examples("a") == 2
    assert not client.pixels.flags.writeable
    assert not client.labels.flags.writeable
    assert split.client("a").labels.tolist() == [6, 2]  # a pure function


def test_a_change_that_changes_nothing() -> None:
    split = split_of(table_of(["x"] * 2), {"a": [1, 0]}, changes=[Change()])
    assert split.client("a").labels.tolist() == [1, 0]


@pytest.mark.parametrize("convention", ["ink", "background"])
@pytest.mark.parametrize("pixels", ["source", "ink", "background"])
def test_pixels_have_the_requested_convention(convention: str, pixels: str) -> None:
    table = table_of(["x"] * 2)
    split = split_of(table, {"a": [0, 1]}, pixel_convention=convention, pixels=pixels)
    seen = split.client("a").images()
    own = decode(table.pixels, table.scale, table.offset)
    is_flipped = pixels not in ("source", convention)
    np.testing.assert_allclose(seen, 1 - own if is_flipped else own, atol=1e-7)
    assert split.pixel_convention == (convention if pixels == "source" else pixels)


def test_unknown_client_is_an_error_that_names_neighbours() -> None:
    split = split_of(table_of(["x"]), {"ann": [0], "bob": []})
    for name in ("anna", "", "zzz"):
        for method in (split.client, split.labels, split.num_examples):
            with pytest.raises(DataError, match=f"^made: no client '{name}' among the 2 of split"):
                method(name)


def test_table_of_a_partitioned_split_is_partitioned_again() -> None:
    split = split_of(table_of(["x"] * 4), {"a": [3], "b": [], "c": [0, 2]}, changes=[Add(5)])
    assert_table_holds(split.to_table(), split)
