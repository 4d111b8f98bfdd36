"""PowerSGD: the matrices of an update are sent as factors of low rank.

Vogels, Karimireddy and Jaggi 2019, https://arxiv.org/abs/1905.13727. Each matrix M_k [a, b] of
client k, with its residual of earlier rounds, goes through two exchanges:

    client: P_k = M_k V                 server: U = orthonormal columns of mean_k P_k
    client: W_k = M_k^T U               server: decodes U W_k^T; next V = mean_k W_k

The means have the weights of the clients. All clients have the same U, so the mean of the decoded
updates is U V^T with the next V, as in the paper. V is kept from round to round; the first V is
drawn at random. Vectors are not compressed. A client receives V and U in addition to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core import draws, native
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.learning.client_states import RESIDUALS, ClientStates
from fedcli.learning.masked_sums import MaskedSums, SumOptions
from fedcli.learning.updates.compression import STAGE, Clients, Sent, Total, replace_all, sums_of
from fedcli.learning.updates.contract import RoundUpdates
from fedcli.models.layout import ParamLayout

# A column counts as dependent on the columns before it if at most this share of its norm is left
# after its projections on them are subtracted.
_LEAST_SHARE = 1e-6
_NO_KEY = stream_key(0, Purpose.ROTATION)  # required, but the codec draws no random numbers


class _Matrix(NamedTuple):
    """A tensor with more than one axis, as a matrix [a, b], and where its values are.

    Attributes:
        place: The position of its first value among the parameters.
        num_rows: a, the product of all axes but the last.
        num_columns: b.
        rank: The number of columns of its factors.
    """

    place: int
    num_rows: int
    num_columns: int
    rank: int


@dataclass(frozen=True)
class PowerSGD:
    """The stage of the row `powersgd`; the options are those of the row.

    The state has `right`, float32 [num_params]. It holds V of each matrix, row by row, beginning at
    the matrix's first parameter; all zeros before the first round.
    """

    rank: int
    error_feedback: bool
    decay: float
    num_threads: int
    sums: SumOptions | None = None
    name: str = STAGE

    def init(self, num_params: int) -> dict[str, Any]:
        """See `UpdateStage.init`."""
        right = np.zeros(num_params, np.float32)
        if not self.error_feedback:
            return {"right": right}
        return {"right": right, "residuals": ClientStates(name=RESIDUALS)}

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateStage.run`.

        The metrics are those of `Sent`, those of secure sums, and `extra_bytes_down`: the bytes of
        V and U that a client receives. With secure sums the server has only the common update,
        which replaces the update of each client.
        """
        layout = updates.layout
        matrices = list(_matrices(layout, self.rank))
        right = _without_zeros(state["right"], matrices, updates)
        sent = Sent(layout.num_params, is_summed=self.sums is not None)
        sums = sums_of(self.sums, updates, self.num_threads)
        feedback = self.decay if self.error_feedback else None
        clients = Clients(updates, Purpose.QUANTISATION, self.num_threads, feedback, state)
        lefts = self._mean_left(clients, matrices, right, sent, sums)
        codec = self._codec("powersgd", layout, [each for each, _ in lefts])
        payload = self._mean_payload(clients, codec, sent, sums)
        after = {"right": right, **clients.next_state}
        if payload is not None:
            nonzero = [each for _, each in lefts]
            after["right"] = _next_right(right, payload, layout, matrices, nonzero)
        elif sums is not None:
            after = dict(state)
        if sums is not None:
            common = None if payload is None else codec.decode(payload.view(np.uint8), _NO_KEY)
            replace_all(updates, common)
        down = 4 * sum(each.rank * (each.num_rows + each.num_columns) for each in matrices)
        of_sums = {} if sums is None else {"secure_sum": sums.metrics}
        return after, {**sent.metrics, "extra_bytes_down": down, **of_sums}

    def _mean_payload(
        self, clients: Clients, codec: native.Codec, sent: Sent, sums: MaskedSums | None
    ) -> NDArray[np.float32] | None:
        """Makes the second exchange: replaces each update by the decoded one.

        Returns:
            The mean payload, float32 [codec.capacity / 4]: the mean of the W_k of each matrix, and
            of the uncompressed vectors. None if no update was sent or the secure sum failed.
        """
        updates = clients.updates
        summed = Total(codec.capacity // 4, len(updates.rows), sums)
        mean = native.WeightedSum(updates.layout.num_params)
        for group in clients.groups():
            payloads = None
            if sums is not None:
                payloads, _ = clients.encode(codec, group, is_counted=False)
            records = clients.compress(codec, group)
            sent.add(records)
            is_sent = records["is_sent"] != 0
            weights = updates.stats["weight"][group[is_sent]]
            if payloads is None:
                rows = [updates.rows[index] for index in group[is_sent].tolist()]
                mean.add(rows, weights.tolist())
            else:
                summed.add(group[is_sent], list(payloads[is_sent].view(np.float32)), weights)
        vector, weight = mean.total() if sums is None else summed.total()
        if not weight:
            return None
        quotient = (vector / weight).astype(np.float32)
        if sums is not None:
            return quotient
        # The mean of the decoded updates is U V^T with the next V. Its transpose times U is V.
        return np.frombuffer(codec.encode(quotient, _NO_KEY), np.float32)

    def _codec(
        self, kind: str, layout: ParamLayout, factors: list[NDArray[np.float32]]
    ) -> native.Codec:
        joined = np.concatenate([np.empty(0, np.float32), *(each.ravel() for each in factors)])
        return native.Codec(kind, layout.shapes, rank=self.rank, factors=joined)

    def _mean_left(
        self,
        clients: Clients,
        matrices: list[_Matrix],
        right: NDArray[np.float32],
        sent: Sent,
        sums: MaskedSums | None,
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Makes the first exchange; returns U of each matrix and which of its columns are not 0."""
        updates = clients.updates
        parts = [_part(right, each) for each in matrices]
        codec = self._codec("powersgd-left", updates.layout, parts)
        total = Total(codec.capacity // 4, len(updates.rows), sums)
        for group in clients.groups():
            payloads, records = clients.encode(codec, group)
            is_sent = records["is_sent"] != 0
            for index in group[~is_sent].tolist():
                updates.reject(index)
            sent.count(records, is_part=True)
            weights = updates.stats["weight"][group[is_sent]]
            total.add(group[is_sent], list(payloads[is_sent].view(np.float32)), weights)
        vector, weight = total.total()
        lefts, first = [], 0
        for each in matrices:
            size = each.num_rows * each.rank
            mean = vector[first : first + size].reshape(each.num_rows, each.rank)
            lefts.append(orthonormal(mean / (weight or 1.0)))
            first += size
        return lefts


def orthonormal(
    columns: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns orthonormal columns by Gram and Schmidt's method, and which of them are not 0.

    A column that depends on earlier columns becomes zeros.

    Args:
        columns: float64 [a, q].
    """
    basis = columns.copy()
    is_nonzero = np.zeros(basis.shape[1], np.bool_)
    for c in range(basis.shape[1]):
        column = basis[:, c]
        before = np.sqrt(np.sum(column * column))
        for earlier in basis[:, :c].T:
            column -= np.sum(earlier * column) * earlier
        left = np.sqrt(np.sum(column * column))
        is_nonzero[c] = left > _LEAST_SHARE * before
        column[:] = column / left if is_nonzero[c] else 0.0
    return basis.astype(np.float32), is_nonzero


def _matrices(layout: ParamLayout, rank: int) -> Iterator[_Matrix]:
    """Yields the matrices of a model, as the core's codec takes them."""
    place = 0
    for shape in layout.shapes:
        size = int(np.prod(shape))
        if len(shape) > 1:
            num_columns = shape[-1]
            num_rows = size // num_columns
            yield _Matrix(place, num_rows, num_columns, min(rank, num_rows, num_columns))
        place += size


def _part(right: NDArray[np.float32], matrix: _Matrix) -> NDArray[np.float32]:
    """Returns V of a matrix, float32 [b, rank], as a view of `right`."""
    values = right[matrix.place : matrix.place + matrix.num_columns * matrix.rank]
    return values.reshape(matrix.num_columns, matrix.rank)


def _without_zeros(
    right: NDArray[np.float32], matrices: list[_Matrix], updates: RoundUpdates
) -> NDArray[np.float32]:
    """Returns a copy of V, with random numbers in columns of zeros (in round 1, in all)."""
    right = right.copy()
    round_ = updates.round
    key = stream_key(round_.seed, Purpose.ROTATION, round_num=round_.round_num)
    stream = draws.Stream(key)
    for matrix in matrices:
        part = _part(right, matrix)
        for column in part.T:
            if not column.any():
                column[:] = stream.normal(matrix.num_columns)
    return right


def _next_right(
    right: NDArray[np.float32],
    values: NDArray[np.float32],
    layout: ParamLayout,
    matrices: list[_Matrix],
    nonzero: list[NDArray[np.bool_]],
) -> NDArray[np.float32]:
    """Returns the next V, the mean of M_k^T U.

    A column of V stays as it is if the same column of U or of the mean consists of zeros.

    Args:
        right: The last V.
        values: The mean payload; see `_mean_payload`.
        layout: The model's tensors.
        matrices: The matrices that are compressed.
        nonzero: Which columns of U are not 0, for each matrix.
    """
    after, first = right.copy(), 0
    by_place = {
        each.place: (each, is_nonzero) for each, is_nonzero in zip(matrices, nonzero, strict=True)
    }
    place = 0
    for shape in layout.shapes:
        size = int(np.prod(shape))
        if place not in by_place:
            first += size  # a vector, which the payload holds uncompressed
        else:
            matrix, is_nonzero = by_place[place]
            num_values = matrix.num_columns * matrix.rank
            mean_right = values[first : first + num_values].reshape(matrix.num_columns, matrix.rank)
            part = _part(after, matrix)
            is_kept = ~(is_nonzero & mean_right.any(axis=0))
            part[:] = np.where(is_kept, part, mean_right)
            first += num_values
        place += size
    return after
