"""Names of TFF, FedJAX, Flower and Keras: errors about them agree with the manual."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fedcli
from fedcli import aggregators, datasets, layers, learning, models, optimizers, own_models
from fedcli.cli import main as cli
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.lazy import ExplainsNames, UnknownName
from fedcli.learning.named_builders import AlgorithmParts
from fedcli.models.layers.contract import KINDS
from fedcli.models.own.loading import PythonModel
from fedcli.settings import tables
from fedcli.settings.run_config import OPTIONS
from fedcli.settings.tables.peer_names import (
    ARGUMENTS,
    KERAS,
    NAMES,
    OF_DATA,
    OF_MODELS,
    OF_OBJECTS,
)

PAGE = Path(fedcli.__file__).parent / "manual" / "coming-from.md"
PLACES: dict[str, Any] = {
    **{"fedcli": fedcli, "aggregators": aggregators, "datasets": datasets, "layers": layers},
    **{"learning": learning, "models": models, "optimizers": optimizers},
    **{"own_models": own_models, "data": ClientData, "process": learning.LearningProcess},
}
# Entries of the left column of the page that are commands or the user's own names.
NOT_NAMES = {
    "run",
    "example",
    "MnistModel",
    "model_fn",
    "summary",
    "start",
    "Dense",
    "type_signature",
    "flwr",
}


def _rows() -> Iterator[tuple[str, str]]:
    """The rows of the page's tables: names of the other program, and the text beside them."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            theirs, ours = line.strip("|").split("|", 1)
            yield theirs, ours


def _names(cell: str) -> Iterator[str]:
    """The functions, classes and attributes in a cell, each without the modules before it."""
    for code in re.findall(r"`([^`]+)`", cell):
        for part in re.split(r", (?![^(]*\))|\)\.", code.removeprefix(".")):
            path = re.match(r"[\w.]+", part)
            if path:
                yield path[0].rpartition(".")[2]


