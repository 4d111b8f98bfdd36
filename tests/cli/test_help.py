from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from fedcli.cli.main import COMMANDS, group
from fedcli.settings.declaration import option_name
from fedcli.settings.run_config import OPTIONS, RunConfig
from fedcli.settings.sections import SECTIONS
from fedcli.version import __version__
from tests.kit.command_line import Fedcli

# Options of train that no field of RunConfig stands for.
_OTHER_TRAIN_OPTIONS = {
    f"--{name}" for name in ["out", "force", "resume", "config", "json", "quiet", "verbose"]
}

_SHOW_IMPORTS = """
import sys
from fedcli.cli.main import run
code = run(sys.argv[1:])
heavy = [name for name in ("numpy", "h5py", "rich", "fedcli.core._core") if name in sys.modules]
print("imported:", *heavy)
raise SystemExit(code)
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
    assert "_FEDCLI_COMPLETE=bash_source" in done.out


def test_version(fedcli: Fedcli) -> None:
    assert fedcli("--version").out == f"fedcli {__version__}\n"


def test_a_run_of_a_model_by_name_imports_nothing_of_others(
    process_arguments: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["train", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path / "run"), "-q"]
    program = (
        "import re, sys\nfrom fedcli.cli.main import run\nrun(sys.argv[1:])\n"
        "others = re.compile(r'keras|models\\.own|python_models')\n"
        "print('imported:', *filter(others.search, sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        **process_arguments,
    )
    assert process.stdout.splitlines()[-1].split() == ["imported:"]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(
    arguments: list[str], process_arguments: dict[str, Any]
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _SHOW_IMPORTS, *arguments],
        check=True,
        capture_output=True,
        **process_arguments,
    )
    assert process.stdout.splitlines()[-1].split() == ["imported:"]


def test_commands_are_listed_and_completed_without_their_modules(
    process_arguments: dict[str, Any],
) -> None:
    program = (
        "import sys\nfrom fedcli.cli.main import run\nrun(sys.argv[1:])\n"
        "print('imported:', *(name for name in sys.modules if name.startswith('fedcli.settings')))"
    )
    completing = {"COMP_WORDS": "fedcli e", "COMP_CWORD": "1"}
    for variables, shown in (
        ({}, "inspect-clients  Show who the clients are"),
        ({**completing, "_FEDCLI_COMPLETE": "bash_complete"}, "plain,eval\nplain,export\n"),
    ):
        process = subprocess.run(
            [sys.executable, "-c", program, *([] if variables else ["--help"])],
            check=True,
            capture_output=True,
            text=True,
            env={**process_arguments["env"], **variables},
        )
        assert shown in process.stdout
        assert process.stdout.splitlines()[-1].split() == ["imported:"]


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
    text = " ".join(fedcli("train", "-h").out.split()).replace("- ", "-")  # lines end at hyphens
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
        ("fedcli train --model soft", {"softmax-regression", "soft"}),  # or files that begin so
        ("fedcli info fedp", {"fedprox"}),
        ("fedcli info fedav", {"fedavg", "fedavgm"}),
        ("fedcli eval --pixels in", {"ink"}),
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
