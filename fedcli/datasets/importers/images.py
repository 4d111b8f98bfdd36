"""Picture files that are labelled by their folders or by tables beside them.

`folder_meaning` interprets the folders, `picture_tables` interprets tables about pictures that are
in no class folder, and `picture_decoding` decodes the files with Pillow.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import (
    csv_files,
    folder_meaning,
    picture_mats,
    picture_tables,
    shared,
    split_names,
)
from fedcli.datasets.importers.folder_meaning import Meaning, Picture
from fedcli.datasets.importers.picture_decoding import Decoder
from fedcli.datasets.importers.picture_files import (
    DECODERS,
    SUFFIXES,
    looks_like_picture,
    walk,
)
from fedcli.datasets.importers.pillow import load_pillow
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.labels import name_key
from fedcli.datasets.table import TableWriter
from fedcli.errors import ConfigError, DataError, plural
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS, VALIDATION

_MAX_EXAMINED = 1000  # number of entries of a folder that `recognises` examines
Tables = Path | picture_tables.Table  # a text file, or the content of a MATLAB file


@dataclass(frozen=True)
class Labelled:
    """A picture file with its label.

    Attributes:
        path: The file.
        class_name: The name of its class.
        client_id: The client that owns it; None: it has no owner.
    """

    path: Path
    class_name: str
    client_id: str | None


@dataclass(frozen=True)
class LabelledSplits:
    """All pictures of a source.

    Attributes:
        splits: By split, train first.
        evidence: The evidence for each subject of a `SourceDescription`.
        overrides: For each subject, the option that overrides the decision.
        notes: A line for each kind of files that was left out.
    """

    splits: Mapping[str, Sequence[Labelled]]
    evidence: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def recognises(path: Path) -> bool:
    """Returns whether a folder has pictures among its first files, or a table names pictures."""
    if not path.is_dir():
        return picture_tables.looks_like_table(path)
    with suppress(DataError):  # `read` reports the error
        files = islice(walk(path), _MAX_EXAMINED)
        first = next(filter(looks_like_picture, files), None)
        return first is not None and not (first.parent == path and _is_beside_csv(path))
    return False


def _is_beside_csv(folder: Path) -> bool:
    """Whether all pictures lie directly in a folder beside CSV files of pixels, as at Kaggle."""
    files = list(islice(walk(folder), _MAX_EXAMINED))
    are_loose = all(each.parent == folder for each in files if looks_like_picture(each))
    return are_loose and any(map(csv_files.holds_pixels, files))


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the pictures of a folder.

    Classes are numbered in the order of their sorted names (numbers sort by value).

    Files that are pictures neither by content nor by name are left out and counted in a note.

    Args:
        sources: One folder, or the table that names pictures in its folder.
        options: `folders`, `splits`, `label_column`, `id_column`, `file_column`, `color`,
            `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of images read.

    Raises:
        ConfigError: Pillow is not installed, or an option is not allowed.
        DataError: The layout is unclear, or an image cannot be used; the message names the file.
        OSError: A file cannot be read, or the disk is full.
    """
    load_pillow("reading images")
    _check_sources(sources)
    labelled = find_pictures(sources[0], options)
    return read_pictures(labelled, sources[0], options, folder, on_progress)


