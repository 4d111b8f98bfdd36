"""The targets of the fuzzer: small correct inputs, their parts to be changed, and the readers."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import random
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedcli.cli import main as cli
from tests.fuzz.mutations import mutate
from tests.kit import keras_samples
from tests.kit.format_variants import FORMATS

Pack = Callable[[bytes], bytes]

IMAGES = (np.arange(12 * 16) * 7 % 256).astype(np.uint8).reshape(12, 4, 4)
LABELS = (np.arange(12) % 3).astype(np.int32)


@dataclass(frozen=True)
class Part:
    """A file of an input: the content that is changed, and the function that packs it."""

    content: bytes
    pack: Pack = bytes


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        make: Returns inputs. Each one maps the names of files to their parts. It is called once, in
            an empty folder.
        run: Reads the input in the current folder and returns the exit code; messages go to stderr.
    """

    make: Callable[[], list[dict[str, Part]]]
    run: Callable[[random.Random], int]


def write_input(parts: Mapping[str, Part], rng: random.Random) -> None:
    """Writes an input into the current folder, with one of its parts changed."""
    changed = rng.choice(sorted(parts))
    for name, part in parts.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = mutate(part.content, rng) if name == changed else part.content
        path.write_bytes(part.pack(content))


def commands(*lines: str) -> Callable[[random.Random], int]:
    """Returns a function that runs one of these command lines, chosen at random."""

    def run(rng: random.Random) -> int:
        return cli.run(rng.choice(lines).split())

    return run


def prepares(name: str, *more: str) -> Callable[[random.Random], int]:
    """Returns a function that makes a store from a file, with one of `more` in some calls."""
    made = f"preprocess {name} --out made.h5 -q"
    return commands(made, made, *(f"{made} {each}" for each in more))


