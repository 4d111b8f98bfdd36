"""A function for each algorithm, and the messages about wrong arguments."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fedcli import aggregators, algorithms, datasets, learning, models, optimizers
from fedcli.errors import ConfigError, DataError, PartError
from fedcli.learning import builders
from fedcli.learning.aggregators.order_statistics import Median
from fedcli.learning.process import check_names_kept, names_in_parts
from fedcli.learning.training_process import TrainingProcess
from fedcli.settings import tables
from fedcli.settings.tables.algorithms import AlgorithmEntry
from tests.kit.own_parts import write_example

MODEL = "softmax-regression"
# The arguments that functions need besides the model, by the name of the parameter.
NEEDED: dict[str, Any] = {
    "client_optimizer": optimizers.sgd(0.1),
    "base_optimizer": optimizers.sgd(0.1),
    "num_clients": 3,
}


@pytest.fixture(scope="module")
def cohort() -> Any:
    rng = np.random.default_rng(0)
    return [(rng.random((8, 28, 28)).astype(np.float32), rng.integers(0, 10, 8)) for _ in range(3)]


def build(entry: AlgorithmEntry, **more: Any) -> Any:
    function = getattr(learning, entry.builder)
    needed = {
        name: value for name, value in NEEDED.items() if name in signature(function).parameters
    }
    return function(MODEL, **needed, **more)


@pytest.mark.parametrize("entry", tables.ALGORITHMS.values(), ids=lambda entry: entry.name)
def test_each_algorithm_has_a_function_that_builds_it(entry: AlgorithmEntry, cohort: Any) -> None:
    process = build(entry)
    made = process.algorithm
    assert entry.has_own_models or made.entry.name == entry.name
    server = entry.server_optimizer or "sgd"
    options = {} if entry.has_own_models else dict(entry.server_options)
    same = optimizers.build(server, entry.server_lr, options)
    assert made.server_optimizer.options == same.options
    assert made.server_optimizer.learning_rate == same.learning_rate
    assert made.weighting == entry.weightings[0]
    for option in entry.options:  # the function's defaults are those of the table
        parameters = signature(getattr(learning, entry.builder)).parameters
        if option.name in parameters:
            assert parameters[option.name].default == option.default
    client = None if not entry.has_local_steps else NEEDED["client_optimizer"]
    by_hand = builders.build_process(
        algorithms.build(
            entry.name, client, same, weighting=made.weighting, aggregator=aggregators.build("mean")
        ),
        MODEL,
        num_clients=3,
    )
    losses = [
        each.next(each.initialize(), cohort).metrics["client_work"]["train"]["loss"]
        for each in (process, by_hand)
    ]
    assert losses[0] == losses[1]


def test_parts_are_given_by_name() -> None:
    process: Any = learning.build_fed_prox(
        MODEL, optimizers.sgd(0.1), weighting="uniform", aggregator=Median()
    )
    assert (process.algorithm.weighting, process.algorithm.aggregator) == ("uniform", Median())
    wrong: Any = {"agregator": Median()}
    with pytest.raises(
        TypeError, match="no argument 'agregator'; did you mean aggregator or metrics_aggregator"
    ):
        learning.build_fed_prox(MODEL, optimizers.sgd(0.1), **wrong)
    with pytest.raises(ConfigError, match="client optimizer is of type float; give one of"):
        learning.build_scaffold(MODEL, 0.1, num_clients=3)  # type: ignore[arg-type]


HALF = """
import sys

SEEN = []


class HalfSteps:
    def __init__(self, optimizer, share=0.5):
        self.optimizer, self.share = optimizer, share
        SEEN.append(list(sys.path))

    def init(self, params):
        return {}

    def run(self, call, state):
        return call.train(self.optimizer).scaled(self.share), state
