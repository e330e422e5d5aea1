"""Rows of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager

from engramscope.pairs.readers._base import Faults, Source


def csv_rows(source: Source, faults: Faults) -> list[tuple[str, dict[str, str]]]:
    """Every row as ("line n", column -> cell); columns without a name (an exported index) are left out.

    A line is where the row ends, as an editor counts; cells may hold line ends.
    """
    rows: list[tuple[str, dict[str, str]]] = []
    with _long_fields(len(source.text)):
        reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
        try:
            header = next(reader, [])
            doubled = sorted({name for name in header if name and header.count(name) > 1})
            if doubled:
                faults.add("line 1", f"the column {doubled[0]!r} stands there twice")
            for cells in reader:
                where = f"line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    faults.add(where, f"{len(cells)} cells where the header names {len(header)} columns")
                    continue
                rows.append((where, {name: cell for name, cell in zip(header, cells, strict=True) if name}))
        except csv.Error as error:
            faults.add(f"line {reader.line_num}", f"not valid CSV ({error})")
    return rows


def header_of(source: Source) -> tuple[str, ...]:
    """The column names of a CSV file, for telling its format."""
    first = source.head.split("\n", 1)[0]
    try:
        return tuple(next(csv.reader([first.rstrip("\r")]), []))
    except csv.Error:
        return ()


@contextmanager
def _long_fields(length: int) -> Iterator[None]:
    # the csv module refuses cells of more than 131,072 characters, and holds that limit for the whole process
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, length))
    try:
        yield
    finally:
        csv.field_size_limit(before)
