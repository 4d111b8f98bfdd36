"""From a source of any format to a fedcli store: read, filter, deal, hold out, write.

All steps but the first and the last are arithmetic on indices; pixels are copied once, into an
unnamed file beside the store, and gathered from there client by client.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli import registry
from fedcli.config import HOLD_OUTS, PIXEL_CONVENTIONS
from fedcli.datasets import hold_out, importers, joining, partition, store, store_writer
from fedcli.datasets.changes import for_testing
from fedcli.datasets.client_data import CENTRAL
from fedcli.datasets.deal import Deal, deal_lists
from fedcli.datasets.dealt import Change, DealtSplit
from fedcli.datasets.hold_out import CLIENTS, DEFAULT_FRACTION, POOLED, WITHIN
from fedcli.datasets.importers import Imported, ImportOptions
from fedcli.datasets.importers.meaning import NUM_DIGITS
from fedcli.datasets.store import StoreInfo
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError
from fedcli.options import Value, check_number, resolve
from fedcli.progress import Tell, tell_nobody

# Fewer tell nothing of a client once some are held out: TFF and LEAF drop such clients, too.
MIN_DIGITS = 2
# A source that names no owners, dealt to how many: a client of 20 examples at least, 100 clients
# at most.
MAX_DEFAULT_CLIENTS = 100
DEFAULT_CLIENT_EXAMPLES = 20

_GREATEST_SEED = 2**63 - 1
_GREATEST_PIXEL = 1.5  # decoded; above it pixels are no shares of one
_BLOCK = 4096  # images looked at a time
_SHOWN = 10  # classes named in a note


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `prepare` does with a source.

    Attributes:
        format: Of the source, one of `importers.FORMATS`; None: recognised by content.
        num_classes: Labels are 0 to num_classes - 1; None: as the source says or shows.
        label_column: Of a CSV file.
        id_column: Of a CSV file: who owns a row.
        image_shape: Of a row of a CSV file: (H, W) or (H, W, C).
        folders: What folders of images stand for: "class", "client" or "client/class".
        color: Of images: "grey" or "rgb"; None: as they are.
        size: (H, W) that images are brought to; None: they all have one size.
        centre: Whether ink is moved to the middle of each image.
        digits_only: Keep labels 0 to 9 alone.
        invert: Make 1 - x of each pixel x.
        min_examples: Clients with fewer train examples, counted before any are held out within
            them, are left out.
        test_data: A source whose split test, else train, becomes the split test; or central, if
            nobody owns its examples and the partition is natural.
        hold_out: One of `config.HOLD_OUTS`; None: no split but those of the source.
        hold_out_fraction: What share is held out.
        seed: Of everything drawn, unless the partition's options hold one.
        partition: A scheme, or several joined by "+"; None: natural, or iid where nobody owns
            anything.
        partition_options: Of these.
        source: Where the data come from, for the store; None: what the source says.
        licence: Under what licence; None: what the source says.
        class_names: A name for each class; empty: what the source says.
        same_people: Whether clients of train and test with equal ids are the same people; None:
            what the source says.
        central_data: Files of a set whose clients become the split central; none: no such split.
    """

    format: str | None = None
    num_classes: int | None = None
    label_column: str | None = None
    id_column: str | None = None
    image_shape: tuple[int, ...] | None = None
    folders: str | None = None
    color: str | None = None
    size: tuple[int, int] | None = None
    centre: bool = False
    digits_only: bool = False
    invert: bool = False
    min_examples: int = 0
    test_data: Path | None = None
    hold_out: str | None = None
    hold_out_fraction: float = DEFAULT_FRACTION
    seed: int = 0
    partition: str | None = None
    partition_options: Mapping[str, Value] = field(default_factory=dict)
    source: str | None = None
    licence: str | None = None
    class_names: tuple[str, ...] = ()
    same_people: bool | None = None
    central_data: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what is not allowed, whatever the source.

        Raises:
            ConfigError: An option has a value that is not allowed, or needs another.
        """
        if self.hold_out not in (None, *HOLD_OUTS):
            raise ConfigError(f"--hold-out {self.hold_out}: choose one of {', '.join(HOLD_OUTS)}")
        fraction = check_number("--hold-out-fraction", self.hold_out_fraction, 0.0, 1.0)
        if not 0.0 < fraction < 1.0:
            raise ConfigError(f"--hold-out-fraction {fraction}: choose one above 0 and below 1")
        check_number("--min-examples", self.min_examples, 0)
        check_number("--seed", self.seed, 0, _GREATEST_SEED)
        if self.hold_out is not None and self.test_data is not None:
            raise ConfigError("--hold-out and --test-data contradict each other; give one of them")
        if self.partition is not None:
            resolve(registry.find_partition(self.partition), self.partition_options)
        elif self.partition_options:
            raise ConfigError("--partition-option needs --partition; name the scheme")


@dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """One split of a store that was written.

    Attributes:
        name: train, test or central.
        num_clients: Clients in it.
        num_examples: Examples of them all.
        smallest: Examples of the client that has fewest.
        median: Of examples a client.
        largest: Examples of the client that has most.
        pixels: "uint8" or "float32".
    """

    name: str
    num_clients: int
    num_examples: int
    smallest: int
    median: float
    largest: int
    pixels: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A store that was written, in figures.

    Attributes:
        path: The file.
        format: Of the source.
        info: What the store says about itself.
        splits: Train first.
        pixel_shape: (H, W) or (H, W, C).
        fingerprint: Of the data.
        num_bytes: Of the file.
        notes: What the user should know, a sentence each.
    """

    path: Path
    format: str
    info: StoreInfo
    splits: tuple[PreparedSplit, ...]
    pixel_shape: tuple[int, ...]
    fingerprint: str
    num_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Part:
    """One split on its way: who holds which examples of a table, and what they go through."""

    table: ExampleTable
    deal: Deal
    changes: tuple[Change, ...] = ()


def prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, tell: Tell = tell_nobody
) -> Prepared:
    """Writes a store made of a source, whole or not at all, and returns what it holds.

    Args:
        sources: A file or folder, or the files of one set.
        out: The store to write or replace; its folder has room for the pixels twice.
        options: What to do.
        tell: Told the examples read of each source, then those written.

    Raises:
        ConfigError: An option does not go with the source.
        DataError: The source cannot be used, or the store cannot be written.
    """
    check_place(out, [*sources, *([options.test_data] if options.test_data else [])])
    _check_test_data(sources, options.test_data)
    try:
        source = _read(sources, options, out.parent, tell)
        notes = [*source.notes, *_pixel_notes(source, tell)]
        if options.digits_only:
            source = _limit_to_digits(source)
        notes += _class_notes(source)
        kept = {
            name: np.flatnonzero(table.labels < source.num_classes)
            for name, table in source.tables.items()
        }
        if not len(kept["train"]):
            raise DataError(f"{sources[0]}: none of its labels is a digit; drop --digits-only")
        scheme, given = _scheme(source, kept, options, notes)
        pooled = None
        if options.hold_out == POOLED:
            kept, pooled = _take_central(source, kept, options)
        parts = _deal(source, kept, scheme, given, notes)
        parts = _drop_small(parts, source, options, scheme, notes)
        parts = _hold_out(parts, pooled, options, notes)
        source = replace(source, same_people=source.same_people or _deals(scheme))
        info = _describe(sources, source, options, scheme, given)
        splits = {name: _split(name, part, source, info) for name, part in parts.items()}
        fingerprint = store_writer.create(out, splits, info, tell)
    except OSError as err:  # of the file that pixels pass through
        raise DataError(f"cannot write {out}: {err.strerror or err}") from err
    return _summarise(out, source.format, fingerprint, notes)


