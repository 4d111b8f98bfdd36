"""Studies on a Ray cluster of this machine give the same results as with local processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import ConfigError
from fedcli.runs.files.folder import CONFIG, LOCK, METRICS, checkpoint_rounds, read_metrics
from fedcli.settings import RunConfig
from fedcli.sweeps import study as study_file
from fedcli.sweeps.ray_pool import RayPool, read_files, write_files
from fedcli.sweeps.study_folder import StudyFolder
from fedcli.sweeps.sweeping import SweepOptions, run_study
from fedcli.sweeps.trials import read_trials
from tests.cluster.conftest import processes_titled
from tests.kit.training import train_rounds
from tests.kit.waiting import ENDLESS, wait_until

pytest.importorskip("ray")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("cluster")]

STUDY: dict[str, Any] = {
    "run": {"rounds": 4, "clients": "4", "epochs": 1, "max_examples": 20},
    "grid": {"client_lr": [0.02, 0.1]},
    "seeds": 2,
    "select": {"on": "test"},
}
ENDLESS_STUDY = {**STUDY, "run": {**STUDY["run"], "rounds": ENDLESS}}


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


def training_processes() -> dict[int, Path]:
    """Returns the trainers of this test's cluster that train, each with its run's folder."""
    found: dict[int, Path] = {}
    for entry in processes_titled("ray::RemoteTrainer.train"):
        with suppress(OSError):
            files = [each.readlink() for each in (entry / "fd").iterdir()]
            folders = [each.parent for each in files if each.name == LOCK]
            found |= {int(entry.name): each for each in folders if (each / METRICS).exists()}
    return found


@contextmanager
def endless_study(path: Path, **options: Any) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a study whose runs do not end by themselves, and stops it at the end of the block.

    Yields:
        A function that waits until a trainer has completed rounds, and returns its process and the
        config.toml of its run. Its argument is a process that does not count.
    """
    cancel = CancelFlag()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run(path, ENDLESS_STUDY, cancel, cluster="auto", **options)
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=work, daemon=True)

    def find(other: int = 0) -> tuple[int, str]:
        found: list[tuple[int, str]] = []

        def look() -> bool:
            with suppress(OSError):  # a trainer has ended, and its folder is gone
                found.extend(
                    (process, (folder / CONFIG).read_text())
                    for process, folder in training_processes().items()
                    if process != other and len(read_metrics(folder)) > 2
                )
            return bool(found)

        wait_until(look, thread)
        return found[0]

    thread.start()
    try:
        yield find
    finally:
        cancel.set()
        thread.join()
    assert [type(error) for error in errors] == [Cancelled]


def test_a_study_has_the_bytes_of_processes(tmp_path: Path) -> None:
    near = run(tmp_path / "near", STUDY)
    far = run(tmp_path / "far", STUDY, cluster="auto")
    assert without_seconds(far) == without_seconds(near)
    assert written(tmp_path / "far") == written(tmp_path / "near")


def test_a_stopped_study_saves_its_runs(tmp_path: Path) -> None:
    with endless_study(tmp_path / "far") as find:
        find()
    assert read_trials(tmp_path / "far") == []
    runs = list((tmp_path / "far/runs").iterdir())
    done = [len(read_metrics(run)) for run in runs]
    assert max(done) > 2
    assert [checkpoint_rounds(run)[-1] for run in runs] == done


def test_a_stopped_study_is_continued(tmp_path: Path) -> None:
    near = run(tmp_path / "near", STUDY)
    StudyFolder.create(tmp_path / "far", study_file.read(STUDY, "the study")).close()
    begun: dict[Path, str] = {}
    for line in near:
        config = RunConfig(**STUDY["run"], seed=line["seed"], threads=1, **line["options"])
        train_rounds(tmp_path / "far" / line["run"], config, 2)
        timings = tmp_path / "far" / line["run"] / "timings.jsonl"
        begun[timings] = timings.read_text()
    far = run(tmp_path / "far", STUDY, cluster="auto")
    assert without_seconds(far) == without_seconds(near)
    assert written(tmp_path / "far") == written(tmp_path / "near")
    for timings, text in begun.items():  # these rounds were not trained again
        assert timings.read_text().startswith(text)


def test_runs_do_not_wait_for_trainers_without_a_processor(tmp_path: Path) -> None:
    lines = run(tmp_path / "far", STUDY, cluster="auto", jobs=4)  # the cluster has two processors
    assert [line["state"] for line in lines] == ["done"] * 4


def test_stopping_does_not_wait_for_trainers_that_have_not_started(tmp_path: Path) -> None:
    config = RunConfig(clients="4", rounds=ENDLESS)
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
    with endless_study(tmp_path / "far", jobs=1) as find:
        lost, config = find()
        os.kill(lost, signal.SIGKILL)
        _, found = find(lost)
        assert found == config  # not the next run of the study
    (saved,) = (tmp_path / "far/runs").iterdir()
    assert (saved / CONFIG).read_text() == config
    assert len(read_metrics(saved)) > 2


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
