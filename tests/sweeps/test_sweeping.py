"""Whole studies: finished, reused, failed and killed runs, and two sweeps at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcli
from fedcli.core.machine import num_processors
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import ConfigError, DataError, RunError
from fedcli.models.weights_files import save_npz
from fedcli.runs.files.folder import checkpoint_rounds
from fedcli.runs.trained import load_weights
from fedcli.sweeps import study as study_file
from fedcli.sweeps.pool import Event, Pool
from fedcli.sweeps.python_api import _stop_text
from fedcli.sweeps.study_folder import StudyFolder
from fedcli.sweeps.study_progress import StudyProgress
from fedcli.sweeps.sweeping import SweepOptions, run_study
from fedcli.sweeps.trials import read_trials
from tests.kit.waiting import ENDLESS, PATIENCE_SECONDS, wait_until

RUN: dict[str, Any] = {
    "rounds": 3,
    "data_options": {"clients": 12},
    "max_examples": 60,
    "validation": 0.2,
}
STUDY: dict[str, Any] = {"run": RUN, "grid": {"client_lr": [0.02, 0.1]}, "seeds": 2}


def lines_of(study: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in read_trials(study)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("straight") / "study"
    fedcli.sweep(STUDY, path, jobs=2)
    return path


def test_each_run_is_the_same_as_by_train(straight: Path, tmp_path: Path) -> None:
    lines = read_trials(straight)
    assert [(line["point"], line["seed"]) for line in lines] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for line in lines:
        config = fedcli.RunConfig(**RUN, seed=line["seed"], threads=1, **line["options"])
        alone = fedcli.train(config, tmp_path / str(line["number"]))
        run = fedcli.load_run(straight / line["run"])
        for name in ("config.toml", "metrics.jsonl", "evaluation.json"):
            assert (run.path / name).read_bytes() == (alone.path / name).read_bytes()
        assert line["result"]["test"]["accuracy"] == run.final("test", "accuracy")
        assert line["state"] == "done"


def test_the_number_of_processes_changes_nothing(straight: Path, tmp_path: Path) -> None:
    fedcli.sweep(STUDY, tmp_path / "one", jobs=1)
    assert lines_of(tmp_path / "one") == lines_of(straight)
    assert (tmp_path / "one/table.csv").read_bytes() == (straight / "table.csv").read_bytes()


def test_progress_is_one_line_per_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedcli.sweep({"run": RUN, "seeds": 2}, tmp_path / "study", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["run 1", "run 2"]
    assert lines[1].endswith(" s [2/2]")
    fedcli.sweep({"run": RUN, "seeds": 2}, tmp_path / "silent")
    assert capsys.readouterr().err == ""


def test_the_record_has_the_best_point_and_the_table(straight: Path) -> None:
    record = fedcli.load_study(straight)
    lines = read_trials(straight)
    means = {
        rate: sum(
            line["result"]["validation"]["accuracy"]
            for line in lines
            if line["options"]["client_lr"] == rate
        )
        / 2
        for rate in (0.02, 0.1)
    }
    best = max(means, key=lambda rate: means[rate])
    assert record.best == {"client_lr": best}
    rows = record.table()
    assert [row["client_lr"] for row in rows] == sorted(means, key=lambda rate: -means[rate])
    assert rows[0]["validation.accuracy.mean"] == pytest.approx(means[best])
    assert [run.options["seed"] for run in record.runs()] == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="no run has the option 'epochs'"):
        record.table(by=["epochs"])


def test_finished_runs_are_not_run_again(straight: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(straight, study)
    before = {file: file.stat().st_mtime_ns for file in (study / "runs").rglob("*.h5")}
    (study / "trials.jsonl").write_bytes((straight / "trials.jsonl").read_bytes()[:-20])
    fedcli.sweep(STUDY, study, resume=True)
    assert {file: file.stat().st_mtime_ns for file in (study / "runs").rglob("*.h5")} == before
    assert (study / "trials.jsonl").read_bytes() == (straight / "trials.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds another study"):
        fedcli.sweep({**STUDY, "seeds": 3}, study, resume=True)
    with pytest.raises(RunError, match="exists; fedcli sweep --resume"):
        fedcli.sweep(STUDY, study)


def test_runs_of_other_folders_are_reused(straight: Path, tmp_path: Path) -> None:
    config = fedcli.RunConfig(**RUN, seed=1, client_lr=0.1, epochs=2)
    fedcli.train(config, tmp_path / "alone")
    wider = {**STUDY, "grid": {"client_lr": [0.02, 0.1], "epochs": [2, 5]}}
    study_progress = StudyProgress()
    study = study_file.read(wider, "the study")
    with StudyFolder.create(tmp_path / "study", study) as folder:
        options = SweepOptions(reuse=(straight, tmp_path / "alone"))
        lines = run_study(folder, options, study_progress=study_progress)
    assert study_progress.reused == 5
    fedcli.sweep(wider, tmp_path / "anew")
    assert [{**line, "seconds": 0} for line in lines] == lines_of(tmp_path / "anew")


def test_runs_with_files_of_weights_are_reused(tmp_path: Path) -> None:
    first = fedcli.train(fedcli.RunConfig(**RUN), tmp_path / "first")
    weights = tmp_path / "weights.npz"
    save_npz(weights, load_weights(first.path))
    run = {**RUN, "initial_weights": str(weights)}
    fedcli.train(fedcli.RunConfig(**run), tmp_path / "alone")
    (tmp_path / "elsewhere").mkdir()
    moved = weights.rename(tmp_path / "elsewhere/moved.npz")
    other = tmp_path / "other.npz"
    save_npz(other, {name: 2 * each for name, each in load_weights(first.path).items()})
    study_progress = StudyProgress()
    study = study_file.read({"run": RUN, "grid": {"initial_weights": [str(moved), str(other)]}}, "")
    with StudyFolder.create(tmp_path / "study", study) as folder:
        run_study(folder, SweepOptions(reuse=(tmp_path / "alone",)), study_progress=study_progress)
    assert study_progress.reused == 1


def _write_sevens(path: Path, ink: int) -> None:
    """Writes a dataset of four images of the class 7."""
    images = np.full((4, 28, 28), ink, np.uint8)
    client = ClientDataset("a", images, np.full(4, 7, np.int32), 1 / 255, 0.0, "drawn")
    info = StoreInfo(num_classes=10, pixel_convention="ink", same_people=True)
    store_writer.create(path, {"train": [client]}, info)


def test_runs_are_reused_if_the_attackers_dataset_has_the_same_content(tmp_path: Path) -> None:
    for name, ink in (("first.h5", 60), ("same.h5", 60), ("other.h5", 120)):
        _write_sevens(tmp_path / name, ink)
    run = {**RUN, "attack": "edge-case", "attackers": 0.3}

    def reused(name: str, study_name: str) -> int:
        options = {"attack_options": {"data": str(tmp_path / name)}}
        study_progress = StudyProgress()
        study = study_file.read({"run": {**run, **options}}, "")
        with StudyFolder.create(tmp_path / study_name, study) as folder:
            run_study(
                folder, SweepOptions(reuse=(tmp_path / "alone",)), study_progress=study_progress
            )
        return study_progress.reused

    config = fedcli.RunConfig(**run, attack_options={"data": str(tmp_path / "first.h5")})
    fedcli.train(config, tmp_path / "alone")
    assert reused("same.h5", "one") == 1
    assert reused("other.h5", "two") == 0
    (tmp_path / "other.h5").replace(tmp_path / "first.h5")
    assert reused("first.h5", "three") == 0


@pytest.mark.skipif(num_processors() < 2, reason="needs two processors")
def test_the_last_runs_share_the_processors(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    submit = Pool.submit

    def note(self: Pool, number: int, task: dict[str, Any]) -> None:
        given.append(task["threads"])
        submit(self, number, task)

    monkeypatch.setattr(Pool, "submit", note)
    record = fedcli.sweep({**STUDY, "grid": {"client_lr": [0.1]}, "seeds": [1]}, tmp_path / "one")
    assert given == [num_processors()]
    line = record.trials[0]
    for name in ("config.toml", "metrics.jsonl", "evaluation.json", "checkpoints/round-000003.h5"):
        alone = (record.path / line["run"] / name).read_bytes()
        assert alone == (straight / line["run"] / name).read_bytes()
    given.clear()
    fedcli.sweep({**STUDY, "seeds": 1}, tmp_path / "two", jobs=2)
    assert given == [1, 1]


def test_equal_points_share_a_run(tmp_path: Path) -> None:
    cases = [{"name": "one"}, {"name": "other", "algorithm": "fedavg"}]
    record = fedcli.sweep({"run": RUN, "case": cases}, tmp_path / "study")
    lines = record.trials
    assert [line["case"] for line in lines] == ["one", "other"]
    assert lines[0]["run"] == lines[1]["run"]
    assert len(list((record.path / "runs").iterdir())) == 1


def test_a_failed_run_is_reported_and_the_others_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = {"run": RUN, "grid": {"clients": ["5", "500", "6"]}}
    record = fedcli.sweep(study, tmp_path / "study", jobs=2)
    assert [line["state"] for line in record.trials] == ["done", "failed", "done"]
    error = record.trials[1]["error"]
    assert "500" in error
    assert "run 2 failed: " + error in caplog.text
    before = lines_of(record.path)
    assert lines_of(fedcli.sweep(study, record.path, resume=True).path) == before
    with pytest.raises(RunError, match=r"run 2 .*failed: .*500.* continues the study$"):
        fedcli.sweep(study, tmp_path / "fast", jobs=1, fail_fast=True)


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    study = {"run": {**RUN, "model": "mlp-2nn"}, "grid": {"client_lr": [1e9, 0.1]}}
    record = fedcli.sweep(study, tmp_path / "study")
    assert [line["state"] for line in record.trials] == ["diverged", "done"]
    assert record.best == {"client_lr": 0.1}
    assert [row["diverged"] for row in record.table()] == [0, 1]


def test_missing_data_stop_the_study_before_any_run(tmp_path: Path) -> None:
    study = {"run": {**RUN, "data": str(tmp_path / "none.h5"), "data_options": {}}}
    with pytest.raises(DataError, match=r"none\.h5"):
        fedcli.sweep(study, tmp_path / "study")


def test_selecting_on_missing_data_is_refused(tmp_path: Path) -> None:
    run = {name: value for name, value in RUN.items() if name != "validation"}
    study = {"run": run, "grid": {"client_lr": [0.02, 0.1]}, "halving": {"min_rounds": 1}}
    with pytest.raises(ConfigError, match="choose by the split validation, which the data lack"):
        fedcli.sweep(study, tmp_path / "study")
    fedcli.sweep({**study, "select": {"on": "test"}}, tmp_path / "on test")
    with pytest.raises(ConfigError, match=r"metric auc: the runs do not compute it"):
        fedcli.sweep({**study, "select": {"metric": "auc"}}, tmp_path / "auc")


def test_halving_continues_the_best_points(tmp_path: Path) -> None:
    study = {
        "run": {**RUN, "rounds": 9},
        "grid": {"client_lr": [0.001, 0.02, 0.05, 0.1]},
        "seeds": 2,
        "halving": {"min_rounds": 2, "eta": 2},
    }
    record = fedcli.sweep(study, tmp_path / "study", jobs=2)
    by_rounds: dict[int, dict[int, list[float]]] = {}
    for line in record.trials:
        points = by_rounds.setdefault(line["rounds"], {})
        points.setdefault(line["point"], []).append(line["result"]["validation"]["accuracy"])
    assert {rounds: len(points) for rounds, points in by_rounds.items()} == {2: 4, 4: 2, 8: 1, 9: 1}
    for rounds, following in ((2, 4), (4, 8), (8, 9)):
        ranked = sorted(by_rounds[rounds], key=lambda point: -sum(by_rounds[rounds][point]))
        assert set(by_rounds[following]) <= set(ranked[: max(1, len(ranked) // 2)])
    last = record.trials[-1]
    config = fedcli.RunConfig(**RUN | {"rounds": 9}, seed=last["seed"], **last["options"])
    alone = fedcli.train(config, tmp_path / "alone")
    assert fedcli.load_run(record.path / last["run"]).metrics == alone.metrics


def test_a_random_search_is_repeatable(tmp_path: Path) -> None:
    study = {
        "run": RUN,
        "random": 3,
        "range": {"client_lr": "log:1e-3..1", "epochs": "linear:1..4"},
    }
    first = fedcli.sweep(study, tmp_path / "one").trials
    rates = [line["options"]["client_lr"] for line in first]
    assert len(set(rates)) == 3
    assert all(0.001 <= rate <= 1 for rate in rates)
    assert all(line["options"]["epochs"] in range(1, 5) for line in first)
    more = fedcli.sweep({**study, "random": 4}, tmp_path / "two", reuse=[tmp_path / "one"]).trials
    assert [line["options"] for line in more[:3]] == [line["options"] for line in first]


class EndlessStudy:
    """A study whose runs do not end by themselves. A thread runs it.

    Attributes:
        path: The study's folder.
        progress: Its progress.
        cancel: The flag that stops it.
        lines: The lines of trials.jsonl that it returned.
        error: The exception that ended it.
    """

    def __init__(self, path: Path, num_runs: int) -> None:
        self.path = path
        self.progress, self.cancel = StudyProgress(), CancelFlag()
        self.lines: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        endless = {"run": {**RUN, "rounds": ENDLESS}, "seeds": num_runs}
        self._study = study_file.read(endless, "the study")
        self._options = SweepOptions(jobs=num_runs)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            with StudyFolder.create(self.path, self._study) as folder:
                self.lines = run_study(
                    folder, self._options, cancel=self.cancel, study_progress=self.progress
                )
        except Exception as err:
            self.error = err

    def __enter__(self) -> EndlessStudy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel.set()
        self.join()

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def wait_until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, self._thread)

    def rounds(self) -> list[int]:
        """The numbers of completed rounds of the runs that train now."""
        return [each.round_num for each in list(self.progress.running.values())]

    def processes(self) -> set[int]:
        """The processes that train runs: they have the study's lock file open."""
        found = set()
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                files = [str(each.readlink()) for each in (process / "fd").iterdir()]
            except OSError:
                continue
            if str(self.path / "lock") in files:
                found.add(int(process.name))
        return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells what is open")
