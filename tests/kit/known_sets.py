"""Replicas of the image sets that users most often have, as they are when unpacked.

Names of files and folders, columns, types and shapes are those of the published sets; there are a
dozen small images in each. The sets in `KNOWN` are read; for those in `REFUSED` an error says what
to do instead.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from tests.kit.own_data import CLASSES, LAYOUTS, Replica, Wrong, both, draw, picture, text, within

TRAIN, TEST = 12, 6  # examples
_WORDS = tuple(f"n{label:08d}" for label in range(3))  # like ImageNet's names of classes
_DIGITS = 10


def images(count: int, first: int = 0, classes: int = 3, channels: int = 1, side: int = 8) -> Any:
    """Returns uint8 [count, side, side] or [count, side, side, channels], classes in turn."""
    drawn = [draw(index % classes, index, channels) for index in range(first, first + count)]
    times = side // 8
    return np.stack(drawn).repeat(times, axis=1).repeat(times, axis=2)


def labels(count: int, first: int = 0, classes: int = 3) -> Any:
    """Returns int64 [count], classes in turn."""
    return np.arange(first, first + count) % classes


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _lines(path: Path, *lines: str) -> None:
    text(path.name, lines)(path.parent)


def _planar(pixels: Any) -> Any:
    """Returns rows [n, 3 * H * W] of images [n, H, W, 3]; all red values come first."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


# ---- Folders -------------------------------------------------------------------------------------


def _imagenet(root: Path) -> None:
    for label, word in enumerate(_WORDS):
        for index in range(4):
            picture(root / "train" / word / f"{word}_{index}.JPEG", label, index, 3)
        for index in range(2):
            picture(root / "val" / word / f"ILSVRC2012_val_{label}{index}.JPEG", label, index, 3)
    for index in range(2):
        picture(root / "test" / f"ILSVRC2012_test_{index:08d}.JPEG", 0, index, 3)


def _imagenet_of_kaggle(root: Path) -> None:
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    _imagenet(data)
    for path in sorted((data / "val").rglob("*.JPEG")):
        path.rename(data / "val" / path.name)
    for word in _WORDS:
        (data / "val" / word).rmdir()
        _lines(root / "ILSVRC/Annotations/CLS-LOC/train" / word / "a.xml", "<annotation/>")
    lists = root / "ILSVRC" / "ImageSets" / "CLS-LOC"
    names = [f"{word}/{word}_{index}" for word in _WORDS for index in range(4)]
    _lines(lists / "train_cls.txt", *(f"{name} {i + 1}" for i, name in enumerate(names)))
    _lines(lists / "val.txt", *(f"ILSVRC2012_val_{i}{j} 1" for i in range(3) for j in range(2)))
    boxes = [f"ILSVRC2012_val_{i}{j},{_WORDS[i]} 1 2 3 4" for i in range(3) for j in range(2)]
    _lines(root / "LOC_val_solution.csv", "ImageId,PredictionString", *boxes)
    _lines(root / "LOC_synset_mapping.txt", *(f"{word} a thing, a word" for word in _WORDS))


def _cifar_png(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("airplane", "automobile", "bird")):
            for index in range(count):
                picture(root / split / name / f"{index:04d}.png", label, index, 3)
    _lines(root / "labels.txt", "airplane", "automobile", "bird")


def _cifar_of_kaggle(root: Path) -> None:
    for number in range(TRAIN):
        picture(root / "train" / f"{number + 1}.png", number % 3, number, 3)
    for number in range(2):
        picture(root / "test" / f"{number + 1}.png", number % 3, number, 3)
    rows = (f"{number + 1},{CLASSES[number % 3]}" for number in range(TRAIN))
    _lines(root / "trainLabels.csv", "id,label", *rows)
    _lines(root / "sampleSubmission.csv", "id,label", "1,cat", "2,cat")


def _classes(root: Path, *names: str, count: int = 4, name: str = "{name}_{index}.jpg") -> None:
    for label, folder in enumerate(names):
        for index in range(count):
            picture(root / folder / name.format(name=folder, index=index), label, index, 3)


def _domains(*domains: str, around: str = "{}") -> Any:
    def make(root: Path) -> None:
        for domain in domains:
            _classes(root / around.format(domain), "back_pack", "bike", "mug")

    return make


