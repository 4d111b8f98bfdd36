"""Draws the figures of clients, one function for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.errors import plural
from fedcli.inspection.figures.page import (
    LINE_HEIGHT,
    MARGIN,
    TITLE_HEIGHT,
    Grid,
    Panels,
    add_axes,
    add_picture,
    few_ticks,
    fitting,
    make_page,
    name_labels,
    names_height,
    shortened,
    text_width,
    whole_ticks,
    widest,
    write_title,
)
from fedcli.inspection.figures.tiles import TILE, Tiles, as_tiles, mean_tiles, on_paper, tile_blocks
from fedcli.inspection.statistics import SplitCounts, size_histogram

MAX_EXAMPLES = 40  # examples drawn of one client, as in TFF's tutorial
MAX_HISTOGRAMS = 6  # clients whose label counts are drawn
MAX_MEANS = 5  # clients whose mean images are drawn
MAX_LABELS = 100  # labels in a figure; if there are more, only the most common are drawn
MAX_COLUMNS = 1000  # clients in the heat map; if there are more, an evenly spaced selection
MAX_POINTS = 5000  # clients in the plot of label skew; if there are more, an even selection, too

_SMALL_TILE = 56  # dots of a tile if there are many
_LEAST_KEY = 60  # smallest height of a colour bar, in dots
_BAR_COLOR, _MARK_COLOR, _NOTE_COLOR = "#4477aa", "#cc6677", "#777777"  # safe for colour blindness
_COLOR_MAP = "Blues"  # from white to one dark hue, so that it can be read in grey


@dataclass(frozen=True, eq=False)
class DrawnLabels:
    """The labels that are drawn.

    Attributes:
        labels: int64 [num_drawn], ascending.
        names: The name of each label.
        remark: States that some labels are left out; empty if none is.
    """

    labels: NDArray[np.int64]
    names: list[str]
    remark: str

    @staticmethod
    def of(data: ClientData, counts: SplitCounts) -> DrawnLabels:
        """Returns all labels of the data, or the commonest if they are too many."""
        labels = np.arange(data.num_classes)
        remark = ""
        if data.num_classes > MAX_LABELS:
            totals = _population(counts)
            labels = np.sort(np.argsort(-totals, kind="stable")[:MAX_LABELS])
            remark = f" (the {MAX_LABELS} commonest of {data.num_classes:,} labels)"
        return DrawnLabels(labels, _class_names(data, labels), remark)


def examples(data: ClientData, client_id: str) -> Figure:
    """Draws the first examples of a client in rows of ten, each above its label."""
    client = data.client(client_id)
    num_drawn = min(MAX_EXAMPLES, len(client))
    count = plural(len(client), "example")
    drawn = f"First {num_drawn} of {count}" if num_drawn < len(client) else count
    title = f"{drawn} of {shortened(client_id)} ({data.split})"
    if not num_drawn:
        return make_page(title, 0, 0)
    first = replace(client, pixels=client.pixels[:num_drawn], labels=client.labels[:num_drawn])
    blocks = [tiles for tiles, _ in tile_blocks(first)]
    tiles = on_paper(np.concatenate(blocks), data.pixel_convention)
    names = _class_names(data, first.labels)
    grid = Grid.of(tiles, min(10, num_drawn), names)
    figure = make_page(title, grid.width, grid.height)
    axes = add_picture(figure, MARGIN, TITLE_HEIGHT, grid.mosaic(tiles))
    for index, name in enumerate(names):
        left, top = grid.corner(index)
        text = fitting(name, grid.tile_width + grid.gap[1] - 4)
        middle = left + grid.tile_width / 2
        axes.text(middle, top + grid.tile_height + 2, text, va="top", ha="center")
    return figure


def pairs(
    data: ClientData,
    above: NDArray[np.float32],
    below: NDArray[np.float32],
    captions: Sequence[str],
    title: str,
) -> Figure:
    """Draws images [n, ...] in a row, other images [n, ...] in a second row, and captions below."""
    images = np.concatenate([above, below])
    tiles = on_paper(as_tiles(images), data.pixel_convention)
    grid = Grid.of(tiles, len(above), captions, num_rows=2)
    figure = make_page(title, grid.width, grid.height + LINE_HEIGHT)
    axes = add_picture(figure, MARGIN, TITLE_HEIGHT, grid.mosaic(tiles))
    for index, caption in enumerate(captions, len(above)):
        left, top = grid.corner(index)
        text = fitting(caption, grid.tile_width + grid.gap[1] - 4)
        middle = left + grid.tile_width / 2
        axes.text(middle, top + grid.tile_height + 2, text, va="top", ha="center")
    return figure


def label_counts(
    data: ClientData, client_ids: Sequence[str], counts: SplitCounts, drawn_labels: DrawnLabels
) -> Figure:
    """Draws label counts of several clients on shared axes, and the counts expected for each."""
    drawn = list(client_ids[:MAX_HISTOGRAMS])
    labels = [data.labels(client_id) for client_id in drawn]
    rows = [np.bincount(each, minlength=data.num_classes)[drawn_labels.labels] for each in labels]
    totals = _population(counts)
    mix = totals[drawn_labels.labels] / max(1, int(totals.sum()))
    panels = Panels.of(len(drawn), drawn_labels.names)
    title = f"Examples by label{drawn_labels.remark}; lines: expected from the population's shares"
    figure = make_page(title, panels.width, panels.height)
    expected = [len(each) * mix for each in labels]
    highest = max(1.0, *(each.max() for each in (*rows, *expected)))
    for index, (client_id, row) in enumerate(zip(drawn, rows, strict=True)):
        left, top = panels.corner(index)
        axes = add_axes(figure, MARGIN + left, TITLE_HEIGHT + top, *panels.size)
        places = np.arange(len(row))
        axes.bar(places, row, width=0.8, color=_BAR_COLOR, linewidth=0)
        axes.hlines(expected[index], places - 0.4, places + 0.4, _MARK_COLOR, linewidth=1.0)
        spare = max(0.0, (6 - len(row)) / 2)  # a single bar must not fill the panel
        axes.set_xlim(-0.6 - spare, len(row) - 0.4 + spare)
        axes.set_ylim(0, 1.05 * highest)
        whole_ticks(axes.yaxis, 4)
        size = f": {plural(len(labels[index]), 'example')}"
        write_title(axes, fitting(client_id, panels.size[0] - text_width(size)) + size)
        name_labels(axes, drawn_labels.names if panels.is_lowest(index) else [], panels.slot)
        if left == panels.left_margin:
            axes.set_ylabel("examples")
        else:
            axes.set_yticklabels([])
            axes.tick_params(axis="y", length=0)
    return figure


def mean_images(
    data: ClientData,
    client_ids: Sequence[str],
    counts: SplitCounts,
    all_means: Tiles,
    drawn_labels: DrawnLabels,
) -> Figure:
    """Draws mean images by label: a row for the population, and one for each of some clients."""
    drawn = [data.client(client_id) for client_id in client_ids[:MAX_MEANS]]
    means = np.stack(
        [
            all_means,
            *(mean_tiles([client], drawn_labels.labels, data.pixel_shape) for client in drawn),
        ]
    )
    tiles = on_paper(means.reshape(-1, *means.shape[2:]), data.pixel_convention)
    tiles = tiles.reshape(*means.shape[:2], *tiles.shape[1:])
    heads = [plural(len(counts.client_ids), "client")]
    heads += [shortened(each.client_id) for each in drawn]
    notes = [plural(size, "example") for size in (counts.num_examples, *map(len, drawn))]
    left_margin = max(map(text_width, [*heads, *notes])) + 14
    bands = _bands(len(drawn_labels.labels))
    tile = TILE if len(bands) == 1 else _SMALL_TILE
    grids = [Grid.of(tiles[0], len(band), drawn_labels.names, tile, len(means)) for band in bands]
    pitch = grids[0].height + LINE_HEIGHT + 16
    remark = "; grey: no example" if np.isnan(means).any() else ""
    title = f"Mean image by label{drawn_labels.remark}{remark}"
    figure = make_page(title, left_margin + grids[0].width, len(bands) * pitch - 16)
    for number, (band, grid) in enumerate(zip(bands, grids, strict=True)):
        top = TITLE_HEIGHT + number * pitch + LINE_HEIGHT
        mosaic = grid.mosaic(tiles[:, band].reshape(-1, *tiles.shape[2:]))
        axes = add_picture(figure, MARGIN + left_margin, top, mosaic)
        for column, label in enumerate(band):
            middle = grid.corner(column)[0] + grid.tile_width / 2
            name = fitting(drawn_labels.names[label], grid.tile_width + grid.gap[1] - 4)
            axes.text(middle, -4, name, ha="center", va="bottom")
        for row, (head, note) in enumerate(zip(heads, notes, strict=True)):
            middle = grid.corner(row * len(band))[1] + grid.tile_height / 2
            axes.text(-12, middle, head, ha="right", va="bottom")
            axes.text(-12, middle + 2, note, ha="right", va="top", color=_NOTE_COLOR)
    return figure


def labels_by_client(counts: SplitCounts, drawn_labels: DrawnLabels) -> Figure:
    """Draws a heat map of each client's label shares. Clients are sorted by their main label."""
    held = (
        counts.label_counts
        if not drawn_labels.remark
        else counts.label_counts[:, drawn_labels.labels]
    )
    sizes = np.maximum(1, counts.sizes)
    order = np.lexsort((-held.max(axis=1) / sizes, held.argmax(axis=1), counts.sizes == 0))
    num_clients = len(order)
    picked = _evenly(order, MAX_COLUMNS)
    shares = held[picked] / sizes[picked, None]
    # A client is a whole number of dots wide, and all together are about 6.5 inches if possible.
    cell_width = min(60, max(1, round(936 / len(picked))))
    cell_height = 30 if len(drawn_labels.labels) <= 20 else 18
    width, height = cell_width * len(picked), cell_height * len(drawn_labels.labels)
    left_margin = widest(drawn_labels.names) + 16
    # Vertical names need the height of a line.
    named = picked.tolist() if cell_width >= 18 else []
    names = [shortened(counts.client_ids[index]) for index in named]
    clients = plural(num_clients, "client")
    if len(picked) < num_clients:
        clients = f"{len(picked):,} evenly picked of {clients}"
    order_remark = ", sorted by the label they hold most of" if num_clients > 1 else ""
    figure = make_page(
        f"Share of each label in {clients}{order_remark}{drawn_labels.remark} ({counts.split})",
        left_margin + width + 110,
        max(height, _LEAST_KEY) + (names_height(names, cell_width) if names else 0),
    )
    axes = add_axes(figure, MARGIN + left_margin, TITLE_HEIGHT, width, height)
    highest = _upper_bound(shares)
    image = axes.imshow(
        shares.T,
        cmap=_COLOR_MAP,
        vmin=0,
        vmax=highest,
        aspect="auto",
        interpolation="none",
    )
    axes.set_yticks(
        range(len(drawn_labels.names)), [shortened(name) for name in drawn_labels.names]
    )
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
    name_labels(axes, names, cell_width)
    key_height = min(max(height, _LEAST_KEY), 300)
    key = figure.colorbar(
        image,
        cax=add_axes(figure, MARGIN + left_margin + width + 24, TITLE_HEIGHT, 16, key_height),
        extend="max" if shares.max() > highest else "neither",
        format=lambda share, _: f"{100 * share:.3g} %",
        ticks=few_ticks(4),
    )
    key.ax.tick_params(length=0)
    return figure


