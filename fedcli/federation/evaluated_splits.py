"""Which splits a run is evaluated on, and what to say of it.

Where every client has a model of its own (local-only), there is no model for clients outside of
the federation, and so none for the split "central". This module alone draws that conclusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.errors import ConfigError
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.algorithms import ALGORITHMS
from fedcli.settings.vocabulary import HELD_OUT, SPLITS, VALIDATION


def evaluated_splits(config: RunConfig, splits: Mapping[str, ClientData]) -> list[str]:
    """Returns the splits that a run is evaluated on: train, validation, test or else central."""
    held_out = tested_split(config, splits)
    names = ("train", VALIDATION if VALIDATION in splits else None, held_out)
    return [name for name in names if name is not None]


def due_split(eval_split: str, evaluated: Sequence[str]) -> str:
    """Returns the one of the evaluated splits that --eval-split names; held-out is the last."""
    return eval_split if eval_split in SPLITS else evaluated[-1]


def tested_split(config: RunConfig, splits: Mapping[str, ClientData]) -> str | None:
    """Returns the split that a run is tested on: test, else central, None without both."""
    held_out = _held_out_split(splits)
    return None if held_out == CENTRAL and _has_own_models(config) else held_out


def default_split(config: RunConfig, splits: Mapping[str, ClientData]) -> str:
    """Returns the split that `fedcli eval` takes: that of the test, else validation, else train."""
    others = (name for name in (VALIDATION, "train") if name in splits)
    return tested_split(config, splits) or next(others, "train")


def notes_of_evaluation(config: RunConfig, splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns what to know of the evaluations in a run on these splits, a line each."""
    notes = note_of_models(config)
    where = "train and validation only" if VALIDATION in splits else "train only"
    if _held_out_split(splits) is None:
        source = splits["train"].source
        return (*notes, f"{source} has no test data: evaluating on {where}")
    if tested_split(config, splits) is None:
        why = "central has no client with a model of its own"
        return (*notes, f"{why}: evaluating on {where}")
    return notes


def note_of_models(config: RunConfig) -> tuple[str, ...]:
    """Returns a line on which models are evaluated, or none if it is one for all clients."""
    if not _has_own_models(config):
        return ()
    what = "each client is evaluated with its own model, one that never trained with the initial"
    return (f"{config.algorithm}: {what} one",)


def check_split(config: RunConfig, split: str) -> None:
    """Raises ConfigError if no model of a run is for the clients of a split."""
    if split == CENTRAL and _has_own_models(config):
        raise ConfigError(
            f"--split {split}: its clients are no part of the federation, and every client of this "
            "run has a model of its own; choose another --split"
        )


def _held_out_split(splits: Mapping[str, ClientData]) -> str | None:
    return next((name for name in HELD_OUT if name in splits), None)


def _has_own_models(config: RunConfig) -> bool:
    return ALGORITHMS[config.algorithm].has_own_models
