"""The partitions: tables of schemes (which client gets which example) and changes of examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from fedcli.errors import ConfigError
from fedcli.settings.options import Entry, Option, Value, did_you_mean, not_a_text, opened, table
from fedcli.settings.vocabulary import MAX_CLASSES, NATURAL

_CLIENTS = Option("clients", 100, "Number of clients.", 1, 10_000_000)
_FEW_CLIENTS = Option("clients", 10, _CLIENTS.doc, 1, 10_000_000)
_PARTITION_SEED = Option("seed", 0, "Seed of the partition.", 0, 2**63 - 1)
_MIN_EXAMPLES = Option(
    "min_examples",
    10,
    "Fewest examples of a client. The partition is drawn again until no client has fewer.",
    1,
)
# Below this range each client has one class; above it the shares are equal.
_LEAST_ALPHA, _MAX_ALPHA = 1e-9, 1e9


def _alpha(default: float, doc: str) -> Option:
    return Option("alpha", default, doc, _LEAST_ALPHA, _MAX_ALPHA)


def _scheme(name: str, doc: str, source: str, *options: Option) -> Entry:
    return Entry(name, doc, source, (_CLIENTS, *options, _PARTITION_SEED))


# Schemes: which client gets which example. A partition has at most one; the default is "natural".
SCHEMES = table(
    Entry(
        "natural",
        "As in the source: each client keeps its own examples.",
        "TFF simulation/datasets; Caldas et al. 2018 (LEAF), arXiv 1812.01097",
    ),
    _scheme(
        "iid",
        "Equal shares of all examples, in random order.",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    _scheme(
        "shards",
        "Sorts the examples by label, cuts them into equal shards, and gives each client some "
        "shards.",
        "McMahan et al. 2017, arXiv 1602.05629: 100 clients, 2 shards each",
        Option("shards", 2, "Shards per client.", 1, 1_000_000),
    ),
    _scheme(
        "dirichlet-class",
        "Class by class: a draw from Dir(alpha) over the clients divides the class among them. "
        "Sizes differ. Not the same as dirichlet-client.",
        "Yurochkin et al. 2019, arXiv 1905.12022; Li et al. 2022 (NIID-Bench), arXiv 2102.02079",
        _alpha(0.5, "Larger is more even; the parameter of each client, not of each class."),
        _MIN_EXAMPLES,
        Option(
            "balanced",
            False,
            "Give no further class to a client that already has its equal share of all examples.",
        ),
    ),
    _scheme(
        "dirichlet-client",
        "Client by client: a draw from Dir(alpha) over the classes, with the same alpha for "
        "each class, is the client's label mix. Sizes are equal. Not the same as "
        "dirichlet-class.",
        "Acar et al. 2021 (FedDyn), arXiv 2111.04263",
        _alpha(0.5, "Larger is more even; the parameter of each class."),
    ),
    _scheme(
        "dirichlet-prior",
        "As dirichlet-client, but with Dir(alpha * p), where p holds the share of each class in "
        "all examples. With 10 equal classes, alpha=1 equals alpha=0.1 of dirichlet-client.",
        "Hsu et al. 2019, arXiv 1909.06335",
        _alpha(0.5, "Larger is more even; the sum of the parameters of all classes."),
    ),
    _scheme(
        "classes-per-client",
        "Each client has a fixed number of classes. The clients that have a class share it "
        "equally.",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, #C = k",
        Option("classes", 2, "Classes per client.", 1, MAX_CLASSES),
    ),
    Entry(
        "quantity-dirichlet",
        "Only sizes differ: the clients' shares are a draw from Dir(alpha).",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, quantity skew",
        (_FEW_CLIENTS, _alpha(0.5, "Larger is more even."), _MIN_EXAMPLES, _PARTITION_SEED),
    ),
    _scheme(
        "quantity-lognormal",
        "Only sizes differ: they are proportional to log-normal random numbers.",
        "Zeng et al. 2023 (FedLab), JMLR 24",
        Option("sigma", 0.3, "Standard deviation of the logarithm; 0: equal sizes.", 0.0, 20.0),
    ),
    _scheme(
        "quantity-linear",
        "Only sizes differ: the size of client j is proportional to j + 1.",
        "Beutel et al. 2020 (Flower), arXiv 2007.14390, LinearPartitioner",
    ),
    Entry(
        "quantity-exponential",
        "Only sizes differ: the size of client j is proportional to e^j. So 60,000 examples are "
        "enough for only 11 clients.",
        "Beutel et al. 2020 (Flower), arXiv 2007.14390, ExponentialPartitioner",
        (_FEW_CLIENTS, _PARTITION_SEED),
    ),
    family="partition",
)

# Changes to the examples of clients. "+" joins them to a scheme or to each other.
CHANGES = table(
    Entry(
        "feature-rotation",
        "Rotates the images of client j by one of the angles: number j modulo the number of "
        "angles.",
        "Ghosh et al. 2020 (IFCA), arXiv 2006.04088, rotated MNIST",
        (
            Option(
                "angles",
                [0.0, 90.0, 180.0, 270.0],
                "Degrees, anticlockwise; multiples of 90 are exact.",
                -360.0,
                360.0,
            ),
        ),
    ),
    Entry(
        "feature-noise",
        "Adds normal noise to the pixels of client j, with standard deviation std * j / "
        "(clients - 1).",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, noise-based feature skew",
        (
            Option("std", 0.1, "Standard deviation at the last client.", 0.0, 1000.0),
            _PARTITION_SEED,
        ),
    ),
    Entry(
        "feature-inversion",
        "Replaces each pixel x by 1 - x at some clients, by default at every second one.",
        "fedcli; the pixels of TFF's EMNIST against those of MNIST",
        (Option("share", 0.5, "Share of the clients, spread evenly.", 0.0, 1.0),),
    ),
    Entry(
        "label-noise",
        "Changes some labels of the train data. Test labels stay as they are.",
        "Patrini et al. 2017, arXiv 1609.03683 (symmetric); Han et al. 2018, arXiv 1804.06872 "
        "(pair)",
        (
            Option("rate", 0.1, "Probability that a label changes.", 0.0, 1.0),
            Option(
                "kind",
                "symmetric",
                "symmetric: to any other class alike; pair: to the next class.",
                choices=("symmetric", "pair"),
            ),
            _PARTITION_SEED,
        ),
    ),
)

PARTITIONS = table(*SCHEMES.values(), *CHANGES.values(), family=SCHEMES.family)

# A scheme in a user's file, and the changes after it.
_CODE = re.compile(r"(.*\.py(?::[^:+]*)?)((?:\+.*)?)", re.DOTALL)


def find_partition(name: str) -> Entry:
    """Returns the row of a partition: one of `PARTITIONS`, or several of them joined by "+".

    A joined row has the options of all its parts; they share one seed. A scheme may be FILE.py or
    FILE.py:NAME, whose options are those of its file, which is not run here.

    Raises:
        ConfigError: A name is unknown or given twice, or a scheme is not first.
    """
    scheme, changes = split_partition(name)
    return _joined(name, SCHEMES[scheme], changes)


def opened_partition(name: str) -> Entry:
    """Returns the row of `find_partition`; runs the file of a scheme to learn its options.

    Raises:
        ConfigError: See `find_partition`.
        PartError: The file fails.
    """
    scheme, changes = split_partition(name)
    return _joined(name, opened(SCHEMES[scheme]), changes)


def split_partition(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the name of the scheme and the names of the changes of a partition.

    Raises:
        ConfigError: See `find_partition`.
    """
    if not isinstance(name, str):
        raise ConfigError(not_a_text("--partition", name))
    code, names = split_code_of_scheme(name)
    for each in names:
        if not each:
            where = "beside +" if "+" in name else "after --partition"
            raise ConfigError(
                f"--partition '{name}': a name is missing {where}; "
                f"choose one of {', '.join(PARTITIONS)}"
            )
        if each not in CHANGES and SCHEMES.find(each) is None:
            raise ConfigError(
                f"unknown --partition '{each}'; choose one of {', '.join(PARTITIONS)}; "
                "a partition that changes examples can be joined to another one with +"
                f"{did_you_mean(each, PARTITIONS)}"
            )
    if code is not None:
        scheme, changes = code, names
    else:
        scheme, changes = (NATURAL, names) if names[0] in CHANGES else (names[0], names[1:])
    for each in changes:
        if each not in CHANGES:
            raise ConfigError(
                f"--partition {name}: {each} divides examples among clients; a partition has only "
                "one such scheme, and it is the first"
            )
    if len(set(changes)) < len(changes):
        raise ConfigError(f"--partition {name}: give each change once")
    return scheme, tuple(changes)


def split_code_of_scheme(name: str) -> tuple[str | None, list[str]]:
    """Returns the FILE.py or FILE.py:NAME at the start of a partition, else None; and the rest.

    Args:
        name: The name of a partition; nothing in it is checked here.
    """
    match = _CODE.fullmatch(name)
    if match is None:
        return None, name.split("+")
    return match[1], match[2].split("+")[1:]


def describe_partition(name: str, options: Mapping[str, Value]) -> str:
    """Returns a partition with its options on one line, for provenance.

    A user's function appears with its name alone, because its file may be moved.
    """
    code, changes = split_code_of_scheme(name)
    if code is not None:
        file, _, function = code.replace("\\", "/").rpartition("/")[2].partition(":")
        name = "+".join([function or file, *changes])
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def _joined(name: str, scheme: Entry, changes: tuple[str, ...]) -> Entry:
    """Returns the entry that combines a partition with changes of its examples or labels."""
    parts = [scheme, *(CHANGES[each] for each in changes)]
    options = {option.name: option for part in parts for option in part.options}
    return replace(
        scheme,
        name=name,
        doc=" Then: ".join(part.doc for part in parts),
        source="; ".join(part.source for part in parts),
        options=tuple(options.values()),
    )
