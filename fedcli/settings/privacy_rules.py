"""Rules of differential privacy: options that would break the guarantee are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.declaration import option_name
from fedcli.settings.options import choose
from fedcli.settings.tables.privacy import PRIVACY, PrivacyEntry
from fedcli.settings.vocabulary import BALANCED

# Why no accountant fits these ways of sampling.
_REASONS: Mapping[str, str] = {
    "with-replacement": "a client may take part several times in one round",
    "by-size": "how often a client takes part depends on its number of examples, which is private",
}
# Compressors that decode updates together, with directions or places common to the cohort.
_MIXING = ("powersgd", "sketch")


def resolve(values: dict[str, Any]) -> None:
    """Sets the client weighting that privacy needs; refuses options that break the guarantee.

    Args:
        values: The fields of a config with `dp` set.

    Raises:
        ConfigError: An option is not allowed beside --dp.
    """
    entry = choose(PRIVACY, values["dp"], "--dp")
    start = f"--dp {entry.name}"
    _check_updates(start, values)
    _check_algorithm(start, values)
    if values["client_weighting"] is None:
        values["client_weighting"] = "uniform"
    if values["client_weighting"] != "uniform":
        raise ConfigError(
            f"{start} with --client-weighting {values['client_weighting']}: a client with many "
            "examples would count without a limit; choose --client-weighting uniform"
        )
    _check_sampling(start, entry, values)
    if values["class_weights"] == BALANCED:
        raise ConfigError(
            f"{start} with --class-weights {BALANCED}: the labels of all clients are counted "
            "without noise; give the weights in a file"
        )


def _check_updates(start: str, values: Mapping[str, Any]) -> None:
    """Refuses options with which one client could change more than its own bounded update."""
    if values["aggregator"] != "mean":
        raise ConfigError(
            f"{start} with --aggregator {values['aggregator']}: only the mean has a known bound on "
            "the influence of one client; choose --aggregator mean"
        )
    if values["pre_aggregator"] is not None:
        raise ConfigError(
            f"{start} with --pre-aggregator {values['pre_aggregator']}: each update that it "
            "returns depends on the others, so one client could change several of them; leave it "
            "out"
        )
    if values["compress"] in _MIXING:
        raise ConfigError(
            f"{start} with --compress {values['compress']}: one update is decoded together with "
            "the others, so one client could change several of them; choose --compress uniform"
        )
    if values["secure_sum"]:
        _check_secure_sum(start, values)


def _check_secure_sum(start: str, values: Mapping[str, Any]) -> None:
    """Refuses secure sums that fail if too few clients report."""
    if values["secure_sum_options"].get("threshold") == 0.0:
        return
    for name in ("client_dropout", "deadline"):
        if values[name]:
            raise ConfigError(
                f"{start} with --secure-sum and {option_name(name)} {values[name]:g}: a sum fails "
                "if few clients report, and then no client counts, which no accountant covers; "
                f"give --secure-sum-option threshold=0, or leave out {option_name(name)}"
            )


def _check_algorithm(start: str, values: Mapping[str, Any]) -> None:
    """Refuses algorithms whose clients send more than one bounded update."""
    if tables.ALGORITHMS[values["algorithm"]].sends_deltas_alone:
        return
    fitting = [name for name, entry in tables.ALGORITHMS.items() if entry.sends_deltas_alone]
    raise ConfigError(
        f"{start} with --algorithm {values['algorithm']}: its server uses more than the mean "
        "of the clients' updates, and the rest would get no noise; choose "
        f"{', '.join(fitting[:-1])} or {fitting[-1]}"
    )


def _check_sampling(start: str, entry: PrivacyEntry, values: Mapping[str, Any]) -> None:
    """Refuses cohorts for which there is no accountant."""
    sampling = values["sampling"]
    if sampling not in entry.samplings:
        if "fixed" not in entry.samplings:
            why = "its noise is shared between rounds, so clients must not be drawn at random"
        else:
            why = _REASONS.get(sampling, "how often a client takes part is not known")
        raise ConfigError(
            f"{start} with --sampling {sampling}: {why}; choose --sampling {entry.samplings[0]}"
        )
    for name, harmless in (("over_selection", 0.0), ("min_reports", None)):
        if values[name] != harmless:
            option = f"--{name.replace('_', '-')} {values[name]:g}"
            raise ConfigError(
                f"{start} with {option}: whether a client counts would depend on the others, "
                "which no accountant covers; leave it out"
            )
