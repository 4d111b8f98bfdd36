from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.runs import starting
from fedcli.runs.stopping import Progress, progress_for
from fedcli.settings.values import parse_target
from tests.kit.training import figures, make_config, results, resume_to_end, train, train_rounds


def curve(*accuracies: float | None, split: str = "test") -> list[dict[str, Any]]:
    """Returns metrics lines in which rounds 0, 2, 4, ... are evaluated."""
    lines: list[dict[str, Any]] = []
    for index, accuracy in enumerate(accuracies):
        scores = {split: {"sparse_categorical_accuracy": accuracy}}
        lines += [{"round": 2 * index, "evaluation": scores}, {"round": 2 * index + 1}]
    return lines


def test_the_target_is_reached_at_its_first_crossing() -> None:
    progress = Progress(target=0.5).after_all(curve(0.1, 0.4, 0.5, 0.3, 0.9))
    assert (progress.target_round, progress.is_over) == (4, True)
    assert progress.reason() == "test accuracy reached 0.5"
    assert (progress.best.value, progress.best.round_num) == (0.9, 8)
    assert Progress(target=0.5).after_all(curve(0.1, 0.49)).is_over is False


def test_patience_counts_evaluations_without_a_better_one() -> None:
    progress = Progress(patience=2)
    ends = []
    for line in curve(0.1, 0.4, 0.4, 0.41, None, 0.41):
        progress = progress.after(line)
        ends.append(progress.is_over)
    assert ends.index(True) == 10
    assert progress.reason() == "no better test accuracy in 2 evaluations in a row"


def test_held_out_data_decide_where_there_are_some() -> None:
    both = {
        "train": {"sparse_categorical_accuracy": 0.9},
        "central": {"sparse_categorical_accuracy": 0.2},
    }
    line = {"round": 1, "evaluation": both}
    assert Progress(target=0.5).after(line).split == "central"
    assert Progress(target=0.5).after(line).target_round is None
    assert Progress(target=0.5).after_all(curve(0.6, split="train")).target_round == 0


def test_test_data_choose_nothing_where_there_are_validation_data() -> None:
    scores = {"train": 0.9, "validation": 0.3, "test": 0.8, "central": 0.7}
    evaluation = {name: {"sparse_categorical_accuracy": value} for name, value in scores.items()}
    progress = Progress(target=0.5).after({"round": 1, "evaluation": evaluation})
    assert (progress.split, progress.best.value) == ("validation", 0.3)
    assert progress.target_round is None
    del evaluation["validation"]
    assert Progress(target=0.5).after({"round": 1, "evaluation": evaluation}).split == "test"


def lines_of(name: str, *values: float | None) -> list[dict[str, Any]]:
    """Returns metrics lines of rounds 0, 1, 2, ... with a metric and a constant accuracy."""
    return [
        {
            "round": index,
            "evaluation": {"test": {"sparse_categorical_accuracy": 0.5, name: value}},
        }
        for index, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("target", "values", "reached"),
    [
        ("macro_f1=0.5", (0.1, None, 0.5, 0.9), 2),
        ("auc=0.9", (0.1, 0.2), None),
        ("ece=0.1", (0.5, 0.2, 0.09, 0.3), 2),
        ("ece=0.1", (0.5, 0.2, 0.10), 2),
        ("loss=1.5", (2.3, float("nan"), 1.4), 2),
    ],
)
def test_a_target_may_be_of_another_metric(
    target: str, values: tuple[float | None, ...], reached: int | None
) -> None:
    progress = progress_for(target, None)
    assert progress is not None
    name = target.partition("=")[0]
    progress = progress.after_all(lines_of(name, *values))
    assert progress.target_round == reached
    told = progress.summary()
    assert told[f"target_{name}"] == float(target.partition("=")[2])
    known = [value for value in values if value is not None and value == value]
    assert told[f"best_{name}"] == (min if name in ("ece", "loss") else max)(known)
    if reached is not None:
        assert (
            progress.reason() == f"test {target.replace('=', ' reached ').replace('0.10', '0.1')}"
        )


def test_patience_watches_the_metric_that_is_monitored() -> None:
    lines = lines_of("ece", 0.5, 0.4, 0.45, None, 0.39, 0.4, 0.4, 0.39)
    progress = progress_for("accuracy=0.9", 3, "ece")
    assert progress is not None
    ends = [progress.after_all(lines[: end + 1]).is_over for end in range(len(lines))]
    assert ends.index(True) == 7
    reason = progress.after_all(lines).reason()
    assert reason == "no better test ece in 3 evaluations in a row"
    assert progress_for(None, 3) == Progress(patience=3)


def test_a_line_without_the_metric_decides_nothing() -> None:
    """A resumed run that watches another metric has such lines."""
    progress = progress_for("auc=0.5", None)
    assert progress is not None
    assert progress.after_all(curve(0.9)).target_round is None


