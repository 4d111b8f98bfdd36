from __future__ import annotations

import pytest

from fedcli.reports.names import short_names, size_text


def test_folders_that_all_share_are_left_out() -> None:
    names = ["sweep/fedadam-lr0.03-s0", "sweep/fedavg-lr0.1-s1"]
    assert short_names(names) == ["fedadam-lr0.03-s0", "fedavg-lr0.1-s1"]
    assert short_names(["runs/a", "runs/a/b"]) == ["a", "a/b"]
    assert short_names(["/x/y/runs/one"]) == ["one"]


def test_pieces_that_all_share_go_first_where_there_is_no_room() -> None:
    names = [f"runs/20261129-181011-emnist-digits-fedavg-lr0.1-s{seed}" for seed in range(3)]
    assert short_names(names, 30) == [f"…-digits-fedavg-lr0.1-s{seed}" for seed in range(3)]
    assert short_names(names, 12) == [f"…-lr0.1-s{seed}" for seed in range(3)]


@pytest.mark.parametrize("limit", [8, 20, 44])
def test_names_stay_distinct_and_short(limit: int) -> None:
    names = [
        f"deep/folder/{algorithm}-with-a-name-that-is-long-lr{rate}-seed{seed}-and-an-end"
        for algorithm in ("fedavg", "fedprox", "scaffold")
        for rate in (0.03, 0.1, 0.3)
        for seed in range(3)
    ]
    names += ["", "other/run", "x" * 300, "x" * 299 + "y"]
    short = short_names(names, limit)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= limit


def test_equal_names_stay_equal() -> None:
    assert short_names(["runs/a", "runs/b", "runs/a"]) == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (149_000_000, "149 MB")),
        *((1.4e9, "1.4 GB"), (999_499, "999 kB"), (999_500, "1 MB"), (2.34e12, "2.34 TB")),
    ],
)
def test_sizes_in_words(num_bytes: float, text: str) -> None:
    assert size_text(int(num_bytes)) == text
