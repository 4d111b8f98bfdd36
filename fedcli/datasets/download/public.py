"""The catalogue of public datasets for `fedcli download`: addresses, sizes, hashes, counts.

Addresses, sizes and hashes are those of TFF's last HDF5 loaders, of torchvision and of QMNIST. A
few come from other projects: the sha256 of CIFAR-10's binary archive, the hashes of the unpacked
EMNIST digits and of MNIST's unpacked training images, and the addresses of mirrors. If no size is
published, `size` is None and `max_bytes` limits the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from fedcli.dataclass import dataclass
from fedcli.settings.options import Entry, Value
from fedcli.settings.tables.datasets import PUBLIC_DATASETS

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file to unpack from an archive.

    Attributes:
        name: Its exact name in the archive and below the folder to which it is unpacked.
        max_bytes: Largest number of bytes it may have.
        size: Its number of bytes; None: not known.
        sha256: Its hash; None: not known.
    """

    name: str
    max_bytes: int
    size: int | None = None
    sha256: str | None = None

    @property
    def limit(self) -> int:
        """The largest number of bytes to take."""
        return self.max_bytes if self.size is None else self.size


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file to download.

    Attributes:
        name: Its name, also at the end of each address.
        folder: The folder below the downloads; it keeps files of equal names apart.
        urls: Addresses, in the order in which they are tried.
        sha256: Its hash.
        max_bytes: Largest number of bytes it may have.
        size: Its number of bytes; None: not known.
        members: The members to unpack, if it is an archive.
        unpacked_sha256: For a gzip file, the hash of the unpacked content; None: not known.
    """

    name: str
    folder: str
    urls: tuple[str, ...]
    sha256: str
    max_bytes: int
    size: int | None = None
    members: tuple[Member, ...] = ()
    unpacked_sha256: str | None = None

    @property
    def limit(self) -> int:
        """The largest number of bytes to take."""
        return self.max_bytes if self.size is None else self.size


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The expected counts of a dataset after its import.

    Attributes:
        splits: The splits that are counted together.
        num_clients: Number of clients of each of these splits.
        num_examples: Number of examples of all these splits.
        num_examples_of_ten: Number of examples of the first ten clients; None: not known.
        first_label: Label of the first client's first example; None: not known.
    """

    splits: tuple[str, ...]
    num_clients: int
    num_examples: int
    num_examples_of_ten: int | None = None
    first_label: int | None = None


