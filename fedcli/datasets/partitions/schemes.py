"""The schemes that assign examples to artificial clients, each as published.

A scheme takes the labels and returns the client of each example. Each example is assigned to
one client, and each client gets at least one example. The examples of a class are shuffled before
they are divided. Time is linear in the number of examples (times the number of classes if clients
have label mixes). K is the number of clients, C the number of classes that occur, n the number of
examples, n_c the number of examples of class c, and 1_K a vector of K ones. `tables.SCHEMES` has
the options and `SCHEMES` the functions, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.dataclass import dataclass
from fedcli.datasets.partitions import label_mixes
from fedcli.datasets.partitions.label_mixes import LEAST_TOTAL
from fedcli.errors import ConfigError, plural
from fedcli.lazy import load
from fedcli.settings.options import Value

MAX_TRIES = 100  # largest number of draws for a scheme with a minimum number of examples

_MAX_CELLS = 1 << 26  # largest table of clients x classes: half a gigabyte

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Task:
    """The input of a scheme.

    Attributes:
        name: The scheme, for messages.
        labels: int64 [n], 0 to num_classes - 1, each of which occurs.
        num_classes: C.
        num_clients: K, at most n.
        options: The scheme's options.
        stream: Its random stream.
    """

    name: str
    labels: Counts
    num_classes: int
    num_clients: int
    options: Mapping[str, Any]
    stream: Stream

    def sort(self) -> Counts:
        """Returns the examples ordered by class, shuffled within each class: int64 [n]."""
        order = self.stream.permutation(len(self.labels))
        return order[np.argsort(self.labels[order], kind="stable")]

    def class_sizes(self) -> Counts:
        """Returns n_c, int64 [C]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def even_sizes(self) -> Counts:
        """Returns K sizes that differ by at most one, int64 [K]."""
        return even_sizes(len(self.labels), self.num_clients)


def assign(
    name: str, labels: NDArray[np.int32], options: Mapping[str, Value], stream: Stream
) -> Counts:
    """Returns the client of each example, int64 [n]. Each of the clients 0 to K - 1 has an example.

    Args:
        name: A key of `SCHEMES`, or a user's own partition.
        labels: int32 [n], at least 0.
        options: The options of the scheme, with defaults filled in.
        stream: The random stream.

    Raises:
        ConfigError: The options do not suit the number of examples or classes.
    """
    num_clients: Any = options["clients"]
    if num_clients > len(labels):
        raise ConfigError(
            f"--partition {name}: {plural(num_clients, 'client')} but "
            f"{plural(len(labels), 'example')}; choose clients={len(labels)} or fewer"
        )
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) * num_clients > _MAX_CELLS:
        raise ConfigError(
            f"--partition {name}: {plural(num_clients, 'client')} times "
            f"{plural(len(classes), 'class')} is more than {_MAX_CELLS:,}; choose fewer clients"
        )
    task = Task(name, numbers.astype(np.int64), len(classes), num_clients, options, stream)
    scheme = SCHEMES.get(name) or load("fedcli.datasets.partitions.own:assign")
    holders: Counts = scheme(task)
    num_empty = num_clients - len(np.unique(holders))
    if num_empty:
        raise ConfigError(
            f"--partition {name}: {num_empty} of {num_clients} clients would have no example; "
            "choose fewer clients"
        )
    return holders


def assign_iid(task: Task) -> Counts:
    """A permutation of all examples, cut into K equal parts (McMahan et al. 2017).

    Sizes differ by at most one. Flower's IidPartitioner cuts without shuffling.
    """
    return _assign_by_sizes(task, task.even_sizes())