def _calls(code: str) -> Iterator[ast.Call]:
    tree = ast.parse(code.replace("...", "None"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_the_page_says_what_the_errors_say() -> None:
    checked = 0
    for theirs, ours in _rows():
        for name in _names(theirs):
            if name in OF_DATA:
                assert OF_DATA[name].code in ours
                continue
            if name not in NAMES:
                is_same = re.search(rf"\b{name}\b", ours) or "the same" in ours
                assert is_same or name in NOT_NAMES or name in ARGUMENTS, (name, theirs)
                continue
            code = NAMES[name].code
            if code.startswith("fedcli.RunConfig("):
                for word in next(_calls(code)).keywords:
                    assert word.arg is not None
                    assert f"--{word.arg.removesuffix('s').replace('_', '-')}" in ours.replace(
                        "--rounds", "--round"
                    ).replace("--threads", "--thread"), (name, ours)
            else:
                called = code.lstrip(".").partition("(")[0]
                assert called in ours, (name, called, ours)
            checked += 1
    assert checked > 50


def _found(path: str) -> Any:
    """The object that a dotted path in an answer names; None if it is Python's or Keras's."""
    if path.endswith(".preprocess"):
        return ClientDataset.preprocess
    place, *rest = path.split(".")
    found = PLACES.get(place)
    for part in rest if found is not None else ():
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", [name for name, peer in NAMES.items() if peer.code])
def test_what_an_error_says_to_write_exists(name: str) -> None:
    code = NAMES[name].code
    calls = list(_calls(f"client{code}" if code.startswith(".") else code))
    for call in calls:
        path = ast.unparse(call.func)
        function = _found(path)
        if path == "fedcli.RunConfig":
            eval(code, {"fedcli": fedcli})  # raises if a value is refused
        elif function is not None:
            known = {*inspect.signature(function).parameters, *AlgorithmParts.__annotations__}
            assert {word.arg for word in call.keywords} <= known
    if not calls:
        assert _found(code) is not None


def test_arguments_that_an_error_says_to_write_exist() -> None:
    functions = [getattr(learning, name) for name in learning.__all__ if name.startswith("build_")]  # type: ignore[attr-defined]
    functions += [getattr(optimizers, name) for name in ("sgd", "adam", "adamw", "rmsprop")]
    functions += [ClientDataset.preprocess, fedcli.evaluate_run, fedcli.resume, models.functional]
    functions += [layers.LeakyReLU, models.sequential]
    known = {name for function in functions for name in inspect.signature(function).parameters}
    known |= {*AlgorithmParts.__annotations__, *OPTIONS}
    for name, argument in ARGUMENTS.items():
        assert set(argument.ours) <= known, name
        assert argument.ours or argument.why


def test_each_layer_is_found_by_the_name_of_its_class_in_keras() -> None:
    for kind in KINDS.values():
        if not hasattr(layers, kind.keras_class):
            assert NAMES[kind.keras_class] == (KERAS, f"layers.{kind.__name__}", "")


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "fedcli.simulation.datasets.emnist.load_data()",
            AttributeError,
            f"module 'fedcli' has no attribute 'simulation'; {NAMES['simulation']}",
        ),
        (
            "from fedcli import simulation",
            ImportError,
            f"module 'fedcli' has no attribute 'simulation'; {NAMES['simulation']}",
        ),
        (
            "from fedcli.layers import MaxPooling2D",
            ImportError,
            "module 'fedcli.layers' has no attribute 'MaxPooling2D'; in place of Keras's, "
            "write layers.MaxPool2D",
        ),
        (
            "fedcli.learning.algorithms.build_weighted_fed_avg",
            AttributeError,
            "module 'fedcli.algorithms' has no attribute 'build_weighted_fed_avg'; it is "
            "fedcli.learning.build_weighted_fed_avg",
        ),
        (
            "fedcli.learning.models.functional_model_from_keras",
            AttributeError,
            "module 'fedcli.models' has no attribute 'functional_model_from_keras'; in place of "
            'TFF\'s, write models.load("model.keras") (after keras_model.save("model.keras"); '
            "models.sequential takes layers)",
        ),
        (
            "from fedcli.learning.models import VariableModel",
            ImportError,
            "module 'fedcli.learning.models' has no attribute 'VariableModel'; in place of TFF's, "
            "write own_models.OwnModel (see fedcli help models)",
        ),
        (
            "from fedcli.learning.algorithms import build_weighted_fed_avg",
            ImportError,
            "module 'fedcli.algorithms' has no attribute 'build_weighted_fed_avg'; it is "
            "fedcli.learning.build_weighted_fed_avg",
        ),
        (
            "from fedcli.learning import build_weighted_fedavg",
            ImportError,
            "module 'fedcli.learning' has no attribute 'build_weighted_fedavg'; did you mean "
            "build_weighted_fed_avg?",
        ),
        (
            "datasets.ClientData.train_test_client_split(data, 2)",
            AttributeError,
            "class ClientData has no attribute 'train_test_client_split'; fedcli preprocess DATA "
            "--out FILE --hold-out clients makes a test split of clients",
        ),
        (
            "fedcli.learning.build_weighted_fedavg",
            AttributeError,
            "module 'fedcli.learning' has no attribute 'build_weighted_fedavg'; did you mean "
            "build_weighted_fed_avg?",
        ),
        (
            "data.create_tf_dataset_for_client(data.client_ids[0])",
            AttributeError,
            "a SyntheticSplit has no attribute 'create_tf_dataset_for_client'; in place of TFF's, "
            "write data.client(client_id)",
        ),
        (
            "optimizers.build_sgdm(learning_rate=0.02)",
            AttributeError,
            "module 'fedcli.optimizers' has no attribute 'build_sgdm'; in place of TFF's, write "
            "optimizers.sgd(0.02) (with momentum=..., if you gave one)",
        ),
        (
            "fedcli.program.FileProgramStateManager('states')",
            AttributeError,
            "module 'fedcli' has no attribute 'program'; in place of TFF's, write "
            "fedcli.train(config, out) (it saves by itself, and fedcli.resume(out) continues the "
            "run)",
        ),
        (
            "datasets.TestClientData({})",
            AttributeError,
            "module 'fedcli.datasets' has no attribute 'TestClientData'; in place of TFF's, write "
            "data, _ = datasets.from_arrays({client_id: (pixels, labels)})",
        ),
        (
            "client.shuffle(100, seed=1)",
            AttributeError,
            "a ClientDataset has no attribute 'shuffle'; in place of TFF's, write "
            ".preprocess(shuffle_buffer=100) (seed= sets its seed)",
        ),
        (
            "datasets.SqlClientData('train.sqlite')",
            AttributeError,
            "module 'fedcli.datasets' has no attribute 'SqlClientData'; in place of TFF's, write "
            'train, test = datasets.load("sample.h5") (after fedcli preprocess FILE --out '
            "sample.h5, which makes a store of an SQLite file)",
        ),
        (
            "client.take(40)",
            AttributeError,
            "a ClientDataset has no attribute 'take'; in place of TFF's, write list(dataset)[:40] "
            "(to train on them, give dataset.images()[:40] and dataset.labels[:40] to "
            "datasets.from_arrays)",
        ),
        (
            "client.preprocess().take(2)",
            AttributeError,
            "a BatchedDataset has no attribute 'take'; in place of TFF's, write list(batches)[:2] "
            "(these are batches; .preprocess(max_examples=40) ends after 40 examples, with all "
            "epochs counted together)",
        ),
        (
            "data.datasets()",
            AttributeError,
            "a SyntheticSplit has no attribute 'datasets'; in place of TFF's, write "
            "[data.client(c) for c in data.client_ids]",
        ),
        (
            "learning.build_fed_eval('mlp-2nn').initialize().model",
            AttributeError,
            "a ServerState has no attribute 'model'; in place of TFF's, write "
            "process.get_model_weights(state) (state.global_model_weights is one array)",
        ),
        (
            "fedcli.metrics.SparseCategoricalAccuracy()",
            AttributeError,
            "module 'fedcli.metrics' has no attribute 'SparseCategoricalAccuracy'; leave it out: "
            "loss, accuracy and counts are always computed; further metrics: see fedcli help "
            "metrics",
        ),
        (
            "from fedcli.models import BatchOutput",
            ImportError,
            "module 'fedcli.models' has no attribute 'BatchOutput'; in place of TFF's, write "
            "own_models.BatchOutput (see fedcli help models)",
        ),
        (
            "learning.build_weighted_fed_avg('FILE.py:NAME', optimizers.sgd(0.1))",
            fedcli.FedcliError,
            "unknown model 'FILE.py:NAME'; import the file, and give its class or the model that "
            "its function returns, or call fedcli.train with RunConfig(model='FILE.py:NAME')",
        ),
        (
            "learning.build_weighted_fed_avg(model_fn=1, client_optimizer_fn=2, speed=3)",
            TypeError,
            "build_weighted_fed_avg has no argument 'model_fn'; write model=; no argument "
            "'client_optimizer_fn'; write client_optimizer=; no argument 'speed'; it takes model, "
            "client_optimizer, server_optimizer, metrics_aggregator, engine",
        ),
        (
            "client.preprocess(repeat=5)",
            TypeError,
            "preprocess has no argument 'repeat'; write epochs=",
        ),
        (
            "client.preprocess(lambda dataset: dataset)",
            fedcli.FedcliError,
            "preprocess takes no function; write .preprocess(epochs=5, shuffle_buffer=100, "
            "batch_size=20), and pass arrays whose pixels you changed to datasets.from_arrays",
        ),
        (
            "learning.build_weighted_fed_avg('mlp-2nn', client_optimizer_fn=lambda: None)",
            TypeError,
            "build_weighted_fed_avg has no argument 'client_optimizer_fn'; write client_optimizer=",
        ),
        (
            "learning.build_fed_prox('mlp-2nn', optimizers.sgd(0.1), model_aggregator=None)",
            TypeError,
            "build_fed_prox has no argument 'model_aggregator'; write aggregator=",
        ),
        (
            "learning.build_fed_avg_m('mlp-2nn', optimizers.sgd(0.1), speed=1)",
            TypeError,
            "build_fed_avg_m has no argument 'speed'; it takes model, client_optimizer, "
            "server_learning_rate, server_options, weighting, aggregator, metrics_aggregator, "
            "engine",
        ),
        (
            "layers.Dense(10, kernel_regularizer='l2')",
            TypeError,
            "Dense has no argument 'kernel_regularizer'; RunConfig(client_weight_decay=X) "
            "penalizes all weights, with half of X times their squares",
        ),
        (
            "layers.Dense(10, activaton='relu')",
            TypeError,
            "Dense has no argument 'activaton'; did you mean activation?",
        ),
        (
            "fedcli.evaluate_run('run', takers=[print])",
            TypeError,
            "evaluate_run has no argument 'takers'; write prediction_callbacks=",
        ),
        (
            "fedcli.train(epochs=3)",
            TypeError,
            "train has no argument 'epochs'; write RunConfig(epochs=...) as config",
        ),
        (
            "fedcli.RunConfig(algorithm=datasets.ClientData)",
            fedcli.FedcliError,
            "algorithm <class 'fedcli.datasets.client_data.ClientData'>: give the path of its "
            "file, 'FILE.py:ClientData'; learning.build_own(ClientData, model, client_optimizer) "
            "takes the class itself",
        ),
        (
            "fedcli.RunConfig(metrics=['sparse_categorical_accuracy'])",
            fedcli.FedcliError,
            "unknown metrics 'sparse_categorical_accuracy'; choose one of "
            f"{', '.join(sorted(tables.METRICS))}; loss and accuracy are always measured, so "
            "leave it out",
        ),
        (
            "fedcli.RunConfig(fraction_fit=0.1)",
            TypeError,
            "RunConfig has no option 'fraction_fit'; write clients=0.1 with "
            'sampling="uniform" for a tenth in each round',
        ),
    ],
)
def test_the_error_says_what_to_write(code: str, error: type[Exception], message: str) -> None:
    data, _ = datasets.load()
    client = data.client(data.client_ids[0])
    with pytest.raises(error) as caught:
        exec(code, {**PLACES, "data": data, "client": client})
    assert str(caught.value) == message
    assert "\n" not in message


