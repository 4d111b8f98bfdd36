"""What stands in metrics.jsonl and evaluation.json, checked before anything is made of it.

These files are read back by every command that continues or shows a run, and may have been cut,
damaged or edited by then. Imports no NumPy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedcli.errors import RunError
from fedcli.settings.vocabulary import MEASURES

MAX_LINE_BYTES = 1 << 20  # of a line of metrics, which has some 400


def parse_metrics(content: bytes, file: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, one for each round; null becomes None.

    Args:
        content: Of the file, or its first lines.
        file: Where it stands in the run's folder, for messages.

    Raises:
        RunError: A line is cut short, damaged, or not that of the next round.
    """
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        label = f"{file}: line {number}"
        try:
            line = _parse_line(text if text.endswith(b"\n") else b"")
        except (ValueError, RecursionError) as err:
            raise RunError(
                f"{label} is cut short or damaged; if it is after the newest checkpoint, fedcli "
                f"train --resume {file.parent} mends it; else restore the file, or train anew"
            ) from err
        before = lines[-1]["round"] if lines else None
        if not _is_metrics_line(line, before):
            raise RunError(
                f"{label} is not the next round's as fedcli writes it; restore the file, or train "
                "anew"
            )
        lines.append(line)
    return lines


def _parse_line(text: bytes) -> Any:
    """The value on a line. Raises ValueError, and RecursionError where it is nested deeply."""
    if len(text) > MAX_LINE_BYTES:
        raise ValueError("too long for a line of metrics")
    return json.loads(text)


def _is_metrics_line(line: Any, before: int | None) -> bool:
    """Whether this is a line whose round follows `before`, with metrics where they belong."""
    if not isinstance(line, dict) or type(line.get("round")) is not int:
        return False
    follows = line["round"] in (0, 1) if before is None else line["round"] == before + 1
    parts = [line.get(name, {}) for name in ("client_work", "evaluation", "participation")]
    if not follows or not all(
        isinstance(each, dict) for each in (*parts, line.get("finalizer", {}))
    ):
        return False
    work, evaluation, participation = parts
    groups = list(evaluation.values())
    if "train" in work:
        groups.append(work["train"])
        if not isinstance(work["train"], dict) or "num_non_finite_clients" not in work["train"]:
            return False
    return all(map(_is_metrics_group, groups)) and _has_numbers(participation)


def _is_metrics_group(group: Any) -> bool:
    """Whether this holds a model's metrics by name: numbers in their range, None if not finite."""
    if not isinstance(group, dict) or not _has_numbers(group):
        return False
    accuracy = group.get(MEASURES["accuracy"])
    counts = [group.get("num_examples"), group.get("num_batches")]
    counts.append(group.get("num_non_finite_clients", 0))
    return (
        all(name in group for name in MEASURES.values())
        and (accuracy is None or 0 <= accuracy <= 1)
        and all(isinstance(count, int) and count >= 0 for count in counts)
    )


def is_evaluation(told: Any) -> bool:
    """Returns whether this is the evaluation of one split as `fedcli eval --json` prints it."""
    try:
        group = told["client_work"]["eval"]["current_round_metrics"]
        counts = (told["round"], told["num_clients"], told["num_absent_clients"])
        spreads = [each for each in told.get("over_clients", {}).values() if type(each) is not int]
        is_whole = isinstance(told["split"], str) and all(type(each) is int for each in counts)
        return is_whole and _is_metrics_group(group) and all(map(_has_numbers, spreads))
    except (KeyError, TypeError, AttributeError):
        return False


def _has_numbers(group: dict[str, Any]) -> bool:
    return all(isinstance(each, int | float | None) for each in group.values())


def find_end(content: bytes, round_num: int) -> tuple[int, int]:
    """Returns where the lines of rounds up to `round_num` end, and the last of those rounds.

    For round 0 that is the start of the file: its line is written by the run that starts.
    """
    end = 0
    last = 0
    for line in content.splitlines(keepends=True) if round_num else ():
        number = _round_of(line)
        if number is None or number > round_num:
            break
        end += len(line)
        last = number
    return end, last


def _round_of(line: bytes) -> int | None:
    """The round of one line, None if it is cut short or foreign."""
    try:
        number = _parse_line(line)["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if isinstance(number, int) and line.endswith(b"\n") else None
