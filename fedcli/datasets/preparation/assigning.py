"""Assigns examples to clients, drops small clients and holds out data. Works on indices only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import CENTRAL
from fedcli.datasets.importers.recognising import Imported
from fedcli.datasets.partitions import hold_out, partitioning
from fedcli.datasets.partitions.assignment import Assignment, assign_lists
from fedcli.datasets.partitions.changes import for_testing
from fedcli.datasets.partitions.hold_out import POOLED, WITHIN
from fedcli.datasets.partitions.partitioned_split import Change
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError, plural
from fedcli.settings import tables as registry
from fedcli.settings.options import Value, resolve
from fedcli.settings.vocabulary import SPLITS

# With --digits-only, clients with fewer examples are dropped, as TFF and LEAF do.
MIN_DIGITS = 2
# The number of clients for a source without owners: at least 20 examples each, at most 100 clients.
MAX_DEFAULT_CLIENTS = 100
DEFAULT_CLIENT_EXAMPLES = 20
_DEFAULT_SCHEME = "iid"  # for examples without owners


@dataclass(frozen=True, eq=False)
class Part:
    """One split in preparation: a table, the clients of its examples, and changes to them."""

    table: ExampleTable
    assignment: Assignment
    changes: tuple[Change, ...] = ()


def choose_scheme(
    source: Imported,
    kept: Mapping[str, NDArray[np.int64]],
    options: PrepareOptions,
    notes: list[str],
) -> tuple[str, dict[str, Value]]:
    """Returns the name of the partition, and its resolved options with the seed.

    Raises:
        ConfigError: The partition or one of its options is not allowed.
    """
    name, given = options.partition, dict(options.partition_options)
    if name is None:
        if len(source.tables["train"].owner_ids):
            _check_no_options(given)
            name = registry.NATURAL
        else:
            name = _DEFAULT_SCHEME
            _set_default_clients(given, len(kept["train"]), notes)
    entry = registry.opened_partition(name)
    if any(option.name == "seed" for option in entry.options):
        given.setdefault("seed", options.seed)
    try:
        return name, resolve(entry, given)
    except ConfigError as err:
        raise ConfigError(f"--partition-option: {err}") from err


def _check_no_options(given: Mapping[str, Value]) -> None:
    """Refuses options of a partition if no partition is named and examples keep their owners."""
    for option in given:
        raise ConfigError(
            f"--partition-option {option}: the examples keep their own clients, so there are no "
            "options; also choose a partition, for example --partition iid"
        )


def _set_default_clients(given: dict[str, Value], num_examples: int, notes: list[str]) -> None:
    """Sets the number of clients of examples without owners, unless the user gave it."""
    other = "--partition chooses another method"
    if "clients" in given:
        notes.append(f"the source names no owners: divided at random ({_DEFAULT_SCHEME}); {other}")
        return
    num_clients = min(MAX_DEFAULT_CLIENTS, max(1, num_examples // DEFAULT_CLIENT_EXAMPLES))
    given["clients"] = num_clients
    notes.append(
        f"the source names no owners: divided at random among {plural(num_clients, 'client')}, by "
        f"default one client for {DEFAULT_CLIENT_EXAMPLES} examples, at most "
        f"{MAX_DEFAULT_CLIENTS} clients; {other}"
    )


def take_central(
    source: Imported, kept: Mapping[str, NDArray[np.int64]], options: PrepareOptions, name: str
) -> tuple[dict[str, NDArray[np.int64]], Part]:
    """Takes a pooled test set from train.

    Returns the indices of the remaining examples by split, int64 [n] each, and the pool as a single
    client called `name`.

    Raises:
        DataError: There is only one example.
    """
    table, examples = source.tables["train"], kept["train"]
    left, taken = hold_out.central(table.labels[examples], options.hold_out_fraction, options.seed)
    return {**kept, "train": examples[left]}, Part(table, assign_lists([name], [examples[taken]]))


def assign_examples(
    source: Imported,
    kept: Mapping[str, NDArray[np.int64]],
    scheme: str,
    given: Mapping[str, Value],
    notes: list[str],
) -> dict[str, Part]:
    """Assigns the examples `kept` (indices, int64 [n] each) of each split to clients."""
    tables, chosen = dict(source.tables), dict(kept)
    if "test" in tables and not len(tables["test"].owner_ids) and not reassigns_examples(scheme):
        tables[CENTRAL], chosen[CENTRAL] = tables.pop("test"), chosen.pop("test")
        notes.append(
            "the test split names no owners: stored as the pooled split 'central', which "
            "'fedcli eval RUN --split central' reads; to divide train and test among the same "
            "clients, choose a partition, for example --partition iid"
        )
    seed = given.get("seed", 0)  # a partition without the option seed draws no random numbers
    assert isinstance(seed, int)
    bare = {name: _without_pixels(table, chosen[name]) for name, table in tables.items()}
    partitioned = partitioning.apply(bare, scheme, given, seed)
    return {
        name: Part(tables[name], _in_table(chosen[name], each.assignment), each.changes)
        for name, each in partitioned.items()
    }


def _without_pixels(table: ExampleTable, kept: NDArray[np.int64]) -> ExampleTable:
    """The examples `kept` of a table without their pixels, which no partition reads."""
    owners = table.owners[kept] if len(table.owner_ids) else table.owners
    return replace(table, pixels=table.pixels[:0], labels=table.labels[kept], owners=owners)


def _in_table(kept: NDArray[np.int64], assignment: Assignment) -> Assignment:
    """The assignment with indices in the table instead of positions in `kept`."""
    return Assignment(assignment.client_ids, kept[assignment.order], assignment.offsets)


def reassigns_examples(scheme: str) -> bool:
    """Returns whether a partition assigns examples to clients other than their owners."""
    return registry.split_partition(scheme)[0] != registry.NATURAL


def drop_small(
    parts: dict[str, Part],
    source: Imported,
    options: PrepareOptions,
    scheme: str,
    notes: list[str],
) -> dict[str, Part]:
    """Drops clients with few train examples, and the same people from test and validation.

    Raises:
        DataError: No client has enough train examples.
    """
    least = least_examples(options)
    train = parts["train"]
    is_kept = train.assignment.sizes >= least
    if not is_kept.any():
        raise DataError(
            f"no client of {train.table.source} has {max(1, least)} or more train examples; "
            "choose a smaller --min-examples" + (" or drop --digits-only" * options.digits_only)
        )
    kept_parts = {**parts, "train": replace(train, assignment=train.assignment.choose(is_kept))}
    if not is_kept.all():
        notes.append(
            f"left out {np.count_nonzero(~is_kept):,} of {len(is_kept):,} clients, which have "
            f"fewer than {least} train examples"
        )
    left_out = {train.assignment.client_ids[index] for index in np.flatnonzero(~is_kept).tolist()}
    for split in SPLITS[1:]:
        if split not in parts:
            continue
        assignment = parts[split].assignment
        is_wanted = assignment.sizes >= (1 if options.digits_only else 0)
        if source.same_people or reassigns_examples(scheme):
            is_wanted &= np.array(
                [each not in left_out for each in assignment.client_ids], np.bool_
            )
        if is_wanted.any():
            kept_parts[split] = replace(parts[split], assignment=assignment.choose(is_wanted))
        else:
            del kept_parts[split]
            notes.append(f"the {split} split was left out, because none of its clients is left")
    return kept_parts


def set_aside(
    parts: dict[str, Part], name: str | None, options: PrepareOptions, notes: list[str]
) -> dict[str, Part]:
    """Sets aside examples or clients of train as the split `name`.

    If `name` is None, nothing changes.
    """
    if name is None:
        return parts
    split = hold_out.within if options.hold_out == WITHIN else hold_out.clients
    train = parts["train"]
    held_out = split(train.assignment, options.hold_out_fraction, options.seed)
    if held_out.num_whole:
        num = held_out.num_whole
        have = "1 client has" if num == 1 else f"{num:,} clients have"
        notes.append(f"{have} a single example, which stays in train")
    return {
        **parts,
        "train": replace(train, assignment=held_out.train),
        name: Part(train.table, held_out.test, for_testing(train.changes)),
    }


def least_examples(options: PrepareOptions) -> int:
    """Returns the number of train examples that a client needs to be kept.

    If there is a pooled test set, a client needs one example outside it.
    """
    usual = MIN_DIGITS if options.digits_only else int(options.hold_out == POOLED)
    return max(options.min_examples, usual)
