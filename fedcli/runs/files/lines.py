"""Reads and checks the lines of metrics.jsonl and the content of evaluation.json.

Commands that continue or show a run read these files, which may have been truncated, damaged or
edited. This module imports no NumPy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedcli.errors import RunError
from fedcli.settings.vocabulary import MEASURES

MAX_LINE_BYTES = 1 << 20  # a line of metrics has about 400 bytes
_MEASURED = set(MEASURES.values())
_NUMBERS = (int, float)
_MOST = 1e300  # the largest number that is accepted; numbers that are not finite are null

_PARTS = ("aggregator", "client_work", "evaluation", "finalizer", "participation", "updates")
# The counts that readers use, by part and group: first those that are required, then optional ones.
_COUNTS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "updates": {
        "attack": (("attackers_in_cohort",), ("attackers_kept",)),
        "compress": (("num_sent",), ("payload_bytes", "extra_bytes_down")),
    },
    "aggregator": {
        "secure_sum": (
            ("payload_bytes",),
            (
                *("all_setup_bytes_up", "all_setup_bytes_down", "extra_bytes_down"),
                *("setup_bytes_up", "setup_bytes_down"),  # of one client, in older runs
            ),
        ),
    },
}
_PARTICIPATION_COUNTS = ("num_selected", "num_late", "num_surplus", "num_reports", "is_skipped")


def parse_metrics(content: bytes, file: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, one for each round; null becomes None.

    Args:
        content: The bytes of the file, or its first lines.
        file: Its path in the run's folder, for messages.

    Raises:
        RunError: A line is cut short, damaged, or not that of the next round.
    """
    lines: list[dict[str, Any]] = []
    values = parse_together(content)
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        label = f"{file}: line {number}"
        try:
            if values is None:
                line = _parse_line(text if text.endswith(b"\n") else b"")
            else:
                line = values[number - 1]
        except (ValueError, RecursionError) as err:
            raise RunError(
                f"{label} is cut short or damaged; if it is after the newest checkpoint, fedcli "
                f"train --resume {file.parent} repairs it; else restore the file, or start a new "
                "run"
            ) from err
        before = lines[-1]["round"] if lines else None
        if not _is_metrics_line(line, before):
            raise RunError(
                f"{label} does not hold the metrics of the next round; restore the file, or start "
                "a new run"
            )
        lines.append(line)
    return lines


def parse_together(content: bytes) -> list[Any] | None:
    """Returns the JSON values of lines, parsed in one go, which takes half of the time.

    Returns:
        None if a line is too long, cut short or damaged, so that each must be parsed by itself.
    """
    lines = content.split(b"\n")
    if lines.pop() or b"\r" in content or max(map(len, lines), default=0) >= MAX_LINE_BYTES:
        return None
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    return values if len(values) == len(lines) else None


def _parse_line(text: bytes) -> Any:
    """The JSON value of a line. Raises ValueError, or RecursionError if it is nested deeply."""
    if len(text) > MAX_LINE_BYTES:
        raise ValueError("too long for a line of metrics")
    return json.loads(text)


def _is_metrics_line(line: Any, before: int | None) -> bool:
    """Whether a line has the round after `before` and all metrics in their places."""
    if not isinstance(line, dict) or type(line.get("round")) is not int:
        return False
    follows = line["round"] in (0, 1) if before is None else line["round"] == before + 1
    parts = {name: line[name] for name in _PARTS if name in line}
    if not follows or not all(map(_is_group, parts.values())):
        return False
    groups = list(parts.get("evaluation", {}).values())
    if (work := parts.get("client_work")) and "train" in work:
        groups.append(work["train"])
        if not isinstance(work["train"], dict) or "num_non_finite_clients" not in work["train"]:
            return False
    participation = parts.get("participation")
    return (
        all(map(_is_metrics_group, groups))
        and (
            participation is None
            or (_has_numbers(participation) and _has_counts(participation, _PARTICIPATION_COUNTS))
        )
        and all(map(_has_counts_of, parts, parts.values()))
        and _has_payloads(parts)
    )


def _has_counts_of(part: str, groups: dict[str, Any]) -> bool:
    """Whether the groups of a part have the counts that readers use."""
    known = _COUNTS.get(part, {})
    return all(_has_counts(groups[name], *known[name]) for name in known if name in groups)


def _has_payloads(parts: dict[str, Any]) -> bool:
    """Whether a round with compression has the bytes of its payloads, or of its secure sums."""
    compress = parts.get("updates", {}).get("compress")
    if compress is None or "payload_bytes" in compress:
        return True
    sums = parts.get("aggregator", {}).get("secure_sum", compress.get("secure_sum"))
    return _has_counts(sums, *_COUNTS["aggregator"]["secure_sum"])


def _is_metrics_group(group: Any) -> bool:
    """Whether a value holds a model's metrics by name: numbers in their ranges, or None."""
    if not isinstance(group, dict) or not _has_numbers(group):
        return False
    accuracy = group.get(MEASURES["accuracy"])
    return (
        group.keys() >= _MEASURED
        and (accuracy is None or 0 <= accuracy <= 1)
        and _has_counts(group, ("num_examples", "num_batches"), ("num_non_finite_clients",))
    )


def _has_counts(group: Any, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> bool:
    """Whether a value is a group with these counts, and with optional ones that are valid."""
    if not isinstance(group, dict):
        return False
    counts = [group.get(name) for name in names]
    counts += [group[name] for name in optional if name in group]
    return all(map(_is_count, counts))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _MOST


def is_evaluation(value: Any) -> bool:
    """Returns whether a value is the evaluation of one split, as `fedcli eval --json` prints it."""
    try:
        group = value["client_work"]["eval"]["current_round_metrics"]
        counts = (value["round"], value["num_clients"], value["num_absent_clients"])
        spreads = [each for each in value.get("over_clients", {}).values() if type(each) is not int]
        is_whole = isinstance(value["split"], str) and all(
            type(each) is int and is_number(each) for each in counts
        )
        return (
            is_whole
            and _is_metrics_group(group)
            and all(map(_has_numbers, spreads))
            and ("attack" not in value or _is_attack_success(value["attack"]))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_attack_success(value: dict[str, Any]) -> bool:
    """Whether a value has the figures of an attack. Raises if its structure is different."""
    numbers = [value["attack_success_rate"], *value.get("class_recall", ())]
    return all(each is None or is_number(each) for each in numbers)


def is_number(value: object) -> bool:
    """Returns whether this is a finite number; Python's JSON reader also accepts NaN."""
    return isinstance(value, _NUMBERS) and -_MOST <= value <= _MOST


def _has_numbers(group: dict[str, Any]) -> bool:
    return all(map(_is_number_or_none, group.values()))


def _is_number_or_none(value: object) -> bool:
    return value is None or is_number(value)


def _is_group(value: object) -> bool:
    return isinstance(value, dict)


def find_end(content: bytes, round_num: int) -> tuple[int, int]:
    """Returns the offset of the end of the lines up to `round_num`, and the last of those rounds.

    For round 0 the offset is 0, because a run that starts writes the line of round 0 itself.
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
    """The round of a line; None if it is cut short or not a line of metrics."""
    try:
        number = _parse_line(line)["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if isinstance(number, int) and line.endswith(b"\n") else None
