"""The summary's lines about the algorithm and the aggregator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedcli
from fedcli.reports import tables
from tests.kit.own_parts import write_example

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


def test_the_summary_names_the_algorithm_with_its_options(tmp_path: Path) -> None:
    small: dict[str, Any] = {"rounds": 1, "data_options": {"clients": 10}, "max_examples": 5}
    write_example(tmp_path, "FedExP", "fedexp.py")
    lines = {
        "fedavg": "fedavg",
        "fedprox": "fedprox (proximal_strength=0.25)",
        f"{tmp_path}/fedexp.py": f"{tmp_path}/fedexp.py:FedExP (epsilon=0.5)",
    }
    options: dict[str, Any] = {"fedavg": {}, "fedprox": {"proximal_strength": 0.25}}
    for index, (name, line) in enumerate(lines.items()):
        given = options.get(name, {"epsilon": 0.5})
        config = fedcli.RunConfig(algorithm=name, algorithm_options=given, **small)
        run = fedcli.train(config, tmp_path / f"run{index}")
        assert dict(tables.summary(run))["algorithm"] == line
