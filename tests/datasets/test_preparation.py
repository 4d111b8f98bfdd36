"""Steps of a preparation: filtering, matching, hold-out, and the records of the store."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import datasets
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.preparing import prepare
from fedcli.datasets.preparation.writing import Prepared
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import ConfigError, DataError

Clients = dict[str, Sequence[int]]


def write_tff(path: Path, labels: Clients, *, scale: float = 1.0) -> Path:
    """Writes clients with these labels; the grey level of an image is the index of its example."""
    with h5py.File(path, "w") as file:
        for client_id, mine in labels.items():
            client = file.create_group(f"examples/{client_id}")
            levels = np.arange(len(mine)).reshape(-1, 1, 1) * np.ones((1, 3, 2)) / 255
            client["pixels"] = (levels * scale).astype(np.float32)
            client["label"] = np.array(mine, np.int32)
    return path


def write_store(path: Path, labels: Clients, **about: Any) -> Path:
    """Writes a store with the same clients as `write_tff`; `about` sets fields of its info."""
    clients = [
        ClientDataset(
            client_id,
            np.arange(len(mine), dtype=np.uint8).reshape(-1, 1, 1) * np.ones((1, 3, 2), np.uint8),
            np.array(mine, np.int32),
            1 / 255,
            0.0,
            "drawn",
        )
        for client_id, mine in labels.items()
    ]
    info = StoreInfo(**{"num_classes": 10, "pixel_convention": "ink", **about})
    store_writer.create(path, {"train": clients}, info)
    return path


def run(tmp_path: Path, source: Path, **options: Any) -> Prepared:
    return prepare([source], tmp_path / "out.h5", PrepareOptions(**options))


def held(tmp_path: Path, split: str) -> dict[str, list[int]]:
    """The labels of each client of the written store."""
    data = datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5")))[split]
    return {each: data.labels(each).tolist() for each in data.client_ids}


# ---- Filters -------------------------------------------------------------------------------------


def test_digits_only_drops_letters_and_clients_left_with_one(tmp_path: Path) -> None:
    train = write_tff(tmp_path / "a.h5", {"a": [1, 40, 2, 61], "b": [3, 30], "c": [7, 8]})
    test = write_tff(tmp_path / "b.h5", {"a": [5, 20], "b": [3], "c": [50]})
    done = run(tmp_path, train, test_data=test, digits_only=True)
    assert held(tmp_path, "train") == {"a": [1, 2], "c": [7, 8]}
    # b is dropped because it has one train example left, and c because no test example is left.
    assert held(tmp_path, "test") == {"a": [5]}
    assert done.info.num_classes == 10
    assert done.info.class_names in ((), tuple("0123456789"))
    assert json.loads(done.info.partition_parameters) == {
        "filter": {"digits_only": True, "min_examples": 2}
    }
    assert "left out 1 of 3 clients, which have fewer than 2 train examples" in done.notes
    images = (
        datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5")))["train"]
        .client("a")
        .images()
    )
    # Pixels stay with their labels.
    np.testing.assert_array_equal(np.rint(images[:, 0, 0] * 255), [0, 2])


def test_label_noise_after_digits_only_makes_digits(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [*range(62)] * 20}, scale=0.2)
    run(
        tmp_path,
        source,
        digits_only=True,
        partition="label-noise",
        partition_options={"rate": 1.0},
    )
    labels = np.array(held(tmp_path, "train")["a"])
    assert set(labels.tolist()) == set(range(10))
    assert (labels != np.tile(np.arange(10), 20)).all()


def test_digits_only_refuses_other_names_and_finds_no_digit(tmp_path: Path) -> None:
    named = write_store(tmp_path / "n.h5", {"a": [0]}, num_classes=2, class_names=("cat", "dog"))
    with pytest.raises(ConfigError, match=r"--digits-only: the classes of .* begin with 'cat'"):
        run(tmp_path, named, digits_only=True)
    letters = write_tff(tmp_path / "a.h5", {"a": [40, 41]})
    with pytest.raises(DataError, match="none of its labels is a digit"):
        run(tmp_path, letters, digits_only=True)


def test_min_examples_counts_train(tmp_path: Path) -> None:
    train = write_tff(tmp_path / "a.h5", {"a": [1, 2, 3], "b": [1], "c": [2, 2]})
    test = write_tff(tmp_path / "b.h5", {"b": [1] * 9, "c": [0], "d": [4]})
    run(tmp_path, train, test_data=test, min_examples=2)
    assert held(tmp_path, "train") == {"a": [1, 2, 3], "c": [2, 2]}
    assert held(tmp_path, "test") == {"c": [0], "d": [4]}
    with pytest.raises(
        DataError, match=r"no client of .* has 4 or more train examples; choose a smaller"
    ):
        run(tmp_path, train, min_examples=4)


def test_test_clients_that_are_other_people_are_kept(tmp_path: Path) -> None:
    train = write_store(tmp_path / "a.h5", {"1": [1], "2": [2, 2]}, same_people=False)
    test = write_store(tmp_path / "b.h5", {"1": [3], "2": [4]}, same_people=False)
    done = run(tmp_path, train, test_data=test, min_examples=2)
    assert held(tmp_path, "train") == {"2": [2, 2]}
    assert held(tmp_path, "test") == {"1": [3], "2": [4]}
    assert not done.info.same_people
    # With hold-out, the train and test examples of a client come from the same person.
    assert run(tmp_path, train, hold_out="within").info.same_people


def test_invert_changes_pixels_and_their_convention(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [0, 1, 2]})
    before = datasets.open_splits(datasets.DataSource(str(source)))["train"].client("a").images()
    done = run(tmp_path, source, invert=True)
    assert done.info.pixel_convention == "ink"
    after = (
        datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5")))["train"]
        .client("a")
        .images()
    )
    np.testing.assert_allclose(after, 1 - before, rtol=0, atol=1.2e-7)


# ---- Two sources ---------------------------------------------------------------------------------


def test_test_data_are_labelled_by_the_names_of_train(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    train = write_store(tmp_path / "a.h5", {"a": [0, 1, 2]}, num_classes=3, class_names=names)
    test = write_store(
        tmp_path / "b.h5", {"a": [0, 1, 1]}, num_classes=2, class_names=("ant", "cat")
    )
    assert run(tmp_path, train, test_data=test).info.class_names == names
    assert held(tmp_path, "test") == {"a": [0, 2, 2]}
    other = write_store(tmp_path / "c.h5", {"a": [0]}, num_classes=2, class_names=("ant", "cow"))
    with pytest.raises(DataError, match="a class 'cow' that"):
        run(tmp_path, train, test_data=other)


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("0", "2", "5"), [5, 0, 2], [2, 0, 1]),
        (("1", "2", "10"), [10, 1, 1], [2, 0, 0]),
        ((*"0123456789", *"ABC"), [9, 0, 12], [9, 0, 12]),
    ],
)
def test_numbers_of_test_are_matched_with_names_by_value(
    tmp_path: Path, names: tuple[str, ...], values: list[int], expected: list[int]
) -> None:
    count = len(names)
    train = write_store(
        tmp_path / "a.h5", {"a": [*range(count)]}, num_classes=count, class_names=names
    )
    test = write_tff(tmp_path / "b.h5", {"a": values})
    assert run(tmp_path, train, test_data=test).info.class_names == names
    assert held(tmp_path, "test") == {"a": expected}
    if count == 3:
        unknown = write_tff(tmp_path / "c.h5", {"a": [3]})
        with pytest.raises(DataError, match=r"has a label 3 that .* lacks"):
            run(tmp_path, train, test_data=unknown)


def test_names_of_test_are_matched_with_numbers_by_value(tmp_path: Path) -> None:
    train = write_tff(tmp_path / "a.h5", {"a": [0, 2, 5]})
    test = write_store(
        tmp_path / "b.h5", {"a": [2, 0, 1]}, num_classes=3, class_names=("0", "2", "5")
    )
    assert run(tmp_path, train, test_data=test).info.num_classes == 6
    assert held(tmp_path, "test") == {"a": [5, 0, 2]}


def test_more_classes_in_test(tmp_path: Path) -> None:
    train = write_store(tmp_path / "a.h5", {"a": [0, 1]}, num_classes=2)
    test = write_store(tmp_path / "b.h5", {"a": [3]}, num_classes=4)
    done = run(tmp_path, train, test_data=test)
    assert (done.info.num_classes, done.info.class_names) == (4, ())
    named = write_store(tmp_path / "n.h5", {"a": [0, 1]}, num_classes=2, class_names=("x", "y"))
    with pytest.raises(DataError, match=r"names its classes \(x, y\) but .* numbers them"):
        run(tmp_path, named, test_data=test)


def test_test_store_of_the_opposite_convention_is_inverted(tmp_path: Path) -> None:
    train = write_store(tmp_path / "a.h5", {"a": [0, 1]})
    test = write_store(tmp_path / "b.h5", {"a": [0, 1]}, pixel_convention="background")
    run(tmp_path, train, test_data=test)
    splits = datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5")))
    np.testing.assert_allclose(
        splits["test"].client("a").images(),
        1 - splits["train"].client("a").images(),
        rtol=0,
        atol=1.2e-7,
    )


def test_test_images_of_another_shape(tmp_path: Path) -> None:
    train = write_tff(tmp_path / "a.h5", {"a": [0]})
    test = tmp_path / "b.npz"
    np.savez(test, x_train=np.zeros((4, 5, 5), np.uint8), y_train=np.zeros(4, np.int64))
    with pytest.raises(
        DataError, match=r"images have shape \[3, 2\] in train .* but \[5, 5\] in test"
    ):
        run(tmp_path, train, test_data=test)


def test_test_split_without_owners_is_pooled_unless_it_is_partitioned(tmp_path: Path) -> None:
    source = tmp_path / "a.npz"
    np.savez(
        source,
        x_train=np.zeros((40, 4, 4), np.uint8),
        y_train=np.arange(40) % 10,
        client_ids_train=np.array(["ann", "bob"]).repeat(20),
        x_test=np.zeros((10, 4, 4), np.uint8),
        y_test=np.arange(10),
    )
    done = run(tmp_path, source)
    assert held(tmp_path, "central") == {"central": list(range(10))}
    assert list(held(tmp_path, "train")) == ["ann", "bob"]
    assert any("the test split names no owners" in note for note in done.notes)
    run(tmp_path, source, partition="iid", partition_options={"clients": 2})
    assert list(held(tmp_path, "test")) == list(held(tmp_path, "train"))


def test_options_without_a_partition_are_those_of_the_default_one(tmp_path: Path) -> None:
    source = tmp_path / "a.npz"
    np.savez(source, x=np.zeros((60, 4, 4), np.uint8), y=np.arange(60) % 10)
    done = run(tmp_path, source, partition_options={"clients": 4})
    clients = held(tmp_path, "train")
    assert len(clients) == 4
    assert any("divided at random (iid); --partition chooses" in note for note in done.notes)
    run(tmp_path, source, partition="iid", partition_options={"clients": 4})
    assert held(tmp_path, "train") == clients
    run(tmp_path, source, partition_options={"seed": 5})
    assert len(held(tmp_path, "train")) == 3
    with pytest.raises(ConfigError, match="--partition-option: iid has no option 'alpha'"):
        run(tmp_path, source, partition_options={"alpha": 1.0})
    owned = write_tff(tmp_path / "a.h5", {"a": [0, 1], "b": [2, 3]})
    with pytest.raises(ConfigError, match=r"--partition-option clients: .* keep their own clients"):
        run(tmp_path, owned, partition_options={"clients": 4})


def test_splits_of_one_source_have_images_of_one_shape(tmp_path: Path) -> None:
    source = tmp_path / "a.npz"
    np.savez(
        source,
        x_train=np.zeros((40, 4, 4), np.uint8),
        y_train=np.arange(40) % 10,
        x_test=np.zeros((10, 5, 4), np.uint8),
        y_test=np.arange(10),
    )
    with pytest.raises(
        DataError, match=r"images have shape \[4, 4\] in train .* but \[5, 4\] in test"
    ):
        run(tmp_path, source)
    assert not (tmp_path / "out.h5").exists()


def test_missing_test_data_are_reported_before_any_work(tmp_path: Path) -> None:
    train = write_tff(tmp_path / "a.h5", {"a": [0]})
    told: list[int] = []
    options = PrepareOptions(test_data=tmp_path / "none")
    with pytest.raises(DataError, match="none: there is no such file"):
        prepare([train], tmp_path / "out.h5", options, lambda done, _: told.append(done))
    assert not told


# ---- Notes and hold-out --------------------------------------------------------------------------


def test_a_damaged_store_gets_no_new_fingerprint(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5", {"a": [0, 1], "b": [2, 3]})
    with h5py.File(path, "r+") as file:
        file["splits/train/pixels"][3, 0, 0] = 99
    with pytest.raises(DataError, match=r"a\.h5: the data have fingerprint .* changed or damaged"):
        run(tmp_path, path)
    whole = write_store(tmp_path / "b.h5", {"a": [0, 1], "b": [2, 3]})
    with pytest.raises(DataError, match=r"a\.h5: the data have fingerprint "):
        run(tmp_path, whole, test_data=path)
    assert not (tmp_path / "out.h5").exists()


def test_test_data_that_are_the_source_are_refused(tmp_path: Path) -> None:
    path = write_tff(tmp_path / "a.h5", {"a": [0, 1]})
    other = tmp_path / "b.h5"
    other.symlink_to(path)
    for test_data in (path, other):
        with pytest.raises(DataError) as caught:
            run(tmp_path, path, test_data=test_data)
        assert str(caught.value).startswith(f"--test-data {test_data} is the source {path} itself")


def test_classes_that_never_occur_are_noted_where_their_number_is_guessed(tmp_path: Path) -> None:
    def notes(name: str, *labels: int, **options: Any) -> list[str]:
        path = tmp_path / name
        np.savez(path, images=np.zeros((len(labels), 3, 2), np.uint8), labels=np.array(labels))
        return [note for note in run(tmp_path, path, **options).notes if "never" in note]

    assert notes("a.npz", 1, 2, 3) == [
        "4 classes, labels 0 to 3, but 0 never occurs; if that is wrong, pass --num-classes or "
        "renumber the labels"
    ]
    (note,) = notes("b.npz", 0, 20)
    assert "but 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... never occur;" in note
    assert not notes("c.npz", 1, 2, 3, num_classes=4)
    assert not notes("d.npz", 0, 1, 2)
    # No note if the test data have the class that the train data lack.
    assert not notes("e.npz", 0, 2, test_data=tmp_path / "d.npz")


def test_how_many_clients_a_source_without_owners_gets_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((50, 3, 2), np.uint8), labels=np.arange(50) % 2)
    assert (
        "the source names no owners: divided at random among 2 clients, by default one client "
        "for 20 examples, at most 100 clients; --partition chooses another method"
    ) in run(tmp_path, path).notes


def test_pixels_from_0_to_255_are_noted(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [0, 1] * 100}, scale=255.0)
    notes = run(tmp_path, source).notes
    assert any(
        "0 to 199 in the source, which is taken as the range 0 to 255" in note for note in notes
    )
    split = datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5")))["train"]
    assert split.client("a").images().max() == pytest.approx(199 / 255)
    assert not run(tmp_path, write_tff(tmp_path / "b.h5", {"a": [0, 1]})).notes


def test_clients_of_one_example_are_counted(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [0], "b": [1, 2], "c": [3]})
    done = run(tmp_path, source, hold_out="within")
    assert list(held(tmp_path, "train")) == ["a", "b", "c"]
    assert list(held(tmp_path, "test")) == ["b"]
    assert any(note.startswith("2 clients have a single example") for note in done.notes)


def test_central_hold_out_leaves_the_rest_to_its_owners(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [*range(10)] * 2, "b": [*range(10)] * 2})
    run(tmp_path, source, hold_out="central", hold_out_fraction=0.25)
    pooled = held(tmp_path, "central")["central"]
    assert sorted(pooled) == list(range(10))
    rest = [label for labels in held(tmp_path, "train").values() for label in labels]
    assert sorted(rest + pooled) == sorted([*range(10)] * 4)


@pytest.mark.parametrize("kind", ["within", "clients", "central"])
def test_with_a_test_split_validation_is_held_out(tmp_path: Path, kind: str) -> None:
    source = write_tff(tmp_path / "a.h5", {"a": [0, 1] * 5, "b": [1, 0] * 5, "c": [0, 1] * 5})
    test = write_tff(tmp_path / "b.h5", {"a": [0, 1], "b": [1]})
    prepared = run(tmp_path, source, test_data=test, hold_out=kind, hold_out_fraction=0.2)
    sizes = {each.name: each.num_examples for each in prepared.splits}
    held_out = {"within": 6, "clients": 10, "central": 6}[kind]
    assert sizes == {"train": 30 - held_out, "test": 3, "validation": held_out}
    steps = json.loads(prepared.info.partition_parameters)
    assert steps["hold_out"]["split"] == "validation"
    assert "--hold-out makes the split validation" in " ".join(prepared.notes)
    if kind == "central":
        assert list(held(tmp_path, "validation")) == ["validation"]
    else:
        assert set(held(tmp_path, "validation")) <= {"a", "b", "c"}
    with pytest.raises(ConfigError, match="has a split 'validation' of its own"):
        prepare([tmp_path / "out.h5"], tmp_path / "o.h5", PrepareOptions(hold_out=kind))


def test_a_partition_also_divides_the_validation_split(tmp_path: Path) -> None:
    made = run(
        tmp_path,
        write_tff(tmp_path / "a.h5", {"a": [0, 1] * 20}),
        hold_out="within",
        hold_out_split="validation",
    )
    assert [each.name for each in made.splits] == ["train", "validation"]
    prepared = prepare(
        [tmp_path / "out.h5"],
        tmp_path / "partitioned.h5",
        PrepareOptions(partition="iid", partition_options={"clients": 2}),
    )
    assert {each.name: each.num_clients for each in prepared.splits} == {
        "train": 2,
        "validation": 2,
    }


def test_central_hold_out_leaves_no_client_empty(tmp_path: Path) -> None:
    source = write_tff(tmp_path / "a.h5", {f"c{index}": [index % 10] for index in range(20)})
    done = run(tmp_path, source, hold_out="central", hold_out_fraction=0.5)
    assert list(map(len, held(tmp_path, "train").values())) == [1] * 10
    assert len(held(tmp_path, "central")["central"]) == 10
    assert any("left out 10 of 20 clients" in note for note in done.notes)


# ---- What the store says of itself ---------------------------------------------------------------


def test_a_store_changed_again_keeps_every_parameter(tmp_path: Path) -> None:
    before = {"clients": 2, "seed": 9}
    source = write_store(
        tmp_path / "a.h5",
        {"p0": [0, 1], "p1": [2, 3]},
        partition="iid",
        partition_parameters=json.dumps(before),
    )
    done = run(tmp_path, source, partition="label-noise", min_examples=1, seed=4)
    assert done.info.partition == "iid+label-noise"
    assert json.loads(done.info.partition_parameters) == {
        "before": before,
        "filter": {"digits_only": False, "min_examples": 1},
        "kind": "symmetric",
        "rate": 0.1,
        "seed": 4,
    }


def test_a_change_of_natural_clients_has_one_name(tmp_path: Path) -> None:
    clients: Clients = {"a": [0, 1], "b": [2, 3]}
    for source in (write_store(tmp_path / "a.h5", clients), write_tff(tmp_path / "b.h5", clients)):
        done = run(tmp_path, source, partition="feature-rotation")
        assert done.info.partition == "feature-rotation"


@pytest.mark.parametrize("text", ["x" * 5000, "other.h5"])
def test_the_source_that_a_store_records_is_not_a_path(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real.h5").touch()
    Path("other.h5").symlink_to("real.h5")
    source = write_store(tmp_path / "a.h5", {"a": [0, 1]}, source=text)
    assert run(tmp_path, source).info.source == text


def test_a_source_whose_name_is_not_unicode(tmp_path: Path) -> None:
    source = write_tff(tmp_path / os.fsdecode(b"caf\xe9.h5"), {"a": [0, 1]})
    assert run(tmp_path, source).info.source == "caf\ufffd.h5"


# ---- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out": "all"}, "--hold-out all: choose one of within, clients, central"),
        ({"hold_out_fraction": 0.0}, "choose a number above 0 and below 1"),
        ({"hold_out_fraction": 1.5}, "from 0 to 1"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"seed": 1.5}, "--seed 1.5: choose a whole number from 0 to 9223372036854775807"),
        ({"seed": True}, "--seed True: choose a whole number"),
        ({"min_examples": 0.5}, "--min-examples 0.5: choose a whole number from 0 to"),
        ({"min_examples": -1}, "--min-examples -1: choose a whole number from 0 to"),
        ({"partition": "iid+shards"}, "only one such scheme"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareOptions(**options)
