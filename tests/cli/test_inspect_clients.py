from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console

from fedcli.cli.screen import client_export, client_tables
from fedcli.cli.screen.render import Screen
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.datasets.sources import store, store_writer
from fedcli.inspection import figures, population, statistics
from fedcli.progress import ProgressCallback
from tests.kit.command_line import Fedcli, Outcome, WriteTff, assert_is_one_line, read_terminal
from tests.kit.waiting import PATIENCE_SECONDS, started

Labels = Mapping[str, list[int]]
WriteStore = Callable[..., Path]

FIGURES = (
    *("tv", "tv_floor", "js", "effective_classes", "classes_present", "max_share", "mean_ink"),
)


@pytest.fixture
def write_store(tmp_path: Path, seed: int) -> WriteStore:
    """Writes a store of clients with the given labels; images are noise."""

    def write(
        splits: Mapping[str, Labels],
        num_classes: int = 3,
        class_names: tuple[str, ...] = (),
        shape: tuple[int, ...] = (6, 4),
    ) -> Path:
        rng = np.random.default_rng(seed)

        def client(client_id: str, labels: list[int]) -> ClientDataset:
            pixels = rng.integers(0, 256, (len(labels), *shape), np.uint8)
            numbers = np.array(labels, np.int32)
            return ClientDataset(client_id, pixels, numbers, 1 / 255, 0.0, "here")

        path = tmp_path / "store.h5"
        info = store.StoreInfo(
            num_classes=num_classes, pixel_convention="ink", class_names=class_names
        )
        clients = {
            name: [client(*each) for each in split.items()] for name, split in splits.items()
        }
        store_writer.create(path, clients, info)
        return path

    return write


def said(done: Outcome) -> list[str]:
    """The lines on stderr, without the lines on how the file was interpreted."""
    return [line for line in done.err.splitlines() if "is read as format tff-h5; " not in line]


