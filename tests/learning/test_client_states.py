"""States that clients keep: versions, their files, and what remains after each way to end a run."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.errors import RunError
from fedcli.learning import client_vector_file
from fedcli.learning.client_states import FILES, ClientStates
from fedcli.learning.client_vector_file import Store
from fedcli.runs import starting, trained
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.saved_states import client_states_of
from tests.kit.training import resume_to_end, train

NUM_PARAMS = 50
FILE = FILES[0]


def _vector(value: float) -> np.ndarray:
    return np.full(NUM_PARAMS, value, np.float32)


def _next(states: ClientStates, values: Mapping[str, float]) -> ClientStates:
    coming = states.next_version()
    for client_id, value in values.items():
        coming.write(client_id, _vector(value))
    return coming.after


def _read(states: ClientStates, client_id: str) -> float:
    vector = states.read(client_id, NUM_PARAMS)
    assert vector.dtype == np.float32
    assert len(set(vector.tolist())) == 1
    return float(vector[0])


def _num_rows(path: Path) -> int:
    with sqlite3.connect(path) as file:
        return int(file.execute("SELECT count(*) FROM states").fetchone()[0])


def test_a_version_has_what_was_written_up_to_it() -> None:
    states = ClientStates()
    assert _read(states, "a") == 0.0
    first = _next(states, {"a": 1.0, "b": 2.0})
    second = _next(first, {"b": 3.0, "ä/'; --": 4.0})
    assert [_read(first, each) for each in ("a", "b", "c")] == [1.0, 2.0, 0.0]
    assert [_read(second, each) for each in ("a", "b", "ä/'; --")] == [1.0, 3.0, 4.0]
    assert (states.version, first.version, second.version) == (0, 1, 2)


def test_a_version_being_written_leaves_the_one_before_as_it_is() -> None:
    first = _next(ClientStates(), {"a": 1.0})
    coming = first.next_version()
    coming.write("a", _vector(5.0))
    assert (_read(coming.before, "a"), _read(coming.after, "a")) == (1.0, 5.0)
    again = first.next_version()  # as after an interrupted round
    assert (_read(again.before, "a"), _read(again.after, "a")) == (1.0, 1.0)


def test_a_superseded_version_is_refused() -> None:
    first = _next(ClientStates(), {"a": 1.0})
    second = _next(first, {"a": 2.0})
    other = _next(first, {"a": 3.0})
    with pytest.raises(RunError, match="after round 2 are no longer kept"):
        _read(second, "a")
    third = _next(other, {"a": 4.0})
    fourth = _next(third, {})
    assert (_read(third, "a"), _read(fourth, "a")) == (4.0, 4.0)
    with pytest.raises(RunError, match="after round 2 are no longer kept"):
        _next(other, {})
    assert _read(fourth, "a") == 4.0  # the refusal has changed nothing


def test_a_file_holds_few_versions_of_each_client(tmp_path: Path) -> None:
    states = ClientStates().open_in(tmp_path, [0])
    for number in range(1, 41):
        states = _next(states, {"a": float(number), "b": -float(number)})
        if number % 10 == 0:
            kept = [number - 10, number]
            states.save([number - 10])
    assert kept == [30, 40]
    # For each of two clients: rows of two checkpoints, and of the last two rounds.
    assert _num_rows(tmp_path / FILE) <= 2 * 4
    states.close()
    again = ClientStates(30).open_in(tmp_path, [30, 40])
    assert (_read(again, "a"), _read(again, "b")) == (30.0, -30.0)
    again.close()


def test_unsaved_vectors_are_lost_and_saved_ones_remain(tmp_path: Path) -> None:
    first = _next(ClientStates().open_in(tmp_path, [0]), {"a": 1.0})
    first.save([0])
    _next(_next(first, {"a": 2.0}), {"a": 3.0}).close()
    again = ClientStates(1).open_in(tmp_path, [0, 1])
    assert _read(again, "a") == 1.0
    again.close()


def test_versions_after_a_checkpoint_are_undone(tmp_path: Path) -> None:
    """Such versions remain if a process is killed between saving states and its checkpoint."""
    first = _next(ClientStates().open_in(tmp_path, [0]), {"a": 1.0})
    first.save([0])
    second = _next(first, {"a": 2.0, "b": 2.0})
    second.save([0, 1])
    second.close()
    again = ClientStates(1).open_in(tmp_path, [0, 1])
    assert (_read(again, "a"), _read(again, "b")) == (1.0, 0.0)
    other = _next(again, {"c": 5.0})
    assert [_read(other, each) for each in "abc"] == [1.0, 0.0, 5.0]
    other.close()


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from fedcli.learning.client_states import ClientStates
states = ClientStates().open_in(Path(sys.argv[1]), [0])
for number in range(1, 8):
    coming = states.next_version()
    for client in range(60):
        coming.write(str(client), np.full(100_000, number, np.float32))
    states = coming.after
    if number == 3:
        states.save([0])
os._exit(9)
"""


