from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedcli.errors import ConfigError
from fedcli.settings.options import (
    Entry,
    Option,
    Value,
    check_number,
    choose,
    did_you_mean,
    resolve,
)


def _refuse_fast_and_far(options: Mapping[str, Value]) -> str | None:
    return "fast needs near" if options["fast"] and options["where"] == "far" else None


ENTRY = Entry(
    "runner",
    "Runs.",
    "nowhere",
    (
        Option("rate", 0.5, "Rate.", 0.0, 1.0),
        Option("steps", 3, "Steps.", 1),
        Option("fast", False, "Fast."),
        Option("where", "near", "Where.", choices=("near", "far")),
        Option("label", "x", "Label."),
    ),
    _refuse_fast_and_far,
)


def test_defaults_fill_what_is_not_given() -> None:
    assert resolve(ENTRY, {"steps": 7}) == {
        "rate": 0.5,
        "steps": 7,
        "fast": False,
        "where": "near",
        "label": "x",
    }


@pytest.mark.parametrize("given", [1, np.float32(1.0), np.int64(1)])
def test_a_whole_number_becomes_the_float_an_option_asks_for(given: Any) -> None:
    rate = resolve(ENTRY, {"rate": given})["rate"]
    assert type(rate) is float
    assert rate == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 1.5}, "runner option rate 1.5: choose a finite number from 0 to 1"),
        ({"rate": math.nan}, "runner option rate nan: choose a finite number from 0 to 1"),
        ({"rate": "1"}, "runner option rate '1': choose a finite number from 0 to 1"),
        ({"rate": True}, "runner option rate true: choose a finite number from 0 to 1"),
        ({"rate": [0.5]}, "runner option rate [0.5]: choose a finite number from 0 to 1"),
        ({"steps": 0}, "runner option steps 0: choose a whole number of at least 1"),
        ({"steps": 2.0}, "runner option steps 2.0: choose a whole number of at least 1"),
        ({"steps": True}, "runner option steps true: choose a whole number of at least 1"),
        ({"fast": 1}, "runner option fast 1: choose true or false"),
        ({"where": "up"}, "runner option where 'up': choose near or far"),
        ({"label": 3}, "runner option label 3: choose text"),
        (
            {"speed": 1},
            "runner has no option 'speed'; its options are rate, steps, fast, where, label",
        ),
        ({"fast": True, "where": "far"}, "runner: fast needs near"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(
    given: Mapping[str, Value], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(ENTRY, given)
    assert str(error.value) == message


def test_an_entry_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^plain has no option 'x'; it takes none$"):
        resolve(Entry("plain", "", ""), {"x": 1})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, None, "a\nb"])
def test_check_number_refuses_on_one_line(value: object) -> None:
    with pytest.raises(ConfigError, match="choose a finite number of at least 0") as error:
        check_number("--client-lr", value, 0.0)
    assert str(error.value).startswith("--client-lr ")
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert choose({"b": 2, "a": 1}, "a", "letter") == 1
    with pytest.raises(ConfigError, match=r"^unknown letter 'c'; choose one of a, b$"):
        choose({"b": 2, "a": 1}, "c", "letter")


def test_an_unknown_name_brings_similar_ones_to_mind() -> None:
    table = {"momentum": 1, "momentous": 2, "sgd": 3}
    with pytest.raises(ConfigError) as caught:
        choose(table, "momentu", "word")
    assert str(caught.value) == (
        "unknown word 'momentu'; choose one of momentous, momentum, sgd; "
        "did you mean momentum or momentous?"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("emnist", "; did you mean emnist-digits or emnist-62 or mnist?"),
        ("mnis", "; did you mean mnist or kmnist or emnist-62?"),
        ("e", "; did you mean emnist-digits or emnist-62?"),
        ("", ""),
        ("zeppelin", ""),
    ],
)
def test_names_that_begin_with_the_given_text_come_to_mind_first(name: str, hint: str) -> None:
    names = ("kmnist", "emnist-digits", "mnist", "emnist-62", "cifar10")
    assert did_you_mean(name, names) == hint


def test_at_most_three_names_come_to_mind() -> None:
    names = [f"part-{number}" for number in range(5)]
    assert did_you_mean("part", names) == "; did you mean part-0 or part-1 or part-2?"
    names = [f"{part}_lr" for part in ("client", "server", "finetune", "first", "last")]
    assert did_you_mean("lr", names) == "; did you mean client_lr or server_lr or finetune_lr?"


def test_a_list_is_shown_as_it_is_written() -> None:
    entry = Entry("turn", "", "", (Option("angles", [0.0, 45.0, 90.0], "", -360.0, 360.0),))
    with pytest.raises(ConfigError) as caught:
        resolve(entry, {"angles": "0,45"})
    assert str(caught.value) == (
        "turn option angles '0,45': choose a number or a list of numbers from -360 to 360, "
        "as in angles=[0,45]"
    )
    assert resolve(entry, {"angles": [0, 45]}) == {"angles": [0.0, 45.0]}


def test_ranges_are_written_in_plain_numbers() -> None:
    assert Option("seed", 1, "", 0, 2**63 - 1).allowed == (
        "a whole number from 0 to 9223372036854775807"
    )
    assert Option("x", 1.0, "", maximum=2.5).allowed == "a number of at most 2.5"
    assert Option("x", 1.0, "").allowed == "a number"