def test_metrics_that_stop_or_choose_are_computed() -> None:
    config = settings.from_options(
        {
            **{"eval_every": 1, "stop_at": "macro_f1=0.9", "patience": 2, "monitor": "ece"},
            **{"keep_best": "auc", "metrics": ["balanced_accuracy"]},
        }
    )
    assert config.metrics == ("macro_f1", "balanced_accuracy", "auc", "ece")
    usual = {"eval_every": 1, "stop_at": "loss=0.9", "patience": 2, "keep_best": "accuracy"}
    assert settings.from_options(usual).metrics is None


def test_nan_reaches_and_betters_nothing() -> None:
    progress = Progress(target=0.1, patience=9).after_all(curve(float("nan"), None))
    assert progress.best.value is None
    assert (progress.target_round, progress.num_without_gain) == (None, 2)


@pytest.mark.parametrize("text", ["accuracy=0.97", " accuracy = .97", "accuracy=9.7e-1"])
def test_a_target_has_one_spelling(text: str) -> None:
    assert parse_target("--stop-at", text) == "accuracy=0.97"
    progress = progress_for("accuracy=0.97", None)
    assert progress is not None
    assert progress.target == 0.97
    assert progress_for(None, None) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop_at": "0.97"}, "--stop-at '0.97': give accuracy=X, as in accuracy=0.97"),
        ({"stop_at": "speed=0.1"}, "--stop-at 'speed=0.1': give accuracy=X.*macro_f1"),
        ({"stop_at": "auc=1.5"}, "--stop-at auc 1.5: choose a finite number from 1e-09 to 1"),
        ({"stop_at": "loss=0"}, "--stop-at loss 0.0"),
        ({"stop_at": "loss=low"}, "--stop-at loss=low: choose a number above 0"),
        ({"stop_at": "accuracy=high"}, "--stop-at accuracy=high: choose a share above 0"),
        ({"stop_at": "accuracy=97"}, r"--stop-at accuracy 97.0: choose .* from 1e-09 to 1"),
        ({"stop_at": "accuracy=nan"}, "--stop-at accuracy nan"),
        ({"stop_at": "accuracy=0"}, "--stop-at accuracy 0.0"),
        ({"patience": 0}, "--patience 0: choose a whole number from 1"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.from_options({**values, "eval_every": 1})


@pytest.mark.parametrize(
    ("values", "option"),
    [({"stop_at": "accuracy=0.9"}, "--stop-at accuracy=0.9"), ({"patience": 3}, "--patience 3")],
)
def test_stopping_needs_evaluations(values: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} needs evaluations; .* --eval-every 1"):
        settings.from_options(values)


def make(**values: Any) -> settings.RunConfig:
    return make_config(rounds=8, eval_every=1, client_lr=0.1, pixels="ink", clients="all", **values)


def accuracies(path: Path) -> list[float]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line["evaluation"]["test"]["sparse_categorical_accuracy"] for line in lines]


def target_in_between(path: Path) -> tuple[str, int]:
    """Returns a target that a run of eight rounds reaches midway, and the round."""
    train(path, make())
    found = accuracies(path)
    round_num = next(each for each in range(3, 8) if found[each] > max(found[:each]))
    return f"accuracy={found[round_num]!r}", round_num


def test_a_run_stops_at_its_target_as_a_shorter_run_would(tmp_path: Path) -> None:
    target, round_num = target_in_between(tmp_path / "whole")
    train(tmp_path / "run", make(stop_at=target))
    train(tmp_path / "short", replace(make(), rounds=round_num))
    assert figures(tmp_path / "run") == figures(tmp_path / "short")


@pytest.mark.parametrize("num_rounds", [0, 1, 2, 3])
def test_an_interrupted_run_stops_where_the_straight_one_stops(
    tmp_path: Path, num_rounds: int
) -> None:
    target, _ = target_in_between(tmp_path / "whole")
    config = make(stop_at=target, patience=5)
    train(tmp_path / "straight", config)
    train_rounds(tmp_path / "run", config, num_rounds)
    resume_to_end(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "straight")


def test_a_run_stops_no_later_for_evaluating_test_alone(tmp_path: Path) -> None:
    target, _ = target_in_between(tmp_path / "whole")
    for name, split in (("both", None), ("one", "held-out")):
        train(tmp_path / name, make(stop_at=target, eval_split=split))
    assert accuracies(tmp_path / "one") == accuracies(tmp_path / "both")
    both, one = (results(tmp_path / name) for name in ("both", "one"))
    assert one["evaluation.json"] == both["evaluation.json"]


def test_a_stopped_run_is_finished(tmp_path: Path) -> None:
    target, _ = target_in_between(tmp_path / "whole")
    train(tmp_path / "run", make(stop_at=target))
    before = results(tmp_path / "run")
    with starting.resume(tmp_path / "run") as training:
        assert training.is_finished
        assert list(training.run()) == []
    resume_to_end(tmp_path / "run")
    assert results(tmp_path / "run") == before


def test_a_model_that_does_not_learn_runs_out_of_patience(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(rounds=9, client_lr=0.0, eval_every=2, patience=2))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["round"] == 4
