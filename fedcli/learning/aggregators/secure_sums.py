"""Secure sums: updates are quantised and masked, and the aggregator gets only their sum.

The clients of a round agree on the bound B and on the unit W of weights. A client with weight p and
update x clips x to [-B, B]. It sends p/W x, quantised to b bits, and p itself, all plus its masks
modulo 2^r with r = b + ceil(log2 m) for m selected clients. Each pair of clients has one mask,
which one of them adds and the other subtracts, so masks cancel in the sum. If a client drops out,
the others reveal their shares of its key, and the server removes its masks. If fewer clients than
the threshold are left, that is impossible and the round is skipped: the mean is NaN.

The unmasked result equals the plain sum of the quantised updates to the bit (Bonawitz et al.,
"Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017; quantisation as in
TFF aggregators/primitives.py).

This simulates the arithmetic and counts the bytes; there is no cryptography. W is the least power
of two that no weight exceeds, so that p/W x is exact. If no bound is given, B is the least power of
two that no coordinate exceeds. A deployment would have to agree on W and B before the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.engines.deltas import DeltaRequest, Deltas, RoundContext
from fedcli.settings.tables.secure_sums import AUTO_BOUND, STOCHASTIC

LEAST_SURVIVORS = 2  # a sum over one client would reveal its update
_MAX_MASK_BITS = 62  # the core's sums are 64-bit words
_KEY_BYTES = 32  # a public or a secret key of X25519
_TAG_BYTES = 16  # the authentication tag of a pair of encrypted shares


class ClientBytes(NamedTuple):
    """Bytes of one client in a round of a secure sum.

    Attributes:
        payload: Bytes sent: the masked coordinates, and the weight if weights differ.
        setup_up: Bytes sent for the masks: two public keys, and for each other client an encrypted
            pair of shares; then a share for each client of the round.
        setup_down: Bytes received for the masks: the keys and encrypted shares of all others.
    """

    payload: int
    setup_up: int
    setup_down: int


def bytes_per_client(
    num_params: int, num_clients: int, bits: int, *, has_weights: bool
) -> ClientBytes:
    """Returns the bytes that a client sends and receives for a secure sum, besides the model.

    Args:
        num_params: Number of coordinates.
        num_clients: Number of selected clients.
        bits: Bits of a quantised coordinate.
        has_weights: Whether each client sends a weight, too.
    """
    width = mask_bits(bits, num_clients)
    num_others = max(num_clients - 1, 0)
    shares = num_others * (2 * _KEY_BYTES + _TAG_BYTES)
    return ClientBytes(
        payload=-(-num_params * width // 8) + has_weights * -(-width // 8),
        setup_up=2 * _KEY_BYTES + shares + num_others * _KEY_BYTES,
        setup_down=num_others * 2 * _KEY_BYTES + shares,
    )


def mask_bits(bits: int, num_clients: int) -> int:
    """Returns the bits of the modulus: enough for any sum of so many clients.

    Raises:
        ConfigError: More than 62 bits are needed.
    """
    width = bits + (max(num_clients, 1) - 1).bit_length()
    if width > _MAX_MASK_BITS:
        raise ConfigError(
            f"--secure-sum-option bits={bits}: sums of {num_clients:,} clients take {width} bits, "
            f"more than {_MAX_MASK_BITS}; choose fewer bits"
        )
    return width


@dataclass(frozen=True)
class SecureSum:
    """Gives another aggregator the secure sum of the updates in place of their plain sum.

    Attributes:
        inner: The other aggregator, which must request only the sum.
        bits: Bits of a quantised coordinate.
        bound: The bound on coordinates; None: the inner aggregator's norm bound or, if it has none,
            a bound that clips no coordinate.
        threshold: Share of the selected clients that must report.
        is_stochastic: Whether levels are rounded at random, which is unbiased.
    """

    inner: Aggregator
    bits: int = 24
    bound: float | None = None
    threshold: float = 0.5
    is_stochastic: bool = False

    def init(self) -> dict[str, Any]:
        """Returns the inner aggregator's state."""
        return self.inner.init()

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Adds the single deltas, which this masks, to the inner aggregator's request."""
        return self.inner.request(state)._replace(all_rows=True)

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the inner aggregator's result for the secure sum; NaN below the threshold.

        Raises:
            ConfigError: A weight does not fit in the bits, or is not whole.
        """
        context = deltas.round
        assert context is not None
        num_selected = len(deltas.stats) + context.num_absent
        num_survivors = int(np.count_nonzero(deltas.stats["weight"] > 0.0))
        needed = max(LEAST_SURVIVORS, math.ceil(self.threshold * num_selected))
        metrics: dict[str, Any] = {
            "num_selected": num_selected,
            "num_dropped_out": num_selected - num_survivors,
            "num_needed": needed,
            "is_skipped": int(num_survivors < needed),
            **self._bytes(deltas, num_selected),
        }
        if num_survivors < needed or deltas.rows is None:
            skipped = np.full(len(deltas.delta_sum), np.nan, np.float32)
            return skipped, dict(state), {"secure_sum": metrics}
        secure, more = self._sum(deltas, context)
        mean, next_state, of_inner = self.inner.aggregate(state, secure)
        return mean, next_state, {**of_inner, "secure_sum": {**metrics, **more}}

    def _sum(self, deltas: Deltas, context: RoundContext) -> tuple[Deltas, dict[str, Any]]:
        """Replaces the single deltas by their secure sum; also returns the sum's metrics."""
        assert deltas.rows is not None
        weights = self._whole_weights(deltas.stats["weight"], context)
        weight_unit = _next_power(max(weights))
        bound = self._bound(deltas)
        num_selected = len(deltas.stats) + context.num_absent
        width = mask_bits(self.bits, num_selected)
        total, num_clipped, _ = native.secure_sum(
            deltas.rows,
            [*weights, *[0] * context.num_absent],
            self._coins(context),
            stream_key(context.seed, Purpose.MASKS, round_num=context.round_num),
            weight_unit=int(weight_unit),
            bound=bound,
            bits=self.bits,
            mask_bits=width,
            num_threads=deltas.num_threads,
        )
        num_survivors = sum(each > 0 for each in weights)
        delta_sum = decode(total[:-1], num_survivors, bound, self.bits) * weight_unit
        step_of_mean = 2.0 * bound / (2**self.bits - 1) * weight_unit / sum(weights)
        metrics = {
            "bits": self.bits,
            "mask_bits": width,
            "bound": bound,
            "num_clipped": num_clipped,
            "largest_error": num_survivors * step_of_mean / (1 if self.is_stochastic else 2),
        }
        return replace(deltas, delta_sum=delta_sum, weight_sum=float(total[-1]), rows=None), metrics

    def _bytes(self, deltas: Deltas, num_selected: int) -> dict[str, int]:
        """The bytes of one client, for the metrics."""
        sent = bytes_per_client(
            len(deltas.delta_sum),
            num_selected,
            self.bits,
            has_weights=bool(np.any(deltas.stats["weight"] > 1.0)),
        )
        return {
            "payload_bytes": sent.payload,
            "setup_bytes_up": sent.setup_up,
            "setup_bytes_down": sent.setup_down,
        }

    def _whole_weights(self, weights: NDArray[np.float64], context: RoundContext) -> list[int]:
        """The weights as whole numbers, which are sent as an additional coordinate."""
        for client_id, weight in zip(context.client_ids, weights.tolist(), strict=True):
            if weight != int(weight) or weight >= 2**self.bits:
                raise ConfigError(
                    f"--secure-sum-option bits={self.bits}: client {client_id} has the weight "
                    f"{weight:g}; weights are whole numbers up to {2**self.bits - 1:,}: choose "
                    "more bits, or --client-weighting uniform"
                )
        return [int(weight) for weight in weights.tolist()]

    def _bound(self, deltas: Deltas) -> float:
        """The bound on coordinates in this round."""
        if self.bound is not None:
            return self.bound
        bounds = deltas.bounds
        known = math.inf if bounds is None else min(bounds.norm, bounds.max_abs)
        if math.isfinite(known):
            return known
        assert deltas.rows is not None
        return _next_power(max((float(np.max(np.abs(row))) for row in deltas.rows), default=0.0))

    def _coins(self, context: RoundContext) -> list[StreamKey] | None:
        """The stream of each selected client that rounds its levels at random."""
        if not self.is_stochastic:
            return None
        own = [
            stream_key(
                context.seed,
                Purpose.QUANTISATION,
                round_num=context.round_num,
                client=client_key(client_id),
                occurrence=occurrence,
            )
            for client_id, occurrence in zip(context.client_ids, context.occurrences, strict=True)
        ]
        nobody = stream_key(context.seed, Purpose.QUANTISATION, round_num=context.round_num)
        return [*own, *[nobody] * context.num_absent]


def decode(
    total: NDArray[np.uint64], num_clients: int, bound: float, bits: int
) -> NDArray[np.float64]:
    """Returns the sum of coordinates from a sum of their levels, float64 of the same shape."""
    scale = (2**bits - 1) / (2.0 * bound)
    values: NDArray[np.float64] = total.astype(np.float64) / scale - num_clients * bound
    return values


def secured(
    inner: Aggregator,
    *,
    bits: int,
    bound: float | str,
    threshold: float,
    rounding: str,
) -> SecureSum:
    """Returns an aggregator behind a secure sum, with the options of `--secure-sum`."""
    return SecureSum(
        inner,
        bits,
        None if bound == AUTO_BOUND else float(bound),
        threshold,
        rounding == STOCHASTIC,
    )


def _next_power(value: float) -> float:
    """The least power of two that a value does not exceed; 1 for 0."""
    if value == 0.0:
        return 1.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