def rows_of(out: str, title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its header."""
    lines = out.partition(title + "\n")[2].splitlines()
    return [line.split() for line in lines[2 : lines.index("") if "" in lines else None]]


def lines_under(out: str, title: str) -> list[str]:
    return out.partition(title + "\n")[2].splitlines()


def test_json_says_what_is_there(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [0, 0, 1], "b": [], "c": [2]}}, class_names=("x", "y", "z"))
    result = json.loads(fedcli("inspect-clients", "--data", data, "--json").out)
    split = result.pop("splits")["train"]
    assert result == {
        "data": str(data),
        "num_clients": 3,
        "num_classes": 3,
        "num_examples": 4,
        "class_names": ["x", "y", "z"],
        "pixel_shape": [6, 4],
        "pixel_convention": "ink",
        "partition": "natural",
    }
    clients = split.pop("clients")
    assert [
        (each["client_id"], each["num_examples"], each["label_counts"]) for each in clients
    ] == [
        ("a", 3, [2, 1, 0]),
        ("b", 0, [0, 0, 0]),
        ("c", 1, [0, 0, 1]),
    ]
    assert clients[0]["tv"] == pytest.approx(0.25)
    assert clients[2]["tv"] == pytest.approx(0.75)
    assert clients[2]["tv_floor"] == pytest.approx(5 / 8)  # half of sum 2 p (1 - p)
    assert (clients[2]["effective_classes"], clients[2]["classes_present"]) == (1, 1)
    assert {name: clients[1][name] for name in FIGURES} == {
        **dict.fromkeys(FIGURES),
        "classes_present": 0,
    }
    assert {name: split[name] for name in ("num_clients", "num_examples", "label_counts")} == {
        "num_clients": 3,
        "num_examples": 4,
        "label_counts": [2, 1, 1],
    }
    assert split["sizes"]["maximum"] == 3
    assert split["sizes"]["median"] == 1
    assert split["sizes"]["gini"] == pytest.approx((3 * 2 - 0 * 2) / (3 * 4))
    assert split["compared_with"] == {"num_clients": 3, "label_counts": [2, 1, 1]}
    assert set(split["heterogeneity"]) == set(FIGURES)
    assert split["heterogeneity"]["tv"]["mean"] == pytest.approx(0.5)
    assert split["heterogeneity"]["tv"]["weighted_mean"] == pytest.approx(0.375)


def test_json_of_many_blocks_is_whole(
    fedcli: Fedcli, write_tff: WriteTff, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("inspect-clients", "--data", write_tff(num_clients=7), "--json")
    whole = fedcli(*arguments).out
    monkeypatch.setattr(client_export, "_BLOCK_CLIENTS", 2)
    assert fedcli(*arguments).out == whole
    assert len(json.loads(whole)["splits"]["train"]["clients"]) == 7


def test_a_client_of_two_splits_counts_once(fedcli: Fedcli, write_tff: WriteTff) -> None:
    files = ("--data", write_tff(), "--test-data", write_tff("test.h5", num_clients=4))
    result = json.loads(fedcli("inspect-clients", *files, "--json").out)
    assert result["num_clients"] == 4
    assert result["num_examples"] == 18 + 26
    splits = {name: split["num_clients"] for name, split in result["splits"].items()}
    assert splits == {"train": 3, "test": 4}
    only = json.loads(fedcli("inspect-clients", *files, "--split", "test", "--json").out)
    assert list(only["splits"]) == ["test"]
    assert only["num_examples"] == 26


def test_embedded_digits_have_200_writers(fedcli: Fedcli) -> None:
    result = json.loads(fedcli("inspect-clients", "--json").out)
    assert result["num_clients"] == 200
    assert result["splits"]["train"]["num_clients"] == 200
    assert result["num_classes"] == 10
    parts = [result["splits"][name]["num_examples"] for name in ("train", "test")]
    assert result["num_examples"] == sum(parts)


def test_quick_counts_the_same(fedcli: Fedcli, write_tff: WriteTff) -> None:
    arguments = ("inspect-clients", "--data", write_tff(), "--json")
    quick, full = (
        json.loads(fedcli(*arguments, *more).out)["splits"]["train"] for more in (["--quick"], [])
    )
    assert quick["heterogeneity"].pop("mean_ink") is None  # it needs pixels
    assert full["heterogeneity"].pop("mean_ink") is not None
    for client in quick["clients"]:
        assert client.pop("mean_ink") is None
    for client in full["clients"]:
        assert 0 < client.pop("mean_ink") < 1
    assert quick == full


def test_quick_alone_passes_over_bad_pixels(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    with h5py.File(data, "r+") as file:
        file["examples/b/pixels"][2, 0, 0] = np.nan
    assert fedcli("inspect-clients", "--data", data, "--quick").code == 0
    done = fedcli("inspect-clients", "--data", data)
    assert (done.code, done.out) == (1, "")
    assert f"{data}: client 'b': example 2: a pixel is NaN" in done.err


def test_a_label_error_says_how_many_classes_are_enough(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--num-classes", 2)
    assert done.code == 1
    assert "client 'a': example 2: label 2 is outside 0 to 1; pass --num-classes 5 or" in done.err


def test_population_view(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store(
        {"train": {"a": [0, 0, 1], "b": [0, 1, 1, 1, 2]}, "test": {"a": [0]}},
        class_names=("cat", "dog", "cow"),
    )
    split = open_splits(DataSource(str(data)))["train"]
    low, high = sorted(float(split.client(each).images().mean()) for each in "ab")
    ink = (low, (low + high) / 2, (low + high) / 2, low + 0.9 * (high - low), high)
    out = fedcli("inspect-clients", "--data", data).out
    assert out == (
        f"{data}: 3 classes, pixels 6 x 4, 1.0 is ink\n"
        "split   clients   examples   min    p5   p25   median   p75   p95   max\n"
        "-----------------------------------------------------------------------\n"
        "train         2          8     3   3.1   3.5        4   4.5   4.9     5\n"
        "test          1          1     1     1     1        1     1     1     1\n"
        "\n"
        "Heterogeneity (train)\n"
        "over clients             min    mean   median     p90     max\n"
        "-------------------------------------------------------------\n"
        "TV of labels           0.175   0.233    0.233   0.280   0.292\n"
        "  at random            0.244   0.281    0.281   0.311   0.319\n"
        "Jensen-Shannon, bits   0.029   0.067    0.067   0.097   0.104\n"
        "effective classes       1.89    2.24     2.24    2.52    2.59\n"
        "classes held             2.0     2.5      2.5     2.9     3.0\n"
        "share of commonest     0.600   0.633    0.633   0.660   0.667\n"
        f"mean ink               {ink[0]:.3f}   {ink[1]:.3f}    {ink[2]:.3f}   {ink[3]:.3f}"
        f"   {ink[4]:.3f}\n"
        "Sizes: mean 4.0, std 1.0 (0.250 of the mean), skewness 0.00, Gini 0.125\n"
        "Labels differ less than at random: mean TV is 0.83 times that at random.\n"
        "TV: total variation distance of a client's labels from all labels, 0 to 1.\n"
        "At random: mean TV of as many examples, drawn at random from all clients.\n"
        "Effective classes: exp of the entropy; n if n classes are equally frequent.\n"
        "\n"
        "Clients by number of examples (train)\n"
        f"3-3 {'█' * 34} 1\n"
        "4-4                                    0\n"
        f"5-5 {'█' * 34} 1\n"
        "\n"
        "Examples by label (train)\n"
        f"cat {'█' * 25}▌         3\n"
        f"dog {'█' * 34} 4\n"
        f"cow {'█' * 8}▌                          1\n"
        "\n"
        "Clients (train)\n"
        "client  examples     TV  random     JS  effective  cat  dog  cow\n"
        "----------------------------------------------------------------\n"
        "a              3  0.292   0.319  0.104       1.89    2    1    0\n"
        "b              5  0.175   0.244  0.029       2.59    1    3    1\n"
    )


@pytest.mark.parametrize(
    ("sort", "order"),
    [("id", "abcd"), ("size", "bdac"), ("tv", "cadb"), ("js", "cabd"), ("classes", "dbac")],
)
def test_table_is_sorted_and_cut(
    fedcli: Fedcli, write_store: WriteStore, sort: str, order: str
) -> None:
    labels = {"a": [0, 0], "b": [0, 0, 0, 1], "c": [2], "d": [0, 1, 2]}
    data = write_store({"train": labels})
    titles = {
        "id": "Clients (train)",
        "size": "Clients (train), largest first",
        "tv": "Clients (train), greatest TV first",
        "js": "Clients (train), greatest Jensen-Shannon divergence first",
        "classes": "Clients (train), most classes first",
    }
    arguments = ("inspect-clients", "--data", data, "--sort", sort)
    rows = rows_of(fedcli(*arguments).out, titles[sort])
    assert "".join(row[0] for row in rows) == order
    cut = fedcli(*arguments, "--top", 2).out
    assert "".join(row[0] for row in rows_of(cut, titles[sort])[:2]) == order[:2]
    assert cut.endswith("... and 2 more; --top N shows N\n")
    assert fedcli(*arguments, "--top", 0).out.endswith(
        f"{titles[sort]}\n... and 4 more; --top N shows N\n"
    )


def test_eighty_columns_hold_the_labels_of_ten_classes(
    write_store: WriteStore,
) -> None:
    labels = {f"w{number:04}": list(range(10)) * 11 for number in range(3)}
    data = open_splits(DataSource(str(write_store({"train": labels}, num_classes=10))))["train"]
    task = population.Task(data=data, client_ids=data.client_ids, compared_ids=data.client_ids)
    populations = population.read_populations({"train": task})
    output = io.StringIO()
    screen = Screen()
    screen.console = Console(file=output, width=80, force_terminal=True, color_system=None)
    client_tables.show_population(screen, populations, client_tables.View(3, "tv", None, False))
    lines = lines_under(output.getvalue(), "Clients (train), greatest TV first")
    assert lines[0].split() == [*("client", "examples", "TV", "random"), *"0123456789"]
    assert max(map(len, output.getvalue().splitlines()[1:])) <= 80  # line 0 has a path, kept whole


def test_csv_has_one_row_a_client_and_split(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store(
        {"train": {"a": [0, 0, 1], "b,\"'": []}, "test": {"a": [2]}}, class_names=("x", "y,", "z")
    )
    done = fedcli("inspect-clients", "--data", data, "--csv", "out.csv", "--json")
    assert done.err == "fedcli: wrote out.csv\n"
    with Path("out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    figures = ["split", "client_id", "num_examples", *FIGURES]
    assert header == [*figures, "label x", "label y,", "label z"]
    assert [row[:3] + row[-3:] for row in rows] == [
        ["train", "a", "3", "2", "1", "0"],
        ["train", "b,\"'", "0", "0", "0", "0"],
        ["test", "a", "1", "0", "0", "1"],
    ]
    result = json.loads(done.out)["splits"]
    expected = [each for split in result.values() for each in split["clients"]]
    for row, client in zip(rows, expected, strict=True):
        found = {
            name: float(text) if text else None
            for name, text in zip(FIGURES, row[3:10], strict=True)
        }
        assert found == {name: client[name] for name in FIGURES}


def test_csv_takes_the_place_of_the_old_file_at_once(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path
) -> None:
    (tmp_path / "out.csv").write_text("before")
    (tmp_path / "old.csv").hardlink_to(tmp_path / "out.csv")
    assert fedcli("inspect-clients", "--data", write_tff(), "--csv", "out.csv").code == 0
    assert (tmp_path / "out.csv").read_text().startswith("split,client_id")
    assert (tmp_path / "old.csv").read_text() == "before"


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_what_is_read_is_not_written_to(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path, option: str
) -> None:
    data, test = write_tff(), write_tff("test.h5")
    (tmp_path / "link.h5").symlink_to(test)
    before = data.read_bytes()
    for output in ("train.h5", "link.h5"):
        arguments = ("--data", data, "--test-data", test, option, output)
        done = fedcli("inspect-clients", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert f"{option} {output} is also an input ({tmp_path}" in done.err
    assert data.read_bytes() == test.read_bytes() == before


def test_csv_columns_are_numbers_where_names_are_not_unique(
    fedcli: Fedcli, write_store: WriteStore
) -> None:
    data = write_store({"train": {"a": [0]}}, class_names=("x", "y", "x"))
    fedcli("inspect-clients", "--data", data, "--csv", "out.csv")
    assert Path("out.csv").read_text().splitlines()[0].endswith(",label 0,label 1,label 2")


def test_csv_is_whole_or_not_there(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("inspect-clients", "--data", write_tff(), "--csv")
    (tmp_path / "folder").mkdir()
    done = fedcli(*arguments, "folder")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "folder is not a regular file" in done.err
    done = fedcli(*arguments, "nowhere/out.csv")
    assert (done.code, done.out) == (1, "")
    assert "cannot write nowhere/out.csv: there is no such folder" in done.err
    (tmp_path / "out.csv").write_text("before")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = fedcli(*arguments, "out.csv")
    assert "cannot write out.csv: No space left on device" in done.err
    assert (tmp_path / "out.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_few_clients_stand_side_by_side(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--clients", "a,c", "--examples", 0)
    panels = lines_under(done.out, "Label counts and examples (train)")
    assert panels[0].split("  ")[0] == "a: 5 examples"
    assert panels[0].endswith("c: 7 examples")
    assert panels[1].split() == [
        *("TV", "0.167,", "random", "0.438", "TV", "0.119,", "random", "0.365")
    ]
    assert panels[2].split() == ["0", "█" * 20, "1", "0", "█" * 20, "1"]
    assert panels[8].split() == ["6", "0", "6", "█" * 20, "1"]


def test_six_clients_stand_in_two_rows_of_three(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli(
        *("inspect-clients", "--data", write_tff(num_clients=8)),
        *("--clients", "a,b,c,d,e,f", "--examples", 0),
    )
    heads = [
        line.split(": ")[0][-1] + str(line.count(":"))
        for line in done.out.splitlines()
        if line.endswith("examples") and ": " in line
    ]
    assert heads == ["a3", "d3"]


def test_chosen_clients_are_compared_with_their_whole_split(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    data = write_tff()
    everyone = json.loads(fedcli("inspect-clients", "--data", data, "--json").out)
    one = json.loads(fedcli("inspect-clients", "--data", data, "--json", "--clients", "b,").out)
    assert one["num_clients"] == 1
    assert one["splits"]["train"]["clients"] == [everyone["splits"]["train"]["clients"][1]]
    compared = one["splits"]["train"]["compared_with"]
    assert compared == everyone["splits"]["train"]["compared_with"]
    assert compared["num_clients"] == 3


def test_chosen_clients_of_very_many_are_compared_with_a_draw(
    fedcli: Fedcli, write_tff: WriteTff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "MAX_COMPARED", 5)
    monkeypatch.setattr(population, "NUM_DRAWN", 4)
    data = write_tff(num_clients=6)
    done = fedcli("inspect-clients", "--data", data, "--clients", 1, "--json")
    assert said(done) == ["fedcli: train: clients are compared with 4 of the 6, drawn once"]
    assert json.loads(done.out)["splits"]["train"]["compared_with"]["num_clients"] == 4


def test_one_client_with_its_examples_and_mean_images(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=2)
    with h5py.File(data, "r+") as file:
        for name, column in (("a", 0), ("b", 3)):
            pixels = np.ones_like(file[f"examples/{name}/pixels"][()])
            pixels[:, :, column] = 0  # 0 is ink: client a draws on the left, b on the right
            file[f"examples/{name}/pixels"][...] = pixels
    out = fedcli("inspect-clients", "--data", data, "--show", "a", "--examples", 2).out
    lines = out.splitlines()
    assert lines[0] == "a: 5 examples (train)"
    assert lines[1] == "TV 0.091 (at random 0.390), JS 0.047 bits, 5 classes, 5.00 effective"
    assert lines[2].split("  ")[-1].strip() == "expected from all 2 clients"
    assert lines[3].split()[0::3] == ["0", "0"]
    assert lines_under(out, "First 2 examples")[:4] == ["0  1", "█  █", "█  █", "█  █"]
    means = lines_under(out, "Mean image of each label; below it that of 2 clients")
    assert means[0].split() == ["0", "1", "2", "3", "4"]
    assert means[1:4] == ["█     █     █     █     █"] * 3
    assert means[4] == ""
    assert means[5:8] == ["█  █  █  █  █  █  █  █  █  █"] * 3


def test_quick_leaves_the_population_out_of_the_mean_images(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    out = fedcli("inspect-clients", "--data", write_tff(), "--show", "a", "--quick").out
    assert "\nMean image of each label\n" in out
    assert "below it" not in out


def test_several_clients_are_drawn_in_the_order_of_ids(fedcli: Fedcli, write_tff: WriteTff) -> None:
    out = fedcli("inspect-clients", "--data", write_tff(), "--show", "c", "--show", "a").out
    heads = [line for line in out.splitlines() if line.endswith("(train)")]
    assert heads == ["a: 5 examples (train)", "c: 7 examples (train)"]


def test_several_ids_in_one_show_are_refused(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--show", "a,c")
    assert_is_one_line(done, "--show a,c: no such client", "; give --show once for each client")


def test_a_client_without_examples_is_shown_as_such(
    fedcli: Fedcli, write_store: WriteStore
) -> None:
    data = write_store({"train": {"a": [0, 1], "b": []}})
    out = fedcli("inspect-clients", "--data", data, "--show", "b").out
    assert out.splitlines()[0] == "b: 0 examples (train)"
    assert "TV" not in out
    panels = fedcli("inspect-clients", "--data", data, "--clients", "a,b", "--means").out
    assert lines_under(panels, "b: mean image of each label")[0] == "no examples"
    table = rows_of(fedcli("inspect-clients", "--data", data).out, "Clients (train)")
    assert table[1] == ["b", "0", "-", "-", "-", "-", "0", "0", "0"]


def test_nobody_has_an_example(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [], "b": []}})
    done = fedcli("inspect-clients", "--data", data, "--means")
    assert (done.code, done.err) == (0, "")
    assert "Sizes: mean 0.0, std 0.0 (- of the mean), skewness -, Gini -" in done.out
    result = json.loads(fedcli("inspect-clients", "--data", data, "--json").out)
    assert result["splits"]["train"]["heterogeneity"] == dict.fromkeys(FIGURES)


def test_one_client_of_one_class(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [0, 0]}}, num_classes=1)
    out = fedcli("inspect-clients", "--data", data).out
    assert rows_of(out, "Clients (train)") == [["a", "2", "0.000", "0.000", "0.000", "1.00", "2"]]


def test_mean_images_of_several_clients_and_of_all(fedcli: Fedcli, write_tff: WriteTff) -> None:
    out = fedcli("inspect-clients", "--data", write_tff(), "--clients", "a,b", "--means").out
    assert [line for line in out.splitlines() if "mean image" in line] == [
        "a: mean image of each label",
        "b: mean image of each label",
        "3 clients together: mean image of each label (train)",
    ]
    of_a = lines_under(out, "a: mean image of each label")
    assert of_a[0].split() == ["0", "1", "2", "3", "4"]
    everyone = fedcli("inspect-clients", "--data", write_tff(), "--means").out
    of_all = lines_under(everyone, "Mean image of each label (train)")
    assert of_all[0].split() == ["0", "1", "2", "3", "4", "5", "6"]


def test_mean_images_that_fill_the_memory_are_left_out(
    fedcli: Fedcli, write_tff: WriteTff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MAX_MEAN_BYTES", 10 * 6 * 4 * 8 - 1)
    done = fedcli("inspect-clients", "--data", write_tff(), "--means")
    assert done.code == 0
    assert said(done) == [
        "fedcli: no mean images are drawn: 10 classes of [6, 4] pixels would need too much memory"
    ]
    assert "Mean image" not in done.out


def test_pictures_side_by_side_are_cut_alike(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=2)
    with h5py.File(data, "r+") as file:
        for name, column in (("a", 1), ("b", 2)):
            pixels = np.ones_like(file[f"examples/{name}/pixels"][()])
            pixels[:, :, column] = 0  # 0 is ink: the outer columns are empty in all images
            file[f"examples/{name}/pixels"][...] = pixels
    arguments = ("--clients", "a,b", "--means", "--examples", 1)
    out = fedcli("inspect-clients", "--data", data, *arguments).out
    panels = lines_under(out, "Label counts and examples (train)")[14]  # the line below ten bars
    assert panels == "█" + " " * 26 + "█"  # panels are 26 columns apart
    assert lines_under(out, "a: mean image of each label")[1].startswith("█   █")
    assert lines_under(out, "b: mean image of each label")[1].startswith(" █   █")


def test_a_drawing_shows_ink_where_the_file_has_it(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=1)
    pixels = np.ones((5, 6, 4), np.float32)  # 1 is paper in a TFF file
    pixels[:, 0, :] = pixels[:, 3, 1] = pixels[:, 5, 3] = 0
    with h5py.File(data, "r+") as file:
        file["examples/a/pixels"][...] = pixels
    for convention in ("source", "ink", "background"):  # the pictures stay the same
        done = fedcli(
            *("inspect-clients", "--data", data, "--show", "a", "--examples", 1),
            *("--pixels", convention),
        )
        assert lines_under(done.out, "First 1 example")[:4] == ["0", "▀▀▀▀", " ▄", "   ▄"]
        means = lines_under(done.out, "Mean image of each label; below it that of 1 client")
        assert means[1][:4] == "▀▀▀▀"


def test_faint_mean_images_are_drawn_at_full_ink(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=1)
    with h5py.File(data, "r+") as file:
        file["examples/a/pixels"][...] = np.float32(1 - 51 / 255)
    out = fedcli("inspect-clients", "--data", data, "--means").out
    assert lines_under(out, "Mean image of each label (train)")[1].split() == ["████"] * 5


def test_coloured_images_in_a_pipe_are_shades(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [0, 1]}}, shape=(4, 3, 3))
    out = fedcli("inspect-clients", "--data", data, "--show", "a").out
    pictures = lines_under(out, "First 2 examples")[1:3]
    assert all(len(line) == 8 for line in pictures)
    assert set("".join(pictures)) <= set(" .:-=+*#%@")


def test_sixty_two_classes_have_their_names(fedcli: Fedcli, write_store: WriteStore) -> None:
    names = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    data = write_store({"train": {"a": [10, 10, 61], "b": [36]}}, 62, names)
    out = fedcli("inspect-clients", "--data", data).out
    table = lines_under(out, "Clients (train)")
    assert table[0].split() == [
        *("client", "examples", "TV", "random", "JS", "effective", "held", "commonest")
    ]
    assert table[2].split()[-2:] == ["2", "A"]
    assert table[3].split()[-2:] == ["1", "a"]
    bars = lines_under(out, "Examples by label (train)")[:62]
    assert [bar[0] for bar in bars] == list(names)
    assert (bars[10].split()[-1], bars[36].split()[-1]) == ("2", "1")
    shown = fedcli("inspect-clients", "--data", data, "--show", "a").out
    assert lines_under(shown, "First 3 examples")[0].split() == ["A", "A", "z"]
    means = lines_under(shown, "Mean image of each label; below it that of 2 clients")
    assert means[0].split() == ["A", "z"]


def test_more_classes_than_bars_are_summed_up(fedcli: Fedcli, write_tff: WriteTff) -> None:
    out = fedcli("inspect-clients", "--data", write_tff(), "--num-classes", 70).out
    bars = lines_under(out, "Examples by label (train)")
    assert bars[62].split() == ["others", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "none"), "--split none: "),
        (("--show", "none"), "--show none: no such client among the 3"),
        (("--clients", "a,none"), "--clients none: no such client"),
        (
            ("--show", "a", "--clients", "a,b"),
            "--show a and --clients a,b contradict each other; give one of them",
        ),
        (("--quick", "--means"), "--means needs pixels, which --quick does not read"),
        (("--quick", "--suspects"), "--suspects needs pixels, which --quick does not read"),
        (("--quick", "--plot", "out"), "--plot needs pixels, which --quick does not read"),
        (("--plot-format", "svg"), "--plot-format svg needs --plot DIR"),
        (("--run", "nowhere"), "--run nowhere: there is no such run"),
        (("--augmented",), "of a run gets them, so it needs --run RUN; add it"),
        (("--augmented", "--quick"), "--augmented needs pixels, which --quick does not read"),
        (("--augmented", "--run", ".", "--json"), "which JSON has no place for; drop --json"),
    ],
)
def test_what_cannot_be_is_one_line(
    fedcli: Fedcli, write_tff: WriteTff, arguments: tuple[str, ...], message: str
) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert message in done.err


def test_suspects_follow_in_tables_and_json(fedcli: Fedcli, write_tff: WriteTff) -> None:
    arguments = ("inspect-clients", "--data", write_tff(num_clients=8))
    for count in (("--suspects",), ("--suspects", "3")):
        out = fedcli(*arguments, *count).out
        assert out.index("Clients (train)") < out.index("Likely mislabeled (train")
    result = json.loads(fedcli(*arguments, "--suspects", "3", "--json").out)
    assert result["suspects"]["num_examples"] == result["num_examples"]
    assert len(result["suspects"]["examples"]) <= 3
    assert "suspects" not in json.loads(fedcli(*arguments, "--json").out)
    assert fedcli(*arguments, "--suspects", "0").code == 2


def test_suspects_by_a_run(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    trained = fedcli("train", "--data", data, "--rounds", 1, "--out", "run", "-q")
    assert trained.code == 0
    result = json.loads(fedcli("inspect-clients", "--data", data, "--run", "run", "--json").out)
    assert "loss" in result["suspects"]["measure"]
    assert len(result["suspects"]["examples"]) == 18


def test_training_images_of_a_run_are_drawn(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    augmented = ("--augment", "crop+flip", "--augment-option", "size=3", "--normalize", "image")
    for name, options in (("plain", ()), ("run", augmented)):
        done = fedcli("train", "--data", data, *options, "--rounds", 1, "--out", name, "-q")
        assert done.code == 0, done.err
    inspect = ("inspect-clients", "--augmented", "--run")
    out = fedcli(*inspect, "run", "--show", "a", "--examples", 2).out
    heading = "a: the first examples of round 1, below each what the model gets"
    assert out.index("a: ") < out.index(heading)
    assert "What the model gets is normalised: from -" in out
    assert "Likely mislabeled" not in out
    both = fedcli(*inspect, "run", "--suspects").out
    assert both.count("the first examples of round 1") == 3
    assert "Likely mislabeled" in both
    plain = fedcli(*inspect, "plain")
    assert (plain.code, plain.err.count("\n")) == (1, 1)
    assert "the model of plain gets images unchanged; train with --augment" in plain.err
    test = fedcli(*inspect, "run", "--data", "synthetic-digits", "--split", "test")
    assert (test.code, test.err.count("\n")) == (1, 1)
    assert "--augmented draws training images; drop --split test" in test.err


def test_mixed_training_images_have_both_labels(fedcli: Fedcli) -> None:
    digits = ("--data", "synthetic-digits", "--data-option", "clients=3")
    train = ("train", *digits, "--clients", 1, "--rounds", 1, "--augment", "mixup")
    done = fedcli(*train, "--max-examples", 20, "--out", "run", "-q")
    assert done.code == 0, done.err
    out = fedcli("inspect-clients", "--augmented", "--run", "run", "--examples", 2).out
    found = re.search(r"\n\d (\d+)% \+ \d (\d+)% ", out)
    assert found is not None, out
    assert int(found[1]) + int(found[2]) == 100


def test_a_run_is_looked_at_with_its_own_data(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data, other = write_tff(), write_tff("other.h5", num_clients=4)
    dealt = ("--partition", "iid", "--partition-option", "clients=2")
    fedcli("train", "--data", data, *dealt, "--rounds", 1, "--out", "run", "-q")
    inspect = ("inspect-clients", "--json", "--run")
    for run in ("run", "run/checkpoints/round-000001.h5"):
        told = json.loads(fedcli(*inspect, run).out)
        assert (told["data"], told["num_clients"]) == (str(data), 2)
        assert told["suspects"]["num_examples"] == 18
    dealt_anew = json.loads(fedcli(*inspect, "run", "--partition-option", "clients=5").out)
    assert dealt_anew["num_clients"] == 5
    elsewhere = json.loads(fedcli(*inspect, "run", "--data", other).out)
    assert (elsewhere["data"], elsewhere["num_clients"]) == (str(other), 4)
    refused = fedcli(*inspect, "run", "--data", "synthetic-digits")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "the model takes [6, 4]" in refused.err
    written = fedcli(*inspect, "run", "--csv", data)
    assert "is also an input" in written.err


def test_a_changed_store_is_told(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [0, 1], "b": [2]}, "test": {"a": [1]}})
    inspect = ("inspect-clients", "--data", data)
    assert fedcli(*inspect).code == 0
    with h5py.File(data, "r+") as file:
        file["splits/test/pixels"][0, 0, 0] ^= 1
    for whole in ((), ("--clients", "2"), ("--json",)):
        done = fedcli(*inspect, *whole)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "it was changed or damaged" in done.err
    dealt = ("--partition", "iid", "--partition-option", "clients=2")
    for part in (("--quick",), ("--clients", "a"), ("--split", "train"), dealt):
        assert fedcli(*inspect, *part).code == 0


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_figures_are_written_and_named(
    fedcli: Fedcli, write_tff: WriteTff, file_format: str
) -> None:
    pytest.importorskip("matplotlib")
    done = fedcli(
        *("inspect-clients", "--data", write_tff(), "--clients", "a,b", "--json"),
        *("--plot", "figures", "--plot-format", file_format),
    )
    assert json.loads(done.out)["num_clients"] == 2
    written = sorted(f"figures/{path.name}" for path in Path("figures").iterdir())
    assert sorted(line.removeprefix("fedcli: wrote ") for line in said(done)) == written
    assert written
    assert {Path(name).suffix for name in written} == {f".{file_format}"}


def test_stopped_while_drawing_says_what_is_there(
    fedcli: Fedcli, write_tff: WriteTff, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def draw(*_: object, on_progress: ProgressCallback, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for done in range(600):
            on_progress(done, None)
            time.sleep(0.1)

    monkeypatch.setattr(figures, "write_figures", draw)
    done = fedcli("inspect-clients", "--data", write_tff(), "--csv", "a.csv", "--plot", "figures")
    assert (done.code, done.out) == (130, "")
    assert said(done) == ["fedcli: wrote a.csv", "fedcli: stopped; no figure was written"]


def test_a_partition_is_looked_at_like_any_data(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli(
        *("inspect-clients", "--data", write_tff(), "--json"),
        *("--partition", "iid", "--partition-option", "clients=6"),
    )
    result = json.loads(done.out)
    assert (result["num_clients"], result["num_examples"]) == (6, 18)
    assert result["partition"] == "iid clients=6 seed=0"


def test_a_partition_of_a_partition_names_both(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=8)
    dealt = ("--partition", "iid", "--partition-option", "clients=4")
    assert fedcli("preprocess", data, "--out", "dealt.h5", *dealt).code == 0
    noisy = ("--partition", "label-noise", "--partition-option", "rate=0.5", "--json")
    result = json.loads(fedcli("inspect-clients", "--data", "dealt.h5", *noisy).out)
    first, then, second = result["partition"].partition(", then ")
    assert (first, then) == ("iid clients=4 seed=0", ", then ")
    assert second == "label-noise kind=symmetric rate=0.5 seed=0"


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_view_says_how_examples_were_dealt(
    fedcli: Fedcli, write_tff: WriteTff, is_stored: bool
) -> None:
    data = write_tff(num_clients=8)
    dealt = ("--partition", "shards", "--partition-option", "clients=4")
    named = "Partition: shards clients=4 seed=0 shards=2"
    assert "Partition" not in fedcli("inspect-clients", "--data", data).out
    if is_stored:
        held_out = ("--hold-out", "within")
        assert fedcli("preprocess", data, "--out", "dealt.h5", *dealt, *held_out).code == 0
        done = fedcli("inspect-clients", "--data", "dealt.h5")
    else:
        done = fedcli("inspect-clients", "--data", data, *dealt)
    assert done.out.splitlines()[1] == named


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        ({"a": [0] * 8, "b": [1] * 8}, "more than at random: mean TV is 3.7 times that "),
        ({"a": [0, 1] * 4, "b": [0, 1] * 4}, "less than at random: mean TV is 0 times that "),
        ({"a": [0, 1, 1, 1], "b": [0, 0, 0, 1]}, "more than at random"),
        ({"a": [0] * 5 + [1] * 3, "b": [0] * 3 + [1] * 5}, "as much as at random"),
    ],
)
def test_tv_is_judged_by_its_floor(
    fedcli: Fedcli, write_store: WriteStore, labels: Labels, verdict: str
) -> None:
    out = fedcli("inspect-clients", "--data", write_store({"train": labels})).out
    assert f"Labels differ {verdict}" in out


def test_ink_is_the_same_whatever_the_model_sees(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=2)
    with h5py.File(data, "r+") as file:
        file["examples/a/pixels"][...] = np.float32(0.75)  # 1 is paper in a TFF file
        file["examples/b/pixels"][...] = np.float32(0.5)
    for convention in ("source", "ink", "background"):
        done = fedcli("inspect-clients", "--data", data, "--json", "--pixels", convention)
        clients = json.loads(done.out)["splits"]["train"]["clients"]
        assert [each["mean_ink"] for each in clients] == pytest.approx([0.25, 0.5])


def test_bars_beside_each_other_share_their_scale(fedcli: Fedcli, write_store: WriteStore) -> None:
    data = write_store({"train": {"a": [0] * 20, "b": [0] * 10 + [1] * 5}})
    out = fedcli("inspect-clients", "--data", data, "--clients", "a,b", "--examples", 0).out
    zeros = lines_under(out, "Label counts and examples (train)")[2]
    long, short = (part.count("█") for part in zeros.split(" 20  "))
    assert short > 0
    assert long == pytest.approx(2 * short, abs=1)  # 20 against 10 zeros; in whole columns
    out = fedcli("inspect-clients", "--data", data, "--show", "b", "--examples", 0).out
    own, expected = lines_under(out, "b: 15 examples (train)")[2].split(" 10  ")
    assert expected.count("█") == pytest.approx(1.3 * own.count("█"), abs=1)  # 13 expected; 10 own


def test_ten_million_clients_show_progress_and_stop_within_their_reading(
    command: list[str], process_arguments: dict[str, Any], tmp_path: Path
) -> None:
    keyboard, terminal = pty.openpty()
    start = [*command, "inspect-clients", "--data-option", "clients=10000000"]
    with started(
        start, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, **process_arguments
    ) as process:
        os.close(terminal)
        assert b"reading clients" in read_terminal(keyboard, b"/20M clients")
        process.send_signal(signal.SIGINT)
        seen = read_terminal(keyboard)
        os.close(keyboard)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert b"fedcli: stopped" in seen
    assert b"Traceback" not in seen


def test_real_writers_are_the_same_from_the_file_and_from_a_store(
    fedcli: Fedcli, shared_data: Path, tmp_path: Path
) -> None:
    data = shared_data / "mnist_writers_test.h5"
    split = open_splits(DataSource(str(data)))["train"]
    info = store.StoreInfo(num_classes=10, pixel_convention="background")
    store_writer.create(tmp_path / "store.h5", {"train": map(split.client, split.client_ids)}, info)
    of_file, of_store = (
        json.loads(fedcli("inspect-clients", "--data", path, "--json").out)
        for path in (data, tmp_path / "store.h5")
    )
    assert (of_file["num_clients"], of_file["num_examples"]) == (539, 5_997)
    assert of_store["splits"] == of_file["splits"]
    skew = of_file["splits"]["train"]["heterogeneity"]  # all digits are about equally frequent
    assert skew["tv"]["mean"] < skew["tv_floor"]["mean"]
