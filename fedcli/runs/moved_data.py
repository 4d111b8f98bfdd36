"""Data that were moved since a run began, and are recognised by their fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcli import datasets
from fedcli.errors import ConfigError, DataError
from fedcli.settings import tables
from fedcli.settings.data_source import IN_MEMORY, DataSource
from fedcli.settings.run_config import DATA_FIELDS, RunConfig

PLACES = ("data", "test_data")  # the options that name data files


def missing_places(source: DataSource) -> list[str]:
    """Returns the files of a source that do not exist."""
    names = source.names if isinstance(source.data, str) else source.names[1:]
    return [name for name in names if name not in tables.DATASETS and not Path(name).exists()]


def with_new_places(config: RunConfig, places: Mapping[str, Any], known: str | None) -> RunConfig:
    """Returns the config with new places of its data.

    Args:
        config: Config of a run.
        places: The new values of `data`, `test_data` or both.
        known: The fingerprint of the data that the run was trained on; None if it is not known.

    Raises:
        ConfigError: The data there are not those that the run was trained on.
        DataError: They cannot be found or read.
    """
    config = _moved(config, places)
    if known is not None and datasets.fingerprint(config.data_source) != known:
        listed = " and ".join(str(places[name]) for name in PLACES if name in places)
        raise ConfigError(
            f"{listed}: not the data that the run was trained on; give the present path of those "
            "data, or train another run with --config"
        )
    return config


def found_elsewhere(
    config: RunConfig, places: Mapping[str, Any], known: str | None
) -> RunConfig | None:
    """Returns the config with these places if the run's own data are now there; else None.

    The new places are read only if data of the run are missing from their former place.
    """
    names = {name for name in places if name in DATA_FIELDS}
    if known is None or not names or not names <= set(PLACES):
        return None
    if not missing_places(config.data_source):
        return None
    moved = _moved(config, places)
    try:
        is_same = datasets.fingerprint(moved.data_source) == known
    except DataError:
        return None
    return moved if is_same else None


def is_only_moved(config: RunConfig, before: RunConfig, known: str | None) -> bool:
    """Returns whether two configs name the same data in different places."""
    if known is None or all(getattr(config, name) == getattr(before, name) for name in PLACES):
        return False
    try:
        return datasets.fingerprint(config.data_source) == known
    except DataError:
        return False


def check_places(source: DataSource, consequence: str) -> None:
    """Checks that the files of a source exist.

    Raises:
        DataError: A file is missing; the message ends with `consequence`.
    """
    missing = missing_places(source)
    if missing and missing[0].startswith(IN_MEMORY):
        raise DataError(
            f"{missing[0]}: the run's data were objects in a Python program; give them there "
            "again, with fedcli.resume(run, data=...) or fedcli.evaluate_run(run, data=...)"
        )
    if missing:
        raise DataError(
            f"{missing[0]} does not exist any more; give its new path with "
            f"{'--data' if missing[0] == source.data else '--test-data'} {consequence}"
        )


def _moved(config: RunConfig, places: Mapping[str, Any]) -> RunConfig:
    changes: dict[str, Any] = {
        name: _absolute(str(places[name])) for name in PLACES if places.get(name)
    }
    return replace(config, **changes)


def _absolute(name: str) -> str:
    return name if name in tables.DATASETS else str(Path(name).absolute())
