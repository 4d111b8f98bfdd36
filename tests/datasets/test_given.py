"""Data in memory: arrays and functions by client, sequences of examples with owners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import datasets
from fedcli.datasets.sources.given import GivenData, as_given
from fedcli.errors import ConfigError, DataError

Pair = tuple[NDArray[Any], NDArray[Any]]


def pair(count: int, seed: int, shape: tuple[int, ...] = (6, 5)) -> Pair:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return pixels, (np.arange(count) % 3).astype(np.int64)


def test_arrays_are_clients_in_the_order_of_their_ids() -> None:
    ann, bob = pair(4, 1), pair(3, 2)
    train, test = datasets.from_arrays({"bob": bob, "ann": ann}, test={"ann": pair(2, 3)})
    assert test is not None
    assert (train.split, test.split) == ("train", "test")
    assert train.client_ids == ["ann", "bob"]
    assert (train.num_classes, train.pixel_shape) == (3, (6, 5))
    client = train.client("bob")
    assert np.array_equal(client.pixels, bob[0])
    assert np.array_equal(client.labels, bob[1])
    assert client.images().max() <= 1.0
    assert train.num_examples("ann") == len(ann[1])
    assert test.client_ids == ["ann"]
    batch = next(iter(client.preprocess(batch_size=2)))
    assert batch["x"].shape == (2, 30)


def test_a_function_is_called_when_its_client_is_used_and_once() -> None:
    calls: list[str] = []

    def make(name: str, seed: int) -> Any:
        def read() -> Pair:
            calls.append(name)
            return pair(4, seed)

        return read

    train, _ = datasets.from_arrays({"a": make("a", 1), "b": make("b", 2)}, classes=3, pixels="ink")
    calls.clear()
    assert train.num_examples("b") == 4
    train.client("b")
    assert calls == ["b"]
    with pytest.raises(
        ConfigError,
        match="clients are functions, so the number of classes is unknown; pass classes=",
    ):
        datasets.from_arrays({"a": make("a", 1)})


def test_ids_may_be_numbers_and_classes_names() -> None:
    train, _ = datasets.from_arrays(
        {2: pair(3, 0), np.int64(10): pair(3, 1)}, classes=["cat", "dog", "owl"]
    )
    assert train.client_ids == ["10", "2"]
    assert train.class_name(2) == "owl"


def test_labels_may_be_written_in_any_way() -> None:
    pixels, labels = pair(4, 0)
    ways: list[NDArray[Any]] = [labels.astype(float), labels[:, None], np.eye(3)[labels]]
    for way in ways:
        train, _ = datasets.from_arrays({"a": (pixels, way)})
        assert train.client("a").labels.tolist() == labels.tolist()


def test_channels_first_are_put_last() -> None:
    pixels, labels = pair(4, 0, (3, 8, 7))
    train, _ = datasets.from_arrays({"a": (pixels, labels)})
    assert train.pixel_shape == (8, 7, 3)
    assert np.array_equal(train.client("a").pixels, np.moveaxis(pixels, 1, -1))
    one, _ = datasets.from_arrays({"a": (pixels[:, :1], labels)})
    assert one.pixel_shape == (8, 7)


def test_the_meaning_of_one_is_measured_or_given() -> None:
    dark = np.zeros((30, 8, 8), np.float32)
    dark[:, 2:6, 2:6] = 1.0
    labels = np.arange(30) % 2
    ink, _ = datasets.from_arrays({"a": (dark, labels)})
    inverted, _ = datasets.from_arrays({"a": (1 - dark, labels)})
    assert (ink.pixel_convention, inverted.pixel_convention) == ("ink", "background")
    said, _ = datasets.from_arrays({"a": (dark, labels)}, pixels="background")
    assert said.pixel_convention == "background"
    opened = as_given(said).open("ink", None)["train"]
    assert np.allclose(opened.client("a").images(), 1 - dark)


def test_floats_above_one_are_an_error() -> None:
    train, _ = datasets.from_arrays({"a": (pair(30, 0)[0].astype(np.float32), pair(30, 0)[1])})
    (note,) = train.examine()
    assert "go from 0 to 255 where 0 to 1 is expected" in note
    assert note.endswith("divide them by their largest possible value, or give uint8")


class Sequence:
    """A sequence of pairs (image, label), like a dataset of PyTorch."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples
        self.requested: list[int] = []

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        self.requested.append(index)
        return self.examples[index]


class Named:
    names = ("no", "yes")


def test_a_sequence_is_read_client_by_client() -> None:
    pixels, labels = pair(6, 0)
    sequence = Sequence(list(zip(pixels, labels.tolist(), strict=True)))
    train, test = datasets.from_examples(sequence, [1, 2, 1, 2, 2, 1], classes=3, pixels="ink")
    assert test is None
    sequence.requested.clear()
    assert train.num_examples("2") == 3
    assert sequence.requested == []
    assert np.array_equal(train.client("2").pixels, pixels[[1, 3, 4]])
    assert sequence.requested == [1, 3, 4]


def test_examples_may_be_mappings_and_the_sequence_may_name_the_classes() -> None:
    pixels, labels = pair(6, 0, (3, 6, 5))
    sequence = Sequence(
        [{"image": image, "label": label % 2} for image, label in zip(pixels, labels, strict=True)]
    )
    sequence.features = {"image": None, "label": Named()}  # type: ignore[attr-defined]
    train, _ = datasets.from_examples(sequence, list("aabbab"))
    assert train.class_names == ("no", "yes")
    assert train.pixel_shape == (6, 5, 3)


