"""What the commands of editors share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engramscope.cli._app import NOTHING_WRITTEN

if TYPE_CHECKING:
    from rich.table import Table

#: where the output is no terminal, it is read by a program or scrolled
WIDE = 200
_GAP = 2


def stopped(*folders: Path | None) -> Callable[[], str]:
    """What a command that cannot go on says at Ctrl-C: whether something of its folders is there already."""

    def words() -> str:
        there = [str(folder) for folder in folders if folder is not None and folder.exists() and any(folder.iterdir())]
        return f"Interrupted; what is in {', '.join(there)} is not complete." if there else NOTHING_WRITTEN

    return words


def print_table(findings: Mapping[str, Any]) -> None:
    """The table, in parts that fit the terminal, what it says, and what must be known beside it."""
    from rich.console import Console

    from engramscope.editing.words import remarks, sentences, table_lines

    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    lines = table_lines(findings)
    for columns in _parts(lines, console.width):
        console.print(_table(lines, columns))
    typer.echo("In brackets: half the 95 % interval as published. Below: a better one.\n")
    for sentence in (*sentences(findings), "", *remarks(findings)):
        typer.echo(sentence)


def _parts(lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns that stand side by side: as many as fit behind the first one, at least one."""
    sizes = [max(len(line[column]) for line in lines) + _GAP for column in range(len(lines[0]))]
    parts: list[list[int]] = []
    left = 0
    for column in range(1, len(sizes)):
        if not parts or sizes[column] > left:
            parts.append([])
            left = width - sizes[0]
        parts[-1].append(column)
        left -= sizes[column]
    return parts


def _table(lines: Sequence[Sequence[str]], columns: Sequence[int]) -> Table:
    from rich.table import Table

    head, *body = lines
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.add_column(head[0], no_wrap=True)
    for column in columns:
        table.add_column(head[column], justify="right", no_wrap=True)
    for line in body:
        style = "dim" if not line[0] or line[0].startswith(" ") else None
        table.add_row(line[0], *(line[column] for column in columns), style=style)
    return table
