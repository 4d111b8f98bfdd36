"""TFF's HDF5 layout: exact values, and one line that names the place in each bad file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import datasets, hdf5
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.datasets.sources.tff_h5 import quantise
from fedcli.errors import ConfigError, DataError
from fedcli.settings.vocabulary import MAX_CLASSES

GREY = np.arange(48, dtype=np.uint8).reshape(3, 4, 4) * 5  # three images of 4 x 4, levels 0 to 235
TFF_PIXELS = (1 - GREY / 255).astype(np.float32)  # as TFF stores EMNIST: 1.0 is background
LABELS = np.array([7, 0, 9], np.int32)


def write(path: Path, clients: dict[str, dict[str, Any]], **storage: Any) -> Path:
    """Writes a TFF file: for each client its features by name."""
    with h5py.File(path, "w") as file:
        examples = file.create_group("examples")
        for client_id, features in clients.items():
            group = examples.create_group(client_id)
            for name, values in features.items():
                group.create_dataset(name, data=values, **storage)
    return path


def one_client(tmp_path: Path, **features: Any) -> Path:
    return write(tmp_path / "one.h5", {"a": {"pixels": TFF_PIXELS, "label": LABELS} | features})


def open_train(path: Path, **options: Any) -> ClientData:
    return datasets.open_splits(datasets.DataSource(str(path), **options))["train"]


def message_of(path: Path, client_id: str = "a", **options: Any) -> str:
    """Returns the error message of reading a client; checks that it is one line."""
    with pytest.raises(DataError) as caught:
        open_train(path, **options).client(client_id)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# ---- What is read --------------------------------------------------------------------------------


def test_emnist_pixels_become_grey_levels_that_decode_to_the_source(tmp_path: Path) -> None:
    data = open_train(one_client(tmp_path))
    client = data.client("a")
    np.testing.assert_array_equal(client.pixels, 255 - GREY)
    assert client.pixels.dtype == np.uint8
    assert (client.scale, client.offset) == (1 / 255, 0.0)
    np.testing.assert_allclose(client.images(), TFF_PIXELS, rtol=0, atol=6e-8)
    assert client.labels.tolist() == [7, 0, 9]
    assert client.labels.dtype == np.int32
    assert (data.pixel_convention, data.pixel_shape) == ("background", (4, 4))
    assert list(data.element_spec) == ["label", "pixels"]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_float_pixels_of_any_width_and_order_read_alike(tmp_path: Path, dtype: str) -> None:
    path = one_client(tmp_path, pixels=(1 - GREY / 255).astype(dtype))
    np.testing.assert_array_equal(open_train(path).client("a").pixels, 255 - GREY)


def test_pixels_that_are_no_grey_levels_stay_float32(tmp_path: Path) -> None:
    pixels = TFF_PIXELS.copy()
    pixels[2, 3, 3] = 1.25
    client = open_train(one_client(tmp_path, pixels=pixels)).client("a")
    assert client.pixels.dtype == np.float32
    np.testing.assert_array_equal(client.images(), pixels)


def test_cifar_images_are_ink_and_coarse_labels_are_ignored(tmp_path: Path) -> None:
    image = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    features = {"image": image, "label": np.array([3, 99], np.int64), "coarse_label": [[1.5]]}
    data = open_train(write(tmp_path / "cifar.h5", {"0": features}), num_classes=100)
    client = data.client("0")
    assert (data.pixel_convention, data.pixel_shape) == ("ink", (3, 3, 3))
    np.testing.assert_allclose(client.images(), image / 255, rtol=0, atol=6e-8)
    assert client.labels.tolist() == [3, 99]


@pytest.mark.parametrize("pixels", ["ink", "background"])
@pytest.mark.parametrize("is_grey", [True, False])
def test_pixels_option_flips_by_scale_and_offset_alone(
    tmp_path: Path, pixels: str, is_grey: bool
) -> None:
    source = TFF_PIXELS if is_grey else TFF_PIXELS * np.float32(0.9)
    data = open_train(one_client(tmp_path, pixels=source), pixels=pixels)
    client = data.client("a")
    expected = 1 - source if pixels == "ink" else source
    assert client.pixels.dtype == (np.uint8 if is_grey else np.float32)
    assert data.pixel_convention == pixels
    np.testing.assert_allclose(client.images(), expected, rtol=0, atol=1.2e-7)


def test_client_ids_are_sorted_and_sizes_come_without_reading(tmp_path: Path) -> None:
    features = {"pixels": TFF_PIXELS, "label": LABELS}
    bad = {"pixels": TFF_PIXELS, "label": [7, 0, 55]}
    data = open_train(write(tmp_path / "ids.h5", {"b": bad, "ä": features, "B": features}))
    assert list(data.client_ids) == ["B", "b", "ä"]
    assert [data.num_examples(client_id) for client_id in data.client_ids] == [3, 3, 3]
    assert data.total_examples() == 9


def test_client_comes_from_the_cache_and_is_read_only(tmp_path: Path) -> None:
    client = open_train(one_client(tmp_path)).client("a")
    with pytest.raises(ValueError, match="read-only"):
        client.pixels[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        client.labels[0] = 0
    data = open_train(one_client(tmp_path))
    assert data.client("a") is data.client("a")
    assert data.cache is not None
    assert (data.cache.hits, data.cache.bytes) == (1, 48 + 12)


def test_empty_client_is_a_client(tmp_path: Path) -> None:
    path = write(
        tmp_path / "empty.h5",
        {
            "a": {"pixels": TFF_PIXELS, "label": LABELS},
            "b": {"pixels": TFF_PIXELS[:0], "label": LABELS[:0]},
        },
    )
    client = open_train(path).client("b")
    assert len(client) == 0
    assert client.images().shape == (0, 4, 4)
    assert list(client.preprocess()) == []


def test_compressed_chunks_read_alike(tmp_path: Path) -> None:
    features = {"pixels": TFF_PIXELS, "label": LABELS}
    path = write(tmp_path / "gzip.h5", {"a": features}, compression="gzip", shuffle=True)
    np.testing.assert_array_equal(open_train(path).client("a").pixels, 255 - GREY)


@pytest.mark.parametrize(("scale", "offset"), [(-1 / 255, 1.0), (1 / 255, 0.0)])
def test_quantise_recovers_every_grey_level(scale: float, offset: float) -> None:
    levels = np.arange(256, dtype=np.uint8)
    decoded = np.float32(scale) * levels + np.float32(offset)
    recovered = quantise(decoded, scale, offset)
    np.testing.assert_array_equal(recovered, levels)


@pytest.mark.parametrize("pixel", [3e38, -3e38, np.inf, np.nan])
def test_quantise_refuses_values_beyond_float32(pixel: float) -> None:
    pixels = np.array([0.0, pixel, -pixel, 1.0], np.float32)
    assert quantise(pixels, 1 / 255, 0.0) is None
    assert quantise(pixels, -1 / 255, 1.0) is None


@pytest.mark.parametrize("change", [1e-6, -1e-6, 0.5 / 255, np.nan, np.inf, 2.0, -1.0])
def test_quantise_refuses_a_single_pixel_between_levels(change: float) -> None:
    pixels = np.full(100_000, np.float32(128 / 255))
    assert quantise(pixels, 1 / 255, 0.0) is not None
    pixels[-1] += np.float32(change)
    with np.errstate(invalid="ignore"):
        assert quantise(pixels, 1 / 255, 0.0) is None


# ---- Real data -----------------------------------------------------------------------------------


def test_real_writers_read_within_rounding(shared_data: Path) -> None:
    path = shared_data / "mnist_writers_train.h5"
    train, test = datasets.load(str(path), test_data=str(path).replace("train", "test"))
    assert test is not None
    assert (len(train.client_ids), train.client_ids[0], test.split) == (539, "w0000", "test")
    assert list(train.client_ids) == list(test.client_ids)
    # A round of the first ten clients and 5 epochs visits 4,685 examples.
    assert sum(map(train.num_examples, train.client_ids[:10])) * 5 == 4685
    with h5py.File(path) as file:
        for client_id in ("w0000", "w2349"):
            client = train.client(client_id)
            source = file["examples"][client_id]
            assert client.pixels.dtype == np.uint8
            np.testing.assert_allclose(client.images(), source["pixels"][()], rtol=0, atol=6e-8)
            np.testing.assert_array_equal(client.labels, source["label"][()])


# ---- What is refused -----------------------------------------------------------------------------


def test_the_message_of_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"neither an existing file nor a known dataset; .*synthetic-digits"
    ):
        datasets.open_splits(datasets.DataSource(str(tmp_path / "absent.h5")))
    with pytest.raises(DataError, match="is a folder, not a file"):
        datasets.open_splits(datasets.DataSource(str(tmp_path)))
    with pytest.raises(DataError, match="cannot be accessed"):
        datasets.open_splits(datasets.DataSource("a" * 5000))


@pytest.mark.parametrize("content", [b"", b"label,pixels\n", b"\x89HDF" * 500])
def test_file_that_is_not_hdf5(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.h5"
    path.write_bytes(content)
    message = message_of(path)
    assert ("is not an HDF5 file" if content else "is empty") in message


def test_file_is_recognised_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = one_client(tmp_path).rename(tmp_path / "one.csv")
    assert len(open_train(path).client("a")) == 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = one_client(tmp_path)
    os.truncate(path, int(path.stat().st_size * share))
    assert "truncated HDF5 file, " in message_of(path)


def test_damaged_compressed_data(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((40, 16, 16)).astype(np.float32)
    path = write(
        tmp_path / "damaged.h5",
        {"a": {"pixels": pixels, "label": np.zeros(40, np.int32)}},
        compression="gzip",
        fletcher32=True,
    )
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    assert "client 'a': damaged (" in message_of(path)


def test_hdf5_file_without_examples(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    message = message_of(path)
    assert "neither a TFF file (no group 'examples') nor a fedcli store" in message
    assert "it holds 'weights'" in message
    with h5py.File(path, "w") as file:
        file["examples"] = np.zeros(3)
    assert "'examples' is not a group" in message_of(path)
    with h5py.File(path, "w") as file:
        file.create_group("examples")
    assert "holds no clients under /examples" in message_of(path)
    with h5py.File(path, "w") as file:
        file["examples/a"] = np.zeros(3)
    assert "'a' is not a group" in message_of(path)


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        ({"pixels": TFF_PIXELS[:2]}, "client 'a': 2 images but 3 labels"),
        ({"label": np.array([1, 2], np.int32)}, "client 'a': 3 images but 2 labels"),
        ({"label": LABELS + 0.5}, "client 'a': example 0: label 7.5 is not a whole number"),
        ({"label": np.full(3, np.nan)}, "client 'a': example 0: label 'nan' is missing"),
        ({"label": np.ones((3, 2))}, "example 0: labels have shape [n, 2], and this row is not"),
        ({"label": np.int32(1)}, "client 'a': labels have shape []"),
        ({"label": np.array([b"7", b"0", b"9"])}, "client 'a': labels have dtype |S1"),
        (
            {"pixels": TFF_PIXELS.astype(np.float16)},
            "client 'a': pixels have dtype float16; give uint8",
        ),
        (
            {"pixels": TFF_PIXELS.astype(np.int32)},
            "client 'a': pixels have dtype int32; give uint8",
        ),
        ({"pixels": TFF_PIXELS.astype(complex)}, "client 'a': pixels have dtype complex128; give"),
        (
            {"pixels": TFF_PIXELS.reshape(3, 16)},
            "client 'a': pixels have shape [3, 16]; give images [n, H, W]",
        ),
        (
            {"pixels": TFF_PIXELS.reshape(3, 2, 2, 2, 2)},
            "client 'a': pixels have shape [3, 2, 2, 2, 2]",
        ),
        ({"pixels": np.zeros((3, 0, 4), np.float32)}, "client 'a': pixels have shape [3, 0, 4]"),
        (
            {"pixels": np.zeros((3, 1, 5000), np.uint8)},
            "[1, 5000] are too large; give images of at most 4096",
        ),
        ({"pixels": np.zeros((3, 1, 1, 65), np.uint8)}, "[1, 1, 65] are too large"),
    ],
)
def test_wrong_shape_or_type(tmp_path: Path, features: dict[str, Any], fault: str) -> None:
    assert fault in message_of(one_client(tmp_path, **features))


@pytest.mark.parametrize(
    ("labels", "index", "label"),
    [
        (np.array([0, 10, 11], np.int32), 1, 10),
        (np.array([0, 1, -1], np.int8), 2, -1),
        # These large labels would become 1 in int32, so labels are checked before conversion.
        (np.array([2**32 + 1, 0, 0], np.int64), 0, 2**32 + 1),
        (np.array([0, 2**63 + 1, 0], np.uint64), 1, 2**63 + 1),
    ],
)
def test_label_outside_the_classes(
    tmp_path: Path, labels: np.ndarray, index: int, label: int
) -> None:
    path = one_client(tmp_path, label=labels)
    message = message_of(path)
    why = "is outside 0 to 9" if label < 2**63 else "cannot be a class"
    assert f"client 'a': example {index}: label {label} {why}" in message
    assert ("pass --num-classes" in message) == (0 <= label < MAX_CLASSES)


def test_num_classes_widens_the_classes(tmp_path: Path) -> None:
    path = one_client(tmp_path, label=np.array([0, 61, 3], np.int64))
    data = open_train(path, num_classes=62)
    assert data.num_classes == 62
    assert data.client("a").labels.tolist() == [0, 61, 3]
    assert "label 61 is outside 0 to 60" in message_of(path, num_classes=61)
    with pytest.raises(ConfigError, match="--num-classes 0: choose a whole number from 1"):
        open_train(path, num_classes=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixel_that_is_not_finite(tmp_path: Path, value: float, dtype: type) -> None:
    pixels: np.ndarray = TFF_PIXELS.astype(dtype)
    pixels[1, 2, 3] = value
    message = message_of(one_client(tmp_path, pixels=pixels))
    assert "client 'a': example 1: a pixel is NaN or infinite" in message


def test_images_of_different_shapes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "shapes.h5",
        {
            "a": {"pixels": TFF_PIXELS, "label": LABELS},
            "b": {"pixels": TFF_PIXELS[:, :3], "label": LABELS},
        },
    )
    message = message_of(path, "b")
    assert "client 'b': images have shape [3, 4] but those of client 'a' have [4, 4]" in message


def test_the_message_of_a_missing_feature_lists_the_existing_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", {"a": {"x": TFF_PIXELS, "label": LABELS}})
    assert "client 'a': has no 'pixels'; it holds 'label', 'x'" in message_of(path)


def test_unknown_client_names_the_nearest(tmp_path: Path) -> None:
    features = {"pixels": TFF_PIXELS, "label": LABELS}
    path = write(tmp_path / "ids.h5", {f"w{number:04d}": features for number in range(30)})
    message = message_of(path, "w0013x")
    assert "no client 'w0013x' among the 30 of split 'train'" in message
    assert "'w0013'" in message
    assert "no client '../a'" in message_of(path, "../a")
    assert "no client 'w0001/label'" in message_of(path, "w0001/label")


def test_links_are_never_followed(tmp_path: Path) -> None:
    target = one_client(tmp_path)
    path = tmp_path / "links.h5"
    with h5py.File(path, "w") as file:
        file["examples"] = h5py.ExternalLink(str(target), "/examples")
    assert "'examples' is a link" in message_of(path)
    for link in (h5py.ExternalLink(str(target), "/examples/a"), h5py.SoftLink("/b")):
        with h5py.File(path, "w") as file:
            file.create_group("b")
            file.create_group("examples")["a"] = link
        assert "client 'a': 'a' is a link" in message_of(path)
    for feature in ("pixels", "label"):
        with h5py.File(path, "w") as file:
            group = file.create_group("examples/a")
            group.create_dataset("pixels", data=TFF_PIXELS)
            group.create_dataset("label", data=LABELS)
            del group[feature]
            group[feature] = h5py.ExternalLink(str(target), f"/examples/a/{feature}")
        assert f"client 'a': '{feature}' is a link" in message_of(path)


def test_data_in_other_files_are_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3 * 16))
    path = tmp_path / "external.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("label", data=LABELS)
        group.create_dataset(
            "pixels", (3, 4, 4), np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
    assert "the data of 'pixels' lie in other files" in message_of(path)
    layout = h5py.VirtualLayout((3, 4, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(one_client(tmp_path)), "examples/a/pixels", (3, 4, 4))
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("label", data=LABELS)
        group.create_virtual_dataset("pixels", layout)
    assert "the data of 'pixels' lie in other files" in message_of(path)


def test_variable_length_and_object_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vlen.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("label", data=LABELS)
        group.create_dataset("pixels", (3, 4, 4), h5py.vlen_dtype(np.float32))
    assert "pixels have dtype object; give uint8" in message_of(path)
    path = tmp_path / "references.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("label", (3,), h5py.ref_dtype)
        group.create_dataset("pixels", data=TFF_PIXELS)
    assert "labels have dtype object; give whole numbers" in message_of(path)


def test_claim_of_far_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    for num_examples in (10**6, 10**12, 2**62):
        with h5py.File(path, "w") as file:
            group = file.create_group("examples/a")
            for name, image in (("pixels", (28, 28)), ("label", ())):
                shape = (num_examples, *image)
                group.create_dataset(name, shape, np.uint8, chunks=(1, *image), maxshape=shape)
        assert "bytes but the file holds 0; it was not written whole" in message_of(path)


# ---- Train and test ------------------------------------------------------------------------------


def test_test_data_become_the_test_split(tmp_path: Path) -> None:
    train = one_client(tmp_path)
    test = write(tmp_path / "two.h5", {"a": {"pixels": TFF_PIXELS[:1], "label": LABELS[:1]}})
    splits = datasets.open_splits(datasets.DataSource(str(train), test_data=str(test)))
    assert {name: data.total_examples() for name, data in splits.items()} == {
        "train": 3,
        "test": 1,
    }
    assert splits["test"].split == "test"
    assert len(splits["train"].client("a")) == 3
    assert len(splits["test"].client("a")) == 1
    assert datasets.load(str(train))[1] is None


def test_the_description_says_where_the_number_of_classes_is_from(tmp_path: Path) -> None:
    test = one_client(tmp_path)
    train = tmp_path / "train.h5"
    clients = [ClientDataset("a", 255 - GREY, LABELS, 1 / 255, 0.0, "drawn")]
    info = StoreInfo(num_classes=12, pixel_convention="background")
    store_writer.create(train, {"train": clients}, info)

    def classes(path: Path, split: str, **options: Any) -> tuple[str, str]:
        splits = datasets.open_splits(datasets.DataSource(str(path), **options))
        description = splits[split].description()
        assert description is not None
        return description.classes.value, description.classes.evidence

    assert classes(test, "train") == ("10", "TFF's default")
    assert classes(test, "train", num_classes=10) == ("10", "given by --num-classes")
    assert classes(test, "train", num_classes=62) == ("62", "given by --num-classes")
    assert classes(train, "test", test_data=str(test)) == ("12", "as many as in --data")


def test_train_and_test_of_different_shapes(tmp_path: Path) -> None:
    train = one_client(tmp_path)
    test = write(tmp_path / "two.h5", {"a": {"pixels": TFF_PIXELS[:, :2], "label": LABELS}})
    with pytest.raises(
        DataError, match=r"images have shape \[4, 4\] in train.* but \[2, 4\] in test"
    ):
        datasets.open_splits(datasets.DataSource(str(train), test_data=str(test)))


def test_train_and_test_that_mean_opposite_pixels(tmp_path: Path) -> None:
    train = one_client(tmp_path)
    test = write(tmp_path / "two.h5", {"a": {"image": GREY, "label": LABELS}})
    with pytest.raises(DataError, match=r"1.0 means background in train .* pass --pixels ink"):
        datasets.open_splits(datasets.DataSource(str(train), test_data=str(test)))
    splits = datasets.open_splits(
        datasets.DataSource(str(train), test_data=str(test), pixels="ink")
    )
    np.testing.assert_allclose(
        splits["train"].client("a").images(),
        splits["test"].client("a").images(),
        rtol=0,
        atol=1.2e-7,
    )


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    path = str(one_client(tmp_path))
    with pytest.raises(ConfigError, match="--data-option clients: a file has no options"):
        datasets.open_splits(datasets.DataSource(path, data_options={"clients": 3}))
    with pytest.raises(ConfigError, match="pixels 'paper': choose one of source, ink, background"):
        datasets.open_splits(datasets.DataSource(path, pixels="paper"))


def test_fingerprint_of_a_foreign_file_follows_its_bytes(tmp_path: Path) -> None:
    path = one_client(tmp_path)
    before = datasets.fingerprint(datasets.DataSource(str(path)))
    assert before.startswith("blake2b:")
    assert (
        datasets.fingerprint(datasets.DataSource(str(path), test_data=str(path)))
        == f"{before}; test {before}"
    )
    with path.open("ab") as file:
        file.write(b"\0")
    assert datasets.fingerprint(datasets.DataSource(str(path))) != before


def test_the_cache_that_names_are_listed_with_is_small_again(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as made:
        for name in "abc":
            made.create_group(f"examples/{name}")
    with hdf5.open_file(tmp_path / "a.h5") as file:
        before = file.id.get_mdc_config().max_size
        assert hdf5.link_names(file["examples"].id, "a.h5") == ["a", "b", "c"]
        assert file.id.get_mdc_config().max_size == before < 1 << 20
