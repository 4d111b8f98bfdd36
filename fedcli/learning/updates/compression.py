"""Compression of individual updates: each is encoded, its bytes are counted, and it is decoded.

The core's encoders (csrc/compress) make the bytes, and the server aggregates the decoded updates.
Each combination of round, client and copy of the client in its cohort has its own random stream
(with a secure sum, all clients of a round may share one), so results depend neither on the number
of threads nor on resuming.

Error feedback (Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599): a client keeps the residual
e that it could not send, and adds `decay` times this residual to its next update D:

    input = D + decay * e;  decoded = C(input);  e' = input - decoded

A client that drops out, or whose update is rejected, keeps its e. If a cohort has two copies of a
client, the second one starts from the e that the first one left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.learning.client_states import RESIDUALS, ClientStates, NextClientStates
from fedcli.learning.engines.deltas import RoundContext, mapped_rows
from fedcli.learning.masked_sums import MaskedSums, SumOptions, next_power
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models.layout import ParamLayout
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.shares import rounded_up

SEED_BYTES = 8  # of an explicit seed
GROUP_BYTES = 64 << 20  # size of the updates that one call of the core encodes
STAGE = "compress"  # the name of the stage


def build(
    name: str,
    options: Mapping[str, Value] | None,
    *,
    num_threads: int,
    sums: SumOptions | None = None,
) -> UpdateStage:
    """Returns the stage that compresses updates by a method of `tables.COMPRESSORS`.

    Args:
        name: The name of the row.
        options: Its options; those not given take their defaults.
        num_threads: The number of threads, which changes no result.
        sums: The options of the secure sum of the payloads, for a method whose payloads can be
            added; None for no secure sum.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(tables.COMPRESSORS, name, "compressor")
    of_sums = {} if sums is None else {"sums": sums}
    stage: UpdateStage = load(entry.code)(
        **opt.resolve(entry, options or {}), **of_sums, num_threads=num_threads
    )
    return stage


