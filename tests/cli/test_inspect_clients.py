from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cli.conftest import Fedcli, WriteTff


def test_json_counts_what_is_there(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    result = json.loads(fedcli("inspect-clients", "--data", data, "--json").out)
    assert result == {
        "data": str(data),
        "num_clients": 3,
        "num_classes": 10,
        "num_examples": 18,
        "class_names": None,
        "pixel_shape": [6, 4],
        "pixel_convention": "background",
        "splits": {
            "train": {
                "num_clients": 3,
                "num_examples": 18,
                "label_counts": [3, 3, 3, 3, 3, 2, 1, 0, 0, 0],
                "sizes": {"minimum": 5, "median": 6.0, "mean": 6.0, "maximum": 7},
                "clients": [
                    {
                        "client_id": client_id,
                        "num_examples": count,
                        "label_counts": [1] * count + [0] * (10 - count),
                    }
                    for client_id, count in (("a", 5), ("b", 6), ("c", 7))
                ],
            }
        },
    }


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
    assert fedcli(*arguments, "--quick").out == fedcli(*arguments).out


def test_table_is_sorted_and_cut(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff(num_clients=12)
    table = fedcli("inspect-clients", "--data", data).out.partition("Clients (train)\n")[2]
    assert [line.split()[0] for line in table.splitlines()[2:12]] == list("abcdefghij")
    assert table.splitlines()[12] == "... and 2 more; --top N shows N"
    by_size = fedcli("inspect-clients", "--data", data, "--sort", "size", "--top", 2).out
    rows = by_size.partition("Clients (train)\n")[2].splitlines()
    assert rows[2].split() == ["l", "16", *["2"] * 6, *["1"] * 4]
    assert rows[3].split()[:2] == ["k", "15"]
    assert rows[4] == "... and 10 more; --top N shows N"


def test_few_clients_stand_side_by_side(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--clients", "a,c", "--examples", 0)
    panels = done.out.partition("Label counts and digits (train)\n")[2].splitlines()
    assert panels[0].split("  ")[0] == "a: 5 examples"
    assert panels[0].rstrip().endswith("c: 7 examples")
    assert panels[1].split() == ["0", "█" * 20, "1", "0", "█" * 20, "1"]
    assert panels[7].split() == ["6", "0", "6", "█" * 20, "1"]


def test_a_drawing_shows_ink_where_the_file_has_it(
    fedcli: Fedcli, tmp_path: Path, write_tff: WriteTff
) -> None:
    data = write_tff(num_clients=1)
    pixels = np.ones((5, 6, 4), np.float32)  # 1 is paper in a TFF file
    pixels[:, 0, :] = pixels[:, 3, 1] = pixels[:, 5, 3] = 0
    with h5py.File(data, "r+") as file:
        file["examples/a/pixels"][...] = pixels
    for convention in ("source", "ink", "background"):  # what the model sees changes no picture
        done = fedcli(
            *("inspect-clients", "--data", data, "--show", "a", "--examples", 1),
            *("--pixels", convention),
        )
        lines = done.out.splitlines()
        start = lines.index("First 1 example, labels 0") + 1
        assert lines[start : start + 3] == ["▀▀▀▀", " ▄  ", "   ▄"]


@pytest.mark.parametrize(("option", "value"), [("--split", "none"), ("--show", "none")])
def test_what_is_not_there_is_named(
    fedcli: Fedcli, write_tff: WriteTff, option: str, value: str
) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), option, value)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "none" in done.err


def test_many_classes_are_summed_up(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("inspect-clients", "--data", write_tff(), "--num-classes", 20)
    table = done.out.partition("Clients (train)\n")[2].splitlines()
    assert table[0].split() == ["client", "examples", "labels", "held", "commonest"]
    assert table[4].split() == ["c", "7", "7", "0"]
