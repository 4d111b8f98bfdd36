"""The examples of the manual's page on extending, and how a user saves them as files."""

from __future__ import annotations

import re
from pathlib import Path

from fedcli.cli.help import MANUAL

MAX_EXAMPLE_LINES = 30
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example(word: str) -> str:
    """Returns the block of the page that defines the function or class `word`."""
    text = (MANUAL / "extending.md").read_text(encoding="utf-8")
    (code,) = (each for each in BLOCK.findall(text) if re.search(rf"(def|class) {word}\b", each))
    return code


def write_example(folder: Path, word: str, name: str) -> Path:
    """Writes the block that defines `word` to a file."""
    file = folder / name
    file.write_text(example(word), encoding="utf-8")
    return file
