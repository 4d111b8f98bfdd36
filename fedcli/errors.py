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


MAX_MESSAGE = 1000  # characters of an error's text; what it quotes of a file may be longer


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Returns a text of at most so many characters: its beginning and its end."""
    if len(text) <= most:
        return text
    note = f" [... {len(text):,} characters ...] "
    end = (most - len(note)) // 3  # what to do stands at the end
    return text[: most - len(note) - end] + note + text[-end:]


class FedcliError(Exception):
    """Something the user can mend; its text is one line, and not without end."""

    def __str__(self) -> str:
        """Returns the text, shortened in the middle where it quotes very much."""
        return shortened(super().__str__())


class ConfigError(FedcliError):
    """An option, or a combination of options, that is not allowed."""


class DataError(FedcliError):
    """A data file, client or example that cannot be used."""


class OwnCodeError(FedcliError):
    """Code of the user's own that fails; what it raised, if it did, is the cause."""


class ModelError(OwnCodeError):
    """A model of the user's own that fails, or breaks the contract of models."""


class PartError(OwnCodeError):
    """Another part of the user's own, such as an algorithm, that fails or breaks its contract."""


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
