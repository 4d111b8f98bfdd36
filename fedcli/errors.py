"""The errors fedcli raises on purpose: each is one line that says what is wrong and what to do."""

from __future__ import annotations

import errno

# What the user can do about an error of a write, by errno.
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or have it made yours to write",
    errno.EPERM: "choose another place, or have it made yours to write",
}


MAX_MESSAGE = 1000  # characters of a message, which may quote a longer text from a file


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Returns the text, or its beginning and end if it has more than `most` characters."""
    if len(text) <= most:
        return text
    note = f" [... {len(text):,} characters ...] "
    end = (most - len(note)) // 3  # keep the end, which says what to do
    return text[: most - len(note) - end] + note + text[-end:]


class FedcliError(Exception):
    """An error that the user can mend. Its message is one line of bounded length."""

    def __str__(self) -> str:
        """Returns the message, shortened in the middle to `MAX_MESSAGE` characters."""
        return shortened(super().__str__())


class ConfigError(FedcliError):
    """An option, or a combination of options, that is not allowed."""


class DataError(FedcliError):
    """A data file, client or example that cannot be used."""


class OwnCodeError(FedcliError):
    """The user's own code fails. If it raised an exception, that is the `__cause__`."""


class ModelError(OwnCodeError):
    """The user's own model fails, or breaks the contract of models."""


class PartError(OwnCodeError):
    """Another part of the user's own, such as an algorithm, fails or breaks its contract."""


class RunError(FedcliError):
    """A run directory that cannot be made, locked, read or continued."""


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, of another version, or no checkpoint of fedcli."""


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by a callback to end the run after the round with which it was called."""


def why_not_written(err: OSError) -> str:
    """Returns why a write failed and, where it is known, what the user can do about it."""
    reason = err.strerror or str(err)
    remedy = _REMEDIES.get(err.errno or 0)
    return reason if remedy is None else f"{reason}; {remedy}"
