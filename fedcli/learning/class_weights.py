"""Weights of the training loss by class: balanced, or from a file.

They act as Keras's `class_weight`. The loss of an example is multiplied by the weight of its label.
The loss of a batch is the sum of these products divided by the number of its examples, not by the
sum of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.csv_text import read_rows
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.labels import value_of
from fedcli.digest import blake2b
from fedcli.errors import ConfigError, plural
from fedcli.files import read_bounded
from fedcli.settings.options import check_number, did_you_mean
from fedcli.settings.vocabulary import BALANCED

MAX_WEIGHT = 1e6
MAX_FILE_BYTES = 16 << 20  # the largest size of a file of weights, which is read whole
_LIST = "a JSON list of the weights in the order of the classes' numbers"


def load_class_weights(
    text: str, train: ClientData, cancel: CancelFlag | None = None
) -> NDArray[np.float32]:
    """Returns the weights for a value of --class-weights, float32 [num_classes].

    Args:
        text: `balanced`, or the path of a JSON or CSV file.
        train: The training split; the labels of all its clients are counted.
        cancel: A flag that any thread may set to stop the counting.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: The file cannot be read, or does not give each class one weight.
        DataError: A client's data are invalid.
    """
    if text == BALANCED:
        return balanced(_count_labels(train, cancel)).astype(np.float32)
    label = f"--class-weights {text}"
    weights = np.array(_of_file(Path(text), label, train), np.float32)
    if not weights.any():
        raise ConfigError(
            f"{label}: all weights are 0, so nothing would be learnt; give at least one above 0"
        )
    return weights


def checked_weights(class_weights: ArrayLike, num_classes: int) -> NDArray[np.float32]:
    """Returns a caller's weights as float32 [num_classes].

    Raises:
        ConfigError: They do not give each class one finite weight of at least 0.
    """
    try:
        with np.errstate(over="ignore"):  # an infinity is rejected below
            weights = np.array(class_weights, np.float32)
    except (TypeError, ValueError) as err:
        raise ConfigError(f"class_weights are not numbers ({err}); give one per class") from err
    if weights.shape != (num_classes,):
        raise ConfigError(
            f"class_weights have shape {list(weights.shape)}, but the model has {num_classes} "
            "classes; give one weight per class"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ConfigError(
            "class_weights contain a negative or non-finite number; give finite weights, at least 0"
        )
    return weights


def balanced(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns n / (K * n_k) for each class, as scikit-learn's `compute_class_weight("balanced")`.

    n is the number of examples, n_k the number in class k, and K the number of classes that have
    examples. The mean weight of an example is 1. A class without examples gets weight 1, which has
    no effect.

    Args:
        counts: n_k, int64 [num_classes].

    Returns:
        float64 [num_classes].
    """
    has_any = counts > 0
    weights: NDArray[np.float64] = np.ones(len(counts))
    np.divide(counts.sum(), np.count_nonzero(has_any) * counts, out=weights, where=has_any)
    return weights


def describe(weights: NDArray[np.float32], train: ClientData) -> str:
    """Returns a line with the smallest and the largest weight."""
    indices = (int(weights.argmin()), int(weights.argmax()))
    smallest, largest = (
        f"{weights[each]:.4g} (class {train.class_name(each)})" for each in indices
    )
    return f"class weights of the training loss: {smallest} to {largest}"


def digest_of(weights: NDArray[np.float32]) -> str:
    """Returns the BLAKE2b of the weights in hexadecimal."""
    return blake2b(weights.astype("<f4").tobytes(), digest_size=16).hexdigest()


def _count_labels(train: ClientData, cancel: CancelFlag | None) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.zeros(train.num_classes, np.int64)
    for client_id in train.client_ids:
        if cancel is not None and cancel.is_set():
            raise Cancelled
        counts += np.bincount(train.labels(client_id), minlength=len(counts))
    return counts


