"""What `inspect-clients` shows: the population, a table of its clients, and their digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedcli.cli import pictures
from fedcli.cli.render import Bar, Lines, Screen
from fedcli.statistics import (
    MeanImages,
    SplitCounts,
    Spread,
    size_histogram,
    summarize,
    summarize_sizes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcli.batches import ClientDataset
    from fedcli.cli.pictures import Pictures
    from fedcli.datasets.client_data import ClientData

MAX_PANELS = 12  # chosen clients that are still drawn side by side
MAX_LABEL_COLUMNS = 12  # classes that fit beside each other into a table
MAX_LABEL_BARS = 62
PANEL_WIDTH = 24
MAX_PANEL_PICTURE = 32  # columns
DEFAULT_SHOWN_EXAMPLES = 10
_TABLE_GAP = 2

_LEGEND = (
    "TV: half the EMD from the labels of the population; 0 is alike, 1 disjoint.",
    "Floor: mean TV of as many examples drawn from the population at random.",
)


@dataclass(frozen=True)
class View:
    """How much to show.

    Attributes:
        top: Rows of the table of clients.
        sort: Its order, a key of `SplitCounts.order_by`.
        num_examples: Digits drawn a client; None: as suits the place.
        has_means: Whether mean images are drawn where they are not by themselves.
    """

    top: int
    sort: str
    num_examples: int | None
    has_means: bool


@dataclass(frozen=True, eq=False)
class Population:
    """One split, counted.

    Attributes:
        data: Its examples.
        counts: Of the clients looked at.
        compared: Of those they are compared with: all of the split, or a draw of very many.
        means: Mean images over those; None where nobody asked.
    """

    data: ClientData
    counts: SplitCounts
    compared: SplitCounts
    means: MeanImages | None


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
        _show_population_means(screen, first.data, first.means)
    screen.title(f"Clients ({counts.split}){_order_note(view.sort)}")
    _show_table(screen, first.data, counts, view)


def show_panels(screen: Screen, populations: Mapping[str, Population], view: View) -> None:
    """Prints a summary, then a few clients side by side: label counts, and a digit or so of each.

    If asked, the mean images of each follow, and those of the population.
    """
    first = next(iter(populations.values()))
    data, counts = first.data, first.counts
    _show_summary(screen, data, [each.counts for each in populations.values()])
    screen.title(f"Label counts and digits ({counts.split})")
    panels = [
        _panel(screen, data, data.client(client_id), counts, row, view.num_examples)
        for row, client_id in enumerate(counts.client_ids)
    ]
    screen.beside(panels)
    if view.has_means and first.means is not None:
        for client_id in counts.client_ids:
            client = data.client(client_id)
            screen.title(f"{client_id}: mean image of each label")
            _show_client_means(screen, data, client, None)
        whose = f"All {len(first.compared.client_ids):,} clients"
        screen.title(f"{whose}: mean image of each label ({counts.split})")
        _show_population_means(screen, data, first.means)


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
            screen.title(f"First {_plural(num_drawn, 'example')}")
            shown = pictures.crop(_drawn(data, client.images(), num_drawn))
            screen.pictures(shown, [class_name(data, label) for label in client.labels.tolist()])
        if len(client):
            is_compared = population.means is not None
            where = (
                f"; below it that of {len(population.compared.client_ids):,} clients"
                if is_compared
                else ""
            )
            screen.title(f"Mean image of each label{where}")
            _show_client_means(screen, data, client, population.means)


def class_name(data: ClientData, label: int) -> str:
    """Returns what a class is called, its number where it has no name."""
    return data.class_names[label] if data.class_names else str(label)


# ---- The population -----------------------------------------------------------------------------


def _show_summary(screen: Screen, data: ClientData, splits: Sequence[SplitCounts]) -> None:
    shape = " x ".join(map(str, data.pixel_shape))
    what = f"{data.num_classes} classes, pixels {shape}, 1.0 is {data.pixel_convention}"
    screen.line(f"{data.source}: {what}", style="bold")
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
    """How sizes and labels differ from client to client."""
    counts = population.counts
    skew, sizes = counts.skew, summarize_sizes(counts.sizes)
    figures = (
        ("TV of labels", skew.tv, 3),
        ("  its floor", skew.tv_floor, 3),
        ("Jensen-Shannon, bits", skew.js, 3),
        ("effective classes", skew.effective_classes, 2),
        ("classes held", skew.num_present.astype(np.float64), 1),
        ("share of commonest", skew.max_share, 3),
    )
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
    for line in _LEGEND:
        screen.line(line, style="dim")


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
    screen.table(headers, rows, gap=_TABLE_GAP)
    num_left = len(counts.client_ids) - len(order)
    if num_left > 0:
        screen.line(f"... and {num_left:,} more; --top N shows N", style="dim")


def _table_columns(data: ClientData, sort: str) -> list[tuple[str, ...]]:
    """What the table of clients may show, the most first; the column it is sorted by stays."""
    start = ("client", "examples")
    all_figures = ("TV", "floor", "JS", "effective")
    fewer = ("JS", "effective") if sort == "js" else ("TV", "floor", "effective")
    end = ("held", "commonest")
    last = {"js": ("JS",), "classes": ("effective", "held")}.get(sort, ("TV", "floor"))
    choices = [(*start, *all_figures, *end), (*start, *fewer, *end), (*start, *last)]
    if data.num_classes <= MAX_LABEL_COLUMNS:
        choices = [(*start, *all_figures, "labels"), (*start, *fewer, "labels"), *choices]
    return choices


def _headers(data: ClientData, column: str) -> list[str]:
    if column == "labels":
        return [class_name(data, label) for label in range(data.num_classes)]
    return [column]


def _cells(data: ClientData, counts: SplitCounts, row: int, column: str) -> list[str]:
    """What one client has in one column of the table."""
    labels, skew = counts.label_counts[row], counts.skew
    if column == "labels":
        return [f"{count:,}" for count in labels.tolist()]
    if column == "client":
        return [counts.client_ids[row]]
    if column == "commonest":
        return [class_name(data, int(labels.argmax())) if counts.sizes[row] else "-"]
    if column in ("examples", "held"):
        return [f"{(counts.sizes if column == 'examples' else skew.num_present)[row]:,}"]
    if column == "effective":
        return [_ratio(skew.effective_classes[row], 2)]
    return [_ratio({"TV": skew.tv, "floor": skew.tv_floor, "JS": skew.js}[column][row])]


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


def _panel(
    screen: Screen,
    data: ClientData,
    client: ClientDataset,
    counts: SplitCounts,
    row: int,
    num_examples: int | None,
) -> Lines:
    """Label counts of one client, and below them some of its digits."""
    wanted = 1 if num_examples is None else num_examples
    lines = [screen.text(f"{client.client_id}: {_plural(len(client), 'example')}", style="bold")]
    skew = counts.skew
    figures = f"TV {_ratio(skew.tv[row])}, floor {_ratio(skew.tv_floor[row])}"
    lines.append(screen.text(figures, style="dim"))
    lines += screen.bar_lines(_label_bars(data, counts.label_counts[row]), PANEL_WIDTH)
    for index, picture in enumerate(_drawn(data, client.images(), min(wanted, len(client)))):
        cropped = pictures.crop(picture[None])
        factor = screen.shrink_factor(1, cropped.shape[2], MAX_PANEL_PICTURE)
        name = class_name(data, int(client.labels[index]))
        lines += [screen.text(""), screen.text(name, style="bold")]
        lines += screen.picture(pictures.shrink(cropped, factor)[0])
    return lines


def _show_heading(screen: Screen, counts: SplitCounts, row: int) -> None:
    size, skew = int(counts.sizes[row]), counts.skew
    whose = f"{counts.client_ids[row]}: {_plural(size, 'example')} ({counts.split})"
    screen.line(whose, style="bold")
    if size:
        screen.line(
            f"TV {_ratio(skew.tv[row])} (floor {_ratio(skew.tv_floor[row])}), Jensen-Shannon "
            f"{_ratio(skew.js[row])} bits, {_ratio(skew.effective_classes[row], 2)} effective "
            f"classes, {skew.num_present[row]:,} held"
        )


def _show_label_counts(screen: Screen, population: Population, row: int) -> None:
    """The labels of a client, and beside them what of each a client of its size has on average."""
    data, counts = population.data, population.counts
    own = counts.label_counts[row]
    totals = population.compared.class_totals
    expected = totals * (int(counts.sizes[row]) / max(1, int(totals.sum())))
    room = (screen.width - 2) // 2
    blocks = [[screen.text("label counts"), *screen.bar_lines(_label_bars(data, own), room)]]
    if counts.sizes[row] and screen.width >= 2 * PANEL_WIDTH:
        average = _label_bars(data, np.rint(expected).astype(np.int64))
        title = f"as in the population ({len(population.compared.client_ids):,} clients)"
        blocks.append([screen.text(title), *screen.bar_lines(average, room)])
    screen.beside(blocks)


def _show_client_means(
    screen: Screen, data: ClientData, client: ClientDataset, others: MeanImages | None
) -> None:
    """The mean image of each label that a client holds, and below it the population's."""
    labels = np.unique(client.labels).tolist()[:MAX_LABEL_BARS]
    means = MeanImages(data.num_classes, data.pixel_shape)
    means.add(client.pixels, client.labels, client.scale, client.offset)
    own = _mean_pictures(data, means, labels)
    captions = [class_name(data, label) for label in labels]
    if others is None:
        screen.pictures(pictures.crop(own), captions)
        return
    both = pictures.crop(np.concatenate([own, _mean_pictures(data, others, labels)]))
    screen.pictures(both[: len(own)], captions, below=both[len(own) :])


