"""`fedcli preprocess`: converts image data sets to fedcli stores, and verifies stores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcli.cli import options as opt
from fedcli.errors import ConfigError
from fedcli.settings.tables.formats import FORMATS
from fedcli.settings.tables.partitions import PARTITIONS
from fedcli.settings.vocabulary import (
    COLORS,
    HOLD_OUTS,
    PIXEL_CONVENTIONS,
    PIXEL_RANGES,
    SPLITS,
    VALIDATION,
)

if TYPE_CHECKING:
    from fedcli.cli.screen.output import Remarks
    from fedcli.datasets.preparation.writing import Prepared

SOURCE = "Source"
FILTERS = "Pixels and clients"
PARTITION = "Splits and partition"
# \b keeps click from wrapping what follows it.
HELP = """Make a fedcli store of SOURCE, a file or folder in one of these formats, which is
recognised by its content.

\b
{formats}

\b
Examples:
  fedcli preprocess train.h5 --test-data test.h5 --out emnist.h5
  fedcli preprocess mnist/ --out skewed.h5 --partition dirichlet-class --seed 7
  fedcli preprocess photos/ --out photos.h5 --size 32 --hold-out within
  fedcli preprocess photos/ --dry-run
  fedcli preprocess --verify emnist.h5
""".format(formats="\n".join(f"  {name:<14}{row.doc}" for name, row in FORMATS.items()))


class Sides(click.ParamType["tuple[int, ...]"]):
    """Sides of an image with x between them: HxW or HxWxC."""

    def __init__(self, name: str, counts: tuple[int, ...]) -> None:
        """Takes the name for the help text, and the allowed numbers of sides."""
        self.name = name
        self.counts = counts

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Returns the numbers. A single number, if that is allowed, stands for both sides."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(map(int, value.split("x"))) if re.fullmatch(r"\d+(x\d+)*", value) else ()
        if len(numbers) not in self.counts or 0 in numbers:
            self.fail(f"{value!r} is not of the form {self.name}.", param, ctx)
        return numbers * 2 if len(numbers) == 1 else numbers


class SplitNames(click.ParamType["dict[str, str]"]):
    """Names of folders or files by split: train=NAME,test=NAME, or none."""

    name = "none|SPLIT=NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Returns the name of each split; {} for `none`."""
        if isinstance(value, dict):
            return value
        if value == "none":
            return {}
        pairs = [each.partition("=") for each in value.split(",")]
        splits = {split.strip(): name.strip() for split, _, name in pairs}
        if not all(splits.values()) or len(splits) < len(pairs) or not set(splits) <= set(SPLITS):
            self.fail(
                f"{value!r} is not of the form {self.name} with {', '.join(SPLITS)}.", param, ctx
            )
        return splits


