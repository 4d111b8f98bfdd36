"""TensorFlow Federated's HDF5 files. Each file is one split; a single file is the split "train"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedcli import hdf5
from fedcli.datasets.cache import ClientCache
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import rescale
from fedcli.datasets.importers.source_files import one_file
from fedcli.datasets.sources.tff_h5 import TffH5Split
from fedcli.datasets.table import TableWriter
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import MAX_CLASSES


def recognises(path: Path) -> bool:
    """Returns whether a path is an HDF5 file but not a fedcli store."""
    return path.is_file() and hdf5.is_hdf5(path) and not hdf5.is_store(path)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns one file as the split "train". The file's name has no meaning.

    Args:
        sources: The file.
        options: `num_classes`, `pixel_range`, `polarity` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        DataError: The file is damaged, has another layout, or a client cannot be used.
    """
    path = one_file(sources, "TFF HDF5 file")
    split = TffH5Split(
        path,
        split="train",
        num_classes=options.num_classes or MAX_CLASSES,
        pixels="source",
        cache=ClientCache(0),  # each client is read once
    )
    total = split.total_examples()
    with TableWriter(str(path), folder, fit=options.fit) as writer:
        for client_id in split.client_ids:
            writer.add_client(split.client(client_id))
            on_progress(writer.num_examples, total)
        coded = {"train": writer.table()}
    tables, coding = rescale(coded, options.pixel_range, are_unit_levels=split.are_floats)
    notes = [] if coding.is_plain or (coding.white == 1 and coding.most <= 1) else [coding.note]
    return shared.imported(
        tables,
        options,
        source=str(path),
        pixel_convention=split.pixel_convention,
        is_emnist=split.is_emnist,
        # Each file of CIFAR-100 numbers its clients from 0, so equal ids are different clients.
        same_people=split.has_same_people,
        notes=notes,
        pixel_range=coding.range,
        evidence={**split.evidence(), "range": coding.evidence},
        overrides={"owners": "", "range": "--pixel-range"},
    )
