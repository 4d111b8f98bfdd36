"""The table of augmentations, and the ways to normalise pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedcli.errors import ConfigError
from fedcli.settings.options import Entry, Option, did_you_mean, table

MIXUP = "mixup"

AUGMENTATIONS = table(
    Entry(
        "crop",
        "A random part of the image; in evaluation, the centre.",
        "Krizhevsky et al. 2012; He et al. 2016, arXiv 1512.03385",
        (
            Option("size", 0, "Side of the part in pixels; 0: as large as the image.", 0, 4096),
            Option("padding", 4, "Zeros that are first added on each side.", 0, 4096),
        ),
        code="fedcli.models.augmentation:crop",
    ),
    Entry(
        "flip",
        "Mirrors half of the images left to right.",
        "Krizhevsky et al. 2012",
        code="fedcli.models.augmentation:flip",
    ),
    Entry(
        "shift",
        "Moves the image by random numbers of pixels; gaps are filled with zeros.",
        "Simard et al. 2003",
        (Option("pixels", 4, "The largest distance in pixels.", 0, 4096),),
        code="fedcli.models.augmentation:shift",
    ),
    Entry(
        "rotation",
        "Rotates the image about its centre by a random angle; gaps are filled with zeros.",
        "Simard et al. 2003",
        (Option("degrees", 15.0, "The largest angle.", 0.0, 180.0),),
        code="fedcli.models.augmentation:rotation",
    ),
    Entry(
        "cutout",
        "Sets a random square of the image to zeros.",
        "DeVries and Taylor 2017, arXiv 1708.04552",
        (Option("side", 8, "Side of the square in pixels.", 1, 4096),),
        code="fedcli.models.augmentation:cutout",
    ),
    Entry(
        "color-jitter",
        "Multiplies brightness, contrast and saturation by random factors from 1 - x to 1 + x.",
        "Krizhevsky et al. 2012; torchvision ColorJitter",
        (
            Option("brightness", 0.2, "x for the brightness.", 0.0, 1.0),
            Option("contrast", 0.2, "x for the contrast.", 0.0, 1.0),
            Option("saturation", 0.2, "x for the saturation.", 0.0, 1.0),
        ),
        code="fedcli.models.augmentation:color_jitter",
    ),
    Entry(
        MIXUP,
        "Mixes each image and its label with another image of the batch and its label, after all "
        "other changes.",
        "Zhang et al. 2018, arXiv 1710.09412",
        (
            Option(
                "alpha",
                1.0,
                "The share of an image is Beta(alpha, alpha) distributed.",
                0.001,
                1000.0,
            ),
        ),
        code="fedcli.models.augmentation:mixup",
    ),
)

TRAIN_SPLIT, PUBLISHED, BY_IMAGE = "train", "published", "image"
NORMALIZATIONS = (TRAIN_SPLIT, PUBLISHED, BY_IMAGE)

# Means and deviations of the channels, of pixels from 0 to 1, as published with training scripts.
PUBLISHED_MOMENTS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def find_augmentation(name: str) -> Entry:
    """Returns the row of an augmentation: one of `AUGMENTATIONS`, or several joined by "+".

    A joined row has the options of all its parts.

    Raises:
        ConfigError: A name is unknown or given twice.
    """
    parts = [AUGMENTATIONS[each] for each in split_augmentation(name)]
    return replace(
        parts[0],
        name=name,
        doc=" Then: ".join(part.doc for part in parts),
        source="; ".join(part.source for part in parts),
        options=tuple(option for part in parts for option in part.options),
    )


def split_augmentation(name: str) -> list[str]:
    """Returns the names of the augmentations that are joined by "+", in their order.

    Raises:
        ConfigError: See `find_augmentation`.
    """
    names = name.split("+")
    for each in names:
        if each not in AUGMENTATIONS:
            raise ConfigError(
                f"unknown --augment '{each}'; choose from {', '.join(AUGMENTATIONS)}, joined by +"
                f"{did_you_mean(each, AUGMENTATIONS)}"
            )
        if names.count(each) > 1:
            raise ConfigError(f"--augment {name}: {each} is given twice; give it once")
    if MIXUP in names[:-1]:
        others = [each for each in names if each != MIXUP]
        raise ConfigError(
            f"--augment {name}: {MIXUP} acts after all others; write {'+'.join([*others, MIXUP])}"
        )
    return names


def moments_in(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns the means and deviations in MEAN,...:STD,...; None for one of `NORMALIZATIONS`.

    Raises:
        ConfigError: It is neither one of `NORMALIZATIONS` nor such numbers.
    """
    if text in NORMALIZATIONS:
        return None
    try:
        means, deviations = (
            tuple(float(each) for each in part.split(",")) for part in text.split(":")
        )
    except ValueError:
        means, deviations = (), ()
    if not means or len(means) != len(deviations):
        raise ConfigError(
            f"--normalize {text}: choose {', '.join(NORMALIZATIONS)}, or give the means and the "
            "standard deviations of the channels, such as 0.49,0.48,0.45:0.25,0.24,0.26"
        )
    return means, deviations
