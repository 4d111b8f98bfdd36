"""MATLAB's vectors with the labels of numbered images."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from fedcli.datasets.importers.picture_mats import read_tables


def test_numbers_keep_all_of_their_digits(tmp_path: Path) -> None:
    file = tmp_path / "people.mat"
    vectors = {
        "person": np.array([10_000_001, 10_000_002, 10_000_002]),
        "class": np.array([1.0, 2.0, 1.0]),
        "angle": np.array([0.5, np.nan, 0.25]),
        "trnid": np.array([1.0, np.inf]),
    }
    with h5py.File(file, "w", userblock_size=512) as made:
        for name, values in vectors.items():
            made[name] = values[:, np.newaxis]
    with file.open("r+b") as start:
        start.write(b"MATLAB 7.3 MAT-file")
    (table,) = read_tables([file], [Path(f"image_{number}.jpg") for number in (3, 1, 2)])
    assert sorted(table.columns) == ["class", "file", "person"]
    place = {name: index for index, name in enumerate(table.columns)}
    fields = [fields for _, fields in table.rows]
    assert [each[place["file"]] for each in fields] == [f"image_{n}.jpg" for n in (1, 2, 3)]
    assert [each[place["person"]] for each in fields] == ["10000001", "10000002", "10000002"]
    assert [each[place["class"]] for each in fields] == ["1", "2", "1"]
