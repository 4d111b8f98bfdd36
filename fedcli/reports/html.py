"""Writes one self-contained HTML page about one or several runs, without scripts.

All text from files is escaped. A content security policy in the page keeps the browser from loading
other resources.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from fedcli.csv_text import visible
from fedcli.errors import plural
from fedcli.inspection.figures.tiles import on_paper, tile_blocks
from fedcli.reports import megabytes
from fedcli.reports import tables as report_tables
from fedcli.reports.axes import Axis, tick_texts
from fedcli.reports.group_curves import Band, of_many
from fedcli.reports.names import short_names
from fedcli.reports.png import encode_png
from fedcli.reports.prediction_summary import PredictedExamples, PredictionSummary
from fedcli.reports.text import Table
from fedcli.runs.record import (
    ABOUT_ONLINE,
    Points,
    RunRecord,
    curve_title,
    curves_of,
    is_online,
    measures_of,
)

# Paul Tol's bright scheme with a darker yellow, whose colours colour-blind readers can distinguish.
# The second row is for a dark background.
COLORS = ("#4477aa", "#ee6677", "#228833", "#b09a1e", "#33a6cc", "#aa3377", "#777777")
_DARK_COLORS = ("#77aadd", "#ff8899", "#55bb66", "#ddcc66", "#77ddff", "#dd77aa", "#aaaaaa")
# The lines of the first seven series are solid, the next seven have the second pattern, and so on.
_DASHES = ("", "7 3", "2 3", "8 3 2 3", "13 3", "1 5", "9 2 2 2 2 2")

_WIDTH, _HEIGHT = 460, 270  # of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 10, 46  # margins around its plot area
_NUM_BINS = 20
_LEGEND_LETTERS = 48  # maximum length of a run's name
_X_TICKS, _Y_TICKS = 6, 6


def _variables(colors: Sequence[str]) -> str:
    return " ".join(f"--c{index}: {color};" for index, color in enumerate(colors))


_STYLE = (
    f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #222; --faint: #666; --line: #e4e4e4;
  --axis: #888; --shade: #0003; --wrong: #b3223a; {_variables(COLORS)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16181c; --ink: #e4e4e4; --faint: #a0a4aa; --line: #34383f;
    --axis: #80858d; --shade: #fff4; --wrong: #ff8f9f; {_variables(_DARK_COLORS)} }}
}}
"""
    + """
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1, .key, .pairs td { overflow-wrap: anywhere; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 2em 0 .5em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--line); }
th { border-bottom-color: var(--axis); } th.text, td.text { text-align: left; }
th, td { white-space: nowrap; } tr:first-child th { vertical-align: bottom; }
tr:first-child th:not(.text) { white-space: normal; }
.pairs th, .confusion tr + tr th { border-bottom-color: var(--line); }
td.text:not(:first-child) { white-space: normal; }
/* A shadow marks the sides on which a table continues; at its ends the background covers it. */
.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 36px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 36px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 12px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 12px 100% no-repeat scroll; }
.row { display: flex; flex-wrap: wrap; gap: 1.5em; }
.row figure { flex: 1 1 340px; max-width: 480px; min-width: 0; }
.note { color: var(--faint); font-size: .9em; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { display: block; width: 100%; max-width: 480px; height: auto; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--axis); }
.key { columns: 18em auto; margin: .6em 0; } .key span { display: block; break-inside: avoid; }
.key svg { display: inline-block; width: 34px; height: 8px; vertical-align: middle;
  margin-right: .5em; }
.confusion tr:first-child th { text-align: center; }
.confusion td { padding: .25em .4em; border: 1px solid var(--paper); text-align: center;
  min-width: 1.7em; }
.digits { display: flex; flex-wrap: wrap; gap: .6em; }
.digits figure { text-align: center; font-size: .8em; }
.digits img { width: 64px; height: 64px; object-fit: contain; image-rendering: pixelated;
  border: 2px solid var(--line); }
.digits .wrong img { border-color: var(--c1); } .wrong figcaption { color: var(--wrong); }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--ink); }
@media (max-width: 600px) {
  body { margin: 1em auto; padding: 0 .7em; font-size: 14px; }
  th, td { padding: .2em .3em; } table { font-size: .82em; } svg text { font-size: 13px; }
  .confusion { font-size: .68em; } .confusion th { padding: .2em .15em; }
  .confusion td { padding: .2em .05em; min-width: 1.4em; }
}
"""
)


