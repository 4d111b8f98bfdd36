"""The tables of `fedcli report` for one run and for several. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedcli.errors import plural
from fedcli.models.metrics import flatten
from fedcli.reports import attack_impact, comparison, megabytes
from fedcli.reports import rows as report
from fedcli.reports.attack_impact import is_attacked
from fedcli.reports.comparison import Estimate
from fedcli.reports.rows import PrivacySpent
from fedcli.reports.text import Table
from fedcli.reports.verdict import has_diverged
from fedcli.runs.files.client_records import OUTCOMES, ClientRecords
from fedcli.runs.ledger import Ledger, ledger_of
from fedcli.runs.record import ONLINE, RunRecord, measures_of
from fedcli.settings.data_source import shown_data
from fedcli.settings.declaration import option_name
from fedcli.settings.tables.algorithms import AGGREGATORS
from fedcli.settings.tables.metrics import SELECTION_METRICS
from fedcli.settings.vocabulary import MEASURES

# Names of statistics over clients in JSON, with their column headers.
_MOMENTS = {"mean": "mean", "std": "std", "p10": "p10", "p50": "p50", "p90": "p90"}
_SPREAD = {**_MOMENTS, "worst_decile": "worst 10 %", "jain_index": "Jain"}
_GAIN = {**_MOMENTS, "share_better": "better", "share_worse": "worse"}
_UNSET = "-"
_WEIGHTED = ("mean", "norm-bound", "tff-robust")  # aggregators that use clients' weights
_MOST_BESIDE = 8  # largest number of runs that are columns of the table of differences
_MOST_VALUES = 12  # largest number of values of an option that are listed
_LARGEST_WHOLE = 1e15  # largest float that is shown as a whole number; others have an exponent
# The columns of client records in CSV after round, client and outcome.
ROW_COLUMNS = (
    *("num_examples", "loss", "accuracy", "update_norm"),
    *("report_seconds", "bytes_down", "bytes_up"),
)


def summary(run: RunRecord) -> list[tuple[str, str]]:
    """Returns a summary of a run: names with texts."""
    config = run.options
    rounds = config.get("rounds", 0)
    done = f"{run.round_num:,} of {rounds:,}" if run.round_num != rounds else f"{rounds:,}"
    rows = [
        ("run", str(run.path)),
        ("data", shown_data(str(config.get("data", _UNSET)))),
        ("model", str(config.get("model", _UNSET))),
        ("algorithm", _with_options(config, "algorithm")),
        ("client optimizer", _optimizer(config, "client")),
        ("server optimizer", _optimizer(config, "server")),
        (
            "clients per round",
            f"{_value(config.get('clients'))}, {config.get('sampling', 'fixed')}",
        ),
        *([("aggregator", _aggregator(config))] if _has_aggregator(config) else []),
        *([("attack", _attack(config))] if is_attacked(run) else []),
        ("rounds", done),
        ("seed", str(config.get("seed", 0))),
    ]
    if run.best_round is not None:
        rows.append(("best round", f"{run.best_round:,} by {config['keep_best']}, kept"))
    ledger = ledger_of(run)
    if ledger is not None:
        rows.append(("clients received", megabytes.text(ledger.bytes_down)))
        rows.append(("clients sent", _sent(ledger)))
    spent = _privacy(run)
    if spent is not None:
        rows.append(("privacy", f"{config.get('dp', _UNSET)}: {spent.sentence}"))
    seconds = run.seconds()
    if seconds:
        rows.append(("time", _seconds(sum(seconds.values()))))
    if run.peak_memory_bytes is not None:
        rows.append(("peak memory", f"{run.peak_memory_bytes / 2**20:,.0f} MiB"))
    where = [str(run.provenance[name]) for name in ("cpu", "isa") if name in run.provenance]
    if "fedcli" in run.provenance:
        where.insert(0, f"fedcli {run.provenance['fedcli']}")
    return [*rows, *([("made by", ", ".join(where))] if where else [])]


def _sent(ledger: Ledger) -> str:
    """Returns the bytes that clients sent, and their share of uncompressed float32 deltas."""
    share = "" if ledger.up_share is None else f", {100 * ledger.up_share:.3g} % of dense deltas"
    return f"{megabytes.text(ledger.bytes_up)}{share}"


def _privacy(run: RunRecord) -> PrivacySpent | None:
    """Returns the privacy that a run's rounds have spent; None without --dp or without a round."""
    return report.privacy_spent(run.metrics[-1]) if run.metrics else None


