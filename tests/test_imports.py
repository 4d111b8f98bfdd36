"""Modules that the package imports at each step of a program, all in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

from fedcli.settings.tables.former_modules import FORMER_MODULES
from tests.kit.command_line import REPOSITORY

# From the lightest to the heaviest: the code of a step, and modules that are not loaded after it.
STEPS = {
    "tables of names": (
        "import fedcli; from fedcli.settings import tables; fedcli.FedcliError; tables.MODELS",
        ("numpy", "h5py", "rich", "fedcli.core._core"),
    ),
    "settings and a run's folder": (
        "import fedcli.settings.rules, fedcli.runs.files.folder",
        ("numpy", "h5py", "rich", "fedcli.core._core"),
    ),
    "generated data": (
        "from fedcli import datasets; datasets.load()[0].client('s0000000')",
        ("h5py", "platformdirs", "urllib.request", "matplotlib"),
    ),
    "data of a name": (
        "datasets.load('synthetic-digits')",
        ("h5py", "platformdirs", "urllib.request", "matplotlib"),
    ),
    "the room of figures": ("from fedcli import figures", ("matplotlib",)),
    "figures": (
        "figures.require(); import fedcli.inspection.figures.drawings",
        ("matplotlib.pyplot", "urllib.request"),
    ),
}
PROGRAM = """
import json, sys
loaded, names = {}, {}
for step, code in json.load(sys.stdin).items():
    exec(code, names)
    loaded[step] = [*sys.modules]
json.dump(loaded, sys.stdout)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that are loaded after each step."""
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({step: code for step, (code, _) in STEPS.items()}),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return {step: set(modules) for step, modules in json.loads(done.stdout).items()}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_loads_nothing_that_it_does_not_use(loaded: dict[str, set[str]], step: str) -> None:
    assert loaded[step].isdisjoint(STEPS[step][1])


def test_the_steps_load_what_they_use(loaded: dict[str, set[str]]) -> None:
    """Else the test above could pass because the names in `STEPS` are not those of modules."""
    assert "fedcli.settings.tables" in loaded["tables of names"]
    assert {"numpy", "fedcli.core._core"} <= loaded["generated data"]
    assert "matplotlib" in loaded["figures"]


@pytest.mark.parametrize(("former", "now"), FORMER_MODULES.items())
def test_a_module_is_found_by_its_former_name(former: str, now: str) -> None:
    """Scripts that import modules from their former places still work."""
    found, module = import_module(f"fedcli.{former}"), import_module(now)
    public = [name for name in vars(module) if not name.startswith("__")]
    assert public
    assert all(getattr(found, name) is getattr(module, name) for name in public)


def test_what_is_below_a_former_name_is_loaded_once() -> None:
    for name, now in (
        ("registry.models", "fedcli.settings.tables.models"),
        ("aggregators.mean", "fedcli.learning.aggregators.mean"),
        ("algorithms.scaffold", "fedcli.learning.algorithms.scaffold"),
    ):
        found, module = import_module(f"fedcli.{name}"), import_module(now)
        public = [each for each in vars(module) if not each.startswith("__")]
        assert all(getattr(found, each) is getattr(module, each) for each in public)


@pytest.mark.parametrize("name", ["nothing", "datasets.nothing", "registry.nothing"])
def test_a_module_that_never_was_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"'fedcli.{name}'"):
        import_module(f"fedcli.{name}")
