"""Pre-aggregators, which replace the deltas of a cohort before a rule combines them.

Bucketing: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", ICLR 2022, https://arxiv.org/abs/2006.09365. Nearest-neighbour mixing: Allouah,
Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine
ML under Heterogeneity", AISTATS 2023, https://arxiv.org/abs/2302.01772. Adaptive robust clipping:
Allouah, Guerraoui, Gupta, Jellouli, Rizk and Stephan, "Adaptive Gradient Clipping for Robust
Federated Learning", ICLR 2025, https://arxiv.org/abs/2405.14432.

The new deltas are written to a temporary file, like those of the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.learning.aggregators.contract import Aggregator, build, first_state, problem_of
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import count_of, skipped
from fedcli.learning.engines.deltas import DeltaRequest, Deltas, RoundContext, mapped_rows
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import BUCKET_JOINT


class Mixing(NamedTuple):
    """The new deltas as sums of the old ones.

    Attributes:
        factors: The factor of each old delta in each new one, float64 [num_new, num]. A row sums to
            1 unless it clips a delta.
        clients: For each new delta, the id of the client whose delta it replaces; for a bucket,
            the ids of the clients in it.
        metrics: Numbers by name.
    """

    factors: NDArray[np.float64]
    clients: tuple[str, ...]
    metrics: dict[str, Any]


class PreAggregator(Protocol):
    """Makes new deltas from the deltas that count."""

    def num_out(self, num_clients: int) -> int:
        """Returns the number of new deltas that are made from `num_clients` deltas."""
        ...

    def problem(self, num_clients: int) -> str | None:
        """Returns why the deltas of `num_clients` clients cannot be mixed, or None."""
        ...

    def mix(self, counted: CountedDeltas) -> Mixing:
        """Returns how the new deltas follow from the old ones."""
        ...


@dataclass(frozen=True)
class Bucketing:
    """Means of `size` deltas each (the last may have fewer), in a new random order every round.

    If f old deltas are wrong, up to f new ones are wrong, because each wrong delta may be in a
    different bucket.
    """

    size: int = 2

    def num_out(self, num_clients: int) -> int:
        """See `PreAggregator`."""
        return -(-num_clients // self.size)

    def problem(self, num_clients: int) -> str | None:
        """See `PreAggregator`."""
        return None

    def mix(self, counted: CountedDeltas) -> Mixing:
        """See `PreAggregator`."""
        context = counted.deltas.round
        seed, round_num = (context.seed, context.round_num) if context else (0, 0)
        order = Stream(stream_key(seed, Purpose.BUCKETS, round_num=round_num)).permutation(
            counted.num
        )
        return self.in_order(counted, order)

    def in_order(self, counted: CountedDeltas, order: NDArray[np.int64]) -> Mixing:
        """Returns the means of consecutive deltas in a given order."""
        factors = np.zeros((self.num_out(counted.num), counted.num))
        clients, ids = [], counted.client_ids
        for row, first in zip(factors, range(0, counted.num, self.size), strict=True):
            members = order[first : first + self.size]
            row[members] = 1.0 / len(members)
            clients.append(BUCKET_JOINT.join(ids[member] for member in members))
        return Mixing(factors, tuple(clients), {})


@dataclass(frozen=True)
class _OnePerDelta:
    """A pre-aggregator that makes one new delta from each delta; up to f deltas may be wrong."""

    num_byzantine: float = 0.1

    def num_out(self, num_clients: int) -> int:
        """See `PreAggregator`."""
        return num_clients

    def problem(self, num_clients: int) -> str | None:
        """See `PreAggregator`."""
        num_bad = count_of(self.num_byzantine, num_clients)
        if 2 * num_bad < num_clients:
            return None
        return (
            f"fewer than half of the deltas may be wrong, not {num_bad} of {num_clients}; choose "
            "more clients or a smaller num_byzantine"
        )


@dataclass(frozen=True)
class NearestNeighbourMixing(_OnePerDelta):
    """Each delta becomes the mean of the n - f deltas nearest to it, itself included."""

    def mix(self, counted: CountedDeltas) -> Mixing:
        """See `PreAggregator`."""
        num_near = counted.num - count_of(self.num_byzantine, counted.num)
        distances = counted.rows.square_distances()
        np.fill_diagonal(distances, -1.0)  # each delta itself comes first, even if others equal it
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :num_near]
        factors = np.zeros_like(distances)
        np.put_along_axis(factors, nearest, 1.0 / num_near, axis=1)
        return Mixing(factors, tuple(counted.client_ids), {})


@dataclass(frozen=True)
class AdaptiveClipping(_OnePerDelta):
    """Clips the k deltas of largest norm to the next largest norm; k = floor(2 f (n - f) / n)."""

    def mix(self, counted: CountedDeltas) -> Mixing:
        """See `PreAggregator`."""
        num_bad = count_of(self.num_byzantine, counted.num)
        num_clipped = 2 * num_bad * (counted.num - num_bad) // counted.num
        norms = counted.rows.distances_to(counted.origin) * counted.deltas.scale
        bound = float(np.sort(norms)[::-1][num_clipped])
        scales = np.ones(counted.num)
        np.divide(bound, norms, out=scales, where=norms > bound)
        metrics = {"clipping_norm": bound, "clipped_count": int(np.count_nonzero(norms > bound))}
        return Mixing(np.diag(scales), tuple(counted.client_ids), metrics)


@dataclass(frozen=True)
class PreAggregated:
    """A pre-aggregator, and the aggregator that combines the new deltas.

    Attributes:
        before: The pre-aggregator.
        aggregator: Combines the new deltas, all of which have weight 1.
    """

    selected_by: ClassVar[str] = "--pre-aggregator"

    before: PreAggregator
    aggregator: Aggregator

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the aggregator's state, and the number of skipped rounds."""
        return {"num_skipped": 0, **first_state(self.aggregator, num_params)}

    def init(self) -> dict[str, Any]:
        """Returns the state for a model without parameters."""
        return self.init_for(0)

    def problem(self, num_clients: int) -> str | None:
        """Returns why the deltas of `num_clients` clients cannot be combined, or None."""
        if (problem := self.before.problem(num_clients)) is not None:
            return problem
        num_out = self.before.num_out(num_clients)
        problem = problem_of(self.aggregator_among(num_clients), num_out)
        if problem is None or num_out == num_clients:
            return problem
        return f"the {num_clients:,} deltas of a round become {num_out:,}; {problem}"

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas, and what the aggregator requests."""
        return self.aggregator.request(self.rule_state(state))._replace(all_rows=True)

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the aggregator's result for the new deltas."""
        counted = CountedDeltas.of(deltas)
        if counted is None or self.problem(counted.num) is not None:
            return skipped(state, deltas)
        mixing = self.before.mix(counted)
        mixed = _mixed(counted, mixing)
        rule = self.aggregator_among(counted.num)
        combined, after, metrics = rule.aggregate(self.rule_state(state), mixed)
        return combined, {**state, **after}, {**metrics, **mixing.metrics}

    def rule_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the aggregator's own part of the state."""
        if self._rule_counts_skipped:
            return dict(state)
        return {name: value for name, value in state.items() if name != "num_skipped"}

    @cached_property
    def _rule_counts_skipped(self) -> bool:
        """Whether the aggregator's own part of the state has the number of skipped rounds, too."""
        return "num_skipped" in first_state(self.aggregator, 0)

    def aggregator_among(self, num_clients: int) -> Aggregator:
        """Returns the aggregator, set to the number of wrong deltas in a cohort of `num_clients`.

        Bucketing makes fewer deltas, but the number of wrong deltas may stay the same.
        """
        for_cohort = getattr(self.aggregator, "for_cohort", None)
        chosen: Aggregator = self.aggregator if for_cohort is None else for_cohort(num_clients)
        return chosen


