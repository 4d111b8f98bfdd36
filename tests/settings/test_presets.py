from __future__ import annotations

from typing import Any

import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.reports.published import compare
from fedcli.runs.stopping import Progress
from fedcli.settings import tables
from fedcli.settings.presets import PRESETS


def resolved(name: str, **given: Any) -> settings.RunConfig:
    """Returns the config of a run with a preset, as it is read from config.toml."""
    merged = settings.merge(PRESETS[name].values, {"preset": name, **given})
    written = settings.to_toml(settings.from_options(merged), {})
    return settings.from_options(settings.from_toml(written, "config.toml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_run(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.doc.endswith(".")
    assert preset.source
    assert preset.values["data"] in tables.PUBLIC_DATASETS
    assert preset.values["model"] in tables.MODELS
    config = resolved(name)
    assert compare(preset, config, [], {}, None).differs_in == ()
    known = {figure.metric for figure in preset.figures}
    assert known <= {"loss", "accuracy", "rounds_to_target"}
    assert ("rounds_to_target" in known) == (config.stop_at is not None)


@pytest.mark.parametrize("name", [name for name, each in PRESETS.items() if each.stand_in])
def test_drawn_images_can_stand_in_for_data_that_are_not_downloaded(name: str) -> None:
    preset = PRESETS[name]
    values = settings.merge(preset.values, {"preset": name, **preset.stand_in})
    config = settings.from_options(values)
    assert config.data in tables.EMBEDDED_DATASETS
    found = compare(preset, config, [], {}, None)
    assert found.has_other_data
    assert found.figures == ()


def test_the_tutorial_s_preset_is_what_runs_by_default() -> None:
    plain = dict(vars(settings.from_options({})))
    tutorial = dict(vars(resolved("tff-tutorial")))
    assert tutorial.pop("preset") == "tff-tutorial"
    assert tutorial.pop("data") == "emnist-digits"
    assert tutorial.pop("clients") == "10"
    for name in ("preset", "data", "data_options", "clients"):
        plain.pop(name)
    tutorial.pop("data_options")
    assert tutorial == plain


def test_options_beside_a_preset_override_it() -> None:
    config = resolved("mcmahan-2017-2nn-iid", client_lr=0.3, partition_options={"seed": 4})
    assert config.client_lr == 0.3
    assert config.partition_options == {"clients": 100, "seed": 4}
    found = compare(PRESETS["mcmahan-2017-2nn-iid"], config, [], {}, None)
    assert found.differs_in == ("--client-lr",)
    assert not found.has_other_data


def test_an_unknown_preset_is_refused_with_all_names() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown --preset 'tff'; choose one of blazefl-cifar10-cnn, fedml-"
    ):
        settings.from_options({"preset": "tff"})


def test_published_numbers_stand_beside_the_run_s_own() -> None:
    preset = PRESETS["tff-tutorial"]
    online = {"loss": 3.0, "sparse_categorical_accuracy": 0.125}
    lines = [{"round": 1, "client_work": {"train": online}}]
    scores = {"loss": None, "sparse_categorical_accuracy": 0.5}
    evaluation = {"test": {"client_work": {"eval": {"current_round_metrics": scores}}}}
    found = compare(preset, resolved("tff-tutorial"), lines, evaluation, None)
    by_key = {(each.metric, each.split, each.round_num): own for each, own in found.figures}
    assert len(by_key) == 24
    assert by_key["loss", "", 1] == 3.0
    assert by_key["accuracy", "", 1] == 0.125
    assert by_key["accuracy", "", 2] is None
    assert by_key["accuracy", "test", 0] == 0.5
    assert by_key["loss", "test", 0] is None
    assert by_key["loss", "train", 0] is None


def test_rounds_to_target_stand_beside_the_paper_s() -> None:
    preset = PRESETS["mcmahan-2017-2nn-iid"]
    progress = Progress(target=0.97, target_round=93)
    ((figure, own),) = compare(preset, resolved(preset.name), [], {}, progress).figures
    assert (figure.value, own) == (87, 93)


@pytest.mark.parametrize("data", ["synthetic-digits", "mnist"])
def test_other_named_data_are_not_set_beside_the_published(data: str) -> None:
    config = resolved("tff-tutorial", data=data)
    found = compare(PRESETS["tff-tutorial"], config, [], {}, None)
    assert found.has_other_data
    assert found.figures == ()


def test_a_file_may_hold_the_same_data() -> None:
    config = resolved("tff-tutorial", data="train.h5", test_data="test.h5")
    found = compare(PRESETS["tff-tutorial"], config, [], {}, None)
    assert found.differs_in == ("--data", "--test-data")
    assert len(found.figures) == 24


def test_the_published_numbers_are_those_of_the_tutorial() -> None:
    """The tutorial prints float32; its accuracies are compared as correct predictions of all."""
    losses = "3.1193733 2.9851403 2.8617127 2.7401376 2.6186547 2.5006158 2.3858356 2.2757034"
    expected: dict[tuple[str, Any], float]
    expected = {("loss", num): float(text) for num, text in enumerate(losses.split(), 1)}
    expected |= {("loss", 9): 2.17098, ("loss", 10): 2.072707}
    expected |= {("loss", "train"): 1.6654209, ("loss", "test"): 1.7750846}
    correct = (600, 681, 773, 868, 977, 1086, 1205, 1320, 1438, 1580)
    shares: dict[Any, float] = {num: count / 4860 for num, count in enumerate(correct, 1)}
    shares |= {"train": 352 / 972, "test": 39 / 116}
    figures = PRESETS["tff-tutorial"].figures
    found = {(each.metric, each.split or each.round_num): each.value for each in figures}
    assert len(found) == len(figures)
    accuracies = {when: value for (metric, when), value in found.items() if metric == "accuracy"}
    assert accuracies == pytest.approx(shares, rel=1e-7)
    assert {key: value for key, value in found.items() if key[0] == "loss"} == expected