class HoldOut(click.ParamType["tuple[str | None, str, float | None]"]):
    """A hold-out: [SPLIT=]KIND[:SHARE], with the kind within, clients or central."""

    name = f"[SPLIT=]{'|'.join(HOLD_OUTS)}[:X]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, str, float | None]:
        """Returns split, kind and share; None stands for a part that is not given."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(?:(\w+)=)?([\w-]+)(?::([0-9.eE+-]+))?", value)
        split, kind, share = match.groups() if match else (None, "", None)
        try:
            fraction = None if share is None else float(share)
        except ValueError:
            kind = ""
        if kind not in HOLD_OUTS or split not in (None, "test", VALIDATION):
            self.fail(
                f"{value!r} is not one of {', '.join(HOLD_OUTS)}, with test= or {VALIDATION}= "
                f"before it or :X behind it, as in {VALIDATION}=within:0.1.",
                param,
                ctx,
            )
        return split, kind, fraction


@click.command(cls=opt.SectionCommand, help=HELP)
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, metavar="SOURCE...")
@opt.option(
    "--out",
    help="The store to write or replace.",
    section=SOURCE,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.option(
    "--verify",
    help="Check a store instead of making one: read every byte and compare with its fingerprint.",
    section=SOURCE,
    type=click.Path(path_type=Path),
    metavar="STORE",
)
@opt.option(
    "--format",
    help="Format of SOURCE. Default: recognised by its content.",
    section=SOURCE,
    type=click.Choice(tuple(FORMATS)),
)
@opt.option(
    "--test-data",
    help="A second source, of the same format, for the test split. If it names no owners and the "
    "train clients are kept, it becomes the pooled split 'central'.",
    section=SOURCE,
    type=click.Path(path_type=Path),
    metavar="PATH",
)
@opt.option(
    "--num-classes",
    help="Number of classes. Default: as SOURCE states, else its largest label plus one.",
    section=SOURCE,
    type=int,
    metavar="N",
)
@opt.option(
    "--dry-run",
    help="Print how SOURCE is interpreted, and on what evidence. Nothing is written.",
    section=SOURCE,
    is_flag=True,
)
@opt.option(
    "--label-column",
    help="Column of the labels in a table, or their key in an npz. Default: recognised by name or "
    "content.",
    section=SOURCE,
    metavar="NAME",
)
@opt.option(
    "--id-column",
    help="Column or key of the client ids. Default: recognised by name.",
    section=SOURCE,
    metavar="NAME",
)
@opt.option(
    "--file-column",
    help="Column of the file names in a table of pictures. Default: recognised by content.",
    section=SOURCE,
    metavar="NAME",
)
@opt.option(
    "--splits",
    help="The folder or file of each split, such as train=Training,test=Testing. none: folders "
    "and files are not splits. Default: by their names.",
    section=SOURCE,
    type=SplitNames(),
)
@opt.option(
    "--image-shape",
    help="Shape of images that are stored as flat rows. Default: square and grey.",
    section=SOURCE,
    type=Sides("HxW or HxWxC", (2, 3)),
    metavar="HxW[xC]",
)
@opt.option(
    "--folders",
    help="Meaning of the folders of images: classes, clients, or clients with a folder for each "
    "class. name: folders mean nothing, because file names state the classes. Default: recognised.",
    section=SOURCE,
    type=click.Choice(["class", "client", "client/class", "name"]),
)
@opt.option(
    "--color",
    help="Convert image files to grey or RGB. Default: as the first file is.",
    section=SOURCE,
    type=click.Choice(COLORS),
)
@opt.option(
    "--pixel-range",
    help="Range of the pixel values in arrays and tables. Default: derived from the largest value.",
    section=SOURCE,
    type=click.Choice(PIXEL_RANGES),
)
@opt.option(
    "--polarity",
    help="Meaning of the pixel value 1.0 in SOURCE. Default: derived from its format or its "
    "pixels.",
    section=SOURCE,
    type=click.Choice(PIXEL_CONVENTIONS),
)
@opt.option(
    "--size",
    help="Scale every image to this size. Proportions are kept, and the rest is filled.",
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
@opt.option("--invert", help="Replace every pixel x by 1 - x.", section=FILTERS, is_flag=True)
@opt.option("--digits-only", help="Keep only the labels 0 to 9.", section=FILTERS, is_flag=True)
@opt.option(
    "--min-examples",
    help="Leave out clients with fewer than N train examples, counted before --hold-out within.  "
    "[default: 0; at least 1 with --hold-out central, at least 2 with --digits-only]",
    section=FILTERS,
    type=int,
    metavar="N",
)
@opt.option(
    "--hold-out",
    help="Make a test split or, if SOURCE has one, a validation split. within: a share of each "
    "client's examples. clients: a share of the clients. central: a share of all examples as "
    "one pool, stratified by label. validation= or test= before the word names the split, "
    "and :X after it sets the share, as in validation=within:0.1. Default: only the splits "
    "of SOURCE.",
    section=PARTITION,
    type=HoldOut(),
)
@opt.option(
    "--hold-out-fraction",
    help="The share that --hold-out takes.  [default: 0.1]",
    section=PARTITION,
    type=float,
    metavar="X",
)
@opt.option(
    "--partition",
    help="Divide the examples among clients anew: " + ", ".join(PARTITIONS) + ", or several names "
    "joined by +. fedcli info NAME describes each. Default: the clients of SOURCE, or iid if "
    "SOURCE names no clients.",
    section=PARTITION,
    metavar="NAME[+NAME]",
    type=opt.Name(lambda: PARTITIONS),
)
@opt.pairs_option(
    "--partition-option",
    "partition_options",
    help="Option of the partition, such as clients=100. If SOURCE names no owners and --partition "
    "is not given, the partition is iid.",
    section=PARTITION,
)
@opt.option(
    "--seed",
    help="Seed of partition and hold-out. The same seed gives the same bytes.  [default: 0]",
    section=PARTITION,
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
    dry_run: bool,
    splits: dict[str, str] | None,
    **given: Any,
) -> None:
    """Makes or verifies a store. `HELP` is the text of --help."""
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    options = opt.given({name: None if value is False else value for name, value in given.items()})
    if splits is not None:
        options["splits"] = splits
    if verify is not None:
        _refuse_beside_verify(sources, out, options)
        _verify(verify, remarks, as_json=as_json)
        return
    _spell_out_hold_out(options)
    _refuse_named_datasets(sources)
    if dry_run and sources:
        _look(sources, options, remarks, as_json=as_json)
        return
    if not sources or out is None:
        missing = "SOURCE" if not sources else "--out FILE"
        raise click.UsageError(f"missing {missing}", click.get_current_context())
    has_replaced = out.is_file()
    prepared = _prepare(sources, out, options, remarks)
    for line in prepared.description.lines():
        remarks.note(line)
    opt.note_links(remarks, out)
    for note in prepared.notes:
        remarks.note(note)
    from fedcli.cli.screen import preparation_tables

    preparation_tables.show(prepared, has_replaced=has_replaced, as_json=as_json)


def _refuse_named_datasets(sources: tuple[Path, ...]) -> None:
    """Raises ConfigError for the name of a dataset, which needs no preparation."""
    from fedcli.settings import tables

    for name in map(str, sources):
        if name not in tables.DATASETS or Path(name).exists():
            continue
        fetch = "" if name in tables.EMBEDDED_DATASETS else f"fedcli download {name}, then "
        raise ConfigError(
            f"SOURCE {name} is a dataset that is used by its name, not a file or folder; run "
            f"{fetch}fedcli train --data {name} (--partition divides its examples anew)"
        )


def _spell_out_hold_out(options: dict[str, Any]) -> None:
    """Splits the value of --hold-out into options of `PrepareOptions`: kind, split and share."""
    given = options.pop("hold_out", None)
    if given is None:
        if "hold_out_fraction" in options:
            raise click.UsageError(
                "--hold-out-fraction needs --hold-out", click.get_current_context()
            )
        return
    split, options["hold_out"], fraction = given
    if split is not None:
        options["hold_out_split"] = split
    if fraction is not None:
        if "hold_out_fraction" in options:
            raise click.UsageError(
                "--hold-out-fraction and the share in --hold-out contradict each other",
                click.get_current_context(),
            )
        options["hold_out_fraction"] = fraction


def _look(
    sources: tuple[Path, ...], options: dict[str, Any], remarks: Remarks, *, as_json: bool
) -> None:
    """Prints how sources would be interpreted."""
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.cli.screen import preparation_tables
    from fedcli.datasets.preparation.prepare_options import PrepareOptions
    from fedcli.datasets.preparation.preparing import interpret

    prepare_options = PrepareOptions(**options)
    interpretation = run_job(
        f"reading {sources[0].name}",
        "examples",
        lambda on_progress: interpret(sources, prepare_options, on_progress),
        remarks=remarks,
    )
    for note in interpretation.notes:
        remarks.note(note)
    preparation_tables.show_interpretation(interpretation, as_json=as_json)


def _refuse_beside_verify(
    sources: tuple[Path, ...], out: Path | None, options: dict[str, Any]
) -> None:
    others = [f"--{name.replace('_', '-')}" for name in options]
    others += ["--out"] * (out is not None) + ["SOURCE"] * bool(sources)
    if others:
        raise click.UsageError(
            f"--verify cannot be combined with other options; leave out {others[0]}",
            click.get_current_context(),
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
        lambda on_progress: prepare(sources, out, prepare_options, on_progress),
        remarks=remarks,
    )


def _verify(path: Path, remarks: Remarks, *, as_json: bool) -> None:
    from fedcli.cli.jobs.long_job import run_job
    from fedcli.datasets.sources import store

    fingerprint = run_job(
        f"checking {path.name}",
        "B",
        lambda on_progress: store.verify(path, on_progress),
        remarks=remarks,
        describe_stop=lambda: "stopped before everything was read",
    )
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json({"file": str(path), "fingerprint": fingerprint, "is_whole": True})
        return
    from fedcli.cli.screen.render import Screen

    Screen().line(f"{path} is intact: {fingerprint}")