def test_a_killed_process_leaves_the_last_save_whole(tmp_path: Path) -> None:
    """The process has more unsaved states than the cache holds, so some are in the file."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    states = ClientStates(3).open_in(tmp_path, [0, 3])
    for client in range(60):
        assert (states.read(str(client), 100_000) == 3.0).all()
    states.close()


MANY = """
import resource, sys
from pathlib import Path
import numpy as np
from fedcli.learning.client_states import ClientStates
states = ClientStates().open_in(Path(sys.argv[1]), [0])
vector = np.ones(50_000, np.float32)
for number in range(2):
    coming = states.next_version()
    for client in range(int(sys.argv[2])):
        coming.write(str(client), vector)
        coming.before.read(str(client), 50_000)
    states = coming.after
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    peaks = []
    for num_clients in (350, 700):  # 70 or 140 MB a round, of which at most 64 MiB wait in memory
        folder = tmp_path / str(num_clients)
        folder.mkdir()
        command = [sys.executable, "-c", MANY, str(folder), str(num_clients)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(result.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 12 << 20


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    states = _next(ClientStates().open_in(tmp_path, [0]), {"a": 1.0})
    with pytest.raises(RunError, match=r"client 'a' has 50 values instead of 51; restore"):
        states.read("a", 51)
    states.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, None], ids=["text", "foreign"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / FILE
    if content is not None:
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as file:
            file.execute("CREATE TABLE states (client TEXT)")
    with pytest.raises(RunError, match=r"client_states\.sqlite"):
        ClientStates(1).open_in(tmp_path, [1])


def test_every_flipped_byte_is_reported_or_changes_nothing(tmp_path: Path) -> None:
    """SQLite reserves a few bytes that belong to no record: changing them has no effect."""
    values = {f"c{number}": float(number) for number in range(1, 9)}
    states = _next(ClientStates().open_in(tmp_path, [0]), values)
    states.save([0])
    states.close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x24]) + whole[place + 1 :])
        try:
            again = ClientStates(1).open_in(tmp_path, [1])
            try:
                read = {client_id: _read(again, client_id) for client_id in values}
            finally:
                again.close()
        except RunError as err:
            messages.append(str(err))
        else:
            assert read == values
    assert len(messages) > 20  # one byte in 61 is flipped; 8 vectors have 200 bytes each
    assert all(FILE in line and "\n" not in line for line in messages)


def test_every_byte_of_a_vector_is_checked(tmp_path: Path) -> None:
    states = _next(ClientStates().open_in(tmp_path, [0]), {"a": 1.0})
    states.save([0])
    states.close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    start = whole.index(_vector(1.0).tobytes())
    for place in range(start, start + 4 * NUM_PARAMS):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        again = ClientStates(1).open_in(tmp_path, [1])
        with pytest.raises(RunError, match="state of client 'a' is damaged"):
            again.read("a", NUM_PARAMS)
        again.close()


def test_the_digest_depends_only_on_the_rows(tmp_path: Path) -> None:
    states = ClientStates().open_in(tmp_path, [0])
    assert states.digest == 0
    first = _next(states, {"a": 1.0, "b": 2.0})
    coming = first.next_version()
    for value in (3.0, 4.0):  # the client is twice in the cohort
        coming.write("a", _vector(value))
    second = coming.after
    second.save([0])
    assert first.digest == _next(ClientStates(), {"b": 2.0, "a": 1.0}).digest
    assert second.digest == _next(_next(ClientStates(), {"b": 2.0, "a": 5.0}), {"a": 4.0}).digest
    assert len({0, first.digest, second.digest}) == 3
    second.close()
    for states in (first, second):
        again = ClientStates(states.version).open_in(tmp_path, [1, 2], states.digest)
        assert again.digest == states.digest
        again.close()


def test_what_is_replaced_before_it_is_saved_is_never_written(tmp_path: Path) -> None:
    states = ClientStates().open_in(tmp_path, [0])
    for number in range(1, 6):
        states = _next(states, {"a": float(number), "b": -float(number)})
    assert _num_rows(tmp_path / FILE) == 0
    borrowed = states.borrow("a", NUM_PARAMS)
    assert borrowed is not None
    assert borrowed[0] == 5.0
    assert states.borrow("c", NUM_PARAMS) is None
    states.save([0])
    assert _num_rows(tmp_path / FILE) == 4  # the last two versions of each client
    assert (_read(states, "a"), _read(states, "b")) == (5.0, -5.0)
    states.close()


