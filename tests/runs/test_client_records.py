from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.errors import RunError
from fedcli.runs import starting
from fedcli.runs.client_bytes import ByteRule
from fedcli.runs.files import checkpoint, client_records, folder
from fedcli.runs.ledger import ledger_of
from fedcli.runs.record import load_run
from tests.kit.command_line import Fedcli
from tests.kit.training import (
    last_weights,
    make_config,
    resume_to_end,
    train_rounds,
    trained,
    trained_with_a_stop,
)

UNIFORM = make_config(sampling="uniform")
RECORDED = {"sampling": "uniform", "record_clients": True}


def assert_same(left: Path, right: Path) -> None:
    one, other = client_records.load(left), client_records.load(right)
    assert one.client_ids == other.client_ids
    assert one.rows.tobytes() == other.rows.tobytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("recorded") / "run", **RECORDED)


def test_rows_add_up_to_the_metrics_of_the_round(run: Path) -> None:
    rows = client_records.load(run).rows
    assert rows["round"].tolist() == sorted(rows["round"].tolist())
    for line in folder.read_metrics(run):
        mine = rows[rows["round"] == line["round"]]
        online = line["client_work"]["train"]
        counts = mine["num_examples"]
        assert (len(mine), counts.sum()) == (4, online["num_examples"])
        assert (mine["loss"] @ counts) / counts.sum() == pytest.approx(online["loss"], rel=1e-6)
        accuracy = (mine["accuracy"] @ counts) / counts.sum()
        assert accuracy == pytest.approx(online["sparse_categorical_accuracy"], rel=1e-6)
        assert (mine["bytes_down"] == 4 * 7850).all()
        assert (mine["bytes_up"] == 4 * 7850 + 4).all()  # the delta and the weight


def test_cohort_is_named(run: Path) -> None:
    records = client_records.load(run)
    with starting.start(UNIFORM, run.parent / "again") as training:
        for round_num in range(6):
            ids = list(training._federation.sampled_clients.cohorts.for_round(round_num))
            mine = records.rows[records.rows["round"] == round_num + 1]
            assert [records.client_ids[each] for each in mine["client"].tolist()] == ids