@dataclass(frozen=True, kw_only=True)
class PublicDataset:
    """One public dataset.

    Attributes:
        entry: Its row of the table: name, description, source, licence.
        files: The files to download.
        format: The importer that reads it.
        expected: The expected counts.
        sources: Names of the files or members to import, or of a folder of members.
        test_source: Name of the member that becomes the split "test"; None: the importer decides.
        central_sources: Names of files that become the split "central", which has its own owners.
        hold_out: How a test split is held out, if the source has no test split of the same clients.
        partition: The partition that assigns examples to clients.
        partition_options: The options of the partition.
        num_classes: Labels are 0 to num_classes - 1.
        class_names: A name for each class, or none.
        same_people: Whether equal ids in train and test are the same people.
    """

    entry: Entry
    files: tuple[RemoteFile, ...]
    format: str
    expected: tuple[Expected, ...]
    sources: tuple[str, ...]
    test_source: str | None = None
    central_sources: tuple[str, ...] = ()
    hold_out: str | None = None
    partition: str = "natural"
    partition_options: Mapping[str, Value] = field(default_factory=dict)
    num_classes: int = 10
    class_names: tuple[str, ...] = ()
    same_people: bool = True

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.entry.name

    @property
    def num_bytes(self) -> int | None:
        """Number of bytes to download; None if it is not known for every file."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def _tff_archive(
    stem: str, sha256: str, urls: tuple[str, ...], max_bytes: int, *members: Member
) -> RemoteFile:
    name = f"{stem}.tar.bz2"
    google = f"https://storage.googleapis.com/tff-datasets-public/{name}"
    return RemoteFile(
        name=name,
        folder="tff",
        urls=(google, *urls),
        sha256=sha256,
        max_bytes=max_bytes,
        members=members,
    )


def _tff_pair(
    name: str,
    archive: RemoteFile,
    train: Expected,
    test: Expected,
    *,
    num_classes: int,
    same_people: bool = True,
) -> PublicDataset:
    train_member, test_member = archive.members
    return PublicDataset(
        entry=PUBLIC_DATASETS[name],
        files=(archive,),
        format="tff-h5",
        expected=(train, test),
        sources=(train_member.name,),
        test_source=test_member.name,
        num_classes=num_classes,
        same_people=same_people,
    )


def _idx_files(
    folder: str, bases: tuple[str, ...], *rows: tuple[str, int | None, str, str | None]
) -> tuple[RemoteFile, ...]:
    """The IDX files of one publisher. A row: (name without .gz, size, hash, hash when unpacked)."""
    return tuple(
        RemoteFile(
            name=f"{name}.gz",
            folder=folder,
            urls=tuple(f"{base}{name}.gz" for base in bases),
            size=size,
            sha256=sha256,
            max_bytes=64 * _MIB,
            unpacked_sha256=unpacked_sha256,
        )
        for name, size, sha256, unpacked_sha256 in rows
    )


def _partitioned(
    name: str,
    files: tuple[RemoteFile, ...],
    image_format: str,
    sources: tuple[str, ...],
    num_examples: tuple[int, int],
    class_names: tuple[str, ...] = (),
) -> PublicDataset:
    """A dataset without owners, divided evenly among 100 clients as in McMahan et al. 2017."""
    return PublicDataset(
        entry=PUBLIC_DATASETS[name],
        files=files,
        format=image_format,
        expected=tuple(
            Expected(splits=(split,), num_clients=100, num_examples=number)
            for split, number in zip(("train", "test"), num_examples, strict=True)
        ),
        sources=sources,
        partition="iid",
        partition_options={"clients": 100},
        class_names=class_names,
    )


_DIGITS = _tff_archive(
    "fed_emnist_digitsonly",
    "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b",
    (),
    _GIB,
    Member(
        name="fed_emnist_digitsonly_train.h5",
        size=108_270_697,
        max_bytes=_GIB,
        sha256="624e70419982f9efe42706f2b2c416bfd0af3f82822756f782d6e4d7f3b6e3ca",
    ),
    Member(
        name="fed_emnist_digitsonly_test.h5",
        size=34_813_048,
        max_bytes=_GIB,
        sha256="a145794aa494104852eb624a7ee8efd9b1209e92fea58f6c9f79d133579d15d9",
    ),
)

_EMNIST = _tff_archive(
    "fed_emnist",
    "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0",
    ("https://fedml.s3-us-west-1.amazonaws.com/fed_emnist.tar.bz2",),
    2 * _GIB,
    Member(name="fed_emnist_train.h5", max_bytes=2 * _GIB),
    Member(name="fed_emnist_test.h5", max_bytes=2 * _GIB),
)

_CIFAR100 = _tff_archive(
    "fed_cifar100",
    "e8575e22c038ecef1ce6c7d492d7abee7da13b1e1ba9b70a7fc18531ba7590de",
    (),
    _GIB,
    Member(name="fed_cifar100_train.h5", max_bytes=_GIB),
    Member(name="fed_cifar100_test.h5", max_bytes=_GIB),
)

_MNIST = _idx_files(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    (
        "train-images-idx3-ubyte",
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    (
        "train-labels-idx1-ubyte",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    (
        "t10k-images-idx3-ubyte",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    (
        "t10k-labels-idx1-ubyte",
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

_QMNIST = _idx_files(
    "qmnist",
    ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
    (
        "qmnist-train-labels-idx2-int",
        463_024,
        "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
        None,
    ),
    (
        "qmnist-test-labels-idx2-int",
        526_800,
        "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
        None,
    ),
)

_FASHION = _idx_files(
    "fashion-mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    (
        "train-images-idx3-ubyte",
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        None,
    ),
    (
        "train-labels-idx1-ubyte",
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        None,
    ),
    (
        "t10k-images-idx3-ubyte",
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        None,
    ),
    (
        "t10k-labels-idx1-ubyte",
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        None,
    ),
)

_KMNIST = _idx_files(
    "kmnist",
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    (
        "train-images-idx3-ubyte",
        None,
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        None,
    ),
    (
        "train-labels-idx1-ubyte",
        None,
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        None,
    ),
    (
        "t10k-images-idx3-ubyte",
        None,
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        None,
    ),
    (
        "t10k-labels-idx1-ubyte",
        None,
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        None,
    ),
)

_CIFAR10_BATCH_BYTES = 10_000 * (1 + 3 * 32 * 32)
_CIFAR10_BATCHES = tuple(
    Member(
        name=f"cifar-10-batches-bin/{batch}.bin",
        size=_CIFAR10_BATCH_BYTES,
        max_bytes=_CIFAR10_BATCH_BYTES,
    )
    for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
)
_CIFAR10 = RemoteFile(
    name="cifar-10-binary.tar.gz",
    folder="cifar",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    max_bytes=256 * _MIB,
    members=(
        *_CIFAR10_BATCHES,
        Member(name="cifar-10-batches-bin/batches.meta.txt", max_bytes=_MIB),
    ),
)

_MNIST_COUNTS = (60_000, 10_000)


def _names(files: tuple[RemoteFile, ...]) -> tuple[str, ...]:
    return tuple(file.name for file in files)


CATALOGUE: Mapping[str, PublicDataset] = {
    dataset.name: dataset
    for dataset in (
        _tff_pair(
            "emnist-digits",
            _DIGITS,
            Expected(
                splits=("train",),
                num_clients=3_383,
                num_examples=341_873,
                num_examples_of_ten=972,
                first_label=1,
            ),
            Expected(
                splits=("test",),
                num_clients=3_383,
                num_examples=40_832,
                num_examples_of_ten=116,
            ),
            num_classes=10,
        ),
        _tff_pair(
            "emnist-62",
            _EMNIST,
            Expected(splits=("train",), num_clients=3_400, num_examples=671_585),
            Expected(splits=("test",), num_clients=3_400, num_examples=77_483),
            num_classes=62,
        ),
        _tff_pair(
            "cifar100",
            _CIFAR100,
            Expected(splits=("train",), num_clients=500, num_examples=50_000),
            Expected(splits=("test",), num_clients=100, num_examples=10_000),
            num_classes=100,
            same_people=False,
        ),
        PublicDataset(
            entry=PUBLIC_DATASETS["mnist-writers"],
            files=(*_MNIST, *_QMNIST),
            format="idx",
            # Train and test are counted together, because the hold-out decides how they divide.
            expected=(
                Expected(splits=("train", "test"), num_clients=539, num_examples=60_000),
                Expected(splits=("central",), num_clients=297, num_examples=10_000),
            ),
            sources=_names((*_MNIST[:2], *_QMNIST[:1])),
            central_sources=_names((*_MNIST[2:], *_QMNIST[1:])),
            hold_out="within",
        ),
        _partitioned("mnist", _MNIST, "idx", _names(_MNIST), _MNIST_COUNTS),
        _partitioned(
            "fashion-mnist",
            _FASHION,
            "idx",
            _names(_FASHION),
            _MNIST_COUNTS,
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
        ),
        _partitioned("kmnist", _KMNIST, "idx", _names(_KMNIST), _MNIST_COUNTS),
        _partitioned(
            "cifar10",
            (_CIFAR10,),
            "cifar",
            ("cifar-10-batches-bin",),
            (50_000, 10_000),
        ),
    )
}
