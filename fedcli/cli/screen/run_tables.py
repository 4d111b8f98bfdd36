"""The tables that are printed at the end of a training or an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcli.cli.screen.text_screen import TextScreen
from fedcli.errors import plural
from fedcli.reports import rows as report
from fedcli.reports.rows import EvaluationRow, RoundRow, Scores
from fedcli.runs.files import folder
from fedcli.settings.declaration import option_name

if TYPE_CHECKING:
    from fedcli.reports.published import Comparison
    from fedcli.runs.stopping import Best, Progress
    from fedcli.settings.presets import Figure

_MAX_FURTHER_METRICS = 3  # a table of rounds has room for this many besides loss and accuracy
_NO_CODE: Mapping[str, str] = {}
_SCORE_HEADERS = ("loss", "accuracy", "examples", "batches")


def show_run(
    screen: TextScreen,
    path: Path,
    lines: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Mapping[str, Any]],
    progress: Progress | None = None,
    comparison: Comparison | None = None,
    code: Mapping[str, str] = _NO_CODE,
    kept: Best | None = None,
) -> None:
    """Prints the training metrics by round, the closing evaluation, and the run's folder.

    Args:
        screen: The output.
        path: The run's folder.
        lines: The lines of metrics.jsonl.
        evaluation: The closing evaluation by split.
        progress: If given, also the round of the target, the best value and the reason for an early
            end are printed.
        comparison: If given, the published figures are printed beside the run's.
        code: The Python files of the run, by option.
        kept: The round that --keep-best keeps.
    """
    rows = report.round_rows(lines)
    screen.line("Training by round, online: measured on each batch before its step", style="bold")
    show_rounds(screen, rows)
    num_rounds = lines[-1]["round"]
    if len(rows) < len(lines):
        which = "evaluated rounds" if all(row.evaluation for row in rows) else "rounds"
        shown = f"... {len(rows)} {which} of {num_rounds:,}"
        screen.line(f"{shown}; all are in {path}/metrics.jsonl", "dim")
    screen.title(f"Federated evaluation of the model after round {num_rounds}")
    show_evaluation(screen, report.evaluation_rows(evaluation))
    if comparison is not None:
        show_comparison(screen, comparison)
    screen.line("")
    if progress is not None:
        show_progress(screen, progress, num_rounds)
    needed = [name for name in ("--model", "--partition") if name in code]
    more = "".join(f" {name} {code[name]}" for name in needed)
    if kept is not None and kept.value is not None:
        what = f"round {kept.round_num:,}, the best by {kept.measure} ({kept.value:.4f})"
        screen.line(f"Kept     {what}: fedcli eval {path}{more} --best")
    spent = report.privacy_spent(lines[-1])
    if spent is not None:
        screen.line(f"Privacy  {spent.sentence}")
    if (path / folder.EVENT_FILES).is_dir():
        screen.line(f"Curves   tensorboard --logdir {path / folder.EVENT_FILES}")
    screen.line(f"Run      {path}")
    screen.line(f"More     fedcli eval {path}{more} --clients all")


def show_rounds(screen: TextScreen, rows: Sequence[RoundRow]) -> None:
    """Prints one line for each round. A column appears if at least one round has a value for it."""
    splits = list(dict.fromkeys(split for row in rows for split in row.evaluation))
    has_dropped = any(row.num_non_finite_clients for row in rows)
    has_rejected = any(row.is_rejected or row.is_skipped for row in rows)
    has_reports = any(row.num_reports is not None for row in rows)
    has_clock = any(row.virtual_seconds is not None for row in rows)
    has_privacy = any(row.privacy is not None for row in rows)
    # With evaluations, the counts of examples and batches would make the table too wide.
    own = _own_names(row.online for row in rows)
    scores = ("loss", "acc.") if splits else _SCORE_HEADERS
    num_scores = len(scores)
    headers = ["round", *scores, *own]
    further = _further_names(rows, splits, own)
    headers += [f"{split} {name}" for split in splits for name in ("loss", "acc.", *further[split])]
    headers += ["reports"] * has_reports + ["virtual s"] * has_clock
    headers += ["epsilon", "clip"] * has_privacy
    headers += ["dropped clients"] * has_dropped + ["update"] * has_rejected
    cells = []
    for row in rows:
        line = [str(row.round_num), *score_cells(row.online)[:num_scores]]
        line += _own_cells(row.online, own)
        for split in splits:
            line += score_cells(row.evaluation.get(split))[:2]
            line += _own_cells(row.evaluation.get(split), further[split])
        line += ["" if row.num_reports is None else str(row.num_reports)] * has_reports
        line += [_seconds(row.virtual_seconds)] * has_clock
        line += _privacy_cells(row) * has_privacy
        line += [str(row.num_non_finite_clients)] * has_dropped
        line += [_update_text(row)] * has_rejected
        cells.append(line)
    screen.table(headers, cells, left=0)


def _further_names(
    rows: Sequence[RoundRow], splits: Sequence[str], own: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the further metrics of each split that are not in `own`; none if too many."""
    further = {split: _own_names(row.evaluation.get(split) for row in rows) for split in splits}
    names = {name for each in further.values() for name in each if name not in own}
    has_room = len(names) <= _MAX_FURTHER_METRICS
    return {
        split: [name for name in each if name in names and has_room]
        for split, each in further.items()
    }


