"""Merges options: the user's options override those of a file or a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.settings import tables
from fedcli.settings.run_config import LOCAL_FIELDS, OPTION_OWNERS, OPTIONS, RunConfig


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `base`, overridden by those of `changes`.

    Maps of `k=v` options are merged key by key if both belong to the same part, such as the same
    optimizer. If `changes` names another optimizer, the optimizer options in `base` are dropped. A
    client weighting in `base` is also dropped if the sampling changes from or to by-size.
    """
    merged = {**base, **changes}
    _drop_defaults(base, merged, changes)
    samplings = {each.get("sampling", RunConfig.sampling) for each in (base, merged)}
    if len(samplings) > 1 and "by-size" in samplings and "client_weighting" not in changes:
        merged.pop("client_weighting", None)  # it may be the default of the other sampling
    for name, owner in OPTION_OWNERS.items():
        default = OPTIONS[owner].default or OPTIONS[owner].usual
        is_same = merged.get(owner, default) == base.get(owner, default)
        if name in merged:
            merged[name] = {**(base.get(name, {}) if is_same else {}), **changes.get(name, {})}
    return merged


def _drop_defaults(
    base: Mapping[str, Any], merged: dict[str, Any], changes: Mapping[str, Any]
) -> None:
    """Removes from `merged` the values that were defaults of the algorithm of `base`.

    Config files hold resolved values, so it is unknown whether the user gave a server rate or the
    algorithm set it. A change of algorithm therefore drops such values unless `changes` has them.
    """
    before, after = (
        tables.ALGORITHMS.find(each.get("algorithm", RunConfig.algorithm))
        for each in (base, merged)
    )
    if before is None or after is None or before.name == after.name:
        return
    dropped: tuple[str, ...] = () if after.has_local_steps else LOCAL_FIELDS
    if before.server_lr != after.server_lr:
        dropped = (*dropped, "server_lr")
    if before.server_optimizer or after.server_optimizer:
        dropped = (*dropped, "server_optimizer", "server_options")
    if before.weightings != after.weightings:
        dropped = (*dropped, "client_weighting")
    for name in dropped:
        if name not in changes:
            merged.pop(name, None)
