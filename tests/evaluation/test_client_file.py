from __future__ import annotations

import csv
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedcli.errors import ConfigError
from fedcli.evaluation import client_file
from tests.kit.command_line import Fedcli

STATS = np.array(
    [(3.0, 1, 4, 2), (0.0, 0, 0, 0)],
    dtype=[
        ("loss_sum", "f8"),
        ("num_correct", "i8"),
        ("num_examples", "i8"),
        ("num_batches", "i8"),
    ],
)


def test_csv_has_a_line_a_client(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    client_file.write(file, ["x,y", "z"], STATS)
    assert file.read_text().splitlines() == [
        "client,num_examples,num_batches,sparse_categorical_accuracy,loss",
        '"x,y",4,2,0.25,0.75',
        "z,0,0,,",
    ]


def test_hdf5_has_a_column_a_measure(tmp_path: Path) -> None:
    client_file.write(tmp_path / "a.h5", ["x", "z"], STATS)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["client_ids"].asstr()[()].tolist() == ["x", "z"]
        assert file["num_examples"][()].tolist() == [4, 0]
        assert file["loss"][0] == 0.75
        assert math.isnan(file["sparse_categorical_accuracy"][1])


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv, \.h5"):
        client_file.write(tmp_path / "a.txt", [], STATS[:0])


def test_eval_writes_all_clients(fedcli: Fedcli, tmp_path: Path) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    done = fedcli("eval", "run", "--clients", "all", "--per-client", "all.csv")
    assert done.code == 0
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert len(rows) == 200
    told = float(np.mean([float(row["sparse_categorical_accuracy"]) for row in rows]))
    assert f"{told:.4f}" in done.out
    assert fedcli("eval", "run", "--per-client", "x.txt").code == 1
