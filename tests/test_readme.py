"""The Python of the README and of the manual, run page by page, prints what the page says.

Each page is run in an interpreter of its own, from its first block to its last. The text right
below a block must be its output. Words and whole numbers must be equal. Numbers with decimals may
differ by TOLERANCE, because the last digits differ between instruction sets. `...` stands for any
text. Commands are parsed.
"""

from __future__ import annotations

import codeop
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from fedcli.cli import main as cli
from fedcli.cli.help import MANUAL, TOPICS
from fedcli.settings.tables.algorithms import AGGREGATORS, ALGORITHMS
from fedcli.settings.tables.attacks import ATTACKS
from fedcli.settings.tables.optimizers import OPTIMIZERS
from fedcli.settings.tables.partitions import PARTITIONS
from fedcli.settings.tables.samplers import SAMPLERS
from fedcli.settings.tables.schedules import SCHEDULES
from fedcli.settings.vocabulary import SAMPLINGS

README = Path(__file__).parent.parent / "README.md"
MODELS, ALGORITHMS_PAGE = MANUAL / "models.md", MANUAL / "algorithms.md"
TUTORIAL = MANUAL / "tutorial.md"
PAGES = [README, *(MANUAL / f"{topic}.md" for topic in TOPICS)]
MAX_README_LINES = 220
# One correct prediction more or less among 905 examples changes an accuracy by 0.0011. For the 100
# test examples only losses are shown.
TOLERANCE = 0.0015
# The optional package that a block needs, by a word in the block that shows the need.
EXTRAS = {"tensorboardX": "tensorboardX", "write_figures": "matplotlib"}

SAVED = re.compile(
    r"save\s+it\s+as\s+`(\w+\.py)`(?:(?!```).)*```python\n(.*?)^```",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    (fedcli (?:.*\\\n)*.*)$", re.MULTILINE)
PART = re.compile(r"(\.\.\.)|(\d+\.\d+)")
# Runs blocks one after the other and returns the output of each.
PROGRAM = """
import contextlib, io, json, sys
names, printed = {"__name__": "page"}, []
for label, code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, label, "exec"), names)
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""


@dataclass(frozen=True)
class Block:
    """Code, its first line number, and the output that the page shows; None if it shows none."""

    line: int
    code: str
    shown: str | None


def blocks_of(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, match.start(1)) + 1, match[1], match[2])


def check_printed(shown: str, printed: str) -> None:
    """Compares the output of a block with the output that the page shows."""
    pattern, numbers, end = "", [], 0
    for part in PART.finditer(shown):
        pattern += re.escape(shown[end : part.start()]) + (".*?" if part[1] else r"(\d+\.\d+)")
        numbers += [float(part[2])] if part[2] else []
        end = part.end()
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed, re.DOTALL)
    assert found, f"the page shows\n{shown}\nbut this is printed\n{printed}"
    assert [float(each) for each in found.groups()] == pytest.approx(numbers, abs=TOLERANCE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_model(folder: Path) -> str:
    """Writes the manual's model as my_model.py; returns the output that the page shows for it."""
    text = MODELS.read_text()
    (code,) = (block.code for block in blocks_of(text) if "class MnistModel" in block.code)
    (folder / "my_model.py").write_text(code)
    return text.partition("fedcli train --model my_model.py` then prints these columns:\n\n```\n")[
        2
    ].split("```")[0]


def has_blocks(page: Path) -> bool:
    return BLOCK.search(page.read_text()) is not None


@pytest.mark.parametrize("page", [*filter(has_blocks, PAGES)], ids=lambda page: page.stem)
def test_python_prints_what_the_page_says(
    page: Path, folder: Path, process_arguments: dict[str, Any]
) -> None:
    blocks, absent = [], []
    if page != TUTORIAL:  # the tutorial's notebook writes the file itself
        write_model(folder)
    for name, code in SAVED.findall(page.read_text()):
        (folder / name).write_text(code)
    for block in blocks_of(page.read_text()):
        missing = [
            module
            for text, module in EXTRAS.items()
            if text in block.code and importlib.util.find_spec(module) is None
        ]
        if missing:
            absent.append(f"line {block.line} needs {', '.join(missing)}")
        else:
            blocks.append(block)
    codes = [(f"{page}, from line {block.line}", block.code) for block in blocks]
    if page == TUTORIAL:
        codes = cells_of_notebook(folder, blocks)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=json.dumps(codes),
        capture_output=True,
        check=False,
        cwd=folder,
        **process_arguments,
    )
    assert done.returncode == 0, done.stderr
    printed_by = [
        each for (label, _), each in zip(codes, json.loads(done.stdout), strict=True) if label
    ]
    for block, printed in zip(blocks, printed_by, strict=True):
        check_printed(block.shown or "", printed)
    if absent:
        pytest.skip("; ".join(absent))
    if (folder / "logs").exists():
        check_events(folder / "logs" / "train")


