"""Applies a named partition to tables: deals the examples to clients, and changes them.

The name consists of a deal, one or more changes, or both, joined by "+"; see `tables.PARTITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.partitions import changes, schemes
from fedcli.datasets.partitions.deal import Deal, deal_lists, deal_to_owners
from fedcli.datasets.partitions.dealt import Change
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError
from fedcli.settings import tables as registry
from fedcli.settings.options import Value, resolve
from fedcli.settings.vocabulary import SPLITS, VALIDATION

MAIN_SPLITS = SPLITS


@dataclass(frozen=True, eq=False)
class Dealt:
    """The result of a partition for one split.

    Attributes:
        deal: Which client holds which example.
        changes: The changes to the examples.
    """

    deal: Deal
    changes: tuple[Change, ...] = ()


def apply(
    tables: Mapping[str, ExampleTable],
    num_classes: int,
    name: str,
    options: Mapping[str, Value],
    seed: int,
) -> dict[str, Dealt]:
    """Applies a partition to each split. Pixels are not read.

    A scheme deals the train examples. Test and validation are dealt accordingly: of each class, a
    client gets the same share of the test examples as of the train examples (for a class that train
    lacks, its share of all train examples). Clients without test examples are not in test. Without
    a train split, the test split is dealt by the scheme. Other splits keep their owners.

    Args:
        tables: The splits by name.
        num_classes: Labels are 0 to num_classes - 1.
        name: A partition.
        options: Its options; those not given take their defaults.
        seed: Seed of all random numbers, unless the options have one.

    Raises:
        ConfigError: The name or an option is not allowed or does not suit the data, or the
            partition is natural but a split's examples have no owners.
    """
    entry = registry.opened_partition(name)
    takes_seed = any(option.name == "seed" for option in entry.options)
    values = resolve(entry, {**({"seed": seed} if takes_seed else {}), **options})
    scheme, change_names = registry.split_partition(name)
    main = {split: tables[split] for split in MAIN_SPLITS if split in tables}
    if scheme == registry.NATURAL:
        if VALIDATION in main and not len(main[VALIDATION].owner_ids):
            del main[VALIDATION]  # without owners it is a pooled set, like central
        deals = {split: _deal_natural(table) for split, table in main.items()}
    else:
        deals = _deal_artificial(main, scheme, values)
    occurring = [np.unique(table.labels) for table in main.values()]
    classes = np.unique(np.concatenate(occurring)).astype(np.int64)
    made = _build_changes(change_names, values, list(deals.values()), classes)
    dealt = {
        split: Dealt(deal, made if split == "train" else changes.for_testing(made))
        for split, deal in deals.items()
    }
    others = {split: table for split, table in tables.items() if split not in main}
    return {**dealt, **{split: Dealt(_pool(split, table)) for split, table in others.items()}}


def _deal_natural(table: ExampleTable) -> Deal:
    if not len(table.owner_ids):
        raise ConfigError(
            f"{table.source}: its examples have no owners, so there is no natural partition; "
            "choose another, for example --partition iid"
        )
    return deal_to_owners(table)


def _pool(split: str, table: ExampleTable) -> Deal:
    """The natural deal; if the examples have no owners, one client with all of them."""
    if len(table.owner_ids):
        return deal_to_owners(table)
    return deal_lists([split], [np.arange(len(table))])


def _deal_artificial(
    tables: Mapping[str, ExampleTable], scheme: str, options: Mapping[str, Value]
) -> dict[str, Deal]:
    """Deals the first split by a scheme, and the others so that clients get the same shares."""
    num_clients, seed = options["clients"], options["seed"]
    assert isinstance(num_clients, int)
    assert isinstance(seed, int)
    width = max(4, len(str(num_clients - 1)))
    client_ids = [f"p{index:0{width}}" for index in range(num_clients)]
    deals: dict[str, Deal] = {}
    for number, (split, table) in enumerate(tables.items()):
        stream = Stream(stream_key(seed, Purpose.PARTITION, occurrence=number))
        if not deals:
            first, holders = table, schemes.deal(scheme, table.labels, options, stream)
            deals[split] = _gather(client_ids, holders, stream)
        else:
            followed = _follow(first.labels, holders, num_clients, table.labels, stream)
            deal = _gather(client_ids, followed, stream)
            deals[split] = deal.choose(deal.sizes > 0)
    return deals


def _gather(client_ids: Sequence[str], holders: NDArray[np.int64], stream: Stream) -> Deal:
    """The deal that puts each client's examples in random order, so that classes are mixed."""
    order = stream.permutation(len(holders))
    sizes = np.bincount(holders, minlength=len(client_ids))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return Deal(client_ids, order[np.argsort(holders[order], kind="stable")], offsets)


def _follow(
    labels: NDArray[np.int32],
    holders: NDArray[np.int64],
    num_clients: int,
    other_labels: NDArray[np.int32],
    stream: Stream,
) -> NDArray[np.int64]:
    """The holders of other examples: each client has the same share of each class as of `labels`.

    Args:
        labels: int32 [n].
        holders: The client that holds each of these examples, int64 [n].
        num_clients: Holders are 0 to num_clients - 1.
        other_labels: int32 [m].
        stream: Shuffles the other examples.
    """
    everything = np.bincount(holders, minlength=num_clients)
    by_label = np.argsort(labels, kind="stable")
    shuffled = stream.permutation(len(other_labels))
    others = shuffled[np.argsort(other_labels[shuffled], kind="stable")]
    followed = np.empty(len(others), np.int64)
    classes, sizes = np.unique(other_labels, return_counts=True)
    bounds = [np.searchsorted(labels[by_label], classes, side) for side in ("left", "right")]
    columns = (sizes, np.cumsum(sizes), *bounds)
    for size, end, first, last in zip(*(each.tolist() for each in columns), strict=True):
        held = np.bincount(holders[by_label[first:last]], minlength=num_clients)
        shares = np.cumsum(held if last > first else everything)
        counts = np.diff(shares * size // shares[-1], prepend=0)
        followed[others[end - size : end]] = np.repeat(np.arange(num_clients), counts)
    return followed


def _build_changes(
    names: Sequence[str],
    options: Mapping[str, Value],
    deals: Sequence[Deal],
    classes: NDArray[np.int64],
) -> tuple[Change, ...]:
    """Changes for the clients of all deals. Clients are numbered in the order of their ids."""
    if not names:
        return ()
    client_ids = sorted({each for deal in deals for each in deal.client_ids})
    return changes.build(names, options, client_ids, classes)
