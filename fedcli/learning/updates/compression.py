"""Compression of single updates: each is encoded, its bytes are counted, and it is decoded.

The core's encoders (csrc/compress) make the bytes, and the server aggregates the decoded updates.
Each combination of round, client and copy of the client in its cohort has its own random stream, so
results depend neither on the number of threads nor on resuming.

Error feedback (Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599): a client adds `decay` times
what it could not send before to its update D, and keeps what it cannot send now:

    input = D + decay * e;  decoded = C(input);  e' = input - decoded

A client that drops out, or whose update is rejected, keeps its e. If a cohort has two copies of a
client, the second one starts from the e that the first one left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.lazy import load
from fedcli.learning.client_states import RESIDUALS, ClientStates, NextClientStates
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models.layout import ParamLayout
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value

GROUP_BYTES = 64 << 20  # size of the updates that one call of the core encodes
STAGE = "compress"  # the name of the stage


def build(name: str, options: Mapping[str, Value] | None, *, num_threads: int) -> UpdateStage:
    """Returns the stage that compresses updates by a method of `tables.COMPRESSORS`.

    Args:
        name: The name of the row.
        options: Its options; those not given take their defaults.
        num_threads: The number of threads, which changes no result.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(tables.COMPRESSORS, name, "compressor")
    stage: UpdateStage = load(entry.code)(
        **opt.resolve(entry, options or {}), num_threads=num_threads
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
        fraction: The share of the values that are sent; None: all values are sent.
        block: The largest number of values that are rotated together; None: the codec does not
            rotate.
        feedback: The decay of error feedback; None: no feedback.
    """

    kind: str
    purpose: Purpose
    num_threads: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    fraction: float | None = None
    block: int | None = None
    feedback: float | None = None
    name: str = STAGE

    def init(self, num_params: int) -> dict[str, Any]:
        """See `UpdateStage.init`."""
        return {} if self.feedback is None else {"residuals": ClientStates(name=RESIDUALS)}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateStage.run`; the metrics are those of `Sent`."""
        codec = self.codec(updates.layout)
        sent = Sent(updates.layout.num_params)
        clients = Clients(updates, self.purpose, self.num_threads, self.feedback, state)
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


def fixed_step(*, step: float, bits: int, num_threads: int) -> Compression:
    """Returns the stage of the row `fixed-step`."""
    fields = {"step": step, "bits": bits}
    return Compression("fixed-step", Purpose.QUANTISATION, num_threads, fields)


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
    *, fraction: float, error_feedback: bool, decay: float, num_threads: int
) -> Compression:
    """Returns the stage of the row `random-k`, which scales up only without error feedback."""
    return Compression(
        "random-k",
        Purpose.QUANTISATION,
        num_threads,
        {"is_unbiased": not error_feedback},
        fraction=fraction,
        feedback=decay if error_feedback else None,
    )


def drive(
    *, block: int, unbiased: bool, error_feedback: bool, decay: float, num_threads: int
) -> Compression:
    """Returns the stage of the row `drive`."""
    return Compression(
        "drive",
        Purpose.ROTATION,
        num_threads,
        {"is_unbiased": unbiased},
        block=block,
        feedback=decay if error_feedback else None,
    )


def eden(*, bits: int, block: int, num_threads: int) -> Compression:
    """Returns the stage of the row `eden`."""
    return Compression("eden", Purpose.ROTATION, num_threads, {"bits": bits}, block=block)


def num_chosen(fraction: float, num_params: int) -> int:
    """Returns the number of values that are sent: the share, rounded up, and at least 1.

    A product such as 0.07 * 100 is a little above 7, so products that near to a whole number are
    rounded to it.
    """
    product = fraction * num_params
    nearest = round(product)
    is_whole = abs(product - nearest) <= 1e-9 * max(product, 1.0)
    return min(num_params, max(1, nearest if is_whole else int(product) + 1))


class Sent:
    """Counts the bytes and sums the errors of the updates sent in a round.

    Attributes:
        num_bytes: The bytes of all payloads.
        num_sent: The number of updates sent.
        num_rejected: The number of updates that could not be encoded or decoded to finite numbers.
    """

    def __init__(self, num_params: int) -> None:
        """Starts with nothing."""
        self.num_bytes = self.num_sent = self.num_rejected = 0
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
            is_part: Whether these clients will send another part, which counts the update.
        """
        self.num_bytes += int(sent["num_bytes"].sum())
        self.num_rejected += int(np.count_nonzero(sent["is_sent"] == 0))
        if not is_part:
            self.num_sent += int(np.count_nonzero(sent["is_sent"]))

    def measure(self, squared_norm: float, squared_error: float) -> None:
        """Adds the squared norm of an encoder's input and that of its error."""
        self._norms += squared_norm
        self._errors += squared_error

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the round.

        `payload_bytes`, `num_sent` and `num_rejected`; `share_of_dense`, the bytes divided by four
        bytes per parameter; and `compression_error`, the squared error divided by the squared norm
        of the encoders' inputs, NaN if nothing was encoded.
        """
        dense = 4 * self._num_params * self.num_sent
        return {
            "payload_bytes": self.num_bytes,
            "num_sent": self.num_sent,
            "num_rejected": self.num_rejected,
            "share_of_dense": self.num_bytes / dense if dense else float("nan"),
            "compression_error": self._errors / self._norms if self._norms else float("nan"),
        }


class Clients:
    """The clients of a round whose updates count, and their residuals of earlier rounds.

    An interrupt waits for the end of one group at most.
    """

    def __init__(
        self,
        updates: RoundUpdates,
        purpose: Purpose,
        num_threads: int,
        feedback: float | None,
        state: Mapping[str, Any],
    ) -> None:
        """Opens the next version of the residuals in `state`, if there is error feedback."""
        self.updates = updates
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
        for place, index in enumerate(group.tolist()):
            if not sent["is_sent"][place]:
                self.updates.reject(index)
            elif self._next is not None and rest is not None:
                self._next.take(self.updates.round.client_ids[index], rest[place])
        return sent

    def encode(
        self, codec: native.Codec, group: NDArray[np.int64], key: StreamKey | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.void]]:
        """Encodes the updates of a group, with their residuals, and changes nothing.

        Args:
            codec: The codec.
            group: Positions in the cohort.
            key: The stream of random words that all clients use; None: each its own.

        Returns:
            Payloads uint8 [len(group), codec.capacity], and a record of the core for each client.
        """
        keys = self._keys(group) if key is None else [key] * len(group)
        payloads, sent = self._call(codec.encode_rows, group, keys, self._unsent(group))
        return payloads, sent

    def _call(self, work: Any, group: NDArray[np.int64], *arguments: Any) -> Any:
        decay, rows = self._feedback or 0.0, self.updates.rows
        return self.updates.helpers.run(
            lambda: work(rows, group, *arguments, decay, self._num_threads)
        )

    def _keys(self, group: NDArray[np.int64]) -> list[StreamKey]:
        """Returns the stream of each client of a group."""
        round_ = self.updates.round
        return [
            stream_key(
                round_.seed,
                self._purpose,
                round_num=round_.round_num,
                client=client_key(round_.client_ids[index]),
                occurrence=round_.occurrences[index],
            )
            for index in group.tolist()
        ]

    def _unsent(self, group: NDArray[np.int64]) -> list[NDArray[np.float32] | None] | None:
        """Returns what each client of a group could not send so far, None for zeros.

        None without error feedback.
        """
        if self._next is None:
            return None
        ids, num_params = self.updates.round.client_ids, self.updates.layout.num_params
        return [self._next.after.borrow(ids[index], num_params) for index in group.tolist()]