def cells_of_notebook(folder: Path, blocks: list[Block]) -> list[tuple[str, str]]:
    """Returns (label, code) of the tutorial notebook's cells; label "" if the page lacks the cell.

    Left out are cells of blocks that are not in `blocks` because an optional package is missing,
    and the cell that displays figures if IPython is missing. Every notebook has IPython.
    """
    file = folder / "tutorial.ipynb"
    assert cli.run(["help", "tutorial", "--notebook", str(file), "-q"]) == 0
    notebook = json.loads(file.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    all_codes = {block.code.strip() for block in blocks_of(TUTORIAL.read_text())}
    wanted = {block.code.strip(): f"the notebook's cell of line {block.line}" for block in blocks}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all_codes < set(cells)
    if importlib.util.find_spec("IPython") is None:
        cells = [code for code in cells if "IPython" not in code]
    return [
        (wanted.get(code, ""), code) for code in cells if code in wanted or code not in all_codes
    ]


def check_can_be_typed(code: str) -> None:
    """Checks each line as Python 3.11's plain prompt does: an empty line ends a compound statement.

    A statement right below the body of a loop is a SyntaxError there, and the loop does not run.
    """
    typed: list[str] = []
    for line in [*code.splitlines(), ""]:
        typed.append(line)
        if codeop.compile_command("\n".join(typed), symbol="single") is not None:
            typed = []
    assert not any(typed), typed


@pytest.mark.parametrize("page", [*filter(has_blocks, PAGES)], ids=lambda page: page.stem)
def test_python_can_be_pasted_into_the_plain_prompt(page: Path) -> None:
    """Classes have empty lines between methods; they belong in a file or a notebook's cell."""
    for block in blocks_of(page.read_text()):
        if not re.search(r"^class ", block.code, re.MULTILINE):
            check_can_be_typed(block.code)


def test_a_statement_right_below_a_loop_cannot_be_typed() -> None:
    check_can_be_typed("for i in range(2):\n    i\n\nprint(i)\n")
    with pytest.raises(SyntaxError):
        check_can_be_typed("for i in range(2):\n    i\nprint(i)\n")


def test_python_is_run_on_the_pages_that_have_it() -> None:
    assert {page.stem for page in PAGES if has_blocks(page)} == {
        *("tutorial", "coming-from", "models", "extending", "python", "sweeps")
    }


def check_events(folder: Path) -> None:
    """TensorBoard reads ten rounds under the tutorial's names; the last loss is the tutorial's."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert {"loss", "sparse_categorical_accuracy", "num_examples", "num_batches"} <= set(
        events.Tags()["scalars"]
    )
    points = events.Scalars("loss")
    assert [point.step for point in points] == list(range(1, 11))
    assert points[-1].value == pytest.approx(1.3642, abs=TOLERANCE)  # as the page prints it


def test_command_with_the_manuals_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    before = "`fedcli train` prints this; `...` stands for rounds 3 to 9:\n\n```\n"
    after = README.read_text().partition(before)[2]
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


def commands_of(page: Path) -> list[list[str]]:
    """The command lines of a page that begin with `fedcli`, split as a shell splits them."""
    lines = COMMAND.findall(page.read_text())
    return [shlex.split(line.replace("\\\n", " "), comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", [*filter(commands_of, PAGES)], ids=lambda page: page.stem)
def test_commands_of_a_page_parse(page: Path) -> None:
    for name, *arguments in commands_of(page):
        with cli.group.make_context("fedcli", ["-h"], resilient_parsing=True) as parent:
            command = cli.group.get_command(parent, name)
            assert command is not None, name
            command.make_context(name, arguments, parent)  # stores the parent's -h in the command


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text\n\n    fedcli train --rounds 2 \\\n        --no-such-option\n")
    with pytest.raises(click.UsageError, match="no-such-option"):
        test_commands_of_a_page_parse(page)


def test_no_two_commands_make_the_same_run() -> None:
    made = [
        folder
        for page in PAGES
        for folder in re.findall(
            r"--out (runs/\S+)|train\([^\n]*\"(runs/[^\"]+)\"", page.read_text()
        )
    ]
    assert len(made) > 5
    assert len(set(made)) == len(made)


def test_readme_is_short_and_has_the_command_that_runs_the_tests() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    assert re.search(r"^    \S.*pip install .*\[test\].*pytest", text, re.MULTILINE)


def test_readme_describes_every_page_of_the_manual() -> None:
    part = README.read_text().partition("\n## The manual\n")[2].partition("\n## ")[0]
    cells = re.findall(r"`([\w-]+)` \| ([^|]+) \|", part)
    assert sorted(name for name, _ in cells) == sorted(TOPICS)
    assert [name for name, about in cells if len(about.split()) < 2] == []


@pytest.mark.parametrize("page", [README, ALGORITHMS_PAGE], ids=lambda page: page.stem)
def test_tables_have_all_that_there_is_to_choose_from(page: Path) -> None:
    tables = "".join(line for line in page.read_text().splitlines() if line.startswith("|"))
    names = [*ALGORITHMS, *OPTIMIZERS, *AGGREGATORS, *SAMPLINGS, *PARTITIONS]
    names += [] if page == README else SCHEDULES
    assert [name for name in names if f"`{name}`" not in tables] == []


def test_the_page_of_algorithms_describes_each_as_info_does() -> None:
    rows = [line.split(" | ") for line in ALGORITHMS_PAGE.read_text().splitlines()]
    described = {row[0].strip("| `"): row[1] for row in rows if row[0].startswith("| `")}
    for table in (ALGORITHMS, OPTIMIZERS, AGGREGATORS, SAMPLERS, PARTITIONS, SCHEDULES):
        for name, entry in table.items():
            assert described[name] == entry.doc.removesuffix("."), name


def test_the_page_on_robustness_has_all_attacks() -> None:
    page = (MANUAL / "robustness.md").read_text()
    tables = "".join(line for line in page.splitlines() if line.startswith("|"))
    assert [name for name in ATTACKS if f"`{name}`" not in tables] == []
