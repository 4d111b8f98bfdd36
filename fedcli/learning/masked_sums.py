"""The secure sums of one round: what clients quantise and mask, and what the server gets.

Each client quantises the coordinates that it sends to whole numbers, its levels, and adds its masks
modulo 2^r, where r is large enough for any sum over the selected clients. Each pair of clients has
one mask: one of them adds it and the other subtracts it, so masks cancel in the sum. If a client
drops out, the others reveal the shares of its key, and the server removes the masks that are left.
If fewer clients than the threshold report, the sum fails.

The unmasked result equals the plain sum of the levels to the bit (Bonawitz et al., "Practical
Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017; quantisation as in TFF
aggregators/primitives.py).

This simulates the arithmetic and counts the bytes; there is no cryptography. Bounds that depend on
the clients' values are the smallest powers of two that clip nothing. A deployment would have to
agree on them before the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.native import Levels
from fedcli.core.seeds import Purpose, StreamKey, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.learning.engines.deltas import RoundContext
from fedcli.settings.shares import rounded_up
from fedcli.settings.tables.secure_sums import AUTO_BOUND, STOCHASTIC

MIN_REPORTS = 2  # the sum of a single report would reveal that client's update
_MAX_MASK_BITS = 62  # sums are 64-bit words of the core
_KEY_BYTES = 32  # a public key of X25519, and a secret
_TAG_BYTES = 16  # of the authentication tag of encrypted shares
# From one sum of a round to the next, the occurrence numbers in stream keys grow by this number. It
# is larger than any number of clients, so no two sums share a key.
_APART = 1 << 32


@dataclass(frozen=True)
class SumOptions:
    """The options of `--secure-sum`.

    Attributes:
        bits: Bits of a quantised coordinate.
        bound: The bound on coordinates; None if it follows from the summed values.
        threshold: Share of the selected clients that must report.
        is_stochastic: Whether levels are rounded at random, which is unbiased.
        sends_zeros: Whether a client without a valid update sends zeros; then one client is enough
            for a sum. Privacy requires this: no client's data may decide whether others count.
    """

    bits: int = 24
    bound: float | None = None
    threshold: float = 0.5
    is_stochastic: bool = False
    sends_zeros: bool = False

    @property
    def top_level(self) -> int:
        """The largest level of a coordinate."""
        return (1 << self.bits) - 1


def sum_options(*, bits: int, bound: float | str, threshold: float, rounding: str) -> SumOptions:
    """Returns the options of secure sums with the values of their table."""
    fixed_bound = None if bound == AUTO_BOUND else float(bound)
    return SumOptions(bits, fixed_bound, threshold, rounding == STOCHASTIC)


def setup_bytes(num_clients: int) -> tuple[int, int]:
    """Returns the bytes that each of `num_clients` sends and receives for the masks of a round.

    A client sends two public keys, an encrypted pair of shares for each other client, and later one
    share for each other client. It receives the keys and the encrypted shares of all others.
    """
    num_others = max(num_clients - 1, 0)
    shares = num_others * (2 * _KEY_BYTES + _TAG_BYTES)
    return 2 * _KEY_BYTES + shares + num_others * _KEY_BYTES, num_others * 2 * _KEY_BYTES + shares


def mask_bits(top_level: int, num_clients: int) -> int:
    """Returns the bits of the modulus: enough for any sum of the levels of `num_clients` clients.

    Raises:
        ConfigError: More than 62 bits are needed.
    """
    width = (top_level * max(num_clients, 1)).bit_length()
    if width > _MAX_MASK_BITS:
        raise ConfigError(
            f"--secure-sum: sums of {num_clients:,} clients with levels up to {top_level:,} take "
            f"{width} bits, more than {_MAX_MASK_BITS}; choose fewer bits, or --client-weighting "
            "uniform"
        )
    return width


def next_power(value: float) -> float:
    """Returns the smallest power of two that a value does not exceed; 1 for 0."""
    if value == 0.0:
        return 1.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


class MaskedSums:
    """The secure sums of a round among some of its clients.

    Attributes:
        reports: Whether each client with a row sends its report, bool [num_rows].
        num_selected: The number of clients, those without a row included.
        num_needed: The number of clients that must report.
        payload_bytes: Number of bytes that one client has sent in these sums so far.
        rounding: The largest error in the last sum that comes from rounding a coordinate of one
            client.
        num_clipped: The number of coordinates that were clipped in all sums.
    """

    def __init__(
        self,
        options: SumOptions,
        context: RoundContext,
        weights: NDArray[np.float64],
        *,
        num_threads: int,
        places: NDArray[np.int64] | None = None,
        num_absent: int | None = None,
        first_sum: int = 0,
        largest_group: int = 0,
    ) -> None:
        """Starts the sums of a round.

        Args:
            options: The options of `--secure-sum`.
            context: The round.
            weights: The client weights of the cohort; 0 for a client without a valid update.
            num_threads: The number of threads, which changes no result.
            places: The cohort positions of the clients; None for all.
            num_absent: The number of selected clients without a row; None for the number in
                `context`.
            first_sum: The number of sums that were computed earlier in this round.
            largest_group: The number of clients for which the modulus is chosen, if it is larger
                than the number of clients in these sums.
        """
        self.options = options
        self._context = context
        self._places = np.arange(len(weights)) if places is None else places
        absent = context.num_absent if num_absent is None else num_absent
        self.reports = (weights[self._places] > 0.0) | options.sends_zeros
        self.num_selected = len(self._places) + absent
        minimum = 0 if options.sends_zeros else MIN_REPORTS
        self.num_needed = max(minimum, rounded_up(options.threshold, self.num_selected))
        self._num_threads = num_threads
        self._num_sums = first_sum
        self._group = max(largest_group, self.num_selected)
        self.payload_bytes = 0
        self.rounding = 0.0
        self.num_clipped = 0
        self._mask_bits = 0

    @property
    def num_reports(self) -> int:
        """The number of clients that report."""
        return int(np.count_nonzero(self.reports))

    @property
    def is_short(self) -> bool:
        """Whether too few clients report for the masks to be removed."""
        return self.num_reports < self.num_needed

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the sums so far.

        `num_selected`, `num_dropped_out`, `num_needed`, `is_skipped`, `num_clipped` and `bits`;
        `mask_bits` of the last sum; `payload_bytes`, which one client has sent in the sums; and
        `all_setup_bytes_up` and `all_setup_bytes_down`, which all selected clients together send
        and receive for the masks.
        """
        up, down = setup_bytes(self.num_selected)
        return {
            "num_selected": self.num_selected,
            "num_dropped_out": self.num_selected - self.num_reports,
            "num_needed": self.num_needed,
            "is_skipped": int(self.is_short),
            "payload_bytes": self.payload_bytes,
            "all_setup_bytes_up": self.num_selected * up,
            "all_setup_bytes_down": self.num_selected * down,
            "num_clipped": self.num_clipped,
            "bits": self.options.bits,
            "mask_bits": self._mask_bits,
        }

    def keep_only(self, reports: NDArray[np.bool_]) -> None:
        """Counts clients as dropped out where `reports`, bool [num_rows], is False."""
        self.reports &= reports

    def weighted(
        self, rows: NDArray[np.float32], weights: Sequence[float], bound: float
    ) -> tuple[NDArray[np.float64], int] | None:
        """Returns the sum of weight * row and the sum of the weights; None if too few report.

        A client sends weight / W * row, where W is the smallest power of two that no weight exceeds
        and each coordinate of the row is clipped to the bound. If any weight is above 1, each
        client sends its weight, too.

        Args:
            rows: float32 [num_rows, num_values].
            weights: The weights [num_rows], 0 for clients that do not report.
            bound: The bound on coordinates of rows.

        Raises:
            ConfigError: A weight does not fit in the bits or is not whole, or the sum needs more
                than 62 bits.
        """
        whole = self._whole(weights)
        unit = next_power(max(whole, default=0))
        levels = self._levels(-bound, bound, self.options.top_level)._replace(clip=bound)
        has_weights = self.has_weights(weights)
        sums = self._sum(rows, whole, np.array(whole) / unit, levels, sends_weights=has_weights)
        self.rounding *= unit
        return None if sums is None else (sums[0] * unit, sums[1])

    def coded(
        self, codes: NDArray[np.float32], weights: Sequence[float], low: int, high: int
    ) -> tuple[NDArray[np.float64], int] | None:
        """Returns the exact sums of weight * code and of the weights; None if too few report.

        Args:
            codes: Whole numbers from `low` to `high`, float32 [num_rows, num_values].
            weights: As in `weighted`; a client sends its codes times its weight.
            low: The smallest code.
            high: The largest code.

        Raises:
            ConfigError: As in `weighted`.
        """
        whole = self._whole(weights)
        unit = int(next_power(max(whole, default=0)))
        levels = self._levels(low * unit, high * unit, (high - low) * unit)
        factors = np.array(whole, np.float64)
        has_weights = self.has_weights(weights)
        sums = self._sum(codes, whole, factors, levels, sends_weights=has_weights)
        self.rounding = 0.0  # whole numbers stay as they are
        return sums

    def sum_of_differences(
        self,
        rows: NDArray[np.float32],
        center: NDArray[np.float64],
        factors: NDArray[np.float64],
        bound: float,
    ) -> NDArray[np.float64] | None:
        """Returns the sum of factor * (row - center); None if too few report.

        Args:
            rows: float32 [num_rows, num_values].
            center: The vector that the server has sent to the clients, [num_values].
            factors: Each client's factor, at least 0, [num_rows].
            bound: The bound on the coordinates that clients send.
        """
        levels = self._levels(-bound, bound, self.options.top_level)
        sums = self._sum(rows, self.reports.astype(int).tolist(), factors, levels, center)
        return None if sums is None else sums[0]

    def mean_difference(
        self,
        rows: NDArray[np.float32],
        center: NDArray[np.float64],
        factors: NDArray[np.float64],
        distances: NDArray[np.float64],
    ) -> NDArray[np.float64] | None:
        """Returns the mean of row - center with the clients' factors as weights.

        A client sends its factor, quantised to a whole number q of at most `bits` bits, and
        q * (row - center).

        Args:
            rows: float32 [num_rows, num_values].
            center: As in `sum_of_differences`.
            factors: Above 0 for clients that report, [num_rows].
            distances: The distances of the rows from the center, [num_rows].
        """
        top = self.options.top_level
        unit = next_power(float(factors.max(initial=0.0)))
        whole = np.maximum(1, np.rint(factors / unit * top)).astype(np.int64) * self.reports
        shares = whole / top
        bound = next_power(float((shares * distances).max(initial=0.0)))
        sums = self._sum(
            rows,
            whole.tolist(),
            shares,
            self._levels(-bound, bound, top),
            center,
            sends_weights=True,
        )
        return None if sums is None else sums[0] * (top / sums[1])

    def votes(self, rows: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Returns the exact sums of the signs of the rows; None if too few report."""
        ones = self.reports.astype(int).tolist()
        levels = self._levels(-1.0, 1.0, 2)._replace(takes_signs=True)
        sums = self._sum(rows, ones, np.ones(len(ones)), levels)
        return None if sums is None else sums[0]

    def add_counts(self, number: int) -> None:
        """Counts the bytes of `number` further sums, for each of which a client sends one bit."""
        self.payload_bytes += number * -(-mask_bits(1, self._group) // 8)

    def has_weights(self, weights: Sequence[float]) -> bool:
        """Returns whether the clients send their weights; not needed if no weight is above 1."""
        return any(each > 1.0 for each in weights)

    def _levels(self, low: float, high: float, top_level: int) -> Levels:
        return Levels(low, high, top_level, mask_bits(top_level, self._group))

    def _sum(
        self,
        rows: NDArray[np.float32],
        weights: list[int],
        factors: NDArray[np.float64],
        levels: Levels,
        center: NDArray[np.float64] | None = None,
        *,
        sends_weights: bool = False,
    ) -> tuple[NDArray[np.float64], int] | None:
        """Computes one secure sum; returns the sum of the values and the sum of the weights."""
        num_values = rows.shape[1]
        self.payload_bytes += -(-num_values * levels.mask_bits // 8)
        self.payload_bytes += sends_weights * -(-levels.mask_bits // 8)
        self._mask_bits = levels.mask_bits
        number = self._num_sums
        self._num_sums += 1
        if self.is_short:
            return None
        num_absent = self.num_selected - len(self._places)
        total, num_clipped, _ = native.secure_sum(
            rows,
            [*weights, *[0] * num_absent],
            np.concatenate([np.asarray(factors, np.float64), np.zeros(num_absent)]),
            self._rounding_keys(number, num_absent),
            self._key(Purpose.MASKS, number * _APART, 0),
            levels,
            center=center,
            num_threads=self._num_threads,
        )
        self.num_clipped += num_clipped
        step = (levels.high - levels.low) / levels.top_level
        self.rounding = step if self.options.is_stochastic else step / 2
        values = total[:-1].astype(np.float64) * step
        return values + self.num_reports * levels.low, int(total[-1])

    def _rounding_keys(self, number: int, num_absent: int) -> list[StreamKey] | None:
        """Returns the random stream by which each selected client rounds its levels, or None."""
        if not self.options.is_stochastic:
            return None
        context = self._context
        own = [
            self._key(
                Purpose.SECURE_ROUNDING,
                client_key(context.client_ids[place]),
                context.occurrences[place] + number * _APART,
            )
            for place in self._places.tolist()
        ]
        return [*own, *[self._key(Purpose.SECURE_ROUNDING, 0, 0)] * num_absent]

    def _key(self, purpose: Purpose, client: int, occurrence: int) -> StreamKey:
        context = self._context
        return stream_key(
            context.seed,
            purpose,
            round_num=context.round_num,
            client=client,
            occurrence=occurrence,
        )

    def _whole(self, weights: Sequence[float]) -> list[int]:
        """Returns the weights as whole numbers, which clients send as one more coordinate."""
        if self.options.sends_zeros:
            return [1] * len(weights)
        for place, weight in zip(self._places.tolist(), weights, strict=True):
            if weight != int(weight) or weight > self.options.top_level:
                raise ConfigError(
                    f"--secure-sum-option bits={self.options.bits}: client "
                    f"{self._context.client_ids[place]} has weight {weight:g}, but weights are "
                    f"whole numbers up to {self.options.top_level:,}; choose more bits, or "
                    "--client-weighting uniform"
                )
        return [int(weight) for weight in weights]
