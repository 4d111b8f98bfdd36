"""The attack of a run: the attackers, their examples, and the updates that they send."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import plan_of
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, plural
from fedcli.federation import poisoning
from fedcli.federation.attackers import chance_of_more, choose_attackers, parse_attackers
from fedcli.federation.cohorts import Cohorts
from fedcli.federation.poisoning import ChangedClients, Poisoning
from fedcli.federation.sampled_clients import open_sampled_clients
from fedcli.lazy import load
from fedcli.learning.aggregators.contract import Aggregator, first_state
from fedcli.learning.aggregators.robust import count_of
from fedcli.learning.updates.attacks.stage import AttackedRounds, AttackStage
from fedcli.settings.options import Value
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.attacks import ATTACKS, AttackEntry
from fedcli.settings.vocabulary import AUTO, BUCKET_JOINT, OMNISCIENT

# Aggregators that, with any options, tolerate attackers who send less than half of the updates.
_HALF = ("median", "geometric-median", "centered-clipping")
_SMALL = 1e-4  # a risk below it is not worth a warning


@dataclass(frozen=True, eq=False)
class Attack:
    """The attack of a run, with at least one attacker.

    Attributes:
        entry: Its row of the table of attacks.
        options: Its options, including defaults.
        attackers: The ids of the attackers.
        poisoning: The change of their examples; None if they do not change.
    """

    entry: AttackEntry
    options: Mapping[str, Value]
    attackers: frozenset[str]
    poisoning: Poisoning | None

    @property
    def rounds(self) -> AttackedRounds:
        """The rounds in which the attackers attack."""
        return AttackedRounds(*(int(self.options[each]) for each in ("start", "stop", "every")))  # type: ignore[arg-type]

    def poisoned(self, train: ClientData) -> ClientData:
        """Returns the split train as the clients train on it in attacked rounds."""
        if self.poisoning is None:
            return train
        return ChangedClients(train, self.poisoning.poison, self.attackers)

    def stage(self, aggregator: Aggregator) -> AttackStage | None:
        """Returns the stage that replaces the attackers' updates; None if they send their own.

        Raises:
            ConfigError: The attack needs to call the aggregator, and cannot call this one.
        """
        plain = {"boost": 1.0, "radius": 0.0}  # a backdoor that is not boosted
        if not self.entry.code or plain.items() <= self.options.items():
            return None
        attack_class = load(self.entry.code)
        arguments: dict[str, Any] = {
            **self.options,
            "rule": lambda deltas: _aggregate(aggregator, deltas),
        }
        names = [each.name for each in fields(attack_class)]
        request = aggregator.request(aggregator.init())
        if "rule" in names and (request.bounds is not None or request.root_examples):
            raise ConfigError(
                f"--attack {self.entry.name} calls the aggregator with updates only, and this "
                "aggregator needs more; choose one that needs only updates, such as --aggregator "
                "median"
            )
        attack = attack_class(**{name: arguments[name] for name in names})
        knowledge = str(self.options.get("knowledge", OMNISCIENT))
        return AttackStage(attack, self.attackers, self.rounds, knowledge)

    def max_distances(self, round_num: int, client_ids: Sequence[str]) -> dict[str, float] | None:
        """Returns the largest allowed distance of each attacker's model from the global model.

        An attacker with a `radius` projects its parameters after each of its epochs, so that its
        boosted update is not longer than the radius (Wang et al. 2020, arXiv 2007.05084). With
        boost=auto, the factor depends on weights that are not known before the training; here it is
        the number of clients divided by the number of attackers. The update that is sent is never
        longer than the radius.

        Args:
            round_num: Rounds completed so far.
            client_ids: The clients that train in this round.

        Returns:
            L2 distances by client id; None if there is no limit.
        """
        radius: Any = self.options.get("radius")
        attackers = [each for each in client_ids if each in self.attackers]
        if not radius or not attackers or not self.rounds.has(round_num):
            return None
        boost: Any = self.options["boost"]
        factor = len(client_ids) / len(attackers) if boost == AUTO else float(boost)
        return dict.fromkeys(attackers, radius / factor) if factor else None

    def note(self, line: dict[str, Any], client_ids: Sequence[str]) -> None:
        """Adds to a round's line how many attackers trained, and how many of them were kept.

        Args:
            line: The line of metrics.jsonl. Some aggregators record there which clients they kept.
            client_ids: The clients that trained, in cohort order.
        """
        counts = {"attackers_in_cohort": self._count(client_ids)}
        kept = line["aggregator"].get("kept")
        if kept is not None:
            counts["attackers_kept"] = self._count(_members(kept, client_ids))
        updates = line.setdefault("updates", {})
        updates["attack"] = {**counts, **updates.get("attack", {})}

    def _count(self, client_ids: Sequence[str]) -> int:
        return sum(each in self.attackers for each in client_ids)


def _members(kept: Iterable[str], client_ids: Collection[str]) -> list[str]:
    """The clients whose updates a rule kept; a rule may report buckets of clients."""
    of_cohort = set(client_ids)
    parts = ([each] if each in of_cohort else each.split(BUCKET_JOINT) for each in kept)
    return [member for members in parts for member in members]


def open_attack(
    config: RunConfig, train: ClientData, cohorts: Cohorts
) -> tuple[RunConfig, Attack | None]:
    """Returns a valid config, with ids in place of a file of attackers' ids, and its attack.

    Returns:
        No attack (None) if there are no attackers: the run is the same as one without attack.

    Raises:
        ConfigError: The attackers do not exist, or an option does not fit the data.
        DataError: The attackers' data are bad.
    """
    name = config.attack
    if name is None:
        return config, None
    assert config.attackers is not None  # `settings` has checked that
    selection = parse_attackers(config.attackers)
    attackers = choose_attackers(selection, cohorts, train.source, config.seed)
    if selection.ids is not None:
        config = replace(config, attackers=selection.ids)
    if not attackers:
        return config, None
    entry: AttackEntry = ATTACKS[name]
    if name == "alie" and cohorts.fixed is not None:
        _check_minority(len(attackers), len(cohorts.fixed))
    options = config.attack_options
    poisons = poisoning.build(entry, options, train, attackers, config.seed)
    return config, Attack(entry, options, attackers, poisons)


def attack_of_run(config: RunConfig, train: ClientData) -> Attack | None:
    """Returns the attack of a run that has been trained; None if it has none.

    Args:
        config: Config of the run.
        train: The split train of the run's data.
    """
    if config.attack is None:
        return None
    sampled = open_sampled_clients(config, train, plan_of(config), [])[1]
    return open_attack(config, train, sampled.cohorts)[1]


def poisoned_splits(
    config: RunConfig, splits: Mapping[str, ClientData]
) -> tuple[dict[str, ClientData], tuple[str, ...]]:
    """Returns the splits of a run's data as its clients see them in attacked rounds, and a note."""
    attack = attack_of_run(config, splits["train"]) if "train" in splits else None
    if attack is None or attack.poisoning is None:
        return dict(splits), ()
    note = (
        f"train: the examples of {plural(len(attack.attackers), 'attacker')} are shown as the "
        f"attack {attack.entry.name} changes them"
    )
    return {**splits, "train": attack.poisoned(splits["train"])}, (note,)


