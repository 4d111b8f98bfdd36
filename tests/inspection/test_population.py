"""Clients are read and counted; progress is reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.inspection import population
from fedcli.inspection.population import Task, choose_compared, mean_ink, read_populations


@pytest.fixture
def data() -> ClientData:
    return open_splits(DataSource("synthetic-digits", data_options={"clients": 6}))["train"]


def read(data: ClientData, ids: Sequence[str]) -> population.Population:
    compared = choose_compared(data, ids)
    task = Task(data=data, client_ids=ids, compared_ids=compared, needs_means=True)
    return read_populations({"train": task})["train"]


def test_all_clients_are_read_once(data: ClientData) -> None:
    told: list[tuple[int, int | None]] = []
    ids = data.client_ids
    task = Task(data=data, client_ids=ids, compared_ids=choose_compared(data, ids))
    found = read_populations({"train": task}, lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]
    assert found["train"].counts is found["train"].compared
    assert found["train"].means is None


def test_some_clients_are_compared_with_all(data: ClientData) -> None:
    everyone, some = read(data, data.client_ids), read(data, data.client_ids[1:3])
    assert list(some.counts.client_ids) == list(data.client_ids[1:3])
    assert some.counts.population is not None
    assert some.counts.population.tolist() == everyone.counts.class_totals.tolist()
    assert some.counts.skew.tv.tolist() == everyone.counts.skew.tv[1:3].tolist()
    assert some.means is not None
    assert everyone.means is not None
    assert some.means.image(3).tolist() == everyone.means.image(3).tolist()


def test_very_many_are_compared_with_the_same_draw(
    data: ClientData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "MAX_COMPARED", 5)
    monkeypatch.setattr(population, "NUM_DRAWN", 3)
    drawn = choose_compared(data, data.client_ids[:1])
    assert len(set(drawn)) == 3
    assert set(drawn) <= set(data.client_ids)
    assert choose_compared(data, data.client_ids[2:4]) == drawn
    assert choose_compared(data, data.client_ids) is data.client_ids


def test_ink_is_known_unless_it_is_quick(data: ClientData) -> None:
    counts = read(data, data.client_ids).counts
    assert counts.mean_ink is not None
    for client_id, ink in zip(data.client_ids, counts.mean_ink, strict=True):
        assert ink == pytest.approx(1 - data.client(client_id).images().mean(), abs=1e-5)
    task = Task(data=data, client_ids=data.client_ids, compared_ids=data.client_ids)
    assert read_populations({"train": task}, is_quick=True)["train"].counts.mean_ink is None


@pytest.mark.parametrize(
    ("pixels", "scale", "offset", "ink"),
    [
        (np.full((2, 1, 2), 255, np.uint8), 1 / 255, 0.0, 1.0),
        (np.array([[[0, 255]], [[0, 51]]], np.uint8), 1 / 255, 0.0, 0.3),
        (np.array([[[0.5, 0.25]]], np.float32), -1.0, 1.0, 0.625),
    ],
)
def test_mean_ink(pixels: np.ndarray, scale: float, offset: float, ink: float) -> None:
    client = ClientDataset("a", pixels, np.zeros(len(pixels), np.int32), scale, offset, "here")
    assert mean_ink(client, "ink") == pytest.approx(ink)
    assert mean_ink(client, "background") == pytest.approx(1 - ink)


def test_nobody_has_no_ink() -> None:
    pixels = np.empty((0, 2, 2), np.uint8)
    client = ClientDataset("a", pixels, np.empty(0, np.int32), 1 / 255, 0.0, "here")
    assert np.isnan(mean_ink(client, "ink"))
