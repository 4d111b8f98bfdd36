"""Rules of imports: they go one way, and each outside library has few users."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedcli"

# The layers of fedcli, the highest first. A "room" is a folder, a "floor" is a layer of folders.
# A module imports only from its own room and from lower floors. The lowest layer ("ground floor")
# has the modules of the package itself, which all modules may import.
GROUND = (
    *("csv_text", "dataclass", "digest", "errors", "files", "hdf5", "lazy", "locks", "outputs"),
    *("progress", "version", "zips"),
)
ROOMS = (
    ("__main__",),
    ("cli",),
    ("sweeps",),
    ("reports",),
    ("audits", "inspection"),
    ("runs",),
    ("evaluation", "benchmarks", "cluster"),
    ("federation",),
    ("learning",),
    ("models",),
    ("datasets",),
    ("core", "privacy"),
    ("settings",),
    GROUND,
)
# The floors inside each large room: its modules and folders, high to low.
FLOORS = {
    "cluster": (
        ("opening",),
        ("engine", "ray_workers"),
        ("worker",),
        ("connection", "merging", "messages", "probe"),
    ),
    "cli": (
        ("main",),
        (
            *("audit", "bench", "bundle", "clean", "download", "evaluate", "export", "help"),
            *("info", "inspect_clients", "preprocess", "report", "runs", "sweep", "train"),
            "verify",
        ),
        ("jobs", "options", "group_report"),
        ("peer_options", "run_folders", "screen", "bench_peer", "info_tables"),
    ),
    "runs": (
        ("python_api", "cleaning", "bundling"),
        ("verifying",),
        ("progress_line",),
        ("ledger", "listing", "starting"),
        ("evaluating", "loop", "record"),
        ("evaluation_clients", "evaluation_outputs", "round_evaluations", "saving"),
        ("moved_data", "opening", "provenance", "trained"),
        ("files",),
        ("needs",),
        ("building", "client_bytes", "stopping"),
        ("attacking", "input_layers", "privacy_plan"),
    ),
    "sweeps": (
        ("python_api",),
        ("sweeping",),
        ("study_tables",),
        ("planning",),
        ("halving", "search"),
        ("plans",),
        ("study_folder",),
        ("choice", "code", "points"),
        ("study",),
        ("study_progress", "reuse"),
        ("study_values", "outcomes"),
        ("keys", "ray_pool", "trials"),
        ("pool", "trainer"),
    ),
    "learning": (
        ("named_builders",),
        ("builders",),
        ("evaluation_process", "training_process"),
        ("process",),
        ("signatures",),
        ("batch_norms", "state"),
        ("algorithms",),
        ("secure_sums",),
        ("aggregators", "updates"),
        ("masked_sums",),
        ("engines",),
        ("optimizers", "class_weights", "client_states", "cohort_data"),
        ("client_vector_file",),
    ),
    "models": (
        ("sources",),
        ("own", "weights_files", "zoo"),
        ("image_shapes", "zoo_stacks"),
        ("augmentation", "batch_norms", "layer_graphs", "torch_files"),
        ("costs", "keras", "model"),
        ("layout",),
        ("sizing",),
        ("layers", "metrics"),
    ),
    "datasets": (
        ("download",),
        ("opening", "preparation"),
        ("importers",),
        ("sources",),
        ("partitions",),
        ("client_batches", "moments", "stand_ins", "validation"),
        ("examining",),
        ("client_data",),
        ("table",),
        ("spool",),
        ("labels", "polarity"),
        ("cache", "checks"),
        ("batches",),
        ("batch_plan", "data_folder", "description"),
    ),
    "privacy": (
        ("accountant",),
        ("schemes",),
        ("gaussian", "loss_distribution", "renyi", "trees"),
    ),
    "settings": (
        ("config_file", "rules"),
        ("merging", "own", "privacy_rules", "secure_sum_rules"),
        ("run_config",),
        ("declaration",),
        ("values",),
        ("data_source", "presets", "tables", "toml_values"),
        ("options", "shares"),
        ("notebooks", "sections", "vocabulary"),
    ),
}

# The only users of a library, by module or folder below fedcli.
USERS: dict[str, set[str]] = {
    "h5py": {
        *("hdf5", "runs.files.checkpoint", "runs.files.client_records", "evaluation.client_file"),
        *("models.keras", "datasets.sources.store", "datasets.sources.store_writer"),
        "datasets.sources.tff_h5",
    },
    "PIL": {"datasets.importers.pillow"},
    "csv": {
        *("csv_text", "datasets.importers.csv_files", "datasets.importers.csv_layout"),
        "datasets.importers.picture_tables",
    },
    "ray": {"cluster.connection"},
    "torch": {"benchmarks.torch_peer", "models.torch_files"},
    "click": {"cli"},
    "platformdirs": {"datasets.data_folder"},
    "rich": {"cli.screen.render", "cli.screen.markdown"},
    "fedcli.core._core": {"core.native"},
    "matplotlib": {"inspection.figures", "reports.heat_map", "reports.plots"},
    "tensorboardX": {"runs.files.event_files"},
    "time": {
        *("cli", "runs", "learning", "cluster.ray_workers", "datasets.download", "locks"),
        *("outputs", "sweeps", "benchmarks.torch_peer"),
    },
    "datetime": {"cli", "runs.files.folder", "sweeps.study_folder"},
    # Random streams have names in `core.seeds` and are drawn by the core; nothing is unpickled.
    **{name: set() for name in ("random", "secrets", "uuid")},
    "numpy.random": {"federation.tff_sampling"},  # TFF draws with NumPy's frozen RandomState
    **{name: set() for name in ("pickle", "marshal", "shelve", "dill", "joblib")},
}
# Modules that run before the command is known; they must not import NumPy.
NO_NUMPY = {
    *("__main__", "settings", "runs.stopping", "runs.files.folder", "runs.files.lines"),
    *("dataclass", "digest", "errors", "files", "lazy", "locks", "progress", "version"),
}
ENVIRONMENT_READERS = {"core.native", "cli", "cluster.connection", "datasets.data_folder"}
FLOOR_OF_ROOM = {room: depth for depth, rooms in enumerate(ROOMS) for room in rooms}


def module_name(path: Path) -> str:
    """Returns the name below fedcli: "datasets.client_data"; of a folder, "datasets"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and absolute dotted name of each import, also of imports in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "np.random":
            yield node.lineno, "numpy.random"


