"""Labels in any spelling are the same labels; an invalid label is refused with its row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedcli.datasets.labels import LabelReader, name_key, whole_numbers
from fedcli.errors import DataError

VALUES = [3, 0, 2, 1, 3]


def classes_of(*blocks: Any) -> tuple[list[list[int]], tuple[str, ...]]:
    reader = LabelReader()
    codes = [reader.add(block, "a.csv") for block in blocks]
    classes = reader.classes(codes)
    return [classes.number(each).tolist() for each in codes], classes.names


@pytest.mark.parametrize(
    "written",
    [
        VALUES,
        np.array(VALUES, np.int8),
        np.array(VALUES, ">i4"),
        np.array(VALUES, np.uint64),
        np.array(VALUES, np.float16),
        np.array(VALUES, ">f8"),
        np.array(VALUES)[:, None],
        np.eye(4, dtype=np.float32)[VALUES],
        np.eye(4, dtype=bool)[VALUES],
        np.eye(4, dtype=np.int64)[VALUES].tolist(),
        [float(value) for value in VALUES],
        [str(value) for value in VALUES],
        [f"{value}.0" for value in VALUES],
        ["3", "0.0", " 2 ", "01", "3.00"],
        np.array([str(value) for value in VALUES]),
        np.array([str(value) for value in VALUES], "S"),
    ],
)
def test_whole_numbers_in_any_spelling(written: Any) -> None:
    assert classes_of(written) == ([VALUES], ())


def test_truth_values_are_two_classes() -> None:
    assert classes_of(np.array([True, False])) == ([[1, 0]], ())
    assert classes_of([True, False]) == ([[1, 0]], ())


def test_texts_are_names_sorted_numbers_by_value() -> None:
    assert classes_of(["dog", "cat", "dog"]) == ([[1, 0, 1]], ("cat", "dog"))
    assert classes_of(["10", "9", "x"]) == ([[1, 0, 2]], ("9", "10", "x"))
    assert classes_of(["1", "1.0", "x"]) == ([[0, 0, 1]], ("1", "x"))
    assert classes_of(["none", "mild", "severe"])[1] == ("mild", "none", "severe")
    assert name_key("9") < name_key("10") < name_key("a")


def test_splits_of_numbers_and_of_texts_are_matched_by_value() -> None:
    assert classes_of(np.array([0, 2]), ["2", "0"]) == ([[0, 2], [2, 0]], ())
    assert classes_of(np.array([5, 2]), ["x", "2"]) == ([[1, 0], [2, 0]], ("2", "5", "x"))


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ([1, 2.5], "example 8: label 2.5 is not a whole number"),
        ([1, float("nan")], "example 8: label 'nan' is missing"),
        ([1, float("inf")], "example 8: label inf is not a whole number"),
        ([1, None], "example 8: label 'null' is missing"),
        (["1", ""], "example 8: has no label"),
        (["1", "?"], "example 8: label '?' is missing"),
        (["1", "NaN"], "example 8: label 'NaN' is missing"),
        (["1", "none"], "example 8: label 'none' is missing"),
        (["1", "2.5"], "example 8: label 2.5 is not a whole number"),
        (["1", "-1"], "example 8: label -1 cannot be a class"),
        ([1, -1], "example 8: label -1 cannot be a class"),
        ([1, 2**70], f"example 8: label {2**70} cannot be a class"),
        (np.array([1, 2**63 + 1], np.uint64), "example 8: label 9223372036854775809 cannot be"),
        (np.eye(3) * 0.5, "example 7: labels have shape [n, 3], and this row is not one-hot"),
        (np.zeros((2, 2, 2)), "labels have shape [2, 2, 2]"),
        (np.array([1j, 2]), "labels have dtype complex128"),
    ],
)
def test_an_invalid_label_is_refused_with_its_row(written: Any, fault: str) -> None:
    reader = LabelReader()
    with pytest.raises(DataError) as caught:
        reader.classes([reader.add(written, "a.csv", 7)])
    assert str(caught.value).startswith("a.csv: ")
    assert fault in str(caught.value)


def test_one_hot_rows_of_two_lengths() -> None:
    reader = LabelReader()
    reader.add(np.eye(3), "a")
    with pytest.raises(DataError, match="b: one-hot labels have 4 columns but earlier ones 3"):
        reader.add(np.eye(4), "b")
    assert reader.classes([]).num_hot == 3


def test_large_floats_are_not_rounded() -> None:
    with pytest.raises(DataError, match="is not a whole number"):
        whole_numbers(np.array([2.0**53]), "a")


def test_very_many_numbers_as_texts_are_converted_once_each() -> None:
    numbers = list(range(100_000))
    assert classes_of([str(number) for number in numbers]) == ([numbers], ())


@pytest.mark.parametrize("name", ["L" * 256, "a\0b", "\ud800"])
def test_a_name_that_a_store_cannot_keep_is_refused_with_its_row(name: str) -> None:
    with pytest.raises(
        DataError, match=r"^a.csv: example 1: class .*: a name must have 1 to 255 bytes"
    ):
        LabelReader().add(["cat", name], "a.csv")
