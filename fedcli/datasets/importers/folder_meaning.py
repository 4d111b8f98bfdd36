"""The meaning of folders of pictures: splits, clients and classes, from their names and depth.

    read_folders(pictures, root, folders, splits) -> Meaning

The input is the list of folders above each picture, from the root down. Some folders are removed:

1. outer folders that hold everything (such as the top folder of an archive);
2. folders that name splits, at any depth (see `split_names`); they give the split;
3. folders with a generic name ("images"), and folders that repeat the name of their parent.

If one folder remains, it is the class, or the client with `--folders client`. Two folders are
client and class. If none remains, labels come from a table, or with `--folders name` from the file
names. If two interpretations are equally plausible, the error names the options that choose one.
Omniglot names a file NUMBER_DRAWER: one number for each drawn character, and one for its drawer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import split_names
from fedcli.datasets.importers.picture_files import too_deep
from fedcli.errors import ConfigError, DataError
from fedcli.settings.vocabulary import SPLITS

LAYOUTS = {
    "class": "one folder per class",
    "client": "one folder per client",
    "client/class": "one folder per client, and in it one folder per class",
    "name": "one folder; the names of the files begin with the class",
}
# Generic names of folders with pictures, and names of sibling folders with masks and the like.
_GENERIC = re.compile(
    r"(?:(?:all|raw|original|cropped|resized|aligned|color|colour|rgb|jpe?g)[-_ ]?)?"
    r"(?:images?|imgs?|pictures?|pics?|photos?|frames?|faces?|crops?|samples?|data|dataset|raw|"
    r"jpe?gs?|pngs?|ppms?|bmps?|jpegimages|rgb)(?:[-_ ]?\d+(?:x\d+)?)?",
    re.IGNORECASE,
)
_MASKS = re.compile(
    r"(?:annotations?|masks?|labels?|segmentations?|thumb(?:nail)?s?|depth|bbox(?:es)?|"
    r"heatmaps?|previews?)",
    re.IGNORECASE,
)
# Folders for versions of the same pictures: PlantVillage has every leaf in three versions.
_RENDERINGS = re.compile(
    r"(?:colou?r|rgb|gr[ae]y(?:scale)?|bw|segmented|masked|augmented|original|raw|processed|"
    r"resized|cropped|enhanced|denoised|noisy)(?:[-_ ]?(?:images?|imgs?|pictures?|data|version))?",
    re.IGNORECASE,
)
_CLIENTS = re.compile(
    r"(?:clients?|users?|writers?|workers?|part(?:y|ies)|sites?|devices?|nodes?|silos?|hospitals?)"
    r"[-_ ]?\d+",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"(?:.*[-_ ])?(?:part|batch|chunk|shard|images?|imgs?|pictures?|vol(?:ume)?|archive)[-_ ]?\d+",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(.*?[^\W\d_])[-_. ]*\(?\d+\)?")  # a class, then a number: cat.0, beagle_12
_MOST_NAMED = 1000  # largest number of classes
_SHOWN = 5  # names in a message
_DRAWN = re.compile(r"([0-9]{4})_([0-9]{2})")  # Omniglot's: number of the character, drawer
_DRAWN_DEPTH = 2  # folders above a picture: alphabet and character
_UNLABELLED = re.compile(r".*(?:pred(?:ict(?:ion)?s?)?|unlabell?ed|unsup)", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: Its path.
        dirs: The folders above it that have not been interpreted yet, from the root down.
    """

    path: Path
    dirs: tuple[str, ...]


@dataclass
class Meaning:
    """The meaning of the folders of a source.

    Attributes:
        splits: The pictures of each split; `dirs` of each is (), (class or client,) or
            (client, class).
        evidence: The evidence for each subject of a `SourceDescription`.
        notes: A line for each kind of pictures that was left out.
        generic: The names of folders that are generic, such as "images".
        folders: All folders that directly hold pictures.
    """

    splits: dict[str, list[Picture]]
    evidence: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    generic: set[str] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)