def is_within(name: str, names: Iterable[str]) -> bool:
    """Tells whether a dotted name is one of `names` or below one."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def import_fault(module: str, name: str) -> str | None:
    """Returns the reason why a module may not import a name; None if it may."""
    if name.startswith("."):
        return "an import is written in full"
    for library, users in USERS.items():
        if is_within(name, {library}) and not is_within(module, users):
            return f"{library} is for {', '.join(sorted(users)) or 'nobody'}"
    if is_within(name, {"numpy"}) and is_within(module, NO_NUMPY):
        return "numpy is not for what runs before the work is known"
    if not name.startswith("fedcli"):
        return None
    return order_fault(module.split("."), name.split(".")[1:])


def order_fault(module: list[str], other: list[str]) -> str | None:
    """Returns why a module may not import another, both given by their parts; None if it may."""
    if not other or other[0] not in FLOOR_OF_ROOM:
        return f"fedcli.{'.'.join(other)} is in no room"
    if module[0] == other[0] and module[0] not in GROUND:
        return floor_fault(module, other)
    if module[0] in GROUND and other[0] in GROUND:
        return None  # another test looks for circular imports
    if FLOOR_OF_ROOM[other[0]] > FLOOR_OF_ROOM[module[0]]:
        return None
    return f"fedcli.{other[0]} is not below {module[0]}"


def floor_fault(module: list[str], other: list[str]) -> str | None:
    """Returns the result of `order_fault` for two modules of one room."""
    room, floors = module[0], FLOORS.get(module[0])
    if floors is None:
        return None
    floor_of = {name: depth for depth, names in enumerate(floors) for name in names}
    if len(other) == 1 or other[1] not in floor_of:
        return f"{'.'.join(other)} is on no floor of {room}; import the module that defines it"
    if module[1] == other[1] or floor_of[other[1]] > floor_of[module[1]]:
        return None
    return f"{room}.{other[1]} is not below {room}.{module[1]}"


def find_faults(module: str, source: str) -> list[str]:
    """Returns "line: reason" for each forbidden import in the source of a module."""
    tree = ast.parse(source)
    faults = []
    for line, name in imports(tree):
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


def owners(imported: Iterable[tuple[int, str]], modules: set[str]) -> Iterator[str]:
    """Yields the modules among `modules` that define the imported names."""
    for _, name in imported:
        parts = name.split(".")[1:] if name.startswith("fedcli.") else []
        ends = range(len(parts), 0, -1)
        yield from (each for end in ends if (each := ".".join(parts[:end])) in modules)


def sources() -> list[Path]:
    """The modules. An `__init__` that only re-exports names is left out; it has its own test."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def faces() -> list[Path]:
    return sorted(PACKAGE.rglob("__init__.py"))


def test_finds_the_package() -> None:
    names = {"__main__", "core.native", "cli.train", "datasets.sources.store"}
    assert names <= set(map(module_name, sources()))


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_a_module_imports_from_lower_floors_alone(path: Path) -> None:
    module = module_name(path)
    parts = module.split(".")
    assert parts[0] in FLOOR_OF_ROOM, "give it a room"
    if parts[0] in FLOORS:
        assert any(parts[1] in names for names in FLOORS[parts[0]]), "give it a floor of its room"
    assert find_faults(module, path.read_text()) == []


