"""Which options are compatible with `--secure-sum`: those that need only the sum of the updates.

A secure sum gives the server one sum a round. Some parts need single updates, which it never sees.
Others could work with several sums a round, or with sums of what they send beside the update; those
are not simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.declaration import option_name

_SINGLE = "needs the single updates, which the server does not see"
_SCALES = "gives each client a scale of its own, so its codes cannot be added"
_SUMS_OF_CODES = "could be added as it is, but the sum of its payloads is not simulated"
_MANY_SUMS = "needs a secure sum for each of its steps, which is not simulated"
_MORE_VECTORS = "sends or needs more than the sum of the updates, which is not simulated"

# For each option, the compatible values, and why others are not; "" stands for all others.
_AGGREGATORS = ("mean", "norm-bound", "tff-robust")
_WHY_NOT_AGGREGATOR: Mapping[str, str] = {
    **dict.fromkeys(("geometric-median", "rfa", "centered-clipping", "sign-majority"), _MANY_SUMS),
    "": _SINGLE,
}
_WHY_NOT_PRE_AGGREGATOR: Mapping[str, str] = {
    "bucketing": "needs a secure sum for each bucket, which is not simulated",
    "": _SINGLE,
}
_WHY_NOT_COMPRESS: Mapping[str, str] = {
    **dict.fromkeys(("fixed-step", "random-k", "powersgd", "sketch"), _SUMS_OF_CODES),
    "top-k": "sends other coordinates for each client, so they cannot be added",
    "": _SCALES,
}
_ALGORITHMS = ("fedavg", "fedprox", "fedsgd", "fedavgm", "fedadagrad", "fedadam", "fedyogi")


def check(values: Mapping[str, Any]) -> None:
    """Refuses options that are not compatible with `--secure-sum`, if that is given.

    Args:
        values: The fields of a `RunConfig`, with the algorithm resolved.

    Raises:
        ConfigError: A part needs more than the sum of the updates.
    """
    if not values["secure_sum"]:
        if values["secure_sum_options"]:
            name = next(iter(values["secure_sum_options"]))
            raise ConfigError(f"--secure-sum-option {name} is for --secure-sum; give that, too")
        return
    if values["algorithm"] not in _ALGORITHMS:
        _refuse("algorithm", values["algorithm"], _MORE_VECTORS, f"one of {', '.join(_ALGORITHMS)}")
    if values["aggregator"] not in _AGGREGATORS:
        why = _reason(_WHY_NOT_AGGREGATOR, values["aggregator"])
        _refuse("aggregator", values["aggregator"], why, f"one of {', '.join(_AGGREGATORS)}")
    for field, reasons in (
        ("pre_aggregator", _WHY_NOT_PRE_AGGREGATOR),
        ("compress", _WHY_NOT_COMPRESS),
    ):
        if values.get(field) is not None:
            _refuse(field, values[field], _reason(reasons, values[field]), "")


def _reason(reasons: Mapping[str, str], name: str) -> str:
    return reasons.get(name, reasons[""])


def _refuse(field: str, value: str, why: str, others: str) -> None:
    advice = f"choose {others}" if others else "leave it out"
    raise ConfigError(f"{option_name(field)} {value} with --secure-sum: it {why}; {advice}")
