"""The table of attacks by hostile clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from fedcli.dataclass import dataclass
from fedcli.settings.options import MAX_FLOAT, Entry, Option, Value, table
from fedcli.settings.vocabulary import AUTO, COLLUDERS, MAX_CLASSES, OMNISCIENT

_RARE = 0.1  # the default share of a class's images that are rare
ANY_CLASS = -1  # in place of a class: the user has not chosen one
_MAX_ROUNDS = 2**31 - 1


@dataclass(frozen=True)
class AttackEntry(Entry):
    """A row of `ATTACKS`.

    Its `code` makes the `UpdateAttack`, which replaces the updates of the attackers. It takes the
    options that have the names of its fields.

    Attributes:
        poisons: The Python class that changes the attackers' examples, written like `code`; empty
            if the attackers train on their own examples. It takes options as `code` does.
    """

    poisons: str = field(default="", kw_only=True)


_UPDATES = "fedcli.learning.updates.attacks"
_POISON = "fedcli.federation.poisoning"

_WHEN = (
    Option("start", 1, "First round of the attack.", 1, _MAX_ROUNDS),
    Option("stop", 0, "Last round of the attack; 0: the last of the run.", 0, _MAX_ROUNDS),
    Option("every", 1, "Every N-th round is attacked, beginning with round start.", 1, _MAX_ROUNDS),
)
_KNOWN = Option(
    "knowledge",
    OMNISCIENT,
    "Updates that the attackers know: those of all honest clients of the cohort (omniscient), or "
    "only those that they would send themselves if they were honest (colluders).",
    choices=(OMNISCIENT, COLLUDERS),
)
_DEVIATION = Option(
    "deviation",
    "std",
    "Direction: the standard deviation by coordinate, the unit vector of the mean, or its signs.",
    choices=("std", "unit", "sign"),
)
_TARGET = Option("target", 0, "Class that the attackers want to be predicted.", 0, MAX_CLASSES - 1)
_POISONED = Option("poison", 0.5, "Share of an attacker's examples that are poisoned.", 0.0, 1.0)
_BOOST = (
    Option(
        "boost",
        AUTO,
        "Factor of the attackers' updates, a number; auto: the sum of all weights divided by the "
        "attackers' weights, so that they replace the model.",
        0.0,
        MAX_FLOAT,
        (AUTO,),
        or_number=True,
    ),
    Option(
        "radius",
        0.0,
        "Largest L2 norm of a boosted update: attackers project their parameters after each of "
        "their epochs, and the update before they send it. 0: no limit.",
        0.0,
        MAX_FLOAT,
    ),
)


def _check_when(options: Mapping[str, Value]) -> str | None:
    start, stop = options["start"], options["stop"]
    assert isinstance(start, int)
    assert isinstance(stop, int)
    if stop and stop < start:
        return f"stop {stop} comes before start {start}; choose {start} or more, or 0 for no end"
    return None


def _check_backdoor(options: Mapping[str, Value]) -> str | None:
    if options["poison"] == 0.0:
        return "poison 0 leaves all examples as they are; choose a share above 0"
    return _check_when(options)


def _check_edge(options: Mapping[str, Value]) -> str | None:
    if options["source"] == options["target"]:
        return f"source and target are both {options['target']}; choose two classes"
    if options["data"] and options["rare"] != _RARE:
        return (
            f"rare {options['rare']} chooses among the attackers' own images, and data gives "
            "others; leave out one of the two"
        )
    return _check_backdoor(options)


def _check_flip(options: Mapping[str, Value]) -> str | None:
    source, target = options["source"], options["target"]
    if (source == ANY_CLASS) != (target == ANY_CLASS):
        return "source and target belong together; give both, or neither to flip all classes"
    if source == target != ANY_CLASS:
        return f"source and target are both {target}; choose two classes"
    return _check_when(options)


ATTACKS = table(
    AttackEntry(
        "sign-flip",
        "The attackers send their own update multiplied by -scale.",
        "Li et al. 2019, RSA, arXiv 1811.03761",
        (Option("scale", 1.0, "Factor.", 0.0, MAX_FLOAT), *_WHEN),
        _check_when,
        requirement="an attacker's own update",
        cost="one pass over the attackers' updates",
        code=f"{_UPDATES}.single:SignFlip",
    ),
    AttackEntry(
        "gaussian",
        "The attackers send noise with the norm of their own update: N(0, (std * norm)^2 / P) in "
        "each of P coordinates.",
        "fedcli",
        (Option("std", 1.0, "Factor of the norm.", 0.0, MAX_FLOAT), *_WHEN),
        _check_when,
        requirement="an attacker's own update, of which it keeps the norm",
        cost="as many normal numbers as the attackers' updates have values",
        code=f"{_UPDATES}.single:Gaussian",
    ),
    AttackEntry(
        "zero",
        "The attackers send zeros, as if they had not trained.",
        "fedcli",
        _WHEN,
        _check_when,
        requirement="nothing",
        cost="hardly anything",
        code=f"{_UPDATES}.single:Zero",
    ),
    AttackEntry(
        "nan",
        "The attackers send NaN. The server drops such updates before any aggregator.",
        "fedcli",
        _WHEN,
        _check_when,
        requirement="nothing",
        cost="hardly anything",
        code=f"{_UPDATES}.single:NotFinite",
    ),
    AttackEntry(
        "label-flip",
        "The attackers train on wrong labels: class y becomes K - 1 - y, or source becomes target.",
        "Biggio et al. 2012, arXiv 1206.6389; Tolpegin et al. 2020, arXiv 2007.08432",
        (
            Option("source", ANY_CLASS, "Class that is relabelled; -1: all.", -1, MAX_CLASSES - 1),
            Option(
                "target",
                ANY_CLASS,
                "New label of the class source; -1: each label y becomes K - 1 - y.",
                -1,
                MAX_CLASSES - 1,
            ),
            *_WHEN,
        ),
        _check_flip,
        requirement="the attackers' own examples",
        cost="their labels change when they are read",
        poisons=f"{_POISON}:LabelFlip",
    ),
    AttackEntry(
        "alie",
        "A little is enough: the mean of the known updates minus z standard deviations by "
        "coordinate, with the largest z that still looks like an honest update.",
        "Baruch, Baruch and Goldberg 2019, arXiv 1902.06156",
        (
            Option(
                "z",
                AUTO,
                "Number of deviations; auto: the paper's, for this cohort size.",
                0.0,
                MAX_FLOAT,
                (AUTO,),
                or_number=True,
            ),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="fewer than half of the updates of a round are the attackers'",
        cost="one pass over the known updates",
        code=f"{_UPDATES}.malicious:LittleIsEnough",
    ),
    AttackEntry(
        "ipm",
        "Inner product manipulation: minus epsilon times the mean of the known updates.",
        "Xie, Koyejo and Gupta 2020, arXiv 1903.03936",
        (
            Option(
                "epsilon", 0.5, "Factor; small ones fool rules that drop outliers.", 0.0, MAX_FLOAT
            ),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="a known update",
        cost="one pass over the known updates",
        code=f"{_UPDATES}.malicious:InnerProduct",
    ),
    AttackEntry(
        "min-max",
        "As far from the mean as possible, but no farther from any known update than the two "
        "farthest known updates are from each other.",
        "Shejwalkar and Houmansadr 2021, NDSS, algorithm 1",
        (_DEVIATION, _KNOWN, *_WHEN),
        _check_when,
        requirement="a known update",
        cost="n^2 distances, and two passes over the known updates",
        code=f"{_UPDATES}.deviations:MinMax",
    ),
    AttackEntry(
        "min-sum",
        "As far from the mean as possible; but the sum of its squared distances to the known "
        "updates is at most as large as the same sum for a known update; see limit.",
        "Shejwalkar and Houmansadr 2021, NDSS",
        (
            _DEVIATION,
            Option(
                "limit",
                "max",
                "Bound of this sum: the largest sum for a known update (max, as in the paper), or "
                "the smallest (min, as in the authors' code).",
                choices=("max", "min"),
            ),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="a known update",
        cost="n^2 distances, and two passes over the known updates",
        code=f"{_UPDATES}.deviations:MinSum",
    ),
    AttackEntry(
        "fang-trimmed",
        "Against median and trimmed mean: values beyond the extremes of the known updates, "
        "opposite to the sign of their mean.",
        "Fang et al. 2020, arXiv 1911.11815, section 4.4",
        (
            Option("factor", 2.0, "How far beyond the extremes: the paper's b.", 1.0, MAX_FLOAT),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="a known update",
        cost="one pass over the known updates",
        code=f"{_UPDATES}.malicious:FangTrimmed",
    ),
    AttackEntry(
        "fang-krum",
        "Against Krum: minus lambda times the signs of the mean. Lambda is halved until Krum "
        "chooses an attacker.",
        "Fang et al. 2020, arXiv 1911.11815, section 4.3",
        (_KNOWN, *_WHEN),
        _check_when,
        requirement="three known updates; with f attackers, more than 2 f + 1 updates in a round",
        cost="n^2 distances, and three passes over the known updates",
        code=f"{_UPDATES}.against_krum:FangKrum",
    ),
    AttackEntry(
        "mimic",
        "The attackers copy the known client that is farthest along the direction of largest "
        "variance, so that its data count too much.",
        "Karimireddy, He and Jaggi 2022, arXiv 2006.09365",
        (
            Option(
                "warmup",
                10,
                "The direction is estimated in the first N rounds that have attackers.",
                1,
                _MAX_ROUNDS,
            ),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="two known updates",
        cost="two to five passes over the known updates; one vector kept",
        code=f"{_UPDATES}.mimic:Mimic",
    ),
    AttackEntry(
        "optimal",
        "The mean minus gamma times a deviation, with the gamma that changes the result of the "
        "run's aggregator most, found by a line search.",
        "El Mhamdi, Guerraoui and Rouault 2021, arXiv 2003.00010",
        (
            _DEVIATION,
            Option("evaluations", 16, "Number of calls of the aggregator in a round.", 1, 1000),
            _KNOWN,
            *_WHEN,
        ),
        _check_when,
        requirement="mean, or an aggregator of individual updates",
        cost="as many calls of the aggregator as the option evaluations says",
        code=f"{_UPDATES}.deviations:Optimal",
    ),
    AttackEntry(
        "backdoor",
        "The attackers stamp a trigger of full ink on a share of their examples, label these as "
        "the target, and boost their updates so that they replace the model.",
        "Gu et al. 2017, arXiv 1708.06733; Bagdasaryan et al. 2020, arXiv 1807.00459",
        (
            _TARGET,
            _POISONED,
            Option("trigger_size", 3, "Side of the square in pixels.", 1, 1024),
            *_BOOST,
            *_WHEN,
        ),
        _check_backdoor,
        requirement="the attackers' own examples; for boost=auto the sum of all weights",
        cost="examples are stamped when they are read; one pass over the attackers' updates",
        code=f"{_UPDATES}.single:Boost",
        poisons=f"{_POISON}:Backdoor",
    ),
    AttackEntry(
        "edge-case",
        "A backdoor without trigger: rare images of the class source replace a share of the "
        "attackers' examples and are labelled as the target. Rare images are those farthest from "
        "the class's mean image, or those of another dataset.",
        "Wang et al. 2020, arXiv 2007.05084; rarity by distance of pixels: fedcli",
        (
            Option("source", 7, "Class of the rare images.", 0, MAX_CLASSES - 1),
            Option(
                "target", 1, "Class that the attackers want to be predicted.", 0, MAX_CLASSES - 1
            ),
            _POISONED,
            Option(
                "rare",
                _RARE,
                "Share of the class's images that count as rare; not used with data.",
                0.001,
                1.0,
            ),
            Option(
                "data",
                "",
                "Dataset, a name or a path as for --data, whose images of the class source are the "
                "rare ones (the paper's way); empty: the attackers' own images.",
            ),
            *_BOOST,
            *_WHEN,
        ),
        _check_edge,
        requirement="an example of the class source among those of the attackers, or in data",
        cost="all examples of the attackers, or up to 1,000 images of the dataset data=NAME, are "
        "read once; one pass over the attackers' updates",
        code=f"{_UPDATES}.single:Boost",
        poisons="fedcli.federation.edge_cases:EdgeCase",
    ),
)
