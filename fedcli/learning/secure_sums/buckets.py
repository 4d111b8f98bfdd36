"""A rule for individual updates gets the means of buckets, each from a secure sum of its own.

Buckets (Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", ICLR 2022, https://arxiv.org/abs/2006.09365) are formed of the selected clients, before
any client drops out. If the last bucket has only one client, it is merged with the bucket before
it. A bucket is left out if too few of its clients report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.contract import problem_of
from fedcli.learning.aggregators.pre_aggregation import Bucketing, PreAggregated, deltas_of_rows
from fedcli.learning.aggregators.robust import skipped
from fedcli.learning.engines.deltas import DeltaRequest, Deltas, mapped_rows
from fedcli.learning.masked_sums import MaskedSums, SumOptions
from fedcli.learning.secure_sums.common import Result, largest_power, rows_of, sums_among
from fedcli.settings.vocabulary import BUCKET_JOINT


@dataclass(frozen=True)
class SecureBuckets:
    """Gives an aggregator the means of buckets of clients, each from a secure sum of its own.

    Attributes:
        inner: The aggregator, with bucketing before it.
        options: The options of the sums.
    """

    selected_by: ClassVar[str] = "--secure-sum"

    inner: PreAggregated
    options: SumOptions = SumOptions()

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the aggregator's state, and the number of skipped rounds."""
        return self.inner.init_for(num_params)

    def init(self) -> dict[str, Any]:
        """Returns the state for a model without parameters."""
        return self.inner.init()

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas, which clients mask."""
        return self.inner.request(state)

    def problem(self, num_clients: int) -> str | None:
        """Returns why the deltas of `num_clients` clients cannot be combined, or None."""
        rule = self.inner.aggregator_among(num_clients)
        return problem_of(rule, len(self._sizes(num_clients)))

    def aggregate(self, state: Mapping[str, Any], deltas: Deltas) -> Result:
        """Returns the aggregator's result for the buckets whose sum succeeds.

        Raises:
            ConfigError: A sum needs more than 62 bits.
        """
        groups = self._groups(deltas)
        largest = max((len(places) + absent for places, absent in groups), default=0)
        sums = [
            sums_among(
                self.options,
                deltas,
                places=places,
                num_absent=num_absent,
                first_sum=number,
                largest_group=largest,
            )
            for number, (places, num_absent) in enumerate(groups)
        ]
        rows = mapped_rows(len(groups), len(deltas.delta_sum))
        clients: list[str] = []
        bound = self.options.bound or largest_power(rows_of(deltas))
        for each, (places, _) in zip(sums, groups, strict=True):
            bucket_sum = each.weighted(rows_of(deltas)[places], each.reports.tolist(), bound)
            if bucket_sum is not None:
                rows[len(clients)] = bucket_sum[0] / bucket_sum[1]
                ids = deltas.round.client_ids if deltas.round else ()
                clients.append(BUCKET_JOINT.join(ids[place] for place in places[each.reports]))
        metrics = {"secure_sum": {**_joined(sums), "num_buckets": len(clients)}}
        num_selected = sum(each.num_selected for each in sums)
        rule = self.inner.aggregator_among(num_selected)
        if not clients or problem_of(rule, len(clients)) is not None:
            nothing, after, of_skipped = skipped(state, deltas)
            return nothing, after, {**of_skipped, **metrics}
        means = deltas_of_rows(deltas, rows[: len(clients)], tuple(clients))
        combined, after, of_rule = rule.aggregate(
            self.inner.rule_state(state), replace(means, root=deltas.root)
        )
        return combined, {**state, **after}, {**of_rule, **metrics}

    def _sizes(self, num_selected: int) -> list[int]:
        """Returns the sizes of the buckets of `num_selected` clients."""
        assert isinstance(self.inner.before, Bucketing)
        size = self.inner.before.size
        whole, rest = divmod(num_selected, size)
        sizes = [size] * whole + [rest] * (rest > 0)
        if rest == 1 and whole:
            sizes[-2:] = [size + 1]
        return sizes

    def _groups(self, deltas: Deltas) -> list[tuple[NDArray[np.int64], int]]:
        """The cohort positions in each bucket, and the number of its clients without a row."""
        assert deltas.round is not None
        context, num_rows = deltas.round, len(deltas.stats)
        num_selected = num_rows + context.num_absent
        key = stream_key(context.seed, Purpose.BUCKETS, round_num=context.round_num)
        order = Stream(key).permutation(num_selected)
        groups, first = [], 0
        for size in self._sizes(num_selected):
            members = order[first : first + size]
            places = members[members < num_rows]
            groups.append((places, size - len(places)))
            first += size
        return groups


def _joined(sums: list[MaskedSums]) -> dict[str, Any]:
    """Returns the metrics of the sums of all buckets of a round."""
    each = [one.metrics for one in sums]
    added = (
        *("num_selected", "num_dropped_out", "num_clipped"),
        *("all_setup_bytes_up", "all_setup_bytes_down"),
    )
    payload = max((one["payload_bytes"] for one in each), default=0)
    return {
        **{name: sum(one[name] for one in each) for name in added},
        "num_failed_buckets": sum(one["is_skipped"] for one in each),
        "is_skipped": int(all(one["is_skipped"] for one in each)),
        "payload_bytes": payload,
        **{name: each[0][name] if each else 0 for name in ("bits", "mask_bits")},
    }
