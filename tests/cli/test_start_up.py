"""A plain `fedcli train` imports no module that it does not use."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fedcli import __main__ as start
from fedcli.cli.jobs import collection
from fedcli.cli.jobs.worker import run_stoppable
from fedcli.core.native import CancelFlag
from tests.kit.command_line import REPOSITORY

PROGRAM = """
import sys
from fedcli.cli import main
code = main.run(sys.argv[1:])
loaded = (name for name, module in sys.modules.items() if getattr(module, "__spec__", None))
print(*loaded, file=sys.stderr)
sys.exit(code)
"""

# Each module is for data, models, algorithms, files or output that a plain run does not have.
NOT_USED = (
    *("fedcli.benchmarks", "fedcli.inspection", "fedcli.datasets.importers"),
    *("fedcli.datasets.download", "fedcli.datasets.preparation", "fedcli.datasets.partitions"),
    *("fedcli.datasets.sources.store", "fedcli.datasets.sources.tff_h5", "fedcli.models.keras"),
    *("fedcli.models.own", "fedcli.models.weights_files", "fedcli.learning.engines.python_models"),
    *("fedcli.learning.algorithms.scaffold", "fedcli.learning.algorithms.mime"),
    *("fedcli.evaluation.personalization", "fedcli.evaluation.fine_tuning"),
    *("fedcli.evaluation.predictions", "fedcli.evaluation.client_file"),
    *("fedcli.runs.files.event_files", "fedcli.runs.files.client_records", "fedcli.runs.trained"),
    *("fedcli.runs.evaluating", "fedcli.runs.record", "fedcli.reports.published"),
    *("fedcli.reports.html", "fedcli.reports.comparison", "fedcli.settings.presets"),
    "fedcli.settings.tables.peer_names",
    *("fedcli.federation.participation", "fedcli.learning.signatures"),
    *("fedcli.federation.samplers", "fedcli.federation.tff_sampling", "fedcli.cli.screen.render"),
    *("rich", "matplotlib", "PIL", "tensorboardX", "torch", "tempfile", "shutil", "csv", "difflib"),
    *("tomllib", "tomli", "concurrent.futures", "_hashlib", "numpy.ma", "urllib.request"),
)
MOST_MODULES = 140  # of fedcli; each takes 0.3 ms


def imported_by(folder: Path, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return imported_by(tmp_path_factory.mktemp("plain"), "train")


def test_a_plain_run_imports_nothing_that_it_does_not_use(plain: set[str]) -> None:
    assert {"fedcli.runs.loop", "numpy", "h5py", "click"} < plain  # the process has trained
    found = {
        name
        for name in plain
        if any(name == unused or name.startswith(f"{unused}.") for unused in NOT_USED)
    }
    assert found == set()


def test_a_plain_run_imports_few_modules(plain: set[str]) -> None:
    files = {name for name in plain if name.startswith("fedcli.")}
    assert len(files) <= MOST_MODULES, sorted(files)


def test_garbage_is_collected_again_once_a_job_begins() -> None:
    at_first, before = gc.get_threshold(), (1234, 11, 12)
    gc.set_threshold(*before)
    try:
        collection.begin_collection()
        assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)  # it was not put off
        collection.put_off_collection()
        assert gc.get_threshold()[0] > 10**9
        assert run_stoppable(gc.get_threshold, cancel=CancelFlag(), describe_stop=str) == before
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*at_first)


class _Interrupted(types.ModuleType):
    """A module whose import raises KeyboardInterrupt."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_ctrl_c_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fedcli.cli.main", _Interrupted("fedcli.cli.main"))
    with pytest.raises(SystemExit) as caught:
        start.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "fedcli: interrupted\n"
