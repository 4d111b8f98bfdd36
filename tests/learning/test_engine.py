"""The thread engine: forks, nested calls, several threads, and arrays that change meanwhile."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import datasets, learning, settings
from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError, DataError, RunError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines import threads
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from fedcli.runs import starting
from fedcli.runs.files import folder
from tests.kit.waiting import PATIENCE_SECONDS

MODEL = softmax_regression((4, 4), 3)
SGD_ROWS = ((0, (0.1, 0.0, 0.0)),)
SECONDS = PATIENCE_SECONDS  # a call that takes longer counts as hanging


def _pixels(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((30, 4, 4), dtype=np.float32)


def _clients() -> tuple[BatchedDataset, ...]:
    labels = np.arange(30, dtype=np.int32) % 3
    return tuple(from_arrays(_pixels(seed), labels, client_id=str(seed)) for seed in range(12))


def _train(engine: ThreadEngine, clients: object) -> bytes:
    task = ClientTask(
        rows=SGD_ROWS, params=MODEL.initial_params, round_num=0, weighting="num-examples"
    )
    return engine.train(MODEL.layout, task, clients).delta_sum.tobytes()  # type: ignore[arg-type]


# ---- Forks ---------------------------------------------------------------------------------------


def _in_fork(work: Callable[[], bytes]) -> bytes:
    """Returns the result of `work` in a forked process; fails if the process hangs."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send_bytes(work())
        except BaseException as err:
            sender.send_bytes(f"{type(err).__name__}: {err}".encode())

    child = context.Process(target=run)
    child.start()
    try:
        assert receiver.poll(SECONDS), "the child hangs"
        return receiver.recv_bytes()
    finally:
        child.kill()
        child.join()


forks = pytest.mark.skipif(sys.platform != "linux", reason="forks are safe only on Linux")


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("is_main", [True, False])
def test_a_fork_after_a_round_computes_the_same(num_threads: int, is_main: bool) -> None:
    """This holds too if a thread other than the main one computes and forks."""
    engine, clients = ThreadEngine(num_threads), _clients()

    def before_and_after() -> tuple[bytes, bytes]:
        return _train(engine, clients), _in_fork(lambda: _train(engine, clients))

    if is_main:
        before, after = before_and_after()
    else:
        with ThreadPoolExecutor(1) as pool:
            before, after = pool.submit(before_and_after).result()
    assert after == before
    assert _train(engine, clients) == before  # the parent's engine still works


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_a_round_runs_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child lacks the parent's computing thread, so it must free the locks of that thread."""
    engine, clients = ThreadEngine(1), _clients()
    expected = _train(engine, clients)
    is_reading, may_go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[BatchedDataset]:
        is_reading.set()
        may_go_on.wait(SECONDS)
        yield from clients

    thread = threading.Thread(target=_train, args=(engine, slow()))
    thread.start()
    assert is_reading.wait(SECONDS)
    try:
        assert _in_fork(lambda: _train(engine, clients)) == expected
    finally:
        may_go_on.set()
        thread.join()


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_client_states_cannot_be_used_in_a_fork() -> None:
    algorithm = algorithms.build(
        "scaffold",
        optimizers.sgd(0.1),
        optimizers.sgd(1.0),
        weighting="uniform",
        aggregator=aggregators.build("mean"),
    )
    process = learning.build_process(algorithm, MODEL, num_clients=12)
    state = process.next(process.initialize(), _clients()).state
    message = _in_fork(lambda: str(process.next(state, _clients())).encode())
    assert message.startswith(b"RunError: client states in a temporary file were opened before")
    assert process.next(state, _clients()).state.round_num == 2


# ---- Calls within calls, and from several threads ------------------------------------------------


def test_a_call_within_a_call_is_refused() -> None:
    engine, clients = ThreadEngine(1), _clients()

    def asks_again() -> Iterator[BatchedDataset]:
        yield clients[0]
        _train(engine, clients)

    with pytest.raises(ConfigError, match="engine of its own"):
        _train(engine, asks_again())
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="engine of its own"):
        pool.submit(_train, engine, asks_again()).result(SECONDS)
    other = ThreadEngine(1)

    def asks_another() -> Iterator[BatchedDataset]:
        _train(other, clients)
        yield from clients

    assert _train(engine, asks_another()) == _train(engine, clients)


def test_threads_that_share_an_engine_take_turns() -> None:
    engine, clients = ThreadEngine(2), _clients()
    expected = _train(engine, clients)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(_train, engine, clients) for _ in range(20)]
        assert {each.result(SECONDS) for each in results} == {expected}


def test_two_runs_in_two_threads_equal_runs_alone(tmp_path: Path) -> None:
    def run(seed: int, name: str) -> bytes:
        values = {"data_options": {"clients": 6}, "rounds": 3, "max_examples": 20, "seed": seed}
        with starting.start(settings.from_options(values), tmp_path / name) as training:
            training.complete()
        return (tmp_path / name / folder.METRICS).read_bytes()

    alone = [run(seed, f"alone-{seed}") for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(run, seed, f"together-{seed}") for seed in (1, 2)]
        assert [each.result(SECONDS) for each in together] == alone


