"""The tables of `fedcli eval --by-class` and `--top-k`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.cli.screen.render import Screen
from fedcli.reports.tables import number

if TYPE_CHECKING:
    from fedcli.datasets.client_data import ClientData
    from fedcli.evaluation.by_class import ClassMeasures

_MAX_MATRIX = 40  # classes; a larger matrix is for --json


def show(screen: Screen, data: ClientData, measures: ClassMeasures, *, shows_classes: bool) -> None:
    """Prints top-k accuracies and, on request, the results by class and the confusion matrix."""
    if measures.top_k:
        screen.title("Top-k accuracy over all examples")
        rows = [[f"{k}", number(share)] for k, share in measures.top_k.items()]
        screen.table(["k", "accuracy"], rows, left=0)
    if not shows_classes:
        return
    num_classes = len(measures.labels)
    names = [data.class_name(label) for label in range(num_classes)]
    columns = zip(
        names,
        measures.labels.tolist(),
        measures.precision.tolist(),
        measures.recall.tolist(),
        strict=True,
    )
    screen.title("By class")
    screen.table(
        ["class", "examples", "precision", "recall"],
        [[name, f"{count:,}", number(one), number(two)] for name, count, one, two in columns],
    )
    if num_classes > _MAX_MATRIX:
        screen.line(f"The confusion matrix of {num_classes} classes is in --json", "dim")
        return
    screen.title("Confusion matrix: a row is a label, a column a prediction")
    rows = [
        [name, *(f"{count:,}" if count else "." for count in counts)]
        for name, counts in zip(names, measures.confusion.tolist(), strict=True)
    ]
    screen.table(["", *names], rows, gap=2)
