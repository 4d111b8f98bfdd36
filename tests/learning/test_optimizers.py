from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedcli.core import _core, native
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings import tables

pytestmark = pytest.mark.numeric

# The tests below run for every optimizer in `ROWS`. The values of a row are the parameter w after
# each of these gradients, in float64 by TFF's rules; w starts at 1, and the rate is 0.1.
GRADIENTS = (0.5, -0.25, 1.0)


def _reddi_path(
    name: str, *, beta_1: float = 0.9, beta_2: float = 0.999, initial: float, epsilon: float
) -> tuple[float, ...]:
    """Algorithm 2 of Reddi et al. 2021, word for word, on one coordinate."""
    w, m, v, path = 1.0, 0.0, initial, []
    for g in GRADIENTS:
        m = beta_1 * m + (1 - beta_1) * g
        if name == "adagrad":
            v = v + g**2
        elif name == "yogi":
            v = v - (1 - beta_2) * g**2 * math.copysign(1.0, v - g**2)
        else:
            v = beta_2 * v + (1 - beta_2) * g**2
        w = w - 0.1 * m / (math.sqrt(v) + epsilon)
        path.append(w)
    return tuple(path)


def _adafactor_path() -> tuple[float, ...]:
    """Returns the path of a vector whose coordinates are all equal."""
    w, v, path = 1.0, 0.0, []
    for step, g in enumerate(GRADIENTS, 1):
        decay = 1 - step**-0.8
        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        u = g / math.sqrt(v)
        w = w - abs(w) * min(0.1, step**-0.5) * u / max(1.0, abs(u))
        path.append(w)
    return tuple(path)


REDDI: dict[str, Any] = {"style": "reddi"}
ROWS: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
    ("sgd", {}, (0.95, 0.975, 0.875)),
    ("sgd", {"momentum": 0.9}, (0.95, 0.93, 0.812)),
    ("sgd", {"momentum": 0.9, "nesterov": True}, (0.905, 0.912, 0.7058)),
    ("adam", {}, (0.900000632, 0.873367079, 0.807556101)),
    ("adamw", {}, (0.899600632, 0.872607239, 0.806447218)),
    ("adagrad", {}, (0.915484587, 0.954409529, 0.870268900)),
    ("yogi", {}, (0.906124755, 0.880965171, 0.816959219)),
    ("rmsprop", {}, (0.683772434, 0.831214303, 0.549356453)),
    ("adam", REDDI, _reddi_path("adam", initial=0.0, epsilon=1e-7)),
    ("yogi", REDDI, _reddi_path("yogi", initial=1e-6, epsilon=1e-3)),
    (
        "adagrad",
        {**REDDI, "epsilon": 0.1, "initial_preconditioner_value": 0.25},
        _reddi_path("adagrad", beta_1=0.0, initial=0.25, epsilon=0.1),
    ),
    (
        "adam",
        {**REDDI, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.1},
        _reddi_path("adam", beta_1=0.5, beta_2=0.75, initial=0.0, epsilon=0.1),
    ),
    ("adafactor", {}, _adafactor_path()),
]
NUM_PARAMS = 37  # full SIMD vectors and a remainder in every instruction set

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
    slots, shapes = native.initial_slots(rows, len(start)), optimizer.shapes or (start.shape,)
    for step_num, gradient in enumerate(gradients, 1):
        native.apply_step(rows, step_num, params, start, gradient.copy(), slots, shapes)
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
    # Each of 20 steps rounds a value of about 1 to 2^-24.
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
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    optimizer.update(gradient, state, params)
    assert state.keys() == before.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, before[key])


def test_every_optimizer_has_a_conformance_row() -> None:
    assert {name for name, _, _ in ROWS} == set(tables.OPTIMIZERS)


def test_plain_sgd_has_no_state() -> None:
    plain = optimizers.sgd(0.1)
    assert plain.init(np.zeros(3, np.float32)) == {}
    assert len(native.initial_slots(plain.client_rows(), 3)) == 0
    assert optimizers.sgd(0.1, momentum=0.5).init(np.zeros(3)).keys() == {"accumulator"}


