"""The table of a corpus on disk, written row by row in constant memory: Parquet and CSV, both in full or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.corpus.table import COLUMNS, TABLE
from engramscope.errors import InputError
from engramscope.results.atomic import atomic_file

CSV = "corpus.csv"
SCHEMA = pa.schema([(name, pa.int32() if name == "Year" else pa.string()) for name in COLUMNS])
#: rows that are in memory at a time
_ROWS = 1_000


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]], *, nothing: Callable[[], str]) -> str:
    """Write `corpus.parquet` and `corpus.csv`.

    Args:
        folder: that exists.
        rows: with the keys of `COLUMNS`.
        nothing: gives the message when there is no row; asked only then, after the rows.

    Returns:
        SHA-256 of the rows: of each as a JSON list in the order of `COLUMNS` and a line end, in UTF-8. It does not
        depend on how a library writes Parquet.

    Raises:
        InputError: there is no row; nothing is written then.
        ResultsError: the disk refuses; nothing is written then.
    """
    digest = hashlib.sha256()
    count = 0
    with atomic_file(folder / TABLE) as table, atomic_file(folder / CSV) as sheet:
        text = io.TextIOWrapper(sheet, encoding="utf-8", newline="", write_through=True)
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        with pq.ParquetWriter(table, SCHEMA, compression="zstd", write_page_checksum=True) as parquet:
            for batch in _batches(rows):
                count += len(batch)
                parquet.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                for row in batch:
                    values = [row[name] for name in COLUMNS]
                    lines.writerow("" if value is None else value for value in values)
                    digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n")
        text.flush()
        text.detach()
        if not count:
            raise InputError(nothing())
    return digest.hexdigest()


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(dict(row))
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
