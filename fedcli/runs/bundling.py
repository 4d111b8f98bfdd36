"""Packs runs as a zip archive that others can verify: text, and weights only on request.

The same runs always give the same bytes, because members are sorted by name and have a fixed date.
The archive holds no data; `fedcli verify` checks that it gets the data of the run.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedcli.digest import blake2b
from fedcli.errors import RunError, plural
from fedcli.files import read_bounded
from fedcli.outputs import write_output
from fedcli.runs import listing
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from fedcli.runs.verifying import WEIGHTS_DIGEST, weights_digest
from fedcli.version import __version__

DIGESTS = "digests.json"
README = "README.txt"

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file can hold
_MAX_BYTES = 1 << 30  # largest size of a file
_OF_RUN = (run_dir.CONFIG, run_dir.METRICS, run_dir.EVALUATION)
# The files of a study beside its runs.
_OF_FOLDER = ("study.toml", "trials.jsonl", "table.csv", "table.tex", "table.md")

_TEXT = """\
These are the configs and results of {what}, made by fedcli {version}.
To verify them, train every run again and compare the results:
  pip install fedcli=={version}
  fedcli verify FOLDER_OF_THIS_FILE
Data are not included; config.toml of a run names them and has their fingerprint. If the data are at
another path, add --data PATH.
"""


class Bundle(NamedTuple):
    """What was packed: the names of the members, in order, and the number of runs."""

    members: tuple[str, ...]
    num_runs: int


def write_bundle(folder: Path, file: Path, *, has_weights: bool = False) -> Bundle:
    """Packs a run, or all runs in and below a folder.

    Args:
        folder: A run, a study, or any folder of runs.
        file: The archive; an existing file is replaced.
        has_weights: Whether to include the last checkpoint of each run.

    Raises:
        RunError: There is no run, a run has no round yet, or a file cannot be read or written.
    """
    runs = listing.find_runs(folder)
    if not runs:
        raise RunError(f"{folder} holds no run; give a run, or a folder of runs")
    members = dict(_of_folder(folder))
    for run in runs:
        members.update(_of_run(run, folder, has_weights=has_weights))
    members[README] = _TEXT.format(what=plural(len(runs), "run"), version=__version__).encode()
    members[DIGESTS] = _digests(members)
    write_output(file, _zip(members))
    return Bundle(tuple(sorted(members)), len(runs))


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in _OF_FOLDER:
        if (folder / name).is_file():
            yield name, _read(folder / name)


def _of_run(run: Path, folder: Path, *, has_weights: bool) -> Iterator[tuple[str, bytes]]:
    """Yields the members of one run: its text files and the digest of its weights.

    With `has_weights`, the weights follow.
    """
    prefix = run.relative_to(folder).as_posix()
    prefix = f"{prefix if prefix != '.' else run.resolve().name}/"
    for name in _OF_RUN:
        if (run / name).is_file():
            yield prefix + name, _read(run / name)
    newest = run_dir.latest_checkpoint(run)
    content = checkpoint.load(newest)
    if content.round_num == 0:
        raise RunError(f"{run} has no completed round; train it, or pack other runs")
    digest = weights_digest(content.components["global_model_weights"])
    yield prefix + WEIGHTS_DIGEST.as_posix(), f"{digest}\n".encode()
    if has_weights:
        yield f"{prefix}{run_dir.CHECKPOINTS}/{newest.name}", _read(newest)


def _digests(members: dict[str, bytes]) -> bytes:
    """The BLAKE2b of each member, as JSON."""
    digests = {
        name: blake2b(content, digest_size=32).hexdigest()
        for name, content in sorted(members.items())
    }
    return (json.dumps(digests, indent=1) + "\n").encode()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.create_system = 3  # Unix, on every system
            archive.writestr(info, content, compresslevel=9)
    return buffer.getvalue()


def _read(file: Path) -> bytes:
    try:
        return read_bounded(file, _MAX_BYTES)
    except OSError as err:
        raise RunError(f"cannot read {file}: {err.strerror}") from err