def _domain_net(root: Path) -> None:
    for domain in ("clipart", "real", "sketch"):
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(("aircraft_carrier", "alarm_clock", "ant")):
            for index in range(6):
                path = f"{domain}/{name}/{domain}_{label + 1:03d}_{index + 1:06d}.jpg"
                picture(root / path, label, index, 3)
                lists["test" if index > 3 else "train"].append(f"{path} {label}")
        for split, lines in lists.items():
            _lines(root / f"{domain}_{split}.txt", *lines)


def _pacs(root: Path) -> None:
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        lines = []
        for label, name in enumerate(("dog", "elephant", "giraffe")):
            for index in range(2):
                path = f"{domain}/{name}/pic_{label}{index}.jpg"
                picture(root / "kfold" / path, label, index, 3)
                lines.append(f"{path} {label + 1}")
        for split in ("train", "crossval", "test"):
            kept = lines if split == "test" else lines[:: 1 + (split == "crossval")]
            _lines(root / "splits" / f"{domain}_{split}_kfold.txt", *kept)


def _omniglot(root: Path) -> None:
    number = 0
    for part, alphabets in (
        ("images_background", ("Greek", "Latin")),
        ("images_evaluation", ("Tifinagh",)),
    ):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                number += 1
                for drawer in range(4):
                    name = f"{number:04d}_{drawer + 1:02d}"
                    picture(root / part / alphabet / character / f"{name}.png", number, drawer)
                    strokes = part.replace("images", "strokes")
                    _lines(root / strokes / alphabet / character / f"{name}.txt", "START", "1,-2,0")


def _food(root: Path) -> None:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("apple_pie", "baby_back_ribs", "baklava")):
        for index in range(6):
            picture(root / "images" / name / f"{label}{index}056.jpg", label, index, 3)
            lists["test" if index > 3 else "train"].append(f"{name}/{label}{index}056")
    for split, lines in lists.items():
        _lines(root / "meta" / f"{split}.txt", *lines)
        of_class = {name: [x for x in lines if x.startswith(name)] for name in ("apple_pie",)}
        _lines(root / "meta" / f"{split}.json", json.dumps(of_class))
    _lines(root / "meta" / "classes.txt", "apple_pie", "baby_back_ribs", "baklava")
    _lines(root / "meta" / "labels.txt", "Apple pie", "Baby back ribs", "Baklava")


def _caltech(root: Path) -> None:
    names = ("BACKGROUND_Google", "Faces", "accordion")
    _classes(root / "101_ObjectCategories", *names, name="image_{index:04d}.jpg")
    for name in names[1:]:
        _write(root / "Annotations" / name / "annotation_0001.mat", b"MATLAB 5.0 MAT-file")


def _flowers(root: Path) -> None:
    for number in range(TRAIN + TEST):
        picture(root / "jpg" / f"image_{number + 1:05d}.jpg", number % 3, number, 3)
    numbers = np.arange(1, TRAIN + TEST + 1)
    _mat(root / "imagelabels.mat", {"labels": [labels(TRAIN + TEST) + 1]})
    parts = {"trnid": numbers[:8], "valid": numbers[8:12], "tstid": numbers[12:]}
    _mat(root / "setid.mat", {name: [each] for name, each in parts.items()})


def _pets(root: Path) -> None:
    names = ("Abyssinian", "american_bulldog", "Bengal")
    lines = []
    for label, name in enumerate(names):
        for index in range(6):
            picture(root / "images" / f"{name}_{index + 1}.jpg", label, index, 3)
            picture(root / "annotations/trimaps" / f"{name}_{index + 1}.png", label, index)
            lines.append(f"{name}_{index + 1} {label + 1} {1 + label % 2} {label // 2 + 1}")
    head = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", "#SPECIES: 1:Cat 2:Dog"]
    _lines(root / "annotations" / "list.txt", *head, *lines)
    held_out = [line for line in lines if line.split()[0][-1] in "56"]
    _lines(root / "annotations" / "test.txt", *held_out)
    _lines(root / "annotations" / "trainval.txt", *(x for x in lines if x not in held_out))


def _cars(root: Path) -> None:
    base = root / "car_data" / "car_data"
    names = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012")
    for split, count in (("train", 4), ("test", 2)):
        _classes(base / split, *names, count=count, name=f"{split}_{{index:05d}}.jpg")
        rows = (f"{split}_{index:05d}.jpg,39,116,569,375,{index}" for index in range(count))
        _lines(root / f"anno_{split}.csv", *rows)
    _lines(root / "names.csv", *names)


