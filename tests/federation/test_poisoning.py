"""Poisoned examples of attackers, and the examples that an attack targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import settings
from fedcli.datasets.batches import ClientDataset, decode
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import open_splits
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import ConfigError, FedcliError
from fedcli.federation import poisoning
from fedcli.federation.poisoning import ChangedClients
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import resolve
from fedcli.settings.tables.attacks import ATTACKS

ATTACKERS = ("s0000001", "s0000003", "s0000004")


@pytest.fixture(scope="module")
def train() -> ClientData:
    data: ClientData = open_splits(DataSource(data_options={"clients": 8}))["train"]
    return data


def _made(name: str, train: ClientData, *, seed: int = 5, **given: Any) -> Any:
    entry = ATTACKS[name]
    made = poisoning.build(entry, resolve(entry, given), train, ATTACKERS, seed)
    assert made is not None
    return made


def test_labels_are_reversed(train: ClientData) -> None:
    client = train.client(ATTACKERS[0])
    made = _made("label-flip", train)
    poisoned = made.poison(client)
    assert poisoned.labels.tolist() == (9 - client.labels).tolist()
    assert poisoned.pixels is client.pixels
    # All examples are probed, because no digit d equals its new label 9 - d.
    assert len(made.probe(client)) == len(client)
    assert made.target_classes(client.labels).tolist() == poisoned.labels.tolist()


def test_one_class_is_relabelled(train: ClientData) -> None:
    client = train.client(ATTACKERS[0])
    made = _made("label-flip", train, source=7, target=1)
    expected = np.where(client.labels == 7, 1, client.labels)
    assert made.poison(client).labels.tolist() == expected.tolist()
    assert set(made.probe(client).labels.tolist()) == {7}
    assert made.target_classes(np.array([7], np.int32)).tolist() == [1]


@pytest.mark.parametrize("pixels", ["source", "ink", "background"])
def test_the_trigger_is_full_ink_in_any_polarity(pixels: str) -> None:
    source = DataSource(data_options={"clients": 8}, pixels=pixels)
    train = open_splits(source)["train"]
    client = train.client(ATTACKERS[0])
    made = _made("backdoor", train, target=2)
    poisoned = made.poison(client)
    ink = 1.0 if train.pixel_convention == "ink" else 0.0
    corner = poisoned.images()[:, 24:27, 24:27]
    is_stamped = (np.abs(corner - ink) < 1e-6).all(axis=(1, 2))
    assert is_stamped.sum() >= round(0.5 * len(client))
    changed = (poisoned.pixels != client.pixels).any(axis=(1, 2))
    assert changed.sum() <= round(0.5 * len(client))
    assert (poisoned.labels[changed] == 2).all()
    where = (poisoned.pixels != client.pixels).any(axis=0)
    where[24:27, 24:27] = False
    assert not where.any()
    same = poisoned.labels == client.labels
    assert (same | changed | is_stamped).all()
    assert not poisoned.pixels.flags.writeable
    assert not poisoned.labels.flags.writeable


def test_a_share_of_the_examples_is_poisoned(train: ClientData) -> None:
    client = train.client(ATTACKERS[0])
    for share in (0.01, 0.25, 1.0):
        made = _made("backdoor", train, target=9, poison=share)
        num_changed = (made.poison(client).labels != client.labels).sum()
        num_of_target = (client.labels == 9).sum()
        count = round(share * len(client))
        assert count - num_of_target <= num_changed <= count


def test_poisoned_examples_depend_only_on_seed_and_client(train: ClientData) -> None:
    client = train.client(ATTACKERS[0])
    poisoned = _made("backdoor", train).poison(client)
    again = _made("backdoor", train)
    again.poison(train.client(ATTACKERS[1]))
    same = again.poison(client)
    np.testing.assert_array_equal(same.pixels, poisoned.pixels)
    np.testing.assert_array_equal(same.labels, poisoned.labels)
    renamed = _made("backdoor", train).poison(replace(client, client_id="another"))
    assert (renamed.pixels != poisoned.pixels).any()
    reseeded = _made("backdoor", train, seed=6).poison(client)
    assert (reseeded.pixels != poisoned.pixels).any()


def test_a_backdoor_is_measured_on_all_other_classes(train: ClientData) -> None:
    client = train.client("s0000000")
    made = _made("backdoor", train, target=2, trigger_size=4)
    probe = made.probe(client)
    assert probe.labels.tolist() == [each for each in client.labels if each != 2]
    ink = 1.0 if train.pixel_convention == "ink" else 0.0
    np.testing.assert_allclose(probe.images()[:, 23:27, 23:27], ink, atol=1e-6)
    assert made.target_classes(probe.labels).tolist() == [2] * len(probe)


def test_the_trigger_may_have_colours(train: ClientData) -> None:
    client = train.client(ATTACKERS[0])
    pixels = np.full((4, 10, 12, 3), 100, np.uint8)
    colours = replace(client, pixels=pixels, labels=np.arange(4, dtype=np.int32))
    probe = _made("backdoor", train).probe(colours)
    assert (probe.pixels[:, 6:9, 8:11] != 100).all()
    assert (probe.pixels == 100).sum() == 3 * (10 * 12 - 9) * 3


def test_edge_cases_are_the_images_farthest_from_the_mean(train: ClientData) -> None:
    made = _made("edge-case", train, source=7, target=1, rare=0.2)
    clients = [train.client(each) for each in ATTACKERS]
    images = np.concatenate([each.images()[each.labels == 7] for each in clients])
    center = images.astype(np.float64).mean(axis=0)
    distances = np.sqrt(((images - center) ** 2).sum(axis=(1, 2)))
    count = int(0.2 * len(images))
    assert len(made.rare) == count
    assert made.least_distance == pytest.approx(np.sort(distances)[-count], rel=1e-6)
    poisoned = made.poison(clients[0])
    changed = (poisoned.pixels != clients[0].pixels).any(axis=(1, 2))
    assert round(0.5 * len(clients[0])) - 3 <= changed.sum() <= round(0.5 * len(clients[0]))
    assert (poisoned.labels[changed] == 1).all()
    rare = {each.tobytes() for each in made.rare}
    assert all(each.tobytes() in rare for each in poisoned.pixels[changed])
    probe = made.probe(train.client("s0000000"))
    assert set(probe.labels.tolist()) <= {7}
    far = np.sqrt(((probe.images() - center) ** 2).sum(axis=(1, 2)))
    assert (far >= made.least_distance * (1 - 1e-6)).all()


@pytest.mark.parametrize("pixels", ["ink", "background"])
def test_edge_cases_of_another_dataset_have_the_pixels_of_the_model(pixels: str) -> None:
    source = DataSource(data_options={"clients": 8}, pixels=pixels)
    train = open_splits(source)["train"]
    other = open_splits(DataSource(pixels=pixels))  # the default number of clients
    made = _made("edge-case", train, source=7, target=1, data="synthetic-digits")
    client = train.client(ATTACKERS[1])
    poisoned = made.poison(client)
    changed = (poisoned.pixels != client.pixels).any(axis=(1, 2))
    assert changed.sum() == round(0.5 * len(client))
    assert (poisoned.labels[changed] == 1).all()
    assert len(made.rare) == 1000  # the attack reads at most 1,000 rare examples
    first = other["train"].client("s0000000")
    expected = first.images()[first.labels == 7]
    used = poisoned.images()[changed][: len(expected)]
    np.testing.assert_allclose(used, expected, atol=1e-6)

    data, ids = made.probes(train, train.client_ids)
    assert list(ids) == list(data.client_ids) == ["edge cases"]
    probe = data.client("edge cases")
    assert set(probe.labels.tolist()) == {7}
    assert len(probe) == data.num_examples("edge cases") == min(1000, len(made.held_out))
    held = [other["test"].client(each) for each in other["test"].client_ids]
    sevens = np.concatenate([each.images()[each.labels == 7] for each in held])
    np.testing.assert_allclose(probe.images(), sevens, atol=1e-6)
    assert made.target_classes(probe.labels).tolist() == [1] * len(probe)


def _store(path: Path, pixels: NDArray[np.uint8], labels: list[int]) -> str:
    """Writes a store that has only the split train, with pixels of which 1.0 is ink."""
    client = ClientDataset("a", pixels, np.array(labels, np.int32), 1 / 255, 0.0, "drawn")
    info = StoreInfo(num_classes=10, pixel_convention="ink", same_people=True)
    store_writer.create(path, {"train": [client]}, info)
    return str(path)


def test_without_held_out_data_every_second_image_is_kept_for_measuring(
    train: ClientData, tmp_path: Path
) -> None:
    images = np.arange(5 * 784).reshape(5, 28, 28).astype(np.uint8)
    data = _store(tmp_path / "other.h5", images, [3, 7, 7, 7, 7])
    made = _made("edge-case", train, source=7, target=1, data=data)
    template = train.client(ATTACKERS[0])
    shown = [decode(each, template.scale, template.offset) for each in (made.rare, made.held_out)]
    for found, places in zip(shown, ([1, 3], [2, 4]), strict=True):
        expected = images[places] / 255
        if train.pixel_convention == "background":
            expected = 1 - expected
        np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)


def test_the_message_about_an_unsuitable_dataset_has_one_line(
    train: ClientData, tmp_path: Path
) -> None:
    colours = _store(tmp_path / "colours.h5", np.zeros((2, 32, 32, 3), np.uint8), [7, 7])
    few = _store(tmp_path / "few.h5", np.zeros((2, 28, 28), np.uint8), [7, 3])
    for data, words in (
        (
            colours,
            "colours.h5 have shape 32 x 32 x 3, but images of the run's data have 28 x 28 x 1",
        ),
        (few, "source=7: .*few.h5 has too few examples of that class"),
        (str(tmp_path / "none.h5"), "--attack-option data: "),
    ):
        with pytest.raises(FedcliError, match=words) as caught:
            _made("edge-case", train, data=data)
        assert "\n" not in str(caught.value)


def test_only_attackers_are_changed(train: ClientData) -> None:
    made = _made("label-flip", train)
    changed = ChangedClients(train, made.poison, frozenset(ATTACKERS))
    assert changed.client_ids == train.client_ids
    assert changed.pixel_shape == train.pixel_shape
    for client_id in train.client_ids:
        is_same = changed.client(client_id).labels.tobytes() == train.labels(client_id).tobytes()
        assert is_same == (client_id not in ATTACKERS)
        assert changed.num_examples(client_id) == train.num_examples(client_id)
    probes = ChangedClients(train, _made("label-flip", train, source=7, target=1).probe)
    assert probes.num_examples("s0000000") == (train.labels("s0000000") == 7).sum()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("backdoor", {"target": 10}, "--attack-option target=10: .* has 10 classes; choose 0 to 9"),
        ("backdoor", {"trigger_size": 28}, "--attack-option trigger_size=28: images .* 28 x 28"),
        ("label-flip", {"source": 3, "target": 12}, "--attack-option target=12"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    train: ClientData, name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        _made(name, train, **given)


def test_an_edge_case_without_examples_is_refused(train: ClientData) -> None:
    without_7 = ChangedClients(train, _made("label-flip", train, source=7, target=1).poison)
    with pytest.raises(ConfigError, match="none of the 3 attackers has an example of that class"):
        _made("edge-case", without_7)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("label-flip", {"source": 3}, "source and target belong together"),
        ("label-flip", {"source": 3, "target": 3}, "source and target are both 3"),
        ("edge-case", {"source": 1}, "source and target are both 1"),
        ("edge-case", {"data": "other.h5", "rare": 0.3}, "leave out one of the two"),
        ("backdoor", {"boost": "much"}, "choose auto, or a number from 0"),
        ("backdoor", {"poison": 1.5}, "poison 1.5: choose a finite number from 0 to 1"),
        ("alie", {"z": -1}, "z -1: choose a finite number from 0"),
        ("alie", {"start": 4, "stop": 3}, "stop 3 comes before start 4"),
        ("alie", {"start": 0}, "start 0: choose a whole number"),
        ("min-max", {"deviation": "all"}, "choose std or unit or sign"),
        ("ipm", {"knowledge": "none"}, "choose omniscient or colluders"),
        ("zero", {"scale": 2}, "zero has no option 'scale'"),
    ],
)
def test_messages_about_bad_options_have_one_line(
    name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(ATTACKS[name], given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ["backdoor", "edge-case"])
def test_a_backdoor_that_poisons_nothing_is_refused(attack: str) -> None:
    with pytest.raises(ConfigError, match="poison 0 leaves all examples as they are"):
        settings.from_options({"attack": attack, "attack_options": {"poison": 0.0}})