def sizes_and_skew(counts: SplitCounts) -> Figure:
    """Draws a histogram of client sizes, and the label skew of clients against their size."""
    width, height, left_margin, gap = 440, 300, 64, 90
    clients = f"{plural(len(counts.client_ids), 'client')} ({counts.split})"
    figure = make_page(clients, left_margin + 2 * width + gap, height + 2 * LINE_HEIGHT + 26)
    bins = size_histogram(counts.sizes, max_bins=30)
    edges = np.array([each.low for each in bins] + [bins[-1].high + 1])
    axes = add_axes(figure, MARGIN + left_margin, TITLE_HEIGHT + 26, width, height)
    axes.bar(
        edges[:-1],
        [each.num_clients for each in bins],
        width=np.diff(edges) * 0.94,
        align="edge",
        color=_BAR_COLOR,
        linewidth=0,
    )
    spare = max(0.3, (6 - len(bins)) / 2) * (edges[1] - edges[0])
    axes.set_xlim(edges[0] - spare, edges[-1] + spare)
    write_title(axes, "Clients by number of examples")
    axes.set_xlabel("examples")
    axes.set_ylabel("clients")
    whole_ticks(axes.yaxis, 5)
    whole_ticks(axes.xaxis, 6)
    left = MARGIN + left_margin + width + gap
    axes = add_axes(figure, left, TITLE_HEIGHT + 26, width, height)
    rows = _evenly(np.argsort(counts.sizes, kind="stable"), MAX_POINTS)
    sizes, skew = counts.sizes[rows], counts.skew
    axes.plot(
        sizes,
        skew.tv[rows],
        "o",
        markersize=5 if len(rows) < 100 else 2.5,
        markeredgewidth=0,
        alpha=0.5,
        color=_BAR_COLOR,
    )
    axes.plot(sizes, skew.tv_floor[rows], color=_MARK_COLOR, linewidth=1.2)
    axes.set_ylim(0, 1.05 * max(0.1, _largest(skew.tv[rows]), _largest(skew.tv_floor[rows])))
    axes.set_xlabel("examples")
    axes.set_ylabel("total variation distance")
    remark = "" if len(rows) == len(counts.sizes) else f" of {len(rows):,} evenly picked"
    write_title(axes, f"Label skew{remark}; line: expected at random")
    whole_ticks(axes.xaxis, 6)
    return figure


def _population(counts: SplitCounts) -> NDArray[np.int64]:
    """Number of examples of each class in the population, int64 [num_classes]."""
    return counts.class_totals if counts.population is None else counts.population


def _evenly(rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` of the rows, evenly picked, including the first and the last."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


def _largest(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.max()) if len(present) else 0.0


def _upper_bound(shares: NDArray[np.float64]) -> float:
    """The upper end of the colour map: a round number above 99.5 % of the shares."""
    present = shares[shares > 0]
    if not len(present):
        return 1.0
    bound = float(np.quantile(present, 0.995))
    step = 10.0 ** math.floor(math.log10(bound)) / 2
    return min(1.0, math.ceil(bound / step - 1e-9) * step)


def _bands(num_labels: int) -> list[range]:
    """Divides labels into bands of equal length, at most 16; the last may be shorter."""
    num_bands = -(-num_labels // 16)
    length = -(-num_labels // num_bands)
    return [range(first, min(first + length, num_labels)) for first in range(0, num_labels, length)]


def _class_names(data: ClientData, labels: NDArray[np.integer]) -> list[str]:
    return [data.class_name(label) for label in labels.tolist()]
