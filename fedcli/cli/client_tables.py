"""What `inspect-clients` prints: the population, a table of its clients, and their digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedcli.cli import pictures
from fedcli.cli.render import Bar, Screen
from fedcli.statistics import SplitCounts, size_histogram, summarize_sizes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.batches import ClientDataset
    from fedcli.datasets.client_data import ClientData

CENTRAL = "central"
MAX_PANELS = 12  # chosen clients that are still drawn side by side
MAX_LABEL_COLUMNS = 12  # classes that fit beside each other into a table of 80 columns
MAX_LABEL_BARS = 62
PANEL_WIDTH = 24
DEFAULT_SHOWN_EXAMPLES = 10


@dataclass(frozen=True)
class View:
    """How much to show.

    Attributes:
        top: Rows of the table of clients.
        is_by_size: Largest clients first, instead of the order of ids.
        num_examples: Digits drawn a client; None: as suits the place.
    """

    top: int
    is_by_size: bool
    num_examples: int | None


def population_json(
    splits: Mapping[str, ClientData], counts: Sequence[SplitCounts]
) -> dict[str, Any]:
    """Returns the JSON object. In its totals a client of several splits counts once.

    The split called `central` is not a federation and is left out of the totals.
    """
    first = next(iter(splits.values()))
    federated = [each for each in counts if each.split != CENTRAL] or counts
    return {
        "data": first.source,
        "num_clients": len({client_id for each in federated for client_id in each.client_ids}),
        "num_classes": first.num_classes,
        "num_examples": sum(each.num_examples for each in federated),
        "class_names": list(first.class_names) if first.class_names else None,
        "pixel_shape": list(first.pixel_shape),
        "pixel_convention": first.pixel_convention,
        "splits": {each.split: _split_json(each) for each in counts},
    }


def show_population(
    splits: Mapping[str, ClientData],
    counts: Sequence[SplitCounts],
    view: View,
    *,
    is_chosen: bool,
) -> None:
    """Prints a summary of all splits, then the clients of the first one."""
    screen = Screen()
    data, first = next(iter(splits.values())), counts[0]
    _show_summary(screen, data, counts)
    if is_chosen and len(first.client_ids) <= MAX_PANELS:
        _show_panels(screen, data, first, view)
        return
    screen.title(f"Clients by number of examples ({first.split})")
    bins = size_histogram(first.sizes)
    screen.bars([Bar(f"{each.low}-{each.high}", each.num_clients) for each in bins])
    screen.title(f"Examples by label ({first.split})")
    screen.bars(_label_bars(data, first.label_counts.sum(axis=0)))
    screen.title(f"Clients ({first.split})")
    _show_table(screen, data, first.by_size() if view.is_by_size else first, view.top)


def show_clients(data: ClientData, client_ids: Sequence[str], view: View) -> None:
    """Draws clients one below the other: label counts as bars, then their first examples."""
    screen = Screen()
    wanted = DEFAULT_SHOWN_EXAMPLES if view.num_examples is None else view.num_examples
    for client_id in client_ids:
        client = data.client(client_id)
        screen.line(f"{client_id}: {_plural(len(client), 'example')} ({data.split})", style="bold")
        screen.bars(_label_bars(data, _label_counts(client, data.num_classes)))
        num_drawn = min(wanted, len(client))
        if num_drawn:
            screen.title(
                f"First {_plural(num_drawn, 'example')}, labels {_labels(data, client, num_drawn)}"
            )
            screen.pictures(pictures.crop(_ink(data, client, num_drawn)))
        screen.console.print()


def _split_json(counts: SplitCounts) -> dict[str, Any]:
    sizes = counts.sizes
    return {
        "num_clients": len(counts.client_ids),
        "num_examples": counts.num_examples,
        "label_counts": counts.label_counts.sum(axis=0).tolist(),
        "sizes": asdict(summarize_sizes(sizes)) if len(sizes) else None,
        "clients": [
            {"client_id": client_id, "num_examples": sum(row), "label_counts": row}
            for client_id, row in zip(counts.client_ids, counts.label_counts.tolist(), strict=True)
        ],
    }


def _show_summary(screen: Screen, data: ClientData, counts: Sequence[SplitCounts]) -> None:
    shape = " x ".join(map(str, data.pixel_shape))
    what = f"{data.num_classes} classes, pixels {shape}, 1.0 is {data.pixel_convention}"
    screen.line(f"{data.source}: {what}", style="bold")
    rows = []
    for each in counts:
        row = [each.split, f"{len(each.client_ids):,}", f"{each.num_examples:,}"]
        if each.client_ids:
            sizes = summarize_sizes(each.sizes)
            middle = (f"{sizes.median:,g}", f"{sizes.mean:,.1f}")
            row += [f"{sizes.minimum:,}", *middle, f"{sizes.maximum:,}"]
        rows.append(row + [""] * (7 - len(row)))
    screen.table(["split", "clients", "examples", "smallest", "median", "mean", "largest"], rows)


def _show_table(screen: Screen, data: ClientData, counts: SplitCounts, top: int) -> None:
    shown = zip(counts.client_ids[:top], counts.label_counts[:top].tolist(), strict=True)
    if data.num_classes <= MAX_LABEL_COLUMNS:
        headers = [_class_name(data, label) for label in range(data.num_classes)]
        rows = [[name, f"{sum(row):,}", *map(str, row)] for name, row in shown]
    else:
        headers = ["labels held", "commonest"]
        rows = [
            [
                name,
                f"{sum(row):,}",
                str(sum(count > 0 for count in row)),
                _class_name(data, row.index(max(row))),
            ]
            for name, row in shown
        ]
    screen.table(["client", "examples", *headers], rows)
    num_left = len(counts.client_ids) - top
    if num_left > 0:
        screen.line(f"... and {num_left:,} more; --top N shows N", style="dim")


def _show_panels(screen: Screen, data: ClientData, counts: SplitCounts, view: View) -> None:
    """Draws a few clients beside each other: label counts, and a digit or so of each."""
    wanted = 1 if view.num_examples is None else view.num_examples
    screen.title(f"Label counts and digits ({counts.split})")
    panels = []
    for client_id in counts.client_ids:
        client = data.client(client_id)
        lines = [screen.text(f"{client_id}: {_plural(len(client), 'example')}", style="bold")]
        lines += screen.bar_lines(
            _label_bars(data, _label_counts(client, data.num_classes)), PANEL_WIDTH
        )
        for ink in _ink(data, client, min(wanted, len(client))):
            lines += [screen.text(""), *screen.picture(pictures.crop(ink[None])[0])]
        panels.append(lines)
    screen.beside(panels)


def _label_bars(data: ClientData, label_counts: NDArray[np.int64]) -> list[Bar]:
    shown = label_counts[:MAX_LABEL_BARS].tolist()
    bars = [Bar(_class_name(data, label), count) for label, count in enumerate(shown)]
    rest = int(label_counts[MAX_LABEL_BARS:].sum())
    return [*bars, Bar("others", rest)] if len(label_counts) > MAX_LABEL_BARS else bars


def _label_counts(client: ClientDataset, num_classes: int) -> NDArray[np.int64]:
    import numpy as np

    return np.bincount(client.labels, minlength=num_classes)


def _ink(data: ClientData, client: ClientDataset, num_examples: int) -> pictures.Ink:
    return pictures.ink_of(client.images()[:num_examples], data.pixel_convention)


def _labels(data: ClientData, client: ClientDataset, num_examples: int) -> str:
    return " ".join(_class_name(data, label) for label in client.labels[:num_examples].tolist())


def _class_name(data: ClientData, label: int) -> str:
    return data.class_names[label] if data.class_names else str(label)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