def test_threads_share_data_whose_cache_is_full() -> None:
    train, _ = datasets.load("synthetic-digits", data_options={"clients": 30})
    assert train.cache is not None
    train.cache.max_bytes = 3 * train.client(train.client_ids[0]).pixels.nbytes
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            list(pool.map(train.client, train.client_ids))
    held = train.cache._clients.values()
    assert train.cache.bytes == sum(each.pixels.nbytes + each.labels.nbytes for each in held)


# ---- Arrays that others write to -----------------------------------------------------------------


def test_pixels_written_to_between_rounds_are_seen() -> None:
    """The engine keeps decoded pixels of a tuple of clients only if their arrays are read-only."""
    labels = np.arange(30, dtype=np.int32) % 3
    pixels = _pixels(1)
    engine, clients = ThreadEngine(1), (from_arrays(pixels, labels), from_arrays(pixels, labels))
    assert _train(engine, clients) == _train(engine, clients)
    pixels[...] = _pixels(2)
    assert _train(engine, clients) == _train(ThreadEngine(1), list(clients))
    hidden = from_arrays(_read_only_view(pixels), labels)
    first = _train(engine, (hidden,))
    pixels[...] = _pixels(3)
    assert _train(engine, (hidden,)) != first


def _read_only_view(array: NDArray[np.float32]) -> NDArray[np.float32]:
    view = array.view()
    view.flags.writeable = False
    return view


def test_what_fedcli_reads_and_read_only_arrays_are_decoded_once(tmp_path: Path) -> None:
    """If such bytes are changed without NumPy, the next round does not see the change."""
    labels = np.arange(30, dtype=np.int32) % 3
    grey = (_pixels(1) * 255).astype(np.uint8)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for name, pixels in (("bytes", grey), ("floats", _pixels(1)), ("shares", grey / 255)):
            client = file.create_group(f"examples/{name}")
            client["pixels"], client["label"] = pixels, labels
    train, _ = datasets.load(str(tmp_path / "train.h5"), num_classes=3)
    read = [train.client(each).preprocess(batch_size=10) for each in train.client_ids]
    assert [each.client.pixels.dtype.kind for each in read] == ["u", "f", "u"]
    grey.flags.writeable = False
    for client in (*read, from_arrays(grey, labels)):
        engine, clients = ThreadEngine(1), (client,)
        first = _train(engine, clients)
        stored = client.client.pixels
        ctypes.memset(stored.ctypes.data, 0, stored.nbytes)
        assert _train(engine, clients) == first
        assert _train(ThreadEngine(1), clients) != first


def test_an_array_is_read_only_if_its_memory_is() -> None:
    train, _ = datasets.load("synthetic-digits", data_options={"clients": 3})
    pixels = _pixels(1)
    assert not threads._is_read_only(pixels)
    assert not threads._is_read_only(_read_only_view(pixels))
    assert threads._is_read_only(np.frombuffer(bytes(8), np.uint8))
    assert not threads._is_read_only(np.frombuffer(bytearray(8), np.uint8))
    pixels.flags.writeable = False
    assert threads._is_read_only(pixels)
    assert threads._is_read_only(train.client(train.client_ids[0]).pixels)


def test_labels_written_to_while_a_round_runs_are_an_error() -> None:
    clients = _clients()
    with (
        pytest.raises(DataError, match="arrays: labels were changed while a round was using"),
        threads._faults(clients, 3),
    ):
        raise native.ChangedFault


def test_labels_that_another_thread_writes_to_index_nothing() -> None:
    """A check before the round is not enough: the core checks each label when it uses it."""
    labels = np.zeros(3000, np.int32)
    client = from_arrays(np.ones((3000, 4, 4), np.float32), labels).client.preprocess(epochs=5)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            labels[:] = 2
            labels[1500:] = 50_000_000

    writer = threading.Thread(target=write)
    writer.start()
    try:
        messages = [_error_of_round(client) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    assert all("label" in each for each in messages if each)


def _error_of_round(client: BatchedDataset) -> str:
    """Returns the error message of a round of one client, or an empty text."""
    try:
        _train(ThreadEngine(1), [client])
    except DataError as err:
        return str(err)
    return ""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_that_are_not_aligned_are_copied(dtype: type) -> None:
    labels = np.arange(30) % 3
    pixels: NDArray[Any] = _pixels(1).astype(dtype)

    def shifted(array: NDArray[Any]) -> NDArray[Any]:
        content = np.zeros(array.nbytes + 1, np.uint8)
        content[1:] = array.ravel().view(np.uint8)
        return content[1:].view(array.dtype).reshape(array.shape)

    odd = from_arrays(shifted(pixels), shifted(labels.astype(np.int32)))
    assert odd.client.pixels.flags.aligned
    assert odd.client.labels.flags.aligned
    assert _train(ThreadEngine(1), [odd]) == _train(ThreadEngine(1), [from_arrays(pixels, labels)])


def test_states_opened_before_a_fork_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcli.learning.client_states import ClientStates

    coming = ClientStates().next_version()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RunError, match="method spawn"):
        coming.write("a", np.ones(3, np.float32))
