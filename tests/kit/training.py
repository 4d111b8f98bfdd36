"""Small runs: trained to their end, for some rounds, or until their process is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.runs import starting
from fedcli.runs.files import checkpoint, folder
from fedcli.runs.loop import Training
from fedcli.runs.trained import export_run
from fedcli.settings.run_config import RunConfig

SMALL: dict[str, Any] = {
    "data_options": {"clients": 12},
    "clients": "4",
    "rounds": 6,
    "epochs": 2,
    "max_examples": 60,
    "threads": 2,
}
MOMENTUM: dict[str, Any] = {
    "client_options": {"momentum": 0.5},
    "server_options": {"momentum": 0.9, "nesterov": True},
    "client_weighting": "uniform",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": MOMENTUM,
    "uniform": {"sampling": "uniform", "eval_every": 2, **MOMENTUM},
    "one-split": {"sampling": "uniform", "eval_every": 2, "eval_split": "held-out"},
    "adam": {"client_optimizer": "yogi", "server_optimizer": "adam", "server_lr": 0.01},
    "adafactor": {"server_optimizer": "adafactor", "server_lr": 0.1, "model": "mlp-2nn"},
    "tff": {"sampling": "tff", "seed": 1},
    "with-replacement": {"sampling": "with-replacement", "clients": "12", **MOMENTUM},
    "poisson": {"sampling": "poisson", "clients": "1", **MOMENTUM},  # some cohorts are empty
    "cyclic": {"sampling": "cyclic", "clients": "5"},  # a pass ends within a cohort
    "by-size": {"sampling": "by-size", "clients": "0.4"},
    "fedsgd": {"algorithm": "fedsgd", "sampling": "uniform"},
    "batch-norm": {
        "model": "resnet20-bn",
        "model_options": {"norm_momentum": 0.5},
        "max_examples": 12,  # few small batches, the last of 2: the model is large
        "batch_size": 5,
        "eval_clients": "2",
        "sampling": "uniform",
        "clients": "3",
        "server_optimizer": "adam",
        "server_lr": 0.01,
        "eval_every": 2,
    },
    "local-batch-norm": {
        "model": "resnet20-bn",
        "model_options": {"norm_momentum": 0.5},
        "batch_norm": "local-layers",
        "max_examples": 12,
        "batch_size": 5,
        "eval_clients": "2",
        "sampling": "with-replacement",
        "clients": "4",
        "client_dropout": 0.2,
        "server_optimizer": "adam",
        "server_lr": 0.01,
        "eval_every": 2,
        "record_clients": True,
    },
    "augmented": {
        "augment": "crop+flip+rotation+cutout+color-jitter",
        "augment_options": {"padding": 2},
        "normalize": "train",
        "label_smoothing": 0.1,
        "client_weight_decay": 1e-3,
        "sampling": "uniform",
        "eval_every": 2,
    },
    "mixup": {
        "augment": "crop+flip+mixup",
        "augment_options": {"padding": 2, "alpha": 0.4},
        "normalize": "image",
        "algorithm": "scaffold",
        "sampling": "with-replacement",
        "clients": "6",
        "eval_every": 2,
    },
    "mime-lite": {
        "algorithm": "mime-lite",
        "sampling": "uniform",
        "client_options": {"momentum": 0.9},
        "aggregator": "tff-robust",
    },
    "scheduled": {
        "algorithm": "fedprox",
        "client_options": {"momentum": 0.5},
        "client_schedule": "cosine",
        "client_schedule_options": {"warmup_rounds": 2},
        "client_clip_norm": 0.5,
        "server_schedule": "step",
        "server_schedule_options": {"boundaries": [2, 4], "factors": [0.5, 0.25]},
    },
    "scaffold": {"algorithm": "scaffold", "sampling": "uniform"},
    "scaffold-fixed": {"algorithm": "scaffold", "aggregator": "tff-robust", "eval_every": 1},
    "feddyn": {"algorithm": "feddyn", "sampling": "with-replacement", "clients": "7"},
    "median": {"aggregator": "median", "sampling": "uniform", "client_weighting": "uniform"},
    "scaffold-median": {"algorithm": "scaffold", "aggregator": "median", "clients": "9"},
    "feddyn-median": {"algorithm": "feddyn", "aggregator": "median", "sampling": "poisson"},
    "foolsgold": {"aggregator": "foolsgold", "sampling": "with-replacement", "clients": "6"},
    "scaffold-foolsgold": {"algorithm": "scaffold", "aggregator": "foolsgold"},
    "clipping-bucketing": {
        "aggregator": "centered-clipping",
        "aggregator_options": {"radius": 0.05},
        "pre_aggregator": "bucketing",
        "sampling": "uniform",
    },
    "fltrust-dropout": {
        "aggregator": "fltrust",
        "aggregator_options": {"root_examples": 30},
        "client_dropout": 0.3,
    },
    "krum-skipping": {
        "aggregator": "krum",
        "aggregator_options": {"num_byzantine": 0.3},
        "sampling": "poisson",
        "clients": "4",  # some cohorts are too small
    },
    "dnc-nnm": {
        "algorithm": "fednova",
        "aggregator": "dnc",
        "aggregator_options": {"coordinates": 300, "num_byzantine": 1},
        "pre_aggregator": "nnm",
        "sampling": "uniform",
        "clients": "6",
    },
    "norm-bound": {"aggregator": "norm-bound", "aggregator_options": {"max_norm": 0.1}},
    "uniform-8": {"compress": "uniform", "client_dropout": 0.3, "sampling": "uniform"},
    "top-k": {
        "algorithm": "scaffold",
        "sampling": "with-replacement",
        "clients": "7",
        "compress": "top-k",
    },
    "powersgd": {"compress": "powersgd", "sampling": "uniform", "aggregator": "median"},
    "sketch": {"compress": "sketch", "sampling": "poisson", "compress_options": {"width": 0.05}},
    "sign-feddyn": {"algorithm": "feddyn", "compress": "sign", "aggregator": "norm-bound"},
    "private": {  # some cohorts are empty
        "dp": "gaussian",
        "dp_options": {"noise_multiplier": 1.5, "clip": 0.3, "delta": 1e-3},
        "sampling": "poisson",
        "clients": "1",
    },
    "private-adaptive": {
        "dp": "gaussian-adaptive",
        "dp_options": {"target_epsilon": 4.0, "delta": 1e-3, "count_stddev": 3.0},
        "sampling": "uniform",
        "server_options": {"momentum": 0.9},
    },
    "private-tree": {
        "dp": "tree",
        "dp_options": {"noise_multiplier": 2.0, "clip": 0.3, "delta": 1e-3},
        "sampling": "cyclic",
        "clients": "3",
        "algorithm": "fedadam",
    },
    "fednova": {"algorithm": "fednova", "client_options": {"momentum": 0.9}},
    "mime": {
        "algorithm": "mime",
        "sampling": "poisson",
        "clients": "3",
        "client_options": {"momentum": 0.9},
    },
    "fedyogi": {"algorithm": "fedyogi", "server_ema": 0.9, "eval_every": 2},
    "by-local-step": {
        "client_schedule": "inverse-sqrt",
        "client_schedule_by": "local-step",
        "client_schedule_options": {"decay_rounds": 2},
    },
    "absent": {
        "sampling": "with-replacement",
        "client_dropout": 0.4,
        "client_speeds": (100.0, 10.0),
        "communication_seconds": 0.1,
        "deadline": 10.0,
        "over_selection": 0.5,
        "min_reports": 2,
        **MOMENTUM,
    },
    "mimic": {
        "attack": "mimic",
        "attack_options": {"warmup": 3},
        "attackers": "3",
        "sampling": "uniform",
        "aggregator": "median",
    },
    "gaussian": {"attack": "gaussian", "attackers": "0.25", "sampling": "with-replacement"},
    "backdoor": {
        "attack": "backdoor",
        "attack_options": {"start": 2, "every": 2, "radius": 1.0},
        "attackers": "2",
        "algorithm": "scaffold",
        "eval_every": 2,
    },
    "centralized": {"algorithm": "centralized", "sampling": "uniform", "client_dropout": 0.3},
    "2nn": {"model": "mlp-2nn", "seed": 5, "client_lr": 0.1, "pixels": "ink"},
}

# Children are forked from a process that has already imported everything.
_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload(["tests.kit.training"])


def make_config(**values: Any) -> RunConfig:
    """Returns the config `SMALL` with some values replaced."""
    return settings.from_options({**SMALL, **values})


def train(path: Path, config: RunConfig) -> dict[str, Any]:
    """Trains a run to its end and returns its closing evaluation."""
    with starting.start(config, path) as training:
        for _ in training.run():
            pass
        return training.finish()


def trained(path: Path, **values: Any) -> Path:
    """Trains `make_config(**values)` to its end, and returns its folder."""
    train(path, make_config(**values))
    return path


def trained_with_a_stop(path: Path, after: int, **values: Any) -> Path:
    """As `trained`, but the run is stopped within a round, as by Ctrl-C, and then resumed."""
    cancel: CancelFlag = CancelFlag()
    with starting.start(make_config(**values), path, cancel=cancel) as training:
        done = training.run()
        while training.round_num < after:
            next(done)
        cancel.set()
        with pytest.raises(Cancelled):
            next(done)
    resume_to_end(path)
    return path


def last_weights(path: Path) -> list[bytes]:
    """Returns the bytes of each tensor of a run's last checkpoint."""
    parts = checkpoint.load(folder.latest_checkpoint(path)).components["global_model_weights"]
    return [np.asarray(each).tobytes() for each in parts.values()]