def check_place(out: Path, sources: Sequence[Path]) -> None:
    """Checks where a store is to be written, before any work.

    Raises:
        DataError: There is no such folder, it cannot be written to, something that must not be
            replaced has that name, or it lies in a source, whose files are read and not replaced.
    """
    folder = out.parent
    try:
        if not folder.is_dir():
            raise DataError(f"--out {out}: there is no folder {folder}; make it first")
        if out.exists() and not out.is_file():
            raise DataError(f"--out {out} is not a regular file; choose another name")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DataError(f"--out {out}: no permission to write in {folder}; choose another")
        if out.exists() and any(each.exists() and each.samefile(out) for each in sources):
            raise DataError(f"--out {out} is a source itself; choose another name")
        inside = next((each for each in sources if _holds(each, folder)), None)
        if inside is not None:
            raise DataError(
                f"--out {out} lies in the source {inside}; choose a place outside that folder"
            )
    except OSError as err:
        raise DataError(f"--out {out}: cannot be looked up ({err.strerror})") from err


def _holds(source: Path, folder: Path) -> bool:
    """Whether a source is a folder, or one above it; links lead where they lead."""
    return source.is_dir() and folder.resolve().is_relative_to(source.resolve())


def _check_test_data(sources: Sequence[Path], test_data: Path | None) -> None:
    """Checks that what is tested on is not what is trained on."""
    if test_data is None or not test_data.exists():  # that is told by the reading
        return
    same = next((each for each in sources if each.exists() and each.samefile(test_data)), None)
    if same is not None:
        raise DataError(
            f"--test-data {test_data} is the source {same} itself; give other data, or hold out a "
            "share of the source with --hold-out within"
        )


# ---- Reading -------------------------------------------------------------------------------------


def _read(sources: Sequence[Path], options: PrepareOptions, folder: Path, tell: Tell) -> Imported:
    """The source, with the test data of another as its split test."""
    import_options = _import_options(options)
    if options.test_data is not None and options.format is None:
        importers.recognise([options.test_data])  # a wrong one is found before the work
    source = importers.read(sources, import_options, folder, tell)
    if "train" not in source.tables:
        raise DataError(
            f"{sources[0]}: holds no split 'train' but {', '.join(source.tables)}; "
            "give the train data as the source"
        )
    if len(source.tables) > 1 and options.hold_out is not None:
        raise ConfigError(
            f"--hold-out {options.hold_out}: {sources[0]} has a split "
            f"'{list(source.tables)[1]}' of its own; leave --hold-out out"
        )
    if options.test_data is not None:
        if "test" in source.tables:
            raise ConfigError(
                f"--test-data: {sources[0]} has a split 'test' of its own; leave --test-data out"
            )
        test = importers.read([options.test_data], import_options, folder, tell)
        source = joining.join_test(source, test)
    if options.central_data:
        central = importers.read(options.central_data, import_options, folder, tell)
        source = joining.join_central(source, central)
    joining.check_shapes(source.tables)
    return replace(
        source,
        class_names=options.class_names or source.class_names,
        same_people=source.same_people if options.same_people is None else options.same_people,
    )


def _import_options(options: PrepareOptions) -> ImportOptions:
    fit = None
    if options.size is not None or options.centre:
        from fedcli.datasets.importers.fit import Fit

        fit = Fit(options.size, options.centre)
    return ImportOptions(
        format=options.format,
        num_classes=options.num_classes,
        label_column=options.label_column,
        id_column=options.id_column,
        image_shape=options.image_shape,
        folders=options.folders,
        color=options.color,
        fit=fit,
    )