def _results(folder: Path) -> list[Any]:
    """Returns the states of each round, and the last digest; every round is first undone once."""
    states = ClientStates().open_in(folder, [0])
    seen: list[Any] = []
    for number in range(1, 8):
        undone = _next(states, {"a": 99.0, "d": 98.0})  # dropped: the same round is repeated below
        assert _read(undone, "d") == 98.0
        states = _next(states, {"a": float(number), f"{number % 3}": -float(number)})
        if number % 3 == 0:
            states.save([number - 3])
        seen.append([_read(states, each) for each in ("a", "0", "1", "2", "d")])
    states.save([3, 6])
    seen.append(states.digest)
    states.close()
    again = ClientStates(7).open_in(folder, [6, 7], states.digest)
    seen.append([_read(again, each) for each in ("a", "0", "1", "2", "d")])
    again.close()
    return seen


def test_vectors_in_memory_and_in_the_file_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("late", "at once"):
        (tmp_path / name).mkdir()
    late = _results(tmp_path / "late")
    monkeypatch.setattr(client_vector_file, "PENDING_BYTES", 0)
    assert _results(tmp_path / "at once") == late


def _fill(states: ClientStates) -> None:
    """Limits the file to its present pages, so that SQLite fails as on a full disk."""
    states._shared.open()._file.execute("PRAGMA max_page_count = 1")


def test_after_a_change_that_failed_nothing_is_saved(tmp_path: Path) -> None:
    first = _next(ClientStates().open_in(tmp_path, [0]), {"a": 1.0})
    first.save([0])
    second = _next(first, {"a": 2.0})
    _fill(second)
    coming = second.next_version()
    coming.write("b", np.ones(100_000, np.float32))  # this vector needs new pages of the file
    with pytest.raises(RunError, match="disk is full"):
        coming.after.save([0, 1])
    second._shared.open()._file.execute(
        "PRAGMA max_page_count = 1000000"
    )  # the disk has room again
    for call in (
        lambda: second.save([0, 1]),
        lambda: coming.write("a", _vector(4.0)),
        lambda: second.read("a", NUM_PARAMS),  # SQLite has rolled back the 2.0 of a
        second.next_version,
    ):
        with pytest.raises(RunError, match="disk is full"):
            call()
    second.close()
    again = ClientStates(1).open_in(tmp_path, [0, 1], first.digest)
    assert _read(again, "a") == 1.0
    again.close()


# ---- In a run ------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "data_options": {"clients": 12},
    "clients": "4",
    "sampling": "uniform",
    "algorithm": "scaffold",
    "rounds": 6,
    "epochs": 1,
    "max_examples": 40,
    "checkpoint_every": 2,
}


def _train(path: Path, **values: Any) -> None:
    train(path, settings.from_options({**VALUES, **values}))


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    _train(tmp_path / "straight")
    _train(tmp_path / "mended")
    wanted = run_dir.latest_checkpoint(tmp_path / "straight").read_bytes()
    damaged = run_dir.latest_checkpoint(tmp_path / "mended")
    assert damaged.read_bytes() == wanted
    damaged.unlink()
    with starting.resume(tmp_path / "mended") as training:
        assert training.round_num == 4
    resume_to_end(tmp_path / "mended")
    assert damaged.read_bytes() == wanted


def test_a_run_without_its_file_is_not_resumed(tmp_path: Path) -> None:
    _train(tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(RunError, match=r"client_states\.sqlite is missing, .* start a new run"):
        starting.resume(tmp_path / "run", rounds=8)


def test_a_run_keeps_only_clients_that_took_part(tmp_path: Path) -> None:
    _train(tmp_path / "run", data_options={"clients": 1000}, rounds=2)
    with sqlite3.connect(tmp_path / "run" / FILE) as file:
        assert file.execute("SELECT count(DISTINCT client) FROM states").fetchone()[0] <= 8


def test_an_algorithm_without_states_makes_no_file(tmp_path: Path) -> None:
    _train(tmp_path / "run", algorithm="fedavg", rounds=1)
    assert not (tmp_path / "run" / FILE).exists()


def _straight(tmp_path: Path, algorithm: str) -> Path:
    _train(tmp_path / "straight", algorithm=algorithm)
    return run_dir.latest_checkpoint(tmp_path / "straight")


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "local-only"])
def test_a_full_disk_saves_no_checkpoint_whose_states_are_lost(
    tmp_path: Path, algorithm: str
) -> None:
    wanted = _straight(tmp_path, algorithm)
    config = settings.from_options({**VALUES, "algorithm": algorithm})

    def is_full_after_three(result: starting.RoundResult) -> None:
        if result.round_num == 3:
            for states in client_states_of(training.state):
                _fill(states)

    training = starting.start(config, tmp_path / "run")
    with pytest.raises(RunError, match="disk is full"):
        training.complete([is_full_after_three])
    with pytest.raises(RunError, match="disk is full"):
        training.close()
    assert run_dir.checkpoint_rounds(tmp_path / "run")[-1] == 2
    with starting.resume(tmp_path / "run") as again:
        again.complete()
    assert run_dir.latest_checkpoint(tmp_path / "run").read_bytes() == wanted.read_bytes()


