"""The bytes of a run: the rule of each algorithm, drop-outs, compression, and unknown cohorts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.reports import megabytes
from fedcli.runs.files import folder
from fedcli.runs.ledger import Ledger, ledger_of
from fedcli.runs.record import RunRecord, load_run
from fedcli.settings import tables
from tests.kit.training import make_config, train

pytestmark = pytest.mark.numeric

P = 7850  # parameters of softmax regression
VECTOR = 4 * P
# Bytes down and up of a client in a round without compression, by algorithm.
RULES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(tables.ALGORITHMS, (VECTOR, VECTOR + 4)),
    "scaffold": (2 * VECTOR, 2 * VECTOR + 4),
    "mime": (2 * VECTOR, 2 * VECTOR + 4),
    "mime-lite": (VECTOR, 2 * VECTOR + 4),
    "fednova": (VECTOR, VECTOR + 8),
    "local-only": (0, 0),
}


def _trained(out: Path, **values: Any) -> RunRecord:
    train(out, make_config(**{"rounds": 2, **values}))
    return load_run(out)


def _ledger(out: Path, **values: Any) -> Ledger:
    ledger = ledger_of(_trained(out, **values))
    assert ledger is not None
    return ledger


TWO_PASSES = """
class TwoPasses:
    num_passes = 2

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def init(self, params):
        return {}

    def run(self, call, state):
        call.for_gradients().take_gradients()
        return call.train(self.optimizer), state
