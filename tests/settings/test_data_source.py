"""`DataSource`: the options that name the data of a run, as one object."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from fedcli import datasets
from fedcli.runs import evaluating, starting
from fedcli.settings.data_source import DataOptions, DataSource
from fedcli.settings.run_config import DATA_FIELDS, RunConfig

SMALL = {"clients": 4}


def test_a_run_and_its_data_source_agree_on_every_field_and_default() -> None:
    assert RunConfig().data_source == DataSource()
    config = RunConfig(data="x.h5", test_data="y.h5", partition="iid", num_classes=3, pixels="ink")
    assert config.data_source == DataSource(
        "x.h5", test_data="y.h5", partition="iid", num_classes=3, pixels="ink"
    )
    assert config.data_source.paths == [Path("x.h5"), Path("y.h5")]


def test_load_and_evaluate_run_take_every_field_as_a_keyword() -> None:
    names = [each.name for each in dataclasses.fields(DataSource)]
    parameters = list(inspect.signature(datasets.load).parameters)
    assert parameters[:2] == ["data", "test_data"]  # load("train.h5", "test.h5")
    assert sorted(parameters) == sorted([*names, "cache_bytes"])
    assert ["data", *DataOptions.__annotations__] == names
    assert set(DATA_FIELDS) < set(names)


def test_load_takes_the_defaults_of_a_data_source() -> None:
    parameters = inspect.signature(datasets.load).parameters
    for each in dataclasses.fields(DataSource):
        default = getattr(DataSource(), each.name)
        assert (parameters[each.name].default or default) == default


def test_given_names_what_differs_from_the_defaults() -> None:
    assert DataSource("x.h5", pixels="ink").given == {"data": "x.h5", "pixels": "ink"}
    assert DataSource().given == {"data": "synthetic-digits"}


def test_how_examples_are_read_is_no_part_of_their_fingerprint() -> None:
    source = DataSource(data_options=SMALL)
    same = dataclasses.replace(source, pixels="background", num_classes=62)
    assert datasets.fingerprint(same) == datasets.fingerprint(source)
    other = dataclasses.replace(source, partition="iid")
    assert datasets.fingerprint(other) != datasets.fingerprint(source)


def test_evaluate_run_takes_a_data_source_as_it_takes_keywords(tmp_path: Path) -> None:
    config = RunConfig(data_options=SMALL, rounds=1, epochs=1)
    with starting.start(config, tmp_path / "run") as training:
        training.complete()
    source = DataSource(data_options={"clients": 3, "seed": 5})
    whole = evaluating.evaluate_run(tmp_path / "run", data=source, clients="all")
    by_name = evaluating.evaluate_run(
        tmp_path / "run",
        data="synthetic-digits",
        data_options={"clients": 3, "seed": 5},
        clients="all",
    )
    assert whole.num_clients == 3
    assert whole.metrics == by_name.metrics
    with pytest.raises(
        TypeError, match="evaluate_run has no argument 'tset_data'; did you mean test_data"
    ):
        evaluating.evaluate_run(tmp_path / "run", tset_data="x.h5")  # type: ignore[call-arg]
