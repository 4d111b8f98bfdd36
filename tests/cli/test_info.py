from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import click
import pytest

from fedcli import settings
from fedcli.cli import info, info_tables, main
from fedcli.cli import options as opt
from fedcli.core import native
from fedcli.settings import tables
from fedcli.settings.presets import PRESETS
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import SAMPLINGS
from fedcli.version import __version__
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.own_parts import write_example

TABLES = {
    "datasets": tables.DATASETS,
    "samplers": tables.SAMPLERS,
    "models": tables.MODELS,
    "optimizers": tables.OPTIMIZERS,
    "schedules": tables.SCHEDULES,
    "algorithms": tables.ALGORITHMS,
    "aggregators": tables.AGGREGATORS,
    "privacy": tables.PRIVACY,
    "metrics": tables.METRICS,
    "compressors": tables.COMPRESSORS,
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
    for table, entries in TABLES.items():
        assert f"  {', '.join(entries)}\n" in out, table


def test_other_names_are_found(fedcli: Fedcli) -> None:
    assert fedcli("info", "rfa").out == fedcli("info", "geometric-median").out


@pytest.mark.parametrize("table", [*TABLES, "partitions", "presets"])
def test_a_kind_of_things_is_shown_with_its_sources(fedcli: Fedcli, table: str) -> None:
    out = fedcli("info", table).out
    told = json.loads(fedcli("info", table, "--json").out)
    assert list(told) == [table]
    for row in told[table]:
        assert f"  {row['name']} " in out
        assert row["doc"] in out
        assert f"Source: {row['source']}" in out
    assert fedcli("info", table.removesuffix("s")).out == out


def test_samplers_are_those_that_can_be_chosen() -> None:
    assert tuple(tables.SAMPLERS) == SAMPLINGS


def examples() -> list[str]:
    return [
        row["example"]
        for table, entries in info_tables.TABLES.items()
        for row in (info._describe(table, entry) for entry in entries.values())
    ]


@pytest.mark.parametrize("example", examples())
def test_each_example_is_a_command_that_is_allowed(example: str) -> None:
    for command in example.split(" && "):
        program, name, *arguments = shlex.split(command)
        assert program == "fedcli"
        # click keeps these names in the command; without -h here, later tests would lack it.
        context = click.Context(main.group, help_option_names=["-h", "--help"])
        parsed = main.group.get_command(context, name)
        assert parsed is not None
        values = parsed.make_context(name, arguments, parent=context).params
        if name == "train":
            fields = {each.name for each in dataclasses.fields(RunConfig)}
            given = {key: each for key, each in values.items() if key in fields}
            base = PRESETS[given["preset"]].values if given.get("preset") else {}
            settings.from_options(settings.merge(base, opt.given(given)))


def test_what_trains_says_its_rates(fedcli: Fedcli) -> None:
    out = fedcli("info", "scaffold").out
    assert "Rates to start from: client 0.01 to 0.1, server 1" in out
    for table in ("algorithms", "optimizers", "models"):
        assert [name for name, entry in TABLES[table].items() if not entry.rates] == []


@pytest.mark.parametrize(("table", "name"), NAMES)
def test_everything_has_an_example_and_the_options_of_the_table_that_validates_them(
    fedcli: Fedcli, table: str, name: str
) -> None:
    entry = TABLES[table][name]
    (row,) = json.loads(fedcli("info", name, "--json").out)[table]
    assert (row["doc"], row["source"]) == (entry.doc, entry.source)
    told = [(option["name"], option["default"], option["allowed"]) for option in row["options"]]
    assert told == [(option.name, option.default, option.allowed) for option in entry.options]
    text = fedcli("info", name).out
    assert text.startswith(f"{name} (")
    assert row["example"].startswith("fedcli ")
    assert f"\nExample: {row['example']}\n" in text
    for option in entry.options:
        assert option.doc in text


@pytest.mark.parametrize(
    ("table", "heading"),
    [
        ("attacks", "Attacks: --attack NAME"),
        ("secure-sums", "Secure-sums: --secure-sum"),
        ("audits", "Audits: fedcli audit RUN NAME"),
    ],
)
def test_the_heading_of_a_table_says_where_its_names_go(
    fedcli: Fedcli, table: str, heading: str
) -> None:
    assert fedcli("info", table).out.splitlines()[0] == heading


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
    # The backward pass takes twice as many as the forward pass, minus 627,200, because no
    # gradient of the first layer's inputs is needed.
    assert row["training_multiply_adds"] == 3 * 12_273_152 - 627_200
    lines = fedcli("info", "cnn-mcmahan").out.splitlines()
    told = [line.split()[-3:] for line in lines if line.startswith(("in all ", "conv2d_1 "))]
    assert told == [
        ["51,264", "10,035,200", "30,105,600"],
        ["1,663,370", "12,273,152", f"{3 * 12_273_152 - 627_200:,}"],
    ]
    assert any(" 14 x 14 x 64 " in line for line in lines)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adma", "did you mean adam or adamw"),
        ("algoritms", "did you mean algorithms"),
        ("fedporx", "did you mean fedprox"),
        ("momentum", "'momentum' is an option of sgd, sketch; fedcli info sgd shows it"),
        ("zeppelin", "fedcli info lists all names, fedcli info datasets | partitions | samplers"),
    ],
)
def test_an_unknown_name_leads_to_a_known_one(fedcli: Fedcli, name: str, words: str) -> None:
    done = fedcli("info", name)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"'{name}'" in done.err
    assert words in done.err


