"""How the library speaks during a long job: through functions that it calls now and then."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[int, int | None], None]
"""Takes what is done so far and what there is in all, None while unknown; may raise to end the job.

The unit (examples, bytes, clients) is the job's own; every function that takes a `Tell` names it.
"""


def tell_nobody(done: int, total: int | None) -> None:
    """Tells nobody."""


Remark = Callable[[str], None]
"""Takes one line that the user should know while the job goes on."""


def remark_to_nobody(text: str) -> None:
    """Says it to nobody."""