def _pixel_notes(source: Imported, tell: Tell) -> list[str]:
    """Says so where floating-point pixels are no shares of one; models learn badly from them."""
    notes = []
    for name, table in source.tables.items():
        if table.pixels.dtype == np.uint8:
            continue
        greatest = 0.0
        for first in range(0, len(table), _BLOCK):
            block = table.pixels[first : first + _BLOCK]
            greatest = max(greatest, float(block.max()) * table.scale + table.offset)
            tell(first, len(table))
        if greatest > _GREATEST_PIXEL:
            notes.append(
                f"pixels of {name} reach {greatest:g}, where 0 to 1 is expected; "
                "divide grey levels by 255 in the source"
            )
    return notes


def _class_notes(source: Imported) -> list[str]:
    """Says so where a number of classes that is the largest label's has gaps: often a mistake."""
    if not source.is_guessed:
        return []
    is_absent = np.ones(source.num_classes, np.bool_)
    for table in source.tables.values():
        is_absent[table.labels[table.labels < source.num_classes]] = False
    absent = np.flatnonzero(is_absent).tolist()
    if not absent:
        return []
    listed = ", ".join(map(str, absent[:_SHOWN])) + (", ..." if len(absent) > _SHOWN else "")
    return [
        f"{source.num_classes:,} classes, labels 0 to {source.num_classes - 1}, but {listed} never "
        f"{'occurs' if len(absent) == 1 else 'occur'}; pass --num-classes, or renumber the labels "
        "if that is a mistake"
    ]


# ---- Dealing -------------------------------------------------------------------------------------


def _limit_to_digits(source: Imported) -> Imported:
    """The source without its classes beyond the digits; examples of these are still there."""
    digits = tuple(map(str, range(NUM_DIGITS)))
    if source.class_names and source.class_names[:NUM_DIGITS] != digits:
        raise ConfigError(
            f"--digits-only: the classes of {source.tables['train'].source} begin with "
            f"{source.class_names[0]!r}, not with the digits; leave it out"
        )
    return replace(
        source,
        num_classes=min(source.num_classes, NUM_DIGITS),
        class_names=source.class_names[:NUM_DIGITS],
    )