def page(
    runs: Sequence[RunRecord],
    predictions: PredictionSummary | None,
    targets: Sequence[float],
    notes: Sequence[str] = (),
    x_axis: str = megabytes.ROUND,
) -> str:
    """Returns the HTML page.

    Args:
        runs: The runs, at least one.
        predictions: The predictions of a single run; None if its data are not available.
        targets: Target accuracies; for several runs, the rounds to reach each are shown.
        notes: Remarks for the reader, one line each.
        x_axis: The quantity of the x axis, a key of `megabytes.AXES`.
    """
    one = runs[0] if len(runs) == 1 else None
    title = str(one.path) if one else f"{len(runs)} runs"
    parts = [f"<h1>{_escape(title)}</h1>"]
    parts += [f'<p class="note">{_escape(note)}</p>' for note in notes]
    if one:
        parts.append(_pairs(report_tables.summary(one)))
    parts.append(_curves(runs, x_axis))
    tables = report_tables.of_one(one) if one else report_tables.of_several(runs, targets)
    parts += map(_table, tables)
    if predictions is not None:
        parts += [_spread(predictions), _confusion(predictions), _samples(predictions)]
    if one:
        rows = [[report_tables.flag(name), str(value)] for name, value in one.options.items()]
        rows += [[name, str(value)] for name, value in one.provenance.items()]
        parts.append(_table(Table("Configuration", ["option", "value"], rows, 2)))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{_escape(title)} - fedcli</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _curves(runs: Sequence[RunRecord], x_axis: str) -> str:
    along = megabytes.along(x_axis)
    grouped = of_many(runs) if x_axis == megabytes.ROUND else None
    curves: dict[str, Mapping[str, Points]]
    if grouped is not None:
        curves = {measure: each.series for measure, each in grouped.curves.items()}
        bands = {measure: each.bands for measure, each in grouped.curves.items()}
    else:
        curves = {measure: curves_of(runs, measure, along) for measure in measures_of(runs)}
        bands = {}
    drawn = {measure: series for measure, series in curves.items() if any(series.values())}
    if not drawn:
        return ""
    names = list(dict.fromkeys(name for series in drawn.values() for name in series))
    charts = [
        _line_chart(measure, series, bands.get(measure, {}), names, x_axis)
        for measure, series in drawn.items()
    ]
    if grouped is not None:
        about = f"{grouped.title}; {grouped.note}"
    else:
        about = ABOUT_ONLINE if any(map(is_online, names)) else ""
    note = f'<p class="note">{_escape(about)}</p>' if about else ""
    return f'<h2>Curves</h2><div class="row">{"".join(charts)}</div>{_key(runs, names)}{note}'


