"""Opens the data that a config names, fingerprints them, and checks that they fit a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

from fedcli import datasets
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.client_data import ClientData
from fedcli.errors import DataError, plural
from fedcli.models.model import Model
from fedcli.settings.data_source import DataSource


def open_data(source: DataSource, cancel: CancelFlag | None = None) -> dict[str, ClientData]:
    """Returns the splits of a run's data, which include `train`.

    Raises:
        Cancelled: `cancel` was set while the data were partitioned.
        DataError: The data are missing or invalid, or the splits do not agree.
    """

    def on_progress(done: int, total: int | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled

    splits = datasets.open_splits(source, on_progress=on_progress)
    if "train" not in splits:
        raise DataError(
            f"{source.data} has no split train, only {', '.join(sorted(splits))}; choose other "
            "--data"
        )
    return splits


def notes_of_test_data(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns notes if --test-data replaces a test split of --data, or has the train examples."""
    replaced = tuple(
        f"--test-data {data.source} is the test split; the test split of --data {data.replaces} is "
        "not used"
        for data in splits.values()
        if data.replaces
    )
    repeated = tuple(
        f"--test-data {data.source} has the same examples as --data, so test results are those on "
        "train examples; give other test data, or hold examples out with --validation 0.1"
        for data in splits.values()
        if data.has_train_examples
    )
    return (*replaced, *repeated)


def notes_on(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns notes for the user about opened data, one line each.

    The first are those of `notes_of_test_data`. The others say which properties of the data make
    training difficult.
    """
    of_test = notes_of_test_data(splits)
    seen = (note for data in splits.values() for note in data.examine())
    return (*of_test, *dict.fromkeys(seen))


def notes_of_sources(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns a line on how each file of another program was interpreted; none for stores."""
    descriptions = (data.description() for data in splits.values())
    return tuple(dict.fromkeys(each.short() for each in descriptions if each is not None))


def check_fit(data: ClientData, model: Model) -> None:
    """Rejects data that do not fit a model.

    Raises:
        DataError: The shape of the images or the number of classes differs.
    """
    layout = model.layout
    if tuple(data.pixel_shape) != layout.input_shape:
        from fedcli.models.image_shapes import takes  # lazy: the shapes are usually equal

        if not takes(layout.input_shape, data.pixel_shape):
            raise DataError(
                f"{data.source} has images of shape {list(data.pixel_shape)}, but the model takes "
                f"{list(layout.input_shape)}; choose data of this shape, or another model"
            )
    if data.num_classes != layout.num_classes:
        remedy = f"choose a model whose last layer has {data.num_classes} outputs, or other data"
        if data.num_classes < layout.num_classes:
            remedy = f"set --num-classes to {layout.num_classes} if the labels mean what they mean "
            remedy += "to the model"
        raise DataError(
            f"{data.source} has {plural(data.num_classes, 'class')}, but the model has "
            f"{layout.num_classes}; {remedy}"
        )


class PendingFingerprint:
    """The fingerprint of data, computed by a background thread that reads them."""

    def __init__(self, source: DataSource, is_cancelled: Callable[[], bool]) -> None:
        """Starts the thread, which calls `is_cancelled` after every MiB."""
        self._source = source
        self._is_cancelled = is_cancelled
        self._fingerprint: str | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._read, name="fedcli-fingerprint")
        self._thread.start()

    def join(self) -> None:
        """Waits until the thread has ended.

        Call it before Python exits: if the thread still runs and holds h5py's lock, the exit waits
        for that lock.
        """
        self._thread.join()

    def result(self) -> str:
        """Waits for the fingerprint and returns it.

        Raises:
            Cancelled: The reading was cancelled.
            DataError: The data cannot be found or read.
        """
        self.join()
        if self._error is not None:
            raise self._error
        assert self._fingerprint is not None
        return self._fingerprint

    def _read(self) -> None:
        try:
            self._fingerprint = datasets.fingerprint(self._source, is_cancelled=self._is_cancelled)
        except BaseException as err:  # `result` raises it
            self._error = err


@contextmanager
def fingerprinting(source: DataSource, cancel: CancelFlag | None) -> Iterator[PendingFingerprint]:
    """Computes the fingerprint of data while the `with` block opens them.

    Hashing releases the GIL. If `cancel` is set, or the block raises, the reading stops within a
    MiB.
    """
    is_left = Event()

    def is_cancelled() -> bool:
        return is_left.is_set() or (cancel is not None and cancel.is_set())

    pending = PendingFingerprint(source, is_cancelled)
    try:
        yield pending
    finally:
        is_left.set()
        pending.join()
