"""Prints images of clients in the terminal: their examples, and the mean image of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcli.cli.screen import pictures
from fedcli.datasets.batches import decode
from fedcli.inspection.statistics import MeanImages

if TYPE_CHECKING:
    from fedcli.cli.screen.pictures import Pictures
    from fedcli.cli.screen.render import Screen
    from fedcli.datasets.batches import ClientDataset
    from fedcli.datasets.client_data import ClientData
    from fedcli.inspection.population import Population
    from fedcli.inspection.training_images import TrainingImages

MAX_LABELS = 62  # labels that are drawn individually


def show_client_means(
    screen: Screen, data: ClientData, client: ClientDataset, others: MeanImages | None
) -> None:
    """Prints the mean image of each label of a client, and below it that of all clients."""
    means = _means_of(data, client)
    labels = _labels_held(means)
    own = _mean_pictures(data, means, labels)
    captions = [data.class_name(label) for label in labels]
    if others is None:
        screen.pictures(pictures.crop(own), captions)
        return
    own, below = crop_together([own, _mean_pictures(data, others, labels)])
    screen.pictures(own, captions, below=below)


def show_means_of_each(
    screen: Screen, population: Population, together: MeanImages, whose: str
) -> None:
    """Prints the mean image of each label, per client and for all clients, cropped to one size.

    The title of the images of all clients starts with `whose`, such as "10 clients".
    """
    data, counts = population.data, population.counts
    all_means = {
        f"{client_id}: mean image of each label": _means_of(data, data.client(client_id))
        for client_id in counts.client_ids
    }
    all_means[f"{whose} together: mean image of each label ({counts.split})"] = together
    labels = [_labels_held(means) for means in all_means.values()]
    shown = crop_together(
        [_mean_pictures(data, *each) for each in zip(all_means.values(), labels, strict=True)]
    )
    for title, own, images in zip(all_means, labels, shown, strict=True):
        screen.title(title)
        if own:
            screen.pictures(images, [data.class_name(label) for label in own])
        else:
            screen.line("no examples", style="dim")


def show_population_means(screen: Screen, data: ClientData, means: MeanImages) -> None:
    """Prints the mean image of each label."""
    labels = _labels_held(means)
    shown = pictures.crop(_mean_pictures(data, means, labels))
    screen.pictures(shown, [data.class_name(label) for label in labels])


def _means_of(data: ClientData, client: ClientDataset) -> MeanImages:
    means = MeanImages(data.num_classes, data.pixel_shape)
    means.add(client.pixels, client.labels, client.scale, client.offset)
    return means


def _labels_held(means: MeanImages) -> list[int]:
    labels: list[int] = np.flatnonzero(means.counts).tolist()
    return labels[:MAX_LABELS]


def _mean_pictures(data: ClientData, means: MeanImages, labels: Sequence[int]) -> Pictures:
    images = np.zeros((len(labels), *data.pixel_shape), np.float32)
    for image, label in zip(images, labels, strict=True):
        image[...] = means.image(label)
    return pictures.stretch(pictures.pictures_of(images, data.pixel_convention))


def first_examples(data: ClientData, client: ClientDataset, num_examples: int) -> Pictures:
    """Returns pictures of the first examples of a client."""
    images = decode(client.pixels[:num_examples], client.scale, client.offset)
    return pictures.pictures_of(images, data.pixel_convention)


def show_training_images(
    screen: Screen, data: ClientData, images: TrainingImages, client_id: str
) -> None:
    """Prints images of a client, and below each what the model gets of it in training."""
    screen.title(f"{client_id}: the first examples of round 1, below each what the model gets")
    groups = [images.before.reshape(-1, *data.pixel_shape), images.after]
    low, high = float(images.after.min()), float(images.after.max())
    if low < 0 or high > 1:
        screen.line(f"What the model gets is normalised: from {low:.2f} to {high:.2f}", style="dim")
        groups[1] = (images.after - low) / (high - low)
    before, after = _of_one_size(
        [pictures.pictures_of(each, data.pixel_convention) for each in groups]
    )
    screen.pictures(before, _training_captions(data, images), below=after)


def _training_captions(data: ClientData, images: TrainingImages) -> list[str]:
    """The label of each image; where two are mixed, both labels and their shares."""
    captions = [data.class_name(label) for label in images.labels.tolist()]
    if images.other_labels is None:
        return captions
    others = [data.class_name(label) for label in images.other_labels.tolist()]
    return [
        f"{own} {share:.0%} + {other} {1 - share:.0%}"
        for own, other, share in zip(captions, others, images.shares.tolist(), strict=True)
    ]


def _of_one_size(groups: Sequence[Pictures]) -> list[Pictures]:
    """Pads the pictures of all groups with empty margins to the size of the largest."""
    height, width = (max(group.shape[axis] for group in groups) for axis in (1, 2))
    return [_in_middle(group, height, width) for group in groups]


def _in_middle(group: Pictures, height: int, width: int) -> Pictures:
    rows, columns = height - group.shape[1], width - group.shape[2]
    margins = [(0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)]
    return np.pad(group, [*margins, *((0, 0) for _ in group.shape[3:])])


def crop_together(groups: Sequence[Pictures]) -> list[Pictures]:
    """Returns groups of pictures, cropped by the margin that is empty in all of them."""
    ends = np.cumsum([len(group) for group in groups])
    return np.split(pictures.crop(np.concatenate(groups)), ends[:-1])
