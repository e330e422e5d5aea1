"""What two studies say about the same cells: correlation of their effects, agreement of their detections."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from engramscope.results.schema import Frame
from engramscope.stats.overlap import overlap

#: what makes cells of two studies the same; the corruption may differ
_CELL = ["sweep", "direction", "site", "layer", "head", "position", "position_role", "window", "metric"]
_FAMILY = ["sweep", "direction", "metric"]


def compare_cells(one: pd.DataFrame, other: pd.DataFrame) -> list[dict[str, Any]]:
    """Sweep by sweep and metric by metric, over the cells that both studies have and that are a cut in neither.

    Args:
        one, other: summaries.

    Returns:
        For each: number of cells in common and in either, Spearman correlation of the estimates, Jaccard index of the
        detected cells with its chance level and p, and the cell whose estimates differ most.
    """
    keys: list[Frame] = [_keyed(table) for table in (one, other)]
    both: Frame = keys[0].merge(keys[1], on=["_key", *_FAMILY], suffixes=("", "_other"))
    either = {name: set(keys[0].loc[_is(keys[0], name), "_key"]) | set(keys[1].loc[_is(keys[1], name), "_key"])
              for name in _names(keys)}  # fmt: skip
    found = []
    for name in _names(keys):
        mine: Frame = both[_is(both, name).to_numpy()]
        cut: Frame = mine[["cut", "cut_other"]].astype(bool).any(axis=1)
        open_cells: Frame = mine[~cut.to_numpy()]
        row: dict[str, Any] = dict(zip(_FAMILY, name, strict=True))
        found.append({**row, "common": len(mine), "either": len(either[name]), **_agreement(open_cells)})
    return found


def _agreement(cells: Frame) -> dict[str, Any]:
    if not len(cells):
        return {"correlation": math.nan, "jaccard": math.nan, "chance": math.nan, "p": math.nan, "widest": None}
    # a recovery and an effect in units of the metric are no two values of one thing
    shown = "estimate" if (cells["estimate_kind"] == cells["estimate_kind_other"]).all() else "effect"
    ranks = cells[[shown, f"{shown}_other"]].rank()
    correlation = float(ranks.corr().iloc[0, 1]) if len(cells) > 2 else math.nan
    detected = [set(cells.loc[cells[column].astype(bool), "_key"]) for column in ("detected", "detected_other")]
    shared = overlap(detected[0], detected[1], len(cells))
    distance = (cells[shown] - cells[f"{shown}_other"]).abs()
    widest = None if distance.isna().all() else {**cells.loc[distance.idxmax()].to_dict(), "shown": shown}
    return {"correlation": correlation, "jaccard": shared.jaccard, "chance": shared.chance, "p": shared.p,
            "widest": widest}  # fmt: skip


def _keyed(table: pd.DataFrame) -> Frame:
    """The table with one text per cell: missing parts are equal to missing parts, which a merge would not say."""
    text = table[_CELL].astype(object).where(table[_CELL].notna(), None)
    return table.assign(_key=[repr(tuple(map(_plain, row))) for row in text.itertuples(index=False, name=None)])


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == int(value) else value


def _names(tables: list[Frame]) -> list[tuple[str, str, str]]:
    rows = pd.concat([table[_FAMILY] for table in tables]).drop_duplicates()
    return [(str(a), str(b), str(c)) for a, b, c in rows.itertuples(index=False, name=None)]


def _is(table: Frame, name: tuple[str, str, str]) -> Any:
    mask = table[_FAMILY[0]] == name[0]
    for column, value in zip(_FAMILY[1:], name[1:], strict=True):
        mask &= table[column] == value
    return mask
