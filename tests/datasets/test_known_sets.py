"""The most common image sets: replicas are preprocessed and trained for two rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcli.cli.help import MANUAL
from tests.kit.command_line import Fedcli
from tests.kit.known_sets import EXTRAS, KNOWN, REFUSED
from tests.kit.own_data import Replica, Wrong

TRAINING = "--rounds 2 --batch-size 2 --client-lr 0.5 --json"


def source_of(tmp_path: Path, name: str, each: Replica | Wrong) -> Path:
    for module, names in EXTRAS.items():
        if name in names:
            pytest.importorskip(module)
    root = tmp_path / "own"
    root.mkdir()
    each.make(root)
    return root / each.source if each.source else root


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_set_is_read_and_trained(fedcli: Fedcli, tmp_path: Path, name: str) -> None:
    replica = KNOWN[name]
    source = source_of(tmp_path, name, replica)
    done = fedcli("preprocess", source, "--out", "own.h5", "--json", *replica.options)
    assert done.code == 0, done.err
    prepared = json.loads(done.out)
    counts = {split: each["num_examples"] for split, each in prepared["splits"].items()}
    expected = {"train": replica.train, "test": replica.test, "validation": replica.validation}
    if "central" in counts:
        counts["test"] = counts.pop("central")
    assert counts == {split: count for split, count in expected.items() if count}, done.err
    assert prepared["num_classes"] == replica.classes
    if replica.clients:
        assert prepared["splits"]["train"]["num_clients"] == replica.clients
    else:
        assert "the source names no owners" in done.err
    trained = fedcli("train", "--data", "own.h5", *TRAINING.split())
    assert trained.code == 0, trained.err
    evaluation = json.loads(trained.out)["evaluation"]
    metrics = evaluation["train"]["client_work"]["eval"]["current_round_metrics"]
    assert metrics["sparse_categorical_accuracy"] > 1 / replica.classes


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_than_image_sets_are_refused_in_one_line(
    fedcli: Fedcli, tmp_path: Path, name: str
) -> None:
    wrong = REFUSED[name]
    source = source_of(tmp_path, name, wrong)
    done = fedcli("preprocess", source, "--out", "own.h5", *wrong.options)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
    for word in wrong.words:
        assert word in done.err
    assert not Path("own.h5").exists()


def test_the_manual_lists_them() -> None:
    page = (MANUAL / "known-sets.md").read_text()
    missing = [name for name in (*KNOWN, *REFUSED) if f"| {name} |" not in page]
    assert not missing
