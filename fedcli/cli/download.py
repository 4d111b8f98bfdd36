"""`fedcli download`: downloads and installs public datasets, for `--data NAME`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.cli.screen.output import Verbosity, one_line, print_json
from fedcli.errors import DataError
from fedcli.settings.options import choose
from fedcli.settings.tables.datasets import PUBLIC_DATASETS

if TYPE_CHECKING:
    from fedcli.cli.screen.output import Remarks
    from fedcli.cli.screen.render import Screen
    from fedcli.datasets.download.installing import Finding
    from fedcli.datasets.download.public import PublicDataset, RemoteFile

FETCH = "Download"
_AGAIN = "run the same command again to continue"


@click.command(cls=opt.SectionCommand)
@click.argument("name", required=False, type=opt.Name(lambda: PUBLIC_DATASETS))
@opt.option(
    "--list",
    "is_list",
    help="List the datasets, and which of their files are in the data folder.",
    section=FETCH,
    is_flag=True,
)
@opt.option(
    "--verify",
    help="Check every byte of the files in the data folder, of NAME or of all datasets.",
    section=FETCH,
    is_flag=True,
)
@opt.option(
    "--remove",
    help="Remove the files of NAME, or of all datasets, from the data folder. They are listed "
    "first.",
    section=FETCH,
    is_flag=True,
)
@opt.option("-y", "--yes", help="Do not ask before removing.", section=FETCH, is_flag=True)
@opt.option("--force", help="Download and import the dataset again.", section=FETCH, is_flag=True)
@opt.option(
    "--from-file",
    "given",
    help="Use this file, packed or unpacked, or the files of this folder, instead of the network. "
    "Files are recognised by their hash. Repeatable.",
    section=FETCH,
    type=click.Path(path_type=Path),
    multiple=True,
)
@opt.option(
    "--mirror",
    help="Address of a folder that is tried before the publisher's addresses.",
    section=FETCH,
    metavar="URL",
)
@opt.option(
    "--data-dir",
    help="The data folder. Default: FEDCLI_DATA_DIR, else the user's cache folder.",
    section=FETCH,
    type=click.Path(path_type=Path, file_okay=False),
)
@opt.output_options
def download(
    *,
    name: str | None,
    is_list: bool,
    verify: bool,
    remove: bool,
    yes: bool,
    force: bool,
    given: tuple[Path, ...],
    mirror: str | None,
    data_dir: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Fetch the public dataset NAME, check it, and import it, so that --data NAME uses it.

    An interrupted download continues where it stopped. FEDCLI_OFFLINE=1 forbids the network.
    Proxies are taken from http_proxy, https_proxy and no_proxy.

    \b
    Examples:
      fedcli download --list
      fedcli download mnist-writers
      fedcli train --data mnist-writers
      fedcli download mnist-writers --remove
      fedcli download emnist-digits --from-file ~/fed_emnist_digitsonly.tar.bz2
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    actions = {"--list": is_list, "--verify": verify, "--remove": remove}
    _check_usage(name, actions, others=[force, given, mirror])
    if given and mirror:
        raise click.UsageError("--from-file and --mirror contradict each other")
    from fedcli.datasets.data_folder import find_data_folder
    from fedcli.datasets.download.public import CATALOGUE

    chosen = [choose(CATALOGUE, name, "dataset")] if name else list(CATALOGUE.values())
    folder = find_data_folder(data_dir)
    if is_list:
        _list(chosen, folder, as_json=as_json)
        return 0
    if remove:
        _remove(chosen, folder, remarks, yes=yes, as_json=as_json)
        return 0
    if verify:
        return _verify(chosen, folder, remarks, as_json=as_json)
    bases = [mirror] if mirror else []
    acquire(chosen[0], folder, given, bases, force=force, remarks=remarks, as_json=as_json)
    return 0


def acquire(
    dataset: PublicDataset,
    folder: Path,
    given: Sequence[Path],
    bases: Sequence[str],
    *,
    force: bool,
    remarks: Remarks,
    as_json: bool,
) -> None:
    """Downloads and imports a dataset, and prints its state.

    Args:
        dataset: The dataset.
        folder: The data folder.
        given: Files to use instead of the network.
        bases: Addresses to try first.
        force: Download and import the dataset again.
        remarks: Writes remarks of the command.
        as_json: Print JSON.

    Raises:
        DataError: It could not be downloaded or imported. If there is no network, instructions are
            printed first.
        Stopped: A signal came.
    """
    from fedcli.datasets.data_folder import leaving_no_empty_folders, store_path

    with leaving_no_empty_folders(folder):
        num_transferred = _acquire(dataset, folder, given, bases, force=force, remarks=remarks)
    path = store_path(folder, dataset.name)
    _show(dataset, path, num_transferred, as_json=as_json)


def _acquire(
    dataset: PublicDataset,
    folder: Path,
    given: Sequence[Path],
    bases: Sequence[str],
    *,
    force: bool,
    remarks: Remarks,
) -> int:
    """Fetches and imports a dataset unless it is here; returns the bytes transferred."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.data_folder import make_folder, store_path
    from fedcli.datasets.download import installing
    from fedcli.datasets.download.fetching import check_base

    bases = [check_base(base) for base in bases]
    path = store_path(folder, dataset.name)
    num_transferred = 0
    if force or not path.is_file():
        make_folder(path.parent)  # so that an error comes now, not after hours of downloading
        if given:
            files = run_job(
                f"looking for {dataset.name}",
                "B",
                lambda on_progress: installing.find_given(dataset, folder, given, on_progress),
                remarks=remarks,
                describe_stop=lambda: "stopped; nothing was imported",
            )
        else:
            files, num_transferred = _fetch(dataset, folder, bases, force=force, remarks=remarks)
        run_job(
            f"importing {dataset.name}",
            "",
            lambda on_progress: installing.install(
                dataset, files, folder, force=force, on_progress=on_progress, on_note=remarks.note
            ),
            remarks=remarks,
            describe_stop=lambda: f"stopped; nothing was imported; {_AGAIN}",
        )
    else:
        remarks.note(
            f"{dataset.name} is already in the data folder; --verify checks it, --force fetches it "
            "again"
        )
    return num_transferred