def test_update_norm_is_the_length_of_the_delta(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", record_clients=True, clients="1", rounds=1)
    files = folder.find_checkpoints(path)
    before, after = (
        checkpoint.load(file).components["global_model_weights"] for file in (files[0], files[-1])
    )
    squares = [np.square(np.subtract(after[name], before[name])).sum() for name in before]
    (row,) = client_records.load(path).rows
    assert row["update_norm"] == pytest.approx(float(np.sqrt(sum(squares))), rel=1e-5)


def test_an_update_that_float32_cannot_hold_is_infinite_in_silence(tmp_path: Path) -> None:
    """Only the norm is infinite. The update counts, because its coordinates are finite."""
    much = {"client_lr": 3e38, "client_optimizer": "adam", "max_examples": 1}
    path = trained(tmp_path / "run", record_clients=True, clients="1", rounds=1, **much)
    (row,) = client_records.load(path).rows
    assert row["update_norm"] == np.inf


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregator": "tff-robust"},
        {"algorithm": "mime-lite", "client_options": {"momentum": 0.9}},
        {"algorithm": "fedsgd"},
    ],
)
def test_recording_changes_no_byte(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = trained(tmp_path / "plain", sampling="uniform", **options)
    recorded = trained(tmp_path / "recorded", **RECORDED, **options)
    assert (plain / "metrics.jsonl").read_bytes() == (recorded / "metrics.jsonl").read_bytes()
    assert last_weights(plain) == last_weights(recorded)


def test_stopped_run_has_the_records_of_the_straight_one(run: Path, tmp_path: Path) -> None:
    assert_same(run, trained_with_a_stop(tmp_path / "stopped", 3, **RECORDED))


def test_killed_run_has_the_records_of_the_straight_one(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    training = starting.start(replace(UNIFORM, record_clients=True, checkpoint_every=2), path)
    done = training.run()
    for _ in range(3):
        next(done)
    seen = client_records.load(path)  # while it trains
    assert seen.rows["round"].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    whole = client_records.load(run)
    names = [seen.client_ids[each] for each in seen.rows["client"].tolist()]
    assert names == [whole.client_ids[each] for each in whole.rows["client"].tolist()][:12]
    half = b'{"clients": [], "num_rows": 4}\nhalf a row'
    training._logs[0]._writer._file.write(half)  # type: ignore[attr-defined]
    training._logs[0]._writer._file.close()  # type: ignore[attr-defined]
    training._run.close()
    training._logs, training._save_if_behind = (), lambda: None  # type: ignore[method-assign]
    done.close()
    assert client_records.load(path).rows.tobytes() == seen.rows.tobytes()
    resume_to_end(path)
    assert_same(run, path)
    assert not (path / "clients.journal").exists()


def test_more_rounds_are_appended(run: Path, tmp_path: Path) -> None:
    path = trained(tmp_path / "run", rounds=4, **RECORDED)
    with starting.resume(path, rounds=6) as training:
        for _ in training.run():
            pass
    assert_same(run, path)


ABSENT: dict[str, Any] = {
    "client_dropout": 0.4,
    "client_speeds": (100.0, 90.0, 5.0),
    "deadline": 10.0,
    "over_selection": 1.0,
    "min_reports": 3,
    "rounds": 30,
}


def test_clients_that_did_not_report_are_recorded_as_such(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", **RECORDED, **ABSENT)
    records = client_records.load(path)
    rows = records.rows
    outcomes = np.array(client_records.OUTCOMES)[rows["outcome"]]
    assert set(outcomes) == set(client_records.OUTCOMES)
    with starting.start(replace(UNIFORM, **ABSENT), tmp_path / "again") as training:
        for line in folder.read_metrics(path):
            mine = rows["round"] == line["round"]
            told, names = line["participation"], outcomes[mine].tolist()
            reported = "skipped" if told["is_skipped"] else "reported"
            assert [names.count(each) for each in (reported, "dropped-out", "late", "surplus")] == [
                told[f"num_{each}"] for each in ("reports", "dropped_out", "late", "surplus")
            ]
            assert len(names) == told["num_selected"] == 8
            online = line["client_work"]["train"]
            assert rows["num_examples"][mine].sum() == online["num_examples"]
            round_reports = training._federation.cohort_data(line["round"] - 1).round_reports
            assert round_reports is not None
            assert round_reports.seconds is not None
            np.testing.assert_array_equal(
                rows["report_seconds"][mine], np.array(round_reports.seconds, float)
            )
    has_trained = outcomes == "reported"
    assert (rows["num_examples"][has_trained] > 0).all()
    assert (rows["num_examples"][~has_trained] == 0).all()
    for name in ("loss", "accuracy", "update_norm"):
        assert np.isfinite(rows[name][has_trained]).all()
        assert np.isnan(rows[name][~has_trained]).all()
    assert (np.isnan(rows["report_seconds"]) == (outcomes == "dropped-out")).all()
    size = 4 * 7850
    assert (rows["bytes_down"] == size).all()
    assert (rows["bytes_up"] == np.where(outcomes == "dropped-out", 0, size + 4)).all()
    stopped = trained_with_a_stop(tmp_path / "stopped", 3, **RECORDED, **ABSENT)
    assert_same(path, stopped)


def test_a_run_stopped_before_a_skipped_round_has_the_same_payloads(tmp_path: Path) -> None:
    values = {**RECORDED, **ABSENT, "rounds": 8, "compress": "qsgd"}
    straight = trained(tmp_path / "run", **values)
    skipped = [line["participation"]["is_skipped"] for line in folder.read_metrics(straight)]
    assert skipped[4:6] == [1, 1]
    train_rounds(tmp_path / "stopped", make_config(**values), 5)
    resume_to_end(tmp_path / "stopped")
    assert_same(straight, tmp_path / "stopped")


def test_a_delta_that_was_not_encoded_counts_with_the_newest_mean_payload() -> None:
    rule = ByteRule(down=400, dense=400, extra_up=4)
    empty = {"payload_bytes": 0, "num_sent": 0}
    rounds = [empty, {"payload_bytes": 110, "num_sent": 3}, empty, {}, None]
    lines = [{"updates": {"compress": each}} for each in rounds]
    found = [rule.dense]
    for line in [*lines, {}]:
        found.append(rule.delta_bytes(line, found[-1]))
    assert found[1:] == [400, 37, 37, 37, 37, 37]


def test_without_a_clock_everyone_reports_at_no_time(run: Path) -> None:
    rows = client_records.load(run).rows
    assert np.isnan(rows["report_seconds"]).all()
    assert (rows["outcome"] == client_records.OUTCOMES.index("reported")).all()


def test_a_run_killed_at_its_end_is_closed_by_resuming(run: Path, tmp_path: Path) -> None:
    """It is killed after its last round is saved, before its closing evaluation is written."""
    path = tmp_path / "killed"
    training = starting.start(replace(UNIFORM, record_clients=True, csv=True), path)
    list(training.run())
    training._run.close()
    training._logs[1]._writer._file.close()  # type: ignore[attr-defined]
    (path / "metrics.csv").unlink()
    assert not (path / "clients.h5").exists()
    resume_to_end(path)
    assert_same(run, path)
    assert not (path / "clients.journal").exists()
    assert (path / "metrics.csv").read_text().count("\n") == 7


def test_a_full_disk_saves_no_round_without_its_records(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "full"
    training = starting.start(replace(UNIFORM, record_clients=True), path)
    done = training.run()
    next(done)
    writer = training._logs[0]._writer  # type: ignore[attr-defined]
    whole = writer._file
    with Path("/dev/full").open("wb", buffering=0) as full:
        writer._file = full
        with pytest.raises(RunError, match="cannot write"):
            next(done)
        assert training.round_num == 1
        writer._file = whole
        training.close()
    resume_to_end(path)
    assert_same(run, path)


def test_damaged_journals_are_one_error_or_whole_rounds(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "open"
    training = starting.start(replace(UNIFORM, record_clients=True), path)
    list(training.run())
    training._run.close()
    training._logs[0]._writer._file.close()  # type: ignore[attr-defined]
    journal = path / "clients.journal"
    content, whole = journal.read_bytes(), client_records.load(path)
    for size in range(0, len(content), 7):
        journal.write_bytes(content[:size])
        rows = client_records.load(path).rows
        assert len(rows) % 4 == 0
        assert rows["round"].tobytes() == whole.rows["round"][: len(rows)].tobytes()
    for at in range(0, len(content), 5):
        journal.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with contextlib.suppress(RunError):
            client_records.load(path)
    for other in (b"{}\n", b'{"format": "fedcli-client-journal", "version": 9}\n', b"[]\n"):
        journal.write_bytes(other)
        with pytest.raises(RunError, match=r"clients\.journal (was written by another|is damaged)"):
            client_records.load(path)
    head = content[: content.index(b"\n") + 1]
    for name in (r"\ud800", r"a\u0000"):  # clients.h5 cannot store such a text
        journal.write_bytes(head + b'{"clients": ["%s"], "num_rows": 0}\n' % name.encode())
        with pytest.raises(RunError, match=r"clients\.journal is damaged at byte"):
            client_records.load(path)


def test_file_is_columns_that_are_compressed(run: Path) -> None:
    with h5py.File(run / "clients.h5") as file:
        assert file["loss"].compression == "gzip"
        assert h5py.check_enum_dtype(file["outcome"].dtype)["reported"] == 0
        assert {len(file[name]) for name in file if name != "client_ids"} == {24}


def test_damaged_files_are_one_error(run: Path, tmp_path: Path) -> None:
    content = (run / "clients.h5").read_bytes()
    file = tmp_path / "clients.h5"
    with pytest.raises(RunError, match="--record-clients"):
        client_records.load(tmp_path)
    for bad in (b"", b"text", content[: len(content) // 2]):
        file.write_bytes(bad)
        with pytest.raises(RunError, match=r"clients\.h5"):
            client_records.load(tmp_path)
    step = max(1, len(content) // 60)
    for first in range(0, len(content), step):  # each is refused or read; there is no other error
        flipped = bytes(255 - each for each in content[first : first + 8])
        file.write_bytes(content[:first] + flipped + content[first + 8 :])
        try:
            rows = client_records.load(tmp_path).rows
        except RunError:
            continue
        assert rows["client"].max(initial=0) < 12


def test_links_to_elsewhere_are_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "clients.h5").write_bytes((run / "clients.h5").read_bytes())
    with h5py.File(tmp_path / "clients.h5", "a") as file:
        del file["loss"]
        file["loss"] = h5py.ExternalLink(str(run / "clients.h5"), "loss")
    with pytest.raises(RunError, match="lacks a column"):
        client_records.load(tmp_path)


def test_report_writes_them_as_csv(fedcli: Fedcli, run: Path, tmp_path: Path) -> None:
    assert fedcli("report", run, "--clients-csv", "clients.csv").code == 0
    told = list(csv.DictReader((tmp_path / "clients.csv").read_text().splitlines()))
    records = client_records.load(run)
    assert len(told) == len(records.rows) == 24
    for line, row in zip(told, records.rows, strict=True):
        assert line["client"] == records.client_ids[row["client"]]
        assert np.float32(line["update_norm"]) == row["update_norm"]
        assert (line["outcome"], line["report_seconds"]) == ("reported", "")


def _rewrite(source: Path, target: Path, ids: list[str], num_rows: int) -> None:
    """Writes a compressed file of client records, all of whose rows are equal."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for name, value in old.attrs.items():
            new.attrs[name] = value
        new["client_ids"] = np.array(ids, dtype=h5py.string_dtype())
        for name in client_records.ROW.names or ():
            kind = old[name].dtype
            column = np.zeros(num_rows, kind) + np.array(name == "round", kind)
            new.create_dataset(
                name, data=column, compression="gzip", chunks=(min(num_rows, 1 << 20),)
            )


def test_rows_that_are_far_more_than_the_file_has_are_refused(run: Path, tmp_path: Path) -> None:
    _rewrite(run / client_records.FILE, tmp_path / client_records.FILE, ["a"], 5_000_000)
    with pytest.raises(RunError, match=r"claims more rows than [\d,]+ bytes hold"):
        client_records.load(tmp_path)


def test_one_long_id_that_all_rows_share_is_not_unpacked_for_each(
    run: Path, tmp_path: Path
) -> None:
    path, num_ids = tmp_path / client_records.FILE, 3000
    _rewrite(run / client_records.FILE, path, ["x" * 1_000_000, *["y"] * (num_ids - 1)], 1)
    with h5py.File(path) as file:
        at = file["client_ids"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[at : at + 16 * num_ids] = content[at : at + 16] * num_ids  # all ids point to one text
    path.write_bytes(content)
    with pytest.raises(RunError, match="its ids are longer than the file"):
        client_records.load(tmp_path)


def test_a_name_with_half_a_character_is_reported(run: Path, tmp_path: Path) -> None:
    rows = np.zeros(2, client_records.ROW)
    rows["round"], rows["client"] = 1, [0, 1]
    heads = (
        b'{"format": "fedcli-client-journal", "version": 2}\n',
        b'{"clients": ["\\ud800", "b"]',
    )
    content = b"".join((*heads, b', "num_rows": 2}\n', rows.tobytes()))
    (tmp_path / client_records.JOURNAL).write_bytes(content)
    with pytest.raises(RunError, match="is damaged at byte 50"):
        client_records.load(tmp_path)


COUNTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaffold": {"algorithm": "scaffold"},
    "mime": {"algorithm": "mime", "client_optimizer": "adam"},
    "qsgd": {"compress": "qsgd"},
    "powersgd": {"compress": "powersgd"},
    "sketch": {"compress": "sketch"},
    "secure": {"secure_sum": True, "client_dropout": 0.2},
    "buckets": {"secure_sum": True, "pre_aggregator": "bucketing", "aggregator": "median"},
    "rejected": {"compress": "uniform", "attack": "nan", "attackers": "2"},
    "secure-factors": {"secure_sum": True, "compress": "powersgd", "client_dropout": 0.2},
    "dropped": {"client_dropout": 0.3, "min_reports": 5},
    "compressed-late": {**ABSENT, "rounds": 10, "compress": "qsgd"},
    "compressed-skipped": {"client_dropout": 0.3, "min_reports": 5, "compress": "powersgd"},
    "mime-skipped": {"client_dropout": 0.3, "min_reports": 5, "algorithm": "mime"},
    "local-only": {"algorithm": "local-only"},
}


@pytest.mark.parametrize("name", COUNTED)
def test_bytes_of_clients_add_up_to_the_ledger(tmp_path: Path, name: str) -> None:
    """This holds for each algorithm, codec and secure sum, and for rejected and skipped reports."""
    values = {**RECORDED, "sampling": "uniform", "clients": "7", **COUNTED[name]}
    path = trained(tmp_path / "run", **values)
    rows = client_records.load(path).rows
    ledger = ledger_of(load_run(path))
    assert ledger is not None
    for each in ledger.rounds:
        mine = rows[rows["round"] == each.round_num]
        assert mine["bytes_down"].sum() == each.bytes_down
        assert mine["bytes_up"].sum() == each.bytes_up
        if "secure_sum" not in values:
            assert np.count_nonzero(mine["bytes_up"]) == each.num_up


def test_files_and_journals_of_older_versions_are_read(run: Path, tmp_path: Path) -> None:
    """Their column `bytes` is the model's size, or twice that size if the report arrived."""
    now = client_records.load(run)
    names = [name for name in now.rows.dtype.names or () if not name.startswith("bytes")]
    old = np.zeros(len(now.rows), client_records._OLD_ROW)
    for name in names:
        old[name] = now.rows[name]
    old["outcome"][1] = client_records.OUTCOMES.index("dropped-out")
    old["bytes"] = 8000
    old["bytes"][1] = 4000
    (tmp_path / "file").mkdir()
    with h5py.File(tmp_path / "file" / client_records.FILE, "w") as file:
        file.attrs["format"], file.attrs["version"] = client_records.FORMAT, 2
        file["client_ids"] = np.array(now.client_ids, dtype=h5py.string_dtype())
        for name in old.dtype.names or ():
            file.create_dataset(name, data=np.ascontiguousarray(old[name]))
    (tmp_path / "journal").mkdir()
    head = {"clients": now.client_ids, "num_rows": len(old)}
    (tmp_path / "journal" / client_records.JOURNAL).write_bytes(
        b'{"format": "fedcli-client-journal", "version": 1}\n'
        + json.dumps(head).encode()
        + b"\n"
        + old.tobytes()
    )
    for kind in ("file", "journal"):
        found = client_records.load(tmp_path / kind)
        assert found.client_ids == now.client_ids
        assert (found.rows["bytes_down"] == 4000).all()
        assert found.rows["bytes_up"].tolist() == [
            0 if place == 1 else 4000 for place in range(len(old))
        ]
        for name in names:
            np.testing.assert_array_equal(found.rows[name], old[name])