def read_pictures(
    labelled: LabelledSplits,
    source: Path,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the pixels of pictures whose labels are known.

    The first image decides between grey and colour, unless `options.color` does. Transparent
    pictures are drawn on white, images are rotated as EXIF says, and 16-bit grey levels become
    float32. Of an animation the first frame is read.

    Args:
        labelled: The pictures.
        source: The folder or file that holds or names the pictures.
        options: `color`, `polarity`, `num_classes` and `fit` apply.
        folder: As `read`.
        on_progress: As `read`.

    Raises:
        ConfigError: As `read`.
        DataError: As `read`.
        OSError: As `read`.
    """
    pillow = load_pillow("reading images")
    names = {file.class_name for files in labelled.splits.values() for file in files}
    class_names = sorted(names, key=name_key)
    labels = {name: label for label, name in enumerate(class_names)}
    total = sum(map(len, labelled.splits.values()))
    decoder = Decoder(pillow, options.color, is_fitted=options.fit is not None)
    tables = {}
    done = 0
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about files that it can read
        for split, files in labelled.splits.items():
            title = str(source if len(labelled.splits) == 1 else source / split)
            writer = stack.enter_context(TableWriter(title, folder, fit=options.fit))
            for block, pixels in decoder.blocks(files):
                owners = [file.client_id for file in block if file.client_id is not None]
                writer.add(
                    pixels,
                    np.array([labels[file.class_name] for file in block], np.int64),
                    scale=1 / 255 if pixels.dtype == np.uint8 else 1.0,
                    offset=0.0,
                    owners=owners or None,
                    where=str(block[0].path),
                )
                done += len(block)
                on_progress(done, total)
            tables[split] = writer.table()
    convention, why = shared.polarity_of(tables)
    notes = list(labelled.notes)
    if decoder.num_transparent:
        notes.append(
            f"{decoder.num_transparent:,} pictures are transparent; they were drawn on white"
        )
    is_deep = any(table.pixels.dtype != np.uint8 for table in tables.values())
    return shared.imported(
        tables,
        options,
        source=str(source),
        pixel_convention=convention,
        class_names=class_names,
        notes=notes,
        pixel_range="0 to 65535" if is_deep else "0 to 255",
        evidence={
            "polarity": why,
            "range": "the files have 16 bits per pixel" if is_deep else "the files have 8 bits",
            "channels": "given by --color" if options.color else "the same as in the first file",
            "shape": "given by --size" if options.fit else "the same in all files",
            **labelled.evidence,
        },
        overrides={"splits": "--splits", "channels": "--color", **labelled.overrides},
    )


def _check_sources(sources: Sequence[Path]) -> None:
    if len(sources) != 1:
        raise ConfigError(
            f"{sources[-1]}: pictures are read from a single folder; give only that folder"
        )
    if not sources[0].is_dir() and not picture_tables.looks_like_table(sources[0]):
        raise ConfigError(
            f"{sources[0]}: pictures are read from a folder, or from a table of their file names; "
            "give one of these"
        )


# ---- Files and their labels ----------------------------------------------------------------------


def find_pictures(source: Path, options: ImportOptions) -> LabelledSplits:
    """Returns the pictures of a folder or table with their labels.

    Args:
        source: A folder, or a table of the pictures in its folder.
        options: As `read`.

    Raises:
        ConfigError: An option names a missing folder, file or column.
        DataError: The layout is unclear, or there are no pictures.
        OSError: A file cannot be read.
    """
    root = source if source.is_dir() else source.parent
    if source != root and (named := _named_files(source)):
        meaning = folder_meaning.read_splits(named, root, None, options.splits)
        return _by_tables(meaning, [source], root, options)
    listed = _list_files(root)
    pictures = listed.pictures
    if not pictures and source != root:
        raise DataError(
            f"{source}: none of the pictures that it names is in {root} or a folder below it; give "
            "the folder that holds both the table and the pictures"
        )
    if not pictures:
        raise DataError(
            f"{source}: no images in its folders ({', '.join(DECODERS)} are read); "
            "put them into one folder for each class"
        )
    if source != root:
        return _by_tables(Meaning({"train": pictures}), [source], root, options)
    if any((options.label_column, options.file_column, options.id_column)):
        kept = folder_meaning.without_masks(pictures)
        meaning = folder_meaning.read_splits(kept, root, options.folders, options.splits)
        return _by_tables(meaning, _useful_tables(listed, meaning, root), root, options)
    meaning = folder_meaning.read_folders(pictures, root, options.folders, options.splits)
    if options.folders is None and _lacks_class_folders(meaning):
        useful = _useful_tables(listed, meaning, root)
        if useful:
            return _by_tables(meaning, useful, root, options)
    return _by_class_folders(meaning, listed, root, options)


def _by_class_folders(
    meaning: Meaning, listed: _Listed, root: Path, options: ImportOptions
) -> LabelledSplits:
    """Returns the pictures labelled by their folders.

    A held-out split without class folders is labelled by tables.
    """
    tables = listed.tables
    meaning, flat, notes = _without_unlabelled(meaning, tables, root, options.folders)
    if options.splits is None:
        _rename_alone(meaning, flat)
    notes += _notes_of_empty(root, listed.pictures, options)
    if listed.others:
        notes += (_about_others(listed.others, root),)
    labelled = _by_folders(meaning, root, options.folders)
    if flat:
        known = {each.class_name for files in labelled.splits.values() for each in files}
        by_table = _by_tables(
            replace(meaning, splits=flat, notes=[]), tables, root, options, sorted(known)
        )
        labelled = _join(labelled, by_table)
    if tables and options.folders is None:
        paths = [each.path for files in labelled.splits.values() for each in files]
        rows = picture_tables.match_pictures(tables, paths, root, None, meaning.folders)
        _check_tables_agree(labelled, rows, root)
        if options.splits is None and len(labelled.splits) == 1:
            labelled = _split_by_lists(labelled, rows)
    if options.folders is None:
        folder_meaning.refuse_parts(meaning, root)
    return replace(labelled, notes=(*notes, *labelled.notes))


def _about_others(others: Sequence[Path], root: Path) -> str:
    """A note on files that are not pictures, with the name of the first."""
    first = min(others).relative_to(root)
    if len(others) == 1:
        return f"1 file that is not an image was left out: {first}"
    return f"{plural(len(others), 'file')} that are not images were left out, for example {first}"


def _named_files(table: Path) -> list[Picture]:
    """Returns the pictures that a table names by paths relative to its folder, without a search.

    Pictures outside that folder are not used.
    """
    root = table.parent
    fields = dict.fromkeys(
        text.replace("\\", "/") for _, row in picture_tables.read_table(table).rows for text in row
    )
    names = [
        PurePosixPath(text) for text in fields if PurePosixPath(text).suffix.lower() in SUFFIXES
    ]
    inside = [name for name in names if not name.is_absolute() and ".." not in name.parts]
    paths = [root.joinpath(*name.parts) for name in inside]
    home = root.resolve()
    return [
        Picture(path, path.relative_to(root).parts[:-1])
        for path in paths
        if path.is_file() and path.resolve().is_relative_to(home)
    ]


@dataclass(frozen=True)
class _Listed:
    """The files below a folder.

    Attributes:
        pictures: Files that are pictures by content or by name.
        tables: Text files that may hold labels of the pictures.
        mats: MATLAB files that may hold labels of the pictures.
        others: Files that are not pictures, including the tables.
    """

    pictures: list[Picture]
    tables: list[Path]
    mats: list[Path]
    others: list[Path]


def _list_files(root: Path) -> _Listed:
    pictures, others = [], []
    for path in walk(root):
        if looks_like_picture(path) or path.suffix.lower() in SUFFIXES:
            pictures.append(Picture(path, path.relative_to(root).parts[:-1]))
        else:
            others.append(path)
    return _Listed(
        pictures, picture_tables.tables_among(others), picture_mats.files_among(others), others
    )


def _useful_tables(listed: _Listed, meaning: Meaning, root: Path) -> list[Tables]:
    """Returns the usable text tables; if none names a picture, also tables of MATLAB files."""
    if not listed.mats and all(map(picture_tables.is_certainly_table, listed.tables)):
        return [*listed.tables]
    paths = [each.path for inside in meaning.splits.values() for each in inside]
    rows = picture_tables.match_pictures(listed.tables, paths, root, None, meaning.folders)
    tables: list[Tables] = [
        each
        for each in listed.tables
        if each in rows.named or picture_tables.is_certainly_table(each)
    ]
    if rows.tables or not listed.mats:
        return tables
    return [*tables, *picture_mats.read_tables(listed.mats, paths)]


def _lacks_class_folders(meaning: Meaning) -> bool:
    """Whether the train split has no class folders: no folders, or one with all pictures."""
    names = {picture.dirs for picture in meaning.splits.get("train", ())}
    return len(names) == 1 and len(next(iter(names))) <= 1


def _without_unlabelled(
    meaning: Meaning, tables: Sequence[Tables], root: Path, folders: str | None
) -> tuple[Meaning, dict[str, list[Picture]], tuple[str, ...]]:
    """Returns the splits with class folders, the splits that tables may label, and notes.

    Held-out pictures that neither a class folder nor a table labels, as in competitions, are left
    out.
    """
    notes = list(meaning.notes)
    flat: dict[str, list[Picture]] = {}
    kept: dict[str, list[Picture]] = {}
    for split, pictures in meaning.splits.items():
        is_named = folders == "name" and all(
            folder_meaning.class_in_name(each.path) for each in pictures
        )
        if split == "train" or is_named or any(each.dirs for each in pictures):
            kept[split] = pictures
            continue
        rows = picture_tables.match_pictures(
            tables, [each.path for each in pictures], root, None, meaning.folders
        )
        if rows.tables:
            flat[split] = pictures
        else:
            notes.append(
                f"split {split} was left out: its {len(pictures):,} pictures are in no folder of "
                "a class, and no table has their labels"
            )
    return replace(meaning, splits=kept), flat, tuple(notes)


def _rename_alone(meaning: Meaning, flat: dict[str, list[Picture]]) -> None:
    """Makes the validation split the test split if the test pictures have no labels."""
    if "test" in meaning.splits or "test" in flat:
        return
    for splits in (meaning.splits, flat):
        if VALIDATION in splits:
            splits["test"] = splits.pop(VALIDATION)
            meaning.evidence["splits"] += (
                "; validation is the only held-out split with labels, so it is the test split"
            )


def _notes_of_empty(
    root: Path, pictures: Sequence[Picture], options: ImportOptions
) -> tuple[str, ...]:
    """Returns a line for each folder with a split's name but without pictures."""
    if options.splits is not None:
        return ()
    names = {each.dirs[0] for each in pictures if each.dirs}
    return tuple(
        f"folder {each.name} holds no pictures, so there is no such split"
        for each in sorted(root.iterdir())
        if each.is_dir() and each.name not in names and split_names.kind_of(each.name)
    )


def _by_folders(meaning: Meaning, root: Path, folders: str | None) -> LabelledSplits:
    """Returns the pictures labelled by their folders."""
    depth = folder_meaning.check_depths(meaning, root, folders)
    splits = {
        split: [_describe(each, folders) for each in pictures]
        for split, pictures in meaning.splits.items()
    }
    generic = ", ".join(sorted(meaning.generic))
    plain = f" (folders {generic} have generic names)" if generic else ""
    of_class = f"the names of folders{plain}"
    owners = "each folder is a class, none is a client"
    if depth == 2:
        owners = "the names of the folders above those of classes"
    elif folders == "client":
        of_class, owners = "file names up to the first _ or -", "the names of folders"
    elif folders == "name":
        of_class, owners = "file names up to the number at their end", "no folder is a client"
    evidence = {"classes": of_class, "owners": owners, **meaning.evidence}
    return LabelledSplits(splits, evidence, {"owners": "--folders", "classes": "--folders"})


def _describe(picture: Picture, folders: str | None) -> Labelled:
    path, dirs = picture.path, picture.dirs
    if folders == "name":
        class_name = folder_meaning.class_in_name(path)
        if class_name is None:
            raise DataError(
                f"{path}: --folders name takes the class from the name up to the number at its "
                "end, and there is none; rename it, as in cat_001.png"
            )
        return Labelled(path, shared.check_class_name(class_name, str(path)), None)
    if len(dirs) == 2:
        class_name = shared.check_class_name(dirs[1], str(path.parent))
        return Labelled(path, class_name, shared.check_id(dirs[0], str(path.parent.parent)))
    if folders != "client":
        return Labelled(path, shared.check_class_name(dirs[0], str(path.parent)), None)
    name = path.name
    ends = [place for place in (name.find("_"), name.find("-")) if place > 0]
    if not ends:
        raise DataError(
            f"{path}: --folders client takes the class from the name up to its first '_' or '-', "
            "and there is none; rename it, as in cat_001.png"
        )
    class_name = shared.check_class_name(name[: min(ends)], str(path))
    return Labelled(path, class_name, shared.check_id(dirs[0], str(path.parent)))


def _split_by_lists(labelled: LabelledSplits, rows: picture_tables.Rows) -> LabelledSplits:
    """Divides labelled pictures into splits, by tables that are named after splits."""
    (pictures,) = labelled.splits.values()
    of_list = picture_tables.splits_by_lists(rows, len(pictures))
    if not of_list:
        return labelled
    splits = {
        split: [each for each in pictures if of_list.get(each.path) == split] for split in SPLITS
    }
    num_without = sum(each.path not in of_list for each in pictures)
    notes = [_unlisted_note(num_without)] if num_without else []
    return replace(
        labelled,
        splits={split: files for split, files in splits.items() if files},
        evidence={**labelled.evidence, "splits": _why_lists(rows)},
        notes=(*labelled.notes, *notes),
    )


def _why_lists(rows: picture_tables.Rows) -> str:
    names = [each.path.name for each in rows.tables if split_names.kind_of(each.path.stem)]
    return f"the tables {picture_tables.listed(names)} name the pictures of each"


def _unlisted_note(count: int) -> str:
    return (
        f"{count:,} pictures were left out, because no table of a split names them; --splits none "
        "keeps all pictures"
    )


# ---- Pictures that a table describes -------------------------------------------------------------


def _by_tables(
    meaning: Meaning,
    tables: Sequence[Tables],
    root: Path,
    options: ImportOptions,
    known: Sequence[str] = (),
) -> LabelledSplits:
    """The pictures of some splits labelled by tables; `known` are the classes of folders."""
    splits = meaning.splits
    pictures = [each for inside in splits.values() for each in inside]
    rows = picture_tables.match_pictures(
        tables, [each.path for each in pictures], root, options.file_column, meaning.folders
    )
    if not rows.tables:
        first = picture_tables.path_of(tables[0]) if tables else root
        raise DataError(
            f"{first}: none of the {len(pictures):,} pictures in {root} is named in a table; give "
            "a CSV file with a column of file names, relative to the CSV file's folder, and a "
            "column of labels"
        )
    where = ", ".join(each.path.name for each in rows.tables)
    owner = picture_tables.find_column(
        rows, picture_tables.OWNER_COLUMNS, options.id_column, "--id-column", where
    )
    split_column = picture_tables.find_column(
        rows, picture_tables.SPLIT_COLUMNS, None, "--splits", where
    )
    is_split = options.splits is not None or len(splits) > 1
    of_value = {} if is_split else picture_tables.splits_of(rows, split_column)
    split_column = split_column if of_value else None
    is_split = is_split or bool(of_value)
    of_list = {} if is_split else picture_tables.splits_by_lists(rows, len(pictures))
    label, why = picture_tables.find_labels(
        rows, options.label_column, (owner, split_column), known, where
    )
    by_split: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    num_without = num_unlisted = 0
    for split, inside in splits.items():
        for each in inside:
            fields = rows.fields.get(each.path, {})
            if label not in fields:
                num_without += 1
                continue
            of_row = of_value.get(fields[split_column][0], split) if split_column else split
            if of_list and each.path not in of_list:
                num_unlisted += 1
                continue
            of_row = of_list.get(each.path, of_row)
            by_split[of_row].append(_from_row(each.path, fields, label, owner, known))
    labelled = {split: files for split, files in by_split.items() if files}
    evidence = {
        "classes": why,
        "owners": f"column {owner} of {where}" if owner else f"no column of owners in {where}",
    }
    if split_column:
        evidence["splits"] = f"column {split_column} of {where}"
    elif of_list:
        evidence["splits"] = _why_lists(rows)
    elif len(labelled) > 1:
        evidence["splits"] = meaning.evidence.get("splits", "by the names of folders")
    unused = [name for name in rows.columns if name not in (label, owner, split_column)]
    if label not in rows.columns:  # the name was made from one-hot columns
        unused = []
    return LabelledSplits(
        labelled,
        evidence,
        {"classes": "--label-column", "owners": "--id-column"},
        (
            *meaning.notes,
            *([_unlisted_note(num_unlisted)] if num_unlisted else []),
            *_table_notes(num_without, rows.num_unknown, unused, where),
        ),
    )


def _check_tables_agree(labelled: LabelledSplits, rows: picture_tables.Rows, root: Path) -> None:
    """Refuses class folders that disagree with a table's column of labels.

    Raises:
        DataError: A table names at least half of the pictures, and it has several labels for
            the pictures of one folder, or the same label for several folders.
    """
    pictures = [each for files in labelled.splits.values() for each in files]
    paths = [each.path for each in pictures]
    where = ", ".join(each.path.name for each in rows.tables)
    label = picture_tables.find_column(
        rows, picture_tables.LABEL_COLUMNS, None, "--label-column", where
    )
    if label is None:
        return
    pairs = {
        (each.class_name, rows.fields[each.path][label][0])
        for each in pictures
        if label in rows.fields.get(each.path, {})
    }
    num_named = sum(label in rows.fields.get(path, {}) for path in paths)
    num_labels = len({text for _, text in pairs})
    if 2 * num_named >= len(paths) and not len(pairs) == num_labels == len(dict(pairs)):
        raise DataError(
            f"{root}: folders name {len(dict(pairs)):,} classes, but column {label} of {where} "
            f"names {num_labels:,} other classes; choose --label-column {label} if the table is "
            "right, or --folders class or client/class if the folders are right"
        )


def _from_row(
    path: Path,
    fields: Mapping[str, tuple[str, str]],
    label: str,
    owner: str | None,
    known: Sequence[str],
) -> Labelled:
    text, where = fields[label]
    class_name = shared.check_class_name(picture_tables.class_text(text, where), where)
    if known:
        plain = picture_tables.known_text(text, known)
        name = plain if plain in known else class_name
        class_name = picture_tables.known_class(name, known, where)
    if owner is None:
        return Labelled(path, class_name, None)
    client_id, where = fields.get(owner, ("", where))
    return Labelled(path, class_name, shared.check_id(client_id, where))


def _table_notes(
    num_without: int, num_unknown: int, unused: Sequence[str], where: str
) -> tuple[str, ...]:
    notes = []
    if num_without:
        notes.append(f"{num_without:,} pictures that {where} does not name were left out")
    if num_unknown:
        notes.append(f"{num_unknown:,} rows of {where} name no existing picture")
    if unused:
        notes.append(f"columns of {where} that are not used: {picture_tables.listed(unused)}")
    return tuple(notes)


def _join(labelled: LabelledSplits, others: LabelledSplits) -> LabelledSplits:
    """Joins splits labelled by folders with splits labelled by tables."""
    names = [split for split in SPLITS if split in labelled.splits or split in others.splits]
    splits = {split: labelled.splits.get(split) or others.splits[split] for split in names}
    classes = (
        f"{labelled.evidence['classes']}; {', '.join(others.splits)}: {others.evidence['classes']}"
    )
    return LabelledSplits(
        splits,
        {**labelled.evidence, "classes": classes},
        labelled.overrides,
        (*labelled.notes, *others.notes),
    )
