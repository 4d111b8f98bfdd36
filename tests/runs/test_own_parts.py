"""Users' own parts, from files and installed packages: whole runs, their options, their errors."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcli as package
from fedcli import settings
from fedcli.errors import ConfigError, PartError
from fedcli.learning import optimizers
from fedcli.runs import starting
from fedcli.runs.evaluating import evaluate_run
from fedcli.runs.files import discarding, folder
from fedcli.runs.trained import load_trained, load_weights
from fedcli.settings import tables
from fedcli.settings.options import Option, opened, resolve
from fedcli.settings.own import parts
from fedcli.settings.run_config import RunConfig
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.own_parts import MAX_EXAMPLE_LINES, example, write_example

# By field of a config: the manual's example of an own part, the file for it, and its options.
EXAMPLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "algorithm": ("FedExP", "fedexp.py", {"epsilon": 1e-6}),
    "aggregator": ("Median", "median.py", {}),
    "server_optimizer": ("Lion", "lion.py", {"beta_1": 0.5}),
    "sampling": ("DayAndNight", "day_and_night.py", {"rounds_a_day": 2}),
    "partition": ("two_classes", "two_classes.py", {"clients": 10}),
}
NOUNS = {"metrics": "metric", "sampling": "sampler", "server_optimizer": "server optimizer"}
# Clients of one class each, whose deltas are far apart.
SMALL = RunConfig(
    data_options={"clients": 12},
    partition="classes-per-client",
    partition_options={"clients": 10, "classes": 1},
    clients="4",
    rounds=3,
    epochs=1,
    threads=1,
)
RESULTS = ("metrics.jsonl", "evaluation.json", "config.toml", "checkpoints/round-000003.h5")


def config_with(field: str, file: Path, **more: Any) -> RunConfig:
    """Returns the config of a small run with one own part; `more` are further options of it."""
    options = f"{field.removesuffix('_optimizer')}_options"
    given = {field: str(file), options: {**EXAMPLES[field][2], **more}}
    return RunConfig(**{**vars(SMALL), **given})


def bytes_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RESULTS}


@pytest.fixture(params=EXAMPLES)
def part(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Each field with the file of its example."""
    field = str(request.param)
    word, name, _ = EXAMPLES[field]
    return field, write_example(tmp_path, word, name)


@pytest.mark.parametrize("field", EXAMPLES)
def test_an_example_is_short(field: str) -> None:
    assert len(example(EXAMPLES[field][0]).splitlines()) <= MAX_EXAMPLE_LINES


def test_a_run_has_the_part_and_resumes_to_the_same_bytes(
    part: tuple[str, Path], tmp_path: Path
) -> None:
    field, file = part
    config = config_with(field, file)
    straight = package.train(config, tmp_path / "straight")
    plain = package.train(SMALL, tmp_path / "plain")
    assert straight.metrics != plain.metrics
    named = f"{file}:{EXAMPLES[field][0]}"
    assert straight.options[field] == named
    assert straight.provenance[field] == package.own_models.fingerprint(file)

    def stop(result: Any) -> None:
        raise package.StopTraining

    package.train(config, tmp_path / "run", callbacks=[stop])
    with pytest.raises(ConfigError, match=rf"{NOUNS.get(field, field)} is code in .*pass {field}="):
        package.resume(tmp_path / "run")
    again: Any = {field: str(file)}
    package.resume(tmp_path / "run", **again)
    assert bytes_of(tmp_path / "run") == bytes_of(straight.path)


def test_a_run_is_evaluated_and_exported_without_the_code(
    part: tuple[str, Path], tmp_path: Path
) -> None:
    field, file = part
    run = package.train(config_with(field, file), tmp_path / "run")
    of_data: Any = {}
    if field == "partition":  # another partition gives other examples to the clients
        with pytest.raises(ConfigError, match=r"partition is code in .*pass partition="):
            evaluate_run(run.path)
        of_data = {"partition": str(file)}
    else:
        file.unlink()
    again = evaluate_run(run.path, **of_data)
    assert again.metrics["client_work"] == run.evaluation["test"]["client_work"]
    with load_trained(run.path, 1) as trained:
        weights = load_weights(run.path)
        assert trained.state.global_model_weights.size == sum(map(np.size, weights.values()))


def test_resume_says_that_the_file_has_changed(part: tuple[str, Path], tmp_path: Path) -> None:
    field, file = part
    config = config_with(field, file)

    def stop(result: Any) -> None:
        raise package.StopTraining

    package.train(config, tmp_path / "run", callbacks=[stop])
    moved = tmp_path / "elsewhere.py"
    moved.write_text(f"{file.read_text()}\n# another line\n")
    code: Any = {field: str(moved)}
    with starting.resume(tmp_path / "run", **code) as training:
        assert [note for note in training.notes if "has changed since the run began" in note] == [
            f"{moved} has changed since the run began; the current version is used"
        ]


def test_a_config_of_a_run_is_repeated_if_its_code_is_named(
    part: tuple[str, Path], tmp_path: Path, fedcli: Fedcli
) -> None:
    field, file = part
    run = package.train(config_with(field, file), tmp_path / "run")
    option = f"--{field.replace('_', '-')}"
    arguments = ["train", "--config", run.path / "config.toml", "--out", "again", "-q"]
    assert_is_one_line(fedcli(*arguments), "is code in", f"pass {option} {file}:")
    assert fedcli(*arguments, option, file.name).code == 0
    assert bytes_of(tmp_path / "again")["metrics.jsonl"] == bytes_of(run.path)["metrics.jsonl"]
    assert folder.read_config(tmp_path / "again") == folder.read_config(run.path)


def test_resume_from_the_command_line_names_the_code(
    part: tuple[str, Path], tmp_path: Path, fedcli: Fedcli
) -> None:
    field, file = part
    option = f"--{field.replace('_', '-')}"
    package.train(config_with(field, file), tmp_path / "run")
    arguments = ["train", "--resume", "run", "--rounds", 4, "-q"]
    assert_is_one_line(fedcli(*arguments), f"pass {option} {file}:")
    assert fedcli(*arguments, option, file.name).code == 0
    assert package.load_run(tmp_path / "run").round_num == 4


