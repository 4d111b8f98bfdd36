"""The binding of the core with arbitrary arguments: an exception or a result, never a crash.

The arguments are arrays of any type, shape, strides and alignment, numbers of any size, and None.
The calls are made in this process, so that a crash ends the tests. CI also runs the tests on a
core built with AddressSanitizer and UBSan. The environment variable FEDCLI_FUZZ_EXAMPLES sets the
number of examples of each test.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.core import _core, native
from fedcli.models import zoo
from fedcli.models.layout import ParamLayout

# The exceptions that the binding may raise. CoreError is an error status of the core.
REFUSALS = (
    *(TypeError, ValueError, OverflowError, MemoryError, BufferError, AttributeError),
    *(_core.CoreError, _core.Cancelled),
)

fuzzed = settings(
    max_examples=int(os.environ.get("FEDCLI_FUZZ_EXAMPLES", "60")),
    suppress_health_check=list(HealthCheck),
)

MODELS = {
    "softmax": zoo.softmax_regression((5, 4), 3).layout,
    "mlp": zoo.mlp_2nn((5, 4), 3).layout,
    "cnn": zoo.build("cnn-reddi", input_shape=(12, 12), num_classes=3).layout,
}

# ---- Arguments -----------------------------------------------------------------------------------

DTYPES = ("f4", "f8", "i4", "i8", "u1", "u4", ">f4", "f2", "?", "O")
WAYS = ("plain", "strided", "reversed", "fortran", "shifted", "read-only", "broadcast")


def _given(dtype: str, shape: tuple[int, ...], way: str, fill: float) -> NDArray[Any]:
    """An array of a type and shape, with one of several layouts in memory."""
    if dtype == "O":
        return np.full(shape, None)
    with np.errstate(all="ignore"):
        plain = np.full(shape, fill if dtype in ("f4", "f8", ">f4", "f2") else 1).astype(dtype)
    if way == "strided" and plain.ndim:
        wide = np.repeat(plain, 2, axis=-1)
        return wide[..., ::2]
    if way == "reversed" and plain.ndim:
        return plain[::-1]
    if way == "fortran":
        return np.asfortranarray(plain)
    if way == "shifted":
        content = np.zeros(plain.nbytes + 1, np.uint8)
        content[1:] = np.frombuffer(plain.tobytes(), np.uint8)
        return content[1:].view(plain.dtype).reshape(shape)
    if way == "read-only":
        plain.flags.writeable = False
    if way == "broadcast" and plain.ndim:
        return np.broadcast_to(plain[:1], plain.shape)
    return plain


sizes = st.integers(0, 9)
counts = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)])
)
amounts = st.one_of(
    st.floats(width=64), st.sampled_from([0.0, 0.1, 1.0, -1.0, 1e30, math.inf, math.nan])
)
shapes = st.lists(sizes, max_size=4).map(tuple)
oddities = st.one_of(st.none(), st.just("text"), st.just(b"\0\0\0\0"), counts, amounts, st.just([]))


fills = st.sampled_from([0.0, 0.5, -1e30, math.nan])
odd_arrays = st.builds(_given, st.sampled_from(DTYPES), shapes, st.sampled_from(WAYS), fills)


class ArgumentMaker:
    """Makes arguments. A share of them does not fit; the share is drawn once for each example."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.num_odd = data.draw(st.sampled_from([0, 0, 1, 2, 4]))  # of 32

    def is_odd(self) -> bool:
        return self.draw(st.integers(0, 31)) < self.num_odd

    def __call__(self, value: Any, *others: st.SearchStrategy[Any]) -> Any:
        """Returns the fitting value, or a value of one of `others`, or an arbitrary value."""
        return self.draw(st.one_of(*others, oddities)) if self.is_odd() else value

    def array(self, dtype: str, *shape: int) -> Any:
        """Returns an array that fits, or one of another type, shape or layout, or no array."""
        if self.is_odd():
            resized = st.builds(
                _given, st.just(dtype), st.just(shape), st.sampled_from(WAYS), fills
            )
            return self.draw(st.one_of(resized, odd_arrays, oddities))
        return _given(dtype, shape, "plain", self.draw(fills))

    def maybe(self, dtype: str, *shape: int) -> Any:
        """Returns the result of `array`, or None."""
        return self.array(dtype, *shape) if self.draw(st.booleans()) else None

    def key(self) -> Any:
        return self((1, 2, 3, 4, 5), st.lists(counts, min_size=4, max_size=6).map(tuple))


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a call; None if it raised an allowed exception."""
    try:
        return call(*arguments)
    except REFUSALS:
        return None


def layer_rows(layout: ParamLayout) -> st.SearchStrategy[list[Any]]:
    """The rows of a model with some fields changed and some rows left out."""

    def change(changes: list[tuple[int, int, Any]], dropped: int) -> list[Any]:
        rows = [list(row) for row in layout.core_rows()]
        for row, field, value in changes:
            rows[row % len(rows)][field % 18] = value
        if dropped < len(rows):
            del rows[dropped]
        return [tuple(row) for row in rows]

    value = st.one_of(
        counts, amounts, st.tuples(counts, counts, counts), st.sampled_from(["dense", "pool", ""])
    )
    change_of = st.tuples(st.integers(0, 20), st.integers(0, 20), value)
    return st.builds(change, st.lists(change_of, max_size=2), st.integers(0, 30))


ROWS: list[list[tuple[int, tuple[float, ...]]]] = [
    [(native.StepKind.SGD, (0.1, 0.0, 0.0))],
    [(native.StepKind.SGD, (0.1, 0.9, 1.0))],
    [(native.StepKind.PROXIMAL, (0.1,)), (native.StepKind.SGD, (0.1, 0.0, 0.0))],
    [(native.StepKind.CLIP, (1.0,)), (native.StepKind.ADAM, (0.1, 0.9, 0.99, 1e-7, 0.0))],
    [(native.StepKind.LINEAR, ()), (native.StepKind.SGD, (0.1, 0.0, 0.0))],
    [(native.StepKind.ANCHOR, ()), (native.StepKind.SGD, (0.1, 0.0, 0.0))],
    [(native.StepKind.GRADIENT, ())],
    [(native.StepKind.ADAFACTOR, (0.01, -0.8, 1e-30, 1e-3, 1.0, 1.0))],
]


# ---- Tables --------------------------------------------------------------------------------------


@fuzzed
@given(st.data())
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, data: st.DataObject) -> None:
    """Any model that the binding accepts can be summed and run without a crash."""
    layout, make = MODELS[name], ArgumentMaker(data)
    rows = data.draw(st.one_of(st.just(layout.core_rows()), layer_rows(layout)))
    model = attempt(_core.Model, make(rows), make(layout.num_params, counts))
    if model is None:
        return
    assert len(_core.stages(model)) >= 1
    params = make.array("f4", layout.num_params)
    stage, phase = data.draw(st.integers(-1, 6)), data.draw(st.integers(-1, 3))
    attempt(_core.exercise, make(model), params, data.draw(st.integers(-1, 5)), stage, phase, 1)
    delta_sum = attempt(_core.DeltaSum, make(model))
    if delta_sum is not None:
        assert not delta_sum.total()[0].any()


@fuzzed
@given(st.data())
def test_steps(data: st.DataObject) -> None:
    make = ArgumentMaker(data)
    rows = make(
        data.draw(st.sampled_from(ROWS)),
        st.lists(st.tuples(st.integers(-1, 12), st.lists(amounts, max_size=9)), max_size=4),
    )
    tensors = make([(4, 2), (2,)], st.lists(st.lists(counts, max_size=4), max_size=3))
    step = attempt(_core.Step, rows, tensors)
    if step is None:
        return
    num_params = data.draw(st.sampled_from([0, 1, 10]))
    slots = attempt(step.initial_slots, make(num_params, st.integers(-1, 100)))
    vectors = [make.array("f4", num_params) for _ in range(3)]
    given_slots = make(slots, odd_arrays)
    attempt(step.apply, make(1, counts), *vectors, given_slots)


@fuzzed
@given(st.data())
def test_plans(data: st.DataObject) -> None:
    make = ArgumentMaker(data)
    pipeline, epochs = make(data.draw(st.integers(0, 2)), counts), make(2, counts)
    buffer = make(-1, counts)
    plan = attempt(_core.Plan, pipeline, epochs, make(3, counts), buffer, make(20, counts))
    if plan is None:
        return
    num_examples = make(7, counts)
    visits = attempt(plan.visits, num_examples)
    assert (visits is None) == (attempt(plan.batches, num_examples) is None)
    # A larger plan is not run, because it would need too much memory.
    if visits is None or max(visits, num_examples) > 10_000:
        return
    num_buffered = int(epochs) * int(num_examples)
    if (num_buffered if buffer < 0 else min(num_buffered, buffer)) > 10_000:
        return
    order = attempt(_core.example_order, make(plan), num_examples, make.key())
    if order is not None:
        assert len(order) == visits
        assert not len(order) or int(order.max()) < num_examples


@fuzzed
@given(st.data())
def test_sums(data: st.DataObject) -> None:
    make = ArgumentMaker(data)
    num_values = make(data.draw(st.integers(0, 40)), st.sampled_from([-1, 2**61, 2**63]))
    total = attempt(_core.VectorSum, num_values)
    if total is None:
        return
    num_values = int(num_values)  # the core accepts 0.0 as 0
    vectors = [make.array("f4", num_values) for _ in range(data.draw(sizes))]
    weights = make.array("f8", len(vectors))
    attempt(_core.sum_vectors, make(vectors), weights, num_values, 2)
    attempt(total.add, make(vectors), weights)
    values, _ = total.total()
    assert values.shape == (num_values,)
    total.reset()
    assert not total.total()[0].any()


@fuzzed
@given(st.data())
def test_vectors(data: st.DataObject) -> None:
    make, size = ArgumentMaker(data), data.draw(sizes)
    sent, delta, change = make.array("f4", size), make.array("f4", size), make.array("f8", size)
    attempt(_core.next_client_vector, make(1.0, amounts), sent, delta)
    attempt(_core.add_change, sent, delta, change)
    attempt(_core.divide, change, make(1.0, amounts))
    attempt(_core.random_u64, make.key(), make(3, st.integers(-1, 100)))
    keys = [make.key() for _ in range(data.draw(sizes))]
    factors, groups = make.array("f8", len(keys)), make.maybe("f8", len(keys) + 1, size)
    attempt(_core.noised_mean, keys, factors, groups, True, change, make(1.0, amounts), 2)


def test_noise_needs_factors() -> None:
    with pytest.raises(TypeError):
        _core.noised_mean([(1, 2, 3, 4, 5)], None, None, True, np.zeros(3), 1.0, 1)  # type: ignore[arg-type]


@fuzzed
@given(st.data())
def test_rows(data: st.DataObject) -> None:
    """Order statistics, sums and distances of rows, whose values may be infinite or NaN."""
    make = ArgumentMaker(data)
    num_rows, num_values = data.draw(st.integers(1, 40)), data.draw(sizes)
    chosen = _given("i8", (num_rows,), "plain", 0.0)
    chosen[:] = np.arange(num_rows)
    matrix = make.array("f4", num_rows, num_values)
    rows = attempt(_core.Rows, matrix, make(chosen, odd_arrays), make(2, counts))
    if rows is None:
        return
    mean, squares = make.array("f8", num_values), make.maybe("f8", num_rows)
    attempt(rows.trimmed_mean, make(data.draw(st.integers(0, 20)), counts), mean, squares)
    attempt(rows.mean_near_median, make(data.draw(st.integers(0, 41)), counts), mean)
    attempt(rows.sign_votes, make.maybe("f8", num_values))
    factors = make.array("f8", num_rows)
    attempt(rows.move, make(0.5, amounts), factors, mean, squares)
    num_out = data.draw(sizes)
    offsets, offset = make.maybe("f8", num_out), make.maybe("f8", num_values)
    out = make.array("f4", num_out, num_values)
    attempt(rows.mix, make.array("f8", num_out, num_rows), offsets, offset, out)
    attempt(rows.measure, make.maybe("f8", num_values), make.maybe("f8", num_values))
    pairs = attempt(rows.pairs, make(data.draw(st.booleans()), counts))
    few = data.draw(st.integers(1, 9))
    distances = make.array("f8", few, few)
    found = attempt(_core.least_diameter, distances, make(data.draw(st.integers(0, 10)), counts))
    assert found is None or max(found) < len(distances)
    assert pairs is None or pairs.shape[0] == pairs.shape[1]


@fuzzed
@given(st.data())
def test_synthetic_digits(data: st.DataObject) -> None:
    make = ArgumentMaker(data)
    options = make(
        (1, 1.0, 0.1, 0), st.tuples(counts, amounts, amounts, counts), st.lists(counts, max_size=5)
    )
    client, split = make(7, counts), make(1, counts)
    attempt(_core.synthetic_count, options, client, split)
    first, num = make(0, counts), make(3, st.integers(-1, 2000))
    drawn = attempt(_core.synthetic_draw, options, client, split, first, num)
    if drawn is not None:
        assert drawn[1].min(initial=0) >= 0
        assert drawn[1].max(initial=0) <= 9


# ---- Clients, and calls on them ------------------------------------------------------------------


def _clients(make: ArgumentMaker) -> list[Any]:
    """Clients with data of many types and shapes; most of them fit the model."""
    clients: list[Any] = []
    for _ in range(make.draw(st.integers(1, 10))):
        num = make.draw(sizes)
        plan = _core.Plan(
            make.draw(st.integers(0, 2)),
            make.draw(st.integers(1, 3)),
            make.draw(st.integers(1, 30)),
            make.draw(st.sampled_from([-1, 0, 1, 3])),
            make.draw(st.sampled_from([-1, 0, 1, 5])),
        )
        client = attempt(
            _core.Client,
            make.array(make.draw(st.sampled_from(["u1", "f4"])), num, 5, 4),
            make.array("i4", num),
            make(1.0, amounts),
            make(0.0, amounts),
            make(plan),
            make.key(),
            make.key(),
        )
        if client is not None or make.is_odd():  # a cohort refuses None
            clients.append(client)
    return clients


@fuzzed
@given(st.data())
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_calls(name: str, data: st.DataObject) -> None:
    """Training, scoring and predicting, with arguments that fit or do not."""
    layout, make = MODELS[name], ArgumentMaker(data)
    num_params = layout.num_params
    model = _core.Model(layout.core_rows(), num_params)
    clients = _clients(make)
    given = make(clients)
    # An argument without a length has no client.
    num_clients = len(given) if isinstance(given, Sized) else 0
    cohort = attempt(_core.Cohort, given)
    team = attempt(_core.Team, make(1, st.sampled_from([-1, 0, 2, 1025, 2**40])))
    if cohort is None or team is None:
        return
    if data.draw(st.booleans()):
        attempt(cohort.prepare, make(model))
    step = _core.Step(data.draw(st.sampled_from(ROWS)), layout.shapes)
    frozen = None
    if data.draw(st.integers(0, 3)) == 0:
        frozen = make((make.array("f4", step.num_slots, num_params), make(1, counts)))
    terms = attempt(
        _core.Terms,
        make(data.draw(st.integers(0, 1)), counts),
        make(data.draw(st.sampled_from([None, (0.0, 1.0)])), st.tuples(amounts, amounts)),
        frozen,
        make(None, odd_arrays) if data.draw(st.booleans()) else _given("f8", (40,), "plain", 0.5),
        make.maybe("f4", layout.num_classes),
    )
    cancel = make(_core.CancelFlag())
    starts = make.maybe("f4", len(clients), num_params)
    factors = _given("f8", (len(clients),), "plain", 0.5)
    stats = attempt(
        team.train_cohort,
        make(model),
        make(step),
        make.array("f4", num_params),
        make(cohort),
        make(3, counts),
        make(terms),
        cancel,
        make(_core.DeltaSum(model), st.none()),
        make.maybe("f4", data.draw(st.sampled_from([1, len(clients)])), num_params),
        make.maybe("f4", len(clients), num_params),
        make(factors, odd_arrays),
        starts,
        make.maybe("f8", len(clients)),
    )
    params = make.array("f4", num_params)
    scored = attempt(team.evaluate, model, params, cohort, cancel, starts)
    logits = attempt(team.predict, model, params, cohort, cancel, starts)
    for found in (stats, scored):
        assert found is None or len(found) == num_clients
    assert logits is None or logits.shape[1] == layout.num_classes


KINDS = (
    *("uniform", "fixed-step", "qsgd", "terngrad", "sign", "top-k", "random-k", "sketch"),
    *("powersgd", "powersgd-left", "drive", "eden", "none"),
)


@fuzzed
@given(st.data())
def test_codecs(data: st.DataObject) -> None:
    make = ArgumentMaker(data)
    shapes_of = make([(4, 3), (3,)], st.lists(shapes, max_size=3))
    fields = {"bits": 2, "levels": 3, "count": 5, "block": 8, "rank": 1, "depth": 2, "width": 4}
    options = {name: make(value, counts) for name, value in fields.items()}
    options["is_short"] = data.draw(st.booleans())
    options["step"], options["clip"] = make(0.5, amounts), make(2.5, amounts)
    kind = data.draw(st.sampled_from(KINDS))
    factors = make.array("f4", 3 if kind == "powersgd-left" else 4)
    codec = attempt(lambda: _core.Codec(kind, shapes_of, factors=factors, **options))
    if codec is None:
        return
    num_params = 15 if shapes_of == [(4, 3), (3,)] else data.draw(st.integers(1, 40))
    key = make.key()
    payload = attempt(codec.encode, make.array("f4", num_params), key)
    assert payload is None or len(payload) <= codec.capacity
    decoded = attempt(codec.decode, make(payload, st.binary(max_size=99)), key)
    assert decoded is None or decoded.dtype == np.float32
    rows, threads = make.array("f4", 3, num_params), make(2, counts)
    chosen = make(np.array([0, 2]), odd_arrays, st.just(np.array([2, 0])))
    keys = make([make.key(), make.key()])
    before = make([make.maybe("f4", num_params), None])
    after = make([make.maybe("f4", num_params), make.array("f4", num_params)])
    decay = make(0.5, amounts)
    sent = attempt(codec.compress_rows, rows, chosen, keys, before, after, decay, threads)
    assert sent is None or len(sent) == len(chosen)
    attempt(codec.encode_rows, rows, chosen, keys, before, decay, threads)
