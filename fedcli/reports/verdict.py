"""Checks whether a run learnt anything. If not, one line says why and what to change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedcli.errors import plural
from fedcli.reports.rows import MIN_REPORTS, THRESHOLD, RoundRow, round_row
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import ACCURACY

if TYPE_CHECKING:
    from fedcli.runs.record import RunRecord

_GROWTH = 10.0  # a model has diverged if its loss is this many times that of the first round
_ABOVE_CHANCE = 0.05  # an accuracy of at most 1 / K plus this share of 1 - 1 / K is guessing


def verdict(
    lines: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Mapping[str, Any]] | None,
    config: RunConfig,
) -> str | None:
    """Returns a sentence if no round changed the model or the loss is not finite; None otherwise.

    Args:
        lines: The lines of metrics.jsonl.
        evaluation: The content of evaluation.json; None if there is no such file.
        config: The run's config.
    """
    rows = [row for row in map(round_row, lines) if row.online is not None]
    if not rows:
        return None
    num_examples = sum(row.online.num_examples for row in rows if row.online is not None)
    if all(row.is_skipped for row in rows):
        return f"none of {_rounds(rows)} changed the model: {_why_skipped(rows, config)}"
    if num_examples == 0 and not sum(row.num_non_finite_clients for row in rows):
        return f"none of {_rounds(rows)} changed the model: {_why_empty(lines, config)}"
    if all(row.is_rejected or row.is_skipped for row in rows):
        return (
            f"none of {_rounds(rows)} changed the model: {_why_rejected(rows, config)}; "
            f"{_remedy(config)}"
        )
    if not _is_finite(rows[-1], evaluation):
        return f"the loss after {_rounds(rows)} is not finite: training diverged; {_remedy(config)}"
    return None


def has_diverged(run: RunRecord) -> bool:
    """Returns whether a run's model is useless.

    It is useless in any of these cases:

    - Its last loss is not finite.
    - No round changed it, because no update was finite.
    - Its last loss in training or in an evaluation is more than ten times the loss of the first
      round.
    - The loss of the first round is more than ten times ln(K), the loss of guessing among K
      classes, and no series has a better accuracy than guessing at the end.
    """
    lines = [line for line in run.metrics if "train" in line.get("client_work", {})]
    if not lines or not _is_finite(round_row(lines[-1]), run.newest_evaluation):
        return bool(lines)
    rows = map(round_row, lines)
    first = next(rows)
    if first.is_rejected and all(row.is_rejected for row in rows):
        return True
    loss = first.online.loss if first.online is not None and first.online.num_examples else None
    if loss is None:
        return False
    lasts = (run.final(name, "loss") for name in run.series_names)
    if any(last is not None and last > _GROWTH * loss for last in lasts):
        return True
    return _has_exploded_at_once(run, loss)


def _has_exploded_at_once(run: RunRecord, first_loss: float) -> bool:
    """Whether the model diverged within its first round and has not recovered since."""
    if first_loss <= _GROWTH * math.log(2):  # the usual case, for which no checkpoint is read
        return False
    num_classes = run.num_classes
    if num_classes is None or first_loss <= _GROWTH * math.log(num_classes):
        return False
    chance = 1 / num_classes
    guessing = chance + _ABOVE_CHANCE * (1 - chance)
    accuracies = (run.final(name, ACCURACY) for name in run.series_names)
    return all(each is None or each <= guessing for each in accuracies)


def _why_empty(lines: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    """Why the clients that reported had no examples."""
    counts = [line["participation"] for line in lines if "participation" in line]
    if not counts or any(each["num_reports"] for each in counts):
        return f"{_cohort(config)} holds no examples; choose other --clients"
    if any(each["num_late"] for each in counts):
        return "no client reported in time; choose a longer --deadline"
    return (
        f"no client reported; choose a lower --client-dropout, now {config.client_dropout:g}, or "
        "more --clients"
    )


def _why_skipped(rows: Sequence[RoundRow], config: RunConfig) -> str:
    """The reasons why rounds were skipped, and what to change for the most frequent one."""
    reasons = Counter(row.skip_reason for row in rows).most_common()
    causes = [(num, *_cause_and_remedy(reason, config)) for reason, num in reasons]
    remedy = causes[0][2]
    if len(causes) == 1:
        return f"{causes[0][1]}; {remedy}"
    parts = [f"in {plural(num, 'round')} {cause}" for num, cause, _ in causes]
    return f"{', and '.join(parts)}; {remedy}"


def _cause_and_remedy(skip_reason: str, config: RunConfig) -> tuple[str, str]:
    if skip_reason == MIN_REPORTS:
        return (
            f"fewer clients reported than --min-reports {config.min_reports} requires",
            "choose a smaller number, or more --clients",
        )
    if skip_reason == THRESHOLD:
        share = config.secure_sum_options["threshold"]
        return (
            f"fewer clients reported than --secure-sum-option threshold={share:g} requires (always "
            "at least 2 clients)",
            "choose a smaller threshold, or more --clients",
        )
    return (
        f"--aggregator {config.aggregator} got too few valid updates, or trusted none",
        "choose more --clients, or another aggregator",
    )


def _why_rejected(rows: Sequence[RoundRow], config: RunConfig) -> str:
    max_dropped = max(row.num_non_finite_clients for row in rows)
    if max_dropped:
        return (
            f"up to {plural(max_dropped, 'client')} per round, of {_cohort(config)}, had "
            "parameters or losses that were not finite, and were left out"
        )
    return "the average of the clients' updates was not finite in any round"


def _is_finite(last: RoundRow, evaluation: Mapping[str, Mapping[str, Any]] | None) -> bool:
    """Whether the last training loss and the losses of the closing evaluation are finite."""
    losses = [last.online.loss] if last.online is not None and last.online.num_examples else []
    for group in (evaluation or {}).values():
        metrics = group.get("client_work", {}).get("eval", {}).get("current_round_metrics", {})
        if metrics.get("num_examples"):
            losses.append(metrics.get("loss"))
    return all(loss is not None and math.isfinite(loss) for loss in losses)


def _rounds(rows: Sequence[RoundRow]) -> str:
    return plural(len(rows), "round")


def _cohort(config: RunConfig) -> str:
    clients = config.clients
    text = str(clients) if isinstance(clients, str | int | float) else ",".join(clients or ())
    return f"the cohort (--clients {text[:60]})" if text else "the cohort"


def _remedy(config: RunConfig) -> str:
    if config.client_lr is None:  # clients take no steps
        return f"choose a lower --server-lr, now {config.server_lr:g}"
    return f"choose a lower --client-lr, now {config.client_lr:g}, or --client-clip-norm 1"
