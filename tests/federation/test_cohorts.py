from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedcli.errors import ConfigError
from fedcli.federation import cohorts
from fedcli.federation.cohorts import ClientSelection, Cohorts
from fedcli.federation.samplers import Uniform
from fedcli.settings.vocabulary import SAMPLINGS

IDS = [f"w{index:02d}" for index in range(30)]


class Generated(Sequence[str]):
    """Sorted ids. An id is made when it is read, and the reads are counted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_made = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        self.num_made += 1
        return f"w{index:09d}"


def plan(
    selection: ClientSelection, sampling: str, client_ids: Sequence[str], source: str, seed: int
) -> Cohorts:
    """Cohorts of clients with ten examples each."""
    return cohorts.plan_cohorts(selection, sampling, client_ids, source, seed, lambda _: 10)


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("all", ClientSelection()),
        ("3", ClientSelection(count=3)),
        ("3,", ClientSelection(ids=("3",))),
        (" 0.1 ", ClientSelection(share=0.1)),
        (".25", ClientSelection(share=0.25)),
        ("1e-05", ClientSelection(share=1e-5)),
        ("0.1,", ClientSelection(ids=("0.1",))),
        ("0.1,0.2", ClientSelection(ids=("0.1", "0.2"))),
        ("1.0.2", ClientSelection(ids=("1.0.2",))),
        ("w02, w01", ClientSelection(ids=("w01", "w02"))),
        (("b", "a,c"), ClientSelection(ids=("a,c", "b"))),
    ],
)
def test_parse(text: str | tuple[str, ...], selection: ClientSelection) -> None:
    assert cohorts.parse_clients(text) == selection


def test_parse_file_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("7\n\n w01 \n3\n")
    assert cohorts.parse_clients(f"@{file}").ids == ("3", "7", "w01")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("0", "at least 1 client"),
        ("-2", "at least 1 client"),
        ("-" + "9" * 5000, "at least 1 client"),
        ("9" * 5000, "no data have as many clients; choose fewer"),
        ("0.0", "0.0: choose a share above 0 and below 1"),
        ("1.0", "above 0 and below 1"),
        ("-0.5", "above 0 and below 1"),
        ("." + "0" * 5000, "above 0 and below 1"),
        ("a,,b", "empty id"),
        (",", "empty id"),
        ("a,b,a", "names client a twice"),
        ("@/no/such/file", "@/no/such/file: cannot read"),
    ],
)
def test_parse_refuses(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        cohorts.parse_clients(text, "--eval-clients")
    assert str(caught.value).startswith("--eval-clients")
    assert "\n" not in str(caught.value)


def test_parse_refuses_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        cohorts.parse_clients(f"@{file}")


def test_the_message_about_too_many_clients_names_the_population() -> None:
    with pytest.raises(ConfigError, match=r"--clients 31 exceeds the 30 clients in x\.h5"):
        cohorts.resolve_ids(ClientSelection(count=31), IDS, "x.h5")


@pytest.mark.parametrize(
    ("share", "size"), [(0.1, 3), (0.9, 27), (0.51, 15), (0.01, 1), (0.999, 30)]
)
def test_a_share_is_rounded_and_at_least_one_client(share: float, size: int) -> None:
    for sampling in SAMPLINGS[1:]:
        sampler = plan(ClientSelection(share=share), sampling, IDS, "x", 0).sampler
        assert sampler is not None
        assert (sampler.population, sampler.size) == (30, size)


def test_a_share_has_no_order() -> None:
    fault = r"--clients 0\.1: a share of all clients is only for train --clients"
    with pytest.raises(ConfigError, match=fault):
        plan(ClientSelection(share=0.1), "fixed", IDS, "x", 0)
    with pytest.raises(ConfigError, match=r"--eval-clients 0\.1: a share"):
        cohorts.resolve_ids(ClientSelection(share=0.1), IDS, "x", "--eval-clients")


def test_an_unknown_id_is_named_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"--clients w07a: no such .* w06, w07, w08, w09"):
        cohorts.resolve_ids(ClientSelection(ids=("w01", "w07a")), IDS, "x.h5")


def test_the_default_is_ten_or_everyone_with_a_note() -> None:
    assert cohorts.default_selection(IDS, "x") == (ClientSelection(count=10), None)
    selection, note = cohorts.default_selection(IDS[:7], "x.h5")
    assert selection == ClientSelection(count=7)
    assert note is not None
    assert "x.h5 has 7 clients" in note
    with pytest.raises(ConfigError, match="no clients"):
        cohorts.default_selection([], "x.h5")


def test_a_fixed_cohort_is_the_first_in_sorted_order() -> None:
    planned = plan(ClientSelection(count=3), "fixed", IDS, "x", 0)
    assert planned.for_round(0) == planned.for_round(8) == ("w00", "w01", "w02")


def test_uniform_cohorts_are_distinct_sorted_and_depend_on_round_and_seed(seed: int) -> None:
    planned = plan(ClientSelection(count=10), "uniform", IDS, "x", seed)
    drawn = [planned.for_round(round_num) for round_num in range(50)]
    for ids in drawn:
        assert list(ids) == sorted(set(ids))
        assert len(ids) == 10
    assert len({tuple(ids) for ids in drawn}) == 50
    other = plan(ClientSelection(count=10), "uniform", IDS, "x", seed + 1)
    assert other.for_round(0) != drawn[0]
    # Round 7 does not depend on earlier rounds, so a resumed run draws the same cohorts.
    again = plan(ClientSelection(count=10), "uniform", IDS, "x", seed)
    assert again.for_round(7) == drawn[7]


def test_uniform_takes_all() -> None:
    everyone = plan(ClientSelection(), "uniform", IDS, "x", 0)
    assert everyone.for_round(3) == IDS


@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
def test_a_drawn_cohort_refuses_ids_and_an_empty_population(sampling: str) -> None:
    with pytest.raises(ConfigError, match=f"--sampling {sampling} draws the clients itself"):
        plan(ClientSelection(ids=("w01",)), sampling, IDS, "x", 0)
    with pytest.raises(ConfigError, match="x has no clients"):
        plan(ClientSelection(), sampling, [], "x", 0)


def test_by_size_reads_the_size_of_each_client() -> None:
    sizes = dict.fromkeys(IDS, 0) | {"w07": 3, "w29": 1}
    planned = cohorts.plan_cohorts(
        ClientSelection(count=3), "by-size", IDS, "x", 0, sizes.__getitem__
    )
    drawn = {client_id for round_num in range(20) for client_id in planned.for_round(round_num)}
    assert drawn == {"w07", "w29"}


def test_tff_cohorts_are_those_of_a_loop_that_calls_its_first_round_1() -> None:
    ids = [f"w{index:04d}" for index in range(3383)]
    planned = plan(ClientSelection(count=10), "tff", ids, "x", 42)
    chosen = [663, 1844, 3371, 2597, 688, 2482, 758, 806, 821, 2236]
    assert planned.for_round(0) == [ids[index] for index in chosen]


@pytest.mark.parametrize("sampling", ["uniform", "with-replacement", "poisson"])
def test_a_million_clients_cost_what_a_cohort_costs(sampling: str) -> None:
    ids = Generated(1_000_000)
    planned = plan(ClientSelection(count=100), sampling, ids, "x", 3)
    planned.for_round(0)
    ids.num_made = 0
    tracemalloc.start()
    drawn = planned.for_round(1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == ids.num_made
    assert 50 < len(set(drawn)) <= len(drawn) < 150
    assert peak_bytes < 200_000


def test_everyone_is_evaluated_up_to_a_bound_then_a_draw() -> None:
    few, note = cohorts.choose_eval_clients(IDS, "x", 0)
    assert few == IDS
    assert note is None
    many, note = cohorts.choose_eval_clients(Generated(10_001), "x.h5", 5)
    assert len(set(many)) == 1000
    assert note is not None
    assert "1,000 of the 10,001 clients in x.h5" in note
    assert cohorts.choose_eval_clients(Generated(10_001), "x.h5", 5)[0] == many
    first_cohort = cohorts.Cohorts(Generated(10_001), None, Uniform(10_001, 1000, 5)).for_round(0)
    assert many != first_cohort  # evaluation and cohorts use different streams


def test_contains_searches_a_sorted_sequence() -> None:
    ids = Generated(1_000_000)
    assert cohorts.contains(ids, "w000999999")
    assert not cohorts.contains(ids, "w001000000")
    assert not cohorts.contains([], "a")
    assert ids.num_made < 50