def _fedcli(*arguments: str) -> None:
    """Runs a command in a process of its own, because this one forks and must have no threads."""
    command = [sys.executable, "-m", "fedcli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ---- Data ----------------------------------------------------------------------------------------


def _hdf5(**storage: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for index, name in enumerate("abc"):
            rows = slice(index, None, 3)
            group = file.create_group(f"examples/{name}")
            group.create_dataset("pixels", data=IMAGES[rows] / np.float32(255), **storage)
            group["label"] = LABELS[rows]
    return buffer.getvalue()


def _tff_h5() -> list[dict[str, Part]]:
    packed = {"compression": "gzip", "shuffle": True, "chunks": (2, 4, 4)}
    return [{"d.h5": Part(_hdf5())}, {"d.h5": Part(_hdf5(**packed))}]


def _store() -> list[dict[str, Part]]:
    Path("d.h5").write_bytes(_hdf5())
    _fedcli(*["preprocess", "d.h5", "--out", "s.h5", "-q", "--hold-out", "within"])
    return [{"s.h5": Part(Path("s.h5").read_bytes())}]


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _tf_example(image: Any, label: int) -> bytes:
    pixels = _field(2, _field(1, (image / np.float32(255)).astype("<f4").tobytes()))
    entries = {b"label": _field(3, _field(1, _varint(label))), b"pixels": pixels}
    features = [_field(1, _field(1, key) + _field(2, each)) for key, each in entries.items()]
    return _field(1, b"".join(features))


def _database(blobs: list[bytes]) -> bytes:
    with sqlite3.connect(":memory:") as made:
        made.execute(
            "CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)"
        )
        made.execute(
            "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)"
        )
        rows = [("train", "ab"[index % 2], blob) for index, blob in enumerate(blobs)]
        made.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        counts = [(name, "train", len(blobs) // 2) for name in "ab"]
        made.executemany("INSERT INTO client_metadata VALUES (?, ?, ?)", counts)
        made.commit()
        Path("new.sqlite").unlink(missing_ok=True)
        made.execute("VACUUM INTO 'new.sqlite'")
    made.close()
    return Path("new.sqlite").read_bytes()


_BLOBS = [_tf_example(image, label) for image, label in zip(IMAGES, LABELS.tolist(), strict=True)]


def _sqlite() -> list[dict[str, Part]]:
    whole = _database(_BLOBS)

    def pack(content: bytes) -> bytes:
        return lzma.compress(content, lzma.FORMAT_ALONE, preset=0)

    packed = pack(whole)
    return [{"d": Part(whole)}, {"d": Part(whole, pack)}, {"d": Part(packed)}]


def _tf_examples() -> list[dict[str, Part]]:
    return [{"d": Part(_BLOBS[0], lambda blob: _database([blob, *_BLOBS[1:]]))}]


def _leaf() -> list[dict[str, Part]]:
    users = {
        name: {
            "x": (IMAGES[index::2].reshape(-1, 16) / 255).round(4).tolist(),
            "y": LABELS[index::2].tolist(),
        }
        for index, name in enumerate("ab")
    }
    shard = {"users": list(users), "num_samples": [6, 6], "user_data": users}
    text = json.dumps(shard).encode()
    return [{"leaf/train/a.json": Part(text), "leaf/test/a.json": Part(text)}]


def _idx(array: Any, kind: int) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.tobytes()


def _idx_files() -> list[dict[str, Part]]:
    contents = (_idx(IMAGES, 8), _idx(LABELS.astype(np.uint8), 8))
    names = ("idx/train-images-idx3-ubyte", "idx/train-labels-idx1-ubyte")
    plain = {name: Part(content) for name, content in zip(names, contents, strict=True)}
    packed = {f"{name}.gz": Part(part.content, gzip.compress) for name, part in plain.items()}
    damaged = {f"{name}.gz": Part(gzip.compress(part.content)) for name, part in plain.items()}
    return [plain, packed, damaged]


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _zip(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _npz() -> list[dict[str, Part]]:
    arrays = {"x.npy": _npy(IMAGES), "y.npy": _npy(LABELS)}
    arrays["client_id.npy"] = _npy(np.array(list("ab") * 6))

    def pack(name: str) -> Pack:
        return lambda content: _zip({**arrays, name: content})

    inside = [{"d.npz": Part(content, pack(name))} for name, content in arrays.items()]
    objects: Any = np.array({"x": IMAGES, "y": LABELS})
    pickled = Part(_npy(objects), lambda content: _zip({"data.npy": content}))
    return [{"d.npz": Part(_zip(arrays))}, *inside, {"d.npz": pickled}]


def _csv() -> list[dict[str, Part]]:
    lines = ["client_id,label," + ",".join(f"p{index}" for index in range(16))]
    rows = zip("abc" * 4, LABELS.tolist(), IMAGES.reshape(12, 16).tolist(), strict=True)
    lines += [f'"{name}",{label},' + ",".join(map(str, row)) for name, label, row in rows]
    text = "\n".join(lines).encode()
    return [{"d.csv": Part(text)}, {"d.csv": Part(text, gzip.compress)}]


def _cifar() -> list[dict[str, Part]]:
    record = bytes([1]) + bytes(index % 251 for index in range(3072))
    names = b"".join(b"class%d\n" % index for index in range(10))
    batch, test = Part(record * 3), Part(record * 2)
    return [
        {"c/data_batch_1.bin": batch, "c/test_batch.bin": test, "c/batches.meta.txt": Part(names)}
    ]


def _images() -> list[dict[str, Part]]:
    from PIL import Image

    found: list[dict[str, Part]] = []
    for ending in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        parts = {}
        for index in range(4):
            buffer = io.BytesIO()
            Image.fromarray(IMAGES[index]).resize((16, 16)).save(buffer, ending)
            parts[f"img/{index % 2}/{index}.{ending}"] = Part(buffer.getvalue())
        found.append(parts)
    return found


def _variants(name: str) -> Callable[[], list[dict[str, Part]]]:
    """Returns a function that makes the variants of a format, each in a folder `v`."""

    def make() -> list[dict[str, Part]]:
        found = []
        for number, maker in enumerate(FORMATS[name].right.values()):
            root = Path(str(number))
            root.mkdir()
            maker(root)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            found.append({f"v/{path.relative_to(root)}": Part(path.read_bytes()) for path in files})
        return found

    return make


def _client_files() -> list[dict[str, Part]]:
    """Inputs with a file for each client, one input for each kind of file."""
    header = "label," + ",".join(f"p{index}" for index in range(16))
    made = {}
    for name, rows in (("a", slice(0, 6)), ("b", slice(6, 12))):
        images, labels = IMAGES[rows], LABELS[rows]
        pixels = (",".join(map(str, row)) for row in images.reshape(6, 16).tolist())
        lines = (f"{label},{row}" for label, row in zip(labels.tolist(), pixels, strict=True))
        made[f"{name}.csv"] = "\n".join([header, *lines]).encode()
        made[f"{name}.npz"] = _zip({"x.npy": _npy(images), "y.npy": _npy(labels)})
        made[f"{name}/x.npy"], made[f"{name}/y.npy"] = _npy(images), _npy(labels)
    kinds = (("a.csv", "b.csv"), ("a.npz", "b.npz"), ("a/x.npy", "a/y.npy", "b/x.npy", "b/y.npy"))
    return [{f"v/{name}": Part(made[name]) for name in names} for names in kinds]


def _picture_tables() -> list[dict[str, Part]]:
    """Inputs with images in one folder and a table, one input for each kind of table."""
    pictures = {
        f"img/p{index}.png": Part(part.content) for index, part in enumerate(_images()[0].values())
    }
    names = [f"p{index}.png" for index in range(len(pictures))]
    rows = [(name, "ab"[index % 2], str(index % 2)) for index, name in enumerate(names)]
    tables = {
        "t.csv": "\n".join(["file,owner,label", *map(",".join, rows)]),
        "t.txt": "\n".join(["# a list", *(f"{name} {label}" for name, _, label in rows)]),
        "t.jsonl": "\n".join(
            json.dumps({"file_name": name, "label": label}) for name, _, label in rows
        ),
    }
    return [
        {**_unchanged(pictures), f"img/{name}": Part(content.encode())}
        for name, content in tables.items()
    ]


def _archives() -> list[dict[str, Part]]:
    import tarfile

    files = next(iter(_cifar()))
    whole = _zip({name: part.content for name, part in files.items()})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, part in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(part.content)
            tar.addfile(info, io.BytesIO(part.content))
    packers: tuple[Pack, ...] = (bytes, gzip.compress, lzma.compress)
    return [{"a": Part(whole)}, *({"a": Part(buffer.getvalue(), each)} for each in packers)]


# ---- Models, options, runs -----------------------------------------------------------------------


def _keras() -> list[dict[str, Part]]:
    layers = (
        keras_samples.image_input(4, 4, 1),
        keras_samples.layer("Flatten", "flatten"),
        keras_samples.layer("Dense", "dense", units=3, activation="softmax", use_bias=True),
    )
    described = json.dumps(keras_samples.sequential(*layers)).encode()
    tensors = {"dense": [np.ones((16, 3), np.float32), np.zeros(3, np.float32)]}
    weights = keras_samples.counted(tensors)

    def whole(config: bytes, values: bytes) -> bytes:
        members = {"metadata.json": b'{"keras_version": "3.0.0"}', "config.json": config}
        return _zip({**members, "model.weights.h5": values})

    return [
        {"m.keras": Part(described, lambda config: whole(config, weights))},
        {"m.keras": Part(weights, lambda values: whole(described, values))},
        {"m.keras": Part(whole(described, weights))},
        {"m.json": Part(described)},
    ]


def _run_keras(rng: random.Random) -> int:
    Path("d.h5").write_bytes(_hdf5())
    name = next(each for each in ("m.keras", "m.json") if Path(each).exists())
    return cli.run(
        f"train --data d.h5 --num-classes 3 --model {name} --rounds 1 --out r -q".split()
    )


_SMALL = "--data-option clients=3 --clients 2 --max-examples 9 --rounds 2 --eval-every 1 -q"


def _train(name: str, *options: str) -> dict[str, bytes]:
    """Trains a run and returns its files."""
    _fedcli("train", *_SMALL.split(), *options, "--out", name)
    files = (each for each in Path(name).rglob("*") if each.is_file())
    return {str(each): each.read_bytes() for each in files}


def _signed(image: bytes) -> bytes:
    digest = hashlib.blake2b(image, digest_size=32).digest()
    return image + b"\nfedcli-blake2b\n" + digest


def _class_weights() -> list[dict[str, Part]]:
    by_class = {str(each): 0.5 + each for each in range(10)}
    rows = "class,weight\n" + "".join(f"{name},{each}\n" for name, each in by_class.items())
    texts = json.dumps(by_class), json.dumps(list(by_class.values())), rows
    return [{"w": Part(text.encode())} for text in texts]


def _config() -> list[dict[str, Part]]:
    return [{"config.toml": Part(_train("run")["run/config.toml"])}]


def _run_folder() -> list[dict[str, Part]]:
    files = _train("run", "--algorithm", "scaffold", "--csv")
    parts = {name: Part(content) for name, content in files.items() if not name.endswith("/lock")}
    for name, content in files.items():
        if "/checkpoints/" in name:  # a new digest is computed, because a wrong one ends reading
            parts[name] = Part(content[:-48], _signed)
    return [parts]


def _client_records() -> list[dict[str, Part]]:
    files = _train("run", "--record-clients")
    parts = {name: Part(content) for name, content in files.items() if not name.endswith("/lock")}
    keep = {name: part for name, part in parts.items() if name != "run/clients.h5"}
    rows = np.zeros(4, "V46").tobytes()
    journal = b'{"format": "fedcli-client-journal", "version": 1}\n'
    journal += b'{"clients": ["a", "b"], "num_rows": 4}\n' + rows
    return [
        {"run/clients.h5": parts["run/clients.h5"], **_unchanged(keep)},
        {"run/clients.journal": Part(journal), **_unchanged(keep)},
    ]


def _unchanged(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Returns parts that always have the content of these files, whatever is changed."""

    def same(content: bytes) -> Pack:
        return lambda _: content

    return {name: Part(b"", same(part.content)) for name, part in parts.items()}


# ---- Downloads -----------------------------------------------------------------------------------

_FILE = bytes(range(256)) * 40


def _answers() -> list[dict[str, Part]]:
    ok = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "a"\r\n\r\n' % len(_FILE) + _FILE
    rest = len(_FILE) - 100
    part = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 100-%d/%d\r\n" % (
        len(_FILE) - 1,
        len(_FILE),
    )
    part += b'Content-Length: %d\r\nETag: "a"\r\n\r\n' % rest + _FILE[100:]
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + _FILE[:256] + b"\r\n"
    all_of_it = b"HTTP/1.1 416 Range\r\nContent-Range: bytes */%d\r\n\r\n" % len(_FILE)
    notes = Part(json.dumps({"url": "http://127.0.0.1/", "validator": '"a"'}).encode())
    return [
        {"answer": Part(each), "data.bin.part": Part(_FILE[:100]), "data.bin.part.json": notes}
        for each in (ok, part, busy, moved, chunks, all_of_it)
    ]


def _download(rng: random.Random) -> int:
    from fedcli.datasets.download.fetching import TransferLimits, fetch
    from fedcli.datasets.download.public import RemoteFile
    from fedcli.errors import FedcliError

    answer = Path("answer").read_bytes()
    limits = TransferLimits(
        connect_seconds=3.0,
        stall_seconds=3.0,
        head_seconds=3.0,
        window_seconds=3.0,
        num_tries=2,
        pause_seconds=0.0,
        max_pause_seconds=0.01,
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, answer), daemon=True).start()
        file = RemoteFile(
            name="data.bin",
            folder="x",
            urls=(f"http://127.0.0.1:{server.getsockname()[1]}/",),
            size=rng.choice((None, len(_FILE))),
            sha256=hashlib.sha256(_FILE).hexdigest(),
            max_bytes=100_000,
        )
        for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
            del os.environ[name]
        try:
            fetch(file, Path("data.bin"), limits=limits)
        except FedcliError as err:
            cli._complain(str(err), 1)
            return 1
    assert Path("data.bin").read_bytes() == _FILE
    return 0


def _serve(server: socket.socket, answer: bytes) -> None:
    """Sends the same answer to each connection until the server is closed."""
    while server.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10.0)
                connection.recv(4096)
                connection.sendall(answer)


_RUN_COMMANDS = (
    "report run --json",
    "report run --csv o.csv",
    "eval run --clients all --json",
    "export run w.npz",
    "train --resume run --rounds 3 -q",
)

TARGETS: dict[str, Target] = {
    "tff-h5": Target(_tff_h5, prepares("d.h5", "--format tff-h5")),
    "store": Target(_store, commands("preprocess --verify s.h5", "preprocess s.h5 --out o.h5 -q")),
    "sqlite": Target(_sqlite, prepares("d", "--format tff-sqlite")),
    "tf-example": Target(_tf_examples, prepares("d")),
    "leaf": Target(_leaf, prepares("leaf", "--format leaf")),
    "idx": Target(_idx_files, prepares("idx", "--format idx")),
    "npz": Target(_npz, prepares("d.npz", "--format npz")),
    "csv": Target(_csv, prepares("d.csv", "--format csv", "--size 3")),
    "cifar": Target(_cifar, prepares("c", "--format cifar")),
    "images": Target(_images, prepares("img", "--size 8", "--color rgb")),
    "picture-table": Target(_picture_tables, prepares("img", "--format images")),
    "cifar-python": Target(_variants("cifar-python"), prepares("v", "--format cifar-python")),
    "stl10": Target(_variants("stl10"), prepares("v", "--format stl10")),
    "mat": Target(_variants("mat"), prepares("v", "--format mat")),
    "npy": Target(_variants("npy"), prepares("v", "--format npy")),
    "client-files": Target(_client_files, prepares("v", "--format clients", "--size 4x4")),
    "archive": Target(_archives, prepares("a")),
    "keras": Target(_keras, _run_keras),
    "config": Target(
        _config,
        commands(
            "train --config config.toml --rounds 1 --epochs 1 --clients 2 --max-examples 9 "
            "--out r -q",
        ),
    ),
    "class-weights": Target(
        _class_weights, commands(f"train {_SMALL} --class-weights w --out o -q")
    ),
    "run-folder": Target(_run_folder, commands(*_RUN_COMMANDS)),
    "client-records": Target(
        _client_records, commands("report run --clients-csv c.csv --json", _RUN_COMMANDS[-1])
    ),
    "download": Target(_answers, _download),
}
if importlib.util.find_spec("pyarrow") is not None:
    TARGETS["parquet"] = Target(_variants("parquet"), prepares("v", "--format parquet"))
