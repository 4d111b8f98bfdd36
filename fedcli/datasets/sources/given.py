"""Client data that a program holds in memory, or makes when they are used.

`from_arrays` takes arrays or functions by client. `from_examples` takes any sequence of (image,
label), such as datasets of PyTorch and Hugging Face, and the owner of each example. What the two
functions return can be used like opened data: in `fedcli.train`, `fedcli.evaluate_run`,
`fedcli.statistics` and `process.next`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.batches import from_arrays as one_client
from fedcli.datasets.cache import ClientCache
from fedcli.datasets.checks import MAX_ID_BYTES, check_labels, has_channels_first
from fedcli.datasets.client_data import ClientData, decoding, unknown_client
from fedcli.datasets.examining import examine, sampled_ids
from fedcli.datasets.labels import whole_numbers
from fedcli.datasets.polarity import Border, can_measure
from fedcli.digest import blake2b
from fedcli.errors import ConfigError, DataError, plural
from fedcli.settings.data_source import IN_MEMORY, UNNAMED
from fedcli.settings.vocabulary import MAX_CLASSES, VALIDATION

CACHE_BYTES = 256 << 20  # size of the cache for clients that functions make

# Pairs (pixels, labels) by client, or functions that return them; or one pair without a client.
Clients = Mapping[Any, Any] | tuple[Any, Any]
EVERYONE = "everyone"  # the only client of examples without owners
# The keys of the image and of the label, if an example is a mapping.
IMAGE_KEYS = ("image", "img", "pixels", "x")
LABEL_KEYS = ("label", "labels", "fine_label", "character", "target", "y")


class GivenSplit(ClientData):
    """One split of clients in memory. Arrays are borrowed."""

    # Of a train split: the validation split that was given with it.
    companion_splits: Mapping[str, ClientData] = MappingProxyType({})

    def __init__(
        self,
        clients: Mapping[str, Callable[[], ClientDataset]],
        sizes: Mapping[str, int],
        *,
        split: str,
        source: str,
        num_classes: int,
        class_names: tuple[str, ...] | None,
        pixel_shape: tuple[int, ...],
        pixel_convention: str | None,
        cache: ClientCache,
    ) -> None:
        """Takes the arrays or functions of the clients.

        Args:
            clients: For each id, a function that returns the client's examples.
            sizes: Number of examples of each client for which it is known.
            split: The name of this split.
            source: The name of the data in messages.
            num_classes: Labels are 0 to num_classes - 1.
            class_names: A name for each class, or None.
            pixel_shape: (H, W) or (H, W, C) of each image.
            pixel_convention: Meaning of 1.0 in the pixels; None: it is measured.
            cache: Keeps clients that functions have made.
        """
        self.source = source
        self.split = split
        self.client_ids = sorted(clients)
        self.num_classes = num_classes
        self.class_names = class_names
        self.pixel_shape = pixel_shape
        self.cache: ClientCache = cache
        self._clients = clients
        self._sizes = dict(sizes)
        self._lock = threading.Lock()
        self.pixel_convention = pixel_convention or self._measured_convention()

    @property
    def range_remedy(self) -> str:
        """Advice, for a note, if pixels do not lie in the range 0 to 1."""
        return "divide them by their largest possible value, or give uint8"

    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds; calls the client's function if necessary."""
        if client_id not in self._sizes:
            self._sizes[client_id] = len(self.client(client_id))
        return self._sizes[client_id]

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples."""
        make = self._clients.get(client_id)
        if make is None:
            raise unknown_client(self, client_id)
        return self.cache.get(self.split, client_id, lambda: self._made(client_id, make))

    def examine(self) -> tuple[str, ...]:
        """Returns notes for the user before training; see `examining.examine`."""
        return examine(self, has_default_classes=False, is_scaled=False)

    def with_pixels(self, pixels: str) -> GivenSplit:
        """Returns the split in the convention "ink" or "background"; "source" changes nothing."""
        if pixels in ("source", self.pixel_convention):
            return self
        scale, offset, convention = decoding(1.0, 0.0, self.pixel_convention, pixels)

        def turned(make: Callable[[], ClientDataset]) -> Callable[[], ClientDataset]:
            def client() -> ClientDataset:
                made = make()
                factors = scale * made.scale, scale * made.offset + offset
                return ClientDataset(
                    made.client_id, made.pixels, made.labels, *factors, made.source
                )

            return client

        return GivenSplit(
            {name: turned(make) for name, make in self._clients.items()},
            self._sizes,
            split=self.split,
            source=self.source,
            num_classes=self.num_classes,
            class_names=self.class_names,
            pixel_shape=self.pixel_shape,
            pixel_convention=convention,
            cache=ClientCache(self.cache.max_bytes),
        )

    def _made(self, client_id: str, make: Callable[[], ClientDataset]) -> ClientDataset:
        """Makes and checks a client. Only one thread at a time does so."""
        with self._lock:
            client = make()
        where = f"{self.source}: client {client_id!r}"
        if client.pixels.shape[1:] != self.pixel_shape:
            raise DataError(
                f"{where}: images have shape {list(client.pixels.shape[1:])} but those of client "
                f"{self.client_ids[0]!r} have {list(self.pixel_shape)}; give all images the same "
                "shape"
            )
        check_labels(client.labels, self.num_classes, where)
        return client

    def _measured_convention(self) -> str:
        """The meaning of 1.0, estimated from the borders of a few clients' images, or "ink"."""
        if not can_measure(self.pixel_shape):
            return "ink"
        border = Border()
        for client_id in sampled_ids(self.client_ids):
            client = self.client(client_id)
            border.add(client.pixels[:100], client.scale, client.offset)
        return border.decide() or "ink"


