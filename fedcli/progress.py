"""Types of the functions through which a long job of the library reports progress."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[int, int | None], None]
"""Takes the amount done and the total, which is None while unknown. It may raise to end the job.

Each job has its unit (examples, bytes, clients); every function that takes a `Tell` names it.
"""


def tell_nobody(done: int, total: int | None) -> None:
    """Ignores progress."""


Remark = Callable[[str], None]
"""Takes one line for the user, to be shown while the job goes on."""


def remark_to_nobody(text: str) -> None:
    """Ignores the line."""
