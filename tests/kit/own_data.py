"""Small replicas of the ways in which people store images and labels, read or refused.

Each maker writes a source into an empty folder. Images are 8 x 8. The class decides which quarter
is bright, so that a model can learn it.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Maker = Callable[[Path], None]
CLASSES = ("cat", "dog", "emu")
SIDE = 8


@dataclass(frozen=True)
class Replica:
    """A source and the data set that it must be read as.

    Attributes:
        make: Writes the source into a folder.
        train: Examples in train.
        test: Examples in test or central.
        validation: Examples in validation.
        classes: The number of classes.
        clients: Number of clients in train that the source names; 0: it names none.
        options: Options of `fedcli preprocess`.
        source: The source's path in the folder; "": the folder itself.
    """

    make: Maker
    train: int
    test: int = 0
    validation: int = 0
    classes: int = 3
    clients: int = 0
    options: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Wrong:
    """A source that is refused in one line.

    Attributes:
        make: Writes the source into a folder.
        words: Words that the line must have.
        options: Options of `fedcli preprocess`.
        source: As in `Replica`.
    """

    make: Maker
    words: tuple[str, ...]
    options: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Layout:
    """One way to store a data set: variants that are read, and variants that are refused."""

    right: dict[str, Replica] = field(default_factory=dict)
    wrong: dict[str, Wrong] = field(default_factory=dict)


def draw(label: int, index: int, channels: int = 1) -> np.ndarray:
    """Returns uint8 [8, 8] or [8, 8, channels]: a quarter that is bright by class, and noise."""
    rng = np.random.default_rng([label, index])
    image = rng.integers(0, 40, (SIDE, SIDE)).astype(np.uint8)
    row, column = divmod(label % 4, 2)
    image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += np.uint8(200)
    return image if channels == 1 else np.repeat(image[..., None], channels, axis=2)


def picture(path: Path, label: int, index: int, channels: int = 1) -> None:
    """Writes one picture file, in the format of its name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(label, index, channels)).save(path)


def class_folders(
    root: Path, count: int, first: int = 0, *, ending: str = ".png", inner: str = ""
) -> None:
    """Writes one folder per class, with `count` pictures in each."""
    for label, name in enumerate(CLASSES):
        for index in range(first, first + count):
            picture(root / name / inner / f"{name}_{index}{ending}", label, index)


def splits(*names: str, inner: str = "", counts: Sequence[int] = (4, 2, 2)) -> Maker:
    """Makes folders of splits, with a folder per class in each."""

    def make(root: Path) -> None:
        for place, (name, count) in enumerate(zip(names, counts, strict=False)):
            class_folders(root / name, count, 10 * place, inner=inner)

    return make


def both(*makers: Maker) -> Maker:
    """Makes what all of these makers write, in one folder."""

    def make(root: Path) -> None:
        for each in makers:
            each(root)

    return make


def within(folder: str, maker: Maker) -> Maker:
    """Makes what a maker writes, in a subfolder."""

    def make(root: Path) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        maker(root / folder)

    return make


def text(name: str, lines: Iterable[str]) -> Maker:
    """Makes a text file."""
    content = "".join(f"{line}\n" for line in lines)

    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    return make


def flat(folder: str, count: int = 12, first: int = 0, ending: str = ".png") -> Maker:
    """Makes pictures in one folder; picture i has class i mod 3."""

    def make(root: Path) -> None:
        for index in range(first, first + count):
            picture(root / folder / f"img{index}{ending}", index % 3, index)

    return make


def rows(count: int = 12, first: int = 0) -> list[tuple[int, str]]:
    """Returns the number and the class of each picture that `flat` makes."""
    return [(index, CLASSES[index % 3]) for index in range(first, first + count)]