@dataclass(frozen=True, eq=False)
class GivenData:
    """Splits in memory. `DataSource.data` may hold this instead of a name or a file.

    Attributes:
        splits: The splits by name; one of them is `train`.
        name: Name of the data in messages and config.toml.
    """

    splits: Mapping[str, ClientData]
    name: str = UNNAMED

    def __str__(self) -> str:
        """Returns the name of the data in a config."""
        return f"{IN_MEMORY}{self.name}"

    def open(self, pixels: str, num_classes: int | None) -> dict[str, ClientData]:
        """Returns the splits.

        Raises:
            ConfigError: The requested pixels or classes are not those of the data.
        """
        opened = {
            split: data.with_pixels(pixels) if isinstance(data, GivenSplit) else data
            for split, data in self.splits.items()
        }
        for data in opened.values():
            if num_classes not in (None, data.num_classes):
                raise ConfigError(
                    f"--num-classes {num_classes}: {self.name} has {data.num_classes} classes; "
                    "pass classes= to from_arrays or from_examples instead"
                )
            if pixels not in ("source", data.pixel_convention):
                raise ConfigError(
                    f"--pixels {pixels}: the pixel value 1.0 means {data.pixel_convention} in "
                    f"{self.name}; pass pixels= to from_arrays or from_examples instead"
                )
        return opened

    def fingerprint(self, is_cancelled: Callable[[], bool]) -> str | None:
        """Returns the fingerprint of ids, pixels and labels of all clients; None if cancelled."""
        digest = blake2b(digest_size=32)
        for split, data in sorted(self.splits.items()):
            digest.update(f"{split} {data.num_classes} {data.pixel_shape}\n".encode())
            for client_id in data.client_ids:
                if is_cancelled():
                    return None
                client = data.client(client_id)
                about = f"{client_id}\n{client.pixels.dtype} {client.scale} {client.offset}\n"
                digest.update(about.encode(errors="surrogateescape"))
                digest.update(np.ascontiguousarray(client.pixels).data)
                digest.update(np.ascontiguousarray(client.labels).data)
        return f"memory:{digest.hexdigest()}"


