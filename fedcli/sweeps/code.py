"""Decides which Python files a study may run: those that the user named, and no others."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.run_config import CODE_FIELDS
from fedcli.sweeps.study import Study


def files_of_code(study: Study) -> list[Path]:
    """Returns the Python files that a study names."""
    tables: list[Mapping[str, Any]] = [study.run, *(case.options for case in study.cases)]
    named = [(name, table[name]) for table in tables for name in CODE_FIELDS if name in table]
    grids = [study.grid, *(case.grid for case in study.cases)]
    grids += [{name: each.values for name, each in study.ranges.items()}]
    named += [
        (name, value) for grid in grids for name in CODE_FIELDS for value in grid.get(name, ())
    ]
    if not any(".py" in str(value) for _, value in named):
        return []
    from fedcli.settings.own import permission  # lazy: few studies have code

    files = [
        Path(code.rpartition(":")[0] if not code.endswith(".py") else code)
        for name, value in named
        for each in permission.code_in({name: value}).values()
        for code in each.split(",")
    ]
    return list(dict.fromkeys(files))


def resume_command(path: Path, study: Study) -> str:
    """Returns the command that continues the study in the folder `path`."""
    allowed = (f"--code {shlex.quote(str(file))}" for file in files_of_code(study))
    return " ".join([f"fedcli sweep --resume {shlex.quote(str(path))}", *allowed])


def check_code(study: Study, allowed: Iterable[str | Path]) -> None:
    """Refuses code that the user did not name: a study.toml may come from another person.

    Raises:
        ConfigError: The study names a Python file that is not among those allowed.
    """
    named = {Path(each).absolute() for each in allowed}
    for file in files_of_code(study):
        if file.absolute() not in named:
            if not file.exists():
                raise ConfigError(
                    f"the study runs the code in {file.absolute()}, and there is no such file; "
                    "relative paths in a study start from the current folder, not from the "
                    "study's file"
                )
            raise ConfigError(f"the study runs the code in {file}; pass --code {file} to allow it")
