"""How the library tells a long job's progress: a function that is called now and then."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[int, int | None], None]
"""Takes what is done so far and what there is in all, None while unknown; may raise to end the job.

The unit (examples, bytes, clients) is the job's own; every function that takes a `Tell` names it.
"""


def tell_nobody(done: int, total: int | None) -> None:
    """Tells nobody."""