def assign_shards(task: Task) -> Counts:
    """Examples sorted by label and cut into K s shards, s of them per client (McMahan et al. 2017).

    In the paper: MNIST, K = 100, s = 2, 200 shards of 300 examples. Shards differ by at most one
    example; Flower and FedLab drop the remainder or give it to one shard. Before the cut, examples
    of a label are shuffled; the paper keeps the order of the file.
    """
    per_client = task.options["shards"]
    num_shards = task.num_clients * per_client
    num_examples = len(task.labels)
    if num_shards > num_examples:
        raise ConfigError(
            f"--partition shards: {plural(task.num_clients, 'client')} with "
            f"{plural(per_client, 'shard')} each need more than "
            f"{plural(num_examples, 'example')}; choose fewer clients or shards"
        )
    owners = np.empty(num_shards, np.int64)
    owners[task.stream.permutation(num_shards)] = np.repeat(np.arange(task.num_clients), per_client)
    return _holders_of_examples(
        task.sort(), np.repeat(owners, even_sizes(num_examples, num_shards))
    )


def assign_dirichlet_class(task: Task) -> Counts:
    """Draws p ~ Dir(alpha 1_K) for each class, and cuts its examples at floor(cumsum(p) n_c).

    Yurochkin et al. 2019 and NIID-Bench use alpha 0.5; if a client gets fewer than 10 examples,
    everything is drawn again. `balanced` is Yurochkin's variant: p_j = 0 for a client that already
    has n / K examples, and p is renormalised. Flower cuts without shuffling and gives up after 10
    tries. FedLab requires one example of each class. NIID-Bench and FedLab may draw forever; here
    an error is raised if 100 draws do not suffice.
    """
    alpha, class_sizes = task.options["alpha"], task.class_sizes()
    draw = _balanced_shares if task.options["balanced"] else _free_shares

    def counts() -> Counts:
        return draw(task, alpha, class_sizes)

    held = _until_enough(task, counts)
    clients = np.tile(np.arange(task.num_clients), task.num_classes)
    return _holders_of_examples(task.sort(), np.repeat(clients, held.ravel()))


def assign_dirichlet_client(task: Task) -> Counts:
    """Draws a label mix q ~ Dir(alpha 1_C) for each client; each client has n / K examples.

    As in Acar et al. 2021 (FedDyn) and Flower's InnerDirichletPartitioner; `label_mixes` says how
    examples are drawn. pfl-research sometimes adds 0.02 to each q, which makes clients more alike.
    """
    return _assign_by_mixes(task, np.full(task.num_classes, task.options["alpha"]))


def assign_dirichlet_prior(task: Task) -> Counts:
    """Draws a label mix q ~ Dir(alpha p), p_c = n_c / n, for each client of n / K examples.

    Hsu et al. 2019 use CIFAR-10 and 100 clients with 500 examples each. With C classes of equal
    size this is Dir((alpha / C) 1_C), which is far less even than dirichlet-client with the same
    alpha. Google published two programs: one uses p, the other one uses 1 for each class.
    """
    return _assign_by_mixes(task, task.options["alpha"] * task.class_sizes() / len(task.labels))


def assign_classes_per_client(task: Task) -> Counts:
    """Each client has exactly k classes.

    The clients of a class share it equally (NIID-Bench, #C = k).

    The first class of client j is j mod C; the others are random. With fewer clients than classes,
    NIID-Bench drops the classes that no client has. Here these classes are assigned first, so that
    each has a client.
    """
    num_clients, num_classes, per_client = (
        task.num_clients,
        task.num_classes,
        task.options["classes"],
    )
    if per_client > num_classes:
        raise ConfigError(
            f"--partition classes-per-client: {plural(per_client, 'class')} per client, but the "
            f"data have {num_classes}; choose classes={num_classes} or fewer"
        )
    if per_client * num_clients < num_classes:
        raise ConfigError(
            f"--partition classes-per-client: {plural(num_clients, 'client')} with "
            f"{plural(per_client, 'class')} each leave some of the {num_classes} classes without a "
            "client; choose more clients or more classes"
        )
    ranks = task.stream.uniform(num_clients * num_classes).reshape(num_clients, num_classes)
    everyone = np.arange(num_clients)
    ranks[everyone, everyone % num_classes] = -2.0
    missing = np.arange(num_clients, num_classes)  # classes that are no client's first class
    ranks[missing % num_clients, missing] = -1.0
    held = np.argsort(ranks, axis=1, kind="stable")[:, :per_client]
    is_holder = np.zeros((num_classes, num_clients), np.bool_)
    is_holder[held, everyone[:, None]] = True
    parts = [
        np.repeat(np.flatnonzero(holds), even_sizes(size, int(holds.sum())))
        for holds, size in zip(is_holder, task.class_sizes().tolist(), strict=True)
    ]
    return _holders_of_examples(task.sort(), np.concatenate(parts))


