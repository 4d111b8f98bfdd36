"""Opens federated data: `load` and `open_splits`.

A dataset is given by name (a synthetic or a downloaded one) or as a file: TFF's HDF5 layout or a
fedcli store, recognised by content. The reader of a format is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedcli.core.native import Cancelled
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.datasets.cache import ClientCache
from fedcli.datasets.checks import check_num_classes
from fedcli.datasets.client_data import ClientData
from fedcli.digest import blake2b
from fedcli.errors import ConfigError, DataError, speaks_python
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings import tables as registry
from fedcli.settings.data_source import IN_MEMORY, DataSource, OpenedData, shown_data
from fedcli.settings.options import (
    Value,
    check_number,
    did_you_mean,
    not_a_text,
    path_text,
    resolve,
)
from fedcli.settings.vocabulary import MAX_VALIDATION, MIN_VALIDATION, PIXELS, VALIDATION

__all__ = [
    "BatchedDataset",
    "ClientData",
    "ClientDataset",
    "DataSource",
    "fingerprint",
    "load",
    "note_of_change",
    "open_splits",
]

CACHE_BYTES = 256 << 20
_SHOWN = 5  # names in a message
_MAX_COMPARED = 64 << 20  # bytes of files of equal size whose content is compared


@speaks_python()
def load(
    data: str | Path | OpenedData = DataSource.data,
    test_data: str | Path | None = None,
    *,
    data_options: Mapping[str, Value] | None = None,
    partition: str | Path = DataSource.partition,
    partition_options: Mapping[str, Value] | None = None,
    num_classes: int | None = None,
    pixels: str = DataSource.pixels,
    validation: float | None = DataSource.validation,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[ClientData, ClientData | None]:
    """Returns the train split of a dataset, and its test split.

    The test split is None if the data have none, as in one TFF file of train examples. In this case
    give the file of test examples as `test_data`: load("train.h5", "test.h5").

    The arguments are the fields of `DataSource`; `cache_bytes` is explained in `open_splits`.

    Raises:
        ConfigError: An option is not allowed.
        DataError: The data cannot be found, opened or used, have no train split, or train and test
            do not agree.
    """
    named, test_named = path_text(data), path_text(test_data)
    if not (isinstance(named, str) or hasattr(named, "open")):
        raise ConfigError(not_a_text("data", data))
    if not isinstance(test_named, str | None):
        raise ConfigError(not_a_text("test_data", test_data))
    source = DataSource(
        named,
        data_options=data_options or {},
        test_data=test_named,
        partition=path_text(partition),
        partition_options=partition_options or {},
        num_classes=num_classes,
        pixels=pixels,
        validation=validation,
    )
    splits = open_splits(source, cache_bytes=cache_bytes)
    if "train" not in splits:
        raise DataError(
            f"{data}: has no split 'train', only {_listed(splits)}; give data with a train split"
        )
    return splits["train"], splits.get("test")


def open_splits(
    source: DataSource,
    *,
    cache_bytes: int = CACHE_BYTES,
    on_progress: ProgressCallback = ignore_progress,
) -> dict[str, ClientData]:
    """Opens a dataset and returns its splits by name.

    A partition may read all examples. Without one, at most a few clients are read, to estimate what
    1.0 means in a TFF file.

    Args:
        source: The data source.
        cache_bytes: Size of the cache that all splits share, unless they are memory-mapped.
        on_progress: If a partition is applied, called with the number of clients read of each
            split.

    Raises:
        ConfigError: An option is not allowed.
        DataError: The data cannot be found, opened or used, or train and test do not agree.
    """
    if source.pixels not in PIXELS:
        raise ConfigError(f"pixels {source.pixels!r}: choose one of {', '.join(PIXELS)}")
    if source.num_classes is not None:
        check_num_classes(source.num_classes, "--num-classes")
    resolve(registry.find_partition(source.partition), source.partition_options)
    cache = ClientCache(cache_bytes)
    splits = _open_named(source, cache, split="train")
    if source.test_data is not None:
        as_test = replace(source, data=source.test_data, data_options={})
        others = _open_named(as_test, cache, split="test", default_classes=_classes_of(splits))
        other = others.get("test", others.get("train"))
        if other is None:
            raise DataError(
                f"{source.test_data}: has neither split 'test' nor 'train', only "
                f"{_listed(others)}; give another file"
            )
        other.split = "test"
        other.replaces = splits["test"].source if "test" in splits else ""
        has_one_split = len(others) == 1
        other.has_train_examples = has_one_split and _is_same_file(*source.names)
        splits["test"] = other
    _check_agreement(splits)
    if source.partition != registry.NATURAL:
        splits = _partitioned(splits, source.partition, source.partition_options, on_progress)
    if source.validation is not None and "train" in splits:
        _hold_out(splits, source.validation, source)
    return splits


def fingerprint(source: DataSource, *, is_cancelled: Callable[[], bool] = lambda: False) -> str:
    """Returns a string that identifies the content of a dataset, for provenance.

    A store contains its fingerprint. Any other file is read completely (1 s for a GB). Generated
    data are identified by version and options. Further parts may follow: "; test "
    and the test data, "; partition " and the partition with all its options, "; validation " and
    the share of validation data. Options that only change how examples are read do not change the
    fingerprint.

    Args:
        source: The data source.
        is_cancelled: Called after every MiB; returns whether to stop.

    Raises:
        DataError: The data cannot be found or read.
        Cancelled: `is_cancelled` returned True.
    """
    named = _fingerprint_of(source.data, source.data_options, is_cancelled)
    if source.test_data is not None:
        named += f"; test {_fingerprint_of(source.test_data, {}, is_cancelled)}"
    if source.partition != registry.NATURAL:
        options = resolve(registry.find_partition(source.partition), source.partition_options)
        named += f"; partition {registry.describe_partition(source.partition, options)}"
    if source.validation is not None:
        named += f"; validation {source.validation:g}"
    return named


def note_of_change(
    source: DataSource, before: object, now: str, consequence: str
) -> tuple[str, ...]:
    """Returns a note that the data have changed; () if they have not, or if `before` is None.

    Args:
        source: The data source.
        before: The data's fingerprint when the run began, or None if it is unknown.
        now: The data's fingerprint now.
        consequence: The end of the note.
    """
    if before in (None, now):
        return ()
    names = " or ".join(map(shown_data, source.names))
    return (f"{names} has changed since the run began; {consequence}",)


def _classes_of(splits: Mapping[str, ClientData]) -> int | None:
    """The number of classes of a source, or None if it is just the default for TFF files."""
    first = next(iter(splits.values()))
    return None if first.has_default_classes else first.num_classes


def _open_named(
    source: DataSource, cache: ClientCache, *, split: str, default_classes: int | None = None
) -> dict[str, ClientData]:
    """The splits of `source.data` alone.

    For a TFF file, `split` is the name of its only split, and `default_classes` is the number of
    classes if the user gives none. If it is None, TFF's default applies.
    """
    data, data_options = source.data, source.data_options
    num_classes, pixels = source.num_classes, source.pixels
    if not isinstance(data, str):
        return dict(data.open(pixels, num_classes))
    if data in registry.EMBEDDED_DATASETS:
        return _open_synthetic(source, cache)
    path = _find_file(data)
    if data_options:
        name = data if data in registry.PUBLIC_DATASETS else "a file"
        raise ConfigError(
            f"--data-option {next(iter(data_options))}: {name} has no options; leave it out, or "
            f"choose --data from {_listed(registry.EMBEDDED_DATASETS)}"
        )
    _require_hdf5(path)
    from fedcli import hdf5

    if hdf5.is_store(path):
        from fedcli.datasets.sources import store

        opened = store.open_store(path, num_classes=num_classes, pixels=pixels)
        return dict[str, ClientData](opened)
    from fedcli.datasets.sources import tff_h5

    tff_split = tff_h5.TffH5Split(
        path,
        split=split,
        num_classes=num_classes or default_classes or tff_h5.DEFAULT_NUM_CLASSES,
        has_default_classes=num_classes is None and default_classes is None,
        why_classes="given by --num-classes" if num_classes else "as many as in --data",
        pixels=pixels,
        cache=cache,
    )
    return {split: tff_split}


def _open_synthetic(source: DataSource, cache: ClientCache) -> dict[str, ClientData]:
    name, num_classes = str(source.data), source.num_classes
    from fedcli.datasets.sources import synthetic

    options = resolve(registry.DATASETS[name], source.data_options)
    if num_classes is not None and num_classes < synthetic.NUM_CLASSES:
        raise ConfigError(
            f"--num-classes {num_classes}: {name} has labels 0 to {synthetic.NUM_CLASSES - 1}; "
            f"choose {synthetic.NUM_CLASSES} or more"
        )
    return {
        split: synthetic.SyntheticSplit(
            name,
            split,
            options,
            num_classes=num_classes or synthetic.NUM_CLASSES,
            pixels=source.pixels,
            cache=cache,
        )
        for split in synthetic.SPLITS
    }


def _partitioned(
    splits: dict[str, ClientData],
    name: str,
    options: Mapping[str, Value],
    on_progress: ProgressCallback,
) -> dict[str, ClientData]:
    """The splits after a partition of train and test; other splits are unchanged."""
    from fedcli.datasets.partitions import partitioning as partition
    from fedcli.datasets.partitions.partitioned_split import PartitionedSplit

    main = {split: data for split, data in splits.items() if split in partition.MAIN_SPLITS}
    _check_room(main, name)
    try:
        tables = {split: data.to_table(on_progress=on_progress) for split, data in main.items()}
    except OSError as err:
        import tempfile  # lazy: few runs need it

        raise DataError(
            f"--partition {name}: cannot write the pixels to {tempfile.gettempdir()} "
            f"({err.strerror or err}); free some space, set TMPDIR to another disk, or use fedcli "
            "preprocess"
        ) from err
    resolved = resolve(registry.opened_partition(name), options)
    described = registry.describe_partition(name, dict(sorted(resolved.items())))
    for split, partitioned in partition.apply(tables, name, options, seed=0).items():
        data = main[split]
        splits[split] = PartitionedSplit(
            tables[split],
            partitioned.assignment,
            split=split,
            num_classes=data.num_classes,
            class_names=data.class_names,
            pixel_convention=data.pixel_convention,
            changes=partitioned.changes,
            partition=(
                described
                if data.partition == registry.NATURAL
                else f"{data.partition}, then {described}"
            ),
            same_people=data.same_people or registry.split_partition(name)[0] != registry.NATURAL,
            description=data.description(),
        )
        splits[split].replaces = data.replaces
        splits[split].has_train_examples = data.has_train_examples
        splits[split].notes = data.examine()
    return splits


def _hold_out(splits: dict[str, ClientData], share: float, source: DataSource) -> None:
    """Splits validation examples off train."""
    from fedcli.datasets.validation import split_off  # lazy: few runs need it

    share = check_number("--validation", share, MIN_VALIDATION, MAX_VALIDATION)
    if VALIDATION in splits:
        raise ConfigError(
            f"--validation {share:g}: {source.data} already has a validation split; leave the "
            "option out"
        )
    splits["train"], splits[VALIDATION] = split_off(splits["train"], share)


def _check_room(splits: Mapping[str, ClientData], name: str) -> None:
    """Checks that the pixels that a partition copies do not fill the disk."""
    import shutil  # lazy: few runs need them
    import tempfile

    num_bytes = sum(data.table_bytes() for data in splits.values())
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if num_bytes > free / 2:
        source = next(iter(splits.values())).source
        raise DataError(
            f"--partition {name}: copies all pixels of {source}, about {num_bytes / 1e9:,.1f} GB, "
            f"to {folder}, more than half of the {free / 1e9:,.1f} GB free there; set TMPDIR to "
            "another disk, apply the partition with fedcli preprocess or, for synthetic data, "
            "choose fewer clients (--data-option clients=N)"
        )


def _check_agreement(splits: Mapping[str, ClientData]) -> None:
    train, test = splits.get("train"), splits.get("test")
    if train is None or test is None:
        return
    if train.num_classes != test.num_classes:
        raise DataError(
            f"train has {train.num_classes} classes ({train.source}) but test has "
            f"{test.num_classes} ({test.source}); pass --num-classes "
            f"{max(train.num_classes, test.num_classes)}, the larger number"
        )
    _check_names(train, test)
    if train.pixel_shape != test.pixel_shape:
        raise DataError(
            f"images have shape {list(train.pixel_shape)} in train ({train.source}) but "
            f"{list(test.pixel_shape)} in test ({test.source}); give test data of the same shape"
        )
    if train.pixel_convention != test.pixel_convention:
        raise DataError(
            f"the pixel value 1.0 means {train.pixel_convention} in train ({train.source}) but "
            f"{test.pixel_convention} in test ({test.source}); pass --pixels ink or --pixels "
            "background"
        )


def _check_names(train: ClientData, test: ClientData) -> None:
    """Refuses splits of two sources if equal labels mean different classes.

    If only one source names its classes, its names must be the class numbers, or EMNIST's
    characters in order.
    """
    ours, theirs = train.class_names or (), test.class_names or ()
    if train.source == test.source or ours == theirs:
        return
    together = (
        f"make one store, which matches classes by name: fedcli preprocess {train.source} "
        f"--test-data {test.source} --out FILE"
    )
    if ours and theirs:
        place = next(
            (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
            min(len(ours), len(theirs)),
        )
        one, other = (repr(each[place]) if place < len(each) else "none" for each in (ours, theirs))
        raise DataError(
            f"class {place} is called {one} in train ({train.source}) but {other} in test "
            f"({test.source}); {together}"
        )
    from fedcli.datasets.labels import are_numbers  # lazy: few runs have two sources of data

    names = ours or theirs
    if are_numbers(names):
        return
    named, numbered = (train, test) if ours else (test, train)
    raise DataError(
        f"{named.split} names its classes ({', '.join(names[:_SHOWN])}; {named.source}) but "
        f"{numbered.split} numbers them ({numbered.source}), and it is unknown which number is "
        "which name; label both with names, or both with numbers, and make stores with fedcli "
        "preprocess"
    )


def _fingerprint_of(
    data: str | OpenedData, data_options: Mapping[str, Value], is_cancelled: Callable[[], bool]
) -> str:
    if not isinstance(data, str):
        found = data.fingerprint(is_cancelled)
        if found is None:
            raise Cancelled
        return found
    if data in registry.EMBEDDED_DATASETS:
        from fedcli.datasets.sources import synthetic

        return synthetic.fingerprint(data, resolve(registry.DATASETS[data], data_options))
    path = _find_file(data)
    from fedcli import hdf5

    if hdf5.is_hdf5(path) and hdf5.is_store(path):
        from fedcli.datasets.sources import store

        return store.stored_fingerprint(path)
    digest = blake2b(digest_size=32)
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                if is_cancelled():
                    raise Cancelled
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err
    return f"blake2b:{digest.hexdigest()}"


def _find_file(data: str) -> Path:
    """The file of a downloaded dataset, or the file at a path."""
    if data not in registry.PUBLIC_DATASETS:
        return _existing_file(data)
    from fedcli.datasets import data_folder

    path = data_folder.store_path(data_folder.find_data_folder(), data)
    if not path.is_file():
        raise DataError(
            f"{data} is not downloaded yet ({path} is missing); fetch it with: fedcli download "
            f"{data}"
        )
    return path


def _existing_file(data: str) -> Path:
    if data.startswith(IN_MEMORY):
        raise DataError(
            f"{data}: the run's data were objects in a Python program; pass them again in Python, "
            "with fedcli.resume(run, data=...) or fedcli.evaluate_run(run, data=...)"
        )
    path = Path(data)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise DataError(
                f"{data!r} is a folder, not a file; make a store of its files: "
                f"fedcli preprocess {data} --out FILE"
            )
    except OSError as err:  # the name is too long, or a folder may not be entered
        raise DataError(f"{data!r}: cannot be accessed ({err.strerror}); check the path") from err
    raise DataError(
        f"{data!r} is neither an existing file nor a known dataset; give the path of a TFF HDF5 "
        f"file or a fedcli store, or one of {_listed(registry.DATASETS)}"
        f"{did_you_mean(Path(data).name, registry.DATASETS)}"
    )


def _is_same_file(data: str, other: str) -> bool:
    """Whether two names of data stand for one file, or for copies that are quick to compare."""
    if data == other:
        return True
    first, second = Path(data), Path(other)
    if not first.is_file() or not second.is_file():
        return False
    if first.samefile(second):
        return True
    if first.stat().st_size != second.stat().st_size or first.stat().st_size > _MAX_COMPARED:
        return False
    import filecmp  # lazy: few files have the same size

    return filecmp.cmp(first, second, shallow=False)


def _require_hdf5(path: Path) -> None:
    from fedcli import hdf5

    if not hdf5.is_hdf5(path):
        what = "is not an HDF5 file" if path.stat().st_size else "is empty"
        raise DataError(
            f"{path}: {what}; give a TFF HDF5 file or a fedcli store, which "
            "'fedcli preprocess SOURCE --out FILE' makes from other data"
        )


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names)