@pytest.mark.parametrize(("name", "has_options"), [("mean", False), ("norm-bound", True)])
def test_a_part_without_options_says_so(fedcli: Fedcli, name: str, has_options: bool) -> None:
    lines = fedcli("info", name).out.splitlines()
    assert ("  It has no options." in lines, "Options" in lines) == (not has_options, has_options)


@pytest.mark.parametrize(
    ("word", "kind", "table", "options"),
    [
        ("FedExP", "algorithm", "algorithms", {"epsilon": 1e-3}),
        ("Median", "aggregator", "aggregators", {}),
        ("Lion", "server optimizer", "optimizers", {"beta_1": 0.9, "beta_2": 0.99}),
        ("DayAndNight", "sampler", "samplers", {"rounds_a_day": 10}),
        ("two_classes", "partition", "partitions", {"clients": 100, "seed": 0}),
        ("MyF1", "metric", "metrics", {}),
    ],
)
def test_a_part_in_a_file_is_shown_as_fedclis_own(
    fedcli: Fedcli, word: str, kind: str, table: str, options: dict[str, object]
) -> None:
    file = write_example(Path(), word, "my part.py")
    out = fedcli("info", file.name).out
    assert out.splitlines()[0] == f"my part.py:{word} ({kind})"
    assert fedcli("info", f"{file.name}:{word}").out == out
    shown = json.loads(fedcli("info", file.name, "--json").out)
    ((found, (row,)),) = shown.items()
    assert found == table
    assert row["doc"] in file.read_text()
    assert row["source"] == f"{file.absolute()}:{_line_of(word, file)}"
    assert {option["name"]: option["default"] for option in row["options"]} == options
    test_each_example_is_a_command_that_is_allowed(row["example"])


def _line_of(word: str, file: Path) -> int:
    lines = file.read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if line.startswith((f"class {word}", "def ")))


def test_a_range_and_a_text_that_a_part_declares_are_shown(fedcli: Fedcli) -> None:
    write_example(Path(), "FedExP", "fedexp.py")
    row = fedcli("info", "fedexp.py").out.partition("Options\n")[2].splitlines()[2]
    assert " ".join(row.split()) == (
        "epsilon 0.001 a number from 1e-12 to 1 Added to the squared norm."
    )


def test_a_model_in_a_file_is_shown_with_its_options(fedcli: Fedcli) -> None:
    text = "def build(input_shape, depth, width=64):\n    '''A net.'''\n"
    Path("net.py").write_text(text + "class Net:\n    def forward_pass(self):\n        pass\n")
    out = fedcli("info", "net.py").out
    assert out.startswith("net.py:build (model)\n  A net.\n")
    assert "Needs: --model-option depth=VALUE\n" in out
    assert out.endswith("Example: fedcli train --model net.py:build --model-option depth=VALUE\n")
    assert fedcli("info", "net.py:Net").out.startswith("net.py:Net (model)\n  The model Net.\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py", ["cannot read the part", "absent.py: No such file"]),
        ("two.py", ["has no function or class 'build'; it has One, two", "info two.py:NAME"]),
        ("two.py:three", ["has no function or class 'three'"]),
        ("two.py:two", ["two.py:3: two has neither the methods nor the parameters of a part"]),
        ("bad.py", ["bad.py:1: importing the file: ZeroDivisionError"]),
    ],
)
def test_a_file_without_a_part_is_one_line(fedcli: Fedcli, name: str, words: list[str]) -> None:
    Path("two.py").write_text("class One:\n    pass\ndef two(x=1):\n    pass\n")
    Path("bad.py").write_text("1 / 0\n")
    assert_is_one_line(fedcli("info", name), *words)