def from_arrays(
    clients: Clients,
    *,
    test: Clients | None = None,
    validation: Clients | None = None,
    classes: int | Sequence[str] | None = None,
    pixels: str | None = None,
    name: str = UNNAMED,
) -> tuple[ClientData, ClientData | None]:
    """Returns arrays in memory as federated data: the train split, and the test split or None.

    Args:
        clients: For each client id, a pair (pixels, labels) of arrays, or a function without
            arguments that returns such a pair and is called when the client is used. pixels: uint8,
            which the model sees divided by 255, or floats from 0 to 1, of shape [n, H, W] or [n, H,
            W, C]; [n, C, H, W] with 1 or 3 channels is recognised. labels: whole numbers [n] or [n,
            1], or one-hot rows [n, k]. Pixels of uint8 or float32 in C order are borrowed, not
            copied, and must not change. A pair instead of the mapping: a single client, "everyone",
            owns all examples, as in `from_examples`.
        test: The test data in the same form; equal ids mean the same client. For test data that
            belong to no client, give a pair.
        validation: The validation data in the same form; `fedcli.train` finds them in the train
            split.
        classes: Number of classes, or a name for each; None: determined by the labels. It is
            required if clients are functions.
        pixels: What 1.0 means, "ink" or "background"; None: estimated from the borders of the
            images.
        name: Name of the data in messages and in the run's config.toml.

    Raises:
        ConfigError: `classes` or `pixels` is not allowed.
        DataError: There is no client, or examples cannot be used; the message names client and
            example.
    """
    parts = {"train": clients, "test": test, VALIDATION: validation}
    given = {split: each for split, each in parts.items() if each is not None}
    readers: dict[str, dict[str, Callable[[], ClientDataset]]] = {}
    sizes: dict[str, dict[str, int]] = {}
    largest = -1
    for split, each in given.items():
        readers[split], sizes[split] = {}, {}
        for client_id, pair in _by_id(each, name, split).items():
            if callable(pair):
                readers[split][client_id] = _maker(client_id, pair, name)
                continue
            client = _client(client_id, pair, name)
            readers[split][client_id] = lambda client=client: client  # type: ignore[misc]
            sizes[split][client_id] = len(client)
            largest = max(largest, int(client.labels.max(initial=-1)))
    are_known = all(len(sizes[split]) == len(readers[split]) for split in readers)
    num_classes, class_names = _classes(classes, largest, name, are_known=are_known)
    return _splits(readers, sizes, num_classes, class_names, pixels, name)


