from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcli.settings.presets import PRESETS
from tests.kit.command_line import Fedcli, WriteTff


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, which has no dataset."""
    folder = tmp_path / "folder"
    (folder / "datasets").mkdir(parents=True)
    monkeypatch.setenv("FEDCLI_DATA_DIR", str(folder))
    return folder


@pytest.mark.parametrize("name", ["tff-tutorial", "mcmahan-2017-2nn-iid", "flute-lr-mnist"])
def test_without_its_data_a_preset_names_the_download(
    fedcli: Fedcli, data_folder: Path, name: str
) -> None:
    done = fedcli("train", "--preset", name)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"fetch it with: fedcli download {PRESETS[name].values['data']}" in done.err


def test_the_tutorial_s_table_stands_beside_the_run_s_own(
    fedcli: Fedcli, write_tff: WriteTff, data_folder: Path
) -> None:
    write_tff("folder/datasets/emnist-digits.h5", num_clients=12)
    done = fedcli("train", "--preset", "tff-tutorial", "--out", "run")
    assert done.code == 0
    assert "Beside TFF tutorial, Federated Learning for Image Classification" in done.out
    table = done.out.partition("Beside ")[2]
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for published, line in zip(("3.11937", "2.98514", "2.86171"), lines, strict=False):
        loss = f"{line['client_work']['train']['loss']:g}"
        row = next(row for row in table.splitlines() if f"round {line['round']}, train loss" in row)
        assert row.split()[-2:] == [published, loss]
    assert "closing, test accuracy" in table
    assert "This run differs" not in table
    told = json.loads(fedcli("train", "--resume", "run", "--json").out)["preset"]
    assert (told["name"], told["differs_in"]) == ("tff-tutorial", [])
    assert told["figures"][0]["published"] == 3.1193733
    assert told["figures"][0]["found"] == lines[0]["client_work"]["train"]["loss"]


def test_options_that_differ_from_the_preset_are_named(
    fedcli: Fedcli, write_tff: WriteTff, data_folder: Path
) -> None:
    write_tff("folder/datasets/emnist-digits.h5", num_clients=12)
    flags = ("train", "--preset", "tff-tutorial", "--rounds", 2, "--client-lr", 0.1)
    done = fedcli(*flags, "--seed", 3, "--out", "run")
    assert "This run differs in --rounds, --client-lr.\n" in done.out
    again = fedcli("train", "--config", "run/config.toml", "--epochs", 1, "--out", "again")
    assert "This run differs in --rounds, --epochs, --client-lr.\n" in again.out
    others = ("--max-examples", 20, "--client-schedule", "cosine", "--threads", 1)
    third = fedcli("train", "--preset", "tff-tutorial", *others, "--out", "third")
    assert "This run differs in --max-examples, --client-schedule.\n" in third.out


def test_other_data_are_told_and_no_figure_is_shown(fedcli: Fedcli) -> None:
    flags = ("--data", "synthetic-digits", "--rounds", 1, "--out", "run")
    done = fedcli("train", "--preset", "tff-tutorial", *flags)
    assert done.code == 0
    assert "This run uses other data, so no published figures are shown.\n" in done.out
    assert "3.11937" not in done.out


def test_figures_beside_a_data_file_say_of_which_data_they_are(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    write_tff("train.h5", num_clients=12)
    done = fedcli("train", "--preset", "tff-tutorial", "--data", "train.h5", "--rounds", 1)
    text = " ".join(done.out.partition("This run differs in --data, --rounds.\n")[2].split())
    assert text.startswith("The published figures are those of emnist-digits; compare them only if")
    assert "With the same data and options, results differ from about the third digit on" in text


def test_a_preset_does_not_go_with_a_config(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    done = fedcli("train", "--preset", "tff-tutorial", "--config", "run/config.toml")
    assert done.code == 2
    assert "--preset and --config contradict each other" in done.err


def test_an_unknown_preset_is_one_line_with_all_names(fedcli: Fedcli) -> None:
    done = fedcli("train", "--preset", "tutorial")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert all(name in done.err for name in PRESETS)


def test_info_shows_what_a_preset_stands_for(fedcli: Fedcli) -> None:
    out = fedcli("info", "mcmahan-2017-2nn-non-iid").out
    assert out.startswith("mcmahan-2017-2nn-non-iid (preset)")
    assert "\n  --partition-option shards=2\n" in out
    assert "\n  --stop-at accuracy=0.97\n" in out


def test_drawn_images_stand_in_for_data_that_are_not_downloaded(
    fedcli: Fedcli, data_folder: Path
) -> None:
    few = ("--rounds", "1", "--epochs", "1", "--clients", "2", "--max-examples", "5")
    done = fedcli(
        *("train", "--preset", "blazefl-cifar10-cnn", "--out", "run", *few),
        *("--data-option", "clients=40", "--sampling", "fixed"),
    )
    assert done.code == 0, done.err
    assert (
        "fedcli: cifar10 is not downloaded, so synthetic images of the same size "
        "(synthetic-shapes) are used instead; the results are not those of the paper. To fetch it: "
        "fedcli download cifar10\n"
    ) in done.err
    assert "This run uses other data, so no published figures are shown." in done.out
    config = Path("run/config.toml").read_text()
    assert 'data = "synthetic-shapes"' in config
    assert 'preset = "blazefl-cifar10-cnn"' in config


def test_drawn_images_stand_in_in_a_sweep_too(fedcli: Fedcli, data_folder: Path) -> None:
    few = ("--rounds", "1", "--epochs", "1", "--clients", "2", "--max-examples", "5")
    sweep = (
        *("sweep", "--preset", "blazefl-cifar10-cnn", *few, "--data-option", "clients=40"),
        *("--sampling", "fixed", "--grid", "client_lr=0.01,0.02", "--select-on", "test"),
    )
    done = fedcli(*sweep, "--out", "study")
    assert done.code == 0, done.err
    assert done.err.count("cifar10 is not downloaded, so synthetic images") == 1
    assert 'data = "synthetic-shapes"' in Path("study/study.toml").read_text()
    given = fedcli(*sweep, "--out", "other", "--data", "cifar10")
    assert given.code == 1
    assert "cifar10 has no option 'clients'" in given.err  # the downloaded images are used
    assert "synthetic images" not in given.err
