"""Reads labels as sources write them: whole numbers of any type, one-hot rows, or class names.

Every importer reads its labels through this module, so that 3, 3.0, "3", [3], a one-hot row and
True have the same meaning in every format.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import first_outside
from fedcli.datasets.checks import bad_class_name, is_name
from fedcli.errors import DataError
from fedcli.settings.vocabulary import MAX_CLASSES

# EMNIST's order: digits, capitals, small letters.
CHARACTER_NAMES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
_FRACTION_FREE = re.compile(r"[+-]?[0-9]{1,18}\.0*")
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?|[+-]?inf(?:inity)?"
)
# Texts that stand for a missing label. "none" may also be the name of a class.
_MISSING = {"", "?", "nan", "na", "n/a", "null", "<na>", "#n/a"}
_MISSING_NUMBERS = {"none", "-", "."}
_FIRST_CODE = 1 << 30  # the first temporary code of a text label; larger than any class number
_MAX_TEXTS = 1 << 20
_WHOLE_DOUBLE = 1 << 53  # above it, float64 cannot represent every whole number


@dataclass(frozen=True)
class Classes:
    """The classes of a source.

    Attributes:
        names: A name for each class; empty if labels are numbers.
        numbers: The label of each text, in the order in which the texts were read.
        renumbered: For sources that mix numbers and names: the label of each number.
        num_hot: The length of one-hot rows; 0: labels are not one-hot.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    renumbered: dict[int, int]
    num_hot: int

    def number(self, codes: NDArray[Any]) -> NDArray[np.int32]:
        """Returns the labels of codes [n] that `LabelReader.add` returned."""
        is_text = codes >= _FIRST_CODE
        if not is_text.any() and not self.renumbered:
            return codes.astype(np.int32, copy=False)
        labels = np.empty(len(codes), np.int32)
        labels[is_text] = self.numbers[codes[is_text] - _FIRST_CODE]
        plain, inverse = np.unique(codes[~is_text], return_inverse=True)
        known = [self.renumbered.get(each, each) for each in plain.tolist()]
        labels[~is_text] = np.array(known, np.int32)[inverse]
        return labels


class LabelReader:
    """Reads the labels of all splits of a source, block by block."""

    def __init__(self) -> None:
        """Makes a reader that has read no labels yet."""
        self._codes: dict[str, int] = {}
        self._places: list[str] = []
        self._num_hot = 0

    def add(
        self,
        values: NDArray[Any] | Sequence[Any],
        where: str,
        first: int = 0,
        place: Callable[[int], str] | None = None,
    ) -> NDArray[np.int64]:
        """Returns codes [n] of a block. The code of a number is the label itself.

        Args:
            values: Numbers, texts or bytes [n] or [n, 1], or one-hot rows [n, k].
            where: The file or array, as prefix of error messages.
            first: The index in the source of the first value.
            place: Returns the name of row i in messages; by default `where` and "example i".

        Raises:
            DataError: A label is missing, not whole, or too large for a class number; the message
                names the row.
        """
        name = place or (lambda index: f"{where}: example {first + index}")
        array = _as_array(values, name)
        if array.dtype.kind in "USO":
            return self._add_texts(_as_texts(array, where, name), name)
        if array.ndim == 2 and array.shape[1] > 1:
            self._check_width(array.shape[1], where)
        return check_classes(whole_numbers(array, where, first, place), where, first, place)

    def classes(self, codes: Iterable[NDArray[Any]]) -> Classes:
        """Returns the classes of all labels.

        Args:
            codes: The codes that `add` returned, in any number of arrays.

        Raises:
            DataError: All texts are numbers but some are not whole, or a number cannot be a class.
        """
        texts = list(self._codes)
        if not texts:
            return Classes((), np.empty(0, np.int64), {}, self._num_hot)
        whole = [_WHOLE.fullmatch(text) for text in texts]
        if any(whole) or all(_NUMBER.fullmatch(text.lower()) for text in texts):
            self._refuse_missing_numbers(texts)
        if all(whole):
            values = np.array([int(match.group(1)) for match in whole if match], np.int64)
            check_classes(values, "", 0, self._places.__getitem__)
            return Classes((), values, {}, 0)
        plain = np.unique(np.concatenate([np.unique(each) for each in codes]))
        plain_numbers = plain[plain < _FIRST_CODE].tolist()
        canonical = [_canonical(text) for text in texts]
        names = tuple(sorted({*canonical, *map(str, plain_numbers)}, key=name_key))
        rank = {name: label for label, name in enumerate(names)}
        return Classes(
            names,
            np.array([rank[name] for name in canonical], np.int64),
            {number: rank[str(number)] for number in plain_numbers},
            0,
        )

    def _refuse_missing_numbers(self, texts: Sequence[str]) -> None:
        """Refuses labels that are missing or not whole, if the others are numbers."""
        numbers: list[str] = []
        others: list[str] = []
        for text in texts:
            (numbers if _NUMBER.fullmatch(text.lower()) else others).append(text)
        missing = next((text for text in others if text.lower() in _MISSING_NUMBERS), None)
        if missing is not None and len(others) == 1:
            raise _missing(missing, self._places[texts.index(missing)])
        if others:
            return
        broken = next((text for text in numbers if not _WHOLE.fullmatch(text)), None)
        if broken is not None:
            raise _not_whole(broken, self._places[texts.index(broken)])

    def _add_texts(self, texts: Sequence[str], place: Callable[[int], str]) -> NDArray[np.int64]:
        codes = np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            code = self._codes.setdefault(text, len(self._codes))
            if code == len(self._places):
                if text.lower() in _MISSING:
                    raise _missing(text, place(index))
                if not is_name(text):
                    raise bad_class_name(text, place(index))
                if code >= _MAX_TEXTS:
                    raise DataError(
                        f"{place(index)}: there are more than {_MAX_TEXTS} different labels, so "
                        "this is probably not the column of labels; choose it with --label-column"
                    )
                self._places.append(place(index))
            codes[index] = code
        return codes + _FIRST_CODE

    def _check_width(self, width: int, where: str) -> None:
        if self._num_hot not in (0, width):
            raise DataError(
                f"{where}: one-hot labels have {width} columns but earlier ones {self._num_hot}; "
                "give all rows the same number of columns"
            )
        self._num_hot = width


