"""Writes figures of clients: examples, label counts, mean images, labels by client.

The background is white and ink is dark, for either meaning of 1.0 in the source. The same input
gives the same bytes. matplotlib is an extra, which is imported when figures are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, RunError, why_not_written
from fedcli.files import make_folders
from fedcli.inspection.statistics import SplitCounts
from fedcli.outputs import write_output
from fedcli.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")


def require() -> None:
    """Checks, before any work, that figures can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as err:
        raise ConfigError(
            f"figures need matplotlib ({err}); run pip install 'fedcli[plot]'"
        ) from err


def write_figures(
    folder: Path,
    data: ClientData,
    client_ids: Sequence[str],
    counts: SplitCounts,
    *,
    file_format: str = "png",
    on_progress: ProgressCallback = ignore_progress,
) -> list[Path]:
    """Draws figures of a population and of some of its clients; returns the files in order.

    Files are written after all figures are drawn; each is replaced atomically.

    Args:
        folder: The folder; it is made if it does not exist.
        data: The clients.
        client_ids: At least one client to draw individually: the examples of the first, the mean
            images of the first five, the label counts of the first six.
        counts: The label counts of the population: at least one client of `data`.
        file_format: One of `FORMATS`.
        on_progress: Called with the number of clients of the population read.

    Raises:
        ConfigError: The format is unknown, or matplotlib is not installed.
        DataError: A client cannot be read.
        RunError: The folder or a file cannot be written.
    """
    require()
    if file_format not in FORMATS:
        raise ConfigError(f"figure format {file_format!r}: choose one of {', '.join(FORMATS)}")
    try:
        make_folders(folder)
    except OSError as err:
        raise RunError(f"cannot make the folder {folder}: {why_not_written(err)}") from err
    from fedcli.inspection.figures import drawings
    from fedcli.inspection.figures.page import render
    from fedcli.inspection.figures.tiles import mean_tiles

    num_clients = len(counts.client_ids)

    def population() -> Iterator[ClientDataset]:
        for done, client_id in enumerate(counts.client_ids, 1):
            yield data.client(client_id)
            on_progress(done, num_clients)

    drawn_labels = drawings.DrawnLabels.of(data, counts)
    means = mean_tiles(population(), drawn_labels.labels, data.pixel_shape)
    figures: dict[str, Callable[[], Figure]] = {
        "examples": lambda: drawings.examples(data, client_ids[0]),
        "label_counts": lambda: drawings.label_counts(data, client_ids, counts, drawn_labels),
        "mean_images": lambda: drawings.mean_images(data, client_ids, counts, means, drawn_labels),
        "labels_by_client": lambda: drawings.labels_by_client(counts, drawn_labels),
        "sizes_and_skew": lambda: drawings.sizes_and_skew(counts),
    }
    contents = {}
    for name, draw in figures.items():
        contents[folder / f"{name}.{file_format}"] = render(draw, file_format)
        on_progress(num_clients, num_clients)
    for path, content in contents.items():
        write_output(path, content)
    return list(contents)


def write_pairs(
    path: Path,
    data: ClientData,
    above: NDArray[np.float32],
    below: NDArray[np.float32],
    *,
    captions: Sequence[str],
    title: str,
) -> None:
    """Draws images in two rows, each with another image below it, and writes the figure.

    Args:
        path: The file; its name ends in a dot and one of `FORMATS`.
        data: The split that the images are from.
        above: The upper images as the model sees them, [n, H, W] or [n, H, W, C].
        below: The lower images, of the same shape; values are clipped to the range 0 to 1.
        captions: The text below each pair.
        title: The title of the figure.

    Raises:
        ConfigError: matplotlib is not installed.
        RunError: The file cannot be written.
    """
    require()
    from fedcli.inspection.figures import drawings
    from fedcli.inspection.figures.page import render

    clipped = np.clip(below, 0.0, 1.0)
    draw = partial(drawings.pairs, data, above, clipped, captions, title)
    write_output(path, render(draw, path.suffix.lstrip(".")))
