"""Runs of earlier versions, in which some random numbers came from other streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import RunError
from fedcli.runs import starting
from fedcli.runs.files import folder
from fedcli.runs.verifying import verify_run
from tests.kit.training import make_config, resume_to_end, train_rounds

SECURE = {"secure_sum": True, "client_weighting": "uniform"}
NOISE = {"noise_multiplier": 1.0, "delta": 1e-3}
PRIVATE = {"client_weighting": "uniform", "dp": "gaussian", "dp_options": NOISE}
ADAPTIVE = {**PRIVATE, "dp": "gaussian-adaptive", "dp_options": {**NOISE, "count_stddev": 2.0}}


def _begun_before(path: Path, **values: Any) -> Path:
    train_rounds(path, make_config(**values), 2)
    config = path / folder.CONFIG
    text = config.read_text()
    assert text.count("streams = 2\n") == 1
    config.write_text(text.replace("streams = 2\n", ""))
    return path


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"compress": "eden"}, "--compress eden"),
        ({"compress": "sketch"}, "--compress sketch"),
        (ADAPTIVE, "--dp gaussian-adaptive"),
        ({**SECURE, "secure_sum_options": {"rounding": "stochastic"}}, "--secure-sum"),
    ],
)
def test_a_run_whose_streams_have_changed_is_not_resumed(
    tmp_path: Path, values: dict[str, Any], option: str
) -> None:
    run = _begun_before(tmp_path / "run", **values)
    said = rf"earlier version.* for {option}; finish it with that version, or train it anew with"
    with pytest.raises(RunError, match=said):
        starting.resume(run)
    with pytest.raises(RunError, match=said):
        verify_run(run)


@pytest.mark.parametrize("values", [{}, {"compress": "top-k"}, PRIVATE, SECURE])
def test_other_runs_go_on(tmp_path: Path, values: dict[str, Any]) -> None:
    resume_to_end(_begun_before(tmp_path / "run", **values))