def _scheme(
    source: Imported,
    kept: Mapping[str, NDArray[np.int64]],
    options: PrepareOptions,
    notes: list[str],
) -> tuple[str, dict[str, Value]]:
    """The name of the partition, and its resolved options with the seed."""
    name, given = options.partition, dict(options.partition_options)
    if name is None:
        name = registry.NATURAL
        if not len(source.tables["train"].owner_ids):
            num_examples = len(kept["train"])
            num_clients = max(1, num_examples // DEFAULT_CLIENT_EXAMPLES)
            name, given = "iid", {"clients": min(MAX_DEFAULT_CLIENTS, num_clients)}
            notes.append(
                f"the source names no owners: dealt at random to {given['clients']:,} clients, as "
                f"many as give {DEFAULT_CLIENT_EXAMPLES} examples each but at most "
                f"{MAX_DEFAULT_CLIENTS}; --partition chooses another way"
            )
    entry = registry.find_partition(name)
    if any(option.name == "seed" for option in entry.options):
        given.setdefault("seed", options.seed)
    return name, resolve(entry, given)


def _take_central(
    source: Imported, kept: Mapping[str, NDArray[np.int64]], options: PrepareOptions
) -> tuple[dict[str, NDArray[np.int64]], _Part]:
    """What is left of train, and the pooled test set taken from it."""
    table, examples = source.tables["train"], kept["train"]
    left, taken = hold_out.central(table.labels[examples], options.hold_out_fraction, options.seed)
    return {**kept, "train": examples[left]}, _Part(table, _pool(examples[taken]))


def _pool(examples: NDArray[np.int64]) -> Deal:
    return deal_lists([CENTRAL], [examples])


def _deal(
    source: Imported,
    kept: Mapping[str, NDArray[np.int64]],
    scheme: str,
    given: Mapping[str, Value],
    notes: list[str],
) -> dict[str, _Part]:
    """Who holds what in each split."""
    tables, chosen = dict(source.tables), dict(kept)
    if "test" in tables and not len(tables["test"].owner_ids) and not _deals(scheme):
        tables[CENTRAL], chosen[CENTRAL] = tables.pop("test"), chosen.pop("test")
        notes.append(
            "the test split names no owners: stored as the pooled split 'central', which "
            "'fedcli eval RUN --split central' reads; --partition iid, for one, "
            "deals train and test to the same clients"
        )
    seed = given.get("seed", 0)  # a partition without one draws nothing
    assert isinstance(seed, int)
    bare = {name: _without_pixels(table, chosen[name]) for name, table in tables.items()}
    dealt = partition.apply(bare, source.num_classes, scheme, given, seed)
    return {
        name: _Part(tables[name], _through(chosen[name], each.deal), each.changes)
        for name, each in dealt.items()
    }


def _without_pixels(table: ExampleTable, kept: NDArray[np.int64]) -> ExampleTable:
    """Some examples of a table without their pixels, at which no partition looks."""
    owners = table.owners[kept] if len(table.owner_ids) else table.owners
    return replace(table, pixels=table.pixels[:0], labels=table.labels[kept], owners=owners)


def _through(kept: NDArray[np.int64], deal: Deal) -> Deal:
    """A deal of some examples as one of the table they were chosen from."""
    return Deal(deal.client_ids, kept[deal.order], deal.offsets)


def _deals(scheme: str) -> bool:
    """Whether a partition gives examples to other clients than their owners."""
    return registry.split_partition(scheme)[0] != registry.NATURAL


def _drop_small(
    parts: dict[str, _Part],
    source: Imported,
    options: PrepareOptions,
    scheme: str,
    notes: list[str],
) -> dict[str, _Part]:
    """Leaves out clients of few train examples, in test too where they are the same people."""
    least = _least_examples(options)
    train = parts["train"]
    is_kept = train.deal.sizes >= least
    if not is_kept.any():
        raise DataError(
            f"no client of {train.table.source} has {max(1, least)} train examples; "
            "choose a smaller --min-examples" + (" or drop --digits-only" * options.digits_only)
        )
    kept_parts = {**parts, "train": replace(train, deal=train.deal.choose(is_kept))}
    if not is_kept.all():
        notes.append(
            f"left out {np.count_nonzero(~is_kept):,} of {len(is_kept):,} clients, which have "
            f"fewer than {least} train examples"
        )
    if "test" not in parts:
        return kept_parts
    test = parts["test"].deal
    is_wanted = test.sizes >= (1 if options.digits_only else 0)
    if source.same_people or _deals(scheme):
        left_out = {train.deal.client_ids[index] for index in np.flatnonzero(~is_kept).tolist()}
        is_wanted &= np.array([each not in left_out for each in test.client_ids], np.bool_)
    if is_wanted.any():
        kept_parts["test"] = replace(parts["test"], deal=test.choose(is_wanted))
    else:
        del kept_parts["test"]
        notes.append("no client is left in the test split; it is left out")
    return kept_parts


def _hold_out(
    parts: dict[str, _Part], pooled: _Part | None, options: PrepareOptions, notes: list[str]
) -> dict[str, _Part]:
    """Sets aside what is to be tested on."""
    if pooled is not None:
        return {**parts, CENTRAL: pooled}
    if options.hold_out is None:
        return parts
    split = hold_out.within if options.hold_out == WITHIN else hold_out.clients
    train = parts["train"]
    held_out = split(train.deal, options.hold_out_fraction, options.seed)
    if held_out.num_whole:
        notes.append(
            f"{held_out.num_whole:,} clients of one example are in train alone: "
            "one example cannot be held out"
        )
    return {
        **parts,
        "train": replace(train, deal=held_out.train),
        "test": _Part(train.table, held_out.test, for_testing(train.changes)),
    }


def _least_examples(options: PrepareOptions) -> int:
    """Train examples of a client that stays; a pooled test that takes all of one leaves none."""
    usual = MIN_DIGITS if options.digits_only else int(options.hold_out == POOLED)
    return max(options.min_examples, usual)


# ---- Writing -------------------------------------------------------------------------------------


def _describe(
    sources: Sequence[Path],
    source: Imported,
    options: PrepareOptions,
    scheme: str,
    given: Mapping[str, Value],
) -> StoreInfo:
    """What the store says about itself."""
    convention = source.pixel_convention
    if options.invert:
        convention = next(each for each in PIXEL_CONVENTIONS if each != convention)
    parameters: dict[str, object] = {**given, **_steps(options)}
    if source.format == "store" and not _deals(scheme):
        scheme, parameters = _continue_history(store.read_info(sources[0]), scheme, parameters)
    return StoreInfo(
        num_classes=source.num_classes,
        pixel_convention=convention,
        class_names=source.class_names,
        same_people={WITHIN: True, CLIENTS: False}.get(options.hold_out or "", source.same_people),
        source=options.source if options.source is not None else _title(sources, source.source),
        licence=options.licence if options.licence is not None else source.licence,
        partition=scheme,
        partition_parameters=json.dumps(parameters, sort_keys=True),
    )


def _steps(options: PrepareOptions) -> dict[str, object]:
    """What was done beside the partition, a step each with its parameters."""
    steps: dict[str, object] = {}
    if options.digits_only or options.min_examples:
        steps["filter"] = {
            "digits_only": options.digits_only,
            "min_examples": _least_examples(options),
        }
    if options.hold_out is not None:
        steps["hold_out"] = {
            "kind": options.hold_out,
            "fraction": options.hold_out_fraction,
            "seed": options.seed,
        }
    return steps


def _continue_history(
    info: StoreInfo, scheme: str, parameters: Mapping[str, object]
) -> tuple[str, dict[str, object]]:
    """The partition and parameters of a store whose clients are kept.

    Parameters that it had already stand in a step "before": equal names would hide one another.
    """
    changes = registry.split_partition(scheme)[1]
    names = [info.partition] * (info.partition != registry.NATURAL or not changes)
    before = json.loads(info.partition_parameters)
    steps = {"before": before} if before else {}
    return "+".join([*names, *changes]), {**parameters, **steps} if parameters else before


def _title(sources: Sequence[Path], source: str) -> str:
    """What a source is called, wherever it lies: equal data make equal stores.

    What a store says of its own source is taken as it is, and never for a path.
    """
    path = next((each for each in sources if str(each) == source), None)
    if path is None:
        return source
    return os.fsencode(path.resolve().name).decode(errors="replace")


def _split(name: str, part: _Part, source: Imported, info: StoreInfo) -> DealtSplit:
    return DealtSplit(
        part.table,
        part.deal,
        split=name,
        num_classes=info.num_classes,
        class_names=info.class_names or None,
        pixel_convention=source.pixel_convention,
        pixels=info.pixel_convention,
        changes=part.changes,
    )


def _summarise(path: Path, source_format: str, fingerprint: str, notes: list[str]) -> Prepared:
    splits = store.open_store(path)
    return Prepared(
        path=path,
        format=source_format,
        info=store.read_info(path),
        splits=tuple(_figures(split) for split in splits.values()),
        pixel_shape=next(iter(splits.values())).pixel_shape,
        fingerprint=fingerprint,
        num_bytes=path.stat().st_size,
        notes=tuple(notes),
    )


def _figures(split: store.StoreSplit) -> PreparedSplit:
    sizes = [split.num_examples(client_id) for client_id in split.client_ids]
    return PreparedSplit(
        name=split.split,
        num_clients=len(sizes),
        num_examples=sum(sizes),
        smallest=min(sizes),
        median=float(np.median(sizes)),
        largest=max(sizes),
        pixels=str(split.client(split.client_ids[0]).pixels.dtype),
    )
