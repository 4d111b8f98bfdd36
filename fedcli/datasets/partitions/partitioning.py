"""Applies a named partition to tables: assigns the examples to clients, and changes them.

The name consists of a scheme, one or more changes, or both, joined by "+"; see
`tables.PARTITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.partitions import changes, schemes
from fedcli.datasets.partitions.assignment import Assignment, assign_lists, assign_to_owners
from fedcli.datasets.partitions.partitioned_split import Change
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError
from fedcli.settings import tables as registry
from fedcli.settings.options import Value, resolve
from fedcli.settings.vocabulary import SPLITS, VALIDATION

MAIN_SPLITS = SPLITS


@dataclass(frozen=True, eq=False)
class Partitioned:
    """The result of a partition for one split.

    Attributes:
        assignment: Which client holds which example.
        changes: The changes to the examples.
    """

    assignment: Assignment
    changes: tuple[Change, ...] = ()


def apply(
    tables: Mapping[str, ExampleTable],
    name: str,
    options: Mapping[str, Value],
    seed: int,
) -> dict[str, Partitioned]:
    """Applies a partition to each split. Pixels are not read.

    A scheme divides the train examples among the clients. The test examples follow: of each class,
    a client gets the same share of the test examples as of the train examples. If train lacks the
    class, the client's share of all train examples is used. Clients without test examples are not
    in test. The validation examples follow in the same way. Without a train split, the scheme
    divides the test examples. Other splits keep their owners.

    Args:
        tables: The splits by name.
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
        assignments = {split: _assign_natural(table) for split, table in main.items()}
    else:
        assignments = _assign_by_scheme(main, scheme, values)
    occurring = [np.unique(table.labels) for table in main.values()]
    classes = np.unique(np.concatenate(occurring)).astype(np.int64)
    made = _build_changes(change_names, values, list(assignments.values()), classes)
    partitioned = {
        split: Partitioned(assignment, made if split == "train" else changes.for_testing(made))
        for split, assignment in assignments.items()
    }
    others = {split: table for split, table in tables.items() if split not in main}
    return {
        **partitioned,
        **{split: Partitioned(_pool(split, table)) for split, table in others.items()},
    }


def _assign_natural(table: ExampleTable) -> Assignment:
    if not len(table.owner_ids):
        raise ConfigError(
            f"{table.source}: its examples have no owners, so there is no natural partition; "
            "choose another, for example --partition iid"
        )
    return assign_to_owners(table)


def _pool(split: str, table: ExampleTable) -> Assignment:
    """The natural assignment; if the examples have no owners, one client with all of them."""
    if len(table.owner_ids):
        return assign_to_owners(table)
    return assign_lists([split], [np.arange(len(table))])


def _assign_by_scheme(
    tables: Mapping[str, ExampleTable], scheme: str, options: Mapping[str, Value]
) -> dict[str, Assignment]:
    """Assigns the first split by a scheme, and the others so that clients get the same shares."""
    num_clients, seed = options["clients"], options["seed"]
    assert isinstance(num_clients, int)
    assert isinstance(seed, int)
    width = max(4, len(str(num_clients - 1)))
    client_ids = [f"p{index:0{width}}" for index in range(num_clients)]
    assignments: dict[str, Assignment] = {}
    for number, (split, table) in enumerate(tables.items()):
        stream = Stream(stream_key(seed, Purpose.PARTITION, occurrence=number))
        if not assignments:
            first, holders = table, schemes.assign(scheme, table.labels, options, stream)
            assignments[split] = _gather(client_ids, holders, stream)
        else:
            followed = _follow(first.labels, holders, num_clients, table.labels, stream)
            assignment = _gather(client_ids, followed, stream)
            assignments[split] = assignment.choose(assignment.sizes > 0)
    return assignments


def _gather(client_ids: Sequence[str], holders: NDArray[np.int64], stream: Stream) -> Assignment:
    """The assignment with each client's examples in random order, so that classes are mixed."""
    order = stream.permutation(len(holders))
    sizes = np.bincount(holders, minlength=len(client_ids))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return Assignment(client_ids, order[np.argsort(holders[order], kind="stable")], offsets)


def _follow(
    labels: NDArray[np.int32],
    holders: NDArray[np.int64],
    num_clients: int,
    other_labels: NDArray[np.int32],
    stream: Stream,
) -> NDArray[np.int64]:
    """The holders of other examples, int64 [m].

    Of each class, a client gets the same share of the other examples as of the first ones.

    Args:
        labels: The labels of the first examples, int32 [n].
        holders: The client that holds each of the first examples, int64 [n].
        num_clients: Holders are 0 to num_clients - 1.
        other_labels: The labels of the other examples, int32 [m].
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
    assignments: Sequence[Assignment],
    classes: NDArray[np.int64],
) -> tuple[Change, ...]:
    """Changes for the clients of all splits. Clients are numbered in the order of their ids."""
    if not names:
        return ()
    client_ids = sorted({each for split in assignments for each in split.client_ids})
    return changes.build(names, options, client_ids, classes)
