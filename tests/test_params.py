from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.errors import ConfigError
from fedcli.params import Layer, ParamLayout, Tensor, lay_out


def _stack(*sizes: int) -> ParamLayout:
    layers = [
        Layer("dense", before, after, f"dense_{index}")
        for index, (before, after) in enumerate(itertools.pairwise(sizes))
    ]
    return lay_out(layers, (sizes[0],))


def test_tensors_fill_the_vector_in_layer_order() -> None:
    layout = _stack(6, 4, 3)
    assert layout.tensors == (
        Tensor("dense_0/kernel", (6, 4), 0),
        Tensor("dense_0/bias", (4,), 24),
        Tensor("dense_1/kernel", (4, 3), 28),
        Tensor("dense_1/bias", (3,), 40),
    )
    assert (layout.num_params, layout.num_inputs, layout.num_classes) == (43, 6, 3)
    assert layout.core_rows() == [(0, 6, 4, 0, 0), (0, 4, 3, 28, 0)]


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_join_undoes_split(sizes: list[int]) -> None:
    layout = _stack(*sizes)
    params = np.arange(layout.num_params, dtype=np.float32)
    tensors = layout.split(params)
    assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in layout.tensors]
    np.testing.assert_array_equal(layout.join(tensors), params)


def test_split_gives_views_and_join_a_copy() -> None:
    layout = _stack(2, 2)
    params = np.zeros(6, np.float32)
    kernel, bias = layout.split(params)
    kernel[1, 0], bias[1] = 5.0, 7.0
    np.testing.assert_array_equal(params, [0, 0, 5, 0, 0, 7])
    assert not np.shares_memory(layout.join([kernel, bias]), params)


def test_join_takes_any_real_dtype_and_memory_order() -> None:
    kernel = np.asfortranarray(np.arange(6).reshape(3, 2))
    joined = _stack(3, 2).join([kernel, np.array([6.0, 7.0])])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.arange(8))


def test_join_shows_both_lists_of_shapes() -> None:
    with pytest.raises(ConfigError) as error:
        _stack(3, 2).join([np.zeros((2, 3)), np.zeros(2)])
    assert str(error.value) == (
        "weights have shapes [2, 3], [2], the model needs [3, 2], [2]; "
        "give one array per tensor in layer order, kernel then bias"
    )
    with pytest.raises(ConfigError, match="weights have shapes none, the model needs"):
        _stack(3, 2).join([])


def test_join_refuses_what_is_not_a_real_number() -> None:
    with pytest.raises(ConfigError, match="weights have types complex128, <U1; give arrays of"):
        _stack(1, 1).join([np.zeros((1, 1), complex), np.array(["a"])])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "has no layer"),
        ([Layer("conv", 4, 2, "a")], "layer a: kind 'conv' is unknown; use dense"),
        ([Layer("dense", 4, 0, "a")], "layer a: 4 inputs and 0 outputs; both must be at least 1"),
        ([Layer("dense", 5, 2, "a")], r"layer a takes 5 inputs but an example of shape \(2, 2\)"),
        (
            [Layer("dense", 4, 3, "a"), Layer("dense", 2, 2, "b")],
            "layer a gives 3 outputs but layer b takes 2 inputs; make them equal",
        ),
        (
            [Layer("dense", 4, 3, "a"), Layer("dense", 3, 2, "a")],
            "layers are named a, a; give each its own name",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: list[Layer], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lay_out(layers, (2, 2))


def test_activations_reach_the_core_and_logits_have_none() -> None:
    layers = [Layer("dense", 6, 4, "hidden", "relu"), Layer("dense", 4, 3, "logits")]
    assert [row[-1] for row in lay_out(layers, (6,)).core_rows()] == [1, 0]
    with pytest.raises(ConfigError, match="layer hidden: activation 'selu' is unknown; use linear"):
        lay_out([Layer("dense", 6, 4, "hidden", "selu"), layers[1]], (6,))
    with pytest.raises(ConfigError, match="layer hidden: its outputs are logits, softmax follows"):
        lay_out(layers[:1], (6,))
