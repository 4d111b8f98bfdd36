"""The errors fedcli raises on purpose: each is one line that says what is wrong and what to do."""

from __future__ import annotations

import errno

# What to do where the system refuses to write.
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or have it made yours to write",
    errno.EPERM: "choose another place, or have it made yours to write",
}


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


def why_not_written(err: OSError) -> str:
    """Returns why the system wrote nothing and, where that is known, what to do about it."""
    reason = err.strerror or str(err)
    remedy = _REMEDIES.get(err.errno or 0)
    return reason if remedy is None else f"{reason}; {remedy}"
