"""`fedcli preprocess`: any common image data set as a fedcli store, and stores checked whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.settings.tables.formats import FORMATS
from fedcli.settings.tables.partitions import PARTITIONS
from fedcli.settings.vocabulary import HOLD_OUTS

if TYPE_CHECKING:
    from fedcli.cli.screen.output import Remarks
    from fedcli.datasets.preparation.writing import Prepared

SOURCE = "Source"
FILTERS = "Pixels and clients"
SPLITS = "Splits and partition"
# \b keeps click from wrapping what follows it.
HELP = """Make a fedcli store of SOURCE, a file or folder in any of these formats, told by content.

\b
{formats}

\b
Examples:
  fedcli preprocess train.h5 --test-data test.h5 --out emnist.h5
  fedcli preprocess mnist/ --out skewed.h5 --partition dirichlet-class --seed 7
  fedcli preprocess photos/ --out photos.h5 --size 32 --hold-out within
  fedcli preprocess --verify emnist.h5
""".format(formats="\n".join(f"  {name:<12}{row.doc}" for name, row in FORMATS.items()))


class Sides(click.ParamType["tuple[int, ...]"]):
    """Sides of an image with x between them: HxW or HxWxC."""

    def __init__(self, name: str, counts: tuple[int, ...]) -> None:
        """Takes how the help calls it and how many numbers there may be."""
        self.name = name
        self.counts = counts

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Returns the numbers; a single one, where that is allowed, is both sides."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(map(int, value.split("x"))) if re.fullmatch(r"\d+(x\d+)*", value) else ()
        if len(numbers) not in self.counts or 0 in numbers:
            self.fail(f"{value!r} is not of the form {self.name}.", param, ctx)
        return numbers * 2 if len(numbers) == 1 else numbers


@click.command(cls=opt.SectionCommand, help=HELP)
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, metavar="SOURCE...")
@opt.option(
    "--out",
    help="The store to write or replace.",
    section=SOURCE,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.option(
    "--verify",
    help="Check a store whole instead: read every byte, compare with its fingerprint.",
    section=SOURCE,
    type=click.Path(path_type=Path),
    metavar="STORE",
)
@opt.option(
    "--format",
    help="What SOURCE is. Default: recognised by its content.",
    section=SOURCE,
    type=click.Choice(tuple(FORMATS)),
)
@opt.option(
    "--test-data",
    help="A second source of the same kind: it becomes the test split; 'central', one pool, if "
    "clients stay as they are and nobody owns it.",
    section=SOURCE,
    type=click.Path(path_type=Path),
    metavar="PATH",
)
@opt.option(
    "--num-classes",
    help="Number of classes. Default: as the source says or shows.",
    section=SOURCE,
    type=int,
    metavar="N",
)
@opt.option("--label-column", help="CSV column, npz key of labels.", section=SOURCE, metavar="NAME")
@opt.option(
    "--id-column", help="CSV column, npz key of client ids.", section=SOURCE, metavar="NAME"
)
@opt.option(
    "--image-shape",
    help="Shape of images that lie flat in a row. Default: square and grey.",
    section=SOURCE,
    type=Sides("HxW or HxWxC", (2, 3)),
    metavar="HxW[xC]",
)
@opt.option(
    "--folders",
    help="What folders of images stand for. Default: as they are found.",
    section=SOURCE,
    type=click.Choice(["class", "client", "client/class"]),
)
@opt.option(
    "--color",
    help="What image files become. Default: as the first one is.",
    section=SOURCE,
    type=click.Choice(["grey", "rgb"]),
)
@opt.option(
    "--size",
    help="Bring every image to this size; its shape is kept, the rest is filled.",
    section=FILTERS,
    type=Sides("N or HxW", (1, 2)),
    metavar="N|HxW",
)
@opt.option(
    "--centre",
    help="Move the ink's centre of mass to the middle, as in MNIST.",
    section=FILTERS,
    is_flag=True,
)
@opt.option("--invert", help="Make 1 - x of every pixel x.", section=FILTERS, is_flag=True)
@opt.option("--digits-only", help="Keep labels 0 to 9 alone.", section=FILTERS, is_flag=True)
@opt.option(
    "--min-examples",
    help="Leave out clients with fewer train examples, counted before --hold-out within.  "
    "[default: 0; 1 with --hold-out central, 2 with --digits-only]",
    section=FILTERS,
    type=int,
    metavar="N",
)
@opt.option(
    "--hold-out",
    help="Make a test split: a share of each client, of the clients, or of all in one pool "
    "(stratified by label, split 'central'). Default: none but the source's own.",
    section=SPLITS,
    type=click.Choice(HOLD_OUTS),
)
@opt.option(
    "--hold-out-fraction",
    help="That share.  [default: 0.1]",
    section=SPLITS,
    type=float,
    metavar="X",
)
@opt.option(
    "--partition",
    help="Deal examples to clients anew: " + ", ".join(PARTITIONS) + ", or some joined by +; "
    "'fedcli info NAME' says what each does. Default: the source's own clients, iid if it has "
    "none.",
    section=SPLITS,
    metavar="NAME[+NAME]",
    type=opt.Name(lambda: PARTITIONS),
)
@opt.pairs_option(
    "--partition-option",
    "partition_options",
    help="Option of the partition, such as clients=100.",
    section=SPLITS,
)
@opt.option(
    "--seed",
    help="Seed of partition and hold-out: same seed, same bytes.  [default: 0]",
    section=SPLITS,
    type=int,
    metavar="N",
)
@opt.output_options
def preprocess(
    *,
    sources: tuple[Path, ...],
    out: Path | None,
    verify: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Makes a store, or checks one; `HELP` is what --help shows."""
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    options = opt.given({name: None if value is False else value for name, value in given.items()})
    if verify is not None:
        _refuse_beside_verify(sources, out, options)
        _verify(verify, remarks, as_json=as_json)
        return
    if "hold_out_fraction" in options and "hold_out" not in options:
        raise click.UsageError("--hold-out-fraction needs --hold-out", click.get_current_context())
    if not sources or out is None:
        missing = "SOURCE" if not sources else "--out FILE"
        raise click.UsageError(f"missing {missing}", click.get_current_context())
    prepared = _prepare(sources, out, options, remarks)
    for note in prepared.notes:
        remarks.note(note)
    from fedcli.cli.screen import preparation_tables

    preparation_tables.show(prepared, as_json=as_json)