def _mixed(counted: CountedDeltas, mixing: Mixing) -> Deltas:
    """Returns new deltas, all of weight 1, in a file of their own."""
    deltas, num_new = counted.deltas, len(mixing.factors)
    rows = mapped_rows(num_new, counted.num_params)
    row_sums = mixing.factors.sum(axis=1)
    scaled = mixing.factors * deltas.scale
    counted.rows.mix(scaled, rows, deltas.shift, None if deltas.shift is None else row_sums)
    root = None if deltas.root is None else counted.from_rows(deltas.root)
    return replace(deltas_of_rows(deltas, rows, mixing.clients), root=root)


def deltas_of_rows(deltas: Deltas, rows: NDArray[np.float32], clients: tuple[str, ...]) -> Deltas:
    """Returns the deltas of a round with other rows, each of weight 1.

    Args:
        deltas: The deltas of the round.
        rows: The new deltas, float32 [num_new, num_params].
        clients: As in `Mixing`.
    """
    num_new = len(rows)
    stats = np.zeros(num_new, native.STATS)
    stats["weight"], stats["is_finite"] = 1.0, 1
    new = CountedDeltas(replace(deltas, rows=rows, stats=stats), np.arange(num_new))
    context = deltas.round or RoundContext(0, 0, (), ())
    return replace(
        new.deltas,
        delta_sum=new.rows.weighted_sum(np.ones(num_new)),
        weight_sum=float(num_new),
        root=None,
        scale=1.0,
        shift=None,
        round=context._replace(client_ids=clients, occurrences=(0,) * num_new),
    )


def build_after(
    pre_aggregator: str,
    name: str,
    options: Mapping[str, Value] | None = None,
    pre_options: Mapping[str, Value] | None = None,
) -> Aggregator:
    """Returns a pre-aggregator together with an aggregator that combines its new deltas.

    Args:
        pre_aggregator: A key of `tables.PRE_AGGREGATORS`.
        name: As for `aggregators.build`.
        options: As for `aggregators.build`.
        pre_options: Options of the pre-aggregator; those not given take their defaults.

    Raises:
        ConfigError: A name or an option is unknown, a value is not allowed, or the two cannot be
            combined.
        PartError: The user's file fails, or breaks the contract.
    """
    entry = opt.choose(tables.PRE_AGGREGATORS, pre_aggregator, "pre-aggregator")
    before: PreAggregator = load(entry.code)(**opt.resolve(entry, pre_options or {}))
    aggregator = build(name, options)
    _check_goes_with(pre_aggregator, name, aggregator)
    return PreAggregated(before, aggregator)


def _check_goes_with(name: str, aggregator_name: str, aggregator: Aggregator) -> None:
    """Refuses an aggregator that needs the clients' own deltas.

    Raises:
        ConfigError: The aggregator bounds individual deltas, or keeps the deltas of each client.
    """
    if aggregator_name == "foolsgold":
        why = "needs the deltas that clients sent, which a pre-aggregator mixes or clips"
    elif aggregator.request(aggregator.init()).bounds is not None:
        why = "bounds the deltas of individual clients"
    else:
        return
    raise ConfigError(
        f"--pre-aggregator {name} with --aggregator {aggregator_name}: {aggregator_name} {why}; "
        "choose mean, median or another robust rule"
    )
