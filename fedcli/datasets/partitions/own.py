"""Calls users' own partitions and checks their results."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.partitions.schemes import Task
from fedcli.errors import FedcliError, PartError
from fedcli.settings import tables
from fedcli.settings.options import opened
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import kind
from fedcli.settings.own.parts import make

NOUN = "partition"
_SEQUENCES = (list, tuple, range, set, np.ndarray)


class Partition(Protocol):
    """A function that assigns examples to clients.

    The function need not have all arguments of `__call__`. It is called with those that it
    declares and with its options. Every partition has the options `clients` and `seed`.
    """

    def __call__(
        self, labels: NDArray[np.int64], num_classes: int, num_clients: int, seed: int
    ) -> NDArray[np.int64]:
        """Returns which client holds each example: whole numbers [n], 0 to num_clients - 1.

        Each client must have an example. The function divides only the train examples: of each
        class, a client gets the same share of the test examples as of the train examples.

        Args:
            labels: int64 [n], 0 to num_classes - 1, each of which occurs.
            num_classes: The number of classes.
            num_clients: The number of clients.
            seed: Seed of its random numbers. Equal arguments must give equal results.
        """
        ...


def assign(task: Task) -> NDArray[np.int64]:
    """Returns which client holds each example, int64 [n].

    Raises:
        PartError: The user's function fails, or its result is not such an array.
    """
    entry = opened(tables.SCHEMES[task.name])
    options = {option.name: task.options[option.name] for option in entry.options}
    offered: dict[str, Any] = {
        "labels": task.labels.copy(),
        "num_classes": task.num_classes,
        "num_clients": options.pop("clients"),
        "seed": options.pop("seed"),
    }
    holders = make(entry, NOUN, offered, options, (FedcliError,))
    where = entry.file
    if isinstance(holders, list | tuple) and any(isinstance(each, _SEQUENCES) for each in holders):
        raise PartError(
            f"{where}: the partition returned {len(holders)} lists; return one list with the "
            f"client of each example, whole numbers [{len(task.labels)}]"
        )
    with user_code.running("what the partition returned", where, NOUN):
        array = np.asarray(holders)
    is_vector = isinstance(holders, np.ndarray | list) and array.shape == task.labels.shape
    if not is_vector or array.dtype.kind not in "iu":
        raise PartError(
            f"{where}: the partition returned {kind(holders)}; return the client of each example, "
            f"whole numbers [{len(task.labels)}]"
        )
    if array.min() < 0 or array.max() >= task.num_clients:
        raise PartError(
            f"{where}: the partition returned clients {array.min()} to {array.max()}; return "
            f"numbers from 0 to {task.num_clients - 1}, one for each of the {task.num_clients} "
            "clients"
        )
    return array.astype(np.int64)
