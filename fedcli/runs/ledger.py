"""The bytes that the clients of a run receive and send, round by round, from the run's folder.

`fedcli.runs.client_bytes` has the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, RunError
from fedcli.runs.client_bytes import ByteRule, secure_sum_of, setup_bytes, with_amounts
from fedcli.runs.record import RunRecord
from fedcli.settings import tables
from fedcli.settings.tables.algorithms import AlgorithmEntry

_FLOAT = 4  # bytes
_DRAWN_BY_NUMBER = ("fixed", "uniform", "tff", "with-replacement", "by-size", "cyclic")


class RoundBytes(NamedTuple):
    """The bytes of one round.

    Attributes:
        round_num: 1 for the first.
        num_down: Number of clients that received something.
        num_up: Number of clients that sent something.
        bytes_down: Bytes received by all of them together.
        bytes_up: Bytes sent by all of them together.
    """

    round_num: int
    num_down: int
    num_up: int
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Ledger:
    """The bytes of a run.

    Attributes:
        num_params: The number of parameters of the model.
        rounds: The rounds in order.
    """

    num_params: int
    rounds: tuple[RoundBytes, ...]

    @cached_property
    def bytes_down(self) -> int:
        """Bytes that clients received in all rounds."""
        return sum(each.bytes_down for each in self.rounds)

    @cached_property
    def bytes_up(self) -> int:
        """Bytes that clients sent in all rounds."""
        return sum(each.bytes_up for each in self.rounds)

    @property
    def up_share(self) -> float | None:
        """`bytes_up` as a share of 4 bytes per parameter and client; None if no client sent."""
        dense = _FLOAT * self.num_params * sum(each.num_up for each in self.rounds)
        return self.bytes_up / dense if dense else None

    def megabytes(self, *, up_alone: bool) -> dict[int, float]:
        """Returns the megabytes (10^6 bytes) up to the end of each round, by round; 0 for round 0.

        Args:
            up_alone: Whether to count only the bytes that clients send, not those that they
                receive.
        """
        total, by_round = 0, {0: 0.0}
        for each in self.rounds:
            total += each.bytes_up + (0 if up_alone else each.bytes_down)
            by_round[each.round_num] = total / 1e6
        return by_round


def ledger_of(run: RunRecord) -> Ledger | None:
    """Returns the ledger of a run.

    Returns:
        None if it is not known: clients send no models (centralized), or the run's folder lacks the
        size of the model or of the cohorts. Runs of earlier versions lack the size of cohorts if it
        varies.

    Raises:
        RunError: A file of the run is damaged.
    """
    entry = tables.ALGORITHMS.find(str(run.options.get("algorithm", "fedavg")))
    num_params = _num_params(run)
    if entry is None or entry.pools_clients or num_params is None:
        return None
    rounds = list(_rounds(run, with_amounts(entry, run.provenance), num_params))
    return None if None in rounds else Ledger(num_params, tuple(filter(None, rounds)))


def _num_params(run: RunRecord) -> int | None:
    recorded = run.provenance.get("parameters")
    if isinstance(recorded, int):
        return recorded
    try:
        return sum(each.size for each in run.weights().trainable)
    except (ConfigError, RunError):  # there is no checkpoint
        return None


def _byte_rule(run: RunRecord, entry: AlgorithmEntry, num_params: int) -> ByteRule:
    """The rule for one client of a run."""
    prefix = "client_options."
    options = {
        name.removeprefix(prefix): value
        for name, value in run.options.items()
        if name.startswith(prefix)
    }
    return ByteRule.of(
        entry,
        num_params,
        is_compressed="compress" in run.options and not run.options.get("secure_sum"),
        optimizer=run.options.get("client_optimizer"),
        optimizer_options=options,
    )


def _of_round(
    rule: ByteRule, line: Mapping[str, Any], cohort: _Cohort, delta_bytes: int
) -> RoundBytes:
    """The bytes of the round that a line of metrics.jsonl describes."""
    compress = line.get("updates", {}).get("compress")
    secure_sum = secure_sum_of(line)
    if secure_sum is not None:
        extra_down = 0 if compress is None else int(compress.get("extra_bytes_down", 0))
        return _of_secure_sum(rule, line["round"], secure_sum, cohort, extra_down)
    if compress is None:
        down, num_up = rule.down, cohort.num_reports
        deltas = delta_bytes * num_up
    else:
        down = rule.down + int(compress.get("extra_bytes_down", 0))
        num_up, deltas = int(compress["num_sent"]), int(compress["payload_bytes"])
    num_up += cohort.num_unused
    return RoundBytes(
        line["round"],
        cohort.num_selected,
        num_up,
        cohort.num_selected * down,
        deltas + delta_bytes * cohort.num_unused + num_up * rule.extra_up,
    )


def _of_secure_sum(
    rule: ByteRule,
    round_num: int,
    secure_sum: Mapping[str, Any],
    cohort: _Cohort,
    extra_down: int,
) -> RoundBytes:
    """The bytes of a round with secure sums; the algorithm sends its delta alone."""
    down = rule.down + int(secure_sum.get("extra_bytes_down", 0)) + extra_down
    num_up = cohort.num_reports + cohort.num_unused
    return RoundBytes(
        round_num,
        cohort.num_selected,
        num_up,
        cohort.num_selected * down + setup_bytes(secure_sum, "down", cohort.num_selected),
        setup_bytes(secure_sum, "up", cohort.num_selected)
        + num_up * int(secure_sum["payload_bytes"]),
    )


class _Cohort(NamedTuple):
    """The numbers of clients that received and that sent something in a round.

    Attributes:
        num_selected: Number of clients that received something.
        num_reports: Number of clients whose report was used.
        num_unused: Number of clients whose report was sent but not used.
    """

    num_selected: int
    num_reports: int
    num_unused: int


def _rounds(run: RunRecord, entry: AlgorithmEntry, num_params: int) -> Iterator[RoundBytes | None]:
    """Yields the bytes of each round; None for a round whose cohort is not known."""
    rule = _byte_rule(run, entry, num_params)
    delta_bytes = rule.dense
    sizes = {line.get("round"): line.get("num_clients") for line in run.timings}
    for line in run.metrics:
        if not line["round"]:
            continue
        cohort = _cohort(line, sizes.get(line["round"]), run)
        delta_bytes = rule.delta_bytes(line, delta_bytes)
        if cohort is None:
            yield None
        elif entry.has_own_models:
            yield RoundBytes(line["round"], 0, 0, 0, 0)
        else:
            yield _of_round(rule, line, cohort, delta_bytes)


def _cohort(line: Mapping[str, Any], num_clients: float | None, run: RunRecord) -> _Cohort | None:
    """Returns the numbers of clients in a round from its line in metrics.jsonl; None if unknown."""
    participation = line.get("participation")
    if participation is not None:
        unused = participation["num_late"] + participation["num_surplus"]
        reports = participation["num_reports"]
        if participation["is_skipped"]:
            unused, reports = unused + reports, 0
        return _Cohort(participation["num_selected"], reports, unused)
    size = _fixed_size(run.options) if num_clients is None else int(num_clients)
    return None if size is None else _Cohort(size, size, 0)


def _fixed_size(options: Mapping[str, Any]) -> int | None:
    """The size of all cohorts, if it follows from the options alone."""
    clients = options.get("clients")
    if options.get("sampling", "fixed") not in _DRAWN_BY_NUMBER:
        return None
    if isinstance(clients, list):
        return len(clients)
    return int(clients) if isinstance(clients, str) and clients.isdecimal() else None
