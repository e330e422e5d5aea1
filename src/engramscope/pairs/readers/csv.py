"""Our own columns as CSV: `clean correct`, and where wanted the other keys of `Pair`.

These are `id corrupted incorrect group spans corrupted_spans labels`. `correct` and `incorrect` are a JSON list or
answers with `|` between them; white space counts, so a cell reads ` Paris` with its leading space. `spans
corrupted_spans labels` are JSON objects. An empty cell is a missing value; a column without a name is left out.
"""

from __future__ import annotations

from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source
from engramscope.pairs.readers._cells import check_columns, unpack
from engramscope.pairs.readers._rows import pairs_of
from engramscope.pairs.readers._table import csv_rows, header_of


class Csv(Reader):
    """Reads a CSV table of pairs."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By a header with `clean` and `correct`, or by the extension .csv."""
        if {"clean", "correct"} <= set(header_of(source)):
            return 2
        return int(source.suffix == ".csv")

    def read(self, source: Source) -> list[Pair]:
        """The pairs; every broken row is named by its line."""
        faults = Faults(source.name)
        check_columns(filter(None, header_of(source)), faults)
        rows = [(where, unpack(dict(row), where, faults)) for where, row in csv_rows(source, faults)]
        return pairs_of(rows, faults)


COMPONENT = Csv