def test_objects_whose_names_are_answered_exist() -> None:
    found = (models.Model, PythonModel, datasets.BatchedDataset, learning.ServerState)
    named = {f"a {each.__name__}" for each in found}
    assert named | {"module 'fedcli.learning'"} == set(OF_OBJECTS)
    for kind in found:
        assert not [name for name in OF_OBJECTS[f"a {kind.__name__}"] if hasattr(kind, name)]


def test_the_modules_of_tff_s_algorithms_lead_to_the_builders() -> None:
    # In a program that has trained, `learning.algorithms` exists, because Python binds submodules.
    error = UnknownName.of_module("fedcli.learning", "algorithms", dir(learning))
    assert str(error) == (
        "module 'fedcli.learning' has no attribute 'algorithms'; the functions of "
        "tff.learning.algorithms are in fedcli.learning itself, such as "
        "fedcli.learning.build_weighted_fed_avg; for an algorithm of your own, fedcli.algorithms "
        "has the base classes"
    )


def test_the_first_examples_of_a_client_can_be_trained_on_for_several_epochs() -> None:
    data, _ = datasets.load()
    dataset = data.client(data.client_ids[0])
    first, _ = datasets.from_arrays({"c": (dataset.images()[:40], dataset.labels[:40])})
    batches = list(first.client("c").preprocess(epochs=5, batch_size=40))
    expected, *_ = dataset.preprocess(batch_size=40)
    assert len(batches) == 5
    for batch in batches:
        np.testing.assert_array_equal(batch["x"], expected["x"])
        np.testing.assert_array_equal(batch["y"], expected["y"])
    cut = dataset.preprocess(epochs=5, max_examples=40)
    assert sum(len(batch["y"]) for batch in cut) == 40  # with all epochs counted together