def resume_to_end(path: Path, **options: Any) -> None:
    """Resumes a run and trains it to its end."""
    with starting.resume(path, **options) as training:
        for _ in training.run():
            pass
        training.finish()


def train_rounds(path: Path, config: RunConfig, num_rounds: int) -> None:
    """Starts a run and stops it after `num_rounds` rounds, as Ctrl-C between two rounds does."""
    with starting.start(config, path) as training:
        _take(training, num_rounds)


def resume_rounds(path: Path, num_rounds: int, **options: Any) -> None:
    """Resumes a run for `num_rounds` rounds, and stops it."""
    with starting.resume(path, **options) as training:
        _take(training, num_rounds)


def _take(training: Training, num_rounds: int) -> None:
    rounds_left = training.run()
    list(itertools.islice(rounds_left, num_rounds))
    rounds_left.close()


def train_and_vanish(path: Path, values: Mapping[str, Any], num_rounds: int) -> None:
    """Trains in another process, which then ends as if killed: without handlers, flush or save."""
    child = _CHILDREN.Process(target=_vanish, args=(path, dict(values), num_rounds))
    child.start()
    child.join()
    assert child.exitcode == 9


def _vanish(path: Path, values: Mapping[str, Any], num_rounds: int) -> None:
    training = starting.start(settings.from_options(values), path)
    rounds_left = training.run()
    for _ in itertools.islice(rounds_left, num_rounds):
        pass
    os._exit(9)


