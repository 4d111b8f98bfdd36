"""The tables of datasets: those that fedcli generates, and those that are downloaded."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.settings.options import Entry, Option, table

_SYNTHETIC_OPTIONS = (
    Option("clients", 200, "Number of clients.", 1, 1_000_000_000),
    Option("seed", 1, "Seed of the data; the run's own seed never changes it.", 0, 2**63 - 1),
    # Above 10 the pictures cannot be recognised.
    Option("spread", 0.9, "How much the clients' styles differ.", 0.0, 10.0),
    Option(
        "label_noise",
        0.01,
        "Share of train and test labels that are replaced by random ones.",
        0.0,
        1.0,
    ),
    Option(
        "sizes",
        "natural",
        "Numbers of examples and labels by client: even as in EMNIST, or uneven.",
        choices=("natural", "skewed"),
    ),
)
_SYNTHETIC_SOURCE = "drawn by fedcli itself; nothing to download"

EMBEDDED_DATASETS = table(
    Entry(
        "synthetic-digits",
        "Handwritten digits of invented writers, 28 x 28 grey pixels, 10 classes; made on demand.",
        _SYNTHETIC_SOURCE,
        _SYNTHETIC_OPTIONS,
    ),
    Entry(
        "synthetic-shapes",
        "Shapes in colour by invented clients, 32 x 32 RGB pixels, 10 classes; made on demand.",
        _SYNTHETIC_SOURCE,
        _SYNTHETIC_OPTIONS,
    ),
)

# The datasets of `fedcli download`; `datasets.download.public` has their addresses. They have no
# options; --partition divides them among other clients.
PUBLIC_DATASETS = table(
    Entry(
        "emnist-digits",
        "Handwritten digits of 3,383 people, 28 x 28 grey pixels: the TFF tutorial's data.",
        "TFF simulation/datasets, federated EMNIST digits",
        licence="public domain (NIST)",
    ),
    Entry(
        "emnist-62",
        "Handwritten digits and letters of 3,400 people, 28 x 28 grey pixels, 62 classes.",
        "TFF simulation/datasets, federated EMNIST",
        licence="public domain (NIST)",
    ),
    Entry(
        "cifar100",
        "Photographs in 100 classes, 32 x 32 RGB pixels, divided among 500 clients by topic.",
        "TFF simulation/datasets, federated CIFAR-100; Reddi et al. 2021, arXiv 2003.00295",
        licence="none stated",
    ),
    Entry(
        "mnist-writers",
        "MNIST, divided among the 539 people who wrote its training images. The test images, by "
        "other people, are the split central.",
        "MNIST (LeCun, Cortes, Burges); writers: facebookresearch/qmnist",
        licence="public domain (NIST); writer table BSD-style",
    ),
    Entry(
        "mnist",
        "Handwritten digits, 28 x 28 grey pixels, divided evenly among 100 clients.",
        "MNIST (LeCun, Cortes, Burges)",
        licence="public domain (NIST)",
    ),
    Entry(
        "fashion-mnist",
        "Pictures of clothes, 28 x 28 grey pixels, 10 classes, divided evenly among 100 clients.",
        "Fashion-MNIST, zalandoresearch/fashion-mnist",
        licence="MIT",
    ),
    Entry(
        "kmnist",
        "Handwritten Japanese characters, 28 x 28 grey pixels, 10 classes, divided evenly among "
        "100 clients.",
        "KMNIST, codh.rois.ac.jp/kmnist",
        licence="CC BY-SA 4.0",
    ),
    Entry(
        "cifar10",
        "Photographs in 10 classes, 32 x 32 RGB pixels, divided evenly among 100 clients.",
        "CIFAR-10, www.cs.toronto.edu/~kriz",
        licence="none stated",
    ),
)

DATASETS: Mapping[str, Entry] = {**EMBEDDED_DATASETS, **PUBLIC_DATASETS}
