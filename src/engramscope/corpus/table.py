"""The corpus as a table on disk: its columns, and how a corpus folder is read back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from engramscope.errors import InputError

#: columns of corpus.parquet and corpus.csv, all of them text but for the year (a nullable integer)
COLUMNS = ("PMID", "Title", "Abstract", "Journal", "Keywords", "URL", "Year", "DOI")
#: the table inside a corpus folder
TABLE = "corpus.parquet"
_PARQUET = (".parquet", ".pq")


def read_corpus(folder: Path | str) -> pd.DataFrame:
    """The table of a corpus folder, or a corpus table itself.

    Args:
        folder: what `engramscope corpus` has written, or its `corpus.parquet`.

    Returns:
        One row per abstract, with the columns of `COLUMNS`; absent text is "", an absent year `pd.NA`.

    Raises:
        InputError: there is no such table, or it lacks a column.
    """
    folder = Path(folder)
    file = folder / TABLE if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(
            f"{folder} holds no corpus: {TABLE} is missing. `engramscope corpus read FILE --out {folder}` makes one."
        )
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        if file.suffix.lower() in _PARQUET:
            why = str(error).rstrip(".")
            raise InputError(f"{file} cannot be read as a corpus table: {why}.") from None
        made = shlex.quote(str(file.with_name("corpus")))
        raise InputError(
            f"{file} is no corpus: a corpus is a folder with {TABLE}. `engramscope corpus read "
            f"{shlex.quote(str(file))} --out {made}` makes one from such a file; then give {made}."
        ) from None
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise InputError(f"{file} lacks {', '.join(missing)}; a corpus has the columns {', '.join(COLUMNS)}.")
    return table.loc[:, list(COLUMNS)].astype({"Year": "Int64"})