def evaluation(run: RunRecord) -> Table | None:
    """Returns loss and accuracy of the last evaluation of each split; None if there is none."""
    rows = []
    newest = run.newest_evaluation
    for name in run.series_names:
        if name == ONLINE:
            continue
        closing = newest.get(name)
        if closing is None:
            last = [number(run.final(name, measure)) for measure in run.measures]
            rows.append([name, *last[:2], _UNSET, _UNSET, *last[2:]])
            continue
        rows += [
            [
                *(row.split, number(row.scores.loss), number(row.scores.accuracy)),
                *(f"{row.scores.num_examples:,}", f"{row.num_clients:,}"),
                *(number(row.scores.own.get(measure)) for measure in run.measures[2:]),
            ]
            for row in report.evaluation_rows({name: closing})
        ]
    if not rows:
        return None
    is_newest = run.round_num in _rounds_of_splits(run).values()
    missing = "" if is_newest else f", of {run.round_num} completed"
    title = f"Federated evaluation after {_evaluated_rounds(run)}{missing}"
    headers = ["split", *MEASURES, "examples", "clients", *run.measures[2:]]
    return Table(title, headers, rows)


def _evaluated_rounds(run: RunRecord) -> str:
    """The rounds of the last evaluations: "round 5", "round 5 (train) and 6 (test)"."""
    rounds = _rounds_of_splits(run)
    if len(set(rounds.values())) == 1:
        return f"round {next(iter(rounds.values()))}"
    return "round " + " and ".join(f"{each} ({name})" for name, each in rounds.items())


def _rounds_of_splits(run: RunRecord) -> dict[str, int]:
    """The round of the last evaluation of each evaluated split."""
    last_rounds = {name: run.final_round(name) for name in run.series_names if name != ONLINE}
    return {name: each for name, each in last_rounds.items() if each is not None}