def assign_quantity_dirichlet(task: Task) -> Counts:
    """Sizes p n with p ~ Dir(alpha 1_K), redrawn until each is at least min_examples.

    The examples are drawn iid.

    This is NIID-Bench's quantity skew, which uses alpha 0.5 and min_examples 10.
    """
    alpha = np.full(task.num_clients, task.options["alpha"])
    total = np.array([len(task.labels)])
    return _assign_by_sizes(
        task, _until_enough(task, lambda: cut(task.stream.dirichlet(alpha), total))[0]
    )


def assign_quantity_lognormal(task: Task) -> Counts:
    """Sizes proportional to exp(sigma z_j), z_j ~ N(0, 1).

    The examples are drawn iid (FedLab's unbalance_sgm).

    Each client gets one example, and the remaining ones are divided. FedLab allows empty clients,
    and corrects rounding errors one example at a time.
    """
    logs = task.options["sigma"] * task.stream.normal(task.num_clients)
    return _assign_by_weights(task, np.exp(logs - logs.max()))


def assign_quantity_linear(task: Task) -> Counts:
    """Sizes proportional to j + 1 for client j (Flower's LinearPartitioner).

    The examples are drawn iid.

    Each client gets one example, and the remaining ones are divided. Flower gives the rounding
    remainder to the last client.
    """
    return _assign_by_weights(task, np.arange(1.0, task.num_clients + 1.0))


def assign_quantity_exponential(task: Task) -> Counts:
    """Sizes proportional to e^j for client j (Flower's ExponentialPartitioner).

    The examples are drawn iid.

    Sizes grow so fast that n examples suffice for only a few clients: 60,000 examples for 11
    clients. More clients are an error here; in Flower they are empty.
    """
    num_examples, num_clients = len(task.labels), task.num_clients
    most = 1
    while most < num_clients and _first_share(most + 1) * num_examples >= 1.0:
        most += 1
    if most < num_clients:
        raise ConfigError(
            f"--partition quantity-exponential: {num_clients} clients, but each client has e times "
            f"the examples of the client before, so {num_examples} examples suffice for {most} "
            f"clients; choose clients={most} or fewer"
        )
    return _assign_by_weights(task, np.exp(np.arange(num_clients) - (num_clients - 1.0)))


SCHEMES: dict[str, Callable[[Task], Counts]] = {
    "iid": assign_iid,
    "shards": assign_shards,
    "dirichlet-class": assign_dirichlet_class,
    "dirichlet-client": assign_dirichlet_client,
    "dirichlet-prior": assign_dirichlet_prior,
    "classes-per-client": assign_classes_per_client,
    "quantity-dirichlet": assign_quantity_dirichlet,
    "quantity-lognormal": assign_quantity_lognormal,
    "quantity-linear": assign_quantity_linear,
    "quantity-exponential": assign_quantity_exponential,
}


