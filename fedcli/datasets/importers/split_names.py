"""Recognises names of folders, files and columns that mean train, test or validation.

A name is divided into words, at capitals and at characters that are not letters. It names a split
if one of its words does: "seg_train", "TestSet", "val2017", "Training".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fedcli.errors import DataError
from fedcli.settings.vocabulary import VALIDATION

# The meaning of "eval": validation if another name means test, else test.
EITHER = "test or validation"
_STEMS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "validating", "dev", "development"), VALIDATION
    ),
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout", "heldout"), EITHER),
}
# FER2013 and other competitions use these names for the two held-out halves.
USAGES = {"publictest": VALIDATION, "privatetest": "test"}
# What may follow a split's word directly, as in "trainset" or "testimages".
_ENDINGS = r"(?:sets?|data|datasets?|images?|imgs?|pictures?|pics?|photos?|split|folder|labels?)?"
_WORD = re.compile(f"({'|'.join(sorted(_STEMS, key=len, reverse=True))}){_ENDINGS}")
_CUT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # words of ASCII letters, camel case too


def kind_of(name: str) -> str | None:
    """Returns the split that a name means: "train", "test", "validation" or EITHER; else None.

    A name with two splits ("train_test") names none, but "train_val" is train.
    """
    matches = (_WORD.fullmatch(word.lower()) for word in _CUT.findall(name))
    kinds = {_STEMS[match[1]] for match in matches if match}
    words = {word.lower() for word in _CUT.findall(name)}
    if "out" in words and not words.isdisjoint(("hold", "held")):
        kinds.add(EITHER)
    if kinds == {"train", VALIDATION}:
        return "train"
    return kinds.pop() if len(kinds) == 1 else None


def assign(names: Iterable[str], where: str) -> dict[str, str]:
    """Returns the split of each name that names one.

    If only one split is held out, it is the split "test", whatever its name.

    Args:
        names: The names of all folders, files or values at one level.
        where: Prefix of error messages.

    Raises:
        DataError: Two names would be the same split.
    """
    kinds = {name: kind for name in names if (kind := kind_of(name)) is not None}
    kinds |= _halves(kinds)
    held_out = [name for name, kind in kinds.items() if kind != "train"]
    if len(held_out) == 1 and "train" in kinds.values():
        kinds[held_out[0]] = "test"
    free = "test" if "test" not in kinds.values() else VALIDATION
    splits = {name: free if kind == EITHER else kind for name, kind in kinds.items()}
    by_split: dict[str, str] = {}
    for name, split in splits.items():
        other = by_split.setdefault(split, name)
        if other != name:
            raise DataError(
                f"{where}: {other} and {name} would both be split {split!r}; remove one, or choose "
                f"one with --splits, as in --splits {_example(kinds, split, name)}"
            )
    return splits


def _halves(names: Iterable[str]) -> dict[str, str]:
    """Returns the splits of the two held-out halves if their names are those of competitions."""
    of_name = {name: USAGES.get(re.sub(r"[^a-z]", "", name.lower())) for name in names}
    found = {name: split for name, split in of_name.items() if split is not None}
    return found if len(found) == len(USAGES) else {}


def held_out_alone(splits: Mapping[str, str]) -> str | None:
    """Returns the name that is split "test" only because nothing else is held out, else None."""
    if VALIDATION in splits.values():
        return None
    for name, split in splits.items():
        if split == "test" and kind_of(name) != "test":
            return name
    return None


def _example(kinds: Mapping[str, str], split: str, name: str) -> str:
    train = next((each for each, kind in kinds.items() if kind == "train"), "FOLDER")
    return f"train={train},test=FOLDER" if split == "train" else f"train={train},{split}={name}"
