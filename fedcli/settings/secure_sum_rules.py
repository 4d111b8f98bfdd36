"""Options that are compatible with `--secure-sum`: those that need only sums over clients.

Some parts need individual updates, which the server never sees. Compressors work only with some
aggregators, because payloads are added before the server decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.declaration import option_name
from fedcli.settings.tables.secure_sums import AUTO_BOUND

_SINGLE = "needs the individual updates, which the server does not see"
_SCALES = "gives each client a scale of its own, so its codes cannot be added"
_MORE_VECTORS = "sends or needs more than updates, and only sums of updates are simulated"

# Aggregators that need one weighted sum, and those that need other sums.
_OF_ONE_SUM = ("mean", "norm-bound", "tff-robust")
_OF_SEVERAL_SUMS = ("geometric-median", "rfa", "centered-clipping", "sign-majority")
_AGGREGATORS = (*_OF_ONE_SUM, *_OF_SEVERAL_SUMS)
# Compressors whose payloads can be added. Of `powersgd` and `sketch` only the total is decoded.
_OF_UPDATES = ("fixed-step", "random-k")
_COMPRESSORS = (*_OF_UPDATES, "powersgd", "sketch")
_WHY_NOT_COMPRESS: Mapping[str, str] = {
    "top-k": "sends different coordinates for each client, so they cannot be added",
    "": _SCALES,
}
_ALGORITHMS = ("fedavg", "fedprox", "fedsgd", "fedavgm", "fedadagrad", "fedadam", "fedyogi")


def check(values: Mapping[str, Any]) -> None:
    """Refuses options that are not compatible with `--secure-sum`, if that is given.

    Args:
        values: The fields of a `RunConfig`, with the algorithm resolved.

    Raises:
        ConfigError: A part needs more than sums, or two parts do not work together with secure
            sums.
    """
    if not values["secure_sum"]:
        if values["secure_sum_options"]:
            name = next(iter(values["secure_sum_options"]))
            raise ConfigError(f"--secure-sum-option {name} is for --secure-sum; give that, too")
        return
    if values["algorithm"] not in _ALGORITHMS:
        _refuse("algorithm", values["algorithm"], _MORE_VECTORS, f"one of {', '.join(_ALGORITHMS)}")
    _check_aggregator(values)
    _check_compress(values)


def _check_aggregator(values: Mapping[str, Any]) -> None:
    before, rule = values["pre_aggregator"], values["aggregator"]
    if before is not None:
        if before != "bucketing":
            _refuse("pre_aggregator", before, _SINGLE, "bucketing")
        if values["pre_aggregator_options"].get("size") == 1:
            raise ConfigError(
                "--pre-aggregator-option size=1 with --secure-sum: the sum of a bucket of one "
                "client is its update; choose 2 or more"
            )
        return  # any aggregator may follow
    if rule not in _AGGREGATORS:
        others = f"one of {', '.join(_AGGREGATORS)}, or give --pre-aggregator bucketing"
        _refuse("aggregator", rule, _SINGLE, others)
    bound = values["secure_sum_options"].get("bound", AUTO_BOUND)
    if rule in _OF_SEVERAL_SUMS and bound != AUTO_BOUND:
        raise ConfigError(
            f"--secure-sum-option bound with --aggregator {rule}, which sets its own bound; "
            "leave it out"
        )
    if rule in ("geometric-median", "rfa") and values["aggregator_options"].get("start") != "mean":
        raise ConfigError(
            f"--aggregator {rule} with --secure-sum: it starts at the coordinate median, for which "
            "the server would need the individual updates; give --aggregator-option start=mean"
        )


def _check_compress(values: Mapping[str, Any]) -> None:
    compress = values["compress"]
    if compress is None:
        return
    if compress not in _COMPRESSORS:
        why = _WHY_NOT_COMPRESS.get(compress, _WHY_NOT_COMPRESS[""])
        _refuse("compress", compress, why, f"one of {', '.join(_COMPRESSORS)}")
    fitting = _OF_ONE_SUM if compress in _OF_UPDATES else ("mean",)
    if values["pre_aggregator"] is not None or values["aggregator"] not in fitting:
        name = "aggregator" if values["pre_aggregator"] is None else "pre_aggregator"
        raise ConfigError(
            f"--compress {compress} with --secure-sum and {option_name(name)} {values[name]}: the "
            "server decodes only the sum of the updates; choose --aggregator "
            f"{' or '.join(fitting)}"
        )


def _refuse(field: str, value: str, why: str, others: str) -> None:
    raise ConfigError(f"{option_name(field)} {value} with --secure-sum: it {why}; choose {others}")
