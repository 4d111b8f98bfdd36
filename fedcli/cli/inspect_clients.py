"""`fedcli inspect-clients`: sizes, labels and images of clients, and suspicious examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural
from fedcli.settings.data_source import DataSource
from fedcli.settings.run_config import OPTIONS
from fedcli.settings.tables.datasets import EMBEDDED_DATASETS, PUBLIC_DATASETS
from fedcli.settings.vocabulary import NATURAL

if TYPE_CHECKING:
    from fedcli.cli.screen.client_tables import View
    from fedcli.cli.screen.output import Remarks
    from fedcli.datasets.client_data import ClientData
    from fedcli.inspection import population
    from fedcli.inspection.population import Population
    from fedcli.inspection.suspects import Suspects
    from fedcli.progress import ProgressCallback

SUSPECTS = "Suspects"  # a heading of the help text
DEFAULT_TOP = 10
DEFAULT_SUSPECTS = 20
CACHE_BYTES = 64 << 20  # size of the client cache; most clients are read once


@click.command(
    "inspect-clients",
    cls=opt.SectionCommand,
)
@opt.data_options(
    data=f"{OPTIONS['data'].help} Default: that of --run, else {DataSource.data}.",
    partition=f"{OPTIONS['partition'].help}  [default: {NATURAL}]",
    clients="Clients to show. A few clients are drawn side by side.  [default: all]",
)
@opt.option("--split", help="Inspect only this split.", section=opt.DATA, metavar="NAME")
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
    help="Order of the table of clients: by id, or the largest value first. JSON and CSV are in "
    "the order of ids.",
    section=opt.PICTURES,
    type=click.Choice(["id", "size", "tv", "js", "classes"]),
    default="id",
    show_default=True,
)
@opt.option(
    "--show",
    "shown_ids",
    help="Draw this client: label counts, examples and mean images. Repeatable.",
    section=opt.PICTURES,
    multiple=True,
    metavar="ID",
)
@opt.option(
    "--examples",
    "num_examples",
    help="Number of example images of each drawn client. Default: 10, or 1 if clients are side by "
    "side.",
    section=opt.PICTURES,
    type=click.IntRange(min=0),
    metavar="N",
)
@opt.option(
    "--means",
    "has_means",
    help="Draw the mean image of each label, for all clients, or for each of a few --clients.",
    section=opt.PICTURES,
    is_flag=True,
)
@opt.option(
    "--augmented",
    "is_augmented",
    help="Draw examples as the model of --run gets them in training: augmented and normalised.",
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
    type=click.Choice(["png", "svg", "pdf"]),
)
@opt.option(
    "--suspects",
    "num_suspects",
    help="List the N examples and the N clients that are most likely mislabeled or broken.  "
    f"[default: {DEFAULT_SUSPECTS}]",
    section=SUSPECTS,
    is_flag=False,
    flag_value=str(DEFAULT_SUSPECTS),
    type=click.IntRange(min=1),
    metavar="[N]",
)
@opt.option(
    "--run",
    help="Rank suspects by their loss under this run's model instead of by their images, or draw "
    "its training images with --augmented. The default of --data is then the run's data.",
    section=SUSPECTS,
    type=opt.RunFolder(),
    metavar="RUN",
)
@opt.code_option(section=SUSPECTS)
@opt.option(
    "--csv",
    "csv_file",
    help="Write one row for each client and split to this file.",
    section=opt.OUTPUT,
    type=opt.OutputFile(),
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
    is_augmented: bool,
    plot_folder: Path | None,
    plot_format: str | None,
    num_suspects: int | None,
    run: Path | None,
    model: str | None,
    csv_file: Path | None,
    **data: Any,
) -> None:
    """Show who the clients are: how many, how large, which labels, what their images look like.

    Every pixel and label is checked, unless --quick is given.

    \b
    Examples:
      fedcli inspect-clients
      fedcli inspect-clients --data train.h5 --sort tv --top 20
      fedcli inspect-clients --data train.h5 --show w0002 --examples 40
      fedcli inspect-clients --data train.h5 --clients w0000,w0001,w0002 --means
      fedcli inspect-clients --data train.h5 --suspects --csv clients.csv
      fedcli inspect-clients --run runs/augmented --augmented
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if run is not None and num_suspects is None and not is_augmented:
        num_suspects = DEFAULT_SUSPECTS
    request = Request(
        clients=clients,
        shown_ids=shown_ids,
        is_quick=quick,
        has_means=has_means or bool(shown_ids and not quick and not as_json),
        is_augmented=is_augmented,
        num_suspects=num_suspects,
        run=run,
        model=model,
        plot_folder=plot_folder,
        plot_format=plot_format,
        csv_file=csv_file,
    )
    request.check()
    if is_augmented and as_json:
        raise ConfigError("--augmented draws pictures, which JSON has no place for; drop --json")
    if is_augmented:
        _check_input_layers(request)
    data_given = opt.given(data)
    source = _source(data_given, run)
    request.check_outputs_are_no_inputs(source)
    opt.check_outputs(csv_file)
    splits = _open(source, split)
    if is_augmented and "train" not in splits:
        raise ConfigError(f"--augmented draws training images; drop --split {split}")
    if run is not None and "data" not in data_given:
        splits = _attacked(splits, run, remarks)

    from fedcli.cli.screen.client_tables import View
    from fedcli.federation.opened_data import notes_of_sources, notes_of_test_data, notes_on

    populations = _count_all(splits, request, remarks)
    notes = notes_of_test_data if quick else notes_on  # `notes_on` reads pixels
    for note in (*notes_of_sources(splits), *notes(splits)):
        remarks.note(note)
    if split is None and not quick:
        _verify(source, populations, remarks)
    view = View(top, sort, num_examples, has_means)
    _present(populations, request, view, remarks, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command, except those of the data and of the tables."""

    clients: str | None
    shown_ids: tuple[str, ...]
    is_quick: bool
    has_means: bool
    is_augmented: bool
    num_suspects: int | None
    run: Path | None
    model: str | None
    plot_folder: Path | None
    plot_format: str | None
    csv_file: Path | None

    def check(self) -> None:
        """Refuses options that contradict each other, before any work."""
        if self.shown_ids and self.clients is not None:
            raise ConfigError(
                f"--show {self.shown_ids[0]} and --clients {self.clients} contradict each other; "
                "give one of them (--show draws clients one by one)"
            )
        pixels = {
            "--means": self.has_means,
            "--augmented": self.is_augmented,
            "--suspects": self.num_suspects is not None,
            "--plot": self.plot_folder is not None,
        }
        for option, is_given in pixels.items():
            if is_given and self.is_quick:
                raise ConfigError(
                    f"{option} needs pixels, which --quick does not read; leave one of them out"
                )
        if self.plot_format is not None and self.plot_folder is None:
            raise ConfigError(f"--plot-format {self.plot_format} needs --plot DIR; add it")
        if self.model is not None and self.run is None:
            raise ConfigError(f"--model {self.model} needs --run RUN; add it")
        if self.is_augmented and self.run is None:
            raise ConfigError(
                "--augmented draws images as the model of a run gets them, so it needs --run RUN; "
                "add it"
            )
        if self.run is not None and not self.run.exists():
            raise ConfigError(f"--run {self.run}: there is no such run; give its folder")
        if self.plot_folder is not None:
            from fedcli.inspection import figures

            figures.require()

    def check_outputs_are_no_inputs(self, source: DataSource) -> None:
        """Refuses outputs that are also inputs."""
        from fedcli.files import check_is_no_input

        inputs = [path for path in map(_find_path, source.names) if path is not None]
        inputs += [] if self.run is None else [self.run]
        for option, path in (("--csv", self.csv_file), ("--plot", self.plot_folder)):
            if path is not None:
                check_is_no_input(path, inputs, f"{option} {path}")


# ---- Reading ------------------------------------------------------------------------------------


def _source(given: Mapping[str, Any], run: Path | None) -> DataSource:
    """The source of the data: given options override the data of the run, if there is one."""
    if run is None or "data" in given:
        return DataSource(**given)
    from fedcli.runs import trained

    return trained.data_of_run(run, given)


def _find_path(name: str) -> Path | None:
    """The file of a dataset; None for generated data."""
    if name in EMBEDDED_DATASETS:
        return None
    if name not in PUBLIC_DATASETS:
        return Path(name)
    from fedcli.datasets import data_folder

    return data_folder.store_path(data_folder.find_data_folder(), name)


def _open(source: DataSource, split: str | None) -> dict[str, ClientData]:
    """Opens the splits to inspect."""
    from fedcli import datasets
    from fedcli.runs.files.folder import refuse_as_data

    refuse_as_data(str(source.data))
    splits = datasets.open_splits(source, cache_bytes=CACHE_BYTES)
    if split is None:
        return splits
    if split not in splits:
        where = next(iter(splits.values())).source
        raise ConfigError(f"--split {split}: {where} has {', '.join(splits)}; choose one of them")
    return {split: splits[split]}


def _attacked(splits: dict[str, ClientData], run: Path, remarks: Remarks) -> dict[str, ClientData]:
    """The splits of a run's data, in which attackers have the examples on which they train."""
    from fedcli.runs import trained

    config = trained.config_of_run(run)
    if config.attack is None:
        return splits
    from fedcli.runs.attacking import poisoned_splits

    poisoned, notes = poisoned_splits(config, splits)
    for note in notes:
        remarks.note(note)
    return poisoned


def _select(splits: Mapping[str, ClientData], request: Request) -> dict[str, Sequence[str]]:
    """The ids to inspect in each split. Each given id must be in the first split."""
    from fedcli.federation import cohorts

    first, *others = splits
    if request.shown_ids:
        selection = cohorts.parse_clients(list(dict.fromkeys(request.shown_ids)), "--show")
        option = "--show"
    else:
        selection = cohorts.parse_clients(request.clients if request.clients is not None else "all")
        option = "--clients"
    ids = cohorts.resolve_ids(selection, splits[first].client_ids, splits[first].source, option)
    selected: dict[str, Sequence[str]] = {first: ids}
    is_all = selection.ids is None and selection.count is None
    for name in others:
        population = splits[name].client_ids
        selected[name] = (
            population if is_all else [each for each in ids if cohorts.contains(population, each)]
        )
    return selected


def _tasks(
    splits: Mapping[str, ClientData], request: Request, remarks: Remarks
) -> dict[str, population.Task]:
    """The reading task of each split, with mean images of the first one if they are requested."""
    from fedcli.inspection import population
    from fedcli.inspection.statistics import MeanImages

    tasks: dict[str, population.Task] = {}
    for name, ids in _select(splits, request).items():
        data = splits[name]
        needs_means = request.has_means and not tasks
        if needs_means and not MeanImages.fits(data.num_classes, data.pixel_shape):
            remarks.note(
                f"no mean images are drawn: {plural(data.num_classes, 'class')} of "
                f"{list(data.pixel_shape)} pixels would need too much memory"
            )
            needs_means = False
        compared = population.choose_compared(data, ids)
        if compared is not ids and len(compared) < len(data.client_ids):
            remarks.note(
                f"{data.split}: clients are compared with {len(compared):,} of the "
                f"{len(data.client_ids):,}, drawn once"
            )
        tasks[name] = population.Task(
            data=data, client_ids=ids, compared_ids=compared, needs_means=needs_means
        )
    return tasks


def _count_all(
    splits: Mapping[str, ClientData], request: Request, remarks: Remarks
) -> dict[str, Population]:
    """Reads and counts all splits."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.inspection.population import read_populations

    tasks = _tasks(splits, request, remarks)
    populations = run_job(
        "reading clients",
        "clients",
        lambda on_progress: read_populations(tasks, on_progress, is_quick=request.is_quick),
        remarks=remarks,
        describe_stop=lambda: "stopped",
    )
    num_examples = sum(each.counts.num_examples for each in populations.values())
    remarks.detail(f"counted {plural(num_examples, 'example')}")
    return populations


def _verify(source: DataSource, populations: Mapping[str, Population], remarks: Remarks) -> None:
    """Checks a store against its fingerprint, if all of its clients were read unchanged."""
    path = _find_path(str(source.data))
    is_other = source.test_data or source.partition != NATURAL
    looked_at = (len(each.counts.client_ids) for each in populations.values())
    stored = (len(each.data.client_ids) for each in populations.values())
    if path is None or is_other or tuple(looked_at) != tuple(stored):
        return
    from fedcli import hdf5
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.sources import store

    if hdf5.is_store(path):
        run_job(
            "checking the store",
            "B",
            lambda on_progress: store.verify(path, on_progress),
            remarks=remarks,
            describe_stop=lambda: "stopped",
        )


# ---- Showing ------------------------------------------------------------------------------------


def _present(
    populations: Mapping[str, Population],
    request: Request,
    view: View,
    remarks: Remarks,
    *,
    as_json: bool,
) -> None:
    """Writes files first, then prints."""
    from fedcli.cli.screen import client_export

    first = next(iter(populations.values()))
    if request.csv_file is not None:
        client_export.write_csv(request.csv_file, populations)
        remarks.note(f"wrote {request.csv_file}")
        opt.note_links(remarks, request.csv_file)
    if request.plot_folder is not None:
        for file in _plot(first, request.plot_folder, request, remarks):
            remarks.note(f"wrote {file}")
    suspects = None if request.num_suspects is None else _rank(first, request, remarks)
    if as_json:
        from fedcli.cli.screen import suspect_tables

        more = {} if suspects is None else suspect_tables.to_json(first.data, suspects)
        client_export.print_json(populations, {"suspects": more} if more else {})
        return
    _draw(populations, request, view, suspects)
    if request.is_augmented:
        _draw_training_images(first, request, view)


def _draw(
    populations: Mapping[str, Population], request: Request, view: View, suspects: Suspects | None
) -> None:
    from fedcli.cli.screen import client_tables, suspect_tables
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    first = next(iter(populations.values()))
    is_few = len(first.counts.client_ids) <= client_tables.MAX_PANELS
    if request.shown_ids:
        client_tables.show_clients(screen, first, view)
    elif request.clients is not None and is_few:
        client_tables.show_panels(screen, populations, view)
    else:
        client_tables.show_population(screen, populations, view)
    if suspects is not None:
        suspect_tables.show(screen, first.data, suspects)


def _check_input_layers(request: Request) -> None:
    """Refuses a run whose model gets images unchanged."""
    from fedcli.inspection.training_images import has_input_layers
    from fedcli.runs.trained import load_trained

    assert request.run is not None
    with load_trained(request.run, 1, request.model, has_client_states=False) as trained:
        if not has_input_layers(trained.model.layout):
            raise ConfigError(
                f"--augmented: the model of {request.run} gets images unchanged; train with "
                "--augment or --normalize, or drop the option"
            )


def _draw_training_images(population: Population, request: Request, view: View) -> None:
    """Draws training images of the drawn clients, or of the first one if there are many."""
    from fedcli.cli.screen import client_pictures, client_tables
    from fedcli.cli.screen.render import Screen
    from fedcli.federation.opened_data import check_fit
    from fedcli.inspection.training_images import training_images
    from fedcli.runs.trained import load_trained

    assert request.run is not None
    screen, ids = Screen(), population.counts.client_ids
    num_images = view.num_examples or client_tables.DEFAULT_SHOWN_EXAMPLES
    with load_trained(request.run, None, request.model, has_client_states=False) as trained:
        check_fit(population.data, trained.model)
        sizes = population.counts.sizes.tolist()
        drawn = [each for each, size in zip(ids, sizes, strict=True) if size]
        for client_id in drawn if len(ids) <= client_tables.MAX_PANELS else drawn[:1]:
            images = training_images(population.data, client_id, trained, num_images)
            client_pictures.show_training_images(screen, population.data, images, client_id)


def _rank(population: Population, request: Request, remarks: Remarks) -> Suspects:
    """The suspicious examples and clients of the first split."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.inspection import suspects, suspects_by_loss

    data, ids, run = population.data, population.counts.client_ids, request.run
    top = request.num_suspects or DEFAULT_SUSPECTS

    def job(on_progress: ProgressCallback) -> Suspects:
        if run is None:
            return suspects.rank_examples(data, ids, on_progress, top=top)
        return suspects_by_loss.rank_with_run(
            data, ids, run, on_progress, top=top, model=request.model
        )

    return run_job(
        "finding suspects",
        "clients",
        job,
        remarks=remarks,
        describe_stop=lambda: "stopped before the suspects were known",
    )


def _plot(population: Population, folder: Path, request: Request, remarks: Remarks) -> list[Path]:
    """Writes figures of the population and of the first inspected clients."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.inspection import figures

    def job(on_progress: ProgressCallback) -> list[Path]:
        return figures.write_figures(
            folder,
            population.data,
            population.counts.client_ids,
            population.compared,
            file_format=request.plot_format or "png",
            on_progress=on_progress,
        )

    return run_job(
        "drawing figures",
        "clients",
        job,
        remarks=remarks,
        describe_stop=lambda: "stopped; no figure was written",
    )