def from_examples(
    examples: Any,
    owners: Sequence[Any] | None = None,
    *,
    test: Any = None,
    test_owners: Sequence[Any] | None = None,
    classes: int | Sequence[str] | None = None,
    pixels: str | None = None,
    name: str = UNNAMED,
) -> tuple[ClientData, ClientData | None]:
    """Returns a sequence of (image, label) as federated data: train, and test or None.

    The sequence has `len(examples)` and `examples[i]`, as datasets of PyTorch and Hugging Face do.
    An example is a pair, or a mapping with `image` and `label`; an image is an array, a tensor or a
    PIL image. A client's examples are read when it is used.

    Args:
        examples: The train data.
        owners: The id of the owner of each example. None: a single client, "everyone", owns all; a
            partition (`RunConfig(partition="iid")`) can then assign them to clients.
        test: The test data in the same form.
        test_owners: The id of the owner of each test example.
        classes: Number of classes, or a name for each; None: as the sequence declares (`classes`,
            or `features["label"]`), else inferred from all labels.
        pixels: As in `from_arrays`.
        name: As in `from_arrays`.

    Raises:
        ConfigError: `classes` or `pixels` is not allowed.
        DataError: Owners are missing, or examples cannot be used.
    """
    parts = {"train": (examples, owners), "test": (test, test_owners)}
    given = {split: each for split, each in parts.items() if each[0] is not None}
    readers: dict[str, dict[str, Callable[[], ClientDataset]]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for split, (sequence, of_whom) in given.items():
        places = _places(sequence, of_whom, f"{name}: {split}")
        readers[split] = {
            client_id: _reader(client_id, sequence, indices, name)
            for client_id, indices in places.items()
        }
        sizes[split] = {client_id: len(indices) for client_id, indices in places.items()}
    classes = _stated_classes(examples) if classes is None else classes
    largest = -1
    if classes is None:
        for makers in readers.values():
            for make in makers.values():
                largest = max(largest, int(make().labels.max(initial=-1)))
    num_classes, class_names = _classes(classes, largest, name, are_known=True)
    return _splits(readers, sizes, num_classes, class_names, pixels, name)


def as_given(data: Any, name: str = UNNAMED) -> GivenData:
    """Converts the `data` of `fedcli.train`, if it is not a string, to splits in memory.

    Args:
        data: A split, a pair (train, test) in which test may be None, a mapping of splits by name,
            or arrays by client as `from_arrays` takes them.
        name: As in `from_arrays`.

    Raises:
        DataError: `data` is none of these.
    """
    if isinstance(data, GivenData):
        return data
    if isinstance(data, ClientData):
        return GivenData(_with_others({"train": data}), data.source)
    if isinstance(data, tuple) and data and isinstance(data[0], ClientData) and len(data) <= 2:
        return _given_pair(data)
    if isinstance(data, Mapping) and data:
        if all(isinstance(each, ClientData) for each in data.values()):
            return GivenData(dict(data), next(iter(data.values())).source)
        return _given_pair(from_arrays(data, name=name))
    kind = type(data).__name__
    raise DataError(
        f"data is of type {kind}; give a name or file, the result of datasets.load, from_arrays or "
        "from_examples, or {client_id: (pixels, labels)}"
    )


def _given_pair(pair: tuple[Any, ...]) -> GivenData:
    train = pair[0]
    test = pair[1] if len(pair) > 1 else None
    if test is not None and not isinstance(test, ClientData):
        raise DataError(f"data[1] is of type {type(test).__name__}; give a test split, or None")
    splits = {"train": train} if test is None else {"train": train, "test": test}
    return GivenData(_with_others(splits), train.source)


def _with_others(splits: dict[str, ClientData]) -> dict[str, ClientData]:
    """The splits, with the validation data that were given with train."""
    train = splits["train"]
    return {**splits, **train.companion_splits} if isinstance(train, GivenSplit) else splits


def _splits(
    readers: Mapping[str, Mapping[str, Callable[[], ClientDataset]]],
    sizes: Mapping[str, Mapping[str, int]],
    num_classes: int,
    class_names: tuple[str, ...] | None,
    pixels: str | None,
    name: str,
) -> tuple[ClientData, ClientData | None]:
    if pixels not in (None, "ink", "background"):
        raise ConfigError(f"pixels={pixels!r}: choose 'ink' or 'background'")
    cache = ClientCache(CACHE_BYTES)
    shape, convention = None, pixels
    made: dict[str, GivenSplit] = {}
    for split, clients in readers.items():
        if not clients:
            raise DataError(f"{name}: {split} has no clients; give at least one")
        if shape is None:
            shape = _first_shape(clients)
        made[split] = GivenSplit(
            clients,
            sizes[split],
            split=split,
            source=name,
            num_classes=num_classes,
            class_names=class_names,
            pixel_shape=shape,
            pixel_convention=convention,
            cache=cache,
        )
        convention = made["train"].pixel_convention  # the same for all splits
    if VALIDATION in made:
        made["train"].companion_splits = {VALIDATION: made[VALIDATION]}
    return made["train"], made.get("test")


def _first_shape(clients: Mapping[str, Callable[[], ClientDataset]]) -> tuple[int, ...]:
    first: ClientDataset = clients[min(clients)]()
    shape: tuple[int, ...] = first.pixels.shape[1:]
    return shape


def _by_id(clients: Any, name: str, split: str) -> dict[str, Any]:
    """The clients by their ids as strings."""
    if isinstance(clients, tuple) and len(clients) == 2:
        return {EVERYONE: clients}
    if not isinstance(clients, Mapping):
        raise DataError(
            f"{name}: {split} is of type {type(clients).__name__}; give a dict, "
            "{client_id: (pixels, labels)}, or a pair (pixels, labels)"
        )
    found: dict[str, Any] = {}
    for key, value in clients.items():
        client_id = _id_of(key, name)
        if client_id in found:
            raise DataError(f"{name}: two clients have the id {client_id!r}; give each its own")
        found[client_id] = value
    return found


def _id_of(key: Any, name: str) -> str:
    text = str(key.item() if isinstance(key, np.generic) else key)
    num_bytes = len(text.encode(errors="surrogatepass"))
    if not isinstance(key, str | int | np.integer) or not text or num_bytes > MAX_ID_BYTES:
        raise DataError(
            f"{name}: a client's id is {key!r}; give a text or a whole number of at most "
            f"{MAX_ID_BYTES} bytes"
        )
    return text


def _maker(client_id: str, function: Callable[[], Any], name: str) -> Callable[[], ClientDataset]:
    return lambda: _client(client_id, function(), name)


def _client(client_id: str, pair: Any, name: str) -> ClientDataset:
    """One client's examples, checked."""
    where = f"{name}: client {client_id!r}"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(
            f"{where} is of type {type(pair).__name__}; give a pair (pixels, labels) of arrays, or "
            "a function that returns one"
        )
    images, labels = _array(pair[0], f"{where}: pixels"), _array(pair[1], f"{where}: labels")
    if has_channels_first(images.shape):
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4):
        raise DataError(
            f"{where}: pixels are {images.dtype} {list(images.shape)}; give [n, H, W] or "
            "[n, H, W, C]"
        )
    if images.dtype == np.float16:
        images = images.astype(np.float32)
    labels = whole_numbers(labels, where)
    return one_client(images, labels, client_id=client_id, source=name).client


