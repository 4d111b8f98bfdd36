"""The datasets: those made on demand, and those that are downloaded."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.settings.options import Entry, Option, table

EMBEDDED_DATASETS = table(
    Entry(
        "synthetic-digits",
        "Handwritten digits of invented writers, 28 x 28 grey pixels, 10 classes; made on demand.",
        "drawn by fedcli itself; nothing to download",
        (
            Option("clients", 200, "Number of writers.", 1, 1_000_000_000),
            Option(
                "seed", 1, "Seed of the data; the run's own seed never changes it.", 0, 2**63 - 1
            ),
            # Above 10 nothing of a digit is left.
            Option("spread", 0.9, "How far writers' hands differ.", 0.0, 10.0),
            Option("label_noise", 0.01, "Share of train and test labels drawn afresh.", 0.0, 1.0),
            Option(
                "sizes",
                "natural",
                "How examples and labels fall to writers: evenly as in EMNIST, or unevenly.",
                choices=("natural", "skewed"),
            ),
        ),
    ),
)

# What `fedcli download` fetches; `datasets.public` knows from where. No options: --partition
# re-deals them.
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
        "Photographs in 100 classes, 32 x 32 RGB pixels, dealt to 500 clients by topic.",
        "TFF simulation/datasets, federated CIFAR-100; Reddi et al. 2021, arXiv 2003.00295",
        licence="none stated",
    ),
    Entry(
        "mnist-writers",
        "MNIST by the 539 people who wrote it; its test images, by others, are split central.",
        "MNIST (LeCun, Cortes, Burges); writers: facebookresearch/qmnist",
        licence="public domain (NIST); writer table BSD-style",
    ),
    Entry(
        "mnist",
        "Handwritten digits, 28 x 28 grey pixels, dealt evenly to 100 clients.",
        "MNIST (LeCun, Cortes, Burges)",
        licence="public domain (NIST)",
    ),
    Entry(
        "fashion-mnist",
        "Pictures of clothes, 28 x 28 grey pixels, 10 classes, dealt evenly to 100 clients.",
        "Fashion-MNIST, zalandoresearch/fashion-mnist",
        licence="MIT",
    ),
    Entry(
        "kmnist",
        "Handwritten Japanese characters, 28 x 28 grey pixels, 10 classes, dealt evenly to 100 "
        "clients.",
        "KMNIST, codh.rois.ac.jp/kmnist",
        licence="CC BY-SA 4.0",
    ),
    Entry(
        "cifar10",
        "Photographs in 10 classes, 32 x 32 RGB pixels, dealt evenly to 100 clients.",
        "CIFAR-10, www.cs.toronto.edu/~kriz",
        licence="none stated",
    ),
)

DATASETS: Mapping[str, Entry] = {**EMBEDDED_DATASETS, **PUBLIC_DATASETS}
