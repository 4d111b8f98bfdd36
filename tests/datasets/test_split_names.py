"""Names of splits in their usual spellings, and other names."""

from __future__ import annotations

import pytest

from fedcli.datasets.importers import split_names
from fedcli.errors import DataError

TRAIN = [
    *(
        "train",
        "training",
        "Training",
        "TRAIN",
        "trainset",
    ),
    *(
        "training_set",
        "TrainingSet",
        "seg_train",
        "train2017",
        "train_images",
    ),
    *(
        "trainImages",
        "images-train",
        "Final_Training",
        "fruits-360_Training",
        "traindata",
    ),
    *(
        "x_train",
        "trainval",
        "train_val_list",
        "train.set",
        "my train",
    ),
]
TEST = [
    *(
        "test",
        "testing",
        "Test",
        "TEST",
        "testset",
    ),
    *(
        "test_set",
        "TestSet",
        "seg_test",
        "test2014",
        "testing_images",
    ),
    *("tst",),
]
VALIDATION = [
    *(
        "val",
        "valid",
        "validation",
        "Validation",
        "VAL",
    ),
    *(
        "valset",
        "val2017",
        "validation_set",
        "dev",
        "devset",
    ),
]
EITHER = [
    *(
        "eval",
        "evaluation",
        "Evaluation",
        "images_evaluation",
        "holdout",
    ),
    *(
        "hold_out",
        "HoldOut",
    ),
]
NONE = [
    *(
        "cat",
        "dog",
        "latest",
        "contest",
        "attest",
    ),
    *(
        "developer",
        "devil",
        "value",
        "restest",
        "trains",
    ),
    *(
        "tests",
        "protest",
        "trainer",
        "train_test",
        "test_train",
    ),
    *(
        "0",
        "n01443537",
        "invalid",
        "medieval",
        "images",
    ),
    *("extra",),
]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (TRAIN, "train"),
        (TEST, "test"),
        (VALIDATION, "validation"),
        (EITHER, split_names.EITHER),
        (NONE, None),
    ],
)
def test_spellings(names: list[str], kind: str | None) -> None:
    assert {name: split_names.kind_of(name) for name in names} == dict.fromkeys(names, kind)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "val"], {"train": "train", "val": "test"}),
        (["train", "eval"], {"train": "train", "eval": "test"}),
        (
            ["train", "val", "eval"],
            {"train": "train", "val": "validation", "eval": "test"},
        ),
        (
            ["train", "test", "eval"],
            {"train": "train", "test": "test", "eval": "validation"},
        ),
        (["cat", "train", "dog"], {"train": "train"}),
        ([], {}),
    ],
)
def test_names_that_occur_together(names: list[str], expected: dict[str, str]) -> None:
    assert split_names.assign(names, "here") == expected


@pytest.mark.parametrize(
    "names", [["train", "training"], ["train", "val", "valid"], ["train", "test", "val", "eval"]]
)
def test_two_names_of_one_split_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"here: \w+ and \w+ would both be split '\w+'; .*--splits"):
        split_names.assign(names, "here")


def test_a_held_out_split_without_train_is_reported() -> None:
    splits = split_names.assign(["train", "val"], "here")
    assert split_names.held_out_alone(splits) == "val"
    splits = split_names.assign(["train", "test"], "here")
    assert split_names.held_out_alone(splits) is None