def test_a_builder_of_an_optimizer_leads_to_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--client-optimizer", "build_sgdm"]) == 1
    assert capsys.readouterr().err.endswith(
        "; in place of TFF's, write --client-optimizer sgd (with --client-option momentum=..., if "
        "you gave one)\n"
    )


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--prefetch", "fedcli reads ahead by itself; leave the option out"),
        ("--client_epochs_per_round", "--epochs sets the local epochs of a round"),
        ("--take", "--max-examples sets it"),
    ],
)
def test_an_option_of_tff_is_answered(
    option: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", option, "10"]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("keras", "losses", "federated_mean", "federated_map", "CLIENTS", "type_at_clients"),
        *("TensorType", "backends", "analytics", "programs", "add_debug_measurements", "baselines"),
        *("model_aggregator", "get_hparams", "SumFactory", "DifferentialPrivacyFactory"),
        *("clipping_factory", "clone_model", "create_functional_metric_fns", "SERVER"),
        *("SparseCategoricalAccuracy", "federated_broadcast", "federated_sum", "TestClientData"),
    ],
)
def test_a_name_of_tff_is_answered_wherever_it_is_looked_up(name: str) -> None:
    for place in (fedcli, learning):
        with pytest.raises(AttributeError) as caught:
            getattr(place, name)
        assert str(caught.value).endswith(f"; {NAMES[name]}")