def _of_file(path: Path, label: str, train: ClientData) -> list[float]:
    """Returns the weight of each class, in order."""
    try:
        text = read_bounded(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as err:
        raise ConfigError(f"{label}: cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{label}: is not UTF-8 text; give JSON or CSV") from err
    weights = _from_json(text, label) if text.lstrip()[:1] in ("{", "[") else _from_csv(text, label)
    if isinstance(weights, dict):
        keys = list(weights)
        numbers = _classes_of(keys, label, train)
        by_class = {number: weights[key] for number, key in zip(numbers, keys, strict=True)}
        if len(by_class) < len(keys):
            raise ConfigError(f"{label}: a class has two weights; give each class one weight")
    else:
        by_class = dict(enumerate(weights))
    count = train.num_classes
    missing = next((each for each in range(count) if each not in by_class), None)
    if missing is not None or len(by_class) > count:
        lacks = "" if missing is None else f", none for class {train.class_name(missing)}"
        raise ConfigError(
            f"{label}: has weights for {plural(len(by_class), 'class')}, but {train.source} has "
            f"{count}{lacks}; give each class a weight"
        )
    return [
        _weight(f"{label}: class {train.class_name(each)}", by_class[each]) for each in range(count)
    ]


def _weight(label: str, value: Any) -> float:
    try:
        return check_number(label, value, 0.0, MAX_WEIGHT)
    except OverflowError:  # an integer too large for a float
        return check_number(label, math.inf, 0.0, MAX_WEIGHT)


def _from_json(text: str, label: str) -> dict[str, Any] | list[Any]:
    """Returns a dict of weights by class, or a list of weights."""
    try:
        weights: dict[str, Any] | list[Any] = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"{label}: is not valid JSON, or has a class twice: {err}") from err
    return weights


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    by_key: dict[str, Any] = {}
    for key, value in pairs:
        if key in by_key:
            raise ValueError(f"{key!r} occurs twice")
        by_key[key] = value
    return by_key


def _from_csv(text: str, label: str) -> dict[str, Any]:
    """Returns weights by class from rows (class, weight), with or without a header."""
    try:
        rows = [row for row in read_rows(text) if any(cell.strip() for cell in row)]
    except ValueError as err:
        raise ConfigError(f"{label}: is not CSV: {err}; give rows class,weight") from err
    by_class: dict[str, Any] = {}
    for place, row in enumerate(rows):
        value = _number(row[1]) if len(row) == 2 else None
        if value is None and place == 0 and len(row) == 2:
            continue  # a header
        key = row[0].strip()
        if value is None or key in by_class:
            what = "occurs twice" if key in by_class else "has no number in a second column"
            raise ConfigError(f"{label}: {key[:60]!r} {what}; give each class a row class,weight")
        by_class[key] = value
    if not by_class:
        raise ConfigError(
            f"{label}: contains no weights; give {BALANCED}, rows class,weight, JSON "
            f'{{"class": weight}}, or {_LIST}'
        )
    return by_class


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _classes_of(keys: Sequence[str], label: str, train: ClientData) -> list[int]:
    """Returns the class number of each key, which is a class's name or its number."""
    names = {name: number for number, name in enumerate(train.class_names or ())}
    by_name = [names.get(key.strip(), -1) for key in keys]
    by_value = [value if _is_class(value := value_of(key), train) else -1 for key in keys]
    are_names, are_values = -1 not in by_name, -1 not in by_value
    if are_names and are_values and by_name != by_value:
        raise ConfigError(
            f"{label}: its keys are ambiguous: they are both names and numbers of different "
            f"classes; give {_LIST}"
        )
    if are_names:
        return by_name
    if are_values:
        return [value for value in by_value if value is not None]
    classes = by_name if max(by_name, default=-1) >= 0 else by_value
    wrong = keys[classes.index(-1)]
    known = list(names) or [str(each) for each in range(min(train.num_classes, 1000))]
    raise ConfigError(
        f"{label}: {wrong[:60]!r} is not one of the {train.num_classes} classes of {train.source} "
        f"({', '.join(known[:3])}, ...){did_you_mean(wrong, known)}"
    )


def _is_class(value: int | None, train: ClientData) -> bool:
    return value is not None and 0 <= value < train.num_classes