def _fetch(
    dataset: PublicDataset, folder: Path, bases: Sequence[str], *, force: bool, remarks: Remarks
) -> tuple[dict[str, Path], int]:
    """The files of a dataset by name, and the bytes transferred for them."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.download import installing
    from fedcli.datasets.download.fetching import FetchError

    try:
        return run_job(
            f"fetching {dataset.name}",
            "B",
            lambda on_progress: installing.fetch_files(
                dataset,
                folder,
                bases=bases,
                force=force,
                is_offline=_is_offline(),
                on_progress=on_progress,
                on_note=remarks.note,
            ),
            remarks=remarks,
            describe_stop=lambda: f"stopped; what was fetched is kept in {folder}; {_AGAIN}",
        )
    except FetchError as err:
        _print_missing(dataset, folder, err.file)
        raise DataError(
            f"{err}; copy the files listed above to this machine in another way, then run: fedcli "
            f"download {dataset.name} --from-file PATH (a file, or the folder of the files); "
            "--data synthetic-digits needs no download"
        ) from err


def _check_usage(name: str | None, actions: Mapping[str, bool], others: Sequence[object]) -> None:
    """Refuses options that contradict each other. Each of `actions` excludes all others."""
    context = click.get_current_context()
    given = [flag for flag, is_given in actions.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} contradict each other", context)
    if given and any(others):
        raise click.UsageError(f"{given[0]} fetches nothing; give only NAME with it", context)
    if name is None and not given:
        raise click.UsageError("give the NAME of a dataset, or --list", context)


def _is_offline() -> bool:
    return os.environ.get("FEDCLI_OFFLINE", "") not in ("", "0")


def _print_missing(dataset: PublicDataset, folder: Path, failed: RemoteFile) -> None:
    """Prints, above the error, the files that must be copied to this machine in another way.

    An error is one line. Hashes and addresses would make it unreadable, so they are printed on
    separate lines, on stderr.
    """
    from fedcli.datasets.data_folder import download_path

    lines = [f"fedcli: {dataset.name} needs:"]
    for file in dataset.files:
        target = download_path(folder, file.folder, file.name)
        if file is failed or not target.is_file():
            size = "size not stated" if file.size is None else f"{file.size:,} bytes"
            lines += [
                f"  {file.name}  {size}",
                f"    sha256  {file.sha256}",
                *(f"    from    {url}" for url in file.urls),
                f"    to      {target}",
            ]
    for line in lines:
        print(one_line(line), file=sys.stderr)


def _show(dataset: PublicDataset, path: Path, num_transferred: int, *, as_json: bool) -> None:
    from fedcli.datasets.sources import store

    splits = store.open_store(path)
    values: dict[str, Any] = {
        "name": dataset.name,
        "path": str(path),
        "downloaded_bytes": num_transferred,
        "fingerprint": store.stored_fingerprint(path),
        "licence": dataset.entry.licence,
        "splits": {
            split: {"num_clients": len(data.client_ids), "num_examples": data.total_examples()}
            for split, data in splits.items()
        },
    }
    if as_json:
        print_json(values)
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    screen.line(f"{dataset.name}: {path}")
    screen.table(
        ["split", "clients", "examples"],
        [
            (split, f"{counts['num_clients']:,}", f"{counts['num_examples']:,}")
            for split, counts in values["splits"].items()
        ],
    )
    screen.line(f"Licence: {dataset.entry.licence}")
    screen.line(f"To use it: fedcli train --data {_usable_name(dataset, path)}")


def _usable_name(dataset: PublicDataset, path: Path) -> str:
    """The value of --data for the store: its name, or its path if it is in another folder."""
    from fedcli.datasets.data_folder import find_data_folder, store_path

    is_usual = path == store_path(find_data_folder(), dataset.name)
    return dataset.name if is_usual else str(path)


def _list(chosen: Sequence[PublicDataset], folder: Path, *, as_json: bool) -> None:
    rows = [_describe(dataset, folder) for dataset in chosen]
    if as_json:
        print_json({"data_dir": str(folder), "datasets": rows})
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    screen.table(
        ["name", "here", "licence", "clients", "examples", "MB to fetch", "MB here"],
        [
            (
                row["name"],
                _HERE[row["state"]],
                row["licence"],
                f"{row['num_clients']:,}",
                f"{row['num_examples']:,}",
                "not stated" if row["num_bytes"] is None else f"{row['num_bytes'] / 1e6:,.1f}",
                f"{row['bytes_here'] / 1e6:,.1f}" if row["bytes_here"] else "-",
            )
            for row in rows
        ],
        left=3,
    )
    total = sum(row["bytes_here"] for row in rows) / 1e6
    screen.line(f"The files in {folder} take {total:,.1f} MB; --remove removes them")


def _remove(
    chosen: Sequence[PublicDataset], folder: Path, remarks: Remarks, *, yes: bool, as_json: bool
) -> None:
    """Lists the files of datasets in the data folder, asks, and removes them."""
    from fedcli.datasets.download import installing

    files = installing.find_files(chosen, folder)
    sizes = [file.stat().st_size for file in files]
    if not files:
        names = ", ".join(dataset.name for dataset in chosen)
        raise DataError(f"no file of {names} is in {folder}")
    is_quiet = remarks.verbosity == Verbosity.QUIET
    is_asking = not yes and not as_json and sys.stdin.isatty()
    if is_asking or not (is_quiet or as_json):  # no question without a list of the files
        for file, size in zip(files, sizes, strict=True):
            click.echo(f"{size / 1e6:10,.1f} MB  {one_line(str(file))}")
    if not (yes or is_asking):
        raise DataError(
            "nothing was removed: without a terminal, or with --json, no confirmation is "
            "possible; give --yes"
        )
    if is_asking and not click.confirm("Remove them?"):
        click.echo("Nothing was removed")
        return
    installing.remove(files, folder, remarks.note)
    if as_json:
        print_json({"removed": list(map(str, files)), "num_bytes": sum(sizes)})
    elif not is_quiet:
        click.echo(f"Removed {sum(sizes) / 1e6:,.1f} MB")


_HERE: Mapping[str, str] = {
    "imported": "yes",
    "fetched": "not imported",
    "part": "in part",
    "none": "no",
}


def _describe(dataset: PublicDataset, folder: Path) -> dict[str, Any]:
    from fedcli.datasets.download import installing

    state = installing.state_of(dataset, folder)
    has_all = state.num_files == len(dataset.files)
    partly = "fetched" if has_all else "part" if state.num_files else "none"
    return {
        "name": dataset.name,
        "doc": dataset.entry.doc,
        "licence": dataset.entry.licence,
        "num_clients": dataset.expected[0].num_clients,
        "num_examples": sum(expected.num_examples for expected in dataset.expected),
        "num_bytes": dataset.num_bytes,
        "state": "imported" if state.has_store else partly,
        "bytes_here": state.num_bytes,
    }


def _verify(
    chosen: Sequence[PublicDataset], folder: Path, remarks: Remarks, *, as_json: bool
) -> int:
    """Prints which files are intact and which are not; returns the exit code."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.download import installing

    found: dict[str, list[Finding]] = {}
    for dataset in chosen:
        found[dataset.name] = run_job(
            f"checking {dataset.name}",
            "B",
            lambda on_progress, dataset=dataset: installing.verify(dataset, folder, on_progress),  # type: ignore[misc]
            remarks=remarks,
            describe_stop=lambda: "stopped; nothing was changed",
        )
    findings = [(name, each) for name, rows in found.items() for each in rows]
    if as_json:
        rows = [
            {"name": name, "path": str(each.path), "problem": each.problem}
            for name, each in findings
        ]
        print_json({"data_dir": str(folder), "files": rows})
    else:
        from fedcli.cli.screen.render import Screen

        _show_findings(Screen(), findings)
    bad = list(dict.fromkeys(name for name, each in findings if each.problem is not None))
    if bad:
        raise DataError(
            f"{', '.join(bad)}: incomplete or damaged; to replace it: fedcli download {bad[0]} "
            "--force"
        )
    if not findings:
        names = ", ".join(dataset.name for dataset in chosen)
        raise DataError(f"no file of {names} is in {folder}; fedcli download NAME fetches it")
    return 0


def _show_findings(screen: Screen, findings: Sequence[tuple[str, Finding]]) -> None:
    screen.table(
        ["dataset", "file", "state"],
        [(name, str(each.path), each.problem or "whole") for name, each in findings],
        left=3,
    )
