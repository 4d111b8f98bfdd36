"""Finds the runs to which the shell completes an argument."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fedcli.runs.files.folder import looks_like_run

MAX_DEPTH = 3  # levels of folders that are searched for a completion
MAX_FOLDERS = 2_000  # largest number of folders that are searched, so that completion is quick


def find(typed: str, *, has_parents: bool) -> list[str]:
    """Returns the runs whose paths start with the typed text, sorted.

    Args:
        typed: The beginning of a path, relative or absolute; it may be empty.
        has_parents: Whether the folders that contain these runs are also returned.
    """
    runs = list(_runs_at(typed))
    parents = {os.path.dirname(run) for run in runs} if has_parents else set()  # noqa: PTH120
    parents.discard(os.path.dirname(typed))  # noqa: PTH120
    return [each for each in sorted({*runs, *parents}) if each.isprintable()]


def _runs_at(typed: str) -> Iterator[str]:
    """Yields the paths of runs that start with the typed text; relative if the text is relative."""
    folder, name = os.path.split(typed)
    budget = [MAX_FOLDERS]
    for child in _folders_in(folder, budget):
        if os.path.basename(child).startswith(name):  # noqa: PTH119
            yield from _runs_below(child, MAX_DEPTH, budget)


def _runs_below(folder: str, depth: int, budget: list[int]) -> Iterator[str]:
    if looks_like_run(Path(folder)):
        yield folder
    elif depth:
        for child in _folders_in(folder, budget):
            yield from _runs_below(child, depth - 1, budget)


def _folders_in(folder: str, budget: list[int]) -> list[str]:
    """The folders in a folder, without hidden ones, until the budget of folders is spent."""
    if budget[0] <= 0:
        return []
    budget[0] -= 1
    try:
        with os.scandir(folder or ".") as entries:
            names = [each.name for each in entries if each.is_dir() and each.name[0] != "."]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names)]  # noqa: PTH118
