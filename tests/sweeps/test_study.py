"""The contents of study.toml, and one line for each kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.settings.run_config import RunConfig
from fedcli.settings.toml_values import parse_toml
from fedcli.sweeps import study as study_file
from fedcli.sweeps.code import check_code, resume_command
from fedcli.sweeps.planning import plan_of
from fedcli.sweeps.points import grid_points
from fedcli.sweeps.study_values import Range, read_range, read_seeds, split_values

WHOLE = """
seeds = "0..2"
redraw_partition = true

[run]
rounds = 30
partition = "dirichlet-client"
partition_options.alpha = 0.1
validation = 0.1

[grid]
client_lr = [0.01, 0.1]
client_options.momentum = [0.0, 0.9]

[[case]]
name = "FedAvg"

[[case]]
name = "FedProx"
algorithm = "fedprox"
algorithm_options.proximal_strength = 0.1
grid.client_lr = [0.3]

[select]
metric = "loss"
on = "validation"

[halving]
min_rounds = 10
eta = 2
"""


def read(text: str) -> study_file.Study:
    return study_file.read(parse_toml(text, "study.toml"), "study.toml")


def test_points_are_the_product_of_the_grid_in_order() -> None:
    study = read(WHOLE)
    points = grid_points(study)
    assert [each.text for each in points] == [
        "FedAvg, client_lr=0.01, client_options.momentum=0",
        "FedAvg, client_lr=0.01, client_options.momentum=0.9",
        "FedAvg, client_lr=0.1, client_options.momentum=0",
        "FedAvg, client_lr=0.1, client_options.momentum=0.9",
        "FedProx, client_lr=0.3, client_options.momentum=0",
        "FedProx, client_lr=0.3, client_options.momentum=0.9",
    ]
    last = points[-1].configs
    assert [config.seed for config in last] == [0, 1, 2]
    assert [config.partition_options["seed"] for config in last] == [0, 1, 2]
    assert {config.algorithm for config in last} == {"fedprox"}
    assert {config.algorithm_options["proximal_strength"] for config in last} == {0.1}
    assert {config.client_options["momentum"] for config in last} == {0.9}
    assert {config.threads for config in last} == {1}
    assert points[0].configs[0].algorithm == "fedavg"


def test_a_study_reads_back_from_its_own_text() -> None:
    for text in (
        WHOLE,
        "",
        'random = 3\n[range]\nclient_lr = "log:1e-3..1"\nepochs = "linear:1..5"',
    ):
        study = read(text)
        assert read(study_file.to_toml(study)) == study


def test_a_config_in_python_is_the_run_of_a_study() -> None:
    study = study_file.read({"run": RunConfig(rounds=3), "grid": {"epochs": [1, 2]}}, "the study")
    assert [point.configs[0].rounds for point in grid_points(study)] == [3, 3]


def test_paths_become_absolute(tmp_path: Path) -> None:
    text = '[run]\ndata = "a.h5"\n[grid]\nmodel = ["b.keras", "mlp-2nn"]\n'
    study = study_file.with_absolute_paths(read(text), tmp_path)
    assert study.run["data"] == str(tmp_path / "a.h5")
    assert study.grid["model"] == (str(tmp_path / "b.keras"), "mlp-2nn")


def test_none_stands_for_an_absent_name() -> None:
    text = '[run]\ncompress = "none"\n[grid]\naugment = ["none", "flip"]\nnormalize = ["none"]\n'
    study = read(text)
    assert read(study_file.to_toml(study)) == study
    configs = [point.configs[0] for point in grid_points(study)]
    assert [each.augment for each in configs] == [None, "flip"]
    assert {(each.compress, each.normalize) for each in configs} == {(None, None)}


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("client_lr", "0.1, 1e-2", [0.1, 0.01]),
        ("client_lr", "0.1,x", [0.1, "x"]),  # refused later
        (
            "normalize",
            "train,0.5,0.4,0.3:0.2,0.2,0.1,none",
            ["train", "0.5,0.4,0.3:0.2,0.2,0.1", "none"],
        ),
        ("normalize", "0.5,0.4:0.2", [0.5, "0.4:0.2"]),  # refused later
        ("augment", "none,crop+flip", ["none", "crop+flip"]),
        ("clients", '["a,b", "c"]', ["a,b", "c"]),
    ],
)
def test_values_may_have_commas(name: str, text: str, values: list[Any]) -> None:
    assert split_values(text, name) == values


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(3, (0, 1, 2)), ("2", (0, 1)), ("1..3", (1, 2, 3)), ("4,1", (4, 1)), ([7, 9], (7, 9))],
)
def test_seeds(given: Any, seeds: tuple[int, ...]) -> None:
    assert read_seeds(given, "seeds") == seeds


def test_ranges_include_their_ends_and_nothing_beyond() -> None:
    whole = read_range("epochs", "linear:1..3", "range")
    assert [whole.at(share) for share in (0.0, 0.34, 0.67, 0.999999)] == [1, 2, 3, 3]
    log = read_range("client_lr", "log:1e-3..10", "range")
    assert log.at(0.0) == 0.001
    assert log.at(0.5) == 0.1
    assert 9.9 < log.at(0.9999999) <= 10
    choice = read_range("model", "choice:mlp-2nn,lenet5", "range")
    assert [choice.at(share) for share in (0.0, 0.49, 0.5, 0.99)] == [
        *("mlp-2nn", "mlp-2nn", "lenet5", "lenet5")
    ]
    whole_log = Range("log", 1.0, 100.0, is_whole=True)
    assert [whole_log.at(share) for share in (0.0, 0.9999999)] == [1, 100]


MISTAKES = {
    "no TOML": ("[run", "study.toml is not TOML"),
    "a key": ("seed = 1", "unknown key 'seed'", "did you mean seeds"),
    "an option": ("[run]\nclient_rl = 1", "run: there is no option 'client_rl'", "client_lr"),
    "a value": ("[run]\nrounds = 0", "run: rounds 0: choose a whole number"),
    "a type": ("run = 3", "run 3: give a table"),
    "a grid of no list": ("[grid]\nclient_lr = 0.1", "grid: client_lr 0.1: give a list"),
    "an empty list": ("[grid]\nclient_lr = []", "give a list of values"),
    "a value in the grid": ("[grid]\nclient_lr = [-1]", "grid: client_lr -1"),
    "a value twice": ("[grid]\nclient_lr = [0.1, 0.1]", "lists a value twice"),
    "a part of no table": ("[grid]\nclient_lr.x = [1]", "client_lr has no part 'x'"),
    "a single option": ("[grid]\nclient_option.momentum = [1]", "client_options.momentum"),
    "the seed in the grid": ("[grid]\nseed = [1]", "a study gives seeds by --seeds"),
    "threads": ("[run]\nthreads = 2", "each run of a study has one thread"),
    "an engine": ('[run]\nengine = "ray"', "the runs of a study are computed by threads"),
    "a seed": ("seeds = [1, 1]", "a seed is given twice"),
    "seeds": ('seeds = "a..b"', "give the first and the last seed, as in 0..4"),
    "no seeds": ("seeds = 0", "choose 1 to 1000 seeds"),
    "a case without a name": ('[[case]]\nalgorithm = "fedprox"', "case 1: it needs a name"),
    "a case twice": ('[[case]]\nname = "a"\n[[case]]\nname = "a"', "two cases have the name 'a'"),
    "cases of no table": ("case = 1", "give [[case]] tables"),
    "an option in case and grid": (
        '[grid]\nclient_lr = [1]\n[[case]]\nname = "a"\nclient_lr = 2',
        "client_lr is in case 'a' and in the grid",
    ),
    "a combination": (
        '[grid]\nclient_optimizer = ["sgd"]\n[[case]]\nname = "a"\nalgorithm = "fedsgd"',
        "point 1 (a, client_optimizer=sgd): --client-optimizer: the clients of fedsgd take no",
    ),
    "an algorithm": ('[run]\nalgorithm = "fedavgg"', "unknown --algorithm 'fedavgg'", "fedavg"),
    "two methods": (
        'random = 3\n[range]\nepochs = "linear:1..2"\n[grid]\nclient_lr = [1]',
        "grid and random each define the points",
    ),
    "no ranges": ("random = 3", "lacks ranges; add [range]"),
    "ranges alone": ('[range]\nepochs = "linear:1..2"', "lacks a method"),
    "a range": ("random = 1\n[range]\nepochs = 3", "range epochs 3: give log:LOW..HIGH"),
    "the ends of a range": ('random = 1\n[range]\nepochs = "log:2..1"', "give two numbers"),
    "a log of zero": ('random = 1\n[range]\nclient_lr = "log:0..1"', "above 0 for a log range"),
    "the value of a range": ('random = 1\n[range]\nepochs = "linear:0..2"', "epochs 0"),
    "a metric": ('[select]\nmetric = "acc"', "select: metric acc: choose one of", "accuracy"),
    "a split": ('[select]\non = "valid"', "select: on valid: choose one of validation"),
    "a key of select": ("[select]\nsplit = 1", "select: unknown key 'split'"),
    "halving without rounds": ("[halving]\neta = 3", "halving: it needs min_rounds"),
    "eta": ("[halving]\nmin_rounds = 2\neta = 1", "eta 1: choose a whole number from 2"),
    "too few rounds": ("[halving]\nmin_rounds = 10", "min_rounds 10 is not below the 10 rounds"),
    "rounds in the grid": (
        "[grid]\nrounds = [1, 2]\n[halving]\nmin_rounds = 2",
        "halving sets the rounds",
    ),
    "a schedule that ends with the run": (
        '[run]\nclient_schedule = "cosine"\n[halving]\nmin_rounds = 2',
        "ends with the run; set its length",
    ),
    "halving a search": (
        'search = 2\n[range]\nepochs = "linear:1..2"\n[halving]\nmin_rounds = 2',
        "search and halving cannot be combined",
    ),
    "no partition to redraw": ("redraw_partition = true", "there is no partition"),
    "a switch": ("redraw_partition = 1", "choose true or false"),
    "two seeds of a partition": (
        '[run]\npartition = "iid"\n[grid]\npartition_options.seed = [1]\n'.replace(
            "[run]", "redraw_partition = true\n[run]"
        ),
        "redraw_partition sets the partition's seed",
    ),
    "too many runs": (
        "seeds = 1000\n[grid]\nclient_lr = [" + ",".join(f"0.{n:05}" for n in range(1, 2000)) + "]",
        "points with 1,000 seeds each",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_kind_of_mistake_is_one_line(mistake: str) -> None:
    text, *words = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        next(plan_of(read(text)))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_code_runs_only_if_the_user_names_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = f'[[case]]\nname = "own"\nalgorithm = "{file}:Mine"\n'
    with pytest.raises(ConfigError, match=r"no such file; relative .* start from the current fold"):
        check_code(read(text), [])
    file.touch()
    with pytest.raises(ConfigError, match=r"pass --code .*mine\.py to allow it"):
        check_code(read(text), [])
    check_code(read(text), [file])
    check_code(read("[run]\nrounds = 1"), [])
    grid = f'[grid]\naggregator = ["mean", "{file}"]\n'
    with pytest.raises(ConfigError, match="--code"):
        check_code(read(grid), [tmp_path / "other.py"])
    command = resume_command(Path("studies/six"), read(text + grid))
    assert command == f"fedcli sweep --resume studies/six --code {file}"
    assert resume_command(Path("six"), read("[run]\nrounds = 1")) == "fedcli sweep --resume six"
    assert resume_command(Path("a b"), read("[run]\nrounds = 1")).endswith("--resume 'a b'")
