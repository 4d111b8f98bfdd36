"""`fedcli help`: pages, list and search; and the pages in the package."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedcli.cli.help import MANUAL, TOPICS
from fedcli.cli.screen.render import Screen
from tests.kit.command_line import Fedcli, assert_is_one_line, read_terminal
from tests.kit.waiting import PATIENCE_SECONDS, started


def test_each_page_is_a_topic_and_says_what_it_is_about(fedcli: Fedcli) -> None:
    assert sorted(page.stem for page in MANUAL.iterdir()) == sorted(TOPICS)
    out = fedcli("help").out
    for page in json.loads(fedcli("help", "--json").out)["pages"]:
        assert len(page["summary"]) > 20
        assert any(
            line.split() == [page["name"], *page["summary"].split()] for line in out.splitlines()
        )


def test_a_page_in_a_pipe_is_its_markdown(fedcli: Fedcli) -> None:
    for topic in TOPICS:
        text = (MANUAL / f"{topic}.md").read_text(encoding="utf-8")
        assert fedcli("help", topic).out == text
        assert json.loads(fedcli("help", topic, "--json").out)["text"] == text


@pytest.mark.parametrize(
    ("given", "topic", "word"),
    [
        ("tff", "coming-from", "From TensorFlow Federated"),
        ("tensorflow", "coming-from", "From TensorFlow Federated"),
        ("fedjax", "coming-from", "From FedJAX"),
        ("Flower", "coming-from", "From Flower"),
        ("keras", "models", "Your Keras model"),
    ],
)
def test_the_name_of_another_program_opens_the_page_on_it(
    fedcli: Fedcli, given: str, topic: str, word: str
) -> None:
    found = json.loads(fedcli("help", given, "--json").out)
    assert found["name"] == topic
    assert f"\n## {word}\n" in found["text"]


def test_a_page_in_a_terminal_is_drawn_and_paged(
    command: list[str], process_arguments: dict[str, Any], tmp_path: Path
) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged\ncat\n")
    pager.chmod(0o755)
    env = {**process_arguments["env"], "TERM": "xterm", "COLUMNS": "100", "PAGER": str(pager)}
    process_arguments["env"] = env
    keyboard, terminal = pty.openpty()
    start = [*command, "help", "limits"]
    with started(start, stdin=terminal, stdout=terminal, **process_arguments) as process:
        os.close(terminal)
        drawn = read_terminal(keyboard)
        os.close(keyboard)
        assert process.wait(PATIENCE_SECONDS) == 0
    lines = drawn.decode().splitlines()
    assert lines[0] == "paged"
    text = "\n".join(lines)
    assert "What is trusted, and what is not" in text
    assert "## What is trusted" not in text


def test_search_lists_pages_and_lines_in_any_case(fedcli: Fedcli) -> None:
    out = fedcli("help", "--search", "DIRICHLET-client").out
    assert "data: " in out
    assert "algorithms: " in out
    assert "tutorial: " not in out
    found = json.loads(fedcli("help", "--search", "DIRICHLET-client", "--json").out)["pages"]
    for page in found:
        lines = (MANUAL / f"{page['name']}.md").read_text(encoding="utf-8").splitlines()
        for each in page["lines"]:
            assert lines[each["line"] - 1] == each["text"]
            assert "dirichlet-client" in each["text"].lower()


def test_a_search_of_several_words_lists_the_pages_with_all_of_them(fedcli: Fedcli) -> None:
    found = json.loads(fedcli("help", "--search", "keras  export", "--json").out)["pages"]
    texts = {name: (MANUAL / f"{name}.md").read_text(encoding="utf-8").lower() for name in TOPICS}
    assert [page["name"] for page in found] == [
        name for name in TOPICS if "keras" in texts[name] and "export" in texts[name]
    ]
    (models,) = (page for page in found if page["name"] == "models")
    for each in models["lines"]:  # this page has lines with both words
        assert "keras" in each["text"].lower()
        assert "export" in each["text"].lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["help", "tutoral"], ["'tutoral'", "did you mean tutorial?"]),
        (["help", "eval"], ["'eval'", "'fedcli eval -h' shows the options"]),
        (
            ["help", "fedprox"],
            ["no page 'fedprox'; fedcli info fedprox describes it; pages with 'fedprox': algori"],
        ),
        (["help", "layers"], ["no page 'layers'; pages with 'layers': models, "]),
        (["help", "clipping"], ["more (fedcli help --search clipping)"]),
        (
            ["help", "../version"],
            ["'../version'", "choose one of tutorial, coming-from, python, data"],
        ),
        (["help", "--search", "zeppelin"], ["'zeppelin'", "try fewer or shorter words"]),
        (["help", "--search", "keras zeppelin"], ["contains 'keras' and 'zeppelin'; try fewer"]),
        (["help", "--search", " "], ["' '"]),
    ],
)
def test_what_is_not_there_is_one_line(
    fedcli: Fedcli, arguments: list[str], words: list[str]
) -> None:
    assert_is_one_line(fedcli(*arguments), *words)


def test_a_search_takes_no_topic(fedcli: Fedcli) -> None:
    done = fedcli("help", "data", "--search", "csv")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("fedcli help: --search looks through all pages; leave TOPIC out")
    assert "--search 'csv data'" in done.err


def test_a_page_is_written_as_a_notebook(fedcli: Fedcli) -> None:
    """tests/test_readme.py runs the cells of the notebook of the tutorial."""
    done = fedcli("help", "models", "--notebook", "models.ipynb")
    assert (done.code, done.err) == (0, "")
    assert done.out == "Wrote models.ipynb; to open it: jupyter lab models.ipynb\n"
    notebook = json.loads(Path("models.ipynb").read_text())
    page = (MANUAL / "models.md").read_text()
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert [text in page for text in texts] == [True] * len(texts)
    kinds = {cell["cell_type"] for cell in notebook["cells"]}
    assert kinds == {"markdown", "code"}


def test_the_notebook_of_the_tutorial_displays_its_figures(fedcli: Fedcli) -> None:
    fedcli("help", "tutorial", "--notebook", "t.ipynb")
    codes = ["".join(cell["source"]) for cell in json.loads(Path("t.ipynb").read_text())["cells"]]
    after = codes[next(i for i, code in enumerate(codes) if "write_figures(" in code) + 1]
    assert "display(Image(filename=file))" in after


def test_a_notebook_is_replaced_only_with_force(fedcli: Fedcli, tmp_path: Path) -> None:
    file = tmp_path / "t.ipynb"
    file.write_text("my own cells")
    refused = fedcli("help", "tutorial", "--notebook", "t.ipynb")
    assert_is_one_line(refused, "--notebook t.ipynb exists", "choose another name", "--force")
    assert file.read_text() == "my own cells"
    assert fedcli("help", "tutorial", "--notebook", "t.ipynb", "--force").code == 0
    assert json.loads(file.read_text())["cells"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["limits", "--notebook", "limits.ipynb"], ["'limits'", "no Python", "tutorial"]),
        (["tutorial", "--notebook", "tutorial.py"], ["ends in .ipynb"]),
        (["tutorial", "--notebook", "nowhere/tutorial.ipynb"], ["no such folder"]),
    ],
)
def test_what_makes_no_notebook_is_told(
    fedcli: Fedcli, arguments: list[str], words: list[str]
) -> None:
    assert_is_one_line(fedcli("help", *arguments), *words)
    assert not list(Path().iterdir())


def test_a_notebook_is_of_one_page(fedcli: Fedcli) -> None:
    done = fedcli("help", "--notebook", "all.ipynb")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "give its TOPIC" in done.err


def test_a_table_in_a_narrow_terminal_loses_no_word() -> None:
    screen = Screen()
    screen.__dict__["console"] = Console(width=40, force_terminal=True, color_system=None)
    name = "a_name_that_is_wider_than_the_terminal_" * 2
    drawn = screen.markdown(f"| one |\n|---|\n| `{name}` |\n")
    assert name in "".join(line.strip() for line in drawn.splitlines())