def read_folders(
    pictures: Sequence[Picture],
    root: Path,
    folders: str | None,
    splits: Mapping[str, str] | None,
) -> Meaning:
    """Returns the meaning of the folders of pictures.

    Args:
        pictures: The pictures with all folders below the root, in the order of reading.
        root: The folder that is the source.
        folders: The value of --folders, a key of LAYOUTS; None: inferred.
        splits: The value of --splits, the folder of each split; empty: no folder is a split; None:
            inferred.

    Raises:
        ConfigError: `splits` names a folder that does not exist.
        DataError: Two interpretations are plausible, or folders are nested too deeply.
    """
    if folders is None and not splits:
        drawn = Meaning({"train": list(pictures)}, folders={each.path.parent for each in pictures})
        if _take_drawers(drawn):
            return drawn
    meaning = read_splits(pictures, root, folders, splits)
    for split, inside in meaning.splits.items():
        inside = _without_generic(meaning, _without_inner_split(inside, meaning), folders)
        meaning.splits[split] = _without_repeated_names(inside, folders)
    if folders is None:
        _refuse_renderings(meaning, root)
    _interpret_lone_folders(meaning, root, folders)
    return meaning


def read_splits(
    pictures: Sequence[Picture],
    root: Path,
    folders: str | None,
    splits: Mapping[str, str] | None,
) -> Meaning:
    """Returns only the split of each picture; its other folders remain in `dirs`.

    Arguments and errors are those of `read_folders`.
    """
    meaning = Meaning({"train": list(pictures)}, folders={each.path.parent for each in pictures})
    meaning.splits["train"] = _unwrapped(meaning, meaning.splits["train"], folders)
    if splits is None:
        _take_splits(meaning, root)
    elif splits:
        _take_given_splits(meaning, root, splits)
    return meaning


def check_depths(meaning: Meaning, root: Path, folders: str | None) -> int:
    """Returns how many folders are left above each picture: 1 or 2, or 0 with --folders name.

    Raises:
        DataError: Pictures lie at several depths, too deep, directly in the folder of a split, or
            not as --folders says. The message counts them.
    """
    depths: Counter[int] = Counter()
    first: dict[int, Path] = {}
    for pictures in meaning.splits.values():
        for picture in pictures:
            depth = len(picture.dirs)
            depths[depth] += 1
            first.setdefault(depth, picture.path)
    if folders == "name" and set(depths) == {0}:
        return 0
    if 0 in depths:
        one = "client" if folders == "client" else "class"
        raise DataError(
            f"{first[0].parent}: pictures lie directly in it ({first[0].name}, {depths[0]:,} in "
            f"total); put them into one folder for each {one}, or put beside them a CSV file with "
            f"a column of file names and one of labels{_advice_on_names(meaning)}"
        )
    if len(depths) > 1:
        listed = ", ".join(
            f"{depths[each]:,} at depth {each} ({first[each]})" for each in sorted(depths)
        )
        raise DataError(
            f"pictures lie at several depths: {listed}; put all into class folders (depth 1), or "
            "all into class folders within client folders (depth 2)"
        )
    (depth,) = depths
    if depth > 2:
        raise too_deep(first[depth].parent)
    if depth == 1 and folders is None:
        _refuse_clients_as_classes(meaning, root)
    if folders is not None and (depth == 2) != (folders == "client/class"):
        raise DataError(
            f"{first[depth]}: does not fit --folders {folders}, which means {LAYOUTS[folders]}; "
            f"choose {'--folders client/class' if depth == 2 else '--folders class or client'}"
        )
    return depth


def without_masks(pictures: Sequence[Picture]) -> list[Picture]:
    """Leaves out pictures in folders of masks and the like, if there are pictures elsewhere."""
    kept = [each for each in pictures if not any(map(_MASKS.fullmatch, each.dirs))]
    return kept or list(pictures)