def _key(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Returns the legend of all charts."""
    texts = names if len(runs) == 1 else short_names(names, _LEGEND_LETTERS)
    items = [
        f'<span title="{_escape(name)}"><svg viewBox="0 0 34 8"><line x1="0" x2="34" y1="4" y2="4" '
        f"{_stroke(index)}/></svg>{_escape(text)}</span>"
        for index, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    return f'<div class="key note">{"".join(items)}</div>'


def _stroke(index: int) -> str:
    """Returns the SVG attributes of a series' line: colour, width and dashes."""
    dashes = _DASHES[index // len(COLORS) % len(_DASHES)]
    pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
    color = f"var(--c{index % len(COLORS)})"
    return f'style="stroke:{color};fill:none" stroke-width="1.8"{pattern}'


def _line_chart(
    measure: str,
    series: Mapping[str, Points],
    bands: Mapping[str, Band],
    names: Sequence[str],
    x_axis: str,
) -> str:
    """Returns a chart of series and bands. The index in `names` determines a series' colour."""
    is_by_round = x_axis == megabytes.ROUND
    label = megabytes.AXES[x_axis]
    points = [point for each in series.values() for point in each]
    points += [(at, end) for band in bands.values() for at, *ends in band for end in ends]
    across = Axis.of((x for x, _ in points), is_log=False)
    is_log = None if measure == "loss" else False
    beginnings = [each[0][1] for each in series.values() if each]
    up = Axis.of((y for _, y in points), beginnings, is_log=is_log)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + across.share(x) * width, _TOP + (1 - up.share(y)) * height

    drawn = []
    for name, band in bands.items():
        edge = [(at, low) for at, low, _ in band] + [(at, high) for at, _, high in band[::-1]]
        path = " ".join("{:.1f},{:.1f}".format(*place(*each)) for each in edge)
        color = f"var(--c{names.index(name) % len(COLORS)})"
        drawn.append(f'<polygon points="{path}" style="fill:{color};fill-opacity:.16"/>')
    for name, each in series.items():
        index = names.index(name)
        places = [place(x, y) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(
            f'<polyline points="{path}" {_stroke(index)}><title>{_escape(name)}</title></polyline>'
        )
        if len(each) <= 40:  # more points would hide the line
            drawn += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" '
                f'style="fill:var(--c{index % len(COLORS)})"><title>'
                f"{_escape(name)}, {_point_text(at, label)}: {value:.4f}</title></circle>"
                for (x, y), (at, value) in zip(places, each, strict=True)
            ]
    axes = []
    ticks = up.ticks(_Y_TICKS)
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        y = place(across.low, tick)[1]
        axes.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    ticks = across.ticks(_X_TICKS, is_whole=is_by_round)
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        axes.append(_x_tick(place(tick, up.low)[0], text))
    scale = ", logarithmic scale" if up.is_log else ""
    title = f"{curve_title(measure, label)}{scale}"
    return (
        f"<figure><figcaption>{_escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"{''.join(axes)}{_axis_titles(label, measure)}{''.join(drawn)}</svg></figure>"
    )


def _point_text(at: float, label: str) -> str:
    return f"round {at}" if label == megabytes.AXES[megabytes.ROUND] else f"{at:.4g} {label}"


def _x_tick(x: float, text: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
    )


def _axis_titles(across: str, up: str) -> str:
    """Returns the titles of both axes, and the line of the x axis."""
    middle, bottom = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2, _HEIGHT - _BOTTOM
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{_escape(across)}</text>'
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{_escape(up)}</text>"
    )


def _spread(predictions: PredictionSummary) -> str:
    accuracies = predictions.accuracies[np.isfinite(predictions.accuracies)]
    counts, edges = np.histogram(accuracies, bins=_NUM_BINS, range=(0.0, 1.0))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    highest = max(1, int(counts.max(initial=0)))
    bars = []
    for count, low, high in zip(counts.tolist(), edges, edges[1:], strict=False):
        tall = height * count / highest
        bars.append(
            f'<rect x="{_LEFT + low * width:.1f}" y="{_TOP + height - tall:.1f}" '
            f'width="{width / _NUM_BINS - 1.5:.1f}" height="{tall:.1f}" '
            f'style="fill:var(--c0)"><title>'
            f"{plural(count, 'client')} from {low:.2f} to {high:.2f}</title></rect>"
        )
    texts = [_x_tick(_LEFT + share * width, f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    texts += [
        f'<text x="{_LEFT - 6}" y="{_TOP + height - height * count / highest + 4:.1f}" '
        f'text-anchor="end">{count:,}</text>'
        for count in sorted({0, highest})
    ]
    caption = f"Clients by their accuracy ({predictions.split})"
    worst = np.argsort(accuracies, kind="stable")[:5]
    ids = [
        name
        for name, is_known in zip(
            predictions.client_ids, np.isfinite(predictions.accuracies), strict=True
        )
        if is_known
    ]
    lowest = ", ".join(f"{ids[index]} {accuracies[index]:.3f}" for index in worst.tolist())
    return (
        f'<h2>{_escape(caption)}</h2><figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"{''.join(bars)}{''.join(texts)}{_axis_titles('accuracy', 'clients')}"
        f'</svg></figure><p class="note">{len(accuracies):,} clients that have examples. '
        f"Lowest: {_escape(lowest) or 'none'}</p>"
    )


def _confusion(predictions: PredictionSummary) -> str:
    """Returns the confusion matrix: a row for each label, a column for each prediction.

    The colour of a cell shows its share of the row.
    """
    if predictions.confusion is None:
        return ""
    head = "".join(f"<th>{_escape(name)}</th>" for name in predictions.class_names)
    rows: list[str] = []
    for name, counts in zip(predictions.class_names, predictions.confusion.tolist(), strict=True):
        total = max(1, sum(counts))
        cells = []
        for count in counts:
            share = count / total
            ink = "#fff" if share > 0.55 else "var(--ink)"
            text = f"{count:,}" if count else ""
            cells.append(
                f'<td style="background:rgba(68,119,170,{share:.3f});color:{ink}">{text}</td>'
            )
        recall = counts[len(rows)] / total if sum(counts) else float("nan")
        end = f"<td>{recall:.3f}</td>" if sum(counts) else "<td>-</td>"
        rows.append(f'<tr><th class="text">{_escape(name)}</th>{"".join(cells)}{end}</tr>')
    columns = predictions.confusion.sum(axis=0).tolist()
    precisions = [
        f"<td>{predictions.confusion[index, index] / count:.3f}</td>" if count else "<td>-</td>"
        for index, count in enumerate(columns)
    ]
    counted = f"{predictions.num_counted:,}"
    if predictions.num_counted < predictions.num_examples:
        counted += f" of {predictions.num_examples:,}"
    last = f'<tr><th class="text">precision</th>{"".join(precisions)}<td></td></tr>'
    return (
        "<h2>Confusion matrix</h2>"
        f'<p class="note">{counted} examples ({_escape(predictions.split)}); a row is a '
        "label, a column a prediction</p>"
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}<th>recall</th></tr>'
        f"{''.join(rows)}{last}</table></div>"
    )


def _samples(predictions: PredictionSummary) -> str:
    figures = []
    for sample in predictions.samples:
        for image, label, predicted in _pictures(sample, predictions.pixel_convention):
            is_right = label == predicted
            name = predictions.class_names[predicted] if predicted >= 0 else "nothing"
            text = name if is_right else f"{name}, not {predictions.class_names[label]}"
            kind = "right" if is_right else "wrong"
            alt = f"{sample.client.client_id}: {predictions.class_names[label]}"
            figures.append(
                f'<figure class="{kind}"><img src="data:image/png;base64,{image}" '
                f'alt="{_escape(alt)}" title="{_escape(alt)}"><figcaption>{_escape(text)}'
                "</figcaption></figure>"
            )
    return (
        f"<h2>Predictions for some examples ({_escape(predictions.split)})</h2>"
        f'<div class="digits">{"".join(figures)}</div>'
    )


def _pictures(sample: PredictedExamples, convention: str) -> list[tuple[str, int, int]]:
    blocks = [tiles for tiles, _ in tile_blocks(sample.client)]
    tiles = on_paper(np.concatenate(blocks), convention)
    levels = np.rint(np.clip(tiles, 0, 1) * 255).astype(np.uint8)
    labels = sample.client.labels.tolist()
    return [
        (base64.b64encode(encode_png(each)).decode(), label, predicted)
        for each, label, predicted in zip(levels, labels, sample.predicted.tolist(), strict=True)
    ]


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th class="text">{_escape(name)}</th><td class="text">{_escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table class="pairs">{cells}</table>'


def _table(table: Table) -> str:
    num_numbers = len(table.headers) - table.num_texts
    kinds = [' class="text"'] * table.num_texts + [""] * num_numbers

    def cells(texts: Sequence[str], tag: str) -> str:
        pairs = zip(kinds, texts, strict=True)
        return "".join(f"<{tag}{kind}>{_escape(text)}</{tag}>" for kind, text in pairs)

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    head = cells(table.headers, "th")
    return (
        f"<h2>{_escape(table.title)}</h2>"
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _escape(text: str) -> str:
    """Returns the text for HTML: without markup and control characters."""
    return html.escape(visible(text))
