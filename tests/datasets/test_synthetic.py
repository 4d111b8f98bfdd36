"""The synthetic datasets: clients of any population, drawn when they are read."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fedcli import datasets
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.sources.synthetic import GeneratedIds
from fedcli.errors import ConfigError, DataError

pytestmark = pytest.mark.numeric


def open_splits(**data_options: object) -> dict[str, ClientData]:
    return datasets.open_splits(datasets.DataSource("synthetic-digits", data_options=data_options))  # type: ignore[arg-type]


def test_default_population() -> None:
    splits = open_splits()
    assert list(splits) == ["train", "test", "central"]
    train, test, central = splits.values()
    assert list(train.client_ids) == [f"s{number:07d}" for number in range(200)]
    assert list(test.client_ids) == list(train.client_ids)
    assert list(central.client_ids) == [f"u{number:07d}" for number in range(20)]
    assert (train.num_classes, train.pixel_shape) == (10, (28, 28))
    assert (train.source, train.pixel_convention) == ("synthetic-digits", "background")
    loaded_train, loaded_test = datasets.load()
    assert len(loaded_train.client_ids) == 200
    assert loaded_test is not None
    assert loaded_test.split == "test"


@pytest.mark.parametrize("split", ["train", "test", "central"])
def test_client_holds_as_many_examples_as_counted(split: str) -> None:
    data = open_splits()[split]
    for client_id in data.client_ids[:5]:
        client = data.client(client_id)
        assert len(client) == data.num_examples(client_id) > 0
        assert client.pixels.shape == (len(client), 28, 28)
        assert client.pixels.dtype == np.uint8
        assert set(client.labels.tolist()) <= set(range(10))
        assert not client.pixels.flags.writeable


def test_background_is_one_and_there_is_little_ink_as_in_emnist() -> None:
    images = open_splits()["train"].client("s0000000").images()
    assert images.min() >= 0
    assert images.max() <= 1
    assert np.median(images) == 1
    ink = datasets.open_splits(datasets.DataSource("synthetic-digits", pixels="ink"))["train"]
    assert ink.pixel_convention == "ink"
    ink_images = ink.client("s0000000").images()
    np.testing.assert_allclose(ink_images, 1 - images, rtol=0, atol=1.2e-7)
    assert np.median(ink_images) == 0


def test_a_writer_is_the_same_in_any_population_and_order() -> None:
    alone = open_splits(clients=8)["train"].client("s0000007")
    crowd = open_splits(clients=1_000_000)["train"]
    crowd.client("s0999999")
    np.testing.assert_array_equal(alone.pixels, crowd.client("s0000007").pixels)
    np.testing.assert_array_equal(alone.labels, crowd.client("s0000007").labels)


def test_shapes_are_colour_images_of_the_same_population() -> None:
    splits = datasets.open_splits(datasets.DataSource("synthetic-shapes"))
    assert list(splits) == ["train", "test", "central"]
    digits = open_splits()["train"]
    train = splits["train"]
    assert list(train.client_ids) == list(digits.client_ids)
    assert (train.num_classes, train.pixel_shape, train.pixel_convention) == (
        10,
        (32, 32, 3),
        "ink",
    )
    client = train.client("s0000003")
    assert client.pixels.shape == (len(client), 32, 32, 3)
    np.testing.assert_array_equal(client.labels, digits.client("s0000003").labels)
    np.testing.assert_array_equal(client.images(), client.pixels * np.float32(1 / 255))
    crowd = datasets.DataSource("synthetic-shapes", data_options={"clients": 1_000_000})
    np.testing.assert_array_equal(
        client.pixels, datasets.open_splits(crowd)["train"].client("s0000003").pixels
    )
    assert datasets.fingerprint(datasets.DataSource("synthetic-shapes")) == (
        "synthetic-shapes/v1 clients=200 seed=1 spread=0.9 label_noise=0.01 sizes=natural"
    )


def test_splits_seeds_and_writers_differ() -> None:
    splits = open_splits()
    first = splits["train"].client("s0000000").pixels[0]
    others = [
        splits["test"].client("s0000000"),
        splits["train"].client("s0000001"),
        open_splits(seed=2)["train"].client("s0000000"),
        open_splits(spread=0.1)["train"].client("s0000000"),
    ]
    for other in others:
        assert not np.array_equal(first, other.pixels[0])


def test_skewed_sizes_vary_more() -> None:
    spreads = {}
    for sizes in ("natural", "skewed"):
        train = open_splits(sizes=sizes)["train"]
        counts = np.array([train.num_examples(client_id) for client_id in train.client_ids])
        spreads[sizes] = counts.std() / counts.mean()
        assert train.total_examples() == counts.sum()
    assert spreads["skewed"] > 1.5 * spreads["natural"]


def test_a_million_clients_cost_nothing_until_they_are_read() -> None:
    open_splits()  # imports modules now, so that their memory is not counted
    tracemalloc.start()
    try:
        ids = open_splits(clients=1_000_000)["train"].client_ids
        assert len(ids) == 1_000_000
        assert "s0999999" in ids
        assert ids.index("s0999999") == 999_999
        assert ids[500_000:500_002] == ["s0500000", "s0500001"]
        with pytest.raises(DataError, match="did you mean one of 's0999999'"):
            open_splits(clients=1_000_000)["train"].client("s1999999")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_generated_ids_behave_like_a_list() -> None:
    ids = GeneratedIds("s", 12)
    listed = [f"s{number:07d}" for number in range(12)]
    assert list(ids) == listed
    assert (ids[-1], ids[3], ids[2:9:3], ids[::-1]) == (
        listed[-1],
        listed[3],
        listed[2:9:3],
        listed[::-1],
    )
    assert [ids.index(name) for name in listed] == list(range(12))
    for stranger in ("s0000012", "s12", "u0000001", "s-000001", "0000001", "s000000\u0661", "", 3):
        assert stranger not in ids
    for index in (12, -13):
        with pytest.raises(IndexError):
            ids[index]
    with pytest.raises(ValueError, match="'s0000012' is not in"):
        ids.index("s0000012")
    with pytest.raises(ValueError, match="'s0000001' is not in"):
        ids.index("s0000001", 2)


def test_ids_of_a_huge_population_still_sort_as_text() -> None:
    ids = GeneratedIds("s", 10**9)
    assert ids[0] < ids[9_999_999] < ids[10_000_000] < ids[-1]


def test_drawn_clients_are_cached_within_the_bound() -> None:
    data = open_splits()["train"]
    assert data.client("s0000000") is data.client("s0000000")
    unbuffered = datasets.open_splits(datasets.DataSource("synthetic-digits"), cache_bytes=0)[
        "train"
    ]
    assert unbuffered.client("s0000000") is not unbuffered.client("s0000000")


def test_unknown_client_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no client 's0000200' among the 200 .* 's0000"):
        open_splits()["train"].client("s0000200")
    with pytest.raises(DataError, match="no client 'u0000000'"):
        open_splits()["train"].num_examples("u0000000")
    with pytest.raises(DataError, match="a client id is of type int; give a string from client_id"):
        open_splits()["train"].client(0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data_options", "message"),
    [
        ({"clients": 0}, "clients 0: choose"),
        ({"writers": 5}, "no option 'writers'"),
        ({"label_noise": 2.0}, "label_noise 2.0: choose"),
        ({"sizes": "odd"}, "sizes 'odd': choose natural or skewed"),
    ],
)
def test_wrong_options(data_options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_splits(**data_options)


def test_num_classes_may_widen_but_not_narrow() -> None:
    wide = datasets.open_splits(datasets.DataSource("synthetic-digits", num_classes=62))
    assert wide["train"].num_classes == 62
    with pytest.raises(ConfigError, match="--num-classes 9: synthetic-digits has labels 0 to 9"):
        datasets.open_splits(datasets.DataSource("synthetic-digits", num_classes=9))


def test_fingerprint_names_version_and_options() -> None:
    assert datasets.fingerprint(
        datasets.DataSource("synthetic-digits", data_options={"clients": 7})
    ) == ("synthetic-digits/v1 clients=7 seed=1 spread=0.9 label_noise=0.01 sizes=natural")
