"""The data that a config names: opened, fingerprinted, held against a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from fedcli import datasets
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.errors import DataError
from fedcli.models import sources
from fedcli.models.model import Model
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import HELD_OUT


def open_data(config: RunConfig, cancel: CancelFlag | None = None) -> dict[str, ClientData]:
    """Returns the splits of a config's data, one of them `train`.

    Raises:
        Cancelled: `cancel` was raised while data were dealt to clients.
        DataError: They are missing or bad, or the splits do not agree.
    """

    def tell(done: int, total: int | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled

    splits = datasets.open_splits(
        config.data,
        data_options=config.data_options,
        test_data=config.test_data,
        partition=config.partition,
        partition_options=config.partition_options,
        num_classes=config.num_classes,
        pixels=config.pixels,
        tell=tell,
    )
    if "train" not in splits:
        raise DataError(
            f"{config.data} has no split train but {', '.join(sorted(splits))}; choose other --data"
        )
    return splits


def held_out_split(splits: Mapping[str, ClientData]) -> str | None:
    """Returns the split that is evaluated beside train: test, else central, None without both."""
    return next((name for name in HELD_OUT if name in splits), None)


def judged_split(config: RunConfig, splits: Mapping[str, ClientData]) -> str | None:
    """Returns the split that a run's model is judged by; None if it is train.

    It is the one held out, unless that is central and each client has a model of its own.
    """
    held_out = held_out_split(splits)
    has_own_models = tables.ALGORITHMS[config.algorithm].has_own_models
    return None if has_own_models and held_out == CENTRAL else held_out


def note_of_own_models(config: RunConfig) -> tuple[str, ...]:
    """Returns a line on what is evaluated, or none if it is one model for all."""
    if not tables.ALGORITHMS[config.algorithm].has_own_models:
        return ()
    what = "each client is evaluated with its own model, one that never trained with the initial"
    return (f"{config.algorithm}: {what} one",)


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


@contextmanager
def fingerprinting(config: RunConfig, cancel: CancelFlag | None) -> Iterator[Future[str]]:
    """Reads the data through while the block opens them; hashing leaves other threads running.

    A raised `cancel`, or an error in the block, ends the reading of even the largest file at once.
    """
    is_left = Event()

    def is_cancelled() -> bool:
        return is_left.is_set() or (cancel is not None and cancel.is_set())

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedcli-fingerprint")
    try:
        yield executor.submit(
            datasets.fingerprint,
            config.data,
            data_options=config.data_options,
            test_data=config.test_data,
            partition=config.partition,
            partition_options=config.partition_options,
            is_cancelled=is_cancelled,
        )
    finally:
        is_left.set()
        executor.shutdown(wait=False)


def note_of_changed_model(text: str | None, before: object) -> tuple[str, ...]:
    """Returns a line that the file of a model in Python has changed, or none.

    Args:
        text: What --model was, FILE.py or FILE.py:FUNCTION; any other: there is nothing to say.
        before: The file's fingerprint when the run began; None: not known.

    Raises:
        ModelError: The file cannot be read.
    """
    if before is None or text is None or sources.code_fingerprint(text) in (None, before):
        return ()
    file = sources.python_file(text)
    return (f"{file} has changed since the run began; the model is what it makes now",)
