"""The output of `inspect-clients`: the population, a table of its clients, and their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcli.cli.screen import client_pictures, pictures
from fedcli.cli.screen.client_pictures import MAX_LABELS
from fedcli.cli.screen.render import Bar, Lines, Screen
from fedcli.dataclass import dataclass
from fedcli.errors import plural
from fedcli.inspection.statistics import (
    LabelSkew,
    SplitCounts,
    Spread,
    size_histogram,
    summarize,
    summarize_sizes,
)
from fedcli.settings.vocabulary import NATURAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcli.datasets.client_data import ClientData
    from fedcli.inspection.population import Population

MAX_PANELS = 12  # largest number of clients that are drawn side by side
MAX_LABEL_COLUMNS = 12  # largest number of classes that fit as columns of a table
PANEL_WIDTH = 24
MAX_PANEL_PICTURE = 32  # columns
DEFAULT_SHOWN_EXAMPLES = 10
_TABLE_GAP = 2

_LEGEND = (
    "TV: total variation distance of a client's labels from all labels, 0 to 1.",
    "At random: mean TV of as many examples, drawn at random from all clients.",
    "Effective classes: exp of the entropy; n if n classes are equally frequent.",
)
_ALIKE = 0.1  # up to this share of difference, a mean TV counts as equal to that at random


@dataclass(frozen=True)
class View:
    """How much to show.

    Attributes:
        top: Number of rows of the table of clients.
        sort: Its order, a key of `SplitCounts.order_by`.
        num_examples: Number of examples drawn of each client; None: depends on the layout.
        has_means: Whether to draw mean images also in layouts that by default have none.
    """

    top: int
    sort: str
    num_examples: int | None
    has_means: bool


def show_population(screen: Screen, populations: Mapping[str, Population], view: View) -> None:
    """Prints a summary of all splits, then the clients of the first one."""
    first = next(iter(populations.values()))
    counts = first.counts
    _show_summary(screen, first.data, [each.counts for each in populations.values()])
    if not counts.client_ids:
        return
    _show_skew(screen, first)
    screen.title(f"Clients by number of examples ({counts.split})")
    bins = size_histogram(counts.sizes)
    screen.bars([Bar(f"{each.low}-{each.high}", each.num_clients) for each in bins])
    screen.title(f"Examples by label ({counts.split})")
    screen.bars(_label_bars(first.data, counts.class_totals))
    if view.has_means and first.means is not None:
        screen.title(f"Mean image of each label ({counts.split})")
        client_pictures.show_population_means(screen, first.data, first.means)
    screen.title(f"Clients ({counts.split}){_order_note(view.sort)}")
    _show_table(screen, first.data, counts, view)


def show_panels(screen: Screen, populations: Mapping[str, Population], view: View) -> None:
    """Prints a summary, then a few clients side by side: label counts and an example of each.

    On request, the mean images of each client and of the population follow.
    """
    first = next(iter(populations.values()))
    data, counts = first.data, first.counts
    _show_summary(screen, data, [each.counts for each in populations.values()])
    screen.title(f"Label counts and examples ({counts.split})")
    screen.beside(_panels(screen, data, counts, view.num_examples))
    if view.has_means and first.means is not None:
        client_pictures.show_means_of_each(
            screen, first, first.means, plural(len(first.compared.client_ids), "client")
        )


def show_clients(screen: Screen, population: Population, view: View) -> None:
    """Draws clients one below the other: label counts as bars, examples, mean images."""
    data, counts = population.data, population.counts
    wanted = DEFAULT_SHOWN_EXAMPLES if view.num_examples is None else view.num_examples
    for row, client_id in enumerate(counts.client_ids):
        client = data.client(client_id)
        if row:
            screen.line("")
        _show_heading(screen, counts, row)
        _show_label_counts(screen, population, row)
        num_drawn = min(wanted, len(client))
        if num_drawn:
            screen.title(f"First {plural(num_drawn, 'example')}")
            shown = pictures.crop(client_pictures.first_examples(data, client, num_drawn))
            screen.pictures(shown, [data.class_name(label) for label in client.labels.tolist()])
        if len(client):
            is_compared = population.means is not None
            where = (
                f"; below it that of {plural(len(population.compared.client_ids), 'client')}"
                if is_compared
                else ""
            )
            screen.title(f"Mean image of each label{where}")
            client_pictures.show_client_means(screen, data, client, population.means)


# ---- The population -----------------------------------------------------------------------------


def _show_summary(screen: Screen, data: ClientData, splits: Sequence[SplitCounts]) -> None:
    shape = " x ".join(map(str, data.pixel_shape))
    what = f"{plural(data.num_classes, 'class')}, pixels {shape}, 1.0 is {data.pixel_convention}"
    screen.line(f"{data.source}: {what}", style="bold")
    if data.partition != NATURAL:
        screen.line(f"Partition: {data.partition}")
    headers = ["split", "clients", "examples", "min", "p5", "p25", "median", "p75", "p95", "max"]
    rows = []
    for counts in splits:
        row = [counts.split, f"{len(counts.client_ids):,}", f"{counts.num_examples:,}"]
        if counts.client_ids:
            sizes = summarize_sizes(counts.sizes)
            figures = (sizes.minimum, sizes.p5, sizes.p25, sizes.median, sizes.p75, sizes.p95)
            row += [_short(figure) for figure in (*figures, sizes.maximum)]
        rows.append(row + [""] * (len(headers) - len(row)))
    screen.table(headers, rows)


def _show_skew(screen: Screen, population: Population) -> None:
    """Prints how sizes and labels differ between clients."""
    counts = population.counts
    skew, sizes = counts.skew, summarize_sizes(counts.sizes)
    is_grey = len(population.data.pixel_shape) < 3 or population.data.pixel_shape[2] == 1
    figures = [
        ("TV of labels", skew.tv, 3),
        ("  at random", skew.tv_floor, 3),
        ("Jensen-Shannon, bits", skew.js, 3),
        ("effective classes", skew.effective_classes, 2),
        ("classes held", skew.num_present.astype(np.float64), 1),
        ("share of commonest", skew.max_share, 3),
    ]
    if counts.mean_ink is not None:
        figures.append(("mean ink" if is_grey else "mean brightness", counts.mean_ink, 3))
    rows = []
    for name, values, digits in figures:
        spread = summarize(values, counts.sizes)
        if spread is not None:
            rows.append([name, *(f"{each:.{digits}f}" for each in _columns(spread))])
    screen.title(f"Heterogeneity ({counts.split})")
    if rows:
        screen.table(["over clients", "min", "mean", "median", "p90", "max"], rows)
    deviation = f"std {sizes.std:,.1f} ({_ratio(sizes.std_over_mean)} of the mean)"
    screen.line(
        f"Sizes: mean {sizes.mean:,.1f}, {deviation}, skewness {_ratio(sizes.skewness, 2)}, "
        f"Gini {_ratio(sizes.gini)}"
    )
    if rows:
        screen.line(_verdict(skew))
        for line in _LEGEND:
            screen.line(line, style="dim")


def _verdict(skew: LabelSkew) -> str:
    """One sentence that compares the mean TV with that of random draws."""
    tv, floor = float(np.nanmean(skew.tv)), float(np.nanmean(skew.tv_floor))
    if not floor:
        return "All examples have the same label."
    ratio = tv / floor
    how = "as much as" if abs(ratio - 1) <= _ALIKE else "less than" if ratio < 1 else "more than"
    return f"Labels differ {how} at random: mean TV is {ratio:.2g} times that at random."


def _columns(spread: Spread) -> tuple[float, ...]:
    return spread.minimum, spread.mean, spread.median, spread.p90, spread.maximum


def _show_table(screen: Screen, data: ClientData, counts: SplitCounts, view: View) -> None:
    order = counts.order_by(view.sort)[: view.top]
    for columns in _table_columns(data, view.sort):
        headers = [header for name in columns for header in _headers(data, name)]
        rows = [
            [cell for name in columns for cell in _cells(data, counts, row, name)]
            for row in order.tolist()
        ]
        if screen.has_room_for(headers, rows, _TABLE_GAP):
            break
    if rows:
        screen.table(headers, rows, gap=_TABLE_GAP)
    num_left = len(counts.client_ids) - len(order)
    if num_left > 0:
        screen.line(f"... and {num_left:,} more; --top N shows N", style="dim")


def _table_columns(data: ClientData, sort: str) -> list[tuple[str, ...]]:
    """Sets of columns for the table of clients, widest first.

    Each set contains the column by which the clients are sorted.
    """
    start = ("client", "examples")
    all_figures = ("TV", "random", "JS", "effective")
    fewer = ("JS", "effective") if sort == "js" else ("TV", "random", "effective")
    end = ("held", "commonest")
    last = {"js": ("JS",), "classes": ("effective", "held")}.get(sort, ("TV", "random"))
    choices = [(*start, *all_figures, *end), (*start, *fewer, *end), (*start, *last)]
    if data.num_classes <= MAX_LABEL_COLUMNS:
        with_labels = [(*start, *some, "labels") for some in (all_figures, fewer, last)]
        choices = [*with_labels, *choices]
    return choices


def _headers(data: ClientData, column: str) -> list[str]:
    if column == "labels":
        return [data.class_name(label) for label in range(data.num_classes)]
    return [column]


def _cells(data: ClientData, counts: SplitCounts, row: int, column: str) -> list[str]:
    """The cells of one client in one column."""
    labels, skew = counts.label_counts[row], counts.skew
    if column == "labels":
        return [f"{count:,}" for count in labels.tolist()]
    if column == "client":
        return [counts.client_ids[row]]
    if column == "commonest":
        return [data.class_name(int(labels.argmax())) if counts.sizes[row] else "-"]
    if column in ("examples", "held"):
        return [f"{(counts.sizes if column == 'examples' else skew.num_present)[row]:,}"]
    if column == "effective":
        return [_ratio(skew.effective_classes[row], 2)]
    return [_ratio({"TV": skew.tv, "random": skew.tv_floor, "JS": skew.js}[column][row])]


def _order_note(sort: str) -> str:
    names = {
        "id": "",
        "size": "largest",
        "tv": "greatest TV",
        "js": "greatest Jensen-Shannon divergence",
        "classes": "most classes",
    }
    return f", {names[sort]} first" if names[sort] else ""


# ---- Some clients -------------------------------------------------------------------------------


def _panels(
    screen: Screen, data: ClientData, counts: SplitCounts, num_examples: int | None
) -> list[Lines]:
    """Label counts of each client on a common scale, and below them some of its examples."""
    wanted = 1 if num_examples is None else num_examples
    charts = [_label_bars(data, each) for each in counts.label_counts]
    clients = [data.client(client_id) for client_id in counts.client_ids]
    shown = client_pictures.crop_together(
        [client_pictures.first_examples(data, client, wanted) for client in clients]
    )
    skew, panels = counts.skew, []
    for row, (client, bars, examples) in enumerate(zip(clients, charts, shown, strict=True)):
        title = f"{client.client_id}: {plural(len(client), 'example')}"
        figures = f"TV {_ratio(skew.tv[row])}, random {_ratio(skew.tv_floor[row])}"
        lines = [screen.text(title, style="bold"), screen.text(figures, style="dim")]
        lines += screen.bar_lines(bars, PANEL_WIDTH, _greatest(charts))
        factor = screen.shrink_factor(1, examples.shape[2], MAX_PANEL_PICTURE)
        for label, picture in zip(client.labels, pictures.shrink(examples, factor), strict=False):
            name = screen.text(data.class_name(int(label)), style="bold")
            lines += [screen.text(""), name, *screen.picture(picture)]
        panels.append(lines)
    return panels


def _show_heading(screen: Screen, counts: SplitCounts, row: int) -> None:
    size, skew = int(counts.sizes[row]), counts.skew
    whose = f"{counts.client_ids[row]}: {plural(size, 'example')} ({counts.split})"
    screen.line(whose, style="bold")
    if size:
        screen.line(
            f"TV {_ratio(skew.tv[row])} (at random {_ratio(skew.tv_floor[row])}), "
            f"JS {_ratio(skew.js[row])} bits, {plural(skew.num_present[row], 'class')}, "
            f"{_ratio(skew.effective_classes[row], 2)} effective"
        )


def _show_label_counts(screen: Screen, population: Population, row: int) -> None:
    """Prints the label counts of a client, and beside them those expected from all clients."""
    data, counts = population.data, population.counts
    own = counts.label_counts[row]
    totals = population.compared.class_totals
    expected = np.rint(totals * (int(counts.sizes[row]) / max(1, int(totals.sum()))))
    whose = plural(len(population.compared.client_ids), "client")
    charts = {"label counts": _label_bars(data, own)}
    if counts.sizes[row] and screen.width >= 2 * PANEL_WIDTH:
        charts[f"expected from all {whose}"] = _label_bars(data, expected.astype(np.int64))
    greatest, room = _greatest(list(charts.values())), (screen.width - 2) // 2
    screen.beside(
        [
            [screen.text(title), *screen.bar_lines(bars, room, greatest)]
            for title, bars in charts.items()
        ]
    )


def _label_bars(data: ClientData, label_counts: NDArray[np.integer]) -> list[Bar]:
    shown = label_counts[:MAX_LABELS].tolist()
    bars = [Bar(data.class_name(label), count) for label, count in enumerate(shown)]
    rest = int(label_counts[MAX_LABELS:].sum())
    return [*bars, Bar("others", rest)] if len(label_counts) > MAX_LABELS else bars


def _greatest(charts: Sequence[Sequence[Bar]]) -> int:
    return max(bar.value for bars in charts for bar in bars)


def _ratio(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _short(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")
