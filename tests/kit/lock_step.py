"""`python -m tests.kit.lock_step` is `fedcli`, but its work waits until its progress was drawn.

So what a terminal shows does not depend on the speed of the machine.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from fedcli.cli import main as cli
from fedcli.cli.jobs.bars import Monitor
from fedcli.cli.jobs.live_line import LiveLine
from fedcli.sweeps.study_progress import StudyProgress
from tests.kit.waiting import PATIENCE_SECONDS

_drawn = threading.Condition()
_num_drawn = 0


def wait_until_drawn() -> None:
    """Waits for two drawings, because the first may have begun before the present progress."""
    with _drawn:
        wanted = _num_drawn + 2
        assert _drawn.wait_for(lambda: _num_drawn >= wanted, PATIENCE_SECONDS)


def _counted(show: Any) -> Any:
    def show_and_count(*args: Any, **options: Any) -> None:
        global _num_drawn
        show(*args, **options)
        with _drawn:
            _num_drawn += 1
            _drawn.notify_all()

    return show_and_count


def _waiting(record: Any) -> Any:
    def record_and_wait(*args: Any) -> None:
        record(*args)
        wait_until_drawn()

    return record_and_wait


LiveLine.show = _counted(LiveLine.show)  # type: ignore[method-assign]
Monitor.update = _waiting(Monitor.update)  # type: ignore[method-assign]
StudyProgress.note_round = _waiting(StudyProgress.note_round)  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(cli.run(sys.argv[1:]))
