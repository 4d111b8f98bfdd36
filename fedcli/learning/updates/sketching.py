"""FetchSGD: clients send count sketches, and the server applies the largest values of their sum.

Rothchild et al. 2020, https://arxiv.org/abs/2007.07682. With the clients' sketches S_k, their
weighted mean S, momentum u with factor m, and the server's accumulated error e:

    u = m u + S;  e = e + u;  update = the k largest of the values that e estimates
    the cells of u and e that belong to the update become 0

S, u and e are sketches. Each client sends one sketch and keeps nothing. Cells are set to 0, as in
the authors' code. The sketch of the update could be subtracted instead, but the authors found that
this diverges. The learning rate is that of the server optimizer, which gets the decoded update.

The server never sees individual updates. Every update that counts is replaced by the decoded
update, so the aggregator combines equal rows. The hash functions are the same in all rounds of a
run, because the error is added up over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.learning.masked_sums import SumOptions
from fedcli.learning.updates.compression import (
    STAGE,
    Clients,
    Sent,
    Total,
    num_chosen,
    replace_all,
    sums_of,
)
from fedcli.learning.updates.contract import RoundUpdates


@dataclass(frozen=True)
class Sketch:
    """The stage of the row `sketch`; the options are those of the row.

    The state has `momentum` and `error`: u and e, float32 [depth * number of cells of a row].
    """

    depth: int
    width: float
    fraction: float
    momentum: float
    num_threads: int
    sums: SumOptions | None = None
    name: str = STAGE

    def init(self, num_params: int) -> dict[str, Any]:
        """See `UpdateStage.init`."""
        num_cells = self.depth * num_chosen(self.width, num_params)
        return {
            "momentum": np.zeros(num_cells, np.float32),
            "error": np.zeros(num_cells, np.float32),
        }

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateStage.run`.

        The metrics are those of `Sent` and those of secure sums. Here `compression_error` compares
        the decoded update with the mean of the clients' updates.
        """
        layout = updates.layout
        num_params = layout.num_params
        codec = native.Codec(
            "sketch", layout.shapes, depth=self.depth, width=num_chosen(self.width, num_params)
        )
        key = stream_key(updates.round.seed, Purpose.SKETCH_HASHES)
        sent = Sent(num_params, is_summed=self.sums is not None)
        sums = sums_of(self.sums, updates, self.num_threads)
        sketch = Total(codec.capacity // 4, len(updates.rows), sums)
        mean = native.WeightedSum(num_params)
        clients = Clients(updates, Purpose.SKETCH_HASHES, self.num_threads, None, state)
        for group in clients.groups():
            payloads, records = clients.encode(codec, group, key)
            is_sent = records["is_sent"] != 0
            for index in group[~is_sent].tolist():
                updates.reject(index)
            sent.count(records)
            weights = updates.stats["weight"][group[is_sent]]
            sketch.add(group[is_sent], list(payloads[is_sent].view(np.float32)), weights)
            rows = [updates.rows[index] for index in group[is_sent].tolist()]
            mean.add(rows, weights.tolist())
        cells, weight = sketch.total()
        of_sums = {} if sums is None else {"secure_sum": sums.metrics}
        if not weight:
            replace_all(updates, None)
            return dict(state), {**sent.metrics, **of_sums}
        momentum = self.momentum * state["momentum"].astype(np.float64) + cells / weight
        error = (state["error"] + momentum).astype(np.float32)
        update = self._largest(codec.decode(error.view(np.uint8), key), updates)
        touched = np.frombuffer(codec.encode(update, key), np.float32) != 0.0
        replace_all(updates, update)
        true_mean = mean.total()[0] / weight
        sent.measure(float(np.sum(true_mean**2)), float(np.sum((true_mean - update) ** 2)))
        after = {
            "momentum": np.where(touched, 0.0, momentum).astype(np.float32),
            "error": np.where(touched, 0.0, error).astype(np.float32),
        }
        return after, {**sent.metrics, **of_sums}

    def _largest(
        self, estimates: NDArray[np.float32], updates: RoundUpdates
    ) -> NDArray[np.float32]:
        """Returns the estimates of largest magnitude, and zeros elsewhere."""
        count = num_chosen(self.fraction, len(estimates))
        codec = native.Codec("top-k", updates.layout.shapes, count=count)
        key = stream_key(0, Purpose.SKETCH_HASHES)  # required, but top-k draws nothing
        return codec.decode(np.frombuffer(codec.encode(estimates, key), np.uint8), key)