def test_examples_without_owners_are_one_client_until_they_are_partitioned() -> None:
    pixels, labels = pair(12, 0)
    train, _ = datasets.from_examples(list(zip(pixels, labels, strict=True)))
    assert train.client_ids == ["everyone"]
    assert train.num_classes == 3
    parts, _ = datasets.load(as_given(train), partition="iid", partition_options={"clients": 4})
    assert len(parts.client_ids) == 4
    assert parts.total_examples() == 12


def test_a_pair_is_one_client_that_owns_all_examples() -> None:
    pixels, labels = pair(6, 0)
    central = datasets.from_arrays({"a": pair(4, 0)}, test=(pixels, labels))[1]
    assert central is not None
    assert central.client_ids == ["everyone"]
    np.testing.assert_array_equal(central.client("everyone").pixels, pixels)
    train, _ = datasets.from_arrays((pixels, labels))
    assert train.client_ids == ["everyone"]
    assert train.total_examples() == 6


def test_data_that_differ_have_other_fingerprints() -> None:
    def name(clients: dict[Any, Any]) -> str:
        return datasets.fingerprint(
            datasets.DataSource(as_given(datasets.from_arrays(clients, classes=3)))
        )

    first, second = pair(4, 1), pair(4, 2)
    known = name({"a": first, "b": second})
    assert known == name({"b": lambda: second, "a": lambda: first})
    assert known.startswith("memory:")
    assert known not in {name({"a": first, "c": second}), name({"a": second, "b": first})}


def test_opened_data_are_taken_as_they_are() -> None:
    opened = datasets.load("synthetic-digits", data_options={"clients": 3})
    given = as_given(opened)
    assert isinstance(given, GivenData)
    assert list(given.splits) == ["train", "test"]
    assert str(given) == "memory:synthetic-digits"
    assert list(as_given(opened[0]).splits) == ["train"]
    assert list(as_given({"train": opened[0], "central": opened[1]}).splits) == ["train", "central"]
    with_third = datasets.from_arrays({"a": pair(4, 0)}, validation={"a": pair(2, 1)})
    assert sorted(as_given(with_third).splits) == ["train", "validation"]


PIXELS, LABELS = pair(4, 0)


@pytest.mark.parametrize(
    ("clients", "options", "words"),
    [
        ([], {}, "data: train is of type list; give a dict"),
        ({"a": (PIXELS, LABELS)}, {"test": PIXELS}, "data: test is of type ndarray; give a dict"),
        ({}, {}, "train has no clients; give at least one"),
        ({1.5: (PIXELS, LABELS)}, {}, "a client's id is 1.5; give a text or a whole number"),
        ({1: (PIXELS, LABELS), "1": (PIXELS, LABELS)}, {}, "two clients have the id '1'"),
        ({"a": PIXELS}, {}, r"client 'a' is of type ndarray; give a pair"),
        ({"a": (PIXELS, LABELS[:2])}, {}, "4 images but 2 labels; give one label per image"),
        (
            {"a": (PIXELS, [[1], [1, 2]])},
            {},
            "client 'a': labels: is a list whose items differ in size",
        ),
        ({"a": (PIXELS[0], LABELS)}, {}, r"pixels are uint8 \[6, 5\]; give \[n, H, W\]"),
        ({"a": (PIXELS.astype(np.int64), LABELS)}, {}, "pixels are int64"),
        ({"a": (PIXELS * np.nan, LABELS)}, {}, "example 0: a pixel is NaN or infinite"),
        ({"a": (PIXELS, LABELS + 0.5)}, {}, "example 0: label 0.5"),
        ({"a": (PIXELS, LABELS)}, {"classes": 2}, "label 2 is outside 0 to 1"),
        ({"a": (PIXELS, LABELS)}, {"classes": 0}, "classes=0: choose a whole number"),
        (
            {"a": (PIXELS, LABELS)},
            {"classes": "abc"},
            "give their number, or a list of their names",
        ),
        ({"a": (PIXELS, LABELS)}, {"pixels": "paper"}, "pixels='paper': choose 'ink'"),
        (
            {"a": (PIXELS, LABELS), "b": pair(2, 0, (5, 6))},
            {},
            r"images have shape \[5, 6\] but those of",
        ),
    ],
)
def test_wrong_arrays_are_one_line(clients: Any, options: dict[str, Any], words: str) -> None:
    def read_all() -> None:
        train, _ = datasets.from_arrays(clients, **options)
        for client_id in train.client_ids:
            train.client(client_id)

    with pytest.raises((DataError, ConfigError), match=words) as caught:
        read_all()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("examples", "owners", "words"),
    [
        (7, None, "train is of type int; give a sequence"),
        ([], None, "train holds no examples"),
        ([(PIXELS[0], 1)], ["a", "b"], "1 example but 2 owners"),
        ([PIXELS[0]], ["a"], r"an example is of type ndarray; give \(image, label\)"),
        ([{"image": PIXELS[0]}], ["a"], "an example has the keys image; give image and label"),
        ([(PIXELS[0], 1), (PIXELS[0], [0, 1])], ["a", "a"], "labels: is a list whose items differ"),
        ([(PIXELS[0], 1), (PIXELS[0][1:], 1)], ["a", "a"], r"have shapes \[5, 5\] and \[6, 5\]"),
    ],
)
def test_wrong_examples_are_one_line(examples: Any, owners: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        datasets.from_examples(examples, owners)


def test_other_objects_are_refused() -> None:
    with pytest.raises(DataError, match=r"data is of type int; give a name or file"):
        as_given(7)