def _refuse_beside_verify(
    sources: tuple[Path, ...], out: Path | None, options: dict[str, Any]
) -> None:
    others = [f"--{name.replace('_', '-')}" for name in options]
    others += ["--out"] * (out is not None) + ["SOURCE"] * bool(sources)
    if others:
        raise click.UsageError(
            f"--verify stands alone; leave out {others[0]}", click.get_current_context()
        )


def _prepare(
    sources: tuple[Path, ...], out: Path, options: dict[str, Any], remarks: Remarks
) -> Prepared:
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.preparation.prepare_options import PrepareOptions
    from fedcli.datasets.preparation.preparing import prepare

    prepare_options = PrepareOptions(**options)
    return run_job(
        f"preparing {out.name}",
        "examples",
        lambda tell: prepare(sources, out, prepare_options, tell),
        remarks=remarks,
    )


def _verify(path: Path, remarks: Remarks, *, as_json: bool) -> None:
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.sources import store

    fingerprint = run_job(
        f"checking {path.name}",
        "B",
        lambda tell: store.verify(path, tell),
        remarks=remarks,
        describe_stop=lambda: "stopped before all was read",
    )
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({"file": str(path), "fingerprint": fingerprint, "is_whole": True})
        return
    from fedcli.cli.screen.render import Screen

    Screen().line(f"{path} is whole: {fingerprint}")
