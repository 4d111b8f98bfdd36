"""Checks of the build: declared dependencies, pinned versions, flags, and built variants."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcli.core import _core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
# The distribution that provides a module, by the module's name, where the two names differ.
DISTRIBUTIONS = {"tomli_w": "tomli-w", "PIL": "pillow"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirement_name(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement, maxsplit=1)[0]


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a node and all nodes below it, without code that only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from executed_nodes(child)


def imported_distributions() -> set[str]:
    """Returns the distributions of other packages that fedcli imports."""
    names = set()
    for path in (ROOT / "fedcli").rglob("*.py"):
        for node in executed_nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    names -= {"fedcli", *sys.stdlib_module_names}
    return {DISTRIBUTIONS.get(name, name) for name in names}


def test_dependencies_are_what_is_imported(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    extras = [
        extras[name]
        for name in ("images", "matlab", "parquet", "plot", "ray", "tensorboard", "torch")
    ]
    required = [*project["dependencies"], *itertools.chain(*extras)]
    declared = set(map(requirement_name, required))
    imported = imported_distributions() | {"tomli"}  # loaded by name where tomllib is missing
    assert declared - {"tensorboard"} == imported  # users read event files with it; fedcli does not


def test_lint_tools_are_pinned(project: dict[str, Any]) -> None:
    pins = project["optional-dependencies"]["dev"]
    assert {requirement_name(pin) for pin in pins} == {
        *("clang-format", "cython-lint", "mypy", "ruff"),
    }
    assert all("==" in pin for pin in pins)


def test_variants() -> None:
    assert _core.ISAS[0] == "generic"
    assert set(_core.ISAS) <= {"generic", "avx2", "avx512"}
    chosen = os.environ.get("FEDCLI_ISA", _core.ISAS[-1])
    assert chosen == _core.ISA


def import_core(isa: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedcli.core import _core; print(_core.ISA)"]
    environment = {**os.environ, "FEDCLI_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", _core.ISAS)
def test_environment_chooses_the_variant(isa: str) -> None:
    assert import_core(isa).stdout == f"{isa}\n"


def test_unknown_variant_is_refused() -> None:
    told = import_core("sse9")
    assert told.returncode != 0
    assert "sse9" in told.stderr


@pytest.mark.parametrize("path", ["setup.py", "tests/c/Makefile"])
def test_flags(path: str) -> None:
    """The C tests are compiled with those flags of the extension that affect results."""
    text = (ROOT / path).read_text()
    for flag in [
        *("-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
        *("-march=x86-64-v3", "-march=x86-64-v4 -mprefer-vector-width=512"),
    ]:
        assert flag in text
    for flag in ["-march=native", "-mcpu=native", "-Ofast"]:
        assert flag not in text
    assert not re.search(r'"[^"#\n]*-ffast-math', text)


def test_without_a_compiler_the_build_says_what_to_install(tmp_path: Path) -> None:
    for name in ("fedcli", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_core.*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    told = subprocess.run(
        [sys.executable, "setup.py", "build"],
        cwd=tmp_path,
        env={**os.environ, "CC": "absent-cc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode != 0
    *_, message = told.stderr.splitlines()
    assert "'absent-cc' cannot compile" in message
    for command in ("apt install gcc", "dnf install gcc", "xcode-select --install"):
        assert command in message
    assert "Traceback" not in told.stderr
    assert len((told.stdout + told.stderr).splitlines()) < 10
