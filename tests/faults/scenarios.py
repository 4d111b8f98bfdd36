"""The commands that are run while a disk fails, their inputs and the results they must have."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np

from fedcli.cli import main as cli
from fedcli.cli.download import acquire
from fedcli.cli.screen.output import Remarks
from fedcli.datasets.download.public import Expected, Member, PublicDataset, RemoteFile
from fedcli.errors import FedcliError
from fedcli.settings.options import Entry

Work = Callable[[], int]


@dataclass(frozen=True)
class Scenario:
    """A command, run in a folder of its own, in which calls fail.

    Attributes:
        name: Its name in the report.
        command: Runs the command in the current folder; returns its exit status.
        again: Continues after a failure, like `train --resume`. It is used if the path `resumes`
            exists; otherwise `command` is run again.
        resumes: A path in the folder; see `again`.
        results: Patterns of the files that must have the same content as without a fault.
    """

    name: str
    command: Work
    results: tuple[str, ...]
    again: Work | None = None
    resumes: str | None = None

    def next_work(self, folder: Path) -> Work:
        """Returns the work that a user would run after a failure."""
        if self.again is not None and self.resumes and (folder / self.resumes).exists():
            return self.again
        return self.command


def run(*arguments: str) -> int:
    """Runs a command line in this process."""
    return cli.run(list(arguments))


def _train(name: str, *options: str, results: Sequence[str] = ()) -> Scenario:
    small = "--data-option clients=8 --clients 3 --sampling uniform --max-examples 12 --epochs 1"
    command = partial(
        run,
        *("train", *small.split(), "--rounds", "4", "--threads", "1", "-q", "--out", "run"),
        *options,
    )
    # Only the last checkpoint is compared: which others are kept depends on where a run stopped.
    last = "checkpoints/round-000004.h5"
    told = ("metrics.jsonl", "evaluation.json", "config.toml", last, *results)
    return Scenario(
        f"train {name}",
        command,
        tuple(f"run/{each}" for each in told),
        again=partial(run, "train", "--resume", "run", "-q"),
        resumes="run",
    )


def _download(url: str, content: bytes) -> int:
    archive = RemoteFile(
        name="pair.tar.bz2",
        folder="fake",
        urls=(url,),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        max_bytes=10_000_000,
        members=tuple(Member(name=each, max_bytes=10_000_000) for each in ("train.h5", "test.h5")),
    )
    fake = PublicDataset(
        entry=Entry("emnist-digits", "A pair.", "invented", licence="none needed"),
        files=(archive,),
        format="tff-h5",
        expected=tuple(
            Expected(splits=(split,), num_clients=3, num_examples=18) for split in ("train", "test")
        ),
        sources=("train.h5",),
        test_source="test.h5",
    )
    os.environ.pop("FEDCLI_OFFLINE", None)
    os.environ["FEDCLI_DATA_DIR"] = str(Path.cwd() / "data")
    try:
        acquire(fake, Path("data"), (), [], force=False, remarks=Remarks(0), as_json=False)
    except FedcliError as err:
        print(f"fedcli: error: {err}", file=sys.stderr)
        return 1
    return 0


def _write_tff(path: Path) -> None:
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for index, name in enumerate("abc"):
            count = 5 + index
            file[f"examples/{name}/label"] = (np.arange(count) % 10).astype(np.int32)
            pixels = rng.integers(0, 256, (count, 28, 28)) / 255
            file[f"examples/{name}/pixels"] = pixels.astype(np.float32)


def _write_csv(path: Path) -> None:
    rows = [
        ",".join(map(str, (f"c{i % 5}", i % 10, *(i * j % 256 for j in range(64)))))
        for i in range(60)
    ]
    names = ",".join(["client_id", "label", *(f"pixel{j}" for j in range(64))])
    path.write_text("\n".join([names, *rows]) + "\n")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def serve(folder: Path) -> tuple[str, multiprocessing.process.BaseProcess]:
    """Serves a folder from a process of its own; returns its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}", process


def write_inputs(inputs: Path) -> None:
    """Writes the inputs of the scenarios to an empty folder, in which no call fails."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name in ("train.h5", "test.h5"):
            _write_tff(inputs / name)
            tar.add(inputs / name, name)
    (inputs / "pair.tar.bz2").write_bytes(buffer.getvalue())
    _write_csv(inputs / "table.csv")
    plain = "--data-option clients=8 --clients 3 --max-examples 12 --rounds 2 --threads 1 -q"
    assert run("train", *plain.split(), "--record-clients", "--out", str(inputs / "trained")) == 0


def listed(inputs: Path, url: str) -> list[Scenario]:
    """Returns all scenarios.

    Args:
        inputs: The folder that `write_inputs` filled.
        url: The address at which the folder is served.
    """
    trained = str(inputs / "trained")
    return [
        _train("fedavg", "--checkpoint-every", "1"),
        _train(
            "with all logs",
            *("--csv", "--record-clients", "--eval-every", "2", "--keep-best", "loss"),
            results=("metrics.csv",),
        ),
        _train("scaffold", "--algorithm", "scaffold", "--checkpoint-every", "2"),
        _train("feddyn", "--algorithm", "feddyn", "--checkpoint-every", "1"),
        _train("local-only", "--algorithm", "local-only", "--checkpoint-every", "2"),
        _train("median", "--aggregator", "median", "--client-weighting", "uniform"),
        Scenario(
            "eval",
            partial(
                run,
                *("eval", trained, "--threads", "1", "-q"),
                *("--per-client", "clients.csv", "--predictions", "said.npz"),
            ),
            ("clients.csv", "said.npz"),
        ),
        Scenario(
            "report",
            partial(
                run,
                *("report", trained, "-q", "--csv", "rounds.csv", "--clients-csv", "c.csv"),
                *("--html", "page.html"),
            ),
            ("rounds.csv", "c.csv", "page.html"),
        ),
        Scenario("export", partial(run, "export", trained, "weights.npz", "-q"), ("weights.npz",)),
        Scenario(
            "preprocess",
            partial(run, "preprocess", str(inputs / "table.csv"), "--out", "store.h5", "-q"),
            ("store.h5",),
        ),
        Scenario(
            "download",
            partial(_download, f"{url}/pair.tar.bz2", (inputs / "pair.tar.bz2").read_bytes()),
            ("data/**/*.h5",),
        ),
    ]
