"""The work of one process of a pool: trains runs one after another.

The process reads tasks from stdin and writes messages to stdout, each a line of JSON: `{"round": 3,
"loss": 0.5}` while it trains, then `{"ended": "done"}`, `{"ended": "stopped"}` or `{"ended":
"failed", "error": "..."}`. If the cause of a failure is not the run but the folder or the disk,
`"ended"` is `"trouble"`. When stdin ends, the process ends at once, which is safe because a run can
be killed at any time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import FedcliError, RunError, on_command_line, why_not_written
from fedcli.runs import starting
from fedcli.runs.files import folder as run_dir
from fedcli.runs.loop import RoundResult, Training
from fedcli.settings.run_config import CODE_FIELDS, RunConfig, may_have_code

_REPORT_SECONDS = 0.1  # the shortest time between two messages about rounds


class Trainer:
    """Trains the tasks that it reads, and reports their progress."""

    def __init__(self, out: TextIO) -> None:
        """Writes messages to `out`."""
        self._out = out
        self._cancel = CancelFlag()
        self._reported_at = 0.0

    def serve(self, lines: TextIO) -> None:
        """Does all tasks, until `lines` ends."""
        tasks: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._listen, args=(lines, tasks), daemon=True).start()
        while True:
            task = tasks.get()
            self._send(self.do(task))

    def _listen(self, lines: TextIO, tasks: SimpleQueue[dict[str, Any]]) -> None:
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                self.stop()
            else:
                tasks.put(message)
        os._exit(0)

    def stop(self) -> None:
        """Makes the current run save and stop."""
        self._cancel.set()

    def do(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Does a task; returns the message about its end."""
        try:
            with on_command_line(), _opened(task, self._cancel) as training:
                training.complete([self._report])
                return {"ended": "done", "notes": training.notes}
        except Cancelled:
            return {"ended": "stopped"}
        except RunError as err:
            return {"ended": "trouble", "error": str(err)}
        except FedcliError as err:
            return {"ended": "failed", "error": str(err)}
        except OSError as err:
            named = f"{err.filename}: " if isinstance(err.filename, str) else ""
            return {"ended": "trouble", "error": f"{named}{why_not_written(err)}"}
        except MemoryError:
            return {"ended": "failed", "error": "out of memory; give fewer --jobs"}
        except Exception as err:  # a bug, here or in a user's code; the other runs continue
            traceback.print_exc()
            return {"ended": "failed", "error": f"{type(err).__name__}: {err}"}

    def _report(self, result: RoundResult) -> None:
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            loss = result.metrics.get("client_work", {}).get("train", {}).get("loss")
            is_finite = isinstance(loss, float) and loss - loss == 0
            self._send({"round": result.round_num, "loss": loss if is_finite else None})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def _opened(task: Mapping[str, Any], cancel: CancelFlag) -> Training:
    """The training of a task: a new run, or a continued run."""
    path = Path(task["path"])
    config = RunConfig(**task["config"])
    if not run_dir.looks_like_run(path) or task["anew"]:
        training = starting.start(config, path, force=task["anew"], cancel=cancel)
        if task["threads"] == config.threads:
            return training
        training.close()  # resumed below, so that config.toml does not depend on the threads
    code: Any = {}
    if may_have_code(config):
        code = {name: getattr(config, name) for name in CODE_FIELDS if _is_code(config, name)}
        if "metrics" in code:
            code["metrics"] = ",".join(code["metrics"])
    return starting.resume(
        path, rounds=config.rounds, threads=task["threads"], cancel=cancel, **code
    )


def _is_code(config: RunConfig, name: str) -> bool:
    from fedcli.settings.own import permission  # lazy: few runs have code

    return name in permission.code_in(vars(config))


def main() -> None:
    """Trains for the process that started this one, and ends when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and sends "stop"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `pool` blocked it until now
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a user's code must not mix with the messages
    Trainer(out).serve(sys.stdin)