def test_a_resumed_run_says_what_to_give_in_place_of_a_name(
    part: tuple[str, Path], tmp_path: Path, fedcli: Fedcli
) -> None:
    field, file = part
    option, noun = f"--{field.replace('_', '-')}", NOUNS.get(field, field)
    package.train(config_with(field, file), tmp_path / "own")
    arguments = ("train", "--rounds", 4, "-q", option)
    named = f"{file}:{EXAMPLES[field][0]}"
    refused = fedcli(*arguments, "fedavg", "--resume", "own")
    assert_is_one_line(
        refused, f"{option} fedavg: this run's {noun} is code in {file}; give {option} {named}, or"
    )
    refused = fedcli(*arguments, f"{file}:Other", "--resume", "own")
    assert_is_one_line(
        refused, f"this run's {noun} is {EXAMPLES[field][0]} in {file}; leave out :Other, or start"
    )
    package.train(SMALL, tmp_path / "plain")
    for given in ("fedavg", file):
        refused = fedcli(*arguments, given, "--resume", "plain")
        assert_is_one_line(refused, f"is for runs whose {noun} is code, but this run has ")
    assert package.load_run(tmp_path / "own").round_num == 3


def test_metrics_of_a_resumed_run_are_written_as_they_are_given(
    metric: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    package.train(SMALL, tmp_path / "plain")
    package.train(with_metrics(metric), tmp_path / "own")
    refused = fedcli("train", "--resume", "plain", "--metrics", "auc,ece")
    assert_is_one_line(refused, "--metrics auc,ece: ", "but this run has none; leave it out")
    refused = fedcli("train", "--resume", "own", "--metrics", "auc,ece")
    assert_is_one_line(refused, "--metrics auc,ece: this run's metric is code in ", "MyF1, or the")


def test_a_partition_deals_what_preprocess_imports_and_changes_follow_it(
    tmp_path: Path, fedcli: Fedcli
) -> None:
    write_example(tmp_path, "two_classes", "two_classes.py")
    labels = np.arange(120) % 6
    images = np.random.default_rng(0).integers(0, 256, (120, 6, 6)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    for change in ("", "+label-noise"):
        done = fedcli(
            *("preprocess", "images.npz", "--out", f"dealt{change}.h5", "--partition-option"),
            *("clients=6", "--partition", f"two_classes.py{change}"),
        )
        assert done.code == 0, done.err
    train = package.datasets.load(str(tmp_path / "dealt.h5"))[0]
    held = [set(train.labels(each).tolist()) for each in train.client_ids]
    assert held == [{k, (k + 1) % 6} for k in range(6)]
    noisy = package.datasets.load(str(tmp_path / "dealt+label-noise.h5"))[0]
    assert len(noisy.client_ids) == 6


# ---- Metrics, of which there may be several -----------------------------------------------------


@pytest.fixture
def metric(tmp_path: Path) -> Path:
    return write_example(tmp_path, "MyF1", "my_f1.py")


def with_metrics(*names: object) -> RunConfig:
    return RunConfig(**{**vars(SMALL), "metrics": tuple(map(str, names)), "eval_every": 2})


def test_a_metric_of_ones_own_is_measured_beside_others(metric: Path, tmp_path: Path) -> None:
    assert len(example("MyF1").splitlines()) <= MAX_EXAMPLE_LINES
    run = package.train(with_metrics(metric, "macro_f1", "macro_recall"), tmp_path / "run")
    assert run.config.metrics == ("macro_recall", "macro_f1", f"{metric}:MyF1")
    assert run.provenance["metrics"] == package.own_models.fingerprint(metric)
    for line in (run.metrics[0], run.metrics[2]):
        for scores in line["evaluation"].values():
            assert 0 <= scores["MyF1"] <= 1
            # macro_f1 also has the classes that are predicted but are no label; their F1 is 0.
            assert scores["MyF1"] >= scores["macro_f1"] - 1e-12
    closing = run.evaluation["train"]
    assert closing["client_work"]["eval"]["current_round_metrics"]["MyF1"] > 0
    assert closing["over_clients"]["MyF1"]["num_clients"] == closing["num_clients"]


def test_a_run_with_such_a_metric_resumes_if_it_is_named(
    metric: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    package.train(with_metrics(metric), tmp_path / "run")
    arguments = ["train", "--resume", "run", "--rounds", 4, "-q"]
    assert_is_one_line(
        fedcli(*arguments), "metric is code in", f"pass --metrics {metric}:MyF1 to run it"
    )
    assert fedcli(*arguments, "--metrics", "my_f1.py").code == 0
    run = package.load_run(tmp_path / "run")
    assert run.round_num == 4
    assert "MyF1" in run.metrics[4]["evaluation"]["test"]


def test_eval_computes_it_where_it_is_named(metric: Path, tmp_path: Path, fedcli: Fedcli) -> None:
    run = package.train(with_metrics(metric), tmp_path / "run")
    plain = fedcli("eval", "run")
    assert "your own metrics are not computed; pass --metrics " in plain.err
    assert "MyF1" not in plain.out
    named = evaluate_run(run.path, metrics=[str(metric)])
    final = run.evaluation["test"]["client_work"]["eval"]["current_round_metrics"]
    assert named.values["MyF1"] == final["MyF1"]
    assert "MyF1" in fedcli("eval", "run", "--metrics", "my_f1.py").out


def test_the_path_of_a_metric_may_be_relative(metric: Path, tmp_path: Path, fedcli: Fedcli) -> None:
    done = fedcli("train", "--rounds", 1, "--metrics", "auc,my_f1.py", "--out", "run", "-q")
    assert done.code == 0, done.err
    assert package.load_run(tmp_path / "run").config.metrics == ("auc", f"{metric}:MyF1")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("np.bincount(labels, min", "np.bincount(label, min", r"my_f1.py:\d+: add: NameError"),
        (".mean()", "", r"my_f1.py:\d+: value returned float64 \[\d+\]; give a number"),
        ("return f1[", "return [1], [1, 2], f1[", "value returned tuple; give a number"),
        (
            "return f1[",
            "return 10**400 or f1[",
            "value: OverflowError: .*; correct the code of the metric",
        ),
        ("def value", "def result", "MyF1 has no value; define add"),
        ("class MyF1", "class macro_f1", "another metric is called macro_f1; rename one"),
        ("class MyF1", "class accuracy", "another metric is called accuracy; rename one"),
        ("class MyF1", "class num_examples", "another metric is called num_examples; rename one"),
    ],
)
def test_a_wrong_metric_is_one_line(
    metric: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    metric.write_text(metric.read_text().replace(old, new, 1))
    with pytest.raises((PartError, ConfigError), match=words):
        package.train(with_metrics(metric), tmp_path / "run")


WEIGHTED = """
class FBeta:
    def __init__(self, num_classes, beta=1.0, floor=0.0):
        self.right, self.of_all, self.beta, self.floor = 0, 0, beta, floor

    def add(self, labels, predicted, probabilities):
        assert not (labels.flags.writeable or predicted.flags.writeable)
        assert not probabilities.flags.writeable
        self.right += (labels == predicted).sum()
        self.of_all += len(labels)

    def value(self):
        return self.floor + self.beta * self.right / self.of_all
"""


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    path = tmp_path / "f_beta.py"
    path.write_text(WEIGHTED)
    return path


def test_options_of_a_metric_reach_it_and_are_checked_before_the_run(
    weighted: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    config = replace(with_metrics(weighted, "macro_f1"), metric_options={"beta": 3})
    run = package.train(config, tmp_path / "run")
    for scores in run.metrics[2]["evaluation"].values():
        assert scores["FBeta"] == pytest.approx(3 * scores["sparse_categorical_accuracy"])
    assert run.config.metric_options == {"beta": 3}
    one = evaluate_run(run.path, metrics=[str(weighted)]).values  # with the run's options
    assert one["FBeta"] == pytest.approx(3 * one["sparse_categorical_accuracy"])
    other = evaluate_run(run.path, metrics=[str(weighted)], metric_options={"floor": 1}).values
    assert other["FBeta"] == pytest.approx(1 + other["sparse_categorical_accuracy"])
    train = ("train", "--rounds", 1, "--out", "none", "--metric-option")
    metrics = ("--metrics", "f_beta.py")
    refused = fedcli(*train, "betta=3", *metrics)
    assert_is_one_line(refused, "--metric-option betta: no metric", "did you mean beta?")
    assert_is_one_line(fedcli(*train, "beta=x", *metrics), "option beta 'x': choose a finite")
    assert_is_one_line(fedcli(*train, "beta=1"), "fedcli's metrics have no options")
    lone = fedcli("eval", "run", "--metric-option", "beta=1")
    assert_is_one_line(lone, "--metric-option beta is for a metric of your own; give")
    assert not (tmp_path / "none").exists()


def test_a_metric_of_ones_own_judges_rounds(weighted: Path, tmp_path: Path, fedcli: Fedcli) -> None:
    judged: dict[str, Any] = {"keep_best": "FBeta", "monitor": "FBeta", "patience": 9, "rounds": 4}
    run = package.train(replace(with_metrics(weighted), eval_every=1, **judged), tmp_path / "run")
    values = [line["evaluation"]["test"]["FBeta"] for line in run.metrics]
    assert run.best_round == values.index(max(values))
    assert run.measures == ["loss", "accuracy", "FBeta"]
    assert run.final("test", "FBeta") == values[-1]
    shown = fedcli("report", "run").out
    assert "FBeta by round" in shown
    # The one line is a row of the table of the spread over clients.
    assert sum(line.split()[:2] == ["test", "FBeta"] for line in shown.splitlines()) == 1
    resumed = fedcli(
        *("train", "--resume", "run", "--rounds", 5, "--metrics", "f_beta.py", "--threads", 1)
    )
    assert "the best by FBeta" in resumed.out
    assert "test FBeta" in resumed.out
    target = min(value for value in values if value > values[0])
    small = ("--clients", 2, "--epochs", 1, "--eval-every", 1, "--out", "stopped")
    done = fedcli(
        "train",
        *small,
        "--metrics",
        "f_beta.py",
        "--stop-at",
        f"FBeta={target / 2}",
        "--rounds",
        90,
    )
    assert "test FBeta reached" in done.out
    for option, value in (("--keep-best", "FBet"), ("--stop-at", "FBet=0.5")):
        refused = fedcli("train", *small, "--force", "--metrics", "f_beta.py", option, value)
        assert_is_one_line(refused, option, "ece, FBeta", "did you mean FBeta?")


# ---- What a program gives in place of a file ----------------------------------------------------

ALL_EXAMPLES = {**EXAMPLES, "metrics": ("MyF1", "my_f1.py", {})}


@pytest.fixture(params=ALL_EXAMPLES)
def given(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[RunConfig, str, Path]:
    """A small config without the part, each field, and the file of its example."""
    field = str(request.param)
    word, name, _ = ALL_EXAMPLES[field]
    options = {"clients": 10} if field == "partition" else SMALL.partition_options
    file = write_example(tmp_path, word, name)
    return replace(SMALL, rounds=1, partition_options=options), field, file


def test_a_path_object_is_a_path(given: tuple[RunConfig, str, Path], tmp_path: Path) -> None:
    config, field, file = given
    again: Any = {field: [file] if field == "metrics" else file}
    run = package.train(replace(config, **again), tmp_path / "run")
    assert str(file) in str(run.options[field])
    assert package.resume(run.path, num_rounds=2, **again).round_num == 2
    if field in ("partition", "metrics"):
        assert evaluate_run(run.path, **again).round_num == 2


@pytest.mark.parametrize("is_instance", [False, True])
def test_a_class_or_object_is_refused_and_its_file_is_asked_for(
    given: tuple[RunConfig, str, Path], tmp_path: Path, is_instance: bool
) -> None:
    config, field, file = given
    name = ALL_EXAMPLES[field][0]
    part: Any = type(name, (), {"__module__": "mine"})
    part = part() if is_instance else part
    words = rf"^{field} <.*mine.{name}.*>: give the path of its file, 'FILE.py:{name}'(;|$)"
    again: Any = {field: part}
    with pytest.raises(ConfigError, match=words):
        package.train(replace(config, **again), tmp_path / "run")
    named: Any = {field: str(file)}
    run = package.train(replace(config, **named), tmp_path / "run")
    with pytest.raises(ConfigError, match=words):
        package.resume(run.path, num_rounds=2, **again)
    if field in ("partition", "metrics"):
        with pytest.raises(ConfigError, match=words):
            evaluate_run(run.path, **again)


def test_resume_refuses_an_argument_that_it_does_not_have(tmp_path: Path) -> None:
    run = package.train(SMALL, tmp_path / "run")
    wrong: Any = {"algoritm": "part.py"}
    with pytest.raises(TypeError, match="resume has no argument 'algoritm'; did you mean algorith"):
        package.resume(run.path, num_rounds=4, **wrong)


# ---- Options ------------------------------------------------------------------------------------

OPTIONS = """
import fedcli

class Part:
    '''What it does.

    More of it.'''

    options = (fedcli.Option("share", 0.5, "How much.", 0.0, 1.0),)

    def __init__(self, optimizer, share=0.5, steps: int = 3, *, kind="a", on=False, scales=(1, 2)):
        self.optimizer = optimizer

    def init(self, params):
        return {}

    def run(self, call, state):
        return call.train(self.optimizer), state
"""


def row_of(tmp_path: Path, text: str, name: str = "") -> Any:
    file = tmp_path / "part.py"
    file.write_text(text)
    return opened(tables.ALGORITHMS[f"{file}{name}"])


def test_options_are_what_the_parameters_and_the_part_say(tmp_path: Path) -> None:
    row = row_of(tmp_path, OPTIONS)
    assert row.doc == "What it does."
    assert row.options == (
        Option("share", 0.5, "How much.", 0.0, 1.0),
        Option("steps", 3, ""),
        Option("kind", "a", ""),
        Option("on", False, ""),
        Option("scales", [1.0, 2.0], ""),
    )
    assert resolve(row, {"steps": 4})["steps"] == 4


def test_an_annotation_makes_a_whole_default_a_number_and_none_one_that_may_be_missing(
    tmp_path: Path,
) -> None:
    text = OPTIONS.replace("steps: int = 3", "share_2: float = 1, bound=None")
    row = row_of(tmp_path, text)
    assert row.options[1:3] == (Option("share_2", 1.0, ""), Option("bound", None, ""))
    resolved = resolve(row, {"share_2": 0.5})
    assert resolved["share_2"] == 0.5
    assert "bound" not in resolved
    assert resolve(row, {"bound": 2})["bound"] == 2.0


def test_two_defaults_of_an_option_that_differ_are_refused(tmp_path: Path) -> None:
    words = (
        "part.py:4: options give share the default 0.5, but the parameter has 0.6; give both the"
    )
    with pytest.raises(PartError, match=words):
        row_of(tmp_path, OPTIONS.replace("share=0.5", "share=0.6"))
    row_of(tmp_path, OPTIONS.replace("optimizer, share=0.5", "optimizer, share"))


def test_the_range_of_an_option_of_the_manuals_example_is_checked(tmp_path: Path) -> None:
    file = write_example(tmp_path, "FedExP", "fedexp.py")
    words = "fedexp.py option epsilon -0.1: choose a finite number from 1e-12 to 1$"
    with pytest.raises(ConfigError, match=words):
        starting.start(config_with("algorithm", file, epsilon=-0.1), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 2.0}, "share 2.0: choose a finite number from 0 to 1"),
        (
            {"steps": 2.5},
            "steps 2.5: choose a whole number; its type is that of the default 3 in .*part.py:4, "
            "where steps=3.0 would allow every number$",
        ),
        ({"kind": 1}, "kind 1: choose text; its type is that of the default 'a' in .*part.py:4$"),
        ({"on": 1}, "on 1: choose true or false; its type is that of the default False in "),
        ({"stride": 1}, "has no option 'stride'; its options are share, steps, kind, on, scales"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "part.py").write_text(OPTIONS)
    config = RunConfig(algorithm=str(tmp_path / "part.py"), algorithm_options=options)
    with pytest.raises(ConfigError, match="--algorithm-option: .*" + words):
        starting.start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resolved_options_stand_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(OPTIONS)
    config = RunConfig(**{**vars(SMALL), "algorithm": str(tmp_path / "part.py")})
    run = package.train(config, tmp_path / "run")
    assert run.config.algorithm_options == {
        **{"share": 0.5, "steps": 3, "kind": "a", "on": False, "scales": [1.0, 2.0]}
    }


def test_the_metrics_of_an_algorithm_are_columns_of_its_run(tmp_path: Path) -> None:
    file = write_example(tmp_path, "FedExP", "fedexp.py")
    run = package.train(replace(config_with("algorithm", file), csv=True), tmp_path / "run")
    factors = run.columns["client_work/algorithm/factor"]
    assert len(set(factors)) == len(factors) == 3
    assert min(factors) >= 1.0
    names = (run.path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "client_work/algorithm/factor" in names


# ---- Faults -------------------------------------------------------------------------------------

ALGORITHM = """
class Part:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def init(self, params):
        return {"steps": 0}

    def run(self, call, state):
        deltas = call.train(self.optimizer)
        return deltas, {"steps": state["steps"] + 1}
"""
AGGREGATOR = """
from fedcli.aggregators import SUM


class Part:
    def init(self):
        return {"steps": 0}

    def request(self, state):
        return SUM

    def aggregate(self, state, deltas):
        return deltas.weighted_mean(), {"steps": state["steps"] + 1}, {"told": 1.5}
"""
SERVER = """
class Part:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def init(self, params):
        return {"steps": 0}

    def update(self, gradient, state, params):
        return -self.learning_rate * gradient, {"steps": state["steps"] + 1}
"""
SAMPLER = """
from itertools import count
draw = count().__next__


class Part:
    def __init__(self, population, client_ids, num_examples):
        self.population = population
        assert len(client_ids) == population
        assert num_examples(0) > 0

    def indices(self, round_num):
        return [round_num % self.population]
"""
PARTITION = """
import numpy as np

def deal(labels, num_clients):
    return np.arange(len(labels)) % num_clients
"""
FAULTS: dict[str, list[tuple[str, str, str]]] = {
    "algorithm": [
        (
            "call.train",
            "1 / 0 + call.train",
            r"part.py:10: run: ZeroDivisionError: .*correct the code of the alg",
        ),
        ("return deltas, {", "return {", r"part.py:9: run returned dict; give WorkResult"),
        (
            'state["steps"] + 1}',
            'state["steps"] + 1}, None, {"told": "much"}',
            r"part.py:9: run: metric 'told' is str; give a number",
        ),
        (
            'state["steps"] + 1}',
            'state["steps"] + 1}, call.params',
            r"run returned evaluated weights; only fedcli's own",
        ),
        ("return deltas", "return 1.0", r"run returned float for the deltas; give what call.train"),
        (
            '{"steps": state',
            '{"stop": state',
            "the state has stop, but the first state has steps; keep",
        ),
        ('"steps": 0}', '"steps": "a"}', "init: state 'steps' is str; give an array, an int or a"),
        ('state["steps"] + 1', "[1]", "run: state 'steps' is list; give an array"),
        (
            'state["steps"] + 1',
            "float('nan')",
            "^round 1: .*part.py:9: run: state 'steps' is nan; re",
        ),
        (
            'state["steps"] + 1',
            "call.params * float('nan')",
            "'steps' has 7850 of 7850 values that are NaN o",
        ),
        (
            '"steps": 0}',
            '"steps": float("inf")}',
            "init: state 'steps' is inf; return finite numbers$",
        ),
        (
            '"steps": 0}',
            '"steps": False}',
            "init: state 'steps' is False; give a number, such as 1",
        ),
        (
            '"steps": 0}',
            '"steps": 0 * params[0] > 0}',
            "init: state 'steps' is False; give a number",
        ),
        (
            'state["steps"] + 1',
            "0.5",
            "is float, but it was int; .*, or start with a float in init",
        ),
        (
            "return deltas,",
            "return deltas.scaled(-2.0),",
            r"run returned deltas .* scaled by -2.0; gi",
        ),
        (
            "return deltas,",
            "return deltas.scaled(0),",
            r"scaled by 0.0; give a finite number above 0",
        ),
        ("return deltas,", "return deltas.scaled(float('nan')),", r"scaled by nan; give a finite"),
        (
            "return deltas,",
            "return deltas.scaled(call.params),",
            r"scaled by float32 \[7850\]; give",
        ),
        (
            "return deltas,",
            "return deltas.shifted(1.0),",
            r"shifted by float; give a vector \[7850\]",
        ),
        (
            "return deltas,",
            "return deltas.shifted(call.params * float('nan')),",
            "vector with a NaN or an",
        ),
        ('state["steps"] + 1', "2**63", "run: state 'steps' is 9223372036854775808; give an int"),
        ("    def init", "    num_passes = 0\n\n    def init", "num_passes is 0; give a whole"),
        ("    def init", "    vectors_up = 0\n\n    def init", "vectors_up is 0; give a whole"),
        ("    def init", "    numbers_up = 1.5\n\n    def init", "numbers_up is 1.5; give a w"),
        ("optimizer):", "optimizer, rate):", "part.py:2: Part needs rate; give it a default"),
        ("def run", "def ran", "part.py:2: Part has no run; an algorithm has init"),
        ("class Part", "class Part(", "part.py:2: importing the file: SyntaxError"),
    ],
    "aggregator": [
        (
            "deltas.weighted",
            "deltas.weigthed",
            r"part.py:13: aggregate: AttributeError.*correct the code",
        ),
        ("return deltas.weighted_mean(),", "return", "aggregate returned tuple; give"),
        (
            "deltas.weighted_mean()",
            "deltas.delta_sum[1:]",
            r"float64 \[7849\] for the mean delta; ",
        ),
        ('state["steps"] + 1', "float('-inf')", "^round 1: .*: aggregate: state 'steps' is -inf; "),
        (
            "deltas.weighted_mean()",
            "deltas.by_coordinate(max)",
            "part.py:13: aggregate: ValueError: there are no individual deltas; let request return",
        ),
        ("return SUM", "return 1", "request returned int; give fedcli.aggregators.SUM"),
        ("1.5", "[1]", "metric 'told' is list; give a number"),
        ("def init", "def start", "has no init; an aggregator has init"),
    ],
    "server_optimizer": [
        (
            "* gradient",
            "* grad",
            r"part.py:10: update: NameError: .*; correct the code of the server optimizer",
        ),
        ("-self.learning_rate * gradient,", "", r"update returned dict; give \(updates, state\)"),
        ("* gradient", "* gradient[:2]", r"float32 \[2\] for the updates; give float32 \[7850\]"),
        (
            'state["steps"] + 1',
            "params * float('nan')",
            "^round 1: .*update: state 'steps' has 7850 of 7",
        ),
        ("def update", "def apply", "Part has no update; a server optimizer has init"),
    ],
    "sampling": [
        (
            "% self.population]",
            "% 0]",
            r"part.py:13: indices: ZeroDivisionError: .*correct the code of the sampler",
        ),
        ("[round_num % self.population]", "'abc'", "indices returned str; give a list of whole"),
        (
            "[round_num % self.population]",
            "[[0], [0, 1]]",
            "part.py: indices: ValueError: .*correct",
        ),
        ("% self.population]", "+ 100]", "indices returned 100; the 10 clients are 0 to 9"),
        ("def indices", "def draw", "Part has no method indices; define"),
        ("[round_num", "[draw()", r"two calls of indices\(0\) drew different clients; use"),
    ],
    "partition": [
        (
            "len(labels)",
            "len(label)",
            r"part.py:5: deal: NameError: .*correct the code of the partition",
        ),
        ("% num_clients", "% num_clients * 0.5", r"partition returned float64 \[\d+\]; return the"),
        (
            "% num_clients",
            "% (num_clients + 1)",
            "returned clients 0 to 12; return numbers from 0 to 11",
        ),
        (
            "np.arange(len(labels)) %",
            "[[0], [1, 2]] or",
            r"partition returned 2 lists; return one list with the client of each example, whole",
        ),
        ("% num_clients", "% 3", "9 of 12 clients would have no example"),
        ("num_clients):", "num_clients, wanted):", "deal needs wanted; give it a default"),
    ],
}
# Options that a part needs in place of those of SMALL.
WITHOUT: dict[str, dict[str, Any]] = {"partition": {"partition_options": {"clients": 12}}}
TEXTS = {
    "algorithm": ALGORITHM,
    "aggregator": AGGREGATOR,
    "server_optimizer": SERVER,
    "sampling": SAMPLER,
    "partition": PARTITION,
}


@pytest.mark.parametrize(
    ("field", "old", "new", "words"),
    [(field, *each) for field, faults in FAULTS.items() for each in faults],
)
def test_a_fault_of_a_part_is_one_line_with_its_place(
    tmp_path: Path, field: str, old: str, new: str, words: str
) -> None:
    text = TEXTS[field]
    assert old in text
    (tmp_path / "part.py").write_text(text.replace(old, new, 1))
    config = RunConfig(
        **{**vars(SMALL), **WITHOUT.get(field, {}), field: str(tmp_path / "part.py")}
    )
    with pytest.raises((PartError, ConfigError), match=words) as caught:
        package.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_state_of_a_skipped_round_must_be_finite(tmp_path: Path) -> None:
    """The mean delta of a round in which no client reports is NaN."""
    (tmp_path / "part.py").write_text(OPTIONAL)
    words = (
        r"'last' has 7850 of 7850 .*, and the old state in a round in which no client has weight"
    )
    config = replace(SMALL, aggregator=str(tmp_path / "part.py"), client_dropout=1.0)
    with pytest.raises(PartError, match=words):
        package.train(config, tmp_path / "run")
    old = OPTIONAL.replace(
        '{"last": moved}', '{"last": moved if moved[0] == moved[0] else state["last"]}'
    )
    (tmp_path / "part.py").write_text(old)
    assert package.train(config, tmp_path / "run").round_num == 3
    # A factor has no effect without a client that has weight, so it may be NaN.
    text = ALGORITHM.replace("return deltas,", "return deltas.scaled(float('nan')),")
    (tmp_path / "factor.py").write_text(text)
    config = replace(SMALL, algorithm=str(tmp_path / "factor.py"), client_dropout=1.0)
    assert package.train(config, tmp_path / "factor").round_num == 3


@pytest.mark.parametrize(
    ("result", "words"),
    [("None", "returned NoneType"), ("np.median(values)", "returned float32"), ("0.0", "float")],
)
def test_a_rule_by_coordinate_returns_a_value_for_each(
    tmp_path: Path, result: str, words: str
) -> None:
    file = write_example(tmp_path, "Median", "median.py")
    file.write_text(file.read_text().replace("np.median(values, axis=1)", result))
    place = r"median.py:\d+: aggregate: ValueError: the rule "
    with pytest.raises(PartError, match=rf"{place}.*{words} for values .*one value per coo"):
        package.train(replace(SMALL, aggregator=str(file)), tmp_path / "run")


def test_an_array_without_axes_in_a_state_is_a_number(tmp_path: Path) -> None:
    text = ALGORITHM.replace('{"steps": state', '{"steps": np.array(0) + state')
    (tmp_path / "part.py").write_text(f"import numpy as np\n{text}")
    config = replace(SMALL, algorithm=str(tmp_path / "part.py"), rounds=1)
    run = package.train(config, tmp_path / "run")
    assert (
        package.resume(run.path, num_rounds=3, algorithm=str(tmp_path / "part.py")).round_num == 3
    )


# ---- What is left after a fault -----------------------------------------------------------------

FAILING = {
    "algorithm": (ALGORITHM, "call.train", "call.round_num == {} and 1 / 0 or call.train"),
    "aggregator": (AGGREGATOR, "deltas.w", 'state["steps"] == {} and 1 / 0 or deltas.w'),
    "server_optimizer": (SERVER, "-self", 'state["steps"] == {} and 1 / 0 or -self'),
    "sampling": (SAMPLER, "[round_num %", "round_num == {} and 1 / 0 or [round_num %"),
}


def failing_config(folder: Path, field: str, round_num: int) -> RunConfig:
    """Returns the config of a small run whose part fails after `round_num` rounds."""
    text, old, new = FAILING[field]
    assert old in text
    (folder / "part.py").write_text(text.replace(old, new.format(round_num), 1))
    return RunConfig(**{**vars(SMALL), field: str(folder / "part.py")})


@pytest.mark.parametrize("field", ["algorithm", "aggregator", "server_optimizer"])
def test_a_fault_in_round_1_leaves_no_folder(tmp_path: Path, field: str) -> None:
    logs: dict[str, Any] = {"csv": True, "record_clients": True, "eval_every": 1}
    config = replace(failing_config(tmp_path, field, 0), **logs)
    for _ in range(2):  # a second attempt is not refused because of the first
        with pytest.raises(
            PartError, match=r"^round 1: .*ZeroDivisionError: .*; correct the code of"
        ):
            package.train(config, tmp_path / "runs" / "run")
    assert not list((tmp_path / "runs").iterdir())


def test_a_fault_of_a_metric_in_the_first_evaluation_leaves_no_folder(
    metric: Path, tmp_path: Path, fedcli: Fedcli
) -> None:
    metric.write_text(metric.read_text().replace("return f1[", "return 1 / 0 or f1[", 1))
    arguments = ("train", "--out", "run", "--rounds", 2, "--eval-every", 1)
    done = fedcli(*arguments, "--metrics", "my_f1.py")
    assert_is_one_line(done, "round 0: ", "my_f1.py:", "value: ZeroDivisionError")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", FAILING)
def test_a_fault_in_round_3_keeps_the_run_which_can_be_resumed(tmp_path: Path, field: str) -> None:
    config = failing_config(tmp_path, field, 2)
    words = (
        r"^round 3: .*part.py.*ZeroDivisionError.*; .*/run is saved after round 2 and can be res"
    )
    with pytest.raises(PartError, match=words):
        package.train(config, tmp_path / "run")
    text, _, _ = FAILING[field]
    (tmp_path / "part.py").write_text(text)
    again: Any = {field: str(tmp_path / "part.py")}
    assert package.resume(tmp_path / "run", **again).round_num == 3


def test_a_fault_in_round_1_deletes_nothing_that_fedcli_did_not_make(tmp_path: Path) -> None:
    config = failing_config(tmp_path, "algorithm", 0)
    config = replace(config, eval_every=1)  # so that there is a result before round 1

    def add(result: Any) -> None:
        (tmp_path / "run" / place).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / place).write_text("mine")

    for place in ("notes.txt", "mine/notes.txt", "checkpoints/mine.h5"):
        with pytest.raises(PartError, match="ZeroDivisionError"):
            package.train(config, tmp_path / "run", callbacks=[add], force=True)
        assert (tmp_path / "run" / place).read_text() == "mine"
        assert package.load_run(tmp_path / "run").round_num == 0
    # A resumed run was not made by this call.
    (tmp_path / "run" / "checkpoints" / "mine.h5").unlink()
    with pytest.raises(PartError, match="ZeroDivisionError"):
        package.resume(tmp_path / "run", algorithm=str(config.algorithm))
    assert (tmp_path / "run" / "config.toml").exists()


# Parts made by functions, whose methods are attributes of the object and not of its class.
FUNCTIONS = {
    "algorithm": """
def part(optimizer):
    return Namespace(init=lambda params: {}, run=lambda call, _: (call.train(optimizer), {}))
""",
    "aggregator": """
from fedcli.aggregators import SUM


def part():
    return Namespace(
        init=dict,
        request=lambda state: SUM,
        aggregate=lambda state, deltas: (deltas.weighted_mean(), {}, {}),
    )
""",
    "server_optimizer": """
def part(learning_rate, names=("a", "b")):
    def update(gradient, state, params):
        return -learning_rate * gradient, {}

    return Namespace(init=lambda params: {}, update=update)
""",
    "sampling": """
def part(population):
    return Namespace(indices=lambda round_num: [round_num % population])
""",
    "metrics": """
def part():
    return Namespace(add=lambda *of_examples: None, value=lambda: 0.5)
""",
}


def test_parts_may_be_objects_that_functions_make(tmp_path: Path) -> None:
    paths: dict[str, Any] = {}
    for field, text in FUNCTIONS.items():
        file = tmp_path / f"{field}.py"
        file.write_text(f"from types import SimpleNamespace as Namespace\n{text}")
        paths[field] = (f"{file}",) if field == "metrics" else f"{file}"
    run = package.train(RunConfig(**{**vars(SMALL), **paths}), tmp_path / "run")
    assert run.round_num == 3
    closing = run.evaluation["train"]["client_work"]["eval"]["current_round_metrics"]
    assert closing["part"] == 0.5


IN_PLACE = """
import numpy as np


class Part:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def init(self, params):
        return {"velocity": np.zeros_like(params)}

    def update(self, gradient, state, params):
        state["velocity"] += gradient
        return -self.learning_rate * state["velocity"], state
"""


def test_a_part_that_changes_its_state_in_place_changes_no_earlier_state(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(IN_PLACE)
    optimizer = optimizers.build(f"{tmp_path / 'part.py'}", 1.0, {})
    params, gradient = np.zeros(3, np.float32), np.ones(3, np.float32)
    before = optimizer.init(params)
    first, second = (optimizer.update(gradient, before, params) for _ in range(2))
    assert not before["velocity"].any()
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1]["velocity"], gradient)


def test_the_samples_of_faults_are_right_without_them(tmp_path: Path) -> None:
    paths = {}
    for field, text in TEXTS.items():
        (tmp_path / f"{field}.py").write_text(text)
        paths[field] = str(tmp_path / f"{field}.py")
    options = WITHOUT["partition"]
    run = package.train(RunConfig(**{**vars(SMALL), **options, **paths}), tmp_path / "run")
    assert [line["aggregator"] for line in run.metrics] == [{"told": 1.5}] * 3
    again: Any = {**paths, "num_rounds": 4}
    assert package.resume(run.path, **again).round_num == 4
    words = "run's partition, sampler, algorithm, server optimizer and aggregator are code; pass "
    with pytest.raises(ConfigError, match=words):
        package.resume(run.path, num_rounds=5)


# ---- Optional methods of an aggregator ----------------------------------------------------------

# Adds half of the last round's result to the mean delta, as a server momentum of 0.5 does.
OPTIONAL = """
import numpy as np

from fedcli.aggregators import ALL_ROWS


class Part:
    def __init__(self, least=1, most=100):
        self.least, self.most = least, most

    def init_for(self, num_params):
        return {"last": np.zeros(num_params, np.float32)}

    def problem(self, num_clients):
        if num_clients < self.least:
            return f"it needs {self.least} deltas, not {num_clients}; choose more clients"

    def for_cohort(self, num_clients):
        return Part(self.least, num_clients)

    def request(self, state):
        assert state["last"].ndim == 1
        return ALL_ROWS

    def aggregate(self, state, deltas):
        moved = deltas.weighted_mean() + state["last"] / 2
        return moved, {"last": moved}, {"most": self.most}
"""


@pytest.fixture
def optional(tmp_path: Path) -> RunConfig:
    """A small run whose aggregator has all optional methods."""
    (tmp_path / "part.py").write_text(OPTIONAL)
    return RunConfig(**{**vars(SMALL), "aggregator": str(tmp_path / "part.py")})


def test_the_state_of_an_aggregator_may_have_vectors(optional: RunConfig, tmp_path: Path) -> None:
    run = package.train(optional, tmp_path / "run")
    momentum: Any = {"server_optimizer": "sgd", "server_options": {"momentum": 0.5}}
    same = package.train(RunConfig(**{**vars(SMALL), **momentum}), tmp_path / "same")
    ours, theirs = (
        np.concatenate([each.ravel() for each in load_weights(path).values()])
        for path in (run.path, same.path)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    package.train(replace(optional, rounds=2), tmp_path / "part")
    package.resume(tmp_path / "part", num_rounds=3, aggregator=str(optional.aggregator))
    name = "checkpoints/round-000003.h5"
    assert (tmp_path / "part" / name).read_bytes() == (run.path / name).read_bytes()


def test_a_problem_that_an_aggregator_states_stops_the_run_before_it_begins(
    optional: RunConfig, tmp_path: Path
) -> None:
    config = replace(optional, aggregator_options={"least": 5})
    with pytest.raises(ConfigError, match=r"part.py.*: it needs 5 deltas, not 4; choose more"):
        package.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    package.train(replace(optional, aggregator_options={"least": 4}), tmp_path / "run")


def test_an_aggregator_is_told_the_size_of_the_cohort_before_its_deltas_are_mixed(
    optional: RunConfig, tmp_path: Path
) -> None:
    run = package.train(optional, tmp_path / "run")
    assert [line["aggregator"]["most"] for line in run.metrics] == [100] * 3
    run = package.train(replace(optional, pre_aggregator="bucketing"), tmp_path / "mixed")
    assert [line["aggregator"]["most"] for line in run.metrics] == [4] * 3


def test_the_rounds_after_a_pre_aggregator_do_not_make_the_first_state_again(
    optional: RunConfig, tmp_path: Path
) -> None:
    text = OPTIONAL.replace("return {", "Part.num_calls += 1\n        return {", 1)
    text = text.replace("class Part:", "class Part:\n    num_calls = 0\n", 1)
    (tmp_path / "part.py").write_text(text.replace('"most": self.most', '"calls": Part.num_calls'))
    run = package.train(replace(optional, pre_aggregator="bucketing"), tmp_path / "run")
    calls = [line["aggregator"]["calls"] for line in run.metrics]
    assert calls == [calls[0]] * 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return {", "return [", r"part.py:11: init_for returned a state of type list; give a d"),
        ("np.zeros", "np.zeroes", r"part.py:12: init_for: AttributeError: .*; correct the code of"),
        ('f"it needs', '1 or f"', r"part.py:14: problem returned int; give a text that says why 2"),
        (
            "self.least:",
            "least:",
            r"part.py:15: problem: NameError: .*; correct the code of the ag",
        ),
        (
            "return Part(",
            "print(",
            r"part.py:18: for_cohort returned NoneType, which has no init, ",
        ),
        (
            "return Part(",
            "Port(",
            r"part.py:19: for_cohort: NameError: .*; correct the code of the",
        ),
    ],
)
def test_a_fault_of_an_optional_method_is_one_line_with_its_place(
    optional: RunConfig, tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in OPTIONAL
    text = OPTIONAL.replace(old, new, 1).replace('["last": np.zeros(num_params, np.float32)}', "[]")
    (tmp_path / "part.py").write_text(text)
    config = replace(optional, pre_aggregator="bucketing", aggregator_options={"least": 5})
    with pytest.raises(PartError, match=words) as caught:
        package.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_parts_that_do_what_fedclis_own_do_make_the_same_rounds(tmp_path: Path) -> None:
    paths = {}
    for field in ("algorithm", "aggregator", "server_optimizer"):
        (tmp_path / f"{field}.py").write_text(TEXTS[field])
        paths[field] = str(tmp_path / f"{field}.py")
    run = package.train(RunConfig(**{**vars(SMALL), **paths}), tmp_path / "run")
    plain = package.train(SMALL, tmp_path / "plain")
    assert [line["client_work"] for line in run.metrics] == [
        line["client_work"] for line in plain.metrics
    ]


def test_v_shows_the_traceback_of_the_users_code(tmp_path: Path, fedcli: Fedcli) -> None:
    (tmp_path / "part.py").write_text(ALGORITHM.replace("call.train", "1 / 0 + call.train"))
    done = fedcli("train", "--algorithm", "part.py", "-v", "--rounds", 1)
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert 'part.py", line 10, in run' in done.err
    assert "own.py" not in done.err


def test_a_file_that_does_not_say_which_part_is_meant(tmp_path: Path) -> None:
    two = f"{ALGORITHM}\n\nclass Other(Part):\n    pass\n"
    with pytest.raises(
        PartError, match=r"has no function or class 'build'; it has Part, Other; give"
    ):
        row_of(tmp_path, two)
    assert row_of(tmp_path, two, ":Other").code.endswith(":Other")
    with pytest.raises(PartError, match="has no function or class 'Third'"):
        row_of(tmp_path, two, ":Third")
    with pytest.raises(PartError, match=r"cannot read the algorithm .*none.py: No such file"):
        opened(tables.ALGORITHMS[str(tmp_path / "none.py")])


def test_a_config_is_valid_without_running_its_code(tmp_path: Path) -> None:
    file = tmp_path / "part.py"
    file.write_text("raise SystemExit('it was run')")
    config = settings.from_options({"algorithm": str(file), "algorithm_options": {"a": 1}})
    assert config.algorithm_options == {"a": 1}
    assert config.client_lr == 0.02


def test_a_client_optimizer_is_no_part_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--client-optimizer .*only the server's optimizer may be"
    ):
        settings.from_options({"client_optimizer": str(tmp_path / "part.py")})


# ---- Installed ----------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs a package with own parts as pip does. One of the parts fails."""
    site = tmp_path / "site"
    info = site / "fedcli_more-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedcli-more\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[fedcli.algorithms]\nexp = fedcli_more:FedExP\nbroken = fedcli_none:Part\n"
        "[fedcli.aggregators]\nmiddle = fedcli_middle:Median\n"
        "steady = fedcli_steady:Part\n"
        "[fedcli.partitions]\npairs = fedcli_pairs:two_classes\n"
        "[fedcli.server_optimizers]\nlion = fedcli_lion:Lion\n"
    )
    write_example(site, "FedExP", "fedcli_more.py")
    write_example(site, "Median", "fedcli_middle.py")
    write_example(site, "two_classes", "fedcli_pairs.py")
    write_example(site, "Lion", "fedcli_lion.py")
    (site / "fedcli_steady.py").write_text(OPTIONAL)
    monkeypatch.syspath_prepend(site)
    parts.entry_points_of.cache_clear()
    yield site
    parts.entry_points_of.cache_clear()


def test_what_is_installed_is_chosen_by_its_name(installed: Path, tmp_path: Path) -> None:
    config = RunConfig(
        **{
            **{**vars(SMALL), "algorithm": "exp", "aggregator": "middle", "partition": "pairs"},
            "partition_options": {"clients": 10},
        }
    )
    run = package.train(config, tmp_path / "run")
    assert run.config.algorithm_options == {"epsilon": 1e-3}
    package.resume(run.path, num_rounds=4)  # no code has to be named, because the part is installed
    assert evaluate_run(run.path).round_num == 4
    with pytest.raises(ConfigError, match="exp has no option 'rate'; its options are epsilon"):
        settings.from_options({"algorithm": "exp", "algorithm_options": {"rate": 1}})


def test_optional_methods_of_an_installed_aggregator_are_called(
    installed: Path, tmp_path: Path
) -> None:
    config = RunConfig(**{**vars(SMALL), "aggregator": "steady", "pre_aggregator": "bucketing"})
    with pytest.raises(ConfigError, match=r"steady: .*; it needs 3 deltas, not 2; choose"):
        package.train(replace(config, aggregator_options={"least": 3}), tmp_path / "run")
    run = package.train(replace(config, rounds=2), tmp_path / "run")
    run = package.resume(run.path, num_rounds=3)
    assert [line["aggregator"]["most"] for line in run.metrics] == [4] * 3


def test_info_has_what_is_installed(installed: Path, fedcli: Fedcli) -> None:
    listed = fedcli("info").out
    assert "exp" in listed
    assert "middle" in listed
    assert "pairs" in fedcli("info", "partitions").out
    assert "--partition pairs --partition-option clients=100" in fedcli("info", "pairs").out
    assert "Cannot be used: " in fedcli("info", "algorithms").out
    shown = fedcli("info", "exp").out
    assert "Source: fedcli-more 1.2" in shown
    assert "epsilon" in shown


def test_an_installed_optimizer_is_shown_as_one_of_the_server(
    installed: Path, fedcli: Fedcli
) -> None:
    lines = fedcli("info").out.splitlines()
    assert next(line for line in lines if "--server-optimizer" in line).endswith("the same, lion")
    assert "lion" not in next(line for line in lines if "--client-optimizer" in line)
    assert "Example: fedcli train --server-optimizer lion" in fedcli("info", "lion").out


def test_messages_about_unknown_names_know_what_is_installed(
    installed: Path, fedcli: Fedcli
) -> None:
    assert_is_one_line(
        fedcli("train", "--server-optimizer", "lio"), "lion, rmsprop", "did you mean lion?"
    )


def test_what_is_installed_and_fails_is_one_line(installed: Path, fedcli: Fedcli) -> None:
    assert_is_one_line(
        fedcli("train", "--algorithm", "broken"),
        "importing fedcli_none:Part of fedcli-more 1.2: ModuleNotFoundError",
    )
    shutil.rmtree(installed)


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("torch", r"run pip install 'fedcli\[torch\]'$"),
        ("no_such.part", "install the package that has no_such, or correct the import$"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "part.py").write_text(f"import {module}\n")
    with pytest.raises(PartError, match=rf"part.py:1: .*ModuleNotFoundError: .*; {remedy}"):
        package.train(config_with("algorithm", tmp_path / "part.py"), tmp_path / "run")


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/mine.h5", "tensorboard/a/b.tfevents.1"])
def test_a_folder_with_a_file_of_the_user_is_not_deleted(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run" / name
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    discarding.discard(tmp_path / "run")
    assert file.exists()
    assert (tmp_path / "run" / "config.toml").exists()


def test_a_link_in_a_folder_keeps_it_and_what_the_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "round-0.h5").touch()
    for name in ("checkpoints", "config.toml"):
        link = tmp_path / "run" / name
        link.symlink_to(tmp_path / "elsewhere")
        discarding.discard(tmp_path / "run")
        assert (tmp_path / "elsewhere" / "round-0.h5").exists()
        assert link.is_symlink()
        link.unlink()
    discarding.discard(tmp_path / "run")
    assert not (tmp_path / "run").exists()
