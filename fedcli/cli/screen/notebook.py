"""A page of the manual as a Jupyter notebook: its text as Markdown cells, its Python as code cells.

The format is nbformat 4.5. Jupyter is not a dependency: a notebook is a JSON file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# The module with the user's model. Some pages import it; another page defines the model's class.
MODEL_FILE = "my_model"

# Put after a block that writes figures: a page names the files, a notebook shows them.
_SHOW_FIGURES = """\
from IPython.display import Image, display

for file in sorted(Path("figures").glob("*.png")):
    display(Image(filename=file))
"""

_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n.*?^```\n)?", re.MULTILINE | re.DOTALL)


def notebook_of(page: str, sources: Mapping[str, str]) -> str | None:
    """Returns the text of a notebook; None: the page has no Python.

    The output of a block is left out: running the cell prints it.

    Args:
        page: Markdown.
        sources: For each module that a block imports, the page with the block that defines its
            class. A cell that writes this block to a file is put before the cell that imports it.
    """
    if not _BLOCK.search(page):
        return None
    cells = [_cell(number, *each) for number, each in enumerate(_cells(page, sources))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cells(page: str, sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The kind and the text of each cell."""
    end = 0
    for block in _BLOCK.finditer(page):
        yield "markdown", page[end : block.start()]
        for module, source in sources.items():
            if f"from {module} import" in block[1]:
                yield "code", _file_cell(module, source)
        yield "code", block[1]
        if 'write_figures(Path("figures")' in block[1]:
            yield "code", _SHOW_FIGURES
        end = block.end()
    yield "markdown", page[end:]


def _file_cell(module: str, source: str) -> str:
    """Returns code that writes a page's class to a file, so that other cells can import it."""
    code = next(block[1] for block in _BLOCK.finditer(source) if "\nclass " in block[1])
    return (
        "import sys\nfrom pathlib import Path\n\n"
        f"Path({module + '.py'!r}).write_text(\n    r'''{code}'''\n)\n"
        'sys.path.insert(0, "")  # so that it is found beside the notebook\n'
    )


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    lines = text.strip("\n").splitlines(keepends=True)
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return {**cell, "source": lines}
