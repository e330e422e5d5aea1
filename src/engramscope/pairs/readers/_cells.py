"""Cells of a table that hold lists or objects as text."""

from __future__ import annotations

import json
from collections.abc import Iterable

from engramscope.pairs.readers._base import Faults
from engramscope.pairs.readers._rows import KEYS
from engramscope.registry import nearest

LISTS = ("correct", "incorrect")
OBJECTS = ("spans", "corrupted_spans", "labels")


def check_columns(columns: Iterable[str], faults: Faults) -> None:
    """Check the names of a table's columns, before any row.

    Raises:
        PairsError: columns that are no keys of `Pair`, or `clean` or `correct` missing.
    """
    names = list(columns)
    for name in names:
        if name not in KEYS:
            faults.add("header", f"unknown column {name!r}{nearest(name, KEYS)}".removesuffix("."))
    for name in ("clean", "correct"):
        if name not in names:
            faults.add("header", f"the column {name!r} is missing")
    faults.check()


def unpack(row: dict[str, object], where: str, faults: Faults) -> dict[str, object]:
    """The row with lists and objects made of texts, and without empty cells.

    A list is JSON (`[" Paris", " paris"]`) or texts with `|` between them (` Paris| paris`); white space counts. An
    object is JSON.
    """
    found: dict[str, object] = {}
    for key, cell in row.items():
        if cell is None or cell == "":
            continue
        if not isinstance(cell, str) or key not in (*LISTS, *OBJECTS):
            found[key] = cell
        elif key in LISTS and not cell.startswith("["):
            found[key] = cell.split("|")
        else:
            try:
                found[key] = json.loads(cell)
            except json.JSONDecodeError as error:
                faults.add(where, f"the cell {key!r} is not valid JSON ({error.msg}): {cell[:60]}")
                found[key] = ["?"] if key in LISTS else None
    return found
