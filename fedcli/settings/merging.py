"""One set of options over another: what is given over a file or a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.settings import tables
from fedcli.settings.run_config import LOCAL_FIELDS, OPTION_OWNERS, OPTIONS, RunConfig


def merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `base` overridden by those of `given`.

    Maps of `k=v` options are merged key by key, unless `given` names another thing than `base`:
    one optimizer's options are not another's. The weights of clients drawn by size are not those
    of others.
    """
    merged = {**base, **given}
    _drop_defaults(base, merged, given)
    samplings = {each.get("sampling", RunConfig.sampling) for each in (base, merged)}
    if len(samplings) > 1 and "by-size" in samplings and "client_weighting" not in given:
        merged.pop("client_weighting", None)  # as with algorithms: it followed from the other
    for name, owner in OPTION_OWNERS.items():
        default = OPTIONS[owner].default or OPTIONS[owner].usual
        is_same = merged.get(owner, default) == base.get(owner, default)
        if name in merged:
            merged[name] = {**(base.get(name, {}) if is_same else {}), **given.get(name, {})}
    return merged


def _drop_defaults(
    base: Mapping[str, Any], merged: dict[str, Any], given: Mapping[str, Any]
) -> None:
    """Leaves out of `merged` what the algorithm of `base` said of optimizers and its own does not.

    Config files hold resolved values, so whether a server rate was asked for is not known.
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
        if name not in given:
            merged.pop(name, None)
