"""Full or read-only disks, and a limit on file sizes: one line of error, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedcli.runs.files import checkpoint, client_records, folder
from tests.kit.command_line import Fedcli, Outcome, assert_is_one_line

DATA = ("--data-option", "clients=12", "--max-examples", "40", "--checkpoint-every", "2", "-q")
RECORDS = ("--csv", "--record-clients", "--tensorboard")
KINDS = {
    "fedavg": ("--server-option", "momentum=0.9", *RECORDS),
    "scaffold": ("--algorithm", "scaffold", "--sampling", "uniform", "--clients", "6", *RECORDS),
}

Mount = Callable[[int], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a disk of the given number of KiB at tmp_path/disk."""
    disk = tmp_path / "disk"

    def make(kibibytes: int) -> Path:
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("a disk can be mounted by root on Linux only")
        return disk

    yield make
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, *, leaving: int) -> Path:
    """Fills a disk except for `leaving` bytes, in whole pages."""
    ballast = disk / "ballast"
    left = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - leaving)
    return ballast


def outcome(run: Path) -> dict[str, Any]:
    """The results in the files of a run."""
    names = ("metrics.jsonl", "metrics.csv", "evaluation.json")
    files = {name: (run / name).read_bytes() for name in names}
    records = client_records.load(run)
    last = folder.latest_checkpoint(run)
    weights = checkpoint.load(last).components["global_model_weights"]
    return {
        **files,
        "clients": (records.client_ids, records.rows.tobytes()),
        "last": last.name,
        "weights": {name: bytes(memoryview(part)) for name, part in weights.items()},  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("kibibytes", [4, 16, 40])
def test_no_run_begins_on_a_disk_that_cannot_hold_it(
    fedcli: Fedcli, mount: Mount, kibibytes: int
) -> None:
    disk = mount(kibibytes)
    done = fedcli("train", *DATA, "--out", "disk/run")
    assert_is_one_line(done, "cannot make the run disk/run", "No space left on device; make room")
    assert list(disk.iterdir()) == []


# tensorboardX leaves its file open if it cannot flush it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_once_a_full_disk_has_room(fedcli: Fedcli, mount: Mount, kind: str) -> None:
    disk = mount(6000)
    assert fedcli("train", *DATA, *KINDS[kind], "--rounds", 15, "--out", "straight").code == 0
    assert fedcli("train", *DATA, *KINDS[kind], "--rounds", 3, "--out", "disk/run").code == 0
    run = disk / "run"
    begun = outcome(run)
    faults = set()
    for pages in (0, 1, 2, 3, 5, 8, 12):
        ballast = fill(disk, leaving=4096 * pages)
        before = folder.checkpoint_rounds(run)[-1]
        done = fedcli("train", "--resume", "disk/run", "--rounds", 15, "-q")
        assert_is_one_line(done, "disk/run")
        faults.add(done.err)
        assert checkpoint.load(folder.latest_checkpoint(run)).round_num >= before
        assert fedcli("eval", "disk/run").code == 0
        ballast.unlink()
    assert len(faults) > 2  # writing failed in different files
    assert begun["last"] == "round-000003.h5"
    assert fedcli("train", "--resume", "disk/run", "--rounds", 15, "-q").code == 0
    assert outcome(run) == outcome(disk.parent / "straight")


def test_a_study_goes_on_once_a_full_disk_has_room(fedcli: Fedcli, mount: Mount) -> None:
    disk = mount(12_000)
    study = ("--grid", "algorithm=fedavg,scaffold", "--seeds", "3", "--rounds", "8", *DATA)
    assert fedcli("sweep", *study, "--out", "straight").code == 0

    def lines(folder: Path) -> list[dict[str, Any]]:
        text = (folder / "trials.jsonl").read_text().splitlines()
        return [{**json.loads(line), "seconds": 0} for line in text]

    wanted = lines(disk.parent / "straight")
    ballast = fill(disk, leaving=60_000)
    done = fedcli("sweep", *study, "--out", "disk/study")
    assert_is_one_line(done, "No space left on device; make room there", "--resume disk/study")
    ballast.unlink()
    for pages in (0, 4, 20, 40):
        ballast = fill(disk, leaving=4096 * pages)
        done = fedcli("sweep", "--resume", "disk/study", "-q")
        assert_is_one_line(done, "No space left on device")
        assert lines(disk / "study") == wanted[: len(lines(disk / "study"))]
        ballast.unlink()
    assert fedcli("sweep", "--resume", "disk/study", "-q").code == 0
    assert lines(disk / "study") == wanted
    tables = [each / "table.csv" for each in (disk / "study", disk.parent / "straight")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_read_only_run_is_read_but_not_continued(fedcli: Fedcli, mount: Mount) -> None:
    disk = mount(2000)
    assert fedcli("train", *DATA, *RECORDS, "--rounds", 3, "--out", "disk/run").code == 0
    reads = [
        ("eval", "disk/run"),
        ("report", "disk/run", "--clients-csv", "clients.csv"),
        ("export", "disk/run", "weights.npz"),
    ]
    told = [fedcli(*command) for command in reads]
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for rounds in ((), ("--rounds", 9)):
        done = fedcli("train", "--resume", "disk/run", *rounds)
        assert_is_one_line(done, "disk/run", "Read-only file system; choose another place")
    assert_is_one_line(fedcli("train", *DATA, "--out", "disk/new"), "disk/new")
    assert_is_one_line(fedcli("export", "disk/run", "disk/w.npz"), "disk/w.npz")
    assert [fedcli(*command) for command in reads] == told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_read_but_not_continued(
    fedcli: Fedcli, tmp_path: Path
) -> None:
    assert fedcli("train", *DATA, "--rounds", 3, "--out", "run").code == 0
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert_is_one_line(fedcli("train", "--resume", "run", "--rounds", 9), "Permission denied")
    assert fedcli("eval", "run").code == 0


def test_a_file_that_may_not_grow_stops_a_run_that_goes_on_later(
    fedcli: Fedcli, tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    """A limit on file sizes, like a quota, is reached in the middle of a line of metrics.jsonl."""
    arguments = ("train", *DATA, "--rounds", "200", "--csv", "--record-clients", "--out")
    assert fedcli(*arguments, "straight").code == 0
    wanted = outcome(tmp_path / "straight")
    for limit in (48 * 1024, 52 * 1024):
        assert len(wanted["metrics.jsonl"]) > limit
        run = f"run-{limit}"
        done = subprocess.run(
            [*command, *arguments, run],
            capture_output=True,
            cwd=tmp_path,
            preexec_fn=partial(
                resource.setrlimit, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
            ),
            check=False,
            **process_arguments,
        )
        assert_is_one_line(Outcome(done.returncode, done.stdout, done.stderr), f"{run}/")
        last = checkpoint.load(folder.latest_checkpoint(tmp_path / run))
        assert 0 < last.round_num < 200
        assert fedcli("eval", run).code == 0
        assert fedcli("train", "--resume", run, "-q").code == 0
        assert outcome(tmp_path / run) == wanted
