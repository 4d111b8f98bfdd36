"""Curves of runs by the megabytes that clients received and sent, instead of by round."""

from __future__ import annotations

from collections.abc import Callable

from fedcli.errors import ConfigError
from fedcli.runs.ledger import Ledger, ledger_of
from fedcli.runs.record import Points, RunRecord, Series

# The values of --x, each with the label of the x axis.
ROUND = "round"
AXES = {
    ROUND: "round",
    "megabytes": "MB received and sent",
    "megabytes-up": "MB sent",
}


def known_ledger(run: RunRecord) -> Ledger:
    """Returns the ledger of a run.

    Raises:
        ConfigError: The bytes cannot be computed.
        RunError: A file of the run is damaged.
    """
    ledger = ledger_of(run)
    if ledger is None:
        raise ConfigError(
            f"the number of bytes that clients of {run.path} sent is not known: they send no "
            "models, or the folder does not record how many clients took part; use --x round"
        )
    return ledger


def along(axis: str) -> Callable[[RunRecord, Series], Points]:
    """Returns a function for `curves_of` that maps the rounds of a run's series to an axis.

    Args:
        axis: A key of AXES.
    """

    def mapped(run: RunRecord, series: Series) -> Points:
        if axis == ROUND or not series:
            return series
        by_round = known_ledger(run).megabytes(up_alone=axis == "megabytes-up")
        return [
            (by_round[round_num], value) for round_num, value in series if round_num in by_round
        ]

    return mapped


def text(num_bytes: int) -> str:
    """Returns a number of bytes as text in megabytes of 10^6 bytes."""
    return f"{num_bytes / 1e6:#,.4g} MB" if num_bytes < 1e8 else f"{num_bytes / 1e6:,.0f} MB"
