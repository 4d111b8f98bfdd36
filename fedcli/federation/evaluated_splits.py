"""The splits that a run is evaluated on, and notes about them.

If every client has its own model (local-only), the split "central" cannot be evaluated: its clients
are outside the federation and have no model. Only this module implements that rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.errors import ConfigError
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.algorithms import ALGORITHMS
from fedcli.settings.vocabulary import (
    HELD_OUT,
    LOCAL_LAYERS,
    LOCAL_NORMS,
    SPLITS,
    VALIDATION,
    WITHOUT_TRAIN,
)


def evaluated_splits(config: RunConfig, splits: Mapping[str, ClientData]) -> list[str]:
    """Returns the splits that a run is evaluated on: train, validation, and test or central.

    Raises:
        ConfigError: The run is to be evaluated without train, and there is no other split.
    """
    others = (VALIDATION if VALIDATION in splits else None, tested_split(config, splits))
    names = [name for name in others if name is not None]
    if config.eval_split != WITHOUT_TRAIN:
        return ["train", *names]
    if not names:
        raise ConfigError(
            f"--eval-split {WITHOUT_TRAIN}: this run has no other split to evaluate; leave it out, "
            "or make test data with fedcli preprocess --hold-out within"
        )
    return names


def due_splits(eval_split: str | None, evaluated: Sequence[str]) -> list[str]:
    """Returns the splits that --eval-every evaluates; `held-out` means the last evaluated split."""
    if eval_split in (None, WITHOUT_TRAIN):
        return list(evaluated)
    return [eval_split if eval_split in SPLITS else evaluated[-1]]


def tested_split(config: RunConfig, splits: Mapping[str, ClientData]) -> str | None:
    """Returns the split that a run is tested on: test, else central, else None."""
    held_out = _held_out_split(splits)
    return None if held_out == CENTRAL and _has_own_models(config) else held_out


def default_split(config: RunConfig, splits: Mapping[str, ClientData]) -> str:
    """Returns the default split of `fedcli eval`: the tested one, else validation, else train."""
    others = (name for name in (VALIDATION, "train") if name in splits)
    return tested_split(config, splits) or next(others, "train")


def notes_of_evaluation(config: RunConfig, splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns notes for the user about a run's evaluations on these splits, one line each."""
    notes = note_of_models(config)
    if config.eval_split == WITHOUT_TRAIN:
        return notes
    where = "train and validation only" if VALIDATION in splits else "train only"
    if _held_out_split(splits) is None:
        source = splits["train"].source
        return (*notes, f"{source} has no test data: evaluating on {where}")
    if tested_split(config, splits) is None:
        why = "the clients of the split central have no model"
        return (*notes, f"{why}: evaluating on {where}")
    return notes


def note_of_models(config: RunConfig) -> tuple[str, ...]:
    """Returns a line about clients' own models, or nothing if all clients share one model."""
    if config.batch_norm in LOCAL_NORMS:
        what = "batch normalization" if config.batch_norm == LOCAL_LAYERS else "moving statistics"
        return (
            f"batch norm {config.batch_norm}: each client is evaluated with its own {what}, or "
            "with the global model's if it never trained",
        )
    if not _has_own_models(config):
        return ()
    what = "each client is evaluated with its own model, or the initial one if it never trained"
    return (f"{config.algorithm}: {what}",)


def check_split(config: RunConfig, split: str) -> None:
    """Checks that the run has a model for the clients of a split. Raises ConfigError."""
    if split == CENTRAL and _has_own_models(config):
        raise ConfigError(
            f"--split {split}: its clients are outside the federation and have no model, because "
            f"{config.algorithm} trains one model per client; choose another --split"
        )


def _held_out_split(splits: Mapping[str, ClientData]) -> str | None:
    return next((name for name in HELD_OUT if name in splits), None)


def _has_own_models(config: RunConfig) -> bool:
    return ALGORITHMS[config.algorithm].has_own_models
