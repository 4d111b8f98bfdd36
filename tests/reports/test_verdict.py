"""Which runs are marked as diverged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fedcli
from fedcli.reports.verdict import has_diverged, verdict
from fedcli.runs.record import load_run
from tests.kit.runs import write_run


def train(path: Path, **options: Any) -> Path:
    small = {"data": "synthetic-digits", "data_options": {"clients": 20}, "rounds": 3}
    fedcli.train(fedcli.RunConfig(**{**small, "eval_every": 1, **options}), out=path)
    return path


@pytest.mark.parametrize(
    ("model", "rate", "is_marked"),
    [
        ("mlp-2nn", 1.0, True),  # its units died: the loss falls to that of guessing, 2.3
        ("mlp-2nn", 10.0, True),
        ("softmax-regression", 100.0, False),  # its loss stays above 5,000, but it learns
        ("softmax-regression", 0.1, False),
    ],
)
def test_a_run_that_diverges_in_its_first_round_is_marked_unless_it_learns(
    tmp_path: Path, model: str, rate: float, *, is_marked: bool
) -> None:
    path = train(tmp_path / "run", model=model, client_lr=rate)
    run = load_run(path)
    first = run.series("online", "loss")[0][1]
    assert (first > 23.1) == (rate >= 1)  # 10 ln 10 is 23.03
    assert max(each for _, each in run.series("online", "loss")) == first  # it grows no further
    assert has_diverged(run) == is_marked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"client_dropout": 1.0}, "no client reported; choose a lower --client-dropout, now 1, or"),
        (
            {"client_speeds": (1e-3,), "deadline": 1e-3},
            "no client reported in time; choose a longer --deadline",
        ),
    ],
)
def test_a_run_to_which_no_client_reports_says_so(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    run = load_run(train(tmp_path / "run", **options))
    found = verdict(run.metrics, run.evaluation, run.config)
    assert found is not None
    assert found.startswith(f"none of 3 rounds changed the model: {words}")


def test_without_a_checkpoint_the_number_of_classes_is_unknown(tmp_path: Path) -> None:
    path = train(tmp_path / "run", model="mlp-2nn", client_lr=1.0)
    assert load_run(path).num_classes == 10
    shutil.rmtree(path / "checkpoints")
    (path / "checkpoints").mkdir()
    run = load_run(path)
    assert run.num_classes is None
    assert not has_diverged(run)


def test_a_loss_that_grows_tenfold_is_marked_without_a_checkpoint(tmp_path: Path) -> None:
    for loss, is_marked in ((4.9, False), (5.1, True)):
        path = write_run(tmp_path / f"{loss}", [0.5, 0.5])
        lines = [json.loads(each) for each in (path / "metrics.jsonl").read_text().splitlines()]
        lines[1]["client_work"]["train"]["loss"] = loss
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
        assert has_diverged(load_run(path)) == is_marked


def skipped_line(round_num: int, *, by_reports: bool) -> dict[str, Any]:
    """A line of a round whose clients were too few for --min-reports, or for the aggregator."""
    names = ("loss", "sparse_categorical_accuracy", "num_examples", "num_batches")
    train = {**dict.fromkeys(names, 0), "num_non_finite_clients": 0}
    return {
        "round": round_num,
        "client_work": {"train": train},
        "participation": {"num_reports": 1, "is_skipped": int(by_reports)},
        "aggregator": {"skipped": 1},  # without reports the aggregator gets no deltas, either
        "finalizer": {"update_non_finite": 1},
    }


def test_skipped_rounds_are_explained_by_their_own_reasons() -> None:
    config = fedcli.RunConfig(aggregator="krum", min_reports=3)
    too_few = "fewer clients reported than --min-reports 3 requires"
    untrusted = "--aggregator krum got too few valid updates, or trusted none"
    by_reports = [skipped_line(each, by_reports=True) for each in (1, 2)]
    by_aggregator = [skipped_line(each, by_reports=False) for each in (3, 4, 5)]
    assert verdict(by_reports, None, config) == (
        f"none of 2 rounds changed the model: {too_few}; choose a smaller number, or more --clients"
    )
    assert verdict(by_aggregator, None, config) == (
        f"none of 3 rounds changed the model: {untrusted}; choose more --clients, or another "
        "aggregator"
    )
    assert verdict(by_reports[:1] + by_aggregator, None, config) == (
        f"none of 4 rounds changed the model: in 3 rounds {untrusted}, and in 1 round {too_few}; "
        "choose more --clients, or another aggregator"
    )