"""


def test_an_own_algorithm_is_a_class_or_a_file(tmp_path: Path, cohort: Any) -> None:
    file = tmp_path / "half.py"
    file.write_text(HALF)
    cell: dict[str, Any] = {"__name__": "a_notebook"}
    exec(HALF, cell)  # a class without a file, as in a notebook
    client = optimizers.sgd(0.1)
    moved = []
    for options in ({}, {"share": 0.25}):
        for algorithm in (str(file), cell["HalfSteps"]):
            process = learning.build_own(algorithm, MODEL, client, options=options)
            before = process.initialize()
            after = process.next(before, cohort).state
            moved.append(after.global_model_weights - before.global_model_weights)
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_array_equal(moved[2], moved[3])
    np.testing.assert_allclose(moved[0], 2 * moved[2], rtol=1e-5, atol=1e-8)
    assert "." not in cell["SEEN"][0]  # a class without a file adds no folder to sys.path
    named = learning.build_own("fedavg", MODEL, client)
    assert isinstance(named, TrainingProcess)
    assert named.algorithm.weighting == "num-examples"
    with pytest.raises(ConfigError, match="HalfSteps has no option 'shar'; its options are share"):
        learning.build_own(cell["HalfSteps"], MODEL, client, options={"shar": 0.1})
    with pytest.raises(PartError, match="object has no init, no run"):
        learning.build_own(cast(Any, object), MODEL, client)


def test_messages_about_parts_of_another_type_have_one_line() -> None:
    wrong: Any = object()
    with pytest.raises(ConfigError, match=r"algorithm is of type object; make one with .*build"):
        learning.build_process(wrong, MODEL)
    with pytest.raises(ConfigError, match="server_optimizer is of type object; give one of"):
        algorithms.build(
            *("fedavg", optimizers.sgd(0.1), wrong), weighting="uniform", aggregator=Median()
        )


@pytest.mark.parametrize("name", ["build_weighted_fed_avg", "build_fed_eval"])
def test_messages_about_wrong_arguments_of_next_have_one_line(name: str, cohort: Any) -> None:
    given = (MODEL,) if name == "build_fed_eval" else (MODEL, optimizers.sgd(0.1))
    process = getattr(learning, name)(*given)
    state = process.initialize()
    with pytest.raises(DataError, match=r"state is of type list; give next\(state, client_data\)"):
        process.next(cohort, state)
    with pytest.raises(DataError, match="client_data is empty; give one element per client"):
        process.next(state, [])
    output = process.next(state, cohort)
    with pytest.raises(
        DataError, match=r"of type ProcessOutput; give the result of .* the .state of"
    ):
        process.next(output, cohort)


@pytest.mark.parametrize(
    ("function", "given", "words"),
    [
        (optimizers.sgd, {"lr": 0.1}, "sgd has no argument 'lr'; write learning_rate="),
        (optimizers.adam, {"eps": 1e-8}, "adam has no argument 'eps'; write epsilon="),
        (
            optimizers.Optimizer,
            {"name": "sgd", "lr": 0.1},
            "no argument 'lr'; write learning_rate=",
        ),
        (optimizers.sgd, {"speed": 3}, "'speed'; it takes learning_rate, momentum, nesterov"),
    ],
)
def test_arguments_of_other_libraries_are_refused_by_name(
    function: Any, given: Any, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        function(**given)


def test_an_optimizer_shows_how_it_is_made() -> None:
    assert repr(optimizers.sgd(0.1, 0.9)) == "sgd(learning_rate=0.1, momentum=0.9, nesterov=False)"


def test_states_of_the_wrong_kind_are_refused() -> None:
    training = learning.build_weighted_fed_avg("softmax-regression", optimizers.sgd(0.1))
    evaluation = learning.build_fed_eval("softmax-regression")
    state = training.initialize()
    with pytest.raises(
        DataError, match="state does not belong to this evaluation process; give what its"
    ):
        evaluation.next(state, [(np.zeros((1, 28, 28), np.float32), [0])])
    output = evaluation.next(evaluation.initialize(), [(np.zeros((1, 28, 28), np.float32), [0])])
    with pytest.raises(DataError, match=r"state is of type ProcessOutput; .* the \.state of"):
        training.get_model_weights(output)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="weights are of type ServerState; give get_model"):
        evaluation.set_model_weights(evaluation.initialize(), state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("client_work", lambda: learning.build_fed_eval(MODEL)),
        ("client_work", lambda: learning.build_scaffold(MODEL, optimizers.sgd(0.1), num_clients=3)),
        ("finalizer", lambda: learning.build_fed_adam(MODEL, optimizers.sgd(0.1))),
        ("weights", lambda: learning.build_fed_eval("mlp-2nn")),
    ],
)
def test_the_state_of_another_process_is_refused_both_ways(
    part: str, make: Any, cohort: Any
) -> None:
    ours, other = learning.build_weighted_fed_avg(MODEL, optimizers.sgd(0.1)), make()
    words = "199,210 weights, but the model has 7,850" if part == "weights" else f"its {part} holds"
    with pytest.raises(DataError, match=words):
        ours.next(other.initialize(), cohort)
    with pytest.raises(DataError, match=r"state (does not belong|has)"):
        other.next(ours.initialize(), cohort)
    went_on = ours.next(ours.next(ours.initialize(), cohort).state, cohort).state
    assert went_on.round_num == 2


def test_an_aggregator_whose_state_gets_another_name_is_refused(cohort: Any) -> None:
    class Counting(Median):
        def aggregate(self, state: Any, deltas: Any) -> Any:
            mean, _, metrics = super().aggregate(state, deltas)
            return mean, {"count": 1}, metrics

    process = learning.build_own("fedavg", MODEL, optimizers.sgd(0.1), aggregator=Counting())
    words = (
        r"test_builders.py:\d+: aggregate: the state has count, but the first state has nothing; k"
    )
    with pytest.raises(PartError, match=words):
        process.next(process.initialize(), cohort)


@pytest.mark.parametrize(("first", "second"), [([], []), (None, {}), ({}, []), ({}, None)])
def test_a_state_without_names_is_refused(cohort: Any, first: Any, second: Any) -> None:
    class Nameless(Median):
        def init(self) -> Any:
            return first

        def aggregate(self, state: Any, deltas: Any) -> Any:
            mean, _, metrics = super().aggregate({}, deltas)
            return mean, second, metrics

    process = learning.build_own("fedavg", MODEL, optimizers.sgd(0.1), aggregator=Nameless())
    words = r"test_builders.py:\d+: (init|aggregate) returned a state of type (list|NoneType); give"
    with pytest.raises(PartError, match=words):
        process.next(process.initialize(), cohort)


def test_an_aggregator_of_a_program_is_checked_as_that_of_a_run(cohort: Any) -> None:
    class Spoilt(Median):
        def init(self) -> Any:
            return {"mean": 0.0}

        def aggregate(self, state: Any, deltas: Any) -> Any:
            mean, _, metrics = super().aggregate({}, deltas)
            return mean, {"mean": float("nan")}, metrics

    process = learning.build_own("fedavg", MODEL, optimizers.sgd(0.1), aggregator=Spoilt())
    with pytest.raises(
        PartError, match=r"test_builders.py:\d+: aggregate: state 'mean' is nan; retu"
    ):
        process.next(process.initialize(), cohort)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Median, r"^aggregator is the class Median; give an object, such as Median\(\)$"),
        (
            "median",
            r"^aggregator is the name 'median'; give the object that fedcli.aggregators.build",
        ),
        (
            None,
            "^aggregator is of type NoneType, which has no init, no request, no aggregate; an agg",
        ),
    ],
)
def test_what_is_no_aggregator_is_refused(wrong: Any, words: str) -> None:
    for make in (learning.build_fed_prox, partial(learning.build_own, "fedavg")):
        with pytest.raises(ConfigError, match=words):
            make(MODEL, optimizers.sgd(0.1), aggregator=wrong)


def test_objects_in_place_of_a_name_or_class_are_refused() -> None:
    class Work:
        def __init__(self, optimizer: Any) -> None: ...

        def init(self, params: Any) -> Any: ...

        def run(self, call: Any, state: Any) -> Any: ...

    sgd = optimizers.sgd(0.1)
    with pytest.raises(
        ConfigError, match=r"^algorithm is an object of Work; give the class Work its"
    ):
        learning.build_own(cast(Any, Work(sgd)), MODEL, sgd)
    wrong: Any
    for wrong in (3, None):
        with pytest.raises(ConfigError, match=f"^algorithm {wrong}: give a name or a path$"):
            learning.build_own(wrong, MODEL, sgd)
    asks: Any = pytest.raises(ConfigError, match=r"give the path of its file, 'FILE.py:Work'$")
    for wrong in (Work, Work(sgd)):
        with asks:
            optimizers.build(wrong, 0.1)
        with asks:
            aggregators.build(wrong)
        with asks:
            datasets.load(partition=wrong)
    with pytest.raises(
        ConfigError, match=r"options \[1\]: give a dict, such as \{'epsilon': 0.1\}"
    ):
        learning.build_own("fedprox", MODEL, sgd, options=cast(Any, [1]))


def test_a_path_object_is_the_path_of_a_part(tmp_path: Path) -> None:
    lion, median, fedexp = (
        write_example(tmp_path, word, name)
        for word, name in (("Lion", "lion.py"), ("Median", "median.py"), ("FedExP", "fedexp.py"))
    )
    server = optimizers.build(lion, 0.1)
    aggregator = aggregators.build(median)
    process = learning.build_own(
        fedexp,
        MODEL,
        optimizers.sgd(0.1),
        server,
        aggregator=aggregator,
    )
    assert "fedexp.py" in repr(process)


def test_a_server_optimizer_whose_state_gets_another_name_is_named_so() -> None:
    state = learning.build_weighted_fed_avg(MODEL, optimizers.sgd(0.1)).initialize()
    names = {**names_in_parts(state), "finalizer": frozenset({"count"})}
    with pytest.raises(PartError, match=r"the server optimizer returned a state with .* has count"):
        check_names_kept(state, names)


@pytest.mark.parametrize("field", ["norm", "max_abs"])
def test_sizes_of_deltas_that_were_not_measured_are_refused(cohort: Any, field: str) -> None:
    class Sized:
        def __init__(self, optimizer: Any, is_measured: bool = False) -> None:
            self.optimizer, self.is_measured = optimizer, is_measured

        def init(self, params: Any) -> Any:
            return {"size": 0.0}

        def run(self, call: Any, state: Any) -> Any:
            deltas = (call.measuring() if self.is_measured else call).train(self.optimizer)
            weighted = deltas.stats[deltas.stats["weight"] > 0]
            return algorithms.WorkResult(deltas, {"size": float(weighted[field].max())})

    client = optimizers.sgd(0.1)
    process = learning.build_own(cast(Any, Sized), MODEL, client)
    words = rf'run: ValueError: stats\["{field}"\] is not measured; call.measuring\(\).train\('
    with pytest.raises(PartError, match=words):
        process.next(process.initialize(), cohort)
    process = learning.build_own(cast(Any, Sized), MODEL, client, options={"is_measured": True})
    output = process.next(process.initialize(), cohort)
    assert output.state.client_work["size"] > 0.0
    assert type(output.client_stats) is np.ndarray


@pytest.mark.parametrize("bounds", [None, aggregators.DeltaBounds(math.inf, math.inf)])
def test_an_aggregator_reads_sizes_only_if_it_requests_them(cohort: Any, bounds: Any) -> None:
    class Sized:
        def init(self) -> Any:
            return {}

        def request(self, state: Any) -> Any:
            return aggregators.DeltaRequest(bounds)

        def aggregate(self, state: Any, deltas: Any) -> Any:
            return deltas.weighted_mean(), state, {"norm": float(deltas.stats["norm"].max())}

    process = learning.build_own("fedavg", MODEL, optimizers.sgd(0.1), aggregator=Sized())
    if bounds is None:
        with pytest.raises(PartError, match=r"not measured; a request of DeltaRequest\(bounds="):
            process.next(process.initialize(), cohort)
    else:
        output = process.next(process.initialize(), cohort)
        assert output.metrics["aggregator"]["norm"] > 0.0


def _two_passes(num_passes: int) -> Any:
    """Returns an algorithm that reads the clients twice."""

    class TwoPasses:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.num_passes = optimizer, num_passes

        def init(self, params: Any) -> Any:
            return {}

        def run(self, call: Any, state: Any) -> Any:
            call.for_gradients().take_gradients()
            return algorithms.WorkResult(call.train(self.optimizer), state)

    return TwoPasses


def test_a_second_pass_over_a_generator_needs_num_passes(cohort: Any) -> None:
    process = learning.build_own(_two_passes(1), MODEL, optimizers.sgd(0.1))
    expected = process.next(process.initialize(), cohort).state.global_model_weights
    with pytest.raises(DataError, match=r"an iterator, whose clients .* set num_passes = 2"):
        process.next(process.initialize(), (each for each in cohort))
    process = learning.build_own(_two_passes(2), MODEL, optimizers.sgd(0.1))
    state = process.next(process.initialize(), (each for each in cohort)).state
    assert state.global_model_weights.tobytes() == expected.tobytes()


def test_an_option_given_as_an_argument_is_led_to_options() -> None:
    builds: list[Any] = [
        partial(learning.build_own, "fedavg", MODEL, optimizers.sgd(0.1)),
        partial(models.build, "cnn-reddi"),
    ]
    for build_it in builds:
        with pytest.raises(TypeError, match=r"'share'; .* write options=\{'share': \.\.\.\}$"):
            build_it(share=0.1)


def test_a_subclass_that_keeps_the_rule_of_fedcli_may_have_its_metrics(cohort: Any) -> None:
    class Named(type(aggregators.build("krum"))):  # type: ignore[misc]
        pass

    made = aggregators.build("krum")
    given = {each.name: getattr(made, each.name) for each in fields(cast(Any, made)) if each.init}
    outputs = []
    for aggregator in (made, Named(**given)):
        process = learning.build_own("fedavg", MODEL, optimizers.sgd(0.1), aggregator=aggregator)
        outputs.append(process.next(process.initialize(), [*cohort, *cohort]))
    assert outputs[0].metrics == outputs[1].metrics
    np.testing.assert_array_equal(
        outputs[0].state.global_model_weights, outputs[1].state.global_model_weights
    )
