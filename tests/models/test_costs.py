from __future__ import annotations

import pytest

from fedcli import models
from fedcli.models import costs
from fedcli.models.layers import Conv2D, Dense, Dropout, MaxPool2D
from fedcli.models.layout import lay_out


# Forward multiply-adds of an example of 28 x 28 pixels and 10 classes, computed by hand.
@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("softmax-regression", [784 * 10]),
        ("mlp-2nn", [784 * 200, 200 * 200, 200 * 10]),
        (
            "cnn-mcmahan",
            [28 * 28 * 25 * 32, 0, 14 * 14 * 25 * 32 * 64, 0, 7 * 7 * 64 * 512, 512 * 10],
        ),
        (
            "cnn-reddi",
            [26 * 26 * 9 * 32, 24 * 24 * 9 * 32 * 64, 0, 0, 12 * 12 * 64 * 128, 0, 128 * 10],
        ),
    ],
)
def test_forward_counts_each_kernel_at_each_place(name: str, forward: list[int]) -> None:
    found = costs.layer_costs(models.build_layout(name))
    assert [cost.forward for cost in found] == forward


def test_backward_is_twice_forward_but_for_the_first_kernel() -> None:
    layout = lay_out([Dropout(0.1), Conv2D(2, 3), MaxPool2D(), Dense(4), Dense(3)], (8, 8))
    found = costs.layer_costs(layout)
    assert [cost.backward for cost in found] == [0, 6 * 6 * 9 * 2, 0, 2 * 18 * 4, 2 * 4 * 3]
    assert [cost.training for cost in found] == [0, 2 * 648, 0, 3 * 72, 3 * 12]
    assert [cost.name for cost in found] == [
        *("dropout", "conv2d", "max_pooling2d", "dense", "dense_1")
    ]