def even_sizes(total: int, num_parts: int) -> Counts:
    """Returns sizes of parts that differ by at most one, the larger first: int64 [num_parts]."""
    sizes = np.full(num_parts, total // num_parts, np.int64)
    sizes[: total % num_parts] += 1
    return sizes


def cut(shares: NDArray[np.float64], totals: Counts) -> Counts:
    """Divides each row's total by cutting it at floor(cumsum(shares) total): int64 [rows, k].

    Args:
        shares: float64 [rows, k], at least 0, no row all 0; a row need not sum to 1.
        totals: int64 [rows].
    """
    edges = np.cumsum(shares, axis=1)
    edges /= edges[:, -1:]  # so that the last share above 0 ends at exactly 1
    places = np.floor(edges * totals[:, None]).astype(np.int64)
    counts: Counts = np.diff(places, axis=1, prepend=0)
    return counts


def _holders_of_examples(order: Counts, holders_in_order: Counts) -> Counts:
    """The holder of each example, given the holder of each entry of `order`."""
    holders = np.empty(len(order), np.int64)
    holders[order] = holders_in_order
    return holders


def _assign_by_sizes(task: Task, sizes: Counts) -> Counts:
    """Assigns random examples to clients of these sizes."""
    order = task.stream.permutation(len(task.labels))
    return _holders_of_examples(order, np.repeat(np.arange(task.num_clients), sizes))


def _assign_by_weights(task: Task, weights: NDArray[np.float64]) -> Counts:
    """Assigns random examples to clients in proportion to their weights, at least one each."""
    spare = np.array([len(task.labels) - task.num_clients])
    return _assign_by_sizes(task, 1 + cut(weights[None], spare)[0])


def _assign_by_mixes(task: Task, alpha: NDArray[np.float64]) -> Counts:
    """Assigns examples to clients of even sizes by label mixes from Dir(alpha), float64 [C]."""
    mixes = task.stream.dirichlet(alpha, task.num_clients)
    order, sizes = task.sort(), task.even_sizes()
    clients = label_mixes.assign_by_mixes(mixes, task.class_sizes(), sizes, task.stream)
    return _holders_of_examples(order, clients)


def _first_share(num_clients: int) -> float:
    """The share of the first of `num_clients` clients if sizes grow by a factor of e."""
    return float((np.e - 1.0) / np.expm1(num_clients))


def _until_enough(task: Task, counts: Callable[[], Counts]) -> Counts:
    """Draws counts [rows, K] until each client has at least `min_examples`."""
    least = task.options["min_examples"]
    prefix = f"--partition {task.name}: clients={task.num_clients} with min_examples={least}"
    if least * task.num_clients > len(task.labels):
        raise ConfigError(
            f"{prefix} need more than {plural(len(task.labels), 'example')}; choose fewer clients "
            "or a smaller min_examples"
        )
    for _ in range(MAX_TRIES):
        drawn = counts()
        if drawn.sum(axis=0).min() >= least:
            return drawn
    raise ConfigError(
        f"{prefix} and alpha={task.options['alpha']:g}: none of {MAX_TRIES} draws gave each client "
        "so many examples; choose a larger alpha, fewer clients or a smaller min_examples"
    )


def _free_shares(task: Task, alpha: float, class_sizes: Counts) -> Counts:
    over_clients = np.full(task.num_clients, alpha)
    return cut(task.stream.dirichlet(over_clients, task.num_classes), class_sizes)


def _balanced_shares(task: Task, alpha: float, class_sizes: Counts) -> Counts:
    """Like `_free_shares`, but clients with n / K examples or more get none of the next class."""
    over_clients = np.full(task.num_clients, alpha)
    shares = task.stream.dirichlet(over_clients, task.num_classes)
    counts = np.zeros(shares.shape, np.int64)
    for index in range(task.num_classes):
        is_open = counts.sum(axis=0) * task.num_clients < len(task.labels)
        row = np.where(is_open, shares[index], 0.0)
        # If the clients with a share of the class are full, the other clients share it equally.
        if row.sum() < LEAST_TOTAL:
            row = is_open.astype(np.float64)
        counts[index] = cut(row[None], class_sizes[index : index + 1])[0]
    return counts