def arrays(path: Path, count: int, first: int = 0, *, scale: float = 1.0) -> None:
    """Writes an npz file of images and labels, which are 0, 1 and 2 in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = _images(count, first)
    np.savez(path, x=images if scale == 1 else (images * scale).astype(np.float32), y=labels)


def table(path: Path, count: int, first: int = 0, *, owners: bool = False) -> None:
    """Writes a CSV file of pixels with a column of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = _images(count, first)
    header = ["client_id"] * owners + ["label", *(f"p{i}" for i in range(SIDE * SIDE))]
    lines = [",".join(header)]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        fields = [f"c{index % 3}"] * owners + [str(label), *map(str, image.reshape(-1))]
        lines.append(",".join(fields))
    path.write_text("\n".join(lines) + "\n")


def packed(kind: str, maker: Maker) -> Maker:
    """Makes an archive source.KIND (zip, tar, tar.gz, tar.bz2, tar.xz) of what a maker writes."""

    def make(root: Path) -> None:
        inside = root / "inside"
        inside.mkdir()
        maker(inside)
        if kind == "zip":
            with zipfile.ZipFile(root / "source.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(inside.rglob("*")):
                    archive.write(path, path.relative_to(inside))
        else:
            mode: Any = f"w:{kind[4:]}"
            with tarfile.open(root / f"source.{kind}", mode) as tar:
                tar.add(inside, "photos")
        shutil.rmtree(inside)

    return make


def _images(count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(first, first + count) % 3
    images = [draw(int(label), first + index) for index, label in enumerate(labels)]
    return np.stack(images), labels.astype(np.int64)


def _per_client(name: str, count: int = 6) -> Maker:
    """Makes an npz or CSV file for each of three clients; `{}` in the name is the client."""

    def make(root: Path) -> None:
        for number, client in enumerate(("ann", "bob", "eve")):
            path = root / name.format(client)
            write = arrays if path.suffix == ".npz" else table
            write(path, count, 10 * number)

    return make


def _npy(*names: str) -> Maker:
    """Makes pairs of .npy files; `{}` in a name is x or y."""

    def make(root: Path) -> None:
        for number, name in enumerate(names):
            images, labels = _images(6, 10 * number)
            for role, values in (("x", images), ("y", labels)):
                path = root / name.format(role)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)

    return make


def _celeba(root: Path, *, folder: str = "img_align_celeba") -> None:
    for number in range(12):
        picture(root / folder / f"{number + 1:06d}.jpg", number % 2, number, 3)
    lines = {
        "identity_CelebA.txt": [f"{n + 1:06d}.jpg {n % 4 + 7}" for n in range(12)],
        "list_eval_partition.txt": [f"{n + 1:06d}.jpg {n // 4}" for n in range(12)],
        "list_attr_celeba.txt": [
            "12",
            "5_o_Clock_Shadow Smiling Young ",
            *(f"{n + 1:06d}.jpg  {1 - n % 3 % 2 * 2} {n % 2 * 2 - 1:2d} -1" for n in range(12)),
        ],
    }
    for name, content in lines.items():
        text(name, content)(root)


def _celeba_csv(root: Path) -> None:
    for number in range(12):
        picture(
            root / "img_align_celeba/img_align_celeba" / f"{number + 1:06d}.jpg", number % 2, number
        )
    text(
        "list_attr_celeba.csv",
        ["image_id,Smiling,Male", *(f"{n + 1:06d}.jpg,{n % 2 * 2 - 1},1" for n in range(12))],
    )(root)
    text(
        "list_eval_partition.csv",
        ["image_id,partition", *(f"{n + 1:06d}.jpg,{n // 4}" for n in range(12))],
    )(root)


def _tiny_imagenet(root: Path, *, val_names: bool = True, test: bool = True) -> None:
    words = [f"n{label:08d}" for label in range(3)]
    for label, name in enumerate(words):
        for index in range(4):
            picture(root / "train" / name / "images" / f"{name}_{index}.JPEG", label, index)
        boxes = (f"{name}_{index}.JPEG\t0\t0\t63\t63" for index in range(4))
        text(f"train/{name}/{name}_boxes.txt", boxes)(root)
    for index in range(6):
        picture(root / "val" / "images" / f"val_{index}.JPEG", index % 3, 10 + index)
    if val_names:
        text(
            "val/val_annotations.txt",
            (f"val_{index}.JPEG\t{words[index % 3]}\t0\t{index}\t9\t55" for index in range(6)),
        )(root)
    if test:
        for index in range(2):
            picture(root / "test" / "images" / f"test_{index}.JPEG", index % 3, 20 + index)
    text("wnids.txt", words)(root)


def _leaf_celeba(root: Path, *, folder: str = "raw/img_align_celeba") -> None:
    for number in range(8):
        picture(root / folder / f"{number:06d}.jpg", number % 2, number, 3)
    for split, first in (("train", 0), ("test", 4)):
        users = {str(user): [first + 2 * user, first + 2 * user + 1] for user in range(2)}
        shard = {
            "users": list(users),
            "num_samples": [2, 2],
            "user_data": {
                user: {"x": [f"{n:06d}.jpg" for n in numbers], "y": [n % 2 for n in numbers]}
                for user, numbers in users.items()
            },
        }
        path = root / "data" / split / "all_data.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(shard))


def _gtsrb(root: Path) -> None:
    for label in range(3):
        for index in range(4):
            picture(root / "Train" / str(label) / f"{label:05d}_{index:05d}.png", label, index, 3)
    for index in range(6):
        picture(root / "Test" / f"{index:05d}.png", index % 3, 10 + index, 3)
    lines = (f"8,8,0,0,7,7,{index % 3},Test/{index:05d}.png" for index in range(6))
    text("Test.csv", ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path", *lines])(root)
    text("Meta.csv", ["Path,ClassId", *(f"Meta/{label}.png,{label}" for label in range(3))])(root)


def _gtsrb_original(root: Path) -> None:
    base = root / "GTSRB"
    for label in range(3):
        folder = base / "Final_Training" / "Images" / f"{label:05d}"
        for index in range(4):
            picture(folder / f"{index:05d}.ppm", label, index, 3)
        lines = (f"{index:05d}.ppm;8;8;0;0;7;7;{label}" for index in range(4))
        names = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
        text(f"GT-{label:05d}.csv", [names, *lines])(folder)
    for index in range(6):
        picture(base / "Final_Test" / "Images" / f"{index:05d}.ppm", index % 3, 10 + index, 3)
    lines = (f"{index:05d}.ppm;8;8;0;0;7;7;{index % 3}" for index in range(6))
    text("GT-final_test.csv", [names, *lines])(base / "Final_Test" / "Images")


def _domains(root: Path) -> None:
    """Office-31: a folder for each domain, which is a client, with a folder `images` in it."""
    for domain in ("amazon", "dslr", "webcam"):
        class_folders(root / domain / "images", 2)


def _masks(root: Path) -> None:
    """Each class has folders images and masks."""
    for inner in ("images", "masks"):
        class_folders(root, 4, inner=inner)


def class_folders_twice(root: Path) -> None:
    """A folder for each class, with a folder in it that repeats the class's name."""
    for label, name in enumerate(CLASSES):
        for index in range(4):
            picture(root / name / f"{name}_images" / f"{index}.png", label, index)


def class_folders_flat(root: Path) -> None:
    """Pictures in one folder whose names begin with their class."""
    for label, name in enumerate(CLASSES):
        for index in range(4):
            picture(root / f"{name}.{index}.png", label, index)


def _half(line: str) -> str:
    """Returns the split of the picture in a line of `_LABELS`: train for the first eight."""
    return "train" if int(line.partition(".")[0].removeprefix("img")) < 8 else "test"


def _batches(root: Path) -> None:
    flat("batch1", 6)(root)
    flat("batch2", 6, 6)(root)


_LABELS = [f"img{index}.png,{name}" for index, name in rows()]
_OWNED = [f"c{index % 4},img{index}.png,{name}" for index, name in rows()]

LAYOUTS: dict[str, Layout] = {
    "splits": Layout(
        {
            **{
                " ".join(names): Replica(splits(*names), 12, 6)
                for names in (
                    *(("train", "test"), ("Training", "Testing"), ("TRAIN", "TEST")),
                    *(("training_set", "test_set"), ("trainset", "testset"), ("train", "val")),
                    *(("seg_train", "seg_test"), ("train", "dev"), ("train2017", "val2017")),
                    *(("train", "eval"), ("train_images", "test_images"), ("train", "holdout")),
                )
            },
            "train val test": Replica(splits("train", "val", "test"), 12, 6, 6),
            "train valid eval": Replica(splits("train", "valid", "eval"), 12, 6, 6),
            "Training Validation Test": Replica(splits("Training", "Validation", "Test"), 12, 6, 6),
            "junk beside": Replica(
                both(
                    splits("train", "test"),
                    splits("__MACOSX/train", counts=(1,)),
                    text("annotations/a.xml", ["<a/>"]),
                    text("README.md", ["# photos"]),
                    within("logs", lambda root: None),
                ),
                12,
                6,
            ),
            "a folder around": Replica(within("My Photos", splits("train", "test")), 12, 6),
            "each split in a folder of its name": Replica(
                both(
                    within("seg_train", splits("seg_train")),
                    within("seg_test", splits("seg_test", counts=(2,))),
                    flat("seg_pred/seg_pred", 4),
                ),
                12,
                6,
            ),
            "splits below classes": Replica(
                lambda root: _splits_below_classes(root),
                12,
                6,
            ),
            "splits below clients": Replica(
                both(*(within(name, splits("train", "test")) for name in ("ann", "bob"))),
                24,
                12,
                clients=2,
            ),
            "clients below splits": Replica(
                both(
                    *(
                        within(split, within(name, splits(".")))
                        for split in ("train", "test")
                        for name in ("ann", "bob")
                    )
                ),
                24,
                24,
                clients=2,
            ),
            "images below splits": Replica(within("images", splits("train", "test")), 12, 6),
            "no split": Replica(
                splits("train", "test"),
                18,
                clients=2,
                options=("--splits", "none"),
            ),
            "splits by option": Replica(
                splits("old", "new"),
                12,
                6,
                options=("--splits", "train=old,test=new"),
            ),
        },
        {
            "two of one split": Wrong(
                splits("train", "training", "test"), ("would both be split 'train'", "--splits")
            ),
            "another folder as deep": Wrong(
                splits("train", "test", "extra"), ("extra", "--splits none", "--splits train=train")
            ),
            "test beside another": Wrong(
                splits("learn", "test"), ("nothing beside it is called train", "train=learn")
            ),
            "held out alone": Wrong(
                splits("test", "val"), ("no train split", "--splits train=test")
            ),
            "a folder that is not there": Wrong(
                splits("train", "test"),
                ("no folder 'new'",),
                ("--splits", "train=train,test=new"),
            ),
        },
    ),
    "class folders": Layout(
        {
            "plain": Replica(splits("."), 12),
            "class/images": Replica(splits(".", inner="images"), 12),
            "class/IMG": Replica(splits(".", inner="IMG"), 12),
            "class/images and masks": Replica(_masks, 12),
            "images/class": Replica(within("images", splits(".")), 12),
            "class/class_images": Replica(class_folders_twice, 12),
            "classes in names": Replica(class_folders_flat, 12, options=("--folders", "name")),
            "domains": Replica(_domains, 18, clients=3),
            "a constant folder": Replica(
                splits(".", inner="batch1"), 12, options=("--folders", "class")
            ),
        },
        {
            "one folder images": Wrong(flat("images"), ("pictures lie directly in it", "class")),
            "a constant folder": Wrong(
                splits(".", inner="batch1"), ("--folders class", "--folders client/class")
            ),
            "parts of a set": Wrong(
                both(flat("images_001/images", 6), flat("images_002/images", 6, 6)),
                ("parts of one set", "--label-column", "--folders class"),
            ),
            "clients without classes": Wrong(
                both(flat("client_0", 6), flat("client_1", 6, 6)),
                ("named like clients", "--folders client"),
            ),
            "one folder in each": Wrong(
                both(flat("a/cats", 6), flat("b/dogs", 6, 6)),
                ("--folders class", "--folders client/class"),
            ),
            "names that begin with classes": Wrong(
                class_folders_flat, ("cat, dog, emu", "--folders name")
            ),
            "no class": Wrong(flat("."), ("pictures lie directly in it", "CSV")),
            "a picture beside": Wrong(both(splits("."), flat(".", 1)), ("pictures lie directly",)),
        },
    ),
    "tiny-imagenet": Layout(
        {
            "as it is unpacked": Replica(within("tiny-imagenet-200", _tiny_imagenet), 12, 6),
            "the folder itself": Replica(_tiny_imagenet, 12, 6),
            "without test": Replica(lambda root: _tiny_imagenet(root, test=False), 12, 6),
            "train alone": Replica(_tiny_imagenet, 12, source="train"),
            "val without its table": Replica(
                lambda root: _tiny_imagenet(root, val_names=False, test=False), 12
            ),
        },
        {"val alone": Wrong(flat("images", 6), ("pictures lie directly",))},
    ),
    "celeba": Layout(
        {
            "as it is unpacked": Replica(
                _celeba, 4, 4, 4, 2, clients=4, options=("--label-column", "Smiling")
            ),
            "a folder around": Replica(
                within("celeba", _celeba),
                *(4, 4, 4, 2),
                clients=4,
                options=("--label-column", "Smiling"),
            ),
            "Kaggle's CSV": Replica(_celeba_csv, 4, 4, 4, 2, options=("--label-column", "Smiling")),
            "one split": Replica(
                _celeba,
                *(12, 0, 0, 2),
                clients=4,
                options=("--label-column", "Smiling", "--splits", "none"),
            ),
            "LEAF's": Replica(_leaf_celeba, 4, 4, classes=2, clients=2, source="data"),
            "LEAF's, pictures beside": Replica(
                lambda root: _leaf_celeba(root, folder="data/img_align_celeba"),
                *(4, 4),
                classes=2,
                clients=2,
                source="data",
            ),
        },
        {
            "no attribute chosen": Wrong(_celeba, ("--label-column", "Smiling")),
            "no such attribute": Wrong(
                _celeba, ("--label-column Smile",), ("--label-column", "Smile")
            ),
            "LEAF's without pictures": Wrong(
                lambda root: _leaf_celeba(root, folder="elsewhere"),
                ("x names pictures", "000000.jpg", "raw/img_align_celeba"),
                source="data",
            ),
        },
    ),
    "table": Layout(
        {
            "file, label": Replica(
                both(flat("."), text("labels.csv", ["filename,label", *_LABELS])), 12
            ),
            "owners": Replica(
                both(flat("."), text("labels.csv", ["client_id,filename,label", *_OWNED])),
                12,
                clients=4,
            ),
            "the table is the source": Replica(
                both(
                    flat("images"),
                    text("all.csv", ["path,y", *(f"images/{line}" for line in _LABELS)]),
                ),
                12,
                source="all.csv",
            ),
            "the table is the source and names splits": Replica(
                both(
                    flat("train", 8),
                    flat("test", 4, 8),
                    text("all.csv", ["path,y", *(f"{_half(x)}/{x}" for x in _LABELS)]),
                    flat("a/b/c/d/e/f/g/h/i/j", 1),
                ),
                8,
                4,
                source="all.csv",
            ),
            "pictures in a folder, tabs": Replica(
                both(
                    flat("images"),
                    text(
                        "labels.tsv", ["file\tcategory", *(x.replace(",", "\t") for x in _LABELS)]
                    ),
                ),
                12,
            ),
            "names without endings": Replica(
                both(
                    flat("train"),
                    text("train.csv", ["id,breed", *(f"img{i},{n}" for i, n in rows())]),
                ),
                12,
            ),
            "no header": Replica(
                both(flat("."), text("list.txt", (x.replace(",", " ") for x in _LABELS))), 12
            ),
            "a column of splits": Replica(
                both(
                    flat("."),
                    text(
                        "data.csv",
                        [
                            "image,label,split",
                            *(f"{x},{'test' if i > 8 else 'train'}" for i, x in enumerate(_LABELS)),
                        ],
                    ),
                ),
                9,
                3,
            ),
            "numbers with a point": Replica(
                both(
                    flat("."),
                    text(
                        "l.csv",
                        ["f,label", *(f"img{i}.png,{i % 3}{'.0' * (i % 2)}" for i in range(12))],
                    ),
                ),
                12,
            ),
            "columns by option": Replica(
                both(
                    flat("."),
                    text(
                        "t.csv",
                        ["a,b,c,d", *(f"img{i}.png,{n},{i % 2},u{i % 3}" for i, n in rows())],
                    ),
                ),
                12,
                clients=3,
                options=("--label-column", "b", "--id-column", "d", "--file-column", "a"),
            ),
            "more rows than pictures": Replica(
                both(flat("."), text("labels.csv", ["filename,label", *_LABELS, "gone.png,cat"])),
                12,
            ),
            "folders that are no classes, by option": Replica(
                both(_batches, text("labels.csv", ["filename,label", *_LABELS])),
                12,
                options=("--label-column", "label"),
            ),
            "folders of splits and one table": Replica(
                both(
                    flat("train", 8),
                    flat("test", 4, 8),
                    text("labels.csv", ["filename,label", *_LABELS]),
                ),
                8,
                4,
                options=("--label-column", "label"),
            ),
            "a table in each split": Replica(
                both(
                    flat("train"),
                    flat("test", 6),
                    text("train/metadata.csv", ["file_name,label", *_LABELS]),
                    text("test/metadata.csv", ["file_name,label", *_LABELS[:6]]),
                ),
                12,
                6,
            ),
            "GTSRB of Kaggle": Replica(_gtsrb, 12, 6),
            "GTSRB": Replica(_gtsrb_original, 12, 6),
        },
        {
            "two columns of labels": Wrong(
                both(
                    flat("."),
                    text("t.csv", ["f,b,c", *(f"img{i}.png,{n},{i % 2}" for i, n in rows())]),
                ),
                ("--label-column", "b, c"),
            ),
            "a label is missing": Wrong(
                both(flat("."), text("labels.csv", ["f,label", *_LABELS[:-1], "img11.png,?"])),
                ("labels.csv: line 13", "no label"),
            ),
            "folders that are no classes": Wrong(
                both(_batches, text("labels.csv", ["filename,label", *_LABELS])),
                ("folders name 2 classes", "--label-column label", "--folders class"),
            ),
            "a picture twice": Wrong(
                both(flat("."), text("labels.csv", ["f,label", *_LABELS, "img0.png,dog"])),
                ("line 14", "already in line 2"),
            ),
            "names nothing": Wrong(
                both(flat("."), text("labels.csv", ["f,label", "a.png,cat", "b.png,dog"])),
                ("none of the 12 pictures", "CSV"),
            ),
            "a short row": Wrong(
                both(flat("."), text("labels.csv", ["f,label", *_LABELS, "img0.png"])),
                ("labels.csv: line 14: 1 fields",),
            ),
        },
    ),
    "one file a client": Layout(
        {
            "k.npz": Replica(_per_client("{}.npz"), 18, clients=3),
            "k.csv": Replica(_per_client("{}.csv"), 18, clients=3),
            "k/data.csv": Replica(_per_client("client-{}/data.csv"), 18, clients=3),
            "train/k.npz test/k.npz": Replica(
                both(_per_client("train/{}.npz"), _per_client("test/{}.npz", 3)), 18, 9, clients=3
            ),
            "k/train.npz k/test.npz": Replica(
                both(_per_client("{}/train.npz"), _per_client("{}/test.npz", 3)), 18, 9, clients=3
            ),
            "k_train.csv k_test.csv": Replica(
                both(_per_client("{}_train.csv"), _per_client("{}_test.csv", 3)), 18, 9, clients=3
            ),
            "k/x.npy k/y.npy": Replica(_npy("ann/{}.npy", "bob/{}.npy"), 12, clients=2),
            "x_k.npy y_k.npy": Replica(_npy("{}_ann.npy", "{}_bob.npy"), 12, clients=2),
            "train.csv test.csv": Replica(
                both(
                    lambda root: table(root / "train.csv", 12),
                    lambda root: table(root / "test.csv", 6),
                ),
                12,
                6,
            ),
            "x_train.npy ...": Replica(_npy("{}_train.npy", "{}_test.npy"), 6, 6),
            "parts with a column of clients": Replica(
                both(
                    lambda root: table(root / "part0.csv", 6, owners=True),
                    lambda root: table(root / "part1.csv", 6, 10, owners=True),
                ),
                12,
                clients=3,
            ),
        },
        {
            "two files of one client": Wrong(
                both(_per_client("train/{}.npz"), _per_client("train/{}.csv")),
                ("would both be client 'ann'",),
            ),
            "folders within folders": Wrong(
                both(_per_client("a/{}.npz"), _per_client("b/{}.npz")),
                ("may belong to client 'a' or be another client",),
            ),
            "ranges that differ": Wrong(
                both(
                    lambda root: arrays(root / "ann.npz", 6, scale=1.0),
                    lambda root: arrays(root / "bob.npz", 6, scale=1 / 256),
                ),
                ("bob.npz: pixels range over 0 to 1", "--pixel-range"),
            ),
            "a damaged file": Wrong(
                both(_per_client("{}.npz"), lambda root: _cut(root / "eve.npz")),
                ("eve.npz", "not a complete .npz"),
            ),
        },
    ),
    "archive": Layout(
        {
            kind: Replica(packed(kind, splits("train", "test")), 12, 6, source=f"source.{kind}")
            for kind in ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
        }
        | {
            "zip of CSV": Replica(
                packed("zip", lambda root: table(root / "mnist.csv", 12)), 12, source="source.zip"
            ),
            "zip of clients": Replica(
                packed("zip", _per_client("{}/data.csv")), 18, clients=3, source="source.zip"
            ),
            "zip of LEAF's": Replica(
                packed("zip", _leaf_celeba), 4, 4, classes=2, clients=2, source="source.zip"
            ),
        },
        {
            "leads out": Wrong(
                lambda root: _zip(root, {"../out.png": b"x"}),
                ("leads out of its folder",),
                source="s.zip",
            ),
            "absolute": Wrong(
                lambda root: _zip(root, {"/tmp/out.png": b"x"}),
                ("leads out of its folder",),
                source="s.zip",
            ),
            "a bomb": Wrong(
                lambda root: _zip(root, {f"{n}.csv": bytes(40 << 20) for n in range(2)}),
                ("unpacks to over", "times its size"),
                source="s.zip",
            ),
            "no data": Wrong(
                lambda root: _zip(root, {"a/readme.txt": b"hello"}),
                ("format was not recognised",),
                source="s.zip",
            ),
            "cut": Wrong(
                both(
                    packed("tar.gz", splits("train", "test")),
                    lambda root: _cut(root / "source.tar.gz"),
                ),
                ("source.tar.gz: damaged archive",),
                source="source.tar.gz",
            ),
        },
    ),
}


def _splits_below_classes(root: Path) -> None:
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 4), ("test", 2)):
            for index in range(count):
                picture(root / name / split / f"{index}.png", label, index)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _zip(root: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(root / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