@pytest.mark.parametrize("path", faces(), ids=module_name)
def test_the_face_of_a_folder_only_hands_names_on(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_lazy = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        is_list = isinstance(node, ast.Assign) and ast.unparse(node).startswith("__all__ = ")
        is_import = isinstance(node, ast.ImportFrom)
        refuses = ast.unparse(node) == "__getattr__ = refuse_others(__name__, __all__)"
        assert is_text or is_lazy or is_list or is_import or refuses, ast.unparse(node)


def test_the_top_of_the_package_is_small() -> None:
    files = [path.name for path in PACKAGE.glob("*.py")]
    assert sorted(files) == sorted(["__init__.py", "__main__.py", *(f"{n}.py" for n in GROUND)])
    assert len(files) <= 14


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {module_name(path) for path in sources()}
    graph = {
        module_name(path): set(owners(imports(ast.parse(path.read_text())), modules))
        for path in sources()
    }
    order = tuple(TopologicalSorter(graph).static_order())  # raises CycleError for a cycle
    assert len(order) == len(modules)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("learning.state", "from fedcli import cli", "1: fedcli.cli is not below learning"),
        ("federation.cohorts", "import fedcli.runs.loop", "1: fedcli.runs is not below federation"),
        ("errors", "from fedcli.settings.options import x", "1: fedcli.settings is not below err"),
        ("evaluation.result", "import fedcli.benchmarks", "1: fedcli.benchmarks is not below eval"),
        (
            "models.layout",
            "def f():\n    import fedcli.learning",
            "2: fedcli.learning is not below models",
        ),
        (
            "core.native",
            "if TYPE_CHECKING:\n    from fedcli.runs.loop import x",
            "2: fedcli.runs is not below core",
        ),
        (
            "federation.cohorts",
            "import_module('fedcli.runs')",
            "1: fedcli.runs is not below federation",
        ),
        (
            "learning.optimizers.rules",
            "from fedcli.learning.engines.contract import x",
            "1: learning.engines is not below learning.optimizers",
        ),
        (
            "runs.files.lines",
            "from fedcli.runs.loop import x",
            "1: runs.loop is not below runs.files",
        ),
        (
            "datasets.table",
            "from fedcli.datasets import load",
            "1: datasets.load is on no floor of datasets; import the module",
        ),
        ("datasets.table", "from .cache import x", "1: an import is written in full"),
        ("runs.loop", "from fedcli import utils", "1: fedcli.utils is in no room"),
        ("runs.loop", "def f():\n    import h5py", "2: h5py is for datasets.sources.store, "),
        ("federation.cohorts", "from fedcli.core import _core", "1: fedcli.core._core is for core"),
        ("reports.rows", "from click import echo", "1: click is for cli"),
        (
            "cli.train",
            "from rich.live import Live",
            "1: rich is for cli.screen.markdown, cli.screen.ren",
        ),
        ("models.metrics", "from time import time", "1: time is for benchmarks.torch_peer, cli, "),
        ("federation.cohorts", "import random", "1: random is for nobody"),
        ("federation.cohorts", "x = np.random.rand(0)", "1: numpy.random is for federation.tff"),
        ("runs.loop", "from numpy.random import rand", "1: numpy.random is for federation.tff"),
        ("runs.loop", "from numpy import random", "1: numpy.random is for federation.tff_samp"),
        ("runs.files.checkpoint", "import pickle", "1: pickle is for nobody"),
        ("settings.values", "import numpy as np", "1: numpy is not for what runs before"),
        ("settings.tables.models", "import numpy as np", "1: numpy is not for what runs before"),
        ("runs.loop", "print(1)", "1: print is for cli"),
        (
            "settings.values",
            "x = os.environ['HOME']",
            "1: the environment is read by cli, cluster.connection, ",
        ),
    ],
)
def test_checker_finds(module: str, source: str, fault: str) -> None:
    faults = find_faults(module, source)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.train", "import click, time\nfrom fedcli.runs import starting\nprint(1)"),
        (
            "learning.algorithms.fedavg",
            "from fedcli.learning import optimizers\nimport fedcli.errors",
        ),
        ("datasets.sources.store", "import h5py\nfrom fedcli.datasets.cache import y"),
        ("runs.files.checkpoint", "from fedcli.version import __version__\nimport numpy as np"),
        ("core.native", "from fedcli.core import _core\nimport os\nx = os.environ"),
        ("federation.cohorts", "from fedcli.core.native import x\nrandomness = timer = 1"),
        ("federation.tff_sampling", "x = np.random.RandomState(0)"),
    ],
)
def test_checker_allows(module: str, source: str) -> None:
    assert find_faults(module, source) == []


def test_no_test_module_imports_another() -> None:
    """Helpers that several test modules need are in tests/kit."""
    other = re.compile(r"\s*(from|import) tests\.(\w+\.)*test_")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((PACKAGE.parent / "tests").rglob("test_*.py"))
        for line in path.read_text().splitlines()
        if other.match(line)
    ]
    assert found == []
