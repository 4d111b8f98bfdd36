"""Who may import whom: data flows one way, and what touches the world stands at the edge."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedcli"

# High to low; a module imports only from lower layers, from its own folder, and what NEIGHBOURS
# grants. A new module needs a place here.
LAYERS = (
    ("__main__",),
    ("cli",),
    (
        *("rounds", "examination", "evaluation", "federation", "report", "figures", "learning"),
        *("engines", "python_engine", "predictions", "published"),
        *("acquisition", "preparation", "population", "personalization", "benchmarks"),
        *("class_measures", "run_logs", "html_page", "portrait", "report_tables", "comparison"),
        *("run_record", "runs"),
    ),
    (
        *("algorithms", "aggregators", "optimizers", "metrics", "statistics", "batches", "cohort"),
        *("datasets", "checkpoint", "run_dir", "weights_files", "draws", "suspects", "densities"),
        *("download", "part_file", "archives", "models", "model_sources", "samplers"),
        *("own_models", "keras_files", "keras_archives", "keras_graphs", "keras_options"),
        *("client_spread", "text_tables", "event_files", "client_records", "per_client"),
        *("participation", "client_states", "engine", "thread_engine", "run_lines"),
    ),
    ("backend", "files", "locks", "transport"),
    (
        *("batch_plan", "params", "costs", "stacks", "layers", "seeds", "tff_sampling"),
        *("signatures", "config", "schedules", "stopping", "best_round", "presets", "registry"),
        *("options", "errors", "progress"),
    ),
)
LAYER_OF = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}

# Imports within one layer. Each row names only what comes after it, so there are no circles.
NEIGHBOURS = {
    "benchmarks": {"learning"},
    "runs": {"rounds", "run_record"},
    "rounds": {"run_logs", "evaluation", "federation", "learning", "engines"},
    "examination": {"evaluation", "federation", "learning"},
    "html_page": {"portrait", "report_tables", "run_record", "figures"},
    "portrait": {"evaluation", "federation"},
    "report_tables": {"report", "comparison", "run_record"},
    "comparison": {"run_record"},
    "run_record": {"evaluation", "learning"},
    "evaluation": {"personalization", "predictions", "federation", "learning", "engines"},
    "class_measures": {"predictions"},
    "predictions": {"federation"},
    "federation": {"learning", "engines"},
    "acquisition": {"preparation"},
    "learning": {"engines"},
    "client_records": {"participation"},
    "run_dir": {"run_lines"},
    "per_client": {"client_spread"},
    "engines": {"python_engine"},
    "algorithms": {"aggregators", "optimizers", "metrics", "batches", "client_states", "engine"},
    "aggregators": {"engine"},
    "thread_engine": {"engine", "batches"},
    "engine": {"batches"},
    "suspects": {"datasets", "densities", "batches"},
    "download": {"datasets", "part_file"},
    "part_file": {"datasets"},
    "archives": {"datasets"},
    "model_sources": {"models", "keras_files", "own_models"},
    "weights_files": {"keras_files"},
    "keras_files": {"keras_archives", "keras_graphs"},
    "checkpoint": {"datasets"},
    "keras_archives": {"datasets"},
    "keras_graphs": {"keras_options"},
    "datasets": {"batches", "draws"},
    "own_models": {"batches", "metrics", "models"},
    "models": {"draws"},
    "cohort": {"samplers"},
    "samplers": {"draws"},
    "costs": {"params", "stacks"},
    "batch_plan": {"config", "errors"},
    "params": {"stacks", "layers", "errors"},
    "stacks": {"layers", "errors"},
    "layers": {"options", "errors"},
    "config": {"schedules", "stopping", "best_round", "presets", "registry", "options", "errors"},
    "schedules": {"registry", "options", "errors"},
    "stopping": {"best_round", "options", "errors"},
    "presets": {"options"},
    "registry": {"options", "errors"},
    "options": {"errors"},
}

# The only users of a library, by module or folder below fedcli.
USERS: dict[str, set[str]] = {
    "h5py": {
        *("checkpoint", "client_records", "per_client", "keras_archives"),
        *("datasets.hdf5", "datasets.store", "datasets.store_writer", "datasets.tff_h5"),
    },
    "PIL": {"datasets.importers.pillow"},
    "torch": {"benchmarks.torch_peer"},
    "click": {"cli"},
    "platformdirs": {"datasets.data_folder"},
    "rich": {"cli.render", "cli.progress"},
    "fedcli._core": {"backend"},
    "matplotlib": {"figures"},
    "tensorboardX": {"event_files"},
    "time": {
        *("cli", "rounds", "learning", "run_dir", "download", "locks", "transport", "event_files"),
    },
    "datetime": {"cli", "run_dir"},
    # Random streams have names in `seeds` and are drawn by the core; files are never unpickled.
    **{name: set() for name in ("random", "secrets", "uuid")},
    "numpy.random": {"tff_sampling"},  # TFF's cohorts are those of NumPy's frozen RandomState
    **{name: set() for name in ("pickle", "marshal", "shelve", "dill", "joblib")},
}
NO_NUMPY = {
    *("__init__", "__main__", "errors", "options", "registry", "schedules", "stopping"),
    *("best_round", "presets", "config", "files", "run_dir", "run_lines", "locks"),
}
ENVIRONMENT_READERS = {"backend", "cli", "datasets.data_folder"}


def module_name(path: Path) -> str:
    """Returns the name below fedcli: "datasets.store"; a folder's own code is "datasets"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(module: str, is_folder: bool, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and absolute dotted name of each import, those within functions included."""
    here = ["fedcli", *module.split(".")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_folder
            base = here[: len(here) - up] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "np.random":
            yield node.lineno, "numpy.random"


def is_within(name: str, names: set[str]) -> bool:
    """Tells whether a dotted name is one of `names` or below one."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def import_fault(module: str, name: str) -> str | None:
    """Returns what is wrong with an import by a module, None if nothing."""
    for library, users in USERS.items():
        if is_within(name, {library}) and not is_within(module, users):
            return f"{library} is for {', '.join(sorted(users)) or 'nobody'}"
    if is_within(name, {"numpy"}) and is_within(module, NO_NUMPY):
        return "numpy is not for what runs before the work is known"
    room, parts = module.split(".")[0], name.split(".")
    if parts[0] != "fedcli" or len(parts) == 1 or room == "__init__":
        return None
    other = parts[1]
    if other in {room, "__version__", "_core"}:
        return None
    if other not in LAYER_OF:
        return f"fedcli.{other} has no layer"
    is_allowed = LAYER_OF[other] > LAYER_OF[room] or other in NEIGHBOURS.get(room, set())
    return None if is_allowed else f"fedcli.{other} is not below {room}"


def find_faults(module: str, source: str, *, is_folder: bool = False) -> list[str]:
    """Returns "line: what is wrong" for each breach of the layers in a module's source."""
    tree = ast.parse(source)
    faults = []
    for line, name in imports(module, is_folder, tree):
        fault = import_fault(module, name)
        if fault is not None:
            faults.append(f"{line}: {fault}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        text = ast.unparse(node)
        if text == "print" and not is_within(module, {"cli"}):
            faults.append(f"{node.lineno}: print is for cli")
        elif text in {"os.environ", "os.getenv"} and not is_within(module, ENVIRONMENT_READERS):
            readers = ", ".join(sorted(ENVIRONMENT_READERS))
            faults.append(f"{node.lineno}: the environment is read by {readers}")
    return faults


def owners(module: str, imported: Iterable[tuple[int, str]], modules: set[str]) -> Iterator[str]:
    """Yields the modules among `modules`, but `module`, that the imported names stand in."""
    for _, name in imported:
        parts = name.split(".")[1:] if name.startswith("fedcli.") else []
        ends = range(len(parts), 0, -1)
        owner = next((each for end in ends if (each := ".".join(parts[:end])) in modules), module)
        if owner != module:
            yield owner


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_finds_the_package() -> None:
    assert {"__init__", "backend", "cli", "datasets.store"} <= set(map(module_name, sources()))


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_layers(path: Path) -> None:
    module = module_name(path)
    assert module == "__init__" or module.split(".")[0] in LAYER_OF, "give it a layer"
    faults = find_faults(module, path.read_text(), is_folder=path.name == "__init__.py")
    assert faults == []


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {module_name(path) for path in sources()}
    graph = {
        module: set(owners(module, imports(module, path.name == "__init__.py", tree), modules))
        for path in sources()
        for module, tree in [(module_name(path), ast.parse(path.read_text()))]
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_neighbours_form_no_circle() -> None:
    order = list(NEIGHBOURS)
    for room, others in NEIGHBOURS.items():
        for other in others:
            assert LAYER_OF[other] == LAYER_OF[room]
            assert other not in order or order.index(other) > order.index(room)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("learning", "from fedcli import cli", "1: fedcli.cli is not below learning"),
        ("batches", "import fedcli.rounds", "1: fedcli.rounds is not below batches"),
        (
            "batches",
            "from fedcli.datasets.store import x",
            "1: fedcli.datasets is not below batches",
        ),
        ("datasets.store", "from ..cohort import x", "1: fedcli.cohort is not below datasets"),
        ("metrics", "from . import checkpoint", "1: fedcli.checkpoint is not below metrics"),
        ("errors", "from fedcli.options import x", "1: fedcli.options is not below errors"),
        ("params", "def f():\n    import fedcli.backend", "2: fedcli.backend is not below params"),
        ("cohort", "import_module('fedcli.rounds')", "1: fedcli.rounds is not below cohort"),
        ("rounds", "from fedcli import utils", "1: fedcli.utils has no layer"),
        ("rounds", "def f():\n    import h5py", "2: h5py is for checkpoint, "),
        ("cohort", "from fedcli import _core", "1: fedcli._core is for backend"),
        ("cohort", "from fedcli._core import ISA", "1: fedcli._core is for backend"),
        ("backend", "from fedcli.batches import x", "1: fedcli.batches is not below backend"),
        (
            "backend",
            "if TYPE_CHECKING:\n    from fedcli.rounds import x",
            "2: fedcli.rounds is not below backend",
        ),
        ("report", "from click import echo", "1: click is for cli"),
        ("cli.train", "from rich.live import Live", "1: rich is for cli.progress, cli.render"),
        ("metrics", "from time import time", "1: time is for cli, download, "),
        ("cohort", "import random", "1: random is for nobody"),
        ("cohort", "x = np.random.default_rng(0)", "1: numpy.random is for tff_sampling"),
        ("cohort", "from numpy.random import default_rng", "1: numpy.random is for tff_sampling"),
        ("cohort", "from numpy import random", "1: numpy.random is for tff_sampling"),
        ("checkpoint", "import pickle", "1: pickle is for nobody"),
        ("config", "import numpy as np", "1: numpy is not for what runs before"),
        ("registry.models", "import numpy as np", "1: numpy is not for what runs before"),
        ("rounds", "print(1)", "1: print is for cli"),
        ("config", "x = os.environ['HOME']", "1: the environment is read by backend, cli, "),
    ],
)
def test_checker_finds(module: str, source: str, fault: str) -> None:
    faults = find_faults(module, source)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.train", "import click, time\nfrom fedcli import rounds\nprint(1)"),
        ("algorithms.fedavg", "from fedcli import optimizers, errors\nfrom . import base"),
        ("datasets.store", "import h5py\nfrom fedcli.batches import x\nfrom .cache import y"),
        ("checkpoint", "from fedcli import __version__\nimport numpy as np"),
        ("backend", "from fedcli import _core\nimport os\nx = os.environ"),
        ("cohort", "from fedcli.backend import random_u64\nrandomness = timer = 1"),
        ("tff_sampling", "x = np.random.RandomState(0)"),
    ],
)
def test_checker_allows(module: str, source: str) -> None:
    assert find_faults(module, source) == []


def test_checker_resolves_a_folder_from_itself() -> None:
    source = "from .cache import x\nfrom .. import rounds"
    faults = find_faults("datasets", source, is_folder=True)
    assert faults == ["2: fedcli.rounds is not below datasets"]
