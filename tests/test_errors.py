from __future__ import annotations

import pytest

from fedcli.errors import (
    MAX_MESSAGE,
    ConfigError,
    DataError,
    in_python,
    on_command_line,
    plural,
    shortened,
    speaks_python,
    worded,
)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "client", "0 clients"),
        (1, "client", "1 client"),
        (2000, "class", "2,000 classes"),
        (1, "class", "1 class"),
        (2, "batch", "2 batches"),
        (3, "entry", "3 entries"),
        (2, "local step", "2 local steps"),
    ],
)
def test_a_number_and_its_noun_agree(number: int, noun: str, text: str) -> None:
    assert plural(number, noun) == text


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    text = f"data.h5: client {'x' * 1_000_000!r}: is damaged; fetch it again"
    said = str(DataError(text))
    assert len(said) <= MAX_MESSAGE
    assert said.startswith("data.h5: client 'xxx")
    assert said.endswith("xxx': is damaged; fetch it again")
    assert f"{len(text):,} characters" in said


def test_a_message_that_is_short_stays() -> None:
    assert str(DataError("x" * MAX_MESSAGE)) == "x" * MAX_MESSAGE
    assert shortened("abc") == "abc"


@pytest.mark.parametrize(
    ("command_line", "python"),
    [
        ("--client-lr -1: choose a number", "client_lr=-1: choose a number"),
        ("--seed 5 with --sampling tff: no", "seed=5 with sampling tff: no"),
        ("or choose --algorithm fedavg", 'or choose algorithm="fedavg"'),
        ("choose --algorithm fedavg, mime, or q", "choose algorithm fedavg, mime, or q"),
        ("choose --algorithm fedavg, fedprox or q", "choose algorithm fedavg, fedprox or q"),
        (
            "write --algorithm fedavg --client-weighting uniform",
            'write algorithm="fedavg", client_weighting="uniform"',
        ),
        (
            "give --secure-sum-option threshold=0, or --engine-option data=ship",
            'give secure_sum_options={"threshold": 0}, or engine_options={"data": "ship"}',
        ),
        ("choose --clients 2 or more", "choose clients=2 or more"),
        ("with --best and --by or --x", "with best=True and by or x"),
        ("set --num-classes to 10, or give --x", "set num_classes to 10, or give x"),
        ("--clients names 3 but --sampling draws", "clients names 3 but sampling draws"),
        ("run exists; --force to replace it", "run exists; force=True to replace it"),
        ("--client-option: sgd has no option 'x'", "client_options: sgd has no option 'x'"),
        ("pass --model /a/my.py:build to run it", "pass model='/a/my.py:build' to run it"),
        ("a 3-way test -- no option", "a 3-way test -- no option"),
        (
            "is a folder; make a store: fedcli preprocess x --out FILE; or --data y",
            'is a folder; make a store: fedcli preprocess x --out FILE; or data="y"',
        ),
    ],
)
def test_options_are_named_as_python_names_them(command_line: str, python: str) -> None:
    assert in_python(command_line) == worded(command_line) == python
    assert in_python(python) == python
    with on_command_line():
        assert worded(command_line) == command_line


def test_a_function_speaks_python_unless_a_command_runs() -> None:
    @speaks_python(rounds="num_rounds")
    def fail() -> None:
        raise ConfigError("--rounds 3: give --rounds 5 or more")

    with pytest.raises(ConfigError, match=r"^num_rounds=3: give num_rounds=5 or more$"):
        fail()

    def fail_in_a_command() -> None:
        with on_command_line():
            fail()

    with pytest.raises(ConfigError, match=r"^--rounds 3: give --rounds 5 or more$"):
        fail_in_a_command()