def _show_population_means(screen: Screen, data: ClientData, means: MeanImages) -> None:
    labels = np.flatnonzero(means.counts).tolist()[:MAX_LABEL_BARS]
    shown = pictures.crop(_mean_pictures(data, means, labels))
    screen.pictures(shown, [class_name(data, label) for label in labels])


def _mean_pictures(data: ClientData, means: MeanImages, labels: Sequence[int]) -> Pictures:
    images = np.zeros((len(labels), *data.pixel_shape), np.float32)
    for image, label in zip(images, labels, strict=True):
        image[...] = means.image(label)
    return pictures.stretch(pictures.pictures_of(images, data.pixel_convention))


def _drawn(data: ClientData, images: NDArray[np.float32], num_examples: int) -> Pictures:
    return pictures.pictures_of(images[:num_examples], data.pixel_convention)


def _label_bars(data: ClientData, label_counts: NDArray[np.integer]) -> list[Bar]:
    shown = label_counts[:MAX_LABEL_BARS].tolist()
    bars = [Bar(class_name(data, label), count) for label, count in enumerate(shown)]
    rest = int(label_counts[MAX_LABEL_BARS:].sum())
    return [*bars, Bar("others", rest)] if len(label_counts) > MAX_LABEL_BARS else bars


def _ratio(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _short(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