@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_process_interrupts_one_run(tmp_path: Path, kills: int) -> None:
    """Another process continues the run; if it is killed too, the run has failed."""
    killed: set[int] = set()
    with EndlessStudy(tmp_path / "study", num_runs=1) as study:

        def trains() -> bool:
            # A process is looked for first, so a round found after that is not older than it.
            return bool(study.processes() - killed) and any(study.rounds())

        for _ in range(kills):
            study.wait_until(trains)
            (process,) = study.processes() - killed
            os.kill(process, signal.SIGKILL)
            killed.add(process)
        if kills == 1:
            study.wait_until(trains)
            assert not study.processes() & killed
        else:
            study.join()
    if kills == 1:
        assert isinstance(study.error, Cancelled)
        (run,) = (study.path / "runs").iterdir()
        assert fedcli.load_run(run).round_num > 0
    else:
        assert [line["state"] for line in study.lines] == ["failed"]
        assert study.lines[0]["error"] == "its process was ended by the signal SIGKILL, twice"


def test_an_interrupt_of_a_program_saves_the_runs_and_says_how_to_continue(tmp_path: Path) -> None:
    path = tmp_path / "study"

    def interrupt() -> None:
        try:
            wait_until(lambda: any(map(_has_rounds, path.glob("runs/*/metrics.jsonl"))))
        finally:  # the study does not end by itself
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        fedcli.sweep({"run": {**RUN, "rounds": ENDLESS}, "seeds": 2}, path, jobs=2)
    call = f"fedcli.sweep(study, {str(path)!r}, resume=True)"
    assert str(caught.value) == f"stopped and saved after 0 of 2 runs; {call} continues"
    runs = [fedcli.load_run(run) for run in (path / "runs").iterdir()]
    assert max(run.round_num for run in runs) > 3
    for run in runs:
        assert checkpoint_rounds(run.path)[-1] == run.round_num


