"""The README's Python, run from its first block to its last, prints what the README says.

What stands right below a block is what it prints: words and counts to the letter, numbers with
decimals to TOLERANCE, as the last digits differ between instruction sets; `...` is anything.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedcli.cli import main as cli

README = Path(__file__).parent.parent / "README.md"
# One example of 905 more or less is right: 0.0011. Of the 100 for test, losses are shown alone.
TOLERANCE = 0.0015
# What only an extra can run, by what stands in a block.
EXTRAS = {"tensorboardX": "tensorboardX", "write_figures": "matplotlib"}

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
PART = re.compile(r"(\.\.\.)|(\d+\.\d+)")


@dataclass(frozen=True)
class Block:
    """Code with the line it starts at, and what it prints; None if the README does not say."""

    line: int
    code: str
    shown: str | None


def blocks_of(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, match.start(1)) + 1, match[1], match[2])


def check_printed(shown: str, printed: str) -> None:
    """Holds what was printed against what the README shows."""
    pattern, numbers, end = "", [], 0
    for part in PART.finditer(shown):
        pattern += re.escape(shown[end : part.start()]) + (".*?" if part[1] else r"(\d+\.\d+)")
        numbers += [float(part[2])] if part[2] else []
        end = part.end()
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed, re.DOTALL)
    assert found, f"the README shows\n{shown}\nbut this is printed\n{printed}"
    assert [float(each) for each in found.groups()] == pytest.approx(numbers, abs=TOLERANCE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is worked in and imported from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_model(folder: Path) -> str:
    """Writes the README's model as my_model.py, and returns what a run of it is said to print."""
    text = README.read_text()
    (code,) = (block.code for block in blocks_of(text) if "class MnistModel" in block.code)
    (folder / "my_model.py").write_text(code)
    return text.partition("fedcli train --model my_model.py` then has:\n\n```\n")[2].split("```")[0]


def test_python_prints_what_the_readme_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(folder)
    names: dict[str, object] = {"__name__": "readme"}
    absent = []
    for block in blocks_of(README.read_text()):
        missing = [
            module
            for text, module in EXTRAS.items()
            if text in block.code and importlib.util.find_spec(module) is None
        ]
        if missing:
            absent.append(f"line {block.line} needs {', '.join(missing)}")
            continue
        exec(compile(block.code, f"{README}, from line {block.line}", "exec"), names)
        printed = capsys.readouterr().out
        if block.shown is None:
            assert printed == ""
        else:
            check_printed(block.shown, printed)
    if absent:
        pytest.skip("; ".join(absent))
    check_events(folder / "logs" / "train", names["result"].metrics)  # type: ignore[attr-defined]


def check_events(folder: Path, last: dict[str, dict[str, dict[str, float]]]) -> None:
    """TensorBoard itself reads ten rounds under the tutorial's names, the last as it was told."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert {"loss", "sparse_categorical_accuracy", "num_examples", "num_batches"} <= set(
        events.Tags()["scalars"]
    )
    points = events.Scalars("loss")
    assert [point.step for point in points] == list(range(1, 11))
    # The model of one's own, which came after, has the same loss to 1e-5.
    assert points[-1].value == pytest.approx(last["client_work"]["train"]["loss"], abs=1e-4)


def test_command_with_the_readmes_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = write_model(folder).splitlines()
    assert cli.run(["train", "--model", "my_model.py"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert shown[0] in printed
    for row in shown[1:]:
        (same,) = (line for line in printed if line.split()[:1] == row.split()[:1] and "," in line)
        check_printed(row, same)


def test_first_figures_are_those_of_the_main_job(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = README.read_text().partition("The first one prints:\n\n```\n")[2]
    shown = after.partition("\nRun ")[0]
    assert cli.run(["train"]) == 0
    check_printed(shown, capsys.readouterr().out.partition("\nRun ")[0])


def test_checker_finds_what_differs() -> None:
    check_printed(
        "loss 1.2345 of 10\n...\n3 left 0.5...\n", "loss 1.2346 of 10\na\n3 left 0.50012\n"
    )
    for printed in ("loss 1.24 of 10\n", "loss 1.2345 of 11\n", "Loss 1.2345 of 10\n", ""):
        with pytest.raises(AssertionError):
            check_printed("loss 1.2345 of 10\n", printed)
