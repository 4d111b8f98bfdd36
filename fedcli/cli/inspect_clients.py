"""`fedcli inspect-clients`: who the clients are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.config import RunConfig
from fedcli.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.cli.client_tables import Population, View
    from fedcli.cli.output import Remarks
    from fedcli.datasets.client_data import ClientData
    from fedcli.progress import Tell
    from fedcli.statistics import MeanImages, SplitCounts
    from fedcli.suspects import Suspects

SUSPECTS = "Suspects"  # a heading of the help text
DEFAULT_TOP = 10
DEFAULT_SUSPECTS = 20
CACHE_BYTES = 64 << 20  # of clients kept; most are read once

# Chosen clients are compared with all of their split up to so many, above with a draw: a draw of a
# thousand tells the shares of labels to a fraction of a percent.
MAX_COMPARED = 10_000
NUM_DRAWN = 1_000


@click.command(
    "inspect-clients",
    cls=opt.SectionCommand,
    short_help="Show who the clients are: sizes, labels, digits.",
)
@opt.data_options(
    data_help=f"{opt.DATA_HELP}  [default: {RunConfig.data}]",
    clients_help="Which clients; a few of them are drawn side by side.  [default: all]",
)
@opt.option("--split", help="Look at one split only.", section=opt.DATA, metavar="NAME")
@opt.option(
    "--quick", help="Count labels only; pixels are not checked.", section=opt.DATA, is_flag=True
)
@opt.option(
    "--top",
    help="Rows in the table of clients.",
    section=opt.PICTURES,
    type=click.IntRange(min=0),
    default=DEFAULT_TOP,
    show_default=True,
    metavar="N",
)
@opt.option(
    "--sort",
    help="Order of that table, largest first but for id. JSON and CSV are in the order of ids.",
    section=opt.PICTURES,
    type=click.Choice(["id", "size", "tv", "js", "classes"]),
    default="id",
    show_default=True,
)
@opt.option(
    "--show",
    "shown_ids",
    help="Draw this client: label counts, examples, mean images; repeatable.",
    section=opt.PICTURES,
    multiple=True,
    metavar="ID",
)
@opt.option(
    "--examples",
    "num_examples",
    help="Example digits of each client drawn. Default: 10, side by side 1.",
    section=opt.PICTURES,
    type=click.IntRange(min=0),
    metavar="N",
)
@opt.option(
    "--means",
    "has_means",
    help="Draw mean images of each label, of the population or of each of a few --clients.",
    section=opt.PICTURES,
    is_flag=True,
)
@opt.option(
    "--plot",
    "plot_folder",
    help="Write figures to this folder; needs matplotlib.",
    section=opt.PICTURES,
    type=click.Path(path_type=Path),
    metavar="DIR",
)
@opt.option(
    "--plot-format",
    help="Format of the figures.  [default: png]",
    section=opt.PICTURES,
    type=click.Choice(["png", "svg"]),
)
@opt.option(
    "--suspects",
    "num_suspects",
    help="List the examples and clients likeliest to be mislabeled or broken, N of each.  "
    f"[default: {DEFAULT_SUSPECTS}]",
    section=SUSPECTS,
    is_flag=False,
    flag_value=str(DEFAULT_SUSPECTS),
    type=click.IntRange(min=1),
    metavar="[N]",
)
@opt.option(
    "--run",
    help="Rank suspects by the loss of this run's model, not by their images alone.",
    section=SUSPECTS,
    type=click.Path(path_type=Path),
    metavar="RUN",
)
@opt.option(
    "--csv",
    "csv_file",
    help="Write one row a client and split to this file.",
    section=opt.OUTPUT,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.output_options
def inspect_clients(
    *,
    clients: str | None,
    split: str | None,
    quick: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    top: int,
    sort: str,
    shown_ids: tuple[str, ...],
    num_examples: int | None,
    has_means: bool,
    plot_folder: Path | None,
    plot_format: str | None,
    num_suspects: int | None,
    run: Path | None,
    csv_file: Path | None,
    **data: Any,
) -> None:
    """Show who the clients are: how many, how large, which labels, what their digits look like.

    Every pixel and label is checked on the way, unless --quick.

    \b
    Examples:
      fedcli inspect-clients
      fedcli inspect-clients --data train.h5 --sort tv --top 20
      fedcli inspect-clients --data train.h5 --show w0002 --examples 40
      fedcli inspect-clients --data train.h5 --clients w0000,w0001,w0002 --means
      fedcli inspect-clients --data train.h5 --suspects --csv clients.csv
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if run is not None and num_suspects is None:
        num_suspects = DEFAULT_SUSPECTS
    wanted = Wanted(
        clients=clients,
        shown_ids=shown_ids,
        is_quick=quick,
        has_means=has_means or bool(shown_ids and not quick and not as_json),
        num_suspects=num_suspects,
        run=run,
        plot_folder=plot_folder,
        plot_format=plot_format,
        csv_file=csv_file,
    )
    wanted.check()
    splits = _open(opt.given(data), split)

    from fedcli.cli.client_tables import View

    populations = _count_all(splits, wanted, remarks)
    view = View(top, sort, num_examples, has_means)
    _present(populations, wanted, view, remarks, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for beside how it is shown."""

    clients: str | None
    shown_ids: tuple[str, ...]
    is_quick: bool
    has_means: bool
    num_suspects: int | None
    run: Path | None
    plot_folder: Path | None
    plot_format: str | None
    csv_file: Path | None

    def check(self) -> None:
        """Refuses what contradicts itself, before any work."""
        if self.shown_ids and self.clients is not None:
            raise ConfigError(
                f"--show {self.shown_ids[0]} and --clients {self.clients}: give one of them; "
                "--show draws clients one by one"
            )
        pixels = {
            "--means": self.has_means,
            "--suspects": self.num_suspects is not None,
            "--plot": self.plot_folder is not None,
        }
        for option, is_given in pixels.items():
            if is_given and self.is_quick:
                raise ConfigError(f"{option} needs pixels, which --quick does not read; drop one")
        if self.plot_format is not None and self.plot_folder is None:
            raise ConfigError(f"--plot-format {self.plot_format}: give --plot DIR, too")
        if self.run is not None and not self.run.exists():
            raise ConfigError(f"--run {self.run}: there is no such run; give its folder")
        if self.plot_folder is not None:
            from fedcli import figures

            figures.require()


# ---- Reading ------------------------------------------------------------------------------------


def _open(data: Mapping[str, Any], split: str | None) -> dict[str, ClientData]:
    """The splits to look at."""
    from fedcli import datasets

    splits = datasets.open_splits(**{"data": RunConfig.data, "cache_bytes": CACHE_BYTES, **data})
    if split is None:
        return splits
    if split not in splits:
        source = next(iter(splits.values())).source
        raise ConfigError(f"--split {split}: {source} has {', '.join(splits)}; choose one of them")
    return {split: splits[split]}


def _select(splits: Mapping[str, ClientData], wanted: Wanted) -> dict[str, Sequence[str]]:
    """The ids to look at in each split; an id has to be in the first one."""
    from fedcli import cohort

    first, *others = splits
    if wanted.shown_ids:
        selection = cohort.parse_clients(list(dict.fromkeys(wanted.shown_ids)), "--show")
        option = "--show"
    else:
        selection = cohort.parse_clients(wanted.clients if wanted.clients is not None else "all")
        option = "--clients"
    ids = cohort.resolve_ids(selection, splits[first].client_ids, splits[first].source, option)
    selected: dict[str, Sequence[str]] = {first: ids}
    is_all = selection.ids is None and selection.count is None
    for name in others:
        population = splits[name].client_ids
        selected[name] = (
            population if is_all else [each for each in ids if cohort.contains(population, each)]
        )
    return selected


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What is read of one split: clients looked at, clients they are compared with."""

    data: ClientData
    ids: Sequence[str]
    compared_ids: Sequence[str]
    needs_means: bool

    @property
    def num_reads(self) -> int:
        is_same = self.ids is self.compared_ids
        return len(self.ids) + (0 if is_same else len(self.compared_ids))


def _count_all(
    splits: Mapping[str, ClientData], wanted: Wanted, remarks: Remarks
) -> dict[str, Population]:
    """Every split counted, with mean images of the first one if they are wanted."""
    from fedcli.cli.jobs import run_job
    from fedcli.statistics import MeanImages

    tasks: dict[str, _Task] = {}
    for name, ids in _select(splits, wanted).items():
        data = splits[name]
        needs_means = wanted.has_means and not tasks
        if needs_means and not MeanImages.fits(data.num_classes, data.pixel_shape):
            remarks.note(
                f"no mean images: {data.num_classes:,} classes of {list(data.pixel_shape)} pixels "
                "would fill the memory"
            )
            needs_means = False
        compared_ids = _compared_ids(data, ids, remarks)
        tasks[name] = _Task(data=data, ids=ids, compared_ids=compared_ids, needs_means=needs_means)

    def job(tell: Tell) -> dict[str, Population]:
        total = sum(task.num_reads for task in tasks.values())
        reader = _Reader(tell, total, is_quick=wanted.is_quick)
        return {name: reader.population(task) for name, task in tasks.items()}

    populations = run_job(
        "reading clients", "clients", job, remarks=remarks, describe_stop=lambda: "stopped"
    )
    num_examples = sum(each.counts.num_examples for each in populations.values())
    remarks.detail(f"counted {num_examples:,} examples")
    return populations


def _compared_ids(data: ClientData, ids: Sequence[str], remarks: Remarks) -> Sequence[str]:
    """Whom clients are compared with: themselves if they are all, else their split."""
    from fedcli import samplers
    from fedcli.seeds import Purpose

    population = data.client_ids
    if len(ids) == len(population):
        return ids
    if len(population) <= MAX_COMPARED:
        return population
    remarks.note(
        f"{data.split}: clients are compared with {NUM_DRAWN:,} of the {len(population):,}, drawn "
        "once"
    )
    drawn = samplers.sample_indices(len(population), NUM_DRAWN, 0, Purpose.EVAL_CLIENTS, 0)
    return [population[index] for index in drawn]


class _Reader:
    """Reads clients in turn and tells how many."""

    def __init__(self, tell: Tell, total: int, *, is_quick: bool) -> None:
        self._tell = tell
        self._total = total
        self._done = 0
        self._is_quick = is_quick

    def population(self, task: _Task) -> Population:
        """Reads one split."""
        from fedcli.cli.client_tables import Population
        from fedcli.statistics import MeanImages

        data = task.data
        means = MeanImages(data.num_classes, data.pixel_shape) if task.needs_means else None
        if task.ids is task.compared_ids:
            counts = self._count(data, task.ids, means, is_quick=self._is_quick)
            return Population(data, counts, counts, means)
        # Of those who are compared with, pixels are read for mean images alone.
        compared = self._count(data, task.compared_ids, means, is_quick=means is None)
        counts = self._count(data, task.ids, None, is_quick=self._is_quick)
        counts = replace(counts, population=compared.class_totals)
        return Population(data, counts, compared, means)

    def _count(
        self, data: ClientData, ids: Sequence[str], means: MeanImages | None, *, is_quick: bool
    ) -> SplitCounts:
        from fedcli.statistics import count_labels

        def labels() -> Iterator[NDArray[np.int32]]:
            for client_id in ids:
                if is_quick:
                    yield data.labels(client_id)
                else:
                    client = data.client(client_id)
                    if means is not None:
                        means.add(client.pixels, client.labels, client.scale, client.offset)
                    yield client.labels
                self._done += 1
                self._tell(self._done, self._total)

        return count_labels(data.split, ids, labels(), data.num_classes)


# ---- Showing ------------------------------------------------------------------------------------


def _present(
    populations: Mapping[str, Population],
    wanted: Wanted,
    view: View,
    remarks: Remarks,
    *,
    as_json: bool,
) -> None:
    """Writes files first, then prints."""
    from fedcli.cli import client_records

    files: list[Path] = []
    if wanted.csv_file is not None:
        client_records.write_csv(wanted.csv_file, populations)
        files.append(wanted.csv_file)
    first = next(iter(populations.values()))
    if wanted.plot_folder is not None:
        files += _plot(first, wanted, remarks)
    for file in files:
        remarks.note(f"wrote {file}")
    suspects = None if wanted.num_suspects is None else _rank(first, wanted, remarks)
    if as_json:
        from fedcli.cli import suspect_tables

        more = {} if suspects is None else suspect_tables.to_json(first.data, suspects)
        client_records.print_json(populations, {"suspects": more} if more else {})
        return
    _draw(populations, wanted, view, suspects)


def _draw(
    populations: Mapping[str, Population], wanted: Wanted, view: View, suspects: Suspects | None
) -> None:
    from fedcli.cli import client_tables, suspect_tables
    from fedcli.cli.render import Screen

    screen = Screen()
    first = next(iter(populations.values()))
    is_few = len(first.counts.client_ids) <= client_tables.MAX_PANELS
    if wanted.shown_ids:
        client_tables.show_clients(screen, first, view)
    elif wanted.clients is not None and is_few:
        client_tables.show_panels(screen, populations, view)
    else:
        client_tables.show_population(screen, populations, view)
    if suspects is not None:
        suspect_tables.show(screen, first.data, suspects)


def _rank(population: Population, wanted: Wanted, remarks: Remarks) -> Suspects:
    """The examples and clients of the first split that deserve a look."""
    from fedcli import examination, suspects
    from fedcli.cli.jobs import run_job

    data, ids, run = population.data, population.counts.client_ids, wanted.run
    top = wanted.num_suspects or DEFAULT_SUSPECTS

    def job(tell: Tell) -> Suspects:
        if run is None:
            return suspects.rank_examples(data, ids, tell, top=top)
        return examination.rank_with_run(data, ids, run, tell, top=top)

    return run_job(
        "seeking suspects", "clients", job, remarks=remarks, describe_stop=lambda: "stopped"
    )


def _plot(population: Population, wanted: Wanted, remarks: Remarks) -> list[Path]:
    """Writes figures of the population and of the first clients looked at."""
    from fedcli import figures
    from fedcli.cli.jobs import run_job

    folder = wanted.plot_folder
    assert folder is not None

    def job(tell: Tell) -> list[Path]:
        return figures.write_figures(
            folder,
            population.data,
            population.counts.client_ids,
            population.compared,
            file_format=wanted.plot_format or "png",
            tell=tell,
        )

    return run_job(
        "drawing figures", "clients", job, remarks=remarks, describe_stop=lambda: "stopped"
    )
