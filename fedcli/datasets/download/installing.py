"""Installs public datasets: from the publishers' files to a store that `--data NAME` opens.

A store gets its name only if its counts of clients and examples are as expected.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from fedcli.dataclass import dataclass
from fedcli.datasets.data_folder import (
    download_path,
    make_folder,
    remove_empty_folders,
    store_path,
)
from fedcli.datasets.download import archives, fetching
from fedcli.datasets.download.fetching import DEFAULT_LIMITS, FetchError, TransferLimits
from fedcli.datasets.download.part_file import find_mismatch, hash_file
from fedcli.datasets.download.public import CATALOGUE, Expected, Member, PublicDataset, RemoteFile
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.preparing import prepare
from fedcli.datasets.sources import store
from fedcli.datasets.sources.store import StoreSplit
from fedcli.errors import ConfigError, DataError, why_not_written
from fedcli.files import sync_folder
from fedcli.locks import locked
from fedcli.progress import NoteCallback, ProgressCallback, ignore_note, ignore_progress

MAX_DEFLATE_RATIO = 1032  # largest ratio of unpacked to gzipped size

_FIRST_CLIENTS = 10


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a dataset on this machine.

    Attributes:
        has_store: Whether its store exists, so that it can be used.
        num_files: Number of its downloaded files.
        num_bytes: Size of the store and of these files.
    """

    has_store: bool
    num_files: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of the check of one file.

    Attributes:
        path: The file.
        problem: What is wrong with it; None: nothing.
    """

    path: Path
    problem: str | None


def state_of(dataset: PublicDataset, folder: Path) -> State:
    """Returns the state of a dataset, by the names and sizes of its files."""
    paths = [_target(folder, file) for file in dataset.files]
    there = [path for path in paths if path.is_file()]
    made = store_path(folder, dataset.name)
    has_store = made.is_file()
    sizes = [path.stat().st_size for path in (*there, *([made] if has_store else []))]
    return State(has_store=has_store, num_files=len(there), num_bytes=sum(sizes))


def fetch_files(
    dataset: PublicDataset,
    folder: Path,
    *,
    bases: Sequence[str] = (),
    force: bool = False,
    is_offline: bool = False,
    on_progress: ProgressCallback = ignore_progress,
    on_note: NoteCallback = ignore_note,
    limits: TransferLimits = DEFAULT_LIMITS,
) -> tuple[dict[str, Path], int]:
    """Downloads missing files; returns the paths of all files by name, and the bytes transferred.

    Args:
        dataset: The dataset.
        folder: The data folder.
        bases: Addresses of folders to try first.
        force: Download all files again.
        is_offline: Use files that are there; do not use the network.
        on_progress: Called with the bytes done and the bytes of the whole dataset, if they are
            known.
        on_note: Called with a line about each retry or wait.
        limits: Time limits and number of tries.

    Raises:
        FetchError: A file could not be downloaded.
        DataError: The disk is full or the folder cannot be written.
        Cancelled: `on_progress` raised it; what was fetched is kept.
    """
    paths: dict[str, Path] = {}
    before, num_transferred = 0, 0
    for file in dataset.files:
        target = _target(folder, file)
        report_all = partial(_report_of_all, on_progress, before, dataset.num_bytes)
        if is_offline:
            _require_whole(file, target, report_all)
        else:
            num_transferred += fetching.fetch(
                file,
                target,
                bases=bases,
                force=force,
                on_progress=report_all,
                on_note=on_note,
                limits=limits,
            )
        paths[file.name] = target
        before += target.stat().st_size
    return paths, num_transferred


def find_given(
    dataset: PublicDataset,
    folder: Path,
    given: Sequence[Path],
    on_progress: ProgressCallback = ignore_progress,
) -> dict[str, Path]:
    """Identifies the files or members of a dataset among given paths by their hashes.

    Files that were downloaded before are used, too. Nothing is copied.

    Args:
        dataset: The dataset.
        folder: The data folder.
        given: The archive or files, as published or unpacked, or folders that hold them.
        on_progress: Called with the number of bytes read.

    Raises:
        DataError: A path is not a file of the dataset, or a file of the dataset is missing.
    """
    known = _known_hashes(dataset)
    most = max(map(_largest, dataset.files))
    found: dict[str, Path] = {}
    for path in given:
        candidates = _candidates(path, dataset)
        may_be = (each for each in candidates if each.stat().st_size <= most)
        names = ((each, known.get(_hash(each, on_progress))) for each in may_be)
        named = {name: each.absolute() for each, name in names if name is not None}
        if not named:
            raise DataError(_unknown_file(dataset, path, candidates, on_progress))
        found.update(named)
    for file in dataset.files:
        target = _target(folder, file)
        is_wanted = not _is_found(file, found) and target.is_file()
        if is_wanted and find_mismatch(target, file, on_progress) is None:
            found[file.name] = target
    missing = [file.name for file in dataset.files if not _is_found(file, found)]
    if missing:
        raise DataError(
            f"{dataset.name} also needs {', '.join(missing)}; give each with --from-file, or give "
            "a folder that holds them"
        )
    return found


def install(
    dataset: PublicDataset,
    files: Mapping[str, Path],
    folder: Path,
    *,
    force: bool = False,
    on_progress: ProgressCallback = ignore_progress,
    on_note: NoteCallback = ignore_note,
) -> Path:
    """Makes the store of a dataset from its checked files, and returns its path.

    Only one process at a time makes a store. Other processes wait, and then use its result.

    Args:
        dataset: The dataset.
        files: Paths by name of file or member, from `fetch_files` or `find_given`.
        folder: The data folder.
        force: Make the store again even if it is there.
        on_progress: Called with the bytes unpacked, then with the counts of the import.
        on_note: Called with a line about each wait, and with notes for the user.

    Raises:
        DataError: A file cannot be used, the counts are not those expected, or the disk is full.
            Nothing is left behind.
    """
    path = store_path(folder, dataset.name)
    make_folder(path.parent)
    try:
        with locked(path.with_name(f"{path.name}.lock"), on_progress, on_note):
            if force or not path.is_file():
                with _empty_folder(path.with_name(f".{path.name}.tmp")) as stage:
                    new = _make_store(dataset, files, stage, on_progress, on_note)
                    problem = find_miscount(dataset, new)
                    if problem is not None:
                        raise DataError(f"{dataset.name}: {problem}; nothing was installed")
                    os.replace(new, path)  # noqa: PTH105
                    sync_folder(path.parent)
    except OSError as err:
        raise DataError(f"cannot write {err.filename or path}: {why_not_written(err)}") from err
    return path


def find_files(datasets: Sequence[PublicDataset], folder: Path) -> list[Path]:
    """Returns the existing files of datasets: stores, downloads and partial downloads.

    A download is left out if another dataset needs it and has no store yet.
    """
    chosen = {each.name for each in datasets}
    needed = {
        _target(folder, file)
        for other in CATALOGUE.values()
        if other.name not in chosen and not store_path(folder, other.name).is_file()
        for file in other.files
    }
    found = []
    for dataset in datasets:
        found.append(store_path(folder, dataset.name))
        for target in (_target(folder, file) for file in dataset.files):
            if target not in needed:
                found.append(target)
            found += [target.with_name(f"{target.name}.{end}") for end in ("part", "part.json")]
    return [each for each in dict.fromkeys(found) if each.is_file() and not each.is_symlink()]


def remove(files: Sequence[Path], folder: Path, on_note: NoteCallback = ignore_note) -> None:
    """Removes files that `find_files` found, and then the folders that are empty.

    If another process is downloading or making a file, the file is removed after that process ends.

    Args:
        files: The files.
        folder: The data folder.
        on_note: Called with a line when this process waits for another one.

    Raises:
        DataError: A file cannot be removed.
    """
    try:
        for file in files:
            locked_name = re.sub(r"\.part(\.json)?$", "", file.name)
            with locked(file.with_name(f"{locked_name}.lock"), on_note=on_note):
                file.unlink(missing_ok=True)
    except OSError as err:
        raise DataError(f"cannot remove {err.filename}: {err.strerror or err}") from err
    remove_empty_folders(folder)


def verify(
    dataset: PublicDataset, folder: Path, on_progress: ProgressCallback = ignore_progress
) -> list[Finding]:
    """Reads the files and then the store of a dataset, and returns the result for each.

    Raises:
        Cancelled: `on_progress` raised it.
    """
    findings = []
    for file in dataset.files:
        path = _target(folder, file)
        if path.is_file():
            try:
                problem = find_mismatch(path, file, on_progress)
            except OSError as err:
                problem = f"cannot be read ({err.strerror})"
            findings.append(Finding(path=path, problem=problem))
    path = store_path(folder, dataset.name)
    if path.is_file():
        try:
            store.verify(path, on_progress)
            problem = find_miscount(dataset, path)
        except DataError as err:
            problem = str(err).removeprefix(f"{path}: ")
        findings.append(Finding(path=path, problem=problem))
    return findings


def find_miscount(dataset: PublicDataset, path: Path) -> str | None:
    """Returns how the counts of a store differ from the expected counts, or None if they agree.

    Raises:
        DataError: The store cannot be opened.
    """
    splits = store.open_store(path)
    for expected in dataset.expected:
        names = " and ".join(expected.splits)
        absent = [name for name in expected.splits if name not in splits]
        if absent:
            return f"expected a split {absent[0]}, got {', '.join(splits)}"
        for what, want, got in _counted(expected, [splits[name] for name in expected.splits]):
            if got != want:
                return f"expected {want:,} {what} in {names}, got {got:,}"
    return None


def _counted(expected: Expected, splits: Sequence[StoreSplit]) -> list[tuple[str, int, int]]:
    """For each count: its name, the expected number, and the number in the store."""
    first = splits[0]
    ten = first.client_ids[:_FIRST_CLIENTS]
    rows: list[tuple[str, int | None, Callable[[], int]]] = [
        *(("clients", expected.num_clients, partial(len, each.client_ids)) for each in splits),
        ("examples", expected.num_examples, lambda: sum(each.total_examples() for each in splits)),
        (
            f"examples of the first {_FIRST_CLIENTS} clients",
            expected.num_examples_of_ten,
            lambda: sum(map(first.num_examples, ten)),
        ),
        (
            "as the first label",
            expected.first_label,
            lambda: int(first.labels(first.client_ids[0])[0]),
        ),
    ]
    return [(what, want, count()) for what, want, count in rows if want is not None]


# ---- Files ---------------------------------------------------------------------------------------


def _target(folder: Path, file: RemoteFile) -> Path:
    return download_path(folder, file.folder, file.name)


def _report_of_all(
    on_progress: ProgressCallback,
    before: int,
    total: int | None,
    done: int,
    total_of_file: int | None,
) -> None:
    """Reports the bytes of one file as bytes of the dataset if the dataset's size is known."""
    if total is None:
        on_progress(done, total_of_file)
    else:
        on_progress(before + done, total)


