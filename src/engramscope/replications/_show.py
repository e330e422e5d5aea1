"""A reproduction on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from engramscope.replications._file import read_replication, replication_names, without_experiment
from engramscope.replications._record import tally_sentence, verdict_sentence

_COLOURS = {
    "reproduced": "green",
    "differs": "red",
    "no published value for this model": "blue",
    "not measured": "yellow",
}


def values_table(record: Mapping[str, Any]) -> Table:
    """Published against measured, a verdict for every value; those in brackets do not decide."""
    table = Table(title=f"{escape(record['name'])} on {escape(str(record['model']['name']))}", title_justify="left")
    for column in ("value", "published", "measured", "verdict"):
        table.add_column(column)
    for row in record["values"]:
        name = row["name"] if row["counts"] else f"({row['name']})"
        why = f": {row['why']}" if row["why"] else ""
        verdict = f"[{_COLOURS[row['verdict']]}]{row['verdict']}[/]{escape(why)}"
        table.add_row(escape(name), escape(row["published"]), escape(row["shown"]), verdict)
    return table


def sentences(record: Mapping[str, Any]) -> Iterator[str]:
    """What is said below the table."""
    yield from record["remarks"]
    yield verdict_sentence(record)
    yield tally_sentence(record)
    if not all(row["counts"] for row in record["values"]):
        yield "Values in brackets do not take part in the verdict on the whole."


def catalogue() -> Table:
    """What can be reproduced."""
    table = Table()
    for column in ("name", "what", "source", "model"):
        table.add_column(column, overflow="fold")
    for name in replication_names():
        file = read_replication(name).file
        table.add_row(name, escape(file.what), escape(f"{file.source}: {', '.join(file.items)}"), escape(file.model))
    return table


def exempt() -> Iterator[str]:
    """Figures that there is nothing to measure for, a sentence each."""
    for item in without_experiment():
        yield f"{item.source}, {item.item}: {item.reason}"
