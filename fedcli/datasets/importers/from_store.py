"""A fedcli store as a source, to partition it again, to filter it, or to resize its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedcli import hdf5
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import one_file
from fedcli.datasets.sources.store import StoreSplit, open_store, read_info, verify
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.progress import ProgressCallback


def recognises(path: Path) -> bool:
    """Returns whether a path is a fedcli store, of any version."""
    return path.is_file() and hdf5.is_hdf5(path) and hdf5.is_store(path)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns all splits of a store. Nothing is copied unless images must be resized.

    All bytes are first checked against the store's fingerprint. Otherwise a new store with a valid
    fingerprint could be made from damaged data.

    Args:
        sources: The store, which must not be written to while its tables are in use.
        options: `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of resized pixels.
        on_progress: Called with the number of examples checked, then with the number of examples
            resized.

    Raises:
        DataError: The file is not a store of this version, or has changed since it was written.
    """
    path = one_file(sources, "fedcli store")
    info = read_info(path)
    splits = open_store(path, num_classes=options.num_classes)
    total = sum(split.total_examples() for split in splits.values())
    verify(path, lambda read, size: on_progress(total * read // (size or 1), total))
    tables: dict[str, ExampleTable] = {}
    done = 0
    for name, split in splits.items():
        if options.fit is None:
            tables[name] = split.to_table()
        else:
            tables[name] = _fitted(
                split, options, folder, shared.progress_after(on_progress, done, total)
            )
        done += len(tables[name])
        on_progress(done, total)
    return shared.imported(
        tables,
        options,
        source=info.source or str(path),
        pixel_convention=info.pixel_convention,
        own_classes=info.num_classes,
        class_names=info.class_names,
        same_people=info.same_people,
        licence=info.licence,
        evidence={"shape": "stated in the store", "range": "stated in the store"},
        overrides={"splits": "", "owners": "--partition"},
    )


def _fitted(
    split: StoreSplit, options: ImportOptions, folder: Path | None, on_progress: ProgressCallback
) -> ExampleTable:
    """Returns a split with all images resized."""
    with TableWriter(split.source, folder, fit=options.fit) as writer:
        for client_id in split.client_ids:
            writer.add_client(split.client(client_id))
            on_progress(writer.num_examples, None)
        return writer.table()
