"""Studies on a Ray cluster of this machine give the same results as with local processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import ConfigError
from fedcli.settings import RunConfig
from fedcli.sweeps import study as study_file
from fedcli.sweeps.ray_pool import RayPool, read_files, write_files
from fedcli.sweeps.study_folder import StudyFolder
from fedcli.sweeps.sweeping import SweepOptions, run_study

pytest.importorskip("ray")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("cluster")]

STUDY: dict[str, Any] = {
    "run": {"rounds": 4, "clients": "4", "epochs": 1, "max_examples": 20},
    "grid": {"client_lr": [0.02, 0.1]},
    "seeds": 2,
    "select": {"on": "test"},
}


def run(path: Path, study: dict[str, Any], cancel: CancelFlag | None = None, **options: Any) -> Any:
    wanted = study_file.read(study, "the study")
    is_new = not path.exists()
    with StudyFolder.create(path, wanted) if is_new else StudyFolder.open(path) as folder:
        return run_study(folder, SweepOptions(**options), cancel=cancel)


def written(path: Path) -> dict[str, bytes]:
    """Returns the table and the results of each run."""
    names = ("metrics.jsonl", "evaluation.json")
    files = [path / "table.csv", *(each for name in names for each in path.rglob(name))]
    assert len(files) == 9
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def without_seconds(lines: Any) -> Any:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def find_trainer() -> int:
    """Waits until a trainer trains, and returns its process."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if (entry / "cmdline").read_bytes().startswith(b"ray::RemoteTrainer.train"):
                        return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("no trainer has begun")


def test_a_study_has_the_bytes_of_processes(tmp_path: Path) -> None:
    near = run(tmp_path / "near", STUDY)
    far = run(tmp_path / "far", STUDY, cluster="auto")
    assert without_seconds(far) == without_seconds(near)
    assert written(tmp_path / "far") == written(tmp_path / "near")


def test_a_stopped_study_is_continued(tmp_path: Path) -> None:
    longer = {**STUDY, "run": {**STUDY["run"], "rounds": 2500}}
    cancel = CancelFlag()

    def stop() -> None:
        find_trainer()
        time.sleep(0.5)
        cancel.set()

    threading.Thread(target=stop).start()
    with pytest.raises(Cancelled):
        run(tmp_path / "far", longer, cancel, cluster="auto")
    lines = run(tmp_path / "far", longer, cluster="auto")
    near = run(tmp_path / "near", longer)
    assert without_seconds(lines) == without_seconds(near)
    assert written(tmp_path / "far") == written(tmp_path / "near")


def test_runs_do_not_wait_for_trainers_without_a_processor(tmp_path: Path) -> None:
    lines = run(tmp_path / "far", STUDY, cluster="auto", jobs=4)  # the cluster has two processors
    assert [line["state"] for line in lines] == ["done"] * 4


def test_stopping_does_not_wait_for_trainers_that_have_not_started(tmp_path: Path) -> None:
    config = RunConfig(clients="4", rounds=100_000)
    with RayPool("auto", 5) as pool:
        for number in range(5):
            path = str(tmp_path / f"run{number}")
            task = {"threads": 1, "path": path, "config": vars(config), "anew": False}
            pool.submit(number, task)
        while not pool._calls:
            assert pool.wait(1.0) == []
        pool.stop()
        assert pool.num_free == pool.size


def test_a_run_is_tried_again_after_its_trainer_is_lost(tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(find_trainer(), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    longer = {**STUDY, "run": {**STUDY["run"], "rounds": 2000}}
    lines = run(tmp_path / "far", longer, cluster="auto")
    thread.join()
    assert [line["state"] for line in lines] == ["done"] * 4


def test_files_are_written_whole(tmp_path: Path) -> None:
    files = {"config.toml": b"a", "checkpoints/round-000001.h5": b"b"}
    write_files(tmp_path / "runs" / "key", {"old": b"c"})
    write_files(tmp_path / "runs" / "key", files)
    assert read_files(tmp_path / "runs" / "key") == files
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["key"]
    assert read_files(tmp_path / "none") == {}


def test_a_wrong_address_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot join a Ray cluster at the address 127\.0\.0\.1:1:"
    ):
        RayPool("127.0.0.1:1", 1)
