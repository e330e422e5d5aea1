"""Our own columns as Parquet: the names of `jsonl`, with lists and structs, or with texts as in `csv`."""

from __future__ import annotations

import io
from typing import Any

from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source
from engramscope.pairs.readers._cells import OBJECTS, check_columns, unpack
from engramscope.pairs.readers._rows import KEYS, pairs_of


class Parquet(Reader):
    """Reads a Parquet table of pairs."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the four letters with which every Parquet file begins, or by the extension."""
        return 2 if source.data.startswith(b"PAR1") else int(source.suffix in (".parquet", ".pq"))

    def read(self, source: Source) -> list[Pair]:
        """The pairs; every broken row is named, counted from 1."""
        faults = Faults(source.name)
        table = [_plain(row) for row in _table(source)]
        check_columns(table[0] if table else KEYS, faults)
        rows = [(f"row {number}", unpack(row, f"row {number}", faults)) for number, row in enumerate(table, start=1)]
        return pairs_of(rows, faults)


def _table(source: Source) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(source.data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PairsError(f"{source.name} is not a readable Parquet file: {str(error).splitlines()[0]}.") from None


def _plain(row: dict[str, Any]) -> dict[str, object]:
    # an exported pandas index is no column of ours; a struct has every key in every row, absent ones as null
    found: dict[str, object] = {}
    for key, value in row.items():
        if key.startswith("__index_level_"):
            continue
        if key in OBJECTS and isinstance(value, list):
            found[key] = dict(value)
        elif key in OBJECTS and isinstance(value, dict):
            found[key] = {name: part for name, part in value.items() if part is not None}
        else:
            found[key] = value
    return found


COMPONENT = Parquet