def whole_numbers(
    values: NDArray[Any],
    where: str,
    first: int = 0,
    place: Callable[[int], str] | None = None,
) -> NDArray[np.int64]:
    """Returns labels [n] from values that stand for whole numbers.

    Args:
        values: bool, integers or floating-point numbers [n] or [n, 1], or one-hot rows [n, k].
        where: Prefix of error messages.
        first: The index in the source of the first value.
        place: Returns the name of row i in messages; by default `where` and "example i".

    Raises:
        DataError: A label is missing or not whole, or shape or type are wrong; the message names
            the row.
    """
    name = place or (lambda index: f"{where}: example {first + index}")
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: labels have dtype {values.dtype}; give whole numbers, or names in a format "
            "that has them (CSV, npz, folders)"
        )
    if values.ndim and math.prod(values.shape[1:]) == 1:
        values = values.reshape(-1)
    elif values.ndim == 2:
        values = _from_one_hot(values, where, name)
    if values.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {list(values.shape)}; give one whole number per image, [n]"
        )
    if values.dtype.kind == "f":
        _check_whole(values, name)
    elif values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        index = int(values.argmax())
        raise DataError(f"{name(index)}: label {values[index]} cannot be a class; correct the data")
    return values.astype(np.int64)


def check_classes(
    labels: NDArray[np.int64],
    where: str,
    first: int = 0,
    place: Callable[[int], str] | None = None,
) -> NDArray[np.int64]:
    """Returns labels [n], after checking that each can be a class.

    Raises:
        DataError: A label is negative or too large for a class; the message names the row.
    """
    index = first_outside(labels, MAX_CLASSES)
    if index is not None:
        name = place(index) if place else f"{where}: example {first + index}"
        raise DataError(
            f"{name}: label {labels[index]} cannot be a class, because classes are 0 to "
            f"{MAX_CLASSES - 1}; correct the data"
        )
    return labels


def count_rows(shape: tuple[int, ...], where: str) -> int:
    """Returns how many labels an array of a shape holds: [n], [n, 1] or one-hot [n, k].

    Raises:
        DataError: The shape is none of these.
    """
    if not shape or (len(shape) > 2 and math.prod(shape[1:]) != 1):
        raise DataError(
            f"{where}: labels have shape {list(shape)}; give one whole number per image, [n]"
        )
    return shape[0]


