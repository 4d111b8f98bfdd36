"""Searches by TPE: the same points for any number of processes, and after an interruption."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fedcli
from fedcli.errors import ConfigError
from fedcli.sweeps.trials import read_trials

_MODELS = "choice:softmax-regression,mlp-2nn"
STUDY: dict[str, Any] = {
    "run": {"rounds": 2, "data_options": {"clients": 12}, "max_examples": 60, "validation": 0.2},
    "range": {"client_lr": "log:1e-3..1", "epochs": "linear:1..3", "model": _MODELS},
    "search": 10,
    "generation": 4,
    "seeds": 1,
}


def test_a_search_without_optuna_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # its import fails
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install 'fedcli\[sweep\]'"):
        fedcli.sweep(STUDY, tmp_path / "study")


@pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed")
def test_an_interrupted_search_continues_with_the_same_points(tmp_path: Path) -> None:
    fedcli.sweep(STUDY, tmp_path / "one", jobs=2)
    lines = read_trials(tmp_path / "one")
    assert len(lines) == 10
    assert len({json.dumps(line["options"]) for line in lines}) > 8
    for line in lines:
        assert 0.001 <= line["options"]["client_lr"] <= 1
        assert line["options"]["epochs"] in (1, 2, 3)
    text = (tmp_path / "one/trials.jsonl").read_text().splitlines(keepends=True)
    record = fedcli.sweep({**STUDY, "search": 6}, tmp_path / "other", jobs=1)
    assert [line["options"] for line in record.trials[:4]] == [
        line["options"] for line in lines[:4]
    ]
    (tmp_path / "one/trials.jsonl").write_text("".join(text[:5]))
    again = fedcli.sweep(STUDY, tmp_path / "one", jobs=1, resume=True)
    assert again.trials == lines


@pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed")
def test_each_case_is_searched_separately(tmp_path: Path) -> None:
    cases = [{"name": "a"}, {"name": "b", "algorithm": "fedprox"}]
    study = {**STUDY, "case": cases, "search": 3, "generation": 2}
    record = fedcli.sweep(study, tmp_path / "study")
    named = [line["case"] for line in record.trials]
    assert named == ["a", "a", "b", "b", "a", "b"]
    drawn: dict[str, list[Any]] = {case: [] for case in "ab"}
    for line in record.trials:
        drawn[line["case"]].append(line["options"])
    assert drawn["a"] != drawn["b"]
