"""How objects appear in notebooks: as small HTML tables, and as data frames of pandas."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedcli.errors import ConfigError


def table(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """Returns a table as HTML that needs no style of its own; all text is escaped.

    Args:
        title: Its caption.
        headers: Headings of the columns; empty for no row of headings.
        rows: The content of the cells.
        note: A line below it.
    """
    head = "".join(f"<th>{html.escape(each)}</th>" for each in headers)
    lines = [f"<thead><tr>{head}</tr></thead>"] if headers else []
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    below = f"<p>{html.escape(note)}</p>" if note else ""
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}{''.join(lines)}<tbody>{body}</tbody></table>{below}"


def number(value: object) -> str:
    """Returns a number as text for people; "-" if it is not finite."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and value - value == 0:
        return f"{value:.4f}"
    return "-"


def data_frame(columns: Mapping[str, Any]) -> Any:
    """Returns columns as a `pandas.DataFrame`.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as err:
        raise ConfigError(
            "to_pandas needs pandas, which is not installed; pip install 'fedcli[pandas]'"
        ) from err
    return pandas.DataFrame(dict(columns))
