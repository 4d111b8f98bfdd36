"""Users' own data: preprocess and two rounds of train accept each usual layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.command_line import Fedcli
from tests.kit.own_data import LAYOUTS, Replica, Wrong

RIGHT = [
    pytest.param(replica, id=f"{layout}: {name}")
    for layout, each in LAYOUTS.items()
    for name, replica in each.right.items()
]
WRONG = [
    pytest.param(wrong, id=f"{layout}: {name}")
    for layout, each in LAYOUTS.items()
    for name, wrong in each.wrong.items()
]


def source_of(tmp_path: Path, each: Replica | Wrong) -> Path:
    root = tmp_path / "own"
    root.mkdir()
    each.make(root)
    return root / each.source if each.source else root


def examples(prepared: dict[str, Any], *names: str) -> int:
    splits = prepared["splits"]
    return sum(int(splits[name]["num_examples"]) for name in names if name in splits)


def test_each_layout_has_five_variants_and_a_wrong_one() -> None:
    for layout, each in LAYOUTS.items():
        assert len(each.right) + len(each.wrong) >= 5, layout
        assert each.wrong, layout


@pytest.mark.parametrize("replica", RIGHT)
def test_what_people_have_is_read_and_trained(
    fedcli: Fedcli, tmp_path: Path, replica: Replica
) -> None:
    source = source_of(tmp_path, replica)
    before = sorted(source.parent.rglob("*"))
    looked = json.loads(
        fedcli("preprocess", str(source), "--dry-run", "--json", *replica.options).out
    )
    assert sorted(source.parent.rglob("*")) == before
    done = fedcli("preprocess", str(source), "--out", "own.h5", "--json", *replica.options)
    prepared = json.loads(done.out)
    assert examples(prepared, "train") == replica.train
    assert examples(prepared, "test", "central") == replica.test
    assert examples(prepared, "validation") == replica.validation
    assert prepared["num_classes"] == replica.classes
    assert looked["splits"]["train"]["num_clients"] == replica.clients
    if replica.clients:
        assert prepared["splits"]["train"]["num_clients"] == replica.clients
    assert looked["description"] == prepared["description"]
    assert prepared["description"]["splits"]["value"] in done.err
    data = ["--data", "own.h5", "--rounds", "2", "--eval-every", "1", "--batch-size", "2"]
    trained = json.loads(fedcli("train", *data, "--client-lr", "0.5", "--json").out)
    evaluation = trained["evaluation"]
    assert set(evaluation) == {"train"} | {
        name for name in prepared["splits"] if name in ("test", "central", "validation")
    }
    metrics = evaluation["train"]["client_work"]["eval"]["current_round_metrics"]
    assert metrics["sparse_categorical_accuracy"] > 1 / replica.classes


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_read_is_refused_in_one_line(
    fedcli: Fedcli, tmp_path: Path, wrong: Wrong
) -> None:
    source = source_of(tmp_path, wrong)
    done = fedcli("preprocess", str(source), "--out", "own.h5", *wrong.options)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
    for word in wrong.words:
        assert word in done.err
    assert not Path("own.h5").exists()
    assert not list(Path().glob(".fedcli-unpacked-*"))
