"""The data that a config names: opened, fingerprinted, held against a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

from fedcli import datasets
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.client_data import ClientData
from fedcli.errors import DataError
from fedcli.models.model import Model
from fedcli.settings.data_source import DataSource


def open_data(source: DataSource, cancel: CancelFlag | None = None) -> dict[str, ClientData]:
    """Returns the splits of the data of a run, one of them `train`.

    Raises:
        Cancelled: `cancel` was raised while data were dealt to clients.
        DataError: They are missing or bad, or the splits do not agree.
    """

    def tell(done: int, total: int | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled

    splits = datasets.open_splits(source, tell=tell)
    if "train" not in splits:
        raise DataError(
            f"{source.data} has no split train but {', '.join(sorted(splits))}; choose other --data"
        )
    return splits


def note_of_replaced_test(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns a line that --test-data replaces a test split of --data, or none if it does not."""
    return tuple(
        f"--test-data {data.source} is the test split; that of --data {data.replaces} is not used"
        for data in splits.values()
        if data.replaces
    )


def notes_on(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns what the user of opened data should know, a line each.

    Of --test-data that replace a test split of --data, and of what a model learns badly from.
    """
    replaced = note_of_replaced_test(splits)
    seen = (note for data in splits.values() for note in data.examine())
    return (*replaced, *dict.fromkeys(seen))


def notes_of_sources(splits: Mapping[str, ClientData]) -> tuple[str, ...]:
    """Returns a line on what each foreign file was taken to be; stores say it themselves."""
    found = (data.description() for data in splits.values())
    return tuple(dict.fromkeys(each.short() for each in found if each is not None))


def check_fit(data: ClientData, model: Model) -> None:
    """Refuses data that a model was not made for.

    Raises:
        DataError: Images or classes differ.
    """
    layout = model.layout
    if tuple(data.pixel_shape) != layout.input_shape:
        raise DataError(
            f"{data.source} has images of shape {list(data.pixel_shape)}, the model takes "
            f"{list(layout.input_shape)}; choose data like those it was trained on"
        )
    if data.num_classes != layout.num_classes:
        raise DataError(
            f"{data.source} has {data.num_classes} classes, the model {layout.num_classes}; "
            f"pass --num-classes {layout.num_classes} if the labels are the same"
        )


class PendingFingerprint:
    """The fingerprint of data that a thread of its own reads through."""

    def __init__(self, source: DataSource, is_cancelled: Callable[[], bool]) -> None:
        """Starts to read; `is_cancelled` is asked after every MiB."""
        self._source = source
        self._is_cancelled = is_cancelled
        self._found: str | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._read, name="fedcli-fingerprint")
        self._thread.start()

    def result(self) -> str:
        """Waits for the fingerprint and returns it.

        Raises:
            Cancelled: The reading was cancelled.
            DataError: The data cannot be found or read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def _read(self) -> None:
        try:
            self._found = datasets.fingerprint(self._source, is_cancelled=self._is_cancelled)
        except BaseException as err:  # handed to whoever asks for the result
            self._error = err


@contextmanager
def fingerprinting(source: DataSource, cancel: CancelFlag | None) -> Iterator[PendingFingerprint]:
    """Reads the data through while the block opens them; hashing leaves other threads running.

    A raised `cancel`, or an error in the block, ends the reading of even the largest file at once.
    """
    is_left = Event()

    def is_cancelled() -> bool:
        return is_left.is_set() or (cancel is not None and cancel.is_set())

    try:
        yield PendingFingerprint(source, is_cancelled)
    finally:
        is_left.set()