def _has_rounds(file: Path) -> bool:
    return file.read_bytes().count(b"\n") > 3


def test_a_stopped_study_saves_its_runs(tmp_path: Path) -> None:
    with EndlessStudy(tmp_path / "study", num_runs=2) as study:
        study.wait_until(lambda: any(round_num > 3 for round_num in study.rounds()))
        study.cancel.set()
        study.join()
    assert isinstance(study.error, Cancelled)
    assert read_trials(study.path) == []
    runs = [fedcli.load_run(run) for run in (study.path / "runs").iterdir()]
    assert max(run.round_num for run in runs) > 3
    for run in runs:
        assert checkpoint_rounds(run.path)[-1] == run.round_num


def test_ctrl_c_does_not_end_a_process_that_has_only_begun(tmp_path: Path) -> None:
    """A terminal sends SIGINT to all processes. Only the first one has a handler from the start."""
    task = {"threads": 1, "path": str(tmp_path / "run"), "config": {"data": "none"}, "anew": False}
    with Pool(1) as pool:
        pool.submit(1, task)
        for process in pool._processes:
            process.popen.send_signal(signal.SIGINT)
        events: list[Event] = []
        while not events:
            events = pool.wait(PATIENCE_SECONDS)
        assert [event.message["ended"] for event in events] == ["failed"]