def _require_whole(file: RemoteFile, target: Path, on_progress: ProgressCallback) -> None:
    try:
        problem = find_mismatch(target, file, on_progress)
    except OSError as err:
        problem = f"cannot be read ({err.strerror})" if target.exists() else "is not here"
    if problem is not None:
        raise FetchError(f"{file.name} {problem}, and FEDCLI_OFFLINE forbids fetching it", file)


def _known_hashes(dataset: PublicDataset) -> dict[str, str]:
    """Names of files and members by their sha256."""
    known: dict[str | None, str] = {}
    for file in dataset.files:
        known |= {file.unpacked_sha256: file.name, file.sha256: file.name}
        known |= {member.sha256: member.name for member in file.members}
    return {sha256: name for sha256, name in known.items() if sha256 is not None}


def _largest(file: RemoteFile) -> int:
    """Returns the largest size of a file as published or unpacked, or of one of its members."""
    unpacked = MAX_DEFLATE_RATIO * file.limit if file.unpacked_sha256 is not None else 0
    return max(file.limit, unpacked, *(member.limit for member in file.members), 0)


def _candidates(path: Path, dataset: PublicDataset) -> list[Path]:
    """The candidate files: the path, or the files in it with names that the dataset uses."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"--from-file {path}: there is no such file or folder; check the path")
    names = {file.name for file in dataset.files}
    names |= {name.removesuffix(".gz") for name in names}
    names |= {Path(member.name).name for file in dataset.files for member in file.members}
    return [path / name for name in sorted(names) if (path / name).is_file()]


def _hash(path: Path, on_progress: ProgressCallback) -> str:
    try:
        return hash_file(path, on_progress)
    except OSError as err:
        raise DataError(f"--from-file {path}: cannot be read ({err.strerror})") from err


def _unknown_file(
    dataset: PublicDataset, path: Path, candidates: Sequence[Path], on_progress: ProgressCallback
) -> str:
    """The message for a path that is not a file of the dataset."""
    for each, file in itertools.product(candidates, dataset.files):
        if each.name == file.name:
            problem = find_mismatch(each, file, on_progress)
            return f"--from-file {each}: {problem}; it is not the published file of {dataset.name}"
    names = ", ".join(file.name for file in dataset.files)
    return f"--from-file {path}: its hash is not that of a file of {dataset.name}; give {names}"


def _is_found(file: RemoteFile, found: Mapping[str, Path]) -> bool:
    """Whether a file was found, or all members that would be unpacked from it."""
    return file.name in found or (
        bool(file.members) and all(member.name in found for member in file.members)
    )


# ---- Import --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder. Removes content left by a killed process; the caller holds a lock."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _stage(
    dataset: PublicDataset, files: Mapping[str, Path], stage: Path, on_progress: ProgressCallback
) -> Path:
    """Makes a folder with all files and members under their published names."""
    place = stage / "source"
    place.mkdir()
    for file in dataset.files:
        if file.members and file.name in files:
            _check_room(file.members, place)
            archives.extract(files[file.name], file.members, place, on_progress)
            continue
        for name in [member.name for member in file.members] or [file.name]:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(files[name])
    return place


def _check_room(members: Sequence[Member], place: Path) -> None:
    fetching.check_space(place, sum(member.size or 0 for member in members))


def _make_store(
    dataset: PublicDataset,
    files: Mapping[str, Path],
    stage: Path,
    on_progress: ProgressCallback,
    on_note: NoteCallback,
) -> Path:
    """Makes the store in the folder `stage` and removes the source files there."""
    place = _stage(dataset, files, stage, on_progress)
    made = stage / "made.h5"
    options = PrepareOptions(
        format=dataset.format,
        num_classes=dataset.num_classes,
        test_data=None if dataset.test_source is None else place / dataset.test_source,
        central_data=tuple(place / name for name in dataset.central_sources),
        hold_out=dataset.hold_out,
        partition=dataset.partition,
        partition_options=dataset.partition_options,
        source=dataset.entry.source,
        licence=dataset.entry.licence,
        class_names=dataset.class_names,
        same_people=None if dataset.same_people else False,
    )
    try:
        prepared = prepare([place / name for name in dataset.sources], made, options, on_progress)
    except ConfigError as err:  # it names options that the user has not given
        raise DataError(f"{dataset.name}: {err}") from err
    for note in prepared.notes:
        on_note(note)
    shutil.rmtree(place)  # a process killed from here on leaves nothing large
    return made
