"""The output of `inspect-clients --suspects`: doubtful examples with images, and their clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from fedcli.cli.screen import pictures
from fedcli.errors import plural
from fedcli.inspection.suspects import CHANCE

if TYPE_CHECKING:
    from fedcli.cli.screen.pictures import Pictures
    from fedcli.cli.screen.render import Screen
    from fedcli.datasets.client_data import ClientData
    from fedcli.inspection.suspects import Broken, Suspect, Suspects

_FAULTS = {
    "blank": "blank: all pixels alike",
    "far": "unlike any label's images",
    "copy": "same image as another of the client",
}


def show(screen: Screen, data: ClientData, suspects: Suspects) -> None:
    """Prints the most doubtful examples as a table and as pictures, then clients, then faults."""
    screen.title(f"Likely mislabeled ({data.split}; score: {suspects.measure})")
    if suspects.examples:
        _show_examples(screen, data, suspects.examples)
    share = suspects.num_suspicious / max(suspects.num_examples, 1)
    of_all = (
        f"{suspects.num_suspicious:,} of {plural(suspects.num_examples, 'example')} ({share:.1%})"
    )
    screen.line(f"{of_all} are suspicious: {suspects.criterion}", style="dim")
    screen.title(f"Clients with more suspicious examples than chance explains ({data.split})")
    _show_clients(screen, suspects)
    if suspects.fault_counts:
        screen.title(f"Broken examples ({data.split})")
        _show_broken(screen, data, suspects)


def to_json(data: ClientData, suspects: Suspects) -> dict[str, Any]:
    """Returns the suspects as a JSON object; labels are numbers."""
    return {
        "split": data.split,
        "measure": suspects.measure,
        "criterion": suspects.criterion,
        "num_examples": suspects.num_examples,
        "num_suspicious": suspects.num_suspicious,
        "examples": [asdict(each) for each in suspects.examples],
        "clients": [asdict(each) for each in suspects.clients],
        "fault_counts": suspects.fault_counts,
        "broken": [asdict(each) for each in suspects.broken],
    }


def _show_examples(screen: Screen, data: ClientData, examples: Sequence[Suspect]) -> None:
    rows, captions = [], []
    for rank, each in enumerate(examples, 1):
        label, likelier = data.class_name(each.label), data.class_name(each.likelier_label)
        rows.append(
            [
                *(f"{rank:>{len(str(len(examples)))}}", each.client_id, str(each.index)),
                *(label, likelier, f"{each.score:.1f}"),
            ]
        )
        captions.append(f"{rank}: {label}>{likelier}")
    screen.table(["rank", "client", "example", "label", "likelier", "score"], rows, left=2)
    screen.title("These examples, by rank: label > likelier label")
    screen.pictures(example_pictures(data, examples), captions)
    screen.line("")


def _show_clients(screen: Screen, suspects: Suspects) -> None:
    if not suspects.clients:
        screen.line("none", style="dim")
        return
    rows = [
        [
            each.client_id,
            f"{each.num_examples:,}",
            f"{each.num_suspicious:,}",
            f"{each.num_suspicious / each.num_examples:.1%}",
            f"{each.least_share:.1%}",
        ]
        for each in suspects.clients
    ]
    screen.table(["client", "examples", "suspicious", "share", "at least"], rows)
    screen.line(
        f"At least: a lower bound of the true share; it is too high 1 time in {1 / CHANCE:,.0f}.",
        style="dim",
    )


def _show_broken(screen: Screen, data: ClientData, suspects: Suspects) -> None:
    if not any(suspects.fault_counts.values()):
        looked_for = "; ".join(_FAULTS[fault] for fault in suspects.fault_counts)
        screen.line(f"none ({looked_for})", style="dim")
        return
    counts = [[_FAULTS[fault], f"{count:,}"] for fault, count in suspects.fault_counts.items()]
    screen.table(["fault", "examples"], counts)
    if not suspects.broken:
        return
    screen.line("")
    rows = [
        [each.client_id, each.fault, str(each.index), data.class_name(each.label), _details(each)]
        for each in suspects.broken
    ]
    screen.table(["client", "fault", "example", "label", "details"], rows, left=2)
    far = [each for each in suspects.broken if each.fault == "far"]
    if far:
        screen.title("The farthest")
        screen.pictures(
            example_pictures(data, far), [f"{each.client_id} {each.index}" for each in far]
        )


def _details(broken: Broken) -> str:
    if broken.original is not None:
        return f"of example {broken.original}"
    return "" if broken.distance is None else f"distance {broken.distance:.1f}"


class Example(Protocol):
    """An object that identifies an example of a client."""

    @property
    def client_id(self) -> str:
        """The client."""

    @property
    def index(self) -> int:
        """The index of the example in the client."""


def example_pictures(data: ClientData, examples: Sequence[Example]) -> Pictures:
    """Returns pictures of some examples of a split, cropped to one size."""
    import numpy as np

    from fedcli.datasets.batches import decode

    images = np.empty((len(examples), *data.pixel_shape), np.float32)
    for image, each in zip(images, examples, strict=True):
        client = data.client(each.client_id)
        image[...] = decode(client.pixels[each.index], client.scale, client.offset)
    return pictures.crop(pictures.pictures_of(images, data.pixel_convention))
