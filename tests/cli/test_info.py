from __future__ import annotations

import json

import pytest

from fedcli.core import native
from fedcli.settings import tables
from fedcli.version import __version__
from tests.kit.command_line import Fedcli

TABLES = {
    "datasets": tables.DATASETS,
    "models": tables.MODELS,
    "optimizers": tables.OPTIMIZERS,
    "schedules": tables.SCHEDULES,
    "algorithms": tables.ALGORITHMS,
    "aggregators": tables.AGGREGATORS,
    "metrics": tables.METRICS,
}
NAMES = [(table, name) for table, entries in TABLES.items() for name in entries]


def test_json_of_the_installation(fedcli: Fedcli) -> None:
    told = json.loads(fedcli("info", "--json").out)
    assert told["version"] == __version__
    assert told["isa"] == native.isa_name()
    assert told["isas"] == list(native.isa_names())
    assert told["openmp"] is native.has_openmp()
    assert told["threads"] == native.resolve_threads(None)
    for table, entries in TABLES.items():
        assert [row["name"] for row in told[table]] == list(entries)


def test_text_names_everything(fedcli: Fedcli) -> None:
    out = fedcli("info").out
    assert f"instruction set  {native.isa_name()} (available: " in out
    for _, name in NAMES:
        assert f"\n  {name}  " in out


@pytest.mark.parametrize(("table", "name"), NAMES)
def test_options_come_from_the_table_that_validates_them(
    fedcli: Fedcli, table: str, name: str
) -> None:
    entry = TABLES[table][name]
    (row,) = json.loads(fedcli("info", name, "--json").out)[table]
    assert (row["doc"], row["source"]) == (entry.doc, entry.source)
    told = [(option["name"], option["default"], option["allowed"]) for option in row["options"]]
    assert told == [(option.name, option.default, option.allowed) for option in entry.options]
    text = fedcli("info", name).out
    assert text.startswith(f"{name} (")
    for option in entry.options:
        assert option.doc in text


def test_model_has_layers_and_parameter_counts(fedcli: Fedcli) -> None:
    (row,) = json.loads(fedcli("info", "softmax-regression", "--json").out)["models"]
    assert row["num_params"] == 7850
    assert row["layers"] == [
        {
            "name": "dense",
            "kind": "dense",
            "activation": "linear",
            "input_shape": [28, 28, 1],
            "output_shape": [1, 1, 10],
            "num_params": 7850,
            "forward_multiply_adds": 7840,
            "training_multiply_adds": 15680,
        }
    ]


def test_cost_of_a_convolutional_model_is_shown_layer_by_layer(fedcli: Fedcli) -> None:
    (row,) = json.loads(fedcli("info", "cnn-mcmahan", "--json").out)["models"]
    assert (row["num_params"], row["forward_multiply_adds"]) == (1_663_370, 12_273_152)
    # Backward is twice forward, but for the first layer's 627,200, whose inputs need no gradient.
    assert row["training_multiply_adds"] == 3 * 12_273_152 - 627_200
    lines = fedcli("info", "cnn-mcmahan").out.splitlines()
    told = [line.split()[-3:] for line in lines if line.startswith(("in all ", "conv2d_1 "))]
    assert told == [
        ["51,264", "10,035,200", "30,105,600"],
        ["1,663,370", "12,273,152", f"{3 * 12_273_152 - 627_200:,}"],
    ]
    assert any(" 14 x 14 x 64 " in line for line in lines)


def test_unknown_name_lists_the_known(fedcli: Fedcli) -> None:
    done = fedcli("info", "adamax")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("fedcli: error: nothing is called 'adamax'; choose one of ")
    for table, name in NAMES:
        assert table == "metrics" or name in done.err