"""


@pytest.mark.parametrize(
    ("declared", "down", "up"),
    [
        ("num_passes = 1", VECTOR, VECTOR + 4),
        ("num_passes = 2", VECTOR, 2 * VECTOR + 4),  # as in mime-lite
        ("num_passes = 2; vectors_up = 1; numbers_up = 3", VECTOR, VECTOR + 12),
        ("num_passes = 2; vectors_down = 2; vectors_up = 3", 2 * VECTOR, 3 * VECTOR + 4),
    ],
)
def test_the_bytes_of_an_own_algorithm_are_those_that_it_declares(
    tmp_path: Path, declared: str, down: int, up: int
) -> None:
    file = tmp_path / "own.py"
    file.write_text(TWO_PASSES.replace("num_passes = 2", declared))
    run = _trained(tmp_path / "run", algorithm=str(file), record_clients=True)
    file.unlink()  # the ledger does not run it
    ledger = ledger_of(run)
    assert ledger is not None
    assert (ledger.bytes_down, ledger.bytes_up) == (8 * down, 8 * up)
    assert ledger.up_share == up / VECTOR
    rows = run.client_records().rows
    assert set(rows["bytes_down"]) == {down}
    assert set(rows["bytes_up"]) == {up}


@pytest.mark.parametrize("algorithm", [name for name in RULES if name != "centralized"])
def test_the_bytes_of_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    down, up = RULES[algorithm]
    ledger = _ledger(tmp_path / "run", algorithm=algorithm)
    assert ledger.num_params == P
    num = 4 if down else 0
    assert [tuple(each) for each in ledger.rounds] == [
        (1, num, num, 4 * down, 4 * up),
        (2, num, num, 4 * down, 4 * up),
    ]
    assert (ledger.bytes_down, ledger.bytes_up) == (8 * down, 8 * up)
    assert ledger.up_share == (up / VECTOR if up else None)
    assert ledger.megabytes(up_alone=True) == {0: 0.0, 1: 4 * up / 1e6, 2: 8 * up / 1e6}
    assert ledger.megabytes(up_alone=False)[2] == 8 * (up + down) / 1e6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clients_of_mime_receive_the_optimizer_s_state(tmp_path: Path, momentum: float) -> None:
    ledger = _ledger(tmp_path / "run", algorithm="mime-lite", client_options={"momentum": momentum})
    assert ledger.rounds[0].bytes_down == 4 * VECTOR * (2 if momentum else 1)


def test_pooled_clients_have_no_ledger(tmp_path: Path) -> None:
    run = _trained(tmp_path / "run", algorithm="centralized")
    assert ledger_of(run) is None
    with pytest.raises(ConfigError, match=r"they send no models.*use --x round$"):
        megabytes.known_ledger(run)


def test_clients_that_drop_out_receive_and_do_not_send(tmp_path: Path) -> None:
    run = _trained(tmp_path / "run", client_dropout=0.4, rounds=6)
    ledger = ledger_of(run)
    assert ledger is not None
    told = [line["participation"] for line in run.metrics]
    assert sum(each["num_dropped_out"] for each in told) > 0
    for each, reports in zip(ledger.rounds, told, strict=True):
        assert each.num_down == reports["num_selected"] == 4
        assert each.bytes_down == 4 * VECTOR
        assert each.num_up == reports["num_reports"]
        assert each.bytes_up == reports["num_reports"] * (VECTOR + 4)


@pytest.mark.parametrize("compress", [None, "uniform"])
def test_reports_that_come_too_late_were_sent(tmp_path: Path, compress: str | None) -> None:
    run = _trained(
        tmp_path / "run",
        compress=compress,
        clients="6",
        client_speeds=(100.0, 5.0),
        deadline=5.0,
        rounds=4,
    )
    ledger = ledger_of(run)
    assert ledger is not None
    assert sum(line["participation"]["num_late"] for line in run.metrics) > 0
    delta = VECTOR if compress is None else P + 16
    for each in ledger.rounds:
        assert each.num_up == 6
        assert each.bytes_up == 6 * (delta + 4)


def test_skipped_rounds_cost_as_much(tmp_path: Path) -> None:
    run = _trained(tmp_path / "run", client_dropout=0.5, min_reports=3, rounds=6)
    skipped = [line["participation"]["is_skipped"] for line in run.metrics]
    assert 0 < sum(skipped) < 6
    ledger = ledger_of(run)
    assert ledger is not None
    for each, line in zip(ledger.rounds, run.metrics, strict=True):
        assert each.bytes_up == line["participation"]["num_reports"] * (VECTOR + 4)


@pytest.mark.parametrize("sampling", ["poisson", "by-size", "uniform"])
def test_cohorts_of_any_size_are_counted(tmp_path: Path, sampling: str) -> None:
    run = _trained(tmp_path / "run", sampling=sampling, clients="0.4", rounds=5, epochs=1)
    ledger = ledger_of(run)
    assert ledger is not None
    examples = [line["client_work"]["train"]["num_examples"] for line in run.metrics]
    for each, num in zip(ledger.rounds, examples, strict=True):
        assert (each.num_down == 0) == (num == 0)
        assert each.bytes_down == each.num_down * VECTOR
    if sampling == "poisson":
        assert len({each.num_down for each in ledger.rounds}) > 1


COMPRESSED = {  # bytes of a payload, and what a client receives beside the model
    "uniform": (P + 16, 0),
    "sign": (990, 0),
    "top-k": (445, 0),
    "powersgd": (6392, 4 * 2 * 794),
}


@pytest.mark.parametrize("compress", COMPRESSED)
def test_payloads_replace_dense_deltas(tmp_path: Path, compress: str) -> None:
    payload, beside = COMPRESSED[compress]
    ledger = _ledger(tmp_path / "run", compress=compress)
    for each in ledger.rounds:
        assert each.bytes_down == 4 * (VECTOR + beside)
        assert each.bytes_up == 4 * (payload + 4)
    assert ledger.up_share == pytest.approx((payload + 4) / VECTOR)


@pytest.mark.parametrize(
    ("algorithm", "further"), [("scaffold", VECTOR), ("mime-lite", VECTOR), ("feddyn", VECTOR)]
)
def test_vectors_beside_a_compressed_delta_are_dense(
    tmp_path: Path, algorithm: str, further: int
) -> None:
    ledger = _ledger(tmp_path / "run", algorithm=algorithm, compress="sign")
    assert ledger.rounds[0].bytes_up == 4 * (990 + further + 4)


def test_runs_of_before_there_was_a_ledger(tmp_path: Path) -> None:
    """config.toml lacks the size of the model, and timings.jsonl the sizes of the cohorts."""
    out = tmp_path / "run"
    expected = _ledger(out)
    config = (out / "config.toml").read_text()
    (out / "config.toml").write_text(config.replace(f"parameters = {P}\n", ""))
    lines = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("num_clients", None)
    (out / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ledger_of(load_run(out)) == expected
    (out / "config.toml").write_text(config.replace('clients = "4"', 'clients = "all"'))
    assert ledger_of(load_run(out)) is None


def test_metrics_of_a_run_without_compression_have_no_bytes(tmp_path: Path) -> None:
    _trained(tmp_path / "run")
    assert all("updates" not in line for line in folder.read_metrics(tmp_path / "run"))
