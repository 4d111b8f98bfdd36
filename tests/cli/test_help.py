from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import click
import pytest

from fedcli.cli.main import COMMANDS, group
from fedcli.settings.declaration import option_name
from fedcli.settings.run_config import OPTIONS, RunConfig
from fedcli.settings.sections import SECTIONS
from fedcli.version import __version__
from tests.kit.command_line import Fedcli

# Options of train that are not fields of RunConfig.
_OTHER_TRAIN_OPTIONS = {
    f"--{name}" for name in ["out", "force", "resume", "config", "json", "quiet", "verbose"]
}

# Runs command lines one after the other. Returns for each its output, and all modules that are
# loaded after it.
_RUN_ALL = """
import contextlib, io, json, os, sys
from fedcli.cli.main import run
results = []
for variables, arguments in json.load(sys.stdin):
    os.environ.update(variables)
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, write_through=True)):
        code = run(arguments)
    for name in variables:
        os.environ.pop(name, None)
    results.append((code, written.getvalue().decode(), [*sys.modules]))
json.dump(results, sys.stdout)
"""


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(fedcli: Fedcli, name: str, flag: str) -> None:
    done = fedcli(name, flag)
    assert done.code == 0
    assert f"Usage: fedcli {name}" in done.out
    examples = done.out.partition("Examples:\n")[2]
    assert examples.startswith(f"    fedcli {name}")  # on a line of its own: not wrapped
    assert "--json" in done.out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_group_help_lists_each_command_and_completion(fedcli: Fedcli, arguments: list[str]) -> None:
    done = fedcli(*arguments)
    assert done.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
    examples = done.out.partition("\n  Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) > 3
    assert [line for line in examples if not line.startswith("    fedcli ")] == []
    assert "_FEDCLI_COMPLETE=bash_source" in done.out


def test_version(fedcli: Fedcli) -> None:
    assert fedcli("--version").out == f"fedcli {__version__}\n"


def test_help_and_completion_import_nothing_heavy(process_arguments: dict[str, Any]) -> None:
    """The list of commands and its completion do not even import the modules of commands."""
    completing = {"COMP_WORDS": "fedcli e", "COMP_CWORD": "1", "_FEDCLI_COMPLETE": "bash_complete"}
    lines = [({}, ["--help"]), (completing, []), *(({}, [name, "--help"]) for name in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL],
        input=json.dumps(lines),
        check=True,
        capture_output=True,
        **process_arguments,
    )
    results = json.loads(done.stdout)
    assert "inspect-clients  Show who the clients are" in results[0][1]
    assert "plain,eval\nplain,export\n" in results[1][1]
    for number, (code, out, modules) in enumerate(results):
        assert code == 0
        assert {"numpy", "h5py", "rich", "fedcli.core._core"}.isdisjoint(modules), lines[number]
        if number < 2:
            assert not [name for name in modules if name.startswith("fedcli.settings")]
        else:
            assert f"Usage: fedcli {lines[number][1][0]}" in out


def test_train_has_one_option_for_each_field_of_a_run() -> None:
    train = group.get_command(click.Context(group), "train")
    assert train is not None
    options = {param.opts[-1]: param for param in train.params}
    fields = {option_name(field.name): field.name for field in dataclasses.fields(RunConfig)}
    assert options.keys() == fields.keys() | _OTHER_TRAIN_OPTIONS
    for flag, field in fields.items():
        assert options[flag].name == field


def test_help_has_the_sections_in_their_order(fedcli: Fedcli) -> None:
    lines = fedcli("train", "-h").out.splitlines()
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and line[0] != " "]
    assert titles == [*SECTIONS, "Output"]


def test_help_says_what_an_option_needs(fedcli: Fedcli) -> None:
    text = " ".join(fedcli("train", "-h").out.split()).replace("- ", "-")  # lines break at hyphens
    for name, declared in OPTIONS.items():
        if declared.needs is not None:
            after = text.partition(f" {option_name(name)} ")[2]
            assert after.partition("Needs ")[2].startswith(option_name(declared.needs.option)), name
    assert sum(declared.needs is not None for declared in OPTIONS.values()) == text.count("Needs ")


def test_help_shows_the_defaults_of_a_run(fedcli: Fedcli) -> None:
    text = " ".join(fedcli("train", "-h").out.partition("Data:")[2].split())
    shown = {
        field.name: field.default
        for field in dataclasses.fields(RunConfig)
        if isinstance(field.default, str | int | float) and field.default is not False
    }
    shown |= {
        "client_optimizer": "sgd",
        "client_lr": 0.02,
        "client_weighting": "num-examples",
        "server_optimizer": "sgd",
        "clients": 10,
    }
    assert shown["batch_size"] == 20
    for name, default in shown.items():
        after = text.partition(f" {option_name(name)} ")[2].partition("[default: ")[2]
        assert after.startswith(f"{default}]"), name


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("fedcli ins", {"inspect-clients"}),
        ("fedcli train --client-optimizer s", {"sgd"}),
        ("fedcli train --preset tff", {"tff-tutorial"}),
        ("fedcli train --client-schedule-by lo", {"local-step"}),
        ("fedcli train --client-drop", {"--client-dropout"}),
        ("fedcli train --model soft", {"softmax-regression", "soft"}),  # or a file of that name
        (
            "fedcli train --partition shards+label-noise --partition-option s",
            {"shards=", "seed="},
        ),
        ("fedcli train --client-option mo", {"momentum="}),
        ("fedcli info fedp", {"fedprox", "fedp"}),  # or a file of that name
        ("fedcli info fedav", {"fedavg", "fedavgm", "fedav"}),
        ("fedcli eval --pixels in", {"ink"}),
        ("fedcli trian r", {"report", "runs"}),  # and no line about the unknown command
    ],
)
def test_shell_completion(
    words: str,
    completions: set[str],
    command: list[str],
    process_arguments: dict[str, Any],
) -> None:
    process_arguments["env"] |= {
        "_FEDCLI_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    process = subprocess.run(command, check=True, capture_output=True, **process_arguments)
    assert {line.partition(",")[2] for line in process.stdout.splitlines()} == completions
    assert not process.stderr