def refuse_parts(meaning: Meaning, root: Path) -> None:
    """Refuses class folders whose names look like parts of one set.

    Raises:
        DataError: All names look like parts, such as images_001 and images_002.
    """
    names = {each.dirs[0] for inside in meaning.splits.values() for each in inside if each.dirs}
    if len(names) > 1 and all(map(_PARTS.fullmatch, names)):
        raise DataError(
            f"{root}: folders {', '.join(sorted(names)[:_SHOWN])} are named like parts of one "
            "set; if a table beside them has the labels, name its column with --label-column; if "
            "they are the classes, choose --folders class"
        )


def class_in_name(path: Path) -> str | None:
    """Returns the class in a file's name, "cat" for cat.0.jpg and cat_12.png, or None."""
    match = _NAMED.fullmatch(path.stem)
    return match[1] if match else None


def is_generic(name: str) -> bool:
    """Returns whether a folder's name is generic, such as "images"."""
    return _GENERIC.fullmatch(name) is not None


# ---- Outer folders -------------------------------------------------------------------------------


def _unwrapped(meaning: Meaning, pictures: list[Picture], folders: str | None) -> list[Picture]:
    """Removes outer folders that hold all pictures, and therefore distinguish none of them."""
    left_out: list[str] = []
    deepest = 2 if folders == "client/class" else 1
    while pictures:
        name = pictures[0].dirs[0] if pictures[0].dirs else ""
        is_around = all(each.dirs[:1] == (name,) and len(each.dirs) > deepest for each in pictures)
        if not is_around or split_names.kind_of(name) is not None:
            break
        left_out.append(name)
        pictures = [_drop(each, 0) for each in pictures]
    if left_out:
        meaning.notes.append(
            f"folder {'/'.join(left_out)} holds all pictures, so it does not count as a client; "
            "to make it one, choose --folders client/class"
        )
    return pictures


def _without_inner_split(pictures: list[Picture], meaning: Meaning) -> list[Picture]:
    """Removes a folder with a split's name if it lies in a split and holds all of its pictures."""
    while len(meaning.splits) > 1 and pictures and len(pictures[0].dirs) > 0:
        name = pictures[0].dirs[0]
        is_around = all(each.dirs[:1] == (name,) for each in pictures)
        if not is_around or split_names.kind_of(name) is None:
            break
        pictures = [_drop(each, 0) for each in pictures]
    return pictures


def _without_repeated_names(pictures: list[Picture], folders: str | None) -> list[Picture]:
    """Removes folders of a split that all repeat the name of their parent.

    "cat/cat_images" counts as a repetition, too.
    """
    are_repeated = folders in (None, "class") and all(
        len(each.dirs) == 2 and _repeats(*each.dirs) for each in pictures
    )
    return [_drop(each, 1) for each in pictures] if are_repeated else pictures


def _repeats(outer: str, inner: str) -> bool:
    rest = inner.replace(outer, "", 1).strip("-_ .") if outer in inner else inner
    return not rest or (outer in inner and is_generic(rest))


def _without_generic(
    meaning: Meaning, pictures: list[Picture], folders: str | None
) -> list[Picture]:
    """Removes folders of a split with generic names such as "images".

    With --folders class or client, they are kept if there is no other level.
    """
    level = 0
    while pictures and all(len(each.dirs) > level for each in pictures):
        names = {each.dirs[level] for each in pictures}
        is_last = folders in ("class", "client") and min(len(each.dirs) for each in pictures) == 1
        is_generic_level = all(is_generic(name) or _MASKS.fullmatch(name) for name in names)
        generic = {name for name in names if is_generic(name)}
        if is_last or not is_generic_level or len(generic) != 1:
            level += 1
            continue
        kept = [each for each in pictures if each.dirs[level] in generic]
        if len(kept) < len(pictures):
            masks = ", ".join(sorted(names - generic))
            meaning.notes.append(
                f"{len(pictures) - len(kept):,} pictures in folders {masks} were left out, "
                f"because folder {', '.join(generic)} beside them holds the pictures"
            )
        pictures = [_drop(each, level) for each in kept]
        meaning.generic.update(generic)
    return pictures