@conformance
def test_a_coordinate_without_gradient_stays(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    del expected
    options = dict(options)
    if name == "adamw":
        options["weight_decay"] = 0.0
    if name not in ("sgd", "adafactor"):
        options["epsilon"] = 0.0
    if name in ("yogi", "adagrad"):
        options["initial_preconditioner_value"] = 0.0
    optimizer, start = optimizers.build(name, 0.1, options), _constant(1.0, np.float32)
    gradients = [_constant(0.0, np.float32)] * 3
    for path in (_numpy_path, _core_path):
        np.testing.assert_array_equal(path(optimizer, start, gradients), [start] * 3)


@pytest.mark.parametrize("name", tables.OPTIMIZERS)
def test_each_has_a_function_with_the_registry_s_defaults(name: str) -> None:
    assert getattr(optimizers, name)(0.1) == optimizers.build(name, 0.1)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_steps_are_counted_in_the_state(name: str) -> None:
    optimizer, params = optimizers.build(name, 0.1), np.ones(3, np.float32)
    state = optimizer.init(params)
    for step_num in (1, 2):
        _, state = optimizer.update(params, state, params)
        assert state["step"] == step_num


def test_the_ends_of_ranges_are_allowed() -> None:
    for name in ("adam", "adamw", "yogi"):
        optimizer = optimizers.build(name, 0.1, {"beta_1": 1.0, "beta_2": 1.0, "epsilon": 0.1})
        gradients = [_constant(0.5, np.float32)] * 2
        start = _constant(0.0, np.float32)
        for path in (_numpy_path, _core_path):
            np.testing.assert_array_equal(path(optimizer, start, gradients), [start] * 2)


def _clipped_gradients(gradients: list[np.ndarray], clip_norm: float) -> list[np.ndarray]:
    lengths = [math.sqrt(sum(float(each) ** 2 for each in gradient)) for gradient in gradients]
    assert min(lengths) < clip_norm < max(lengths)
    pairs = zip(gradients, lengths, strict=True)
    return [g.astype(np.float64) * min(1.0, clip_norm / length) for g, length in pairs]


@conformance
def test_both_forms_clip_gradients_first(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    del expected
    random = np.random.default_rng(4)
    start = random.standard_normal(NUM_PARAMS).astype(np.float32)
    lengths = np.linspace(0.3, 2.0, 20)[:, None]
    gradients = list((lengths * random.standard_normal((20, NUM_PARAMS))).astype(np.float32))
    optimizer = optimizers.build(name, 0.03, options)
    clipping = optimizers.clip_gradients(optimizer, 5.0)
    clipped = _clipped_gradients(gradients, 5.0)
    slow = _numpy_path(optimizer, start.astype(np.float64), clipped)
    doubles = [gradient.astype(np.float64) for gradient in gradients]
    double = _numpy_path(clipping, start.astype(np.float64), doubles)
    np.testing.assert_allclose(double, slow, rtol=1e-13)
    # Each gradient is rounded once more than without clipping.
    single = _core_path(clipping, start, gradients)
    np.testing.assert_allclose(single, slow, rtol=2e-6, atol=20 * 2**-23)
    np.testing.assert_allclose(
        _numpy_path(clipping, start, gradients), slow, rtol=2e-6, atol=20 * 2**-23
    )


def test_a_gradient_within_the_norm_keeps_its_bytes() -> None:
    gradient = [_constant(0.5, np.float32)]  # of length 0.5 * sqrt(37) = 3.04
    plain, start = optimizers.sgd(0.1, momentum=0.5), _constant(1.0, np.float32)
    for path in (_numpy_path, _core_path):
        unclipped = path(plain, start, gradient)
        for norm, is_same in ((3.05, True), (3.03, False)):
            clipped = path(optimizers.clip_gradients(plain, norm), start, gradient)
            assert (clipped.tobytes() == unclipped.tobytes()) == is_same


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_keeps_values_that_are_not_finite(bad: float) -> None:
    gradient = _constant(0.5, np.float32)
    gradient[5] = bad
    clipping = optimizers.clip_gradients(optimizers.sgd(0.1), 1.0)
    for path in (_numpy_path, _core_path):
        with np.errstate(invalid="ignore"):
            (reached,) = path(clipping, _constant(1.0, np.float32), [gradient])
        assert np.isnan(reached[5])


def test_terms_of_an_algorithm_come_after_clipping() -> None:
    term = (native.StepKind.PROXIMAL, (0.5,))
    rows = optimizers.clip_gradients(optimizers.sgd(0.1), 2.0).client_rows([term])
    assert [kind for kind, _ in rows] == [
        native.StepKind.CLIP,
        native.StepKind.PROXIMAL,
        native.StepKind.SGD,
    ]


def test_clipping_works_for_the_largest_gradients() -> None:
    """The squares exceed the largest float32, so they are summed in float64."""
    clipping = optimizers.clip_gradients(optimizers.sgd(1.0), 37.0)
    gradient, start = _constant(1e38, np.float32), _constant(0.0, np.float32)
    for path in (_numpy_path, _core_path):
        (reached,) = path(clipping, start, [gradient])
        np.testing.assert_allclose(reached, -math.sqrt(NUM_PARAMS), rtol=1e-6)


@conformance
def test_the_state_does_not_depend_on_the_rate(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    """Schedules rely on this: they keep no state. Mime Lite updates the state at any rate."""
    del expected
    states = []
    for rate in (0.0, 0.1, 3.0):
        optimizer, params = optimizers.build(name, rate, options), _constant(1.0, np.float32)
        state = optimizer.init(params)
        for value in GRADIENTS:
            _, state = optimizer.update(_constant(value, np.float32), state, params)
        states.append(state)
    np.testing.assert_equal(states[1:], states[:1] * 2)


@conformance
def test_a_schedule_changes_only_the_rate(
    name: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    del expected
    plain = optimizers.build(name, 0.4, options)
    scheduled = optimizers.schedule_learning_rate(plain, "linear-warmup", {"warmup_rounds": 4})
    assert plain.at(0) == plain
    assert scheduled.at(0) == optimizers.build(name, 0.1, options)
    assert scheduled.at(1).at(0) == optimizers.build(name, 0.2, options)
    assert scheduled.at(3) == scheduled.at(1000) == plain
    assert scheduled.learning_rate == 0.4
    clipping = optimizers.clip_gradients(scheduled, 2.0)
    assert clipping.at(1) == optimizers.clip_gradients(scheduled.at(1), 2.0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sgd learning rate -0.1: choose a finite number"):
        optimizers.sgd(-0.1)
    with pytest.raises(ConfigError, match=r"sgd option momentum 1.1: choose .* from 0 to 1"):
        optimizers.sgd(0.1, momentum=1.1)
    with pytest.raises(ConfigError, match="nesterov = true needs a momentum above 0"):
        optimizers.sgd(0.1, nesterov=True)
    with pytest.raises(ConfigError, match=r"adam option beta_2 -1: choose .* from 0 to 1"):
        optimizers.adam(0.1, beta_2=-1)
    with pytest.raises(ConfigError, match=r"yogi option style 'adam': choose tff or reddi"):
        optimizers.yogi(0.1, style="adam")
    with pytest.raises(ConfigError, match="adamw has no option 'style'"):
        optimizers.build("adamw", 0.1, {"style": "reddi"})
    with pytest.raises(ConfigError, match=r"^clip norm 0: choose a finite number from 1.2e-38"):
        optimizers.clip_gradients(optimizers.sgd(0.1), 0)
    with pytest.raises(ConfigError, match=r"^unknown schedule 'cosin'; choose one of constant"):
        optimizers.schedule_learning_rate(optimizers.sgd(0.1), "cosin")
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adma'; choose one of .*adam.*sgd"):
        optimizers.build("adma", 0.1)


# ---- Adafactor: by tensor ------------------------------------------------------------------------

SHAPES = ((3, 4), (4,), (2, 3, 5), (1, 1), (2,))


def _slow_adafactor(
    tensors: list[np.ndarray], gradients: list[list[np.ndarray]], rate: float, relative_step: bool
) -> list[np.ndarray]:
    """The paper's Algorithms 4 and 5 element by element, with TFF's defaults."""
    tensors = [tensor.copy() for tensor in tensors]
    means: list[dict[Any, float]] = [{} for _ in tensors]
    for number, of_step in enumerate(gradients, 1):
        decay = 1 - number**-0.8
        for tensor, gradient, mean in zip(tensors, of_step, means, strict=True):
            update = np.empty_like(tensor)
            for index in np.ndindex(tensor.shape[:-2] if tensor.ndim > 1 else ()):
                square = gradient[index] ** 2 + 1e-30
                if tensor.ndim == 1:
                    for i, each in enumerate(square):
                        mean[i] = decay * mean.get(i, 0.0) + (1 - decay) * each
                        update[i] = gradient[i] / mean[i] ** 0.5
                    continue
                num_rows, num_columns = square.shape
                for i in range(num_rows):
                    old = mean.get((index, "r", i), 0.0)
                    mean[index, "r", i] = decay * old + (1 - decay) * square[i].sum() / num_columns
                for j in range(num_columns):
                    old = mean.get((index, "c", j), 0.0)
                    mean[index, "c", j] = decay * old + (1 - decay) * square[:, j].sum() / num_rows
                mean_row = sum(mean[index, "r", i] for i in range(num_rows)) / num_rows
                for i in range(num_rows):
                    for j in range(num_columns):
                        v = mean[index, "r", i] / mean_row * mean[index, "c", j]
                        update[(*index, i, j)] = gradient[(*index, i, j)] / v**0.5
            update /= max(1.0, np.sqrt((update**2).mean()))
            size = max(1e-3, np.sqrt((tensor**2).mean()))
            tensor -= size * (min(rate, number**-0.5) if relative_step else rate) * update
    return tensors


@pytest.mark.parametrize("relative_step", [True, False])
@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [
        (_numpy_path, np.float64, 1e-12),
        (_numpy_path, np.float32, 1e-5),
        (_core_path, np.float32, 1e-6),
    ],
    ids=["numpy-float64", "numpy-float32", "core-float32"],
)
def test_adafactor_follows_the_paper(
    form: Any, dtype: type, tolerance: float, relative_step: bool
) -> None:
    random = np.random.default_rng(3)
    tensors = [random.normal(size=shape) for shape in SHAPES]
    tensors[1][:] = 0.0  # a tensor of zeros is updated, too
    gradients = [[random.normal(size=shape) ** 3 for shape in SHAPES] for _ in range(6)]
    expected = _slow_adafactor(tensors, gradients, 0.6, relative_step)
    optimizer = optimizers.adafactor(0.6, relative_step=relative_step).for_tensors(SHAPES)

    def flat(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([part.ravel() for part in parts])

    found = form(
        optimizer, flat(tensors).astype(dtype), [flat(each).astype(dtype) for each in gradients]
    )[-1]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, flat(expected), rtol=0.0, atol=tolerance)


def test_adafactor_changes_no_argument_and_has_a_small_state() -> None:
    optimizer = optimizers.adafactor(0.1).for_tensors([(20, 30), (30,)])
    params = np.linspace(-1.0, 1.0, 630)
    state = optimizer.init(params)
    assert {name: np.size(part) for name, part in state.items()} == {
        **{"step": 1, "rows": 20, "columns": 30},
        "preconditioner": 30,
    }
    updates, following = optimizer.update(params**2, state, params)
    assert np.isfinite(updates).all()
    assert (state["step"], following["step"]) == (0, 1)
    assert not state["rows"].any()
    assert following["rows"].all()


def test_adafactor_is_no_base_of_mime() -> None:
    for name in ("mime", "mime-lite"):
        with pytest.raises(
            ConfigError, match=rf"^{name} with client optimizer adafactor is not supp"
        ):
            algorithms.build(
                name,
                optimizers.adafactor(0.1),
                optimizers.sgd(1.0),
                weighting="uniform",
                aggregator=aggregators.build("mean"),
            )


@pytest.mark.parametrize("shapes", [(), [(37,), (1,)], [(6, 6)], [(2**40, 2**40)]])
def test_tensors_that_are_not_the_parameters_are_refused(shapes: Any) -> None:
    rows, params = optimizers.adafactor(0.1).client_rows(), _constant(1.0, np.float32)
    slots = native.initial_slots(rows, NUM_PARAMS)
    with pytest.raises(_core.CoreError, match="FED_ERR_ARGUMENT"):
        native.apply_step(rows, 1, params, params, params.copy(), slots, shapes)


def test_adafactor_leaves_rows_and_columns_without_gradient() -> None:
    params = np.ones(12, np.float32)
    gradient = np.zeros((3, 4), np.float32)
    gradient[0, 0] = 1.0
    optimizer = optimizers.adafactor(0.1).for_tensors([(3, 4)])
    updates, _ = optimizer.update(gradient.ravel(), optimizer.init(params), params)
    assert updates[0] < 0.0
    assert not updates[1:].any()
