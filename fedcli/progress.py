"""Types of the functions through which a long job of the library reports progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int | None], None]
"""Takes the amount done and the total, which is None while unknown. It may raise to end the job.

Each job has its own unit, such as examples, bytes or clients. In most functions that take a
`ProgressCallback` the docstring names it.
"""


def ignore_progress(done: int, total: int | None) -> None:
    """Ignores progress."""


NoteCallback = Callable[[str], None]
"""Takes one line for the user, to be shown while the job goes on."""


def ignore_note(text: str) -> None:
    """Ignores the line."""