def test_layers_refuse_an_initializer_and_say_what_gives_weights() -> None:
    with pytest.raises(
        TypeError, match=r"Dense and Conv2D take an initializer, and process.set_model_weights"
    ):
        layers.BatchNorm(gamma_initializer="zeros")  # type: ignore[call-arg]
    he = layers.Dense(10, kernel_initializer="he_normal")
    with pytest.raises(
        fedcli.FedcliError, match=r"'he_normal': choose glorot_uniform, zeros, ones"
    ):
        models.sequential([he], (2, 2))


MODEL = models.sequential([layers.Dense(3)], (2, 2))


@pytest.mark.parametrize("name", OF_MODELS)
def test_what_an_error_about_a_model_says_to_write_exists(name: str) -> None:
    with pytest.raises(AttributeError, match=r"^a Model has no attribute") as caught:
        getattr(MODEL, name)
    assert str(caught.value).endswith(f"'{name}'; {OF_MODELS[name]}")
    code = OF_MODELS[name].code
    if code.startswith(("model.", "print", "fedcli.RunConfig")):
        eval(code, {"model": MODEL, "fedcli": fedcli})
    elif code:
        assert _found(code.partition("(")[0]) is not None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "models.Model(inputs=1, outputs=2)",
            "Model has no argument 'inputs'; models.functional(o",
        ),
        (
            "models.Model(layers.Input(), 1)",
            "Model has no argument 'inputs'; models.functional(out",
        ),
        ("models.functional(outputs=1)", "functional has no argument 'outputs'; write logits="),
        (
            "models.build('mlp-2nn', classes=3)",
            "build has no argument 'classes'; write num_classes=",
        ),
        ("models.sequential(layers=[])", "sequential has no argument 'layers'; write specs="),
        ("layers.LeakyReLU(alpha=0.1)", "LeakyReLU has no argument 'alpha'; write negative_slope="),
        ("layers.BatchNorm(axis=-1)", "BatchNorm has no argument 'axis'; leave it out: layers act"),
        (
            "layers.Conv2D(2, 3, dilation_rate=2)",
            "Conv2D has no argument 'dilation_rate'; leave it",
        ),
    ],
)
def test_an_argument_of_keras_is_answered(code: str, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        eval(code, PLACES)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("model", [layers.Dense(3), [layers.Dense(3)], layers.Input((4,))])
def test_layers_that_are_no_model_lead_to_sequential(model: Any) -> None:
    with pytest.raises(fedcli.FedcliError, match=r"models\.sequential\(layers, input_shape"):
        learning.build_weighted_fed_avg(model, optimizers.sgd(0.1))


def test_a_name_that_nobody_has_is_looked_up_quietly() -> None:
    for owner in (fedcli, learning, datasets.load()[0], layers):
        assert not hasattr(owner, "_private")
        assert getattr(owner, "zeppelin", None) is None


def test_modules_may_be_imported_while_a_name_is_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Importing(ModuleType):
        """A module that imports another when it is looked at, as lazy modules do."""

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            monkeypatch.setitem(sys.modules, f"imported_{len(sys.modules)}", ModuleType("other"))
            return ModuleType

    monkeypatch.setitem(sys.modules, "importing", Importing("importing"))
    with pytest.raises(AttributeError, match="has no attribute 'zeppelin'"):
        _ = tables.zeppelin  # type: ignore[attr-defined]


def test_the_error_of_a_property_is_not_hidden() -> None:
    class Broken(ExplainsNames):
        @property
        def size(self) -> int:
            return int(self.source)  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="a Broken has no attribute 'source'"):
        _ = Broken().size


def test_the_command_in_place_of_a_split_by_clients_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"c{number % 10},{number % 3},0,50,100,{number}" for number in range(40)]
    Path("DATA").write_text("user,label,pixel0,pixel1,pixel2,pixel3\n" + "\n".join(rows))
    command = re.search(r"fedcli (.* --hold-out clients)", str(NAMES["train_test_client_split"]))
    assert command is not None
    assert cli.run(command[1].split()) == 0
    train, test = datasets.load("FILE")
    assert test is not None
    assert len(test.client_ids) == 1
    assert {*train.client_ids, *test.client_ids} == {f"c{number}" for number in range(10)}
    assert len(train.client_ids) == 9
