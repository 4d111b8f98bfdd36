"""The clients that took part in a run, computed from its seed and read from its records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.federation import participation
from fedcli.runs import evaluating, starting
from fedcli.runs.files import client_records
from fedcli.settings.run_config import RunConfig
from tests.kit.command_line import Fedcli
from tests.kit.stores import write_counted_store
from tests.kit.training import train

UNIFORM: dict[str, Any] = {
    "data_options": {"clients": 30},
    "clients": "4",
    "sampling": "uniform",
    "rounds": 4,
    "epochs": 1,
    "threads": 2,
}
PARTICIPATION: dict[str, dict[str, Any]] = {
    "uniform": {},
    "fixed": {"sampling": "fixed"},
    "tff": {"sampling": "tff"},
    "with-replacement": {"sampling": "with-replacement"},
    "poisson": {"sampling": "poisson"},
    "cyclic": {"sampling": "cyclic", "rounds": 9},  # all clients take part
    "by-size": {"sampling": "by-size"},
    "drop-outs": {"client_dropout": 0.5, "min_reports": 2, "rounds": 7},
    "fixed with drop-outs": {"sampling": "fixed", "client_dropout": 0.7, "rounds": 2},
    "late": {"client_speeds": (5.0, 50.0), "deadline": 4.0, "over_selection": 0.5},
}


def _train(path: Path, **options: Any) -> dict[str, Any]:
    return train(path, RunConfig(**{**UNIFORM, **options}))


@pytest.mark.parametrize("options", PARTICIPATION.values(), ids=PARTICIPATION.keys())
def test_seen_clients_are_those_of_the_records(tmp_path: Path, options: dict[str, Any]) -> None:
    closing = _train(tmp_path / "run", **options, record_clients=True)
    records = client_records.load(tmp_path / "run")
    reported = records.rows["outcome"] == client_records.OUTCOMES.index(participation.REPORTED)
    wanted = {records.client_ids[index] for index in records.rows["client"][reported].tolist()}
    found = evaluating.evaluate_run(tmp_path / "run", clients="all")
    assert found.is_seen is not None
    rows = zip(found.client_ids, found.is_seen, strict=True)
    assert {client_id for client_id, is_seen in rows if is_seen} == wanted
    assert 0 < len(wanted) <= 30
    metrics = evaluating.evaluate_run(tmp_path / "run").metrics
    assert metrics == closing["test"]
    if metrics["num_clients"] == 30:
        assert metrics["num_seen_clients"] == len(wanted)


def test_seen_and_unseen_clients_are_all_clients(fedcli: Fedcli, tmp_path: Path) -> None:
    _train(tmp_path / "run")
    command = ("eval", "run", "--finetune", 2, "--json", "--clients")
    whole = json.loads(fedcli(*command, "all", "--per-client", "all.csv").out)
    assert (whole["seen"]["num_clients"], whole["unseen"]["num_clients"]) == (
        whole["num_seen_clients"],
        30 - whole["num_seen_clients"],
    )
    for group, other in (("seen", "unseen"), ("unseen", "seen")):
        alone = json.loads(fedcli(*command, group).out)
        assert alone["client_work"]["eval"]["current_round_metrics"] == whole[group]["metrics"]
        assert alone["over_clients"] == whole[group]["over_clients"]
        assert alone["num_seen_clients"] == (alone["num_clients"] if group == "seen" else 0)
        assert other not in alone
        tuned = whole["fine_tuned"][group]
        assert {name: alone["fine_tuned"][name] for name in tuned} == tuned
    parts = [whole[group]["metrics"] for group in ("seen", "unseen")]
    total = sum(part["loss"] * part["num_examples"] for part in parts)
    scores = whole["client_work"]["eval"]["current_round_metrics"]
    assert total / scores["num_examples"] == pytest.approx(scores["loss"])
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert sum(int(row["is_seen"]) for row in rows) == whole["num_seen_clients"]
    table = fedcli("eval", "run", "--clients", "all").out
    assert "test, unseen" in table
    header = table.splitlines()[1].split()
    assert header[-2:] == ["clients", "seen"]
    for group in ("seen", "unseen"):
        assert "seen" not in fedcli("eval", "run", "--clients", group).out.splitlines()[1].split()
    closing = fedcli("report", "run").out
    assert "test, unseen" in closing
    assert f"{whole['unseen']['metrics']['loss']:.4f}" in closing


def test_before_the_first_round_nobody_is_seen(tmp_path: Path) -> None:
    first = tmp_path / "run"
    with starting.start(RunConfig(**UNIFORM), first):
        pass
    metrics = evaluating.evaluate_run(first, clients="all").metrics
    assert (metrics["num_seen_clients"], metrics["num_clients"]) == (0, 30)
    assert "seen" not in metrics
    with pytest.raises(ConfigError, match=r"clients=seen: the split test .* among its 30"):
        evaluating.evaluate_run(first, clients="seen")


def test_clients_held_out_are_unseen(fedcli: Fedcli, tmp_path: Path) -> None:
    source = write_counted_store(
        tmp_path / "all.h5", train={f"c{each:02}": 20 for each in range(20)}
    )
    hold_out = ("--hold-out", "clients", "--out", "held.h5", "-q")
    assert fedcli("preprocess", source, *hold_out).code == 0
    train = ("--data", "held.h5", "--clients", "all", "--rounds", 1, "--out", "run", "-q")
    assert fedcli("train", *train).code == 0
    metrics = json.loads(fedcli("eval", "run", "--clients", "unseen", "--json").out)
    assert (metrics["num_clients"], metrics["num_seen_clients"]) == (2, 0)
    assert fedcli("eval", "run", "--clients", "seen").code == 1
    done = fedcli("eval", "run", "--finetune", 3)
    assert done.code == 1
    assert "no chosen client of the split test is in the train split" in done.err


def test_other_people_of_the_same_name_are_unseen(tmp_path: Path) -> None:
    for is_same, num_seen in ((True, 2), (False, 0)):
        clients = {"a": 20, "b": 20}
        data = write_counted_store(
            tmp_path / f"{is_same}.h5", same_people=is_same, train=clients, test={**clients, "c": 5}
        )
        run = tmp_path / f"run-{is_same}"
        _train(run, data=str(data), data_options={}, clients="2", sampling="fixed", rounds=1)
        metrics = evaluating.evaluate_run(run, clients="all").metrics
        assert metrics["num_seen_clients"] == num_seen
        metrics = evaluating.evaluate_run(run, clients="all", split="train").metrics
        assert metrics["num_seen_clients"] == 2
        # Label noise keeps the owners, so equal names may still be different people. (After a
        # partition that redistributes examples, clients of the same name are the same.)
        noisy = {"partition": "label-noise", "partition_options": {"rate": 0.1}}
        run = tmp_path / f"noisy-{is_same}"
        _train(
            run, data=str(data), data_options={}, clients="2", sampling="fixed", rounds=1, **noisy
        )
        assert evaluating.evaluate_run(run, clients="all").metrics["num_seen_clients"] == num_seen


def test_a_client_may_be_named_seen(fedcli: Fedcli, tmp_path: Path) -> None:
    data = write_counted_store(tmp_path / "a.h5", train={"a": 20, "seen": 20, "z": 20})
    train = ("--data", data, "--clients", "a,z", "--rounds", 1, "--out", "run", "-q")
    assert fedcli("train", *train).code == 0
    command = ("eval", "run", "--json", "--per-client", "c.csv", "--clients")
    for clients, ids in (("seen", ["a", "z"]), ("unseen", ["seen"]), ("seen,", ["seen"])):
        assert fedcli(*command, clients).code == 0
        rows = csv.DictReader((tmp_path / "c.csv").read_text().splitlines())
        assert [row["client"] for row in rows] == ids


def test_seen_clients_of_other_data_are_not_known(tmp_path: Path) -> None:
    _train(tmp_path / "run")
    for other in ({"data": "synthetic-digits"}, {"data_options": {"seed": 5}}):
        found = evaluating.evaluate_run(tmp_path / "run", clients="all", **other)
        assert found.is_seen is None
        assert "num_seen_clients" not in found.metrics
        with pytest.raises(ConfigError, match="for the run's own data"):
            evaluating.evaluate_run(tmp_path / "run", clients="unseen", **other)


def test_seen_clients_of_data_that_have_shrunk_are_not_known(tmp_path: Path) -> None:
    data = write_counted_store(tmp_path / "a.h5", train={"a": 20, "b": 20, "c": 20})
    options = {"data": str(data), "data_options": {}, "clients": "3", "sampling": "fixed"}
    _train(tmp_path / "run", **options, rounds=1)
    write_counted_store(data, train={"a": 20, "b": 20})
    found = evaluating.evaluate_run(tmp_path / "run", clients="all")
    assert found.is_seen is None
    assert "has changed" in found.notes[0]


def test_seen_clients_of_data_that_have_grown_are_not_known(tmp_path: Path) -> None:
    """Once the data have one more client, the seed no longer draws the clients that trained."""
    before = {f"c{each:02}": 20 for each in range(12)}
    data = write_counted_store(tmp_path / "a.h5", train=before)
    options = {**UNIFORM, "data": str(data), "data_options": {}, "rounds": 2}
    run = tmp_path / "run"
    with starting.start(RunConfig(**options), run) as training:
        next(training.run())
    assert evaluating.evaluate_run(run, clients="seen").num_clients == 4
    write_counted_store(data, train={"b": 20, **before})
    found = evaluating.evaluate_run(run, clients="all")
    assert found.is_seen is None
    assert "has changed" in found.notes[0]
    for group in ("seen", "unseen"):
        with pytest.raises(ConfigError, match="for the run's own data, unchanged since"):
            evaluating.evaluate_run(run, clients=group)
    with starting.resume(run) as training:
        closing = training.complete()
    assert "num_seen_clients" not in closing["train"]
    assert "has changed" in training.notes[-1]
