from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import ConfigError, RunError
from fedcli.runs import evaluating, starting
from fedcli.runs.files import folder
from fedcli.runs.stopping import Best
from fedcli.runs.trained import export_run
from tests.kit.command_line import Fedcli
from tests.kit.training import make_config, results, resume_to_end, train, train_rounds

NAN = float("nan")


def lines(*values: float | None, split: str = "test", name: str = "loss") -> list[dict[str, Any]]:
    return [
        {"round": number, "evaluation": {"train": {name: -number}, split: {name: value}}}
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "lowest", "highest"),
    [
        ((), None, None),
        ((None, NAN), None, None),
        ((0.5,), 0, 0),
        ((0.5, 0.5, 0.4, 0.4), 2, 0),
        ((None, 0.2, NAN, 0.1, 0.3), 3, 4),
        ((0.0, 0.1), 0, 1),
    ],
)
def test_of_equal_rounds_the_first_is_the_best(
    values: tuple[float | None, ...], lowest: int | None, highest: int | None
) -> None:
    assert Best("loss").after_all(lines(*values)).round_num == lowest
    accuracies = lines(*values, name="sparse_categorical_accuracy")
    assert Best("accuracy").after_all(accuracies).round_num == highest


def test_held_out_data_choose_the_best_round() -> None:
    for split in ("test", "central"):
        assert Best("loss").after_all(lines(0.1, 0.2, split=split)).round_num == 0
    # Without test and central, the split train decides.
    assert Best("loss").after_all(lines(0.1, 0.2, split="other")).round_num == 1
    assert Best("loss").after({"round": 1}).round_num is None


# Accuracy and loss jump from round to round, so the best round is neither the first nor the last.
JUMPY: dict[str, Any] = {
    **{"clients": "2", "client_lr": 1.0, "pixels": "ink", "eval_every": 1, "rounds": 9},
    "keep_checkpoints": 1,
}


@pytest.fixture(scope="module", params=["accuracy", "loss"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("best") / "run"
    train(path, make_config(**JUMPY, keep_best=request.param))
    return path


def best_of(path: Path) -> int:
    """Returns the best round, found anew from the test accuracies or losses in metrics.jsonl."""
    measure = folder.read_config(path)["keep_best"]
    name = {"accuracy": "sparse_categorical_accuracy", "loss": "loss"}[measure]
    values = [line["evaluation"]["test"][name] for line in folder.read_metrics(path)]
    return values.index(max(values) if measure == "accuracy" else min(values))


def test_the_best_stays_beside_the_newest(run: Path) -> None:
    best = best_of(run)
    assert 0 < best < 9
    assert folder.checkpoint_rounds(run) == [best, 9]
    assert folder.best_checkpoint(run).name == f"round-{best:06d}.h5"


def test_a_resumed_run_keeps_the_same(run: Path, tmp_path: Path) -> None:
    measure = folder.read_config(run)["keep_best"]
    config = make_config(**JUMPY, keep_best=measure)
    for stop in (1, best_of(run), best_of(run) + 1):
        out = tmp_path / f"{stop}"
        train_rounds(out, config, stop + 1)
        assert folder.best_checkpoint(out).exists()
        resume_to_end(out)
        assert folder.checkpoint_rounds(out) == folder.checkpoint_rounds(run)
        assert results(out) == results(run)


def test_the_best_is_evaluated_and_exported(fedcli: Fedcli, run: Path, tmp_path: Path) -> None:
    best = best_of(run)
    line = folder.read_metrics(run)[best]
    told = json.loads(fedcli("eval", run, "--best", "--json").out)
    assert told["round"] == best
    measured = told["client_work"]["eval"]["current_round_metrics"]
    assert measured == line["evaluation"]["test"]
    assert fedcli("export", run, "best.npz", "--best").code == 0
    export_run(folder.best_checkpoint(run), tmp_path / "same.npz")
    assert (tmp_path / "best.npz").read_bytes() == (tmp_path / "same.npz").read_bytes()


def test_a_run_without_a_best_round_is_refused(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain", make_config(eval_every=1))
    with pytest.raises(RunError, match=r"keeps no best round; train with --keep-best"):
        folder.best_checkpoint(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"best=True: .* is a single checkpoint; give the folder"):
        evaluating.evaluate_run(folder.latest_checkpoint(run), best=True)
    starting.start(make_config(**JUMPY, keep_best="loss"), tmp_path / "new").close()
    with pytest.raises(RunError, match="no evaluation yet"):
        folder.best_checkpoint(tmp_path / "new")
    with pytest.raises(RunError, match="there is no run"):
        folder.best_checkpoint(tmp_path / "none")
    with pytest.raises(ConfigError, match="--keep-best loss needs evaluations"):
        make_config(keep_best="loss")
    with pytest.raises(ConfigError, match="choose one of loss, accuracy"):
        make_config(keep_best="f1", eval_every=1)
    with pytest.raises(ConfigError, match="--keep-checkpoints 0"):
        make_config(keep_checkpoints=0)