@dataclass(frozen=True)
class Compression:
    """A stage that encodes and decodes each update by itself.

    Attributes:
        kind: The kind of the core's codec.
        purpose: The purpose of its random words.
        num_threads: The number of threads.
        fields: Fields of the codec that do not depend on the model.
        fraction: The share of the values that are sent; None if all are sent.
        block: The largest number of values that are rotated together; None if the codec does not
            rotate.
        feedback: The decay of error feedback; None for no feedback.
        is_shared: Whether all clients of a round use the same random words.
        has_seed: Whether a client draws a seed for its random words and sends it after the payload;
            otherwise the server derives the words from the run's seed.
        sums: The options of the secure sum of the payloads; None if clients send them to the
            server.
    """

    kind: str
    purpose: Purpose
    num_threads: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    fraction: float | None = None
    block: int | None = None
    feedback: float | None = None
    is_shared: bool = False
    has_seed: bool = False
    sums: SumOptions | None = None
    name: str = STAGE

    def init(self, num_params: int) -> dict[str, Any]:
        """See `UpdateStage.init`."""
        return {} if self.feedback is None else {"residuals": ClientStates(name=RESIDUALS)}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateStage.run`; the metrics are those of `Sent`."""
        codec = self.codec(updates.layout)
        sent = Sent(updates.layout.num_params, is_summed=self.sums is not None)
        clients = Clients(
            *(updates, self.purpose, self.num_threads, self.feedback, state),
            is_shared=self.is_shared,
            has_seed=self.has_seed,
        )
        for group in clients.groups():
            sent.add(clients.compress(codec, group))
        return clients.next_state, sent.metrics

    def codec(self, layout: ParamLayout) -> native.Codec:
        """Returns the codec for a model."""
        fields = dict(self.fields)
        if self.fraction is not None:
            fields["count"] = num_chosen(self.fraction, layout.num_params)
        if self.block is not None:  # a block is no larger than the vector needs
            fields["block"] = min(self.block, 1 << (layout.num_params - 1).bit_length())
        return native.Codec(self.kind, layout.shapes, **fields)


def uniform(*, bits: int, num_threads: int) -> Compression:
    """Returns the stage of the row `uniform`; the options are those of the row."""
    return Compression("uniform", Purpose.QUANTISATION, num_threads, {"bits": bits})


def fixed_step(
    *, step: float, bits: int, num_threads: int, sums: SumOptions | None = None
) -> Compression:
    """Returns the stage of the row `fixed-step`."""
    fields = {"step": step, "bits": bits}
    return Compression("fixed-step", Purpose.QUANTISATION, num_threads, fields, sums=sums)


def qsgd(*, levels: int, coding: str, num_threads: int) -> Compression:
    """Returns the stage of the row `qsgd`."""
    fields = {"levels": levels, "is_short": coding == "gamma"}
    return Compression("qsgd", Purpose.QUANTISATION, num_threads, fields)


def terngrad(*, clip: float, coding: str, num_threads: int) -> Compression:
    """Returns the stage of the row `terngrad`."""
    fields = {"clip": clip, "is_short": coding == "base-3"}
    return Compression("terngrad", Purpose.QUANTISATION, num_threads, fields)


def sign(*, error_feedback: bool, decay: float, num_threads: int) -> Compression:
    """Returns the stage of the row `sign`."""
    feedback = decay if error_feedback else None
    return Compression("sign", Purpose.QUANTISATION, num_threads, feedback=feedback)


def top_k(*, fraction: float, error_feedback: bool, decay: float, num_threads: int) -> Compression:
    """Returns the stage of the row `top-k`."""
    feedback = decay if error_feedback else None
    return Compression(
        "top-k", Purpose.QUANTISATION, num_threads, fraction=fraction, feedback=feedback
    )


def random_k(
    *,
    fraction: float,
    error_feedback: bool,
    decay: float,
    explicit_seed: bool,
    num_threads: int,
    sums: SumOptions | None = None,
) -> Compression:
    """Returns the stage of the row `random-k`, unbiased only without error feedback.

    For a secure sum all clients of a round send the same coordinates.

    Raises:
        ConfigError: Each client would draw its own coordinates, which a secure sum cannot add.
    """
    if explicit_seed and sums is not None:
        raise ConfigError(
            "--compress-option explicit_seed=true with --secure-sum: clients would send "
            "different coordinates, which cannot be added; leave out explicit_seed"
        )
    return Compression(
        "random-k",
        Purpose.QUANTISATION,
        num_threads,
        {"is_unbiased": not error_feedback},
        fraction=fraction,
        feedback=decay if error_feedback else None,
        is_shared=sums is not None,
        has_seed=explicit_seed,
        sums=sums,
    )


def drive(
    *,
    block: int,
    unbiased: bool,
    error_feedback: bool,
    decay: float,
    explicit_seed: bool,
    num_threads: int,
) -> Compression:
    """Returns the stage of the row `drive`."""
    return Compression(
        "drive",
        Purpose.ROTATION,
        num_threads,
        {"is_unbiased": unbiased},
        block=block,
        feedback=decay if error_feedback else None,
        has_seed=explicit_seed,
    )


def eden(*, bits: int, block: int, explicit_seed: bool, num_threads: int) -> Compression:
    """Returns the stage of the row `eden`."""
    fields = {"bits": bits}
    return Compression(
        "eden", Purpose.ROTATION, num_threads, fields, block=block, has_seed=explicit_seed
    )


def num_chosen(fraction: float, num_params: int) -> int:
    """Returns the number of values that are sent: the share, rounded up, and at least 1."""
    return min(num_params, max(1, rounded_up(fraction, num_params)))


class RandomCoordinates(NamedTuple):
    """The coordinates that all clients of a round send with `random-k` and secure sums.

    Attributes:
        fraction: The share of the values that are sent.
    """

    fraction: float

    def of(self, context: RoundContext, num_params: int) -> NDArray[np.int64]:
        """Returns the indices of the coordinates in a round, ascending: int64 [num_chosen]."""
        count = num_chosen(self.fraction, num_params)
        codec = native.Codec("random-k", [(num_params,)], count=count, is_unbiased=False)
        key = shared_key(context, Purpose.QUANTISATION)
        payload = codec.encode(np.ones(num_params, np.float32), key)
        chosen = codec.decode(np.frombuffer(payload, np.uint8), key)
        return np.flatnonzero(chosen)


class SharedSteps(NamedTuple):
    """The whole numbers to which `fixed-step` rounds values.

    Attributes:
        step: The distance between two levels.
        bits: Bits per value.
    """

    step: float
    bits: int

    @property
    def low(self) -> int:
        """The smallest number."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest number."""
        return -self.low - 1

    def code(self, values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Writes the number nearest to each value; halves are rounded to even."""
        out[:] = np.clip(np.rint(values.astype(np.float64) / self.step), self.low, self.high)


def shared_key(context: RoundContext, purpose: Purpose) -> StreamKey:
    """Returns the stream of random words that is common to the clients of a round."""
    return stream_key(context.seed, purpose, round_num=context.round_num)


class Total:
    """The weighted sum of what the clients of a round send, which may be a secure sum."""

    def __init__(self, num_values: int, num_clients: int, sums: MaskedSums | None) -> None:
        """Starts at 0; `sums` are the secure sums of the round, None for a plain sum."""
        self._plain = native.WeightedSum(num_values)
        self._sums = sums
        self._weights = np.zeros(num_clients)
        if sums is not None:
            self._sent = mapped_rows(num_clients, num_values)

    def add(
        self,
        places: NDArray[np.int64],
        vectors: Sequence[NDArray[np.float32]],
        weights: NDArray[np.float64],
    ) -> None:
        """Adds weight * vector for some clients, each with its position in the cohort."""
        if self._sums is None:
            self._plain.add(vectors, weights.tolist())
            return
        self._weights[places] = weights
        for place, vector in zip(places.tolist(), vectors, strict=True):
            self._sent[place] = vector

    def total(self) -> tuple[NDArray[np.float64], float]:
        """Returns the sum, and the sum of the weights; zeros and 0 if a secure sum fails."""
        if self._sums is None:
            return self._plain.total()
        self._sums.keep_only(self._weights > 0.0)
        largest = max((float(np.max(np.abs(row))) for row in self._sent), default=0.0)
        bound = self._sums.options.bound or next_power(largest)
        summed = self._sums.weighted(self._sent, self._weights.tolist(), bound)
        return (np.zeros(self._sent.shape[1]), 0.0) if summed is None else summed


def replace_all(updates: RoundUpdates, update: NDArray[np.float32] | None) -> None:
    """Sets every update that counts to `update`, or rejects them all if `update` is None."""
    for index in np.flatnonzero(updates.stats["weight"] > 0.0).tolist():
        if update is None:
            updates.reject(index)
        else:
            updates.rows[index] = update


def sums_of(
    options: SumOptions | None, updates: RoundUpdates, num_threads: int
) -> MaskedSums | None:
    """Returns the secure sums of a round; None for plain sums, if there are no options."""
    if options is None:
        return None
    return MaskedSums(options, updates.round, updates.stats["weight"], num_threads=num_threads)


class Sent:
    """Counts the bytes and sums the errors of the updates sent in a round.

    Attributes:
        num_bytes: The bytes of all payloads.
        num_sent: The number of updates sent.
        num_rejected: The number of updates that could not be encoded or decoded to finite numbers.
    """

    def __init__(self, num_params: int, *, is_summed: bool = False) -> None:
        """Starts at 0; with `is_summed` secure sums count the bytes, not this object."""
        self.num_bytes = self.num_sent = self.num_rejected = 0
        self._is_summed = is_summed
        self._num_params = num_params
        self._norms = self._errors = 0.0

    def add(self, sent: NDArray[np.void]) -> None:
        """Adds records of the core, with the fields of `_core.SENT`, one for each update."""
        self.count(sent)
        is_sent = sent["is_sent"] != 0
        for each in sent[is_sent]:  # one by one, so that the sum does not depend on the groups
            self.measure(float(each["squared_norm"]), float(each["squared_error"]))

    def count(self, sent: NDArray[np.void], *, is_part: bool = False) -> None:
        """Adds the bytes of records, but not their errors.

        Args:
            sent: The records.
            is_part: Whether the clients will send another part of their updates. The updates are
                then counted with that part, not now.
        """
        self.num_bytes += int(sent["num_bytes"].sum())
        self.num_rejected += int(np.count_nonzero(sent["is_sent"] == 0))
        if not is_part:
            self.num_sent += int(np.count_nonzero(sent["is_sent"]))

    def measure(self, squared_norm: float, squared_error: float) -> None:
        """Adds the squared norms of an encoder's input and of its error."""
        self._norms += squared_norm
        self._errors += squared_error

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the round.

        `payload_bytes`, `num_sent` and `num_rejected`; `share_of_dense`, the bytes as a share of
        four bytes per parameter; and `compression_error`, the squared error as a share of the
        squared norm of the encoders' inputs, NaN if nothing was encoded. With secure sums the bytes
        are left out here, because the metrics of the sums contain them.
        """
        counts = {"num_sent": self.num_sent, "num_rejected": self.num_rejected}
        error = self._errors / self._norms if self._norms else float("nan")
        if self._is_summed:
            return {**counts, "compression_error": error}
        dense = 4 * self._num_params * self.num_sent
        return {
            "payload_bytes": self.num_bytes,
            **counts,
            "share_of_dense": self.num_bytes / dense if dense else float("nan"),
            "compression_error": error,
        }


class Clients:
    """The clients of a round whose updates count, and their residuals of earlier rounds.

    An interrupt takes effect after the group that is being encoded.
    """

    def __init__(
        self,
        updates: RoundUpdates,
        purpose: Purpose,
        num_threads: int,
        feedback: float | None,
        state: Mapping[str, Any],
        *,
        is_shared: bool = False,
        has_seed: bool = False,
    ) -> None:
        """Opens the next version of the residuals in `state`, if there is error feedback."""
        self.updates = updates
        self._is_shared = is_shared
        self._has_seed = has_seed
        self._purpose = purpose
        self._num_threads = num_threads
        self._feedback = feedback
        self._next: NextClientStates | None = None
        if feedback is not None:
            self._next = state["residuals"].next_version()

    @property
    def next_state(self) -> dict[str, Any]:
        """The residuals of the next state, by the name of their part."""
        return {} if self._next is None else {"residuals": self._next.after}

    def groups(self) -> Iterator[NDArray[np.int64]]:
        """Yields groups of cohort positions; one call of the core encodes one group.

        With error feedback no client is twice in a group.
        """
        counted = np.flatnonzero(self.updates.stats["weight"] > 0.0)
        most = max(1, GROUP_BYTES // (4 * self.updates.layout.num_params))
        group: list[int] = []
        seen: set[str] = set()
        for index in counted.tolist():
            client_id = self.updates.round.client_ids[index]
            if len(group) == most or (self._next is not None and client_id in seen):
                yield np.array(group, np.int64)
                group, seen = [], set()
            group.append(index)
            seen.add(client_id)
        if group:
            yield np.array(group, np.int64)

    def compress(self, codec: native.Codec, group: NDArray[np.int64]) -> NDArray[np.void]:
        """Replaces the updates of a group by the decoded ones, and stores the residuals.

        An update that cannot be sent is rejected.

        Returns:
            A record of the core for each client.
        """
        rest = None
        if self._next is not None:
            rest = self._next.vectors(len(group), self.updates.layout.num_params)
        sent: NDArray[np.void] = self._call(
            codec.compress_rows, group, self._keys(group), self._unsent(group), rest
        )
        if self._has_seed:
            sent["num_bytes"] += np.where(sent["is_sent"] != 0, SEED_BYTES, 0)
        self._note(group, sent)
        for place, index in enumerate(group.tolist()):
            if not sent["is_sent"][place]:
                self.updates.reject(index)
            elif self._next is not None and rest is not None:
                self._next.take(self.updates.round.client_ids[index], rest[place])
        return sent

    def encode(
        self,
        codec: native.Codec,
        group: NDArray[np.int64],
        key: StreamKey | None = None,
        *,
        is_counted: bool = True,
    ) -> tuple[NDArray[np.uint8], NDArray[np.void]]:
        """Encodes the updates of a group with their residuals, and changes neither.

        Args:
            codec: The codec.
            group: Positions in the cohort.
            key: The stream of random words that all clients use; None if each client has its own.
            is_counted: Whether clients send the payloads. False if `compress` counts their bytes.

        Returns:
            Payloads uint8 [len(group), codec.capacity], and a record of the core for each client.
        """
        keys = self._keys(group) if key is None else [key] * len(group)
        payloads, sent = self._call(codec.encode_rows, group, keys, self._unsent(group))
        if is_counted:
            self._note(group, sent)
        return payloads, sent

    def _note(self, group: NDArray[np.int64], sent: NDArray[np.void]) -> None:
        for index, num_bytes in zip(group.tolist(), sent["num_bytes"].tolist(), strict=True):
            self.updates.note_sent(index, num_bytes)

    def _call(self, work: Any, group: NDArray[np.int64], *arguments: Any) -> Any:
        decay, rows = self._feedback or 0.0, self.updates.rows
        return self.updates.helpers.run(
            lambda: work(rows, group, *arguments, decay, self._num_threads)
        )

    def _keys(self, group: NDArray[np.int64]) -> list[StreamKey]:
        """Returns the stream of each client of a group."""
        round_ = self.updates.round
        if self._is_shared:
            return [shared_key(round_, self._purpose)] * len(group)
        keys = [
            stream_key(
                round_.seed,
                self._purpose,
                round_num=round_.round_num,
                client=client_key(round_.client_ids[index]),
                occurrence=round_.occurrences[index],
            )
            for index in group.tolist()
        ]
        if not self._has_seed:
            return keys
        seeds = [int(native.random_u64(key, 1)[0]) for key in keys]  # the server knows only these
        return [stream_key(seed, self._purpose) for seed in seeds]

    def _unsent(self, group: NDArray[np.int64]) -> list[NDArray[np.float32] | None] | None:
        """Returns the residual of each client of a group, None for zeros.

        Without error feedback it returns None.
        """
        if self._next is None:
            return None
        ids, num_params = self.updates.round.client_ids, self.updates.layout.num_params
        return [self._next.after.borrow(ids[index], num_params) for index in group.tolist()]
