"""Reading a results folder: manifest, tables, study text. Every fault is one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.errors import ResultsError
from engramscope.results.schema import EFFECTS, SCHEMA_VERSION, SUMMARY_COLUMNS

_INTEGERS = ("layer", "head", "position", "window", "n", "n_clusters", "n_pooled")
_BOOLEANS = ("two_sd", "cut", "detected")
_TEXTS = ("study", "sweep", "corruption", "direction", "site", "position_role", "metric", "estimate_kind", "note")


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a results folder.

    Raises:
        ResultsError: no such folder, not ours, damaged, or written by a newer version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ResultsError(f"There is no results folder {str(path)!r}.")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{folder} is not a results folder of Engramscope: it has no manifest.json.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"The manifest.json of {folder} cannot be read: {error}.") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or "study_hash" not in manifest:
        raise ResultsError(f"{folder} is not a results folder of Engramscope: its manifest.json is of another kind.")
    if schema > SCHEMA_VERSION:
        raise ResultsError(
            f"{folder} was written with results schema {schema}, and this version reads up to {SCHEMA_VERSION}; "
            "update Engramscope to read it."
        )
    return manifest


def read_study_text(path: Path) -> str:
    """`study.toml` of a results folder, word for word.

    Raises:
        ResultsError: it is missing or cannot be read.
    """
    try:
        return (Path(path) / "study.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"The study.toml of {path} cannot be read: {error}.") from None


def read_effects(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """`effects.parquet`: one row per pair, cell and metric (and noise draw).

    Args:
        path: the results folder.
        columns: only these; None for all.

    Returns:
        Integers that can be missing (`layer head position`) are of the dtype `Int64`.

    Raises:
        ResultsError: missing (the study has not ended), damaged, or of another schema.
    """
    table = _read_parquet(Path(path), "effects.parquet", columns)
    wanted = EFFECTS if columns is None else pa.schema([EFFECTS.field(name) for name in columns])
    if table.schema.remove_metadata() != wanted:
        raise ResultsError(f"The effects.parquet of {path} has other columns than this version writes.")
    return _frame(table)


def read_pairs(path: Path) -> pd.DataFrame:
    """`pairs.parquet`: one row per pair, those that were excluded too.

    Raises:
        ResultsError: missing or damaged.
    """
    return _frame(_read_parquet(Path(path), "pairs.parquet", None))


def read_summary(path: Path) -> pd.DataFrame:
    """`summary.csv`: one row per cell and metric.

    Returns:
        Counts and indices as `Int64`, `cut detected two_sd` as `boolean`, missing text as None (`note`: empty text).

    Raises:
        ResultsError: missing, damaged, or of another schema.
    """
    file = Path(path) / "summary.csv"
    if not file.is_file():
        raise ResultsError(f"The results folder {path} has no summary.csv; finish its study with --resume.")
    try:
        # everything as text first: a sweep that is called "NA" must not become a missing value
        raw = pd.read_csv(file, dtype=str, keep_default_na=False, na_filter=False)
        missing = [name for name in SUMMARY_COLUMNS if name not in raw.columns]
        if missing:
            raise ResultsError(f"The summary.csv of {path} lacks the columns {', '.join(missing)}.")
        return pd.DataFrame({name: _column(name, pd.Series(raw[name])) for name in SUMMARY_COLUMNS})
    except (OSError, ValueError, KeyError) as error:
        raise ResultsError(f"The summary.csv of {path} cannot be read: {error}.") from None


def _column(name: str, text: pd.Series) -> pd.Series:
    if name in _TEXTS:
        return text if name == "note" else text.astype(object).where(text != "", None)
    if name in _BOOLEANS:
        return text.map({"True": True, "False": False, "": pd.NA}).astype("boolean")
    present = text.where(text != "", "nan").map(float)
    return present.astype("Int64") if name in _INTEGERS else present


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(integer_object_nulls=False, ignore_metadata=True)
    for field in table.schema:
        if pa.types.is_integer(field.type):
            frame[field.name] = table[field.name].to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            frame[field.name] = pd.Series(table[field.name].to_pylist(), dtype=object, index=frame.index)
    return frame


def _read_parquet(folder: Path, name: str, columns: Sequence[str] | None) -> pa.Table:
    file = folder / name
    if not file.is_file():
        raise ResultsError(f"The results folder {folder} has no {name}; finish its study with --resume.")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as reader:
            return reader.read(columns=None if columns is None else list(columns))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ResultsError(f"The {name} of {folder} is damaged: {error}.") from None
