from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.command_line import Fedcli

SMALL = ("--data-option", "clients=8")


def test_inspect_clients_shows_a_partition(fedcli: Fedcli) -> None:
    shown = fedcli(
        *("inspect-clients", *SMALL, "--partition", "iid", "--partition-option", "clients=5"),
        "--json",
    )
    splits = json.loads(shown.out)["splits"]
    assert splits["train"]["num_clients"] == splits["test"]["num_clients"] == 5
    natural = json.loads(fedcli("inspect-clients", *SMALL, "--json").out)["splits"]
    for split in ("train", "test"):
        assert splits[split]["num_examples"] == natural[split]["num_examples"]


def test_train_and_eval_take_a_partition(fedcli: Fedcli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--partition", "shards+label-noise", "--partition-option", "clients=4")
    fedcli("train", *SMALL, *options, "--partition-option", "rate=0.5", "--rounds", "1",
           "--clients", "all", "--out", str(run))  # fmt: skip
    assert 'partition = "shards+label-noise"' in (run / "config.toml").read_text()
    evaluated = [
        json.loads(fedcli("eval", str(run), "--clients", "all", "--json", *more).out)["num_clients"]
        for more in ((), ("--partition", "natural"))
    ]
    assert evaluated == [4, 8]


@pytest.mark.parametrize("command", ["train", "inspect-clients"])
def test_a_wrong_partition_is_one_line(fedcli: Fedcli, command: str) -> None:
    told = fedcli(command, "--partition", "dirichlet")
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("fedcli: error: unknown --partition 'dirichlet'; choose one of ")
    assert told.err.count("\n") == 1


def test_info_tells_the_dirichlets_apart(fedcli: Fedcli) -> None:
    told = {
        name: " ".join(fedcli("info", name).out.split())
        for name in ("dirichlet-class", "dirichlet-client", "dirichlet-prior")
    }
    assert "over the clients" in told["dirichlet-class"]
    assert "over the classes" in told["dirichlet-client"]
    assert "Dir(alpha * p)" in told["dirichlet-prior"]
    angles = json.loads(fedcli("info", "feature-rotation", "--json").out)["partitions"][0]
    assert angles["options"][0]["default"] == [0.0, 90.0, 180.0, 270.0]