def test_two_sweeps_of_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcli.sweeps.study_folder._PATIENCE_SECONDS", 0.2)
    with (
        StudyFolder.create(tmp_path / "study", study_file.read(STUDY, "the study")),
        pytest.raises(RunError, match="is in use by another process; wait for it to end"),
    ):
        StudyFolder.open(tmp_path / "study")
    StudyFolder.open(tmp_path / "study").close()


def test_a_half_written_line_of_a_run_is_ignored(straight: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(straight, study)
    run = next((study / "runs").iterdir())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4')
    (run / "evaluation.json").unlink()
    (study / "trials.jsonl").unlink()
    fedcli.sweep(STUDY, study, resume=True)
    assert lines_of(study) == lines_of(straight)


def test_damaged_trials_are_reported(straight: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(straight, study)
    lines = (study / "trials.jsonl").read_text().splitlines()
    (study / "trials.jsonl").write_text("\n".join([lines[0], "{}", *lines[2:]]) + "\n")
    with pytest.raises(RunError, match="line 2 is damaged; delete it and the lines after it"):
        fedcli.sweep(STUDY, study, resume=True)
    (study / "trials.jsonl").write_text(lines[0] + "\n")
    fedcli.sweep(STUDY, study, resume=True)
    assert lines_of(study) == lines_of(straight)


def test_lines_of_other_data_are_dropped(straight: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(straight, study)
    lines = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    lines[2]["key"] = "0" * 20
    (study / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fedcli.sweep(STUDY, study, resume=True)
    assert lines_of(study) == lines_of(straight)


def test_own_code_is_run_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "class Half:\n"
        "    def __init__(self, optimizer): self.optimizer = optimizer\n"
        "    def init(self, params): return {}\n"
        "    def run(self, call, state):\n"
        "        from fedcli.algorithms import WorkResult\n"
        "        return WorkResult(call.train(self.optimizer).scaled(0.5), state)\n"
    )
    toml = tmp_path / "study.toml"
    toml.write_text(
        '[run]\nrounds = 2\nmax_examples = 60\n[[case]]\nname = "own"\n'
        f'algorithm = "{file}"\n[[case]]\nname = "plain"\n'
    )
    with pytest.raises(ConfigError, match="to allow it"):
        fedcli.sweep(toml, tmp_path / "study")
    record = fedcli.sweep(toml, tmp_path / "study", code=[file])
    assert [line["state"] for line in record.trials] == ["done", "done"]
    first = [run.metrics[0] for run in record.runs()]
    assert first[0] == first[1]
    again = fedcli.sweep(toml, tmp_path / "study", code=[file], resume=True)
    assert again.trials == record.trials


def test_who_continues_a_study_with_code_is_told_to_name_it(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def build(input_shape, num_classes):\n    raise OSError\n")
    toml = tmp_path / "study.toml"
    toml.write_text(f'[run]\nrounds = 2\nmodel = "{file}"\n')
    path = tmp_path / "study"
    with pytest.raises(RunError, match=r" --code \S+/own\.py continues the study$"):
        fedcli.sweep(toml, path, code=[file], fail_fast=True)
    text = _stop_text(path, [file], StudyProgress())
    assert f"resume=True, code=[{str(file)!r}]) continues" in text