# ---- Folders of splits ---------------------------------------------------------------------------


def _take_splits(meaning: Meaning, root: Path) -> None:
    """Divides the pictures by the first level of folders that name splits; removes this level."""
    pictures = meaning.splits["train"]
    found = _top_splits(meaning, pictures, root)
    level = 0
    while found is None and level < 2:
        level += 1
        found = _inner_splits(pictures, level, root)
    if found is None:
        return
    _cut(meaning, pictures, found, level)
    where = "" if level == 0 else " within each outer folder"
    listed = ", ".join(f"{name} is {split}" for name, split in found.items())
    why = f"by the names of folders{where}: {listed}"
    alone = split_names.held_out_alone(found)
    if alone is not None:
        why += (
            " (it is the only held-out split, so it is the test split; "
            f"--splits validation={alone} makes it validation)"
        )
    meaning.evidence["splits"] = why


def _top_splits(meaning: Meaning, pictures: list[Picture], root: Path) -> dict[str, str] | None:
    """Returns the split of each folder of the first level, or None if they are not splits."""
    names = _names_at(pictures, 0)
    if not names or any(not each.dirs for each in pictures):
        return None
    found = split_names.assign(names, str(root)) if _has_train(names) else {}
    others = [name for name in names if name not in found]
    if not found:
        _refuse_held_out_alone(pictures, names, root)
        return None
    if not others:
        return found
    if len(found) == 1 and all(len(each.dirs) == 1 for each in pictures):
        return None  # "train" is a class
    labelled = _labelled(pictures, found, others)
    if labelled:
        by_split = {split: name for name, split in found.items()}
        given = ",".join(f"{split}={by_split[split]}" for split in SPLITS if split in by_split)
        raise DataError(
            f"{root}: {', '.join(found)} may be splits, but {labelled[0]} beside them is not; "
            f"choose --splits {given} to read only these, or --splits none if they are classes or "
            "clients"
        )
    kept = [each for each in pictures if each.dirs[0] in found]
    meaning.notes.append(
        f"{len(pictures) - len(kept):,} pictures in {', '.join(others)} were left out: they have "
        "no labels"
    )
    pictures[:] = kept
    return found


def _labelled(
    pictures: list[Picture], found: Mapping[str, str], others: Sequence[str]
) -> list[str]:
    """Returns which folders beside the splits may have labels, judged by depth and name."""
    train = next(name for name, split in found.items() if split == "train")
    depth = min(len(each.dirs) for each in pictures if each.dirs[0] == train)
    labelled = []
    for name in others:
        inside = [each for each in pictures if each.dirs[0] == name]
        around = {each.dirs[1:] for each in inside}
        is_flat = len(around) == 1 and depth > 1 and _are_redundant(next(iter(around)), name)
        if not (is_flat or _UNLABELLED.fullmatch(name) or _MASKS.fullmatch(name)):
            labelled.append(name)
    return labelled


def _are_redundant(dirs: tuple[str, ...], name: str) -> bool:
    """Whether all folders within a folder repeat its name or have generic names."""
    return all(each == name or is_generic(each) for each in dirs)


def _refuse_held_out_alone(pictures: list[Picture], names: Sequence[str], root: Path) -> None:
    """Refuses folders that name held-out splits if no folder is named train.

    A folder "test" without folders in it, beside other folders, may be a class.
    """
    held_out = [name for name in names if split_names.kind_of(name)]
    if held_out == list(names):
        listed = ", ".join(names)
        raise DataError(
            f"{root}: holds {listed} but no train split; also give the folder of the train "
            f"split, choose --splits train={names[0]} to train on it, or --splits none if these "
            "are classes or clients"
        )
    if held_out and all(len(each.dirs) > 1 for each in pictures):
        other = next(name for name in names if name not in held_out)
        raise DataError(
            f"{root}: {', '.join(held_out)} may be a split, but nothing beside it is called train; "
            f"choose --splits train={other},test={held_out[0]}, or --splits none if these are "
            "clients"
        )


