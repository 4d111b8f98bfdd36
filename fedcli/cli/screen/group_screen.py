"""Shows tables of groups of runs on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedcli.cli.screen.text_screen import TextScreen
from fedcli.reports import group_tables
from fedcli.reports.groups import Groups

MAX_ROWS = 60  # largest number of rows of a table on the screen


def show_groups(
    screen: TextScreen, tables: Sequence[Groups], spread: str, notes: Sequence[str] = ()
) -> None:
    """Prints tables, each with its notes below it.

    Args:
        screen: The screen.
        tables: The tables, the most important first.
        spread: See `group_tables.to_table`.
        notes: Lines about all of them.
    """
    said = list(notes)
    for groups in tables:
        table = group_tables.to_table(groups, spread)
        screen.title(table.title)
        shown = replace(table, rows=table.rows[:MAX_ROWS])
        screen.table(shown.headers, shown.rows, shown.num_texts)
        if len(table.rows) > MAX_ROWS:
            screen.line(f"The first {MAX_ROWS} of {len(table.rows):,} rows; --format csv has all")
        said += group_tables.notes_on(groups)
    if said:
        screen.line("")
    for note in dict.fromkeys(said):
        screen.line(note, "dim")
