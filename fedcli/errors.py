"""The errors fedcli raises on purpose: each is one line that says what is wrong and what to do."""

from __future__ import annotations


class FedcliError(Exception):
    """Something the user can mend; its text is one line."""


class ConfigError(FedcliError):
    """An option, or a combination of options, that is not allowed."""


class DataError(FedcliError):
    """A data file, client or example that cannot be used."""


class ModelError(FedcliError):
    """A model of the user's own that fails; what its code raised, if it did, is the cause."""


class RunError(FedcliError):
    """A run directory that cannot be made, locked, read or continued."""


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, foreign or of another version."""


class StopTraining(Exception):  # noqa: N818 - it says what to do, nothing is wrong
    """Raised by a callback to end a run after the round that it was told of."""
