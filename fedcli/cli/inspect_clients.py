"""`fedcli inspect-clients`: who the clients are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.config import RunConfig
from fedcli.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.datasets.client_data import ClientData
    from fedcli.statistics import SplitCounts

DEFAULT_TOP = 10


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
    help="Order of that table; by size: largest first.",
    section=opt.PICTURES,
    type=click.Choice(["id", "size"]),
    default="id",
    show_default=True,
)
@opt.option(
    "--show",
    "shown_ids",
    help="Draw this client: label counts and example digits; repeatable.",
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
@opt.output_options
def inspect_clients(
    *,
    clients: str | None,
    split: str | None,
    quick: bool,
    top: int,
    sort: str,
    shown_ids: tuple[str, ...],
    num_examples: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **data: Any,
) -> None:
    """Show who the clients are: how many, how large, which labels, what their digits look like.

    Every pixel and label is checked on the way, unless --quick.

    \b
    Examples:
      fedcli inspect-clients
      fedcli inspect-clients --data train.h5 --sort size --top 20
      fedcli inspect-clients --data train.h5 --clients w0000,w0001,w0002
      fedcli inspect-clients --show s0000003 --examples 40
    """  # noqa: D301 - \b keeps click from wrapping
    from fedcli.cli import client_tables

    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    splits = _open(opt.given(data), split)
    populations = _select(splits, clients)
    counts = [_count(splits[name], ids, quick=quick) for name, ids in populations.items()]
    remarks.detail(f"counted {sum(each.num_examples for each in counts):,} examples")
    if as_json:
        from fedcli.cli.output import print_json

        print_json(client_tables.population_json(splits, counts))
        return
    view = client_tables.View(top, sort == "size", num_examples)
    main = next(iter(splits.values()))
    if shown_ids:
        client_tables.show_clients(main, shown_ids, view)
    else:
        client_tables.show_population(splits, counts, view, is_chosen=clients is not None)


def _open(data: Mapping[str, Any], split: str | None) -> dict[str, ClientData]:
    """The splits to look at."""
    from fedcli import datasets

    splits = datasets.open_splits(**{"data": RunConfig.data, **data})
    if split is None:
        return splits
    if split not in splits:
        source = next(iter(splits.values())).source
        raise ConfigError(f"--split {split}: {source} has {', '.join(splits)}; choose one of them")
    return {split: splits[split]}


def _select(splits: Mapping[str, ClientData], clients: str | None) -> dict[str, Sequence[str]]:
    """The ids to look at in each split; an id has to be in one split at least."""
    from fedcli import cohort

    selection = cohort.parse_clients(clients if clients is not None else "all")
    first, *others = splits
    ids = cohort.resolve_ids(selection, splits[first].client_ids, splits[first].source)
    selected: dict[str, Sequence[str]] = {first: ids}
    for name in others:
        population = splits[name].client_ids
        is_all = selection.ids is None and selection.count is None
        selected[name] = (
            population if is_all else [each for each in ids if cohort.contains(population, each)]
        )
    return selected


def _count(data: ClientData, ids: Sequence[str], *, quick: bool) -> SplitCounts:
    from fedcli.statistics import count_labels

    def labelled() -> Iterator[tuple[str, NDArray[np.int32]]]:
        for client_id in ids:
            yield client_id, data.labels(client_id) if quick else data.client(client_id).labels

    return count_labels(data.split, labelled(), data.num_classes)
