"""Descriptions of sources: every importer makes one, and a store keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.description import Finding, SourceDescription, from_json
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.preparing import interpret, prepare
from fedcli.datasets.sources import store, store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import DataError
from tests.kit import own_data

DESCRIPTION = SourceDescription(
    source="photos",
    format=Finding("images", "by content", "--format"),
    splits=Finding("train 3 examples", "one folder", "--splits"),
    owners=Finding("none", "none are named", "--folders"),
    classes=Finding("2 (a, b)", "names of folders", "--folders"),
    shape=Finding("8 x 8", "the same in all files", "--size"),
    channels=Finding("1, grey", "the same as in the first file", "--color"),
    range=Finding("0 to 255", "the files have 8 bits"),
    polarity=Finding("1.0 is ink", "7 % of the border pixels are light", "--polarity"),
)


def test_json_and_back() -> None:
    text = json.dumps(DESCRIPTION.to_json())
    assert from_json(text, "here") == DESCRIPTION
    lines = DESCRIPTION.lines()
    assert lines[0] == "photos is read as format: images: by content [--format]"
    assert lines[6] == "range: 0 to 255: the files have 8 bits"
    assert len(lines) == 8


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"source": "x"}', '{"source": "x", "format": {"value": 3}}']
)
def test_no_description(text: str) -> None:
    with pytest.raises(DataError, match="here: attribute description is not in fedcli's form"):
        from_json(text, "here")


def write(path: Path, info: StoreInfo) -> str:
    pixels = np.zeros((2, 4, 4), np.uint8)
    client = ClientDataset("a", pixels, np.array([0, 1], np.int32), 1 / 255, 0.0, "drawn")
    return store_writer.create(path, {"train": [client]}, info)


def test_a_store_keeps_the_description_and_needs_none(tmp_path: Path) -> None:
    info = StoreInfo(num_classes=2, pixel_convention="ink")
    without = write(tmp_path / "a.h5", info)
    told = replace(info, description=DESCRIPTION)
    assert write(tmp_path / "b.h5", told) == without  # the fingerprint covers only the data
    assert store.read_info(tmp_path / "b.h5") == told
    assert store.read_info(tmp_path / "a.h5").description is None
    assert store.verify(tmp_path / "a.h5") == store.verify(tmp_path / "b.h5") == without
    with h5py.File(tmp_path / "a.h5") as file:
        assert "description" not in file.attrs
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        text = file.attrs["description"]
        file.attrs["description"] = text.replace(b"8 x 8", b"9 x 9")
    with pytest.raises(DataError, match="are not those it was written with"):
        store.verify(tmp_path / "b.h5")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_interpret_gives_the_description_that_prepare_stores(tmp_path: Path, split: str) -> None:
    source = tmp_path / "photos"
    own_data.splits("Training", "Valid", "Testing")(source)
    seen = interpret([source], PrepareOptions())
    assert seen.num_examples == {"train": 12, "test": 6, "validation": 6}
    assert list(tmp_path.iterdir()) == [source]
    prepared = prepare([source], tmp_path / "out.h5", PrepareOptions())
    assert prepared.description == seen.description
    kept = prepared.info.description
    assert kept == replace(seen.description, source="photos")
    assert "Valid is validation" in seen.description.splits.evidence
    again = prepare([tmp_path / "out.h5"], tmp_path / "again.h5", PrepareOptions())
    assert again.info.description == kept
    assert again.description.format.value == "store"


@pytest.mark.parametrize("layout", own_data.LAYOUTS)
def test_every_finding_has_evidence(tmp_path: Path, layout: str) -> None:
    for number, replica in enumerate(own_data.LAYOUTS[layout].right.values()):
        if replica.options:
            continue
        root = tmp_path / str(number)
        root.mkdir()
        replica.make(root)
        description = interpret([root / replica.source], PrepareOptions()).description
        for name, finding in description.findings().items():
            assert finding.value, name
            assert finding.evidence, name