def show_progress(screen: TextScreen, progress: Progress, num_rounds: int) -> None:
    """Prints the rounds to the target, the best value, and the reason if the run ended early."""
    if progress.target is not None:
        what = f"{progress.split} {progress.target_measure} {progress.target:g}"
        reached = progress.target_round
        how = (
            f"not in {plural(num_rounds, 'round')}"
            if reached is None
            else f"after {plural(reached, 'round')}"
        )
        screen.line(f"Target   {what}: {how}")
    best = progress.best
    if best.value is not None and best.round_num is not None:
        where = f"after {plural(best.round_num, 'round')}"
        screen.line(f"Best     {progress.split} {best.measure} {best.value:.4f} {where}")
    reason = progress.reason()
    if reason is not None:
        screen.line(f"Ended    after round {num_rounds:,}: {reason}")


def show_comparison(screen: TextScreen, comparison: Comparison) -> None:
    """Prints published figures beside the run's own, and the options in which the two differ."""
    preset = comparison.preset
    screen.title(f"Beside {preset.source}")
    if comparison.figures:
        rows = [
            [_label(figure), f"{figure.value:g}", "-" if measured is None else f"{measured:g}"]
            for figure, measured in _in_order(comparison.figures)
        ]
        screen.table(["figure", "published", "this run"], rows)
    elif comparison.has_other_data:
        screen.line("This run uses other data, so no published figures are shown.")
    else:
        screen.line("fedcli has no published figures for this preset.")
    if comparison.differs_in:
        screen.line(f"This run differs in {', '.join(comparison.differs_in)}.")
    if comparison.figures and option_name("data") in comparison.differs_in:
        published = f"The published figures are those of {preset.values['data']}"
        screen.prose([("", f"{published}; compare them only if --data holds the same examples.")])
    if preset.remark and not comparison.has_other_data:
        screen.prose([("", preset.remark)])


def _in_order(
    figures: Sequence[tuple[Figure, float | None]],
) -> list[tuple[Figure, float | None]]:
    """Sorts figures: losses of rounds, accuracies of rounds, the others; else their order stays."""
    return sorted(figures, key=lambda each: (not each[0].round_num, _by_metric(each[0])))


def _by_metric(figure: Figure) -> bool:
    return bool(figure.round_num) and figure.metric != "loss"


def _label(figure: Figure) -> str:
    if figure.metric == "rounds_to_target":
        return "rounds to target"
    where = f"round {figure.round_num}, train" if figure.round_num else f"closing, {figure.split}"
    return f"{where} {figure.metric}"


def show_evaluation(screen: TextScreen, rows: Sequence[EvaluationRow]) -> None:
    """Prints one line for each split or part of a split.

    The number of clients that took part in the training is shown if only some of them did.
    """
    has_absent = any(row.num_absent_clients for row in rows)
    has_both = any(0 < (row.num_seen_clients or 0) < row.num_clients for row in rows)
    own = _own_names(row.scores for row in rows)
    headers = ["split", *_SCORE_HEADERS, *own, "clients"]
    headers += ["seen"] * has_both + ["not in split"] * has_absent
    cells = []
    for row in rows:
        line = [row.split, *score_cells(row.scores), *_own_cells(row.scores, own)]
        line.append(f"{row.num_clients:,}")
        seen = "" if row.num_seen_clients is None else f"{row.num_seen_clients:,}"
        line += [seen] * has_both
        line += [f"{row.num_absent_clients:,}"] * has_absent
        cells.append(line)
    screen.table(headers, cells)


def score_cells(scores: Scores | None) -> list[str]:
    """Returns loss, accuracy, examples and batches as text; empty texts if there are no scores.

    Without examples, loss and accuracy are "-".
    """
    if scores is None:
        return [""] * len(_SCORE_HEADERS)
    means = (scores.loss, scores.accuracy)
    return [
        *(_number(mean) if scores.num_examples else "-" for mean in means),
        f"{scores.num_examples:,}",
        f"{scores.num_batches:,}",
    ]


def _update_text(row: RoundRow) -> str:
    if row.online is None:
        return ""
    if row.is_skipped:
        return "skipped"
    return "rejected" if row.is_rejected else "applied"


def _privacy_cells(row: RoundRow) -> list[str]:
    """Returns epsilon and the clipping norm as text; empty texts for the initial model."""
    if row.privacy is None:
        return ["", ""]
    epsilon = row.privacy.epsilon
    return ["infinite" if epsilon is None else f"{epsilon:.4f}", f"{row.privacy.clip_norm:.4g}"]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _own_names(scores: Iterable[Scores | None]) -> list[str]:
    """Returns the names of further metrics that occur in at least one of the scores."""
    return list(dict.fromkeys(name for each in scores if each is not None for name in each.own))


def _own_cells(scores: Scores | None, names: Sequence[str]) -> list[str]:
    """Returns the values of further metrics as text; an empty text for a missing one."""
    own = {} if scores is None else scores.own
    return [_number(own[name]) if name in own else "" for name in names]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"
