"""The bytes that one client of a round receives and sends, as ledger and clients.h5 count them.

The rule, for a model of P parameters, without transport overhead:

    down: 4 P for the model, 4 P for each further vector of the algorithm (SCAFFOLD's c, Mime's
          optimizer state and mean gradient), and the factors that PowerSGD shares
    up:   the model delta, 4 P or the bytes that the encoder made; 4 P for each further vector
          (SCAFFOLD's change of c_k, Mime's full gradient); 4 for the client's weight
    secure sums: up, for each sum of a round, the masked coordinates in place of the delta and the
          weight; down, the centers that an aggregator sends between two sums; both ways, the keys
          and shares by which selected clients agree on masks

Each selected client receives the bytes down. A client that drops out sends nothing, and neither
does a client whose update is rejected before it is sent. Reports that arrive too late, or after
enough other reports, and those of a skipped round count as sent. In a compressed run their updates
were never encoded, so `ByteRule.delta_bytes` estimates their bytes. Clients of `local-only` send
and receive nothing. Evaluation is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.settings.tables.algorithms import AlgorithmEntry

_FLOAT = 4  # bytes
# Fields of an algorithm's row. A user's own algorithm sets them as attributes, and the provenance
# of its run records them.
_AMOUNTS = ("vectors_down", "vectors_up", "numbers_up")


def amounts_of(entry: AlgorithmEntry) -> dict[str, int]:
    """Returns what a client receives and sends, as the provenance of a run records it."""
    return {name: getattr(entry, name) for name in _AMOUNTS}


def with_amounts(entry: AlgorithmEntry, provenance: Mapping[str, Any]) -> AlgorithmEntry:
    """Returns a row with the amounts that the provenance of a run records, if it records any."""
    recorded: dict[str, Any] = {
        name: provenance[name] for name in _AMOUNTS if isinstance(provenance.get(name), int)
    }
    return replace(entry, **recorded)


@dataclass(frozen=True)
class ByteRule:
    """The bytes of one client in one round, without those of masks and of PowerSGD's factors.

    Attributes:
        down: Bytes that it receives.
        dense: Bytes of a model delta that is not compressed.
        extra_up: Bytes that it sends in addition to the delta.
    """

    down: int
    dense: int
    extra_up: int

    @classmethod
    def of(
        cls,
        entry: AlgorithmEntry,
        num_params: int,
        *,
        is_compressed: bool,
        optimizer: str | None,
        optimizer_options: Mapping[str, Any],
    ) -> ByteRule:
        """Returns the rule of a run.

        Args:
            entry: Its algorithm.
            num_params: The number of parameters of its model.
            is_compressed: Whether clients send compressed deltas, and not masked ones.
            optimizer: The name of the clients' optimizer.
            optimizer_options: Its options.
        """
        if entry.has_own_models:
            return cls(0, 0, 0)
        vector = _FLOAT * num_params
        num_beside = entry.vectors_up - 1 + (is_compressed and entry.needs_exact_delta)
        down = vector * entry.vectors_down
        if entry.sends_optimizer_state:
            assert optimizer is not None
            down += _optimizer_bytes(optimizer, optimizer_options, num_params)
        return cls(down, vector, vector * num_beside + _FLOAT * entry.numbers_up)

    def delta_bytes(self, line: Mapping[str, Any], before: int) -> int:
        """Returns the bytes of a model delta of a round that was sent but not encoded.

        Without compression this is `dense`. In a compressed run the deltas of reports that were not
        used are not encoded. Each counts with the mean payload of the round, or if the round has
        no payload, of the newest earlier round that has one, or with `dense` if there is none.

        Args:
            line: The round's line of metrics.jsonl.
            before: The result for the round before; `dense` for round 1.
        """
        compress = line.get("updates", {}).get("compress") or {}
        if not compress.get("payload_bytes"):
            return before
        return round(float(compress["payload_bytes"] / compress["num_sent"]))

    def of_clients(
        self,
        line: Mapping[str, Any],
        num_selected: int,
        reports: Sequence[int],
        unused: Sequence[int],
        payloads: NDArray[np.int64] | None,
        delta_bytes: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the bytes down and up of each selected client of a round, int64 [num_selected].

        Args:
            line: The round's line of metrics.jsonl.
            num_selected: The number of clients that were selected.
            reports: The positions of clients whose report was used, among those selected.
            unused: The positions of clients whose report was sent but not used.
            payloads: The bytes of the encoded update of each report, int64 [reports], 0 if it was
                not sent; None if no updates were encoded.
            delta_bytes: The result of the method of this name for the round.
        """
        down = np.full(num_selected, self.down, np.int64)
        up = np.zeros(num_selected, np.int64)
        compress = line.get("updates", {}).get("compress") or {}
        down += int(compress.get("extra_bytes_down", 0))
        sums = secure_sum_of(line)
        sent = [*reports, *unused]
        if sums is not None:
            down += int(sums.get("extra_bytes_down", 0))
            down += _spread(setup_bytes(sums, "down", num_selected), num_selected)
            up += _spread(setup_bytes(sums, "up", num_selected), num_selected)
            up[sent] += int(sums["payload_bytes"])
        else:
            up[sent] = delta_bytes + self.extra_up
            if payloads is not None:
                up[list(reports)] = np.where(payloads > 0, payloads + self.extra_up, 0)
        return down, up


def secure_sum_of(line: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the metrics of the secure sums of a round; None without secure sums.

    The compression stage computes the secure sums of factors and sketches, the aggregator all
    others.
    """
    sums: Mapping[str, Any] | None = line.get("aggregator", {}).get("secure_sum")
    if sums is None:
        sums = (line.get("updates", {}).get("compress") or {}).get("secure_sum")
    return sums


def setup_bytes(sums: Mapping[str, Any], direction: str, num_selected: int) -> int:
    """Returns the bytes with which the clients of a round prepare its secure sums, all together.

    Args:
        sums: The result of `secure_sum_of`.
        direction: `up` or `down`.
        num_selected: Number of clients; in older runs, `sums` has the bytes of one client only.
    """
    total = sums.get(f"all_setup_bytes_{direction}")
    if total is None:
        return num_selected * int(sums.get(f"setup_bytes_{direction}", 0))
    return int(total)


def _spread(total: int, number: int) -> NDArray[np.int64]:
    """Returns a total as whole parts that differ by at most 1, the larger ones first."""
    places = np.arange(number, dtype=np.int64)
    return total // max(number, 1) + (places < total % max(number, 1))


def _optimizer_bytes(name: str, options: Mapping[str, Any], num_params: int) -> int:
    """The bytes of the optimizer state that clients of Mime receive."""
    from fedcli.learning import optimizers  # lazy: few runs need it

    state = optimizers.build(name, 0.0, options).init(np.zeros(num_params, np.float32))
    return sum(_FLOAT * each.size for each in state.values() if isinstance(each, np.ndarray))