def _inner_splits(pictures: list[Picture], level: int, root: Path) -> dict[str, str] | None:
    """Returns the split of each folder name at a level below the first, or None without splits."""
    if any(len(each.dirs) <= level for each in pictures):
        return None
    names = _names_at(pictures, level)
    if not all(split_names.kind_of(name) for name in names) or len(names) < 2:
        return None
    if not _has_train(names):
        return None
    return split_names.assign(names, str(root))


def _take_given_splits(meaning: Meaning, root: Path, splits: Mapping[str, str]) -> None:
    """Selects the folders that --splits names, at the first level that has one of them."""
    pictures = meaning.splits["train"]
    found = {name: split for split, name in splits.items()}
    for level in range(3):
        names = _names_at(pictures, level)
        if any(name in names for name in found):
            break
    missing = [name for name in found if name not in names]
    if missing:
        raise ConfigError(
            f"--splits: {root} has no folder {missing[0]!r} with pictures but "
            f"{', '.join(names[:10]) or 'none at all'}; choose one of them"
        )
    chosen = [each for each in pictures if len(each.dirs) > level and each.dirs[level] in found]
    if len(chosen) < len(pictures):
        meaning.notes.append(
            f"{len(pictures) - len(chosen):,} pictures were left out: they are in no folder that "
            "--splits names"
        )
    _cut(meaning, chosen, found, level)
    meaning.evidence["splits"] = "given by --splits"


def _cut(
    meaning: Meaning, pictures: Iterable[Picture], found: Mapping[str, str], level: int
) -> None:
    """Groups pictures by the split that the name at a level gives, and removes that name."""
    by_split: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for each in pictures:
        by_split[found[each.dirs[level]]].append(_drop(each, level))
    meaning.splits = {split: inside for split, inside in by_split.items() if inside}


def _has_train(names: Iterable[str]) -> bool:
    return any(split_names.kind_of(name) == "train" for name in names)


# ---- Folders of classes and clients --------------------------------------------------------------


def _interpret_lone_folders(meaning: Meaning, root: Path, folders: str | None) -> None:
    """Interprets two levels of folders if each outer folder holds only one inner folder.

    This applies only if the inner folders all have the same name, or all have different names.

    Raises:
        DataError: `folders` is not given, and there are several outer folders.
    """
    pictures = [each for inside in meaning.splits.values() for each in inside]
    if folders not in (None, "class") or any(len(each.dirs) != 2 for each in pictures):
        return
    pairs = {each.dirs for each in pictures}
    outer, inner = ({dirs[level] for dirs in pairs} for level in (0, 1))
    is_alone = len(pairs) == len(outer) and len(inner) in (1, len(outer))
    if not is_alone or len(outer) < 2:
        return
    if folders is None:
        name = sorted(inner)[0]
        raise DataError(
            f"{root}: each of its {len(outer):,} folders holds a single folder, such as {name!r}; "
            "choose --folders class if the outer folders are classes, or --folders client/class "
            "if they are clients with one class each"
        )
    for split, inside in meaning.splits.items():
        meaning.splits[split] = [_drop(each, 1) for each in inside]


def _refuse_renderings(meaning: Meaning, root: Path) -> None:
    """Refuses folders that seem to hold several versions of the same pictures.

    Raises:
        DataError: All outer folders have names of versions of pictures.
    """
    pictures = [each for inside in meaning.splits.values() for each in inside]
    if any(len(each.dirs) != 2 for each in pictures):
        return
    names = _names_at(pictures, 0)
    if len(names) > 1 and all(_RENDERINGS.fullmatch(name) for name in names):
        raise DataError(
            f"{root}: folders {', '.join(names)} seem to hold several versions of the same "
            f"pictures; give one of them, such as {root / names[0]}, or choose --folders "
            "client/class if each is a client"
        )


