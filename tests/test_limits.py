"""The limits in the manual are those that the code enforces."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import fedcli
from fedcli import settings
from fedcli.datasets.checks import check_num_classes
from fedcli.errors import ConfigError

PAGE = Path(fedcli.__file__).parent / "manual" / "limits.md"
ROW = re.compile(
    r"\| (?P<what>.+?) \| (?P<most>[\d,]+)(?: (?P<unit>[KMG]iB))? \| `(?P<name>[\w.]+)` \|"
)
UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def rows() -> list[re.Match[str]]:
    *before, needs = PAGE.read_text().partition("\n## What a run needs\n")
    text = before[0] + needs.partition("\n## ")[2]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    tables = [line for line in lines if not line.startswith(("| What", "| ---"))]
    found = [match for line in tables if (match := ROW.fullmatch(line))]
    assert len(found) == len(tables) > 30
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_the_page_has_the_number_that_is_enforced(row: re.Match[str]) -> None:
    parts = row["name"].split(".")
    at = next(each for each in range(len(parts), 0, -1) if is_module(".".join(parts[:each])))
    value: object = import_module(".".join(parts[:at]))
    for name in parts[at:]:
        value = getattr(value, name)
    assert value == int(row["most"].replace(",", "")) * UNITS[row["unit"]]


def is_module(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def test_the_option_allows_as_many_classes_as_the_data() -> None:
    options = settings.from_options({"num_classes": 1_048_576})
    assert options.num_classes == check_num_classes(1_048_576, "classes")
    for refuse in (
        lambda: check_num_classes(1_048_577, "classes"),
        lambda: settings.from_options({"num_classes": 1_048_577}),
    ):
        with pytest.raises(ConfigError, match="1048577: choose a whole number from 1 to 1048576"):
            refuse()


def test_the_window_of_a_download_and_the_wait_for_a_reader_are_those_of_the_text() -> None:
    from fedcli.datasets.download.fetching import DEFAULT_LIMITS
    from fedcli.outputs import READER_SECONDS

    text = PAGE.read_text()
    assert f"in which {DEFAULT_LIMITS.window_bytes >> 10} KiB must come" in text
    assert f"somebody reads it, {READER_SECONDS:g} s at most" in text


def test_what_a_run_needs_is_moved_by_options_that_there_are() -> None:
    from fedcli.cli.train import train

    section = PAGE.read_text().partition("\n## What a run needs\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"--[a-z-]+", section)) - {"--resume", "---"}
    known = {option for parameter in train.params for option in parameter.opts}
    assert named
    assert named <= known