def figures(path: Path) -> dict[str, bytes]:
    """Returns what a run computed: metrics, evaluation and exported weights."""
    weights = path.with_suffix(".npz")
    export_run(path, weights)
    files = [path / name for name in ("metrics.jsonl", "evaluation.json")]
    return {**{file.name: file.read_bytes() for file in files}, "weights": weights.read_bytes()}


def results(path: Path) -> dict[str, bytes]:
    """Returns what does not depend on the clock: `figures`, config and last checkpoint."""
    files = [path / "config.toml", folder.latest_checkpoint(path)]
    return {**figures(path), **{file.name: file.read_bytes() for file in files}}


def move_to_a_lost_cluster(path: Path) -> None:
    """Makes a run look as if it was trained on a Ray cluster that no longer exists.

    The clients of a run are computed to the same bytes on a cluster and by threads.
    """
    options = '[run]\nengine = "ray"\nengine_options = { address = "127.0.0.1:1" }\n'
    file = path / "config.toml"
    file.write_text(file.read_text().replace("[run]\n", options, 1))
    for file in folder.find_checkpoints(path):
        content = checkpoint.load(file)
        config = content.config.replace("[run]\n", options, 1)
        file.write_bytes(checkpoint.encode(replace(content, config=config)))


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    """Returns the modification time and the bytes of each file below a folder."""
    files = [each for each in path.rglob("*") if each.is_file()]
    return {str(each): (each.stat().st_mtime_ns, each.read_bytes()) for each in files}