def _array(values: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:  # parts of different lengths
        raise DataError(f"{where}: is a list whose items differ in size; give an array") from None


def _classes(
    classes: int | Sequence[str] | None, largest: int, name: str, *, are_known: bool
) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes, and their names if they have any."""
    if classes is None:
        if not are_known:
            raise ConfigError(
                f"{name}: clients are functions, so the number of classes is unknown; pass "
                "classes=, their number or names"
            )
        return max(largest, 0) + 1, None
    if isinstance(classes, int | np.integer) and not isinstance(classes, bool):
        if not 1 <= classes <= MAX_CLASSES:
            raise ConfigError(f"classes={classes}: choose a whole number from 1 to {MAX_CLASSES}")
        return int(classes), None
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise ConfigError(f"classes={classes!r}: give their number, or a list of their names")
    return len(classes), tuple(map(str, classes))


def _stated_classes(examples: Any) -> int | Sequence[str] | None:
    """The classes that a sequence declares: torchvision's `classes`, Hugging Face's features."""
    names = getattr(examples, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(each, str) for each in names):
        return names
    features = getattr(examples, "features", None)
    for key in LABEL_KEYS:
        named = getattr(features.get(key), "names", None) if isinstance(features, Mapping) else None
        if named:
            return [str(each) for each in named]
    return None


def _places(examples: Any, owners: Sequence[Any] | None, name: str) -> dict[str, list[int]]:
    """Which examples each client has."""
    try:
        size = len(examples)
        _ = examples.__getitem__
    except (TypeError, AttributeError):
        raise DataError(
            f"{name} is of type {type(examples).__name__}; give a sequence with len(...) "
            "and [i], such as a list"
        ) from None
    if not size:
        raise DataError(f"{name} holds no examples; give at least one")
    if owners is None:
        return {EVERYONE: list(range(size))}
    if len(owners) != size:
        raise DataError(
            f"{name}: {plural(size, 'example')} but {plural(len(owners), 'owner')}; give one owner "
            "per example"
        )
    places: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        places.setdefault(_id_of(owner, name), []).append(index)
    return places


def _reader(
    client_id: str, examples: Any, indices: Sequence[int], name: str
) -> Callable[[], ClientDataset]:
    def read() -> ClientDataset:
        where = f"{name}: client {client_id!r}"
        pairs = [_image_and_label(examples[index], where) for index in indices]
        shapes = {image.shape for image, _ in pairs}
        if len(shapes) > 1:
            one, other, *_ = sorted(shapes)
            raise DataError(
                f"{where}: images have shapes {list(one)} and {list(other)}; resize them to one "
                "size"
            )
        images = np.stack([image for image, _ in pairs])
        return _client(client_id, (images, [label for _, label in pairs]), name)

    return read


def _image_and_label(example: Any, where: str) -> tuple[NDArray[Any], Any]:
    if isinstance(example, Mapping):
        image = next((example[key] for key in IMAGE_KEYS if key in example), None)
        label = next((example[key] for key in LABEL_KEYS if key in example), None)
        if image is None or label is None:
            raise DataError(
                f"{where}: an example has the keys {', '.join(map(str, example))}; give image and "
                "label"
            )
    elif isinstance(example, tuple | list) and len(example) == 2:
        image, label = example
    else:
        raise DataError(
            f"{where}: an example is of type {type(example).__name__}; give (image, label)"
        )
    array = np.asarray(image)
    if array.ndim == 3 and has_channels_first((1, *array.shape)):
        array = np.moveaxis(array, 0, -1)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    number: Any = np.asarray(label)
    return array, number.item() if number.size == 1 else number