def name_key(name: str) -> tuple[int, str]:
    """Returns the sort key of a class name: numbers sort by value, before other names."""
    is_number = re.fullmatch(r"-?[0-9]{1,9}", name) is not None
    return (int(name) if is_number else 10**10, name)


def value_of(name: str) -> int | None:
    """Returns the value of a class name that is a whole number; None for other names."""
    match = _WHOLE.fullmatch(name)
    return int(match.group(1)) if match else None


def are_numbers(names: Sequence[str]) -> bool:
    """Returns whether data with these class names agree with data whose classes are numbers.

    They agree if the names are the class numbers, or EMNIST's characters in their usual order.
    """
    are_characters = tuple(names) == CHARACTER_NAMES[: len(names)]
    return are_characters or all(value_of(name) == place for place, name in enumerate(names))


def _as_array(values: Any, place: Callable[[int], str]) -> NDArray[Any]:
    """Values as an array [n] or [n, k]; texts stay Python objects."""
    if isinstance(values, np.ndarray):
        return values
    missing = next((index for index, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise _missing("null", place(missing))
    if any(isinstance(value, (str, bytes)) for value in values):
        objects = np.empty(len(values), object)
        objects[:] = values
        return objects
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind == "O":
        index = _first_invalid(values)
        raise DataError(
            f"{place(index)}: label {values[index]!r:.40} cannot be a class; give a whole number "
            "or a name"
        )
    return array if len(values) else array.astype(np.int64)


def _first_invalid(values: Sequence[Any]) -> int:
    """The index of the first value that does not fit the others.

    If the first value is a list, all others must be lists of the same length. Else all must be
    numbers of at most 64 bits.
    """
    length = len(values[0]) if isinstance(values[0], list) else None
    for index, value in enumerate(values):
        if isinstance(value, list):
            is_strange = len(value) != length
        else:
            is_strange = length is not None or abs(value) >= 1 << 63
        if is_strange:
            return index
    return 0


def _as_texts(array: NDArray[Any], where: str, place: Callable[[int], str]) -> list[str]:
    if array.ndim == 0 or math.prod(array.shape[1:]) != 1:
        raise DataError(
            f"{where}: labels are texts of shape {list(array.shape)}; give one label per image, [n]"
        )
    texts = []
    for index, value in enumerate(array.reshape(-1).tolist()):
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as err:
            raise DataError(
                f"{place(index)}: label {value[:40]!r} is not UTF-8 text; correct the data"
            ) from err
        texts.append(text.strip())
    return texts


def _from_one_hot(
    values: NDArray[Any], where: str, place: Callable[[int], str]
) -> NDArray[np.int64]:
    """The labels of one-hot rows."""
    if values.shape[1] == 0:
        raise DataError(
            f"{where}: labels have shape {list(values.shape)}; give one label per image, [n]"
        )
    is_one = values == 1
    num_ones = is_one.sum(axis=1)
    is_hot = (num_ones == 1) & ((values == 0).sum(axis=1) == values.shape[1] - 1)
    if not is_hot.all():
        index = int((~is_hot).argmax())
        raise DataError(
            f"{place(index)}: labels have shape [n, {values.shape[1]}], and this row is not "
            f"one-hot ({num_ones[index]} ones); give one class per image, which y.argmax(axis=1) "
            "returns"
        )
    labels: NDArray[np.int64] = is_one.argmax(axis=1).astype(np.int64)
    return labels


def _check_whole(values: NDArray[Any], place: Callable[[int], str]) -> None:
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
        is_whole = np.isfinite(wide) & (np.rint(wide) == wide) & (np.abs(wide) < _WHOLE_DOUBLE)
    if is_whole.all():
        return
    index = int((~is_whole).argmax())
    value = float(values[index])
    if math.isnan(value):
        raise _missing("nan", place(index))
    raise _not_whole(f"{value:.10g}", place(index))


def _canonical(text: str) -> str:
    """The canonical name of a class: "1" for "1.0", else the text itself."""
    return str(int(text.partition(".")[0])) if _FRACTION_FREE.fullmatch(text) else text


def _missing(text: str, place: str) -> DataError:
    if not text:
        return DataError(f"{place}: has no label; give each row a label, or remove the row")
    return DataError(
        f"{place}: label {text!r} is missing; give each row a label, or remove the row"
    )


def _not_whole(text: str, place: str) -> DataError:
    return DataError(
        f"{place}: label {text} is not a whole number, and classes are whole numbers or names; "
        "correct the data, or name another column"
    )
