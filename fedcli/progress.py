"""Types of the functions through which a long job of the library reports progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int | None], None]
"""Takes the amount done and the total, which is None while unknown. It may raise to end the job.

Each job has its unit (examples, bytes, clients); the docstring of every function that takes a
`ProgressCallback` names it.
"""


def ignore_progress(done: int, total: int | None) -> None:
    """Ignores progress."""


NoteCallback = Callable[[str], None]
"""Takes one line for the user, to be shown while the job goes on."""


def ignore_note(text: str) -> None:
    """Ignores the line."""
