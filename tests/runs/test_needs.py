"""Estimates of what a run needs, compared with measurements of runs; and the messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedcli import settings
from fedcli.core import native
from fedcli.datasets.batch_plan import plan_of
from fedcli.errors import ConfigError
from fedcli.models import zoo
from fedcli.runs import needs, starting
from fedcli.runs.building import build_algorithm, build_stages
from fedcli.runs.files import folder
from fedcli.runs.needs import Needs, Workload
from tests.kit.command_line import Fedcli, assert_is_one_line

NUM_CLASSES = 2000
VECTOR = 4 * 785 * NUM_CLASSES
SMALL: dict[str, Any] = {
    "data_options": {"clients": 20},
    "clients": "8",
    "max_examples": 10,
    "epochs": 1,
    "rounds": 2,
    "threads": 1,
    "num_classes": NUM_CLASSES,
}

RUN = """
import json, resource, sys
from fedcli import settings
from fedcli.runs import starting
values = json.loads(sys.argv[1])
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss, which also counts the process from which this one was forked.
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
def train(name, **more):
    with starting.start(settings.from_options({**values, **more}), name) as run:
        list(run.run())
    return peak()
before = train(sys.argv[2] + "-small", num_classes=10)
print(train(sys.argv[2]) - before)
"""


def _estimate(values: dict[str, Any], cohort: int = 8, population: int = 20) -> Needs:
    config = settings.validate(settings.from_options(values))
    layout = zoo.build_layout("softmax-regression", num_classes=config.num_classes or 10)
    load = Workload(cohort, population, 10.0, config.threads or 1)
    algorithm = build_algorithm(config)
    stages = build_stages(config, algorithm, None)
    return needs.estimate(config, algorithm, stages, layout, plan_of(config), load)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"threads": 2},
        {"server_optimizer": "adam", "server_lr": 0.01},
        {"algorithm": "scaffold"},
        {"algorithm": "feddyn"},
        {"algorithm": "local-only"},
        {"aggregator": "median", "client_weighting": "uniform"},
        {"aggregator": "foolsgold"},
        {"aggregator": "centered-clipping", "pre_aggregator": "nnm"},
    ],
    ids=[
        *("plain", "threads", "adam", "scaffold", "feddyn", "local-only", "median"),
        *("foolsgold", "clipping"),
    ],
)
def test_runs_take_one_to_three_times_the_estimate(tmp_path: Path, given: dict[str, Any]) -> None:
    values = {**SMALL, **given}
    command = [sys.executable, "-c", RUN, json.dumps(values), str(tmp_path / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken, told = int(done.stdout), _estimate(values)
    assert taken / 2 < sum(told.memory.values()) < taken
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    assert on_disk / 3 < sum(told.disk.values()) < on_disk


def test_what_clients_keep_counts_those_who_take_part() -> None:
    values = {**SMALL, "algorithm": "local-only", "sampling": "uniform"}
    once = _estimate({**values, "rounds": 1}, 8, 1000).disk["clients"]
    often = _estimate({**values, "rounds": 20}, 8, 1000).disk["clients"]
    for_ever = _estimate({**values, "rounds": 100_000}, 8, 1000).disk["clients"]
    assert (once, for_ever) == (8 * VECTOR, 1000 * VECTOR)
    assert 100 * VECTOR < often < 160 * VECTOR
    assert _estimate(SMALL).disk["clients"] == 0


def test_a_run_that_needs_little_gets_a_short_note() -> None:
    assert _estimate({**SMALL, "num_classes": 10}).notes() == []


def test_a_run_that_needs_much_gets_a_warning() -> None:
    much = Needs({"parameters": 5 << 30}, {"checkpoints": 2 << 30}, 3 << 30, 150.0, "a model")
    assert much.notes() == [
        "this run needs about 5.4 GB of memory, 2.1 GB of disk in its folder, 3.2 GB of temporary "
        "files, 2 minutes a round: a model"
    ]


def _machine(root: Path, available_kb: int) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemAvailable: {available_kb} kB\n")
    return root


@pytest.mark.parametrize(
    ("memory", "remedy"),
    [
        ({"parameters": 9_000_000, "threads": 1}, "smaller --model"),
        ({"parameters": 1, "threads": 9_000_000}, "fewer --threads"),
        ({"clients": 9_000_000, "threads": 1}, r"fewer --clients \(below 8\)"),
        ({"batches": 9_000_000, "threads": 1}, "smaller --batch-size"),
        ({"shuffling": 9_000_000, "threads": 1}, "smaller --shuffle-buffer"),
    ],
)
def test_a_run_that_needs_more_memory_than_is_free_is_refused(
    tmp_path: Path, memory: dict[str, int], remedy: str
) -> None:
    root, much = _machine(tmp_path, 8000), Needs(memory, {}, 0, 0.0, "a model")
    with pytest.raises(ConfigError, match=rf"9 MB of memory, but 8 MB are free .*{remedy}"):
        much.check(tmp_path, root)
    Needs({"parameters": 8_000_000}, {}, 0, 0.0, "a model").check(tmp_path, root)


def test_a_run_that_needs_more_disk_than_is_free_is_refused(tmp_path: Path) -> None:
    too_much = 1 << 62
    for disk, remedy in (
        ({"checkpoints": too_much, "clients": 0}, "--keep-checkpoints"),
        ({"checkpoints": 1, "clients": too_much}, "--algorithm"),
    ):
        with pytest.raises(ConfigError, match=rf"of disk, but .*/new.*{remedy}"):
            Needs({}, disk, 0, 0.0, "a model").check(tmp_path / "not" / "there" / "new")
    with pytest.raises(ConfigError, match=r"for temporary files, but .*TMPDIR"):
        Needs({}, {}, too_much, 0.0, "a model").check(tmp_path)


def test_a_full_shuffle_keeps_an_index_of_each_example_of_all_epochs() -> None:
    full = {**SMALL, "shuffle_buffer": "full", "epochs": 1_000_000, "threads": 2}
    assert _estimate(full).memory["shuffling"] == 2 * 4 * 10 * 1_000_000
    for less, num_indices in (
        ({"pipeline": "per-epoch"}, 10),
        ({"shuffle_buffer": 100}, 100),
        ({"shuffle_buffer": 0}, 1),
        ({"epochs": 2**31 - 1}, 2**32 - 1),  # the core draws positions in 32 bits
    ):
        assert _estimate({**full, **less}).memory["shuffling"] == 2 * 4 * num_indices, less


@pytest.mark.parametrize(
    ("large", "remedy"),
    [
        # Some 780 GB for the parameters and sums that each of 64 threads has.
        ("--num-classes 1000000", "fewer --threads"),
        # Some 1,100 GB for the shuffle, 2 ** 32 indices for each of 64 threads.
        ("--epochs 2000000000 --shuffle-buffer full --max-examples 20", "--shuffle-buffer"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_any_of_it_is_made(
    fedcli: Fedcli, tmp_path: Path, large: str, remedy: str
) -> None:
    large += " --threads 64 --clients 64 --data-option clients=64"
    done = fedcli("train", *large.split(), "--out", "run")
    assert_is_one_line(done, "of memory, but", remedy)
    assert list(tmp_path.iterdir()) == []


def test_memory_for_batches_is_what_the_core_counts() -> None:
    config = settings.validate(settings.from_options({"batch_size": 64, "epochs": 1, "threads": 3}))
    layout = zoo.build_layout("resnet20", input_shape=(32, 32, 3))
    algorithm = build_algorithm(config)

    def of_batches(cohort: int, examples: float) -> int:
        load = Workload(cohort, 100, examples, 3)
        needed = needs.estimate(config, algorithm, [], layout, plan_of(config), load)
        return needed.memory["batches"]

    rows, num_params = layout.core_rows(), layout.num_params
    shared = native.batch_bytes(rows, num_params, 64, num_clients=1, num_threads=3)
    assert of_batches(1, 100.0) == shared
    assert of_batches(20, 100.0) == 3 * native.batch_bytes(rows, num_params, 64)
    assert of_batches(20, 9.5) == 3 * native.batch_bytes(rows, num_params, 10)


def test_a_batch_that_the_core_does_not_take_is_refused_before_any_work(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    done = fedcli(
        *("train", "--batch-size", 20_000_000, "--epochs", 200_000, "--rounds", 1, "--out", "run")
    )
    assert_is_one_line(
        done, "--batch-size 20000000: a batch of a client of", "choose at most 16,777,216"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_is_compared_with_the_machine_too(tmp_path: Path) -> None:
    values = {**SMALL, "num_classes": 10}
    with starting.start(settings.from_options(values), tmp_path / "run") as training:
        list(training.run())
    with starting.resume(tmp_path / "run", rounds=3) as training:
        assert not any("this run needs" in note for note in training.notes)
    assert folder.checkpoint_rounds(tmp_path / "run")[-1] == 2
