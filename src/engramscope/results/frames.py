"""Tidy tables to labelled arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from engramscope.errors import ResultsError

#: columns that can become a dimension, in the order in which they do
_DIMENSIONS = ("metric", "direction", "pair", "seed", "layer", "head", "position", "position_role")
#: columns that identify a sweep and are the same in all of its rows
_CONSTANT = ("study", "sweep", "corruption", "site", "window", "estimate_kind")


def to_xarray(table: pd.DataFrame, sweep: str | None = None) -> xr.Dataset:
    """One sweep of `effects.parquet` or `summary.csv` as a dataset of labelled arrays.

    Dimensions are those of `metric direction pair seed layer head position position_role` that apply to the sweep:
    `metric` always, `direction seed position_role` where there are several, the others where they are not missing
    throughout. What is the same everywhere becomes an attribute; `group` a coordinate along `pair`. Combinations that
    the table does not hold are `NaN` (None for text, False for `cut` and `detected`).

    Args:
        table: as `read_effects` or `read_summary` give it.
        sweep: the sweep to take; may be left out where the table holds one only.

    Raises:
        ResultsError: no such sweep, several sweeps and none named, or rows that are not unique.
    """
    rows = _one_sweep(table, sweep)
    dims = _dims(rows)
    if bool(rows.duplicated(dims).to_numpy().any()):
        raise ResultsError(
            f"The rows of this sweep are not unique by {', '.join(dims)}; pass the table as it was read."
        )
    constant = [name for name in _CONSTANT if name in rows.columns and len(_distinct(rows, name)) <= 1]
    constant += [
        name
        for name in ("direction", "seed", "position_role")
        if name in rows.columns and "position" not in dims and name not in dims
    ]
    values = [
        name for name in rows.columns if name not in {*dims, *constant, "group"} and not _missing(rows, name).all()
    ]
    data = xr.Dataset({name: _array(rows, dims, name) for name in values})
    data.attrs = {name: _plain(rows[name].iloc[0]) for name in constant if not _missing(rows, name).all()}
    if "group" in rows.columns and "pair" in dims:
        groups = rows.drop_duplicates("pair").set_index("pair")["group"]
        data = data.assign_coords(group=("pair", groups.reindex(data["pair"].to_numpy()).to_numpy(dtype=object)))
    return data


def _one_sweep(table: pd.DataFrame, sweep: str | None) -> pd.DataFrame:
    known = list(dict.fromkeys(table["sweep"]))
    if sweep is None and len(known) != 1:
        raise ResultsError(f"Say which sweep is meant; the table holds {', '.join(map(repr, known)) or 'none'}.")
    chosen = known[0] if sweep is None else sweep
    if chosen not in known:
        raise ResultsError(f"There is no sweep {chosen!r}; the table holds {', '.join(map(repr, known)) or 'none'}.")
    return table.loc[(table["sweep"] == chosen).to_numpy()]


def _dims(rows: pd.DataFrame) -> list[str]:
    dims: list[str] = []
    for name in _DIMENSIONS:
        if name not in rows.columns or _missing(rows, name).all():
            continue
        if name in {"direction", "seed", "position_role"} and len(_distinct(rows, name)) < 2:
            continue
        # where cells are told apart by index, the role is a property of the position, not a dimension
        if name == "position_role" and "position" in dims:
            continue
        if _missing(rows, name).any():
            raise ResultsError(f"Some rows of this sweep have a {name} and some have none; select one kind first.")
        dims.append(name)
    return dims


def _missing(rows: pd.DataFrame, name: str) -> np.ndarray:
    return np.asarray(pd.isna(rows[name]), dtype=bool)


def _distinct(rows: pd.DataFrame, name: str) -> list[object]:
    return list(
        dict.fromkeys(None if gone else value for value, gone in zip(rows[name], _missing(rows, name), strict=True))
    )


def _array(rows: pd.DataFrame, dims: list[str], name: str) -> xr.DataArray:
    column = rows[name]
    if pd.api.types.is_bool_dtype(column.dtype):
        filled, missing = column.fillna(False).astype(bool), False
    elif pd.api.types.is_numeric_dtype(column.dtype):
        filled, missing = column.astype("Float64").to_numpy(dtype=float, na_value=float("nan")), float("nan")
    else:
        filled, missing = column.astype(object).where(column.notna(), None), None
    coordinates = {dim: pd.Index(list(dict.fromkeys(rows[dim]))) for dim in dims}
    # indices ascend; names keep the order of the table, which is the order of the prompt or of the study file
    coordinates = {
        dim: index.sort_values() if index.dtype.kind in "iuf" else index for dim, index in coordinates.items()
    }
    codes = [index.get_indexer(pd.Index(list(rows[dim]))) for dim, index in coordinates.items()]
    values = np.full([len(index) for index in coordinates.values()], missing, dtype=np.asarray(filled).dtype)
    values[tuple(codes)] = np.asarray(filled)
    return xr.DataArray(values, coords={d: i.to_numpy() for d, i in coordinates.items()}, dims=dims)


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") else value  # type: ignore[attr-defined]