def _delete_first_client(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("DELETE FROM states WHERE client = (SELECT min(client) FROM states)")


def _swap_two_clients(path: Path) -> None:
    with sqlite3.connect(path) as file:
        first, last = file.execute("SELECT min(client), max(client) FROM states").fetchone()
        for old, new in ((first, "?"), (last, first), ("?", last)):
            file.execute("UPDATE states SET client = ? WHERE client = ?", (new, old))


@pytest.mark.parametrize("algorithm", ["scaffold", "local-only"])
@pytest.mark.parametrize("kind", ["older", "other", "row", "swapped", "empty"])
def test_states_of_another_time_or_run_are_refused(
    tmp_path: Path, kind: str, algorithm: str
) -> None:
    """`fedcli eval` refuses them too if the algorithm keeps a model for each client."""
    run = tmp_path / "run"
    config = settings.from_options({**VALUES, "algorithm": algorithm, "rounds": 4})
    with starting.start(config, run) as training:
        training.complete()
    file = run / FILE
    if kind == "older":
        shutil.copy(file, tmp_path / "older")
        with starting.resume(run, rounds=6) as training:
            training.complete()
        shutil.copy(tmp_path / "older", file)
    elif kind == "other":
        with starting.start(replace(config, seed=5), tmp_path / "other") as training:
            training.complete()
        shutil.copy(tmp_path / "other" / FILE, file)
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        {"row": _delete_first_client, "swapped": _swap_two_clients}[kind](file)
    with pytest.raises(RunError, match=r"client_states\.sqlite does not hold .* start a new run"):
        starting.resume(run, rounds=8)
    if algorithm == "local-only":
        with pytest.raises(RunError, match=r"client_states\.sqlite does not hold"):
            trained.load_trained(run, 1)


@pytest.mark.parametrize(
    "added",
    [
        "CREATE TRIGGER more AFTER INSERT ON states BEGIN DELETE FROM states; END",
        "CREATE TABLE more (value)",
        "CREATE VIEW more AS SELECT * FROM states",
        "ALTER TABLE states ADD COLUMN more",
    ],
)
def test_a_file_with_further_tables_or_triggers_is_refused(tmp_path: Path, added: str) -> None:
    """The file's rows are valid, but a trigger would change what fedcli writes."""
    path = tmp_path / FILE
    Store(path).close()
    Store(path).close()
    with sqlite3.connect(path) as file:
        file.execute(added)
    file.close()
    with pytest.raises(RunError, match="has other tables than fedcli makes; restore the file"):
        Store(path)


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_a_pipe_beside_the_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """SQLite would wait forever for data."""
    path = tmp_path / FILE
    Store(path).close()
    os.mkfifo(f"{path}{suffix}")
    with pytest.raises(RunError, match=rf"{FILE}{suffix}: it is a named pipe, .*; remove it"):
        Store(path)


@pytest.mark.parametrize(
    "changed",
    [
        "version = 'abc'",
        "version = 1e999",
        "checksum = zeroblob(9)",
        "client = x'61'",
        "vector = 1",
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, changed: str) -> None:
    """SQLite stores them unchanged, and Python's conversions would raise unexplained errors."""
    path = tmp_path / FILE
    store = Store(path)
    store.write("a", 1, _vector(1.0))
    store.flush()
    store.save()
    store.close()
    with sqlite3.connect(path) as file:
        file.execute(f"UPDATE states SET {changed}")
    file.close()
    with pytest.raises(RunError, match="is damaged; restore the file, or start a new run"):
        Store(path)


def _forget_digest(file: Path) -> None:
    """Turns a checkpoint into one of an older version, which had no digests."""
    content = checkpoint.load(file)
    assert content.client_states is not None
    file.write_bytes(checkpoint.encode(replace(content, client_states={})))


def test_a_run_of_a_version_without_digests_is_resumed(tmp_path: Path) -> None:
    wanted = _straight(tmp_path, "scaffold")
    config = settings.from_options({**VALUES, "rounds": 4})
    with starting.start(config, tmp_path / "run") as training:
        training.complete()
    _forget_digest(run_dir.latest_checkpoint(tmp_path / "run"))
    with starting.resume(tmp_path / "run", rounds=6) as training:
        training.complete()
    found = checkpoint.load(run_dir.latest_checkpoint(tmp_path / "run"))
    straight = checkpoint.load(wanted)
    assert found.client_states == straight.client_states
    for name, part in straight.components["global_model_weights"].items():
        np.testing.assert_array_equal(found.components["global_model_weights"][name], part)