def notes_on_no_attackers(config: RunConfig, cohorts: Cohorts) -> list[str]:
    """Returns a note if `--attackers` is a share that is less than one client."""
    share = parse_attackers(config.attackers or "0").share
    if share is None:
        return []
    return [
        f"no client attacks: --attackers {share:g} of {_num_candidates(cohorts):,} clients is "
        "less than one; give a larger share, or a number"
    ]


def notes_of(attack: Attack, config: RunConfig, cohorts: Cohorts) -> list[str]:
    """Returns notes: the number of attackers, and the risk that they are too many in a cohort."""
    population = _num_candidates(cohorts)
    count = len(attack.attackers)
    start = attack.options["start"]
    if int(start) > config.rounds:  # type: ignore[arg-type]
        return [
            f"no round is attacked: --attack-option start={start} is after the last of "
            f"{config.rounds:,} rounds; choose an earlier start, or more --rounds"
        ]
    notes = [f"{count:,} of {plural(population, 'client')} attack: {attack.entry.name}"]
    size = len(cohorts.fixed) if cohorts.fixed is not None else cohorts.sampler.size  # type: ignore[union-attr]
    f = tolerated(config.aggregator, config.aggregator_options, size)
    if f is None:
        return notes
    chance = chance_of_more(cohorts, attack.attackers, f)
    if chance is None or chance < _SMALL:
        return notes
    what = f"--aggregator {config.aggregator} tolerates {f} attackers"
    if cohorts.fixed is not None:
        return [*notes, f"{what}, and the cohort of {size} has {count}"]
    return [*notes, f"{what}; a cohort of {size} has more with probability {chance:.6f} per round"]


def tolerated(aggregator: str, options: Mapping[str, Value], size: int) -> int | None:
    """Returns how many attackers per cohort an aggregator tolerates; None if that is not known.

    Args:
        aggregator: Its name.
        options: Its options; see `count_of` for shares of the cohort.
        size: Number of clients in the cohort.
    """
    if aggregator == "mean":
        return 0
    for name in ("num_byzantine", "trim"):
        if name in options:
            return count_of(float(options[name]), size)  # type: ignore[arg-type]
    return (size - 1) // 2 if aggregator in _HALF else None


def _num_candidates(cohorts: Cohorts) -> int:
    """The number of clients from which the attackers are drawn."""
    return len(cohorts.population if cohorts.fixed is None else set(cohorts.fixed))


def _check_minority(num_attackers: int, size: int) -> None:
    if 2 * num_attackers >= size:
        raise ConfigError(
            f"--attack alie needs a majority of honest clients, but {num_attackers} of the {size} "
            "clients of each cohort attack; choose fewer --attackers than half"
        )


def _aggregate(aggregator: Aggregator, deltas: Any) -> Any:
    state = first_state(aggregator, len(deltas.delta_sum))
    return aggregator.aggregate(state, deltas)[0]
