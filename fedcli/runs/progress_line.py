"""The progress of a run that a program trains, on stderr."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TextIO

from fedcli.runs.loop import RoundResult

_SECONDS_BETWEEN_LINES = 10.0  # if lines cannot be overwritten


class ProgressLine:
    """A callback and context manager that writes the round, its loss and its accuracy.

    In a terminal or a notebook one line changes with each round. Elsewhere there is a line for the
    first round and for the last round, and between them at most one line every 10 s.
    """

    def __init__(self, num_rounds: int, stream: TextIO | None = None) -> None:
        """Takes the number of rounds, and the stream to write to; None for stderr."""
        self._stream = sys.stderr if stream is None else stream
        self._is_overwritten = self._stream.isatty() or "ipykernel" in sys.modules
        self._num_rounds = num_rounds
        self._evaluated = ""
        self._width = 0
        self._written_at = float("-inf")

    def __enter__(self) -> ProgressLine:
        """Returns itself."""
        return self

    def __call__(self, result: RoundResult) -> None:
        """Shows a round."""
        if result.evaluation is not None:
            split, scores = list(result.evaluation.items())[-1]
            accuracy = scores["sparse_categorical_accuracy"]
            self._evaluated = f"  {split} {accuracy:.4f} @{result.round_num}"
        if result.round_num == 0:
            return
        online = result.metrics["client_work"]["train"]
        text = (
            f"round {result.round_num}/{self._num_rounds}  loss {online['loss']:.4f}  "
            f"accuracy {online['sparse_categorical_accuracy']:.4f}{self._evaluated}"
        )
        if self._is_overwritten:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        else:
            is_end = result.round_num in (1, self._num_rounds)
            if not is_end and perf_counter() - self._written_at < _SECONDS_BETWEEN_LINES:
                return
            self._stream.write(f"{text}\n")
        self._written_at = perf_counter()
        self._stream.flush()

    def __exit__(self, *_: object) -> None:
        """Ends the line that changed."""
        if self._is_overwritten and self._width:
            self._stream.write("\n")
            self._stream.flush()
