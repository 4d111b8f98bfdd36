from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedcli import backend, optimizers, registry
from fedcli.errors import ConfigError
from fedcli.optimizers import Optimizer

# Every optimizer runs through the tests below: a new one is a new row. Values: w from 1 with rate
# 0.1 after each of the gradients, in float64, by TFF's rules.
GRADIENTS = (0.5, -0.25, 1.0)
ROWS: list[tuple[str, dict[str, Any], tuple[float, float, float]]] = [
    ("sgd", {}, (0.95, 0.975, 0.875)),
    ("sgd", {"momentum": 0.9}, (0.95, 0.93, 0.812)),
    ("sgd", {"momentum": 0.9, "nesterov": True}, (0.905, 0.912, 0.7058)),
]
NUM_PARAMS = 37  # full vectors and a tail in every instruction set

conformance = pytest.mark.parametrize(
    ("name", "options", "expected"), ROWS, ids=[f"{name}-{options}" for name, options, _ in ROWS]
)


def _numpy_path(optimizer: Optimizer, start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    params, state, path = start.copy(), optimizer.init(start), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = params + updates
        path.append(params)
    return np.array(path)


def _core_path(optimizer: Optimizer, start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    rows = optimizer.client_rows()
    params, path = start.copy(), []
    slots = backend.initial_slots(rows, len(start))
    for step_num, gradient in enumerate(gradients, 1):
        backend.apply_step(rows, step_num, params, start, gradient.copy(), slots)
        path.append(params.copy())
    return np.array(path)


def _constant(value: float, dtype: type) -> np.ndarray:
    return np.full(NUM_PARAMS, value, dtype)


@conformance
@pytest.mark.parametrize(
    ("form", "dtype", "rtol", "atol"),
    [
        (_numpy_path, np.float64, 0.0, 1e-9),
        (_numpy_path, np.float32, 1e-6, 0.0),
        (_core_path, np.float32, 1e-6, 0.0),
    ],
    ids=["numpy-float64", "numpy-float32", "core-float32"],
)
def test_each_form_takes_the_published_steps(
    name: str,
    options: dict[str, Any],
    expected: tuple[float, ...],
    form: Any,
    dtype: type,
    rtol: float,
    atol: float,
) -> None:
    gradients = [_constant(value, dtype) for value in GRADIENTS]
    path = form(optimizers.build(name, 0.1, options), _constant(1.0, dtype), gradients)
    assert path.dtype == dtype
    for reached, value in zip(path, expected, strict=True):
        np.testing.assert_allclose(reached, value, rtol=rtol, atol=atol)


@conformance
def test_both_forms_agree_on_random_gradients(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    del expected
    random = np.random.default_rng(3)
    start = random.standard_normal(NUM_PARAMS).astype(np.float32)
    gradients = list(random.standard_normal((20, NUM_PARAMS)).astype(np.float32))
    optimizer = optimizers.build(name, 0.03, options)
    single = _core_path(optimizer, start, gradients)
    double = _numpy_path(
        optimizer, start.astype(np.float64), [g.astype(np.float64) for g in gradients]
    )
    # 20 steps, each rounding a value of about 1 to 2^-24.
    np.testing.assert_allclose(single, double, rtol=1e-6, atol=20 * 2**-23)


@conformance
def test_update_changes_no_argument(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    del expected
    optimizer = optimizers.build(name, 0.1, options)
    params, gradient = _constant(1.0, np.float32), _constant(0.5, np.float32)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    before = {key: np.copy(value) for key, value in state.items()}
    for array in (params, gradient, *state.values()):
        array.setflags(write=False)
    optimizer.update(gradient, state, params)
    assert state.keys() == before.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, before[key])


def test_every_optimizer_has_a_conformance_row() -> None:
    assert {name for name, _, _ in ROWS} == set(registry.OPTIMIZERS)


def test_plain_sgd_remembers_nothing() -> None:
    plain = optimizers.sgd(0.1)
    assert plain.init(np.zeros(3, np.float32)) == {}
    assert len(backend.initial_slots(plain.client_rows(), 3)) == 0
    assert optimizers.sgd(0.1, momentum=0.5).init(np.zeros(3)).keys() == {"accumulator"}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sgd learning rate -0.1: choose a finite number"):
        optimizers.sgd(-0.1)
    with pytest.raises(ConfigError, match=r"sgd option momentum 1.1: choose .* from 0 to 1"):
        optimizers.sgd(0.1, momentum=1.1)
    with pytest.raises(ConfigError, match="nesterov = true needs a momentum above 0"):
        optimizers.sgd(0.1, nesterov=True)
    with pytest.raises(ConfigError, match="unknown optimizer 'adma'; choose one of sgd"):
        optimizers.build("adma", 0.1)
