"""Names in docstrings, messages, comments, README and manual exist in the package."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import fedcli
from fedcli.settings.own.parts import FAMILIES
from fedcli.settings.tables.former_modules import FORMER_MODULES

ROOT = Path(__file__).resolve().parents[1]
# A dotted name in a text that is not part of a path, an address or a file name.
NAME = re.compile(r"(?<![\w./@-])fedcli(?:\.[A-Za-z_]\w*)+(?![\w-]*/)")
# Groups of entry points, which are named like modules.
GROUPS = {family.group for family in FAMILIES.values()}
ENDINGS = ("c", "git", "h5", "json", "py", "pyi", "pyx", "toml")


def mentioned(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if " cimport " not in line]
    found = NAME.findall("\n".join(lines))
    return {name for name in found if name.rpartition(".")[2] not in ENDINGS} - GROUPS


def exists(name: str) -> bool:
    """Whether a name exists after `import fedcli`, or after importing the module in its path."""
    _, *parts = name.split(".")
    return _is_reached(fedcli, parts) or _is_in_a_module(name)


def _is_reached(found: object, parts: list[str]) -> bool:
    """Whether each part is an attribute of the one before; of a module, a name in its `__all__`."""
    for part in parts:
        listed = getattr(found, "__all__", None) if isinstance(found, ModuleType) else None
        if (listed is not None and part not in listed) or not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _is_in_a_module(name: str) -> bool:
    path = name
    while not _is_module(path):
        path = path.rpartition(".")[0]
    parts = name.removeprefix(path).split(".")[1:]
    if not parts:
        return True
    module = importlib.import_module(path)
    return path != "fedcli" and _is_reached(module, parts)


def _is_module(path: str) -> bool:
    try:
        return find_spec(path) is not None and not _is_former(path)
    except (ModuleNotFoundError, ValueError):  # ValueError: a re-exported object, not a module
        return False


def _is_former(path: str) -> bool:
    return any(f"{path}.".startswith(f"fedcli.{name}.") for name in FORMER_MODULES)


def test_every_name_that_a_text_mentions_exists() -> None:
    texts = [ROOT / "README.md", *(ROOT / "fedcli" / "manual").glob("*.md")]
    texts += [path for path in (ROOT / "fedcli").rglob("*.py*") if path.suffix != ".pyc"]
    names = [(path, name) for path in sorted(texts) for name in mentioned(path.read_text())]
    assert len(names) > 1000
    assert [f"{path.name}: {name}" for path, name in names if not exists(name)] == []


def test_a_name_that_does_not_exist_is_found() -> None:
    text = (
        "`fedcli.densities`, fedcli.train, fedcli.learning.algorithms.fedprox; fedcli.layers.Lstm"
    )
    assert {name for name in mentioned(text) if not exists(name)} == {
        "fedcli.densities",
        "fedcli.layers.Lstm",
    }


def test_readme_and_manual_name_what_import_fedcli_is_enough_for() -> None:
    """An exception is the page on limits: its constants need imports of other modules."""
    pages = [ROOT / "README.md", *(ROOT / "fedcli" / "manual").glob("*.md")]
    found = [
        f"{page.name}: {name}"
        for page in sorted(pages)
        if page.stem != "limits"
        for name in mentioned(page.read_text())
        if not _is_reached(fedcli, name.split(".")[1:])
    ]
    assert found == []


def test_every_public_module_lists_its_names_and_nothing_else_is_completed() -> None:
    modules = [fedcli, *(getattr(fedcli, name) for name in vars(fedcli)["__all__"])]
    public = [each for each in modules if isinstance(each, ModuleType)]
    assert len(public) > 10
    for module in public:
        names = getattr(module, "__all__", [])
        assert len(names) > 1, module.__name__
        assert all(hasattr(module, name) for name in names), module.__name__
        if module is not fedcli.layers:  # it re-exports the layers of several modules
            assert dir(module) == sorted(names), module.__name__


def test_all_kinds_of_layers_are_public() -> None:
    kinds = {name for name, each in vars(fedcli.layers).items() if isinstance(each, type)}
    assert kinds == set(fedcli.layers.__all__) - {"IMAGE", "Input"}
