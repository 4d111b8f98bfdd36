"""The summary's line about the aggregator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedcli
from fedcli.reports import tables

EQUAL = "; ignores the clients' weights"


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("mean", {}, None),
        ("median", {}, f"median{EQUAL}"),
        ("trimmed-mean", {"trim": 0.2}, f"trimmed-mean (trim=0.2){EQUAL}"),
        ("krum", {"num_byzantine": 1}, f"krum (num_byzantine=1){EQUAL}"),
        ("norm-bound", {"max_norm": 2.0}, "norm-bound (max_norm=2)"),
        ("norm-bound", {"max_norm": 1e30}, "norm-bound (max_norm=1e+30)"),
        (
            "geometric-median",
            {"weighted": True},
            "geometric-median (iterations=4, smoothing=1e-06, weighted=true, start=median)",
        ),
        (
            "geometric-median",
            {"iterations": 2},
            "geometric-median (iterations=2, smoothing=1e-06, weighted=false, start=median)"
            + EQUAL,
        ),
    ],
)
def test_the_summary_names_the_aggregator_and_whether_it_ignores_weights(
    tmp_path: Path, name: str, options: dict[str, Any], line: str | None
) -> None:
    config = fedcli.RunConfig(
        rounds=1,
        data_options={"clients": 10},
        max_examples=5,
        aggregator=name,
        aggregator_options=options,
    )
    run = fedcli.train(config, tmp_path / "run")
    assert dict(tables.summary(run)).get("aggregator") == line