def _ham(root: Path) -> None:
    rows = []
    for number in range(TRAIN):
        name = f"ISIC_{24306 + number:07d}"
        picture(root / f"HAM10000_images_part_{1 + number % 2}" / f"{name}.jpg", number % 3, number)
        kind = ("nv", "mel", "bkl")[number % 3]
        age, sex = 30.0 + number % 4, ("male", "female")[number // 2 % 2]
        rows.append(f"HAM_{number // 2:07d},{name},{kind},histo,{age},{sex},back")
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization"
    _lines(root / "HAM10000_metadata.csv", header, *rows)
    for side in (8, 28):
        flat = images(4, side=8).reshape(4, -1)
        names = ",".join(f"pixel{index:04d}" for index in range(flat.shape[1]))
        pixels = (",".join(map(str, row)) for row in flat.tolist())
        _lines(root / f"hmnist_{side}_{side}_L.csv", f"{names},label", *(f"{x},1" for x in pixels))


def _xray(root: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            for index in range(count):
                picture(root / split / name / f"IM-{index:04d}-0001.jpeg", label, index)
    _write(root / "__MACOSX" / "._train", b"\0\5")
    _write(root / "train" / ".DS_Store", b"\0")


def _pet_images(root: Path) -> None:
    _classes(root / "PetImages", "Cat", "Dog", count=6, name="{index}.jpg")
    for name in ("Cat", "Dog"):
        _write(root / "PetImages" / name / "Thumbs.db", b"\xd0\xcf\x11\xe0")
    _write(root / "readme[1].txt", b"read me")


def _cats_of_kaggle(root: Path) -> None:
    for index in range(6):
        for label, name in enumerate(("cat", "dog")):
            picture(root / "train" / f"{name}.{index}.jpg", label, index, 3)
    for index in range(2):
        picture(root / "test1" / f"{index + 1}.jpg", index, index, 3)
    _lines(root / "sampleSubmission.csv", "id,label", "1,0", "2,0")


def _eurosat_of_kaggle(root: Path) -> None:
    names = ("AnnualCrop", "Forest", "River")
    _classes(root, *names, count=6)
    for split, first, last in (("train", 0, 3), ("validation", 3, 4), ("test", 4, 6)):
        rows = [
            f"{name}/{name}_{index}.jpg,{label},{name}"
            for label, name in enumerate(names)
            for index in range(first, last)
        ]
        numbered = (f"{number},{row}" for number, row in enumerate(rows))
        _lines(root / f"{split}.csv", ",Filename,Label,ClassName", *numbered)
    _lines(root / "label_map.json", json.dumps({name: i for i, name in enumerate(names)}))


def _fer_folders(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        names = ("angry", "disgust", "happy")
        _classes(root / split, *names, count=count, name="Training_{index}.png")


# ---- Arrays --------------------------------------------------------------------------------------


def _cifar_python(root: Path) -> None:
    base = root / "cifar-10-batches-py"
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        count = 6
        content = {
            b"batch_label": b"batch",
            b"labels": labels(count, 6 * number).tolist(),
            b"data": _planar(images(count, 6 * number, channels=3, side=32)),
            b"filenames": [b"a.png"] * count,
        }
        _write(base / name, pickle.dumps(content, 2))
    names = [b"airplane", b"automobile", b"bird"]
    _write(base / "batches.meta", pickle.dumps({b"label_names": names, b"num_vis": 3072}, 2))
    _write(base / "readme.html", b"<html/>")


def _cifar_100_python(root: Path) -> None:
    base = root / "cifar-100-python"
    for split, count in (("train", TRAIN), ("test", TEST)):
        content = {
            b"filenames": [b"a.png"] * count,
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": labels(count).tolist(),
            b"coarse_labels": [0] * count,
            b"data": _planar(images(count, channels=3, side=32)),
        }
        _write(base / split, pickle.dumps(content, 2))
    names = {b"fine_label_names": [b"apple", b"bee", b"cup"], b"coarse_label_names": [b"thing"]}
    _write(base / "meta", pickle.dumps(names, 2))
    _write(base / "file.txt~", b"")


def _cifar_binary(root: Path, *, is_100: bool = False) -> None:
    base = root / ("cifar-100-binary" if is_100 else "cifar-10-batches-bin")
    for name, count in (("train" if is_100 else "data_batch_1", TRAIN), ("test", TEST)):
        rows = _planar(images(count, channels=3, side=32))
        lead = np.zeros((count, 1), np.uint8) if is_100 else rows[:, :0]
        records = np.hstack([lead, labels(count)[:, None].astype(np.uint8), rows])
        _write(base / f"{name}.bin" if is_100 else base / f"{name}_batch.bin", records.tobytes())
    _lines(base / ("fine_label_names.txt" if is_100 else "batches.meta.txt"), *_names_of(is_100))


def _names_of(is_100: bool) -> list[str]:
    return [f"name{label}" for label in range(100 if is_100 else 10)]


def _stl(root: Path) -> None:
    base = root / "stl10_binary"
    for split, count in (("train", TRAIN), ("test", TEST)):
        pixels = images(count, channels=3, side=96)
        _write(base / f"{split}_X.bin", pixels.transpose(0, 3, 2, 1).tobytes())
        _write(base / f"{split}_y.bin", (labels(count) + 1).astype(np.uint8).tobytes())
    _write(base / "unlabeled_X.bin", images(2, channels=3, side=96).tobytes())
    _lines(base / "class_names.txt", *_names_of(False))
    _lines(base / "fold_indices.txt", *(" ".join(map(str, range(4))) for _ in range(10)))


def _idx(path: Path, values: Any, kind: int = 8) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    content = head + values.tobytes()
    _write(path, gzip.compress(content, 1) if path.suffix == ".gz" else content)


def _mnist(root: Path, ending: str = "-ubyte", start: str = "", shift: int = 0) -> None:
    for split, count in (("train", TRAIN), ("t10k" if not start else "test", TEST)):
        _idx(root / f"{start}{split}-images-idx3{ending}", images(count))
        numbers = (labels(count) + shift).astype(np.uint8)
        _idx(root / f"{start}{split}-labels-idx1{ending}", numbers)


def _emnist(name: str, shift: int = 0) -> Any:
    def make(root: Path) -> None:
        _mnist(root, "-ubyte.gz", f"emnist-{name}-", shift)
        codes = (f"{label + shift} {65 + label} {97 + label}" for label in range(26))
        _lines(root / f"emnist-{name}-mapping.txt", *codes)

    return make


def _qmnist(root: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        _idx(root / f"qmnist-{split}-images-idx3-ubyte.gz", images(count))
        rows = np.zeros((count, 8), ">i4")
        rows[:, 0] = labels(count)
        rows[:, 2] = np.arange(count) % 4 + (100 if split == "test" else 0)
        rows[:, 5] = np.arange(count)
        _idx(root / f"qmnist-{split}-labels-idx2-int.gz", rows, 12)
        tsv = "\n".join("\t".join(map(str, row)) for row in rows.tolist())
        _write(root / f"qmnist-{split}-labels.tsv.gz", gzip.compress(tsv.encode(), 1))


def _kmnist(root: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        np.savez_compressed(root / f"kmnist-{split}-imgs.npz", images(count))
        np.savez_compressed(root / f"kmnist-{split}-labels.npz", labels(count).astype(np.uint8))
    _lines(root / "kmnist_classmap.csv", "index,codepoint,char", "0,U+304A,o", "1,U+304D,ki")


def _keras_mnist(root: Path) -> None:
    arrays: dict[str, Any] = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        arrays |= {f"x_{split}": images(count), f"y_{split}": labels(count).astype(np.uint8)}
    np.savez(root / "mnist.npz", **arrays)


def _medmnist(root: Path, channels: int = 1) -> None:
    arrays: dict[str, Any] = {}
    for split, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
        arrays[f"{split}_images"] = images(count, channels=channels)
        arrays[f"{split}_labels"] = labels(count)[:, None].astype(np.uint8)
    np.savez(root / "bloodmnist.npz", **arrays)


def _mat(path: Path, arrays: dict[str, Any]) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


def _svhn(root: Path) -> None:
    for split, count in (("train", 20), ("test", 10)):
        numbers = labels(count, 0, _DIGITS)
        tens = np.where(numbers == 0, 10, numbers).astype(np.uint8)[:, None]
        pixels = np.moveaxis(images(count, classes=_DIGITS, channels=3), 0, -1)
        _mat(root / f"{split}_32x32.mat", {"X": pixels, "y": tens})


def _svhn_7(root: Path) -> None:
    for split, count in (("train", 20), ("test", 10)):
        numbers = labels(count, 0, _DIGITS)
        tens = np.where(numbers == 0, 10, numbers).astype(np.uint8)[:, None]
        path = root / f"{split}_32x32.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            pixels = np.moveaxis(images(count, classes=_DIGITS, channels=3), 0, -1)
            file["X"], file["y"] = pixels.T, tens.T
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def _emnist_mat(root: Path) -> None:
    content = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        content[split] = {
            "images": images(count).transpose(0, 2, 1).reshape(count, -1),
            "labels": (labels(count) + 1.0)[:, None],
            "writers": (np.arange(count) % 4 + (100.0 if split == "test" else 0.0))[:, None],
        }
    mapping = np.array([[label, 64 + label, 96 + label] for label in range(1, 27)], np.uint8)
    _mat(root / "emnist-letters.mat", {"dataset": {**content, "mapping": mapping}})


def _tff(name: str, split: str, count: int, num_classes: int = 3) -> Any:
    def make(root: Path) -> None:
        with h5py.File(root / f"{name}_{split}.h5", "w") as file:
            for writer in range(3):
                pixels = 1 - images(count, 7 * writer, num_classes) / np.float32(255)
                group = f"examples/f{writer:04d}_{10 + writer}"
                file[f"{group}/pixels"] = pixels.astype(np.float32)
                file[f"{group}/label"] = labels(count, 7 * writer, num_classes).astype(np.int32)

    return make


# ---- Tables of pixels ----------------------------------------------------------------------------


def _pixel_table(path: Path, count: int, header: str = "label", first: int = 0) -> None:
    flat = images(count, first).reshape(count, -1).tolist()
    numbers = labels(count, first).tolist()
    names = ",".join(f"pixel{index}" for index in range(len(flat[0])))
    rows = (",".join(map(str, row)) for row in flat)
    if header:
        numbered = (f"{label},{row}" for label, row in zip(numbers, rows, strict=True))
        _lines(path, f"{header},{names}", *numbered)
    else:
        _lines(path, names, *rows)


def _kaggle_digits(root: Path) -> None:
    _pixel_table(root / "train.csv", TRAIN)
    _pixel_table(root / "test.csv", TEST, header="")
    _lines(root / "sample_submission.csv", "ImageId,Label", *(f"{i + 1},0" for i in range(TEST)))


def _sign_language(root: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        _pixel_table(root / f"sign_mnist_{split}" / f"sign_mnist_{split}.csv", count)
    picture(root / "amer_sign2.png", 0, 0, 3)
    picture(root / "american_sign_language.PNG", 1, 0, 3)


def _fashion_of_kaggle(root: Path) -> None:
    _pixel_table(root / "fashion-mnist_train.csv", TRAIN)
    _pixel_table(root / "fashion-mnist_test.csv", TEST)


def _fer(root: Path) -> None:
    usages = ["Training"] * 12 + ["PublicTest"] * 6 + ["PrivateTest"] * 6
    flat = images(24).reshape(24, -1).tolist()
    rows = (
        f"{label},{usage},{' '.join(map(str, row))}"
        for label, usage, row in zip(labels(24).tolist(), usages, flat, strict=True)
    )
    _lines(root / "icml_face_data.csv", "emotion, Usage, pixels", *rows)


# ---- Data of other simulators --------------------------------------------------------------------


def _leaf_femnist(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        users = [f"f{number:04d}_{10 + number}" for number in range(3)]
        data = {
            user: {
                "x": (1 - images(count, 7 * n).reshape(count, -1) / 255).round(4).tolist(),
                "y": labels(count, 7 * n).tolist(),
            }
            for n, user in enumerate(users)
        }
        shard = {"users": users, "num_samples": [count] * 3, "user_data": data}
        path = root / "data" / split / f"all_data_0_niid_0_keep_0_{split}_9.json"
        _lines(path, json.dumps(shard))


def _shakespeare(root: Path) -> None:
    shard = {
        "users": ["THE_TEMPEST_ARIEL"],
        "num_samples": [2],
        "user_data": {"THE_TEMPEST_ARIEL": {"x": ["all hail great " * 5] * 2, "y": ["m", "g"]}},
    }
    _lines(root / "train" / "all_data.json", json.dumps(shard))


def _pfllib(root: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        for client in range(3):
            pixels = (images(count, 10 * client)[:, None] / 127.5 - 1).astype(np.float32)
            path = root / split / f"{client}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            data: Any = {"x": pixels, "y": labels(count, 10 * client)}
            np.savez_compressed(path, data=data)
    _lines(root / "config.json", json.dumps({"num_clients": 3, "num_classes": 3, "batch_size": 10}))


def _fedlab(root: Path) -> None:
    for client in range(2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps([client]))
            archive.writestr("archive/version", "3")
        _write(root / "train" / f"data{client}.pkl", buffer.getvalue())


def _hugging_face(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    names = ["airplane", "automobile", "bird"]
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    noted = json.dumps({"info": {"features": features}}).encode()
    for name, first in (("train-00000-of-00001", 0), ("test-00000-of-00001", 12)):
        pictures = []
        for image in images(12 if not first else 6, first, channels=3):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            pictures.append({"bytes": out.getvalue(), "path": "a.png"})
        columns = {"img": pictures, "label": labels(len(pictures), first)}
        table = pyarrow.table(columns).replace_schema_metadata({b"huggingface": noted})
        path = root / "plain_text" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path)
    _lines(root / "README.md", "# a card")


EXTRAS = {  # packages that some sets need besides Pillow
    "scipy": ("SVHN, older .mat", "EMNIST, .mat", "Flowers-102"),
    "pyarrow": ("CIFAR-10 of Hugging Face",),
}

KNOWN: dict[str, Replica] = {
    "ImageNet": Replica(_imagenet, 12, 6),
    "ImageNet of Kaggle": Replica(_imagenet_of_kaggle, 12, 6),
    "Tiny-ImageNet": LAYOUTS["tiny-imagenet"].right["as it is unpacked"],
    "CIFAR-10, Python": Replica(_cifar_python, 12, 6),
    "CIFAR-100, Python": Replica(_cifar_100_python, 12, 6),
    "CIFAR-10, binary": Replica(_cifar_binary, 12, 6, classes=10),
    "CIFAR-100, binary": Replica(lambda root: _cifar_binary(root, is_100=True), 12, 6, classes=100),
    "CIFAR-10, folders of PNG": Replica(_cifar_png, 12, 6),
    "CIFAR-10 of Kaggle": Replica(_cifar_of_kaggle, 12),
    "CIFAR-10 of Hugging Face": Replica(_hugging_face, 12, 6),
    "SVHN, older .mat": Replica(_svhn, 20, 10, classes=10),
    "SVHN, .mat 7.3": Replica(_svhn_7, 20, 10, classes=10),
    "GTSRB": LAYOUTS["table"].right["GTSRB"],
    "GTSRB of Kaggle": LAYOUTS["table"].right["GTSRB of Kaggle"],
    "MedMNIST, grey": Replica(_medmnist, 12, 6, 6),
    "MedMNIST, colour": Replica(lambda root: _medmnist(root, 3), 12, 6, 6),
    "FER2013, CSV": Replica(_fer, 12, 6, 6),
    "FER2013, folders": Replica(_fer_folders, 12, 6),
    "CelebA": LAYOUTS["celeba"].right["as it is unpacked"],
    "CelebA of Kaggle": LAYOUTS["celeba"].right["Kaggle's CSV"],
    "Office-31": Replica(_domains("amazon", "dslr", "webcam", around="{}/images"), 36, clients=3),
    "Office-Home": Replica(
        both(
            _domains("Art", "Clipart", "Product", "Real World"),
            text("ImageInfo.csv", ["name,width,height", "a,300,300"]),
        ),
        48,
        clients=4,
    ),
    "DomainNet": Replica(_domain_net, 36, 18, clients=3),
    "PACS": Replica(_pacs, 24, clients=4),
    "MNIST": Replica(_mnist, 12, 6),
    "MNIST of Keras": Replica(_keras_mnist, 12, 6),
    "MNIST of Kaggle": Replica(_kaggle_digits, 12),
    "Fashion-MNIST": Replica(lambda root: _mnist(root / "FashionMNIST" / "raw"), 12, 6),
    "Fashion-MNIST of Kaggle": Replica(_fashion_of_kaggle, 12, 6),
    "KMNIST, npz": Replica(_kmnist, 12, 6),
    "KMNIST, idx": Replica(lambda root: _mnist(root, "-ubyte.gz"), 12, 6),
    "QMNIST": Replica(_qmnist, 12, 6, clients=4),
    "EMNIST by class": Replica(_emnist("byclass"), 12, 6, classes=62),
    "EMNIST balanced": Replica(_emnist("balanced"), 12, 6),
    "EMNIST letters": Replica(_emnist("letters", 1), 12, 6, classes=4),
    "EMNIST, .mat": Replica(_emnist_mat, 12, 6, classes=4, clients=4),
    "EMNIST of TFF": Replica(
        both(_tff("fed_emnist", "train", 6), _tff("fed_emnist", "test", 2)),
        *(18, 6),
        clients=3,
        options=("--test-data", "own/fed_emnist_test.h5"),
        source="fed_emnist_train.h5",
    ),
    "Sign Language MNIST": Replica(_sign_language, 12, 6),
    "Omniglot": Replica(_omniglot, 24, classes=6, clients=12),
    "FEMNIST of LEAF": Replica(_leaf_femnist, 12, 6, clients=3),
    "CelebA of LEAF": LAYOUTS["celeba"].right["LEAF's"],
    "PFLlib's files": Replica(_pfllib, 18, 9, clients=3),
    "STL-10": Replica(_stl, 12, 6, classes=10),
    "Caltech-101": Replica(within("caltech-101", _caltech), 12),
    "Flowers-102": Replica(_flowers, 8, 6, 4),
    "Food-101": Replica(within("food-101", _food), 12, 6),
    "Stanford Cars of Kaggle": Replica(_cars, 12, 6),
    "Oxford-IIIT Pets": Replica(_pets, 12, 6, options=("--label-column", "2")),
    "HAM10000": Replica(_ham, 12, options=("--label-column", "dx")),
    "Intel image classification": LAYOUTS["splits"].right["each split in a folder of its name"],
    "Chest X-ray pneumonia": Replica(within("chest_xray", _xray), 12, 6, 4, classes=2),
    "Cats vs Dogs": Replica(_pet_images, 12, classes=2),
    "Cats vs Dogs of Kaggle": Replica(
        _cats_of_kaggle, 12, classes=2, options=("--folders", "name")
    ),
    "EuroSAT": Replica(lambda root: _classes(root / "2750", "AnnualCrop", "Forest", "River"), 12),
    "EuroSAT of Kaggle": Replica(within("EuroSAT", _eurosat_of_kaggle), 9, 6, 3),
    "PlantVillage": Replica(
        lambda root: _classes(
            root / "color", "Apple___Apple_scab", "Apple___healthy", "Corn___rust"
        ),
        12,
        source="color",
    ),
}

_REPORT = [
    "Class frequencies:",
    "client,class0,class1,class2,Amount",
    "Client   0,0.50,0.25,0.25,40",
    "Client   1,0.00,1.00,0.00,20",
]
REFUSED: dict[str, Wrong] = {
    "Shakespeare of LEAF": Wrong(_shakespeare, ("THE_TEMPEST_ARIEL", "text", "images")),
    "FedLab's pickled clients": Wrong(_fedlab, ("data0.pkl", "PyTorch", "numpy.savez")),
    "FedLab's report of a partition": Wrong(
        text("report.csv", _REPORT), ("report.csv", "--format"), source="report.csv"
    ),
    "MNIST of Kaggle, test alone": Wrong(
        _kaggle_digits, ("test.csv", "no column of labels"), source="test.csv"
    ),
    "Cats vs Dogs of Kaggle": Wrong(_cats_of_kaggle, ("cat", "dog", "--folders name")),
    "PlantVillage, three kinds of each picture": Wrong(
        _domains("color", "grayscale", "segmented"), ("color", "--folders client/class")
    ),
    "HAM10000 without a column": Wrong(_ham, ("--label-column dx",)),
    "ChestMNIST, several labels per image": Wrong(
        lambda root: np.savez(
            root / "chestmnist.npz",
            train_images=images(6),
            train_labels=np.tile(np.array([1, 1, 0], np.uint8), (6, 1)),
        ),
        ("not one-hot",),
    ),
}