def _refuse_clients_as_classes(meaning: Meaning, root: Path) -> None:
    """Refuses class folders whose names look like names of clients."""
    names = {each.dirs[0] for inside in meaning.splits.values() for each in inside}
    if all(map(_CLIENTS.fullmatch, names)):
        raise DataError(
            f"{root}: folders {', '.join(sorted(names)[:_SHOWN])} are named like clients and hold "
            "no class folders; put the pictures of each into class folders, choose --folders "
            "client if file names begin with the class, or --folders class if these are classes"
        )


def _take_drawers(meaning: Meaning) -> bool:
    """Makes the drawers of Omniglot's characters the clients; returns whether this is Omniglot.

    The pictures are Omniglot's if each folder alphabet/character has one number that no other
    folder has, if all characters of an alphabet have the same drawers, if some names of characters
    occur in several alphabets, and if no folder's name means train. A client is a drawer of one
    alphabet, because other alphabets were drawn by other people.
    """
    numbers: dict[tuple[str, ...], set[str]] = {}
    drawers: dict[tuple[str, ...], set[str]] = {}
    for pictures in meaning.splits.values():
        for picture in pictures:
            match = _DRAWN.fullmatch(picture.path.stem)
            if match is None or len(picture.dirs) < _DRAWN_DEPTH:
                return False
            numbers.setdefault(picture.dirs, set()).add(match[1])
            drawers.setdefault(picture.dirs, set()).add(match[2])
    all_numbers = [number for found in numbers.values() for number in found]
    by_alphabet = {dirs[:-1]: found for dirs, found in drawers.items()}
    is_drawn = (
        len(set(all_numbers)) == len(all_numbers) == len(numbers) > 1
        and all(found == by_alphabet[dirs[:-1]] for dirs, found in drawers.items())
        and all(len(found) > 1 for found in by_alphabet.values())
        and len({dirs[-1] for dirs in numbers}) < len(numbers)
        and not any(split_names.kind_of(name) == "train" for dirs in numbers for name in dirs)
    )
    if not is_drawn:
        return False
    for split, pictures in meaning.splits.items():
        meaning.splits[split] = [_drawn(each) for each in pictures]
    meaning.evidence["owners"] = "the drawers, from the number after _ in the names of the files"
    meaning.evidence["classes"] = (
        "the folders alphabet/character; each has its own number in the names of its files"
    )
    return True


def _drawn(picture: Picture) -> Picture:
    *_, alphabet, character = picture.dirs
    drawer = picture.path.stem.partition("_")[2]
    return replace(picture, dirs=(f"{alphabet} {drawer}", f"{alphabet}/{character}"))


def _advice_on_names(meaning: Meaning) -> str:
    """Returns advice if the names of pictures seem to begin with their classes, else ""."""
    pictures = [each for inside in meaning.splits.values() for each in inside if not each.dirs]
    counts = Counter(class_in_name(each.path) for each in pictures)
    is_likely = 1 < len(counts) <= _MOST_NAMED and counts.most_common()[-1][1] > 1
    if not is_likely or None in counts:
        return ""
    shown = ", ".join(str(name)[:40] for name in sorted(counts, key=str)[:_SHOWN])
    return f"; their names begin with {shown}; if these are the classes, choose --folders name"


def _names_at(pictures: Iterable[Picture], level: int) -> list[str]:
    """The names of folders at a level, in the order of first occurrence."""
    return list(dict.fromkeys(each.dirs[level] for each in pictures if len(each.dirs) > level))


def _drop(picture: Picture, level: int) -> Picture:
    return replace(picture, dirs=picture.dirs[:level] + picture.dirs[level + 1 :])