def spread(evaluation: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Returns the spread of evaluations over clients, by split; None if it was not recorded."""
    rows = [
        [part.name, measure, *_figures(part.over_clients[key], _SPREAD)]
        for split, metrics in evaluation.items()
        for part in report.parts(split, metrics)
        for measure, key in _measures_in(part.over_clients).items()
    ]
    if not rows:
        return None
    title = "Over clients with equal weights"
    return Table(title, ["split", "of", *_SPREAD.values()], rows, num_texts=2)


def _measures_in(over_clients: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metrics of a spread with their keys; the user's own metrics come last."""
    known = {measure: key for measure, key in SELECTION_METRICS.items() if key in over_clients}
    others = (key for key in over_clients if key not in known.values())
    return {**known, **{key: key for key in others if isinstance(over_clients[key], Mapping)}}


def _spread_of(run: RunRecord) -> Table | None:
    """Returns the spread of a run's last evaluations.

    The title names their round if it is not the last round of the run.
    """
    newest = run.newest_evaluation
    table = spread(newest)
    if table is None or all(each["round"] == run.round_num for each in newest.values()):
        return table
    rounds = " and ".join(map(str, sorted({each["round"] for each in newest.values()})))
    return replace(table, title=f"{table.title}, after round {rounds}")


def gain(evaluation: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Returns clients' gain by fine-tuning, and the share that gained; None: no fine-tuning."""
    rows = [
        [part.name, measure, *_figures(part.gain_over_clients[key], _GAIN)]
        for split, metrics in evaluation.items()
        for part in report.parts(split, metrics)
        if part.gain_over_clients is not None
        for measure, key in MEASURES.items()
    ]
    if not rows:
        return None
    title = "Gain by fine-tuning, over clients with equal weights"
    return Table(title, ["split", "to", *_GAIN.values()], rows, num_texts=2)


def _figures(statistics: Mapping[str, Any], headers: Mapping[str, str]) -> list[str]:
    """Returns statistics as texts; a missing one is empty."""
    return [number(statistics[name]) if name in statistics else "" for name in headers]


def time_split(run: RunRecord) -> Table | None:
    """Returns the time by part of the run; None if there are no timings."""
    seconds = run.seconds()
    total = sum(seconds.values())
    if not total:
        return None
    num_rounds = max(1, sum("train" in line for line in run.timings))
    rows = [
        [part, f"{each:.3f}", f"{100 * each / total:.1f} %", f"{1000 * each / num_rounds:.3f}"]
        for part, each in [*seconds.items(), ("all", total)]
    ]
    return Table("Time", ["part", "seconds", "share", "ms per round"], rows)


def of_one(run: RunRecord) -> list[Table]:
    """Returns the tables of one run that have rows."""
    tables = [evaluation(run), *attack_impact.of_one(run), _spread_of(run), time_split(run)]
    return [table for table in tables if table is not None]


def of_several(runs: Sequence[RunRecord], targets: Sequence[float]) -> list[Table]:
    """Returns the tables of several runs: first the means over seeds, if seeds are repeated.

    Args:
        runs: At least two.
        targets: Target accuracies; the tables show the rounds to reach each.
    """
    tables = [over_seeds(runs, targets), side_by_side(runs), rounds_to_target(runs, targets)]
    tables.append(what_differs(runs) if len(runs) <= _MOST_BESIDE else values_that_differ(runs))
    tables.append(attack_impact.of_several(runs))
    return [table for table in tables if table is not None]


def side_by_side(runs: Sequence[RunRecord]) -> Table:
    """Returns one row for each run."""
    has_older = any(set(_rounds_of_splits(run).values()) - {run.round_num} for run in runs)
    headers = ["run", "rounds", *["evaluated after"] * has_older]
    measures = _measures_by_series(runs)
    headers += [f"{name} {measure}" for name, measure in measures]
    diverged = {run.path for run in runs if has_diverged(run)}
    headers += ["state"] * bool(diverged)
    privacy = [_privacy(run) for run in runs]
    headers += ["epsilon"] * any(privacy)
    rows = []
    for run, spent in zip(runs, privacy, strict=True):
        evaluated = _evaluated_rounds(run) if _rounds_of_splits(run) else _UNSET
        scores = [evaluated] * has_older
        scores += [number(run.final(name, measure)) for name, measure in measures]
        scores += ["diverged" if run.path in diverged else _UNSET] * bool(diverged)
        scores += [_UNSET if spent is None else number(spent.epsilon)] * any(privacy)
        seconds = sum(run.seconds().values())
        peak = run.peak_memory_bytes
        ledger = ledger_of(run)
        sums = (_UNSET, _UNSET) if ledger is None else (ledger.bytes_down, ledger.bytes_up)
        rows.append(
            [
                *(str(run.path), f"{run.round_num:,}", *scores),
                *(each if isinstance(each, str) else megabytes.text(each) for each in sums),
                _seconds(seconds) if seconds else _UNSET,
                _UNSET if peak is None else f"{peak / 2**20:,.0f} MiB",
            ]
        )
    return Table("Runs", [*headers, "received", "sent", "time", "memory"], rows)


def what_differs(runs: Sequence[RunRecord]) -> Table | None:
    """Returns one row for each option or provenance entry that differs; None if none does."""
    rows = [[flag(name), *_values(values)] for name, values in comparison.differences(runs).items()]
    rows += [
        [f"({name})", *_values(values)]
        for name, values in comparison.provenance_differences(runs).items()
    ]
    if not rows:
        return None
    headers = ["option", *(str(run.path) for run in runs)]
    return Table("What differs", headers, rows, num_texts=len(headers))


def values_that_differ(runs: Sequence[RunRecord]) -> Table | None:
    """Returns the rows of `what_differs`, each with the list of its values; None if none differs.

    This is the table for many runs; `what_differs` has a column for each run.
    """
    differences = {**comparison.differences(runs)}
    differences.update(
        (f"({name})", values) for name, values in comparison.provenance_differences(runs).items()
    )
    if not differences:
        return None
    rows = []
    for name, values in differences.items():
        distinct = list(dict.fromkeys(_values(values)))
        listed = ", ".join(distinct[:_MOST_VALUES]) + ", ..." * (len(distinct) > _MOST_VALUES)
        rows.append([flag(name), str(len(distinct)), listed])
    return Table("What differs", ["option", "values", "which"], rows, num_texts=3)


def rounds_to_target(runs: Sequence[RunRecord], targets: Sequence[float]) -> Table | None:
    """Returns the first round at which each run reached each target; None without targets."""
    if not targets:
        return None
    rows = [
        [str(run.path), run.judged_by, *(_round(run.rounds_to(target)) for target in targets)]
        for run in runs
    ]
    headers = ["run", "seen on", *(f"accuracy {target:g}" for target in targets)]
    return Table("Rounds to target: the first evaluated round that reaches it", headers, rows, 2)


def over_seeds(runs: Sequence[RunRecord], targets: Sequence[float]) -> Table | None:
    """Returns means over the runs of each configuration; None if none has several runs.

    A mean is over one run for each seed. A mean of rounds to a target is over the runs that reach
    it. The table states if there are more runs, or if some do not reach the target.
    """
    groups = comparison.group_by_config(runs)
    if len(groups) == len(runs):
        return None
    differing = comparison.essential(list(groups[0].options), [each.options for each in groups])
    measures = _measures_by_series(runs)
    headers = [*(map(flag, differing) if differing else ["configuration"]), "seeds"]
    headers += [f"{name} {measure}" for name, measure in measures]
    headers += [f"rounds to {target:g}" for target in targets]
    rows = []
    for group in groups:
        options = [_value(group.options[name]) for name in differing] or ["all runs"]
        repeats, num_runs = group.repeats, len(group.runs)
        has_more = num_runs > len(repeats)
        row = [*options, f"{len(repeats)}" + f" (of {plural(num_runs, 'run')})" * has_more]
        row += [
            _estimate([run.final(name, measure) for run in repeats], 4)
            for name, measure in measures
        ]
        row += [_estimate([run.rounds_to(each) for run in repeats], 1) for each in targets]
        rows.append(row)
    title = "Mean over seeds ± half the 95 % confidence interval (Student's t)"
    return Table(title, headers, rows, max(1, len(differing)))


def shared_series(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the series that at least one of the runs has, in the order of the first run."""
    return list(dict.fromkeys(name for run in runs for name in run.series_names))


def _measures_by_series(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Returns each series with each of its metrics; training has only loss and accuracy."""
    measures = measures_of(runs)
    return [
        (name, measure)
        for name in shared_series(runs)
        for measure in (MEASURES if name == ONLINE else measures)
    ]


def as_json(runs: Sequence[RunRecord], targets: Sequence[float]) -> dict[str, Any]:
    """Returns the content of the tables as plain values."""
    figures = [
        {
            "run": str(run.path),
            "config": run.options,
            "provenance": run.provenance,
            "rounds": run.round_num,
            "best_round": run.best_round,
            "evaluated_rounds": _rounds_of_splits(run),
            "final": {
                name: {
                    measure: run.final(name, measure)
                    for measure in (MEASURES if name == ONLINE else run.measures)
                }
                for name in run.series_names
            },
            "over_clients": {
                split: closing["over_clients"]
                for split, closing in run.newest_evaluation.items()
                if "over_clients" in closing
            },
            "bytes": _bytes(run),
            "privacy": None if (spent := _privacy(run)) is None else spent.as_json(),
            "seconds": run.seconds(),
            "peak_memory_bytes": run.peak_memory_bytes,
            "rounds_to_accuracy": {f"{target:g}": run.rounds_to(target) for target in targets},
        }
        for run in runs
    ]
    attacks = {"attacks": attack_impact.as_json(runs)} if any(map(is_attacked, runs)) else {}
    if len(runs) == 1:
        return {"runs": figures, **attacks}
    groups = [
        {
            "options": group.options,
            "runs": [str(run.path) for run in group.runs],
            "averaged": [str(run.path) for run in group.repeats],  # one for each seed
            "final": {
                name: {
                    measure: _estimate_json([run.final(name, measure) for run in group.repeats])
                    for measure in (MEASURES if name == ONLINE else measures_of(group.runs))
                }
                for name in shared_series(group.runs)
            },
            "rounds_to_accuracy": {
                f"{target:g}": _estimate_json([run.rounds_to(target) for run in group.repeats])
                for target in targets
            },
        }
        for group in comparison.group_by_config(runs)
    ]
    differences = comparison.differences(runs)
    return {"runs": figures, "differences": differences, "groups": groups, **attacks}


def _bytes(run: RunRecord) -> dict[str, Any] | None:
    """The ledger of a run as plain values; None if it is not known."""
    ledger = ledger_of(run)
    if ledger is None:
        return None
    return {
        "down": ledger.bytes_down,
        "up": ledger.bytes_up,
        "up_share_of_dense": ledger.up_share,
        "by_round": [each._asdict() for each in ledger.rounds],
    }


def rounds_csv(runs: Sequence[RunRecord]) -> Table:
    """Returns one row for each round of each run; the columns are the run and flattened metrics."""
    lines = [(str(run.path), flatten(line)) for run in runs for line in run.metrics]
    keys = list(dict.fromkeys(key for _, line in lines for key in line))
    rows = [[name, *(_csv_cell(line.get(key)) for key in keys)] for name, line in lines]
    return Table("Rounds", ["run", *keys], rows)


def runs_csv(runs: Sequence[RunRecord], targets: Sequence[float]) -> Table:
    """Returns one row for each run: the options that differ, and unformatted numbers."""
    differing = comparison.differences(runs)
    measures = _measures_by_series(runs)
    headers = ["run", *differing, "rounds", *(f"{name}.{measure}" for name, measure in measures)]
    headers += [*(f"rounds@{target:g}" for target in targets), "diverged", "seconds"]
    rows = []
    for index, run in enumerate(runs):
        cells = [str(run.path), *(_csv_cell(values[index]) for values in differing.values())]
        cells.append(str(run.round_num))
        cells += [_csv_cell(run.final(name, measure)) for name, measure in measures]
        cells += [_csv_cell(run.rounds_to(target)) for target in targets]
        cells += [str(int(has_diverged(run))), str(sum(run.seconds().values()))]
        rows.append(cells)
    return Table("Runs", headers, rows)


def clients_csv(records: Mapping[str, ClientRecords]) -> Table:
    """Returns one row for each client of each round, by run."""
    rows: list[list[str]] = []
    for run, each in records.items():
        rounds = map(str, each.rows["round"].tolist())
        names = [each.client_ids[index] for index in each.rows["client"].tolist()]
        outcomes = [OUTCOMES[index] for index in each.rows["outcome"].tolist()]
        columns = [each.rows[name].tolist() for name in ROW_COLUMNS]
        for round_num, name, outcome, *values in zip(
            rounds, names, outcomes, *columns, strict=True
        ):
            cells = [_csv_cell(value if value == value else None) for value in values]
            rows.append([run, round_num, name, outcome, *cells])
    return Table("Clients", ["run", "round", "client", "outcome", *ROW_COLUMNS], rows)


def flag(name: str) -> str:
    """Returns an option as it is written on the command line: `--server-option momentum`.

    A name in parentheses, such as "(data)", is not an option and stays unchanged.
    """
    if name.startswith("("):
        return name
    field, _, key = name.partition(".")
    return f"{option_name(field)} {key}" if key else option_name(field)


def number(value: object) -> str:
    """Returns a metric with four digits, or `-`."""
    if not isinstance(value, int | float) or value - value != 0:
        return _UNSET
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _optimizer(config: Mapping[str, Any], side: str) -> str:
    name = config.get(f"{side}_optimizer")
    if name is None:
        return _UNSET
    options = [f"lr={_value(config.get(f'{side}_lr'))}"]
    prefix = f"{side}_options."
    options += [
        f"{key.removeprefix(prefix)}={_value(value)}"
        for key, value in config.items()
        if key.startswith(prefix)
    ]
    return f"{name} ({', '.join(options)})"


def _has_aggregator(config: Mapping[str, Any]) -> bool:
    return str(config.get("aggregator", "mean")) != "mean"


def _aggregator(config: Mapping[str, Any]) -> str:
    """Returns the aggregator with its options, and a remark if it ignores clients' weights."""
    name = str(config["aggregator"])
    is_weighted = name in _WEIGHTED or config.get("aggregator_options.weighted") is True
    remark = "" if is_weighted or name not in AGGREGATORS else "; ignores the clients' weights"
    return f"{_with_options(config, 'aggregator')}{remark}"


def _with_options(config: Mapping[str, Any], option: str) -> str:
    """Returns what was chosen by name, with its own options if it has any."""
    options = _options_of(config, f"{option}_options.")
    name = str(config.get(option, _UNSET))
    return f"{name} ({', '.join(options)})" if options else name


def _attack(config: Mapping[str, Any]) -> str:
    """The attack with its number of attackers and its options."""
    options = [f"attackers {_value(config.get('attackers'))}"]
    options += _options_of(config, "attack_options.")
    return f"{config['attack']} ({', '.join(options)})"


def _options_of(config: Mapping[str, Any], prefix: str) -> list[str]:
    """Returns the options whose names have a prefix, each as k=v; 2.0 is shown as 2."""
    return [
        f"{key.removeprefix(prefix)}={_value(int(value) if _is_whole(value) else value)}"
        for key, value in config.items()
        if key.startswith(prefix)
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_WHOLE


def _value(value: object) -> str:
    return _cut(_full_value(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _full_value(value: object) -> str:
    if value is None:
        return _UNSET
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _values(values: Sequence[object]) -> list[str]:
    """Returns different values as texts. Of long texts that begin alike, the ends are kept."""
    texts = list(map(_full_value, values))
    cuts = list(map(_cut, texts))
    if len(set(cuts)) == len(set(texts)):
        return cuts
    return [text if len(text) <= 60 else f"...{text[-57:]}" for text in texts]


def _estimate(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    estimate = comparison.estimate(known)
    if estimate is None:
        return _UNSET
    text = f"{estimate.mean:.{digits}f}"
    if estimate.half_width is not None:
        text += f" ± {estimate.half_width:.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _estimate_json(values: Sequence[float | None]) -> dict[str, Any] | None:
    estimate: Estimate | None = comparison.estimate([each for each in values if each is not None])
    if estimate is None:
        return None
    return {"mean": estimate.mean, "half_width_95": estimate.half_width, "count": estimate.count}


def _csv_cell(value: object) -> str:
    return "" if value is None else str(value)


def _round(value: int | None) -> str:
    return _UNSET if value is None else f"{value:,}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
