"""The summary as figures-to-be: which sweep becomes which kind of figure, with its numbers as matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from engramscope.report.load import Study, strings
from engramscope.report.words import (
    SITE_WORDS,
    STAR,
    cell_name,
    missing,
    module_path,
    role_label,
    role_order,
    shortened,
    star_note,
    token_text,
)
from engramscope.results.schema import ROLE_MEAN

#: a heatmap with more cells than this is shown in blocks of neighbouring columns and rows
MAX_CELLS = 8_000
#: places that are listed one below the other; the rest is in summary.csv
MAX_PLACES = 60


@dataclass(frozen=True)
class Values:
    """One metric of one panel, [rows, columns] each.

    Attributes:
        shown, low, high: what is drawn, and its interval; NaN where there is no such cell.
        p: adjusted p.
        n: number of pairs.
        cut, detected: flags.
        quantity: "recovery", "loss" or "effect".
        scale: half the width of the colour scale, where it is shared with another panel; None for its own.
    """

    shown: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: np.ndarray
    cut: np.ndarray
    detected: np.ndarray
    quantity: str
    scale: float | None = None

    @property
    def limit(self) -> float:
        """Half the width of a colour scale centred at 0: the largest value that is no cut, a recovery at most 1.5."""
        if self.scale is not None:
            return self.scale
        open_cells = np.abs(self.shown[~self.cut & np.isfinite(self.shown)])
        largest = float(open_cells.max()) if open_cells.size else 0.0
        return min(max(largest, 0.1), 1.5) if self.quantity in {"recovery", "loss"} else (largest or 1.0)

    @property
    def counts(self) -> tuple[int, int]:
        """How many cells are detected, of how many that were tested."""
        tested = ~self.cut & np.isfinite(self.p)
        return int((self.detected & tested).sum()), int(tested.sum())


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        key: stable file name and element id.
        kind: "heatmap" (rows x layers), "profile" (lines over layers, one per row) or "places" (a list with intervals).
        title: what is shown.
        direction: "denoise" or "noise".
        row_title, column_title: axis titles.
        rows, columns: labels.
        metrics: metric -> values.
        note: what the reader must know about it.
        sweeps: the sweeps that are drawn.
    """

    key: str
    kind: Literal["heatmap", "profile", "places"]
    title: str
    direction: str
    row_title: str
    column_title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: dict[str, Values]
    note: str = ""
    sweeps: tuple[str, ...] = field(default_factory=tuple)


def panels(study: Study) -> list[Panel]:
    """Every figure of a study, in reading order: profiles over layers, heatmaps sweep by sweep, single places."""
    summary = study.summary
    profiles: list[Panel] = []
    maps: list[tuple[int, Panel]] = []
    single: list[Panel] = []
    sweeps = [str(name) for name in dict.fromkeys(summary["sweep"])]
    for direction in (str(name) for name in dict.fromkeys(summary["direction"])):
        here = summary.loc[(summary["direction"] == direction).to_numpy()]
        kinds = {sweep: _kind(here.loc[(here["sweep"] == sweep).to_numpy()]) for sweep in sweeps}
        lines = [sweep for sweep, kind in kinds.items() if kind == "profile"]
        points = [sweep for sweep, kind in kinds.items() if kind == "places"]
        profiles += _profiles(here, lines, direction) if lines else []
        single += [_places(here.loc[here["sweep"].isin(points).to_numpy()], direction)] if points else []
        maps += [
            (sweeps.index(sweep), _heatmap(here.loc[(here["sweep"] == sweep).to_numpy()], direction, study))
            for sweep, kind in kinds.items()
            if kind == "heatmap"
        ]
    # both directions of a sweep stand side by side
    ordered = [panel for _, panel in sorted(maps, key=lambda item: item[0])]
    return _with_unique_keys([*profiles, *ordered, *single])


def slug(text: str) -> str:
    """A file name from any text: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "sweep"


def _with_unique_keys(found: list[Panel]) -> list[Panel]:
    seen: dict[str, int] = {}
    out: list[Panel] = []
    for panel in found:
        seen[panel.key] = seen.get(panel.key, 0) + 1
        key = panel.key if seen[panel.key] == 1 else f"{panel.key}-{seen[panel.key]}"
        out.append(Panel(**{**panel.__dict__, "key": key}))
    return out


def _kind(rows: pd.DataFrame) -> Literal["heatmap", "profile", "places", "none"]:
    if not len(rows):
        return "none"
    layers = _count(rows, "layer")
    others = max(_count(rows, name) for name in ("head", "position", "position_role"))
    if layers >= 2:
        return "heatmap" if others >= 2 else "profile"
    return "places"


def _count(rows: pd.DataFrame, name: str) -> int:
    return len({value for value in rows[name] if not missing(value)})


def _matrix(rows: pd.DataFrame, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> Values:
    def put(name: str, fill: float) -> np.ndarray:
        out = np.full(shape, fill)
        out[row, column] = rows[name].to_numpy(dtype=float, na_value=np.nan)
        return out

    return Values(
        shown=put("shown", np.nan),
        low=put("shown_low", np.nan),
        high=put("shown_high", np.nan),
        p=put("p_adjusted", np.nan),
        n=put("n", np.nan),
        cut=put("cut", 0.0) > 0,
        detected=put("detected", 0.0) > 0,
        quantity=str(rows["quantity"].iloc[0]) if len(rows) else "effect",
    )


def by_metric(rows: pd.DataFrame, row: list[int], column: list[int], shape: tuple[int, int]) -> dict[str, Values]:
    """The values of each metric as matrices.

    Args:
        rows: of the summary, with what is shown.
        row, column: where each of them stands.
        shape: of the matrices.
    """
    out: dict[str, Values] = {}
    row_of, column_of = np.asarray(row, dtype=int), np.asarray(column, dtype=int)
    for metric in dict.fromkeys(rows["metric"]):
        mine = (rows["metric"] == metric).to_numpy()
        out[str(metric)] = _matrix(rows.loc[mine], row_of[mine], column_of[mine], shape)
    return out


def _heatmap(rows: pd.DataFrame, direction: str, study: Study) -> Panel:
    rows, lost = _without_inner_dimension(rows)
    layers = sorted({int(value) for value in rows["layer"] if not missing(value)})
    rows = rows.loc[rows["layer"].notna().to_numpy()]
    column = [layers.index(int(value)) for value in rows["layer"]]
    names, row_of, labels, title, note = _rows_of(rows, study)
    metrics = by_metric(rows, [names[key] for key in row_of], column, (len(labels), len(layers)))
    sweep = str(rows["sweep"].iloc[0])
    panel = Panel(
        key=f"{slug(sweep)}-{slug(direction)}",
        kind="heatmap",
        title=sweep,
        direction=direction,
        row_title=title,
        column_title="Layer",
        rows=tuple(labels),
        columns=tuple(str(layer) for layer in layers),
        metrics=metrics,
        note=" ".join(filter(None, (note, lost))),
        sweeps=(sweep,),
    )
    return _in_blocks(panel)


def _rows_of(rows: pd.DataFrame, study: Study) -> tuple[dict[Any, int], list[Any], list[str], str, str]:
    """What stands on the vertical axis: heads, positions (with tokens) or roles."""
    if _count(rows, "head") >= 2:
        keys = [int(value) for value in rows["head"]]
        order = sorted(set(keys))
        return {key: i for i, key in enumerate(order)}, keys, [str(key) for key in order], "Head", ""
    if _count(rows, "position") >= 2:
        keys = [int(value) for value in rows["position"]]
        order = sorted(set(keys))
        labels, note = _token_labels(order, study)
        return {key: i for i, key in enumerate(order)}, keys, labels, "Position", note
    keys = ["" if missing(value) else str(value) for value in rows["position_role"]]
    order_of_roles = sorted(dict.fromkeys(keys), key=role_order)
    labels = [role_label(key) or "(no role)" for key in order_of_roles]
    averaged = any(ROLE_MEAN in str(note) for note in rows["note"])
    mean = f"A role of several tokens is the mean over the {ROLE_MEAN}." if averaged else ""
    note = " ".join(filter(None, (star_note(labels), mean)))
    return {key: i for i, key in enumerate(order_of_roles)}, keys, labels, "Role", note


def _token_labels(positions: list[int], study: Study) -> tuple[list[str], str]:
    used = study.used
    if not len(used) or "clean_tokens" not in used.columns:
        return [str(position) for position in positions], ""
    first = used.iloc[0]
    clean, corrupted = strings(first["clean_tokens"]), strings(first.get("corrupted_tokens"))
    roles = strings(first.get("roles"))
    labels, starred = [], False
    for position in positions:
        token = shortened(token_text(clean[position]), 16) if position < len(clean) else ""
        other = corrupted[position] if len(corrupted) == len(clean) and position < len(clean) else None
        changed = other is not None and other != clean[position]
        # as in the figures of Meng et al.
        star = "*" if position < len(roles) and roles[position].startswith("subject") else ""
        starred = starred or bool(star)
        labels.append(f"{position}  {token}{star}" + (f" | {shortened(token_text(other), 12)}" if changed else ""))
    whose = "those of" if len(used) > 1 else "of"
    note = f"Tokens are {whose} the pair {first['pair']}, clean | corrupted where the two differ."
    return labels, f"{note} {STAR}" if starred else note


def _without_inner_dimension(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Layer x head x position: per layer and head the position with the largest value that is no cut."""
    inner = "position" if _count(rows, "position") >= 2 else "position_role"
    if _count(rows, "head") < 2 or _count(rows, inner) < 2:
        return rows, ""
    size = rows["shown"].abs().where(~rows["cut"], -1.0).fillna(-2.0)
    best = rows.assign(_size=size).sort_values("_size", ascending=False, kind="stable")
    kept = best.drop_duplicates(["metric", "layer", "head"]).drop(columns="_size").sort_index()
    return kept, f"Of {_count(rows, inner)} positions, each cell shows the one with the largest value."


def _in_blocks(panel: Panel) -> Panel:
    cells = len(panel.rows) * len(panel.columns)
    if cells <= MAX_CELLS:
        return panel
    # halve the longer side first, so that what is left stays readable in both directions
    height, width = 1, 1
    while -(-len(panel.rows) // height) * -(-len(panel.columns) // width) > MAX_CELLS:
        if len(panel.rows) / height >= len(panel.columns) / width:
            height += 1
        else:
            width += 1
    metrics = {name: _blocks(values, height, width) for name, values in panel.metrics.items()}
    note = (
        f"Blocks of {height} × {width} cells: each shows its largest value that is no cut; "
        "every cell is in summary.csv."
    )
    return Panel(
        **{
            **panel.__dict__,
            "metrics": metrics,
            "rows": _block_labels(panel.rows, height),
            "columns": _block_labels(panel.columns, width),
            "note": f"{panel.note} {note}".strip(),
        }
    )


def _block_labels(labels: tuple[str, ...], size: int) -> tuple[str, ...]:
    return tuple(
        labels[i] if size == 1 or i + 1 >= len(labels) else f"{labels[i]} … {labels[min(i + size, len(labels)) - 1]}"
        for i in range(0, len(labels), size)
    )


def _blocks(values: Values, height: int, width: int) -> Values:
    n_rows, n_columns = values.shown.shape
    rows, columns = -(-n_rows // height), -(-n_columns // width)
    size = np.where(values.cut, -1.0, np.abs(values.shown))
    size = np.where(np.isnan(size), -2.0, size)

    def tiled(matrix: np.ndarray, fill: float) -> np.ndarray:
        padded = np.full((rows * height, columns * width), fill)
        padded[:n_rows, :n_columns] = matrix
        return padded.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows, columns, height * width)

    best = tiled(size, -3.0).argmax(axis=2)[..., None]

    def pick(matrix: np.ndarray, fill: float) -> np.ndarray:
        return np.take_along_axis(tiled(matrix, fill), best, axis=2)[..., 0]

    return Values(
        shown=pick(values.shown, np.nan),
        low=pick(values.low, np.nan),
        high=pick(values.high, np.nan),
        p=pick(values.p, np.nan),
        n=pick(values.n, np.nan),
        cut=pick(values.cut.astype(float), 0.0) > 0,
        detected=pick(values.detected.astype(float), 0.0) > 0,
        quantity=values.quantity,
    )


def _profiles(here: pd.DataFrame, sweeps: list[str], direction: str) -> list[Panel]:
    rows = here.loc[here["sweep"].isin(sweeps).to_numpy()]
    rows = rows.loc[rows["layer"].notna().to_numpy()]
    layers = sorted({int(value) for value in rows["layer"]})
    column = [layers.index(int(value)) for value in rows["layer"]]
    metrics = by_metric(rows, [sweeps.index(value) for value in rows["sweep"]], column, (len(sweeps), len(layers)))
    first = rows.drop_duplicates("sweep").set_index("sweep")
    labels = tuple(_line_label(sweep, str(first.loc[sweep, "site"]), first.loc[sweep, "window"]) for sweep in sweeps)
    panel = Panel(
        key=f"layers-{slug(direction)}",
        kind="profile",
        title="Layer by layer",
        direction=direction,
        row_title="Sweep",
        column_title="Layer",
        rows=labels,
        columns=tuple(str(layer) for layer in layers),
        metrics=metrics,
        sweeps=tuple(sweeps),
    )
    strip = Panel(
        **{
            **panel.__dict__,
            "key": f"sites-{slug(direction)}",
            "kind": "heatmap",
            "title": "Layer by site",
            "rows": tuple(sweeps),
        }
    )
    return [panel, strip] if len(sweeps) > 1 else [panel]


def _line_label(sweep: str, site: str, window: object) -> str:
    wide = "" if missing(window) or int(window) <= 1 else f", window {int(window)}"  # type: ignore[call-overload]
    return f"{sweep}{wide}" if sweep == site else f"{sweep} ({SITE_WORDS.get(site, site)}{wide})"


def _places(rows: pd.DataFrame, direction: str) -> Panel:
    place = ["sweep", "site", "layer", "head", "position", "position_role", "window"]
    keys = [tuple(None if missing(v) else v for v in key) for key in rows[place].itertuples(index=False, name=None)]
    order = list(dict.fromkeys(keys))
    index = {key: i for i, key in enumerate(order)}
    cells = list(_cells(order, place))
    kept = (np.asarray([index[key] for key in keys]) < MAX_PLACES).tolist()
    rows = rows.loc[kept]
    row_of = [index[key] for key, keep in zip(keys, kept, strict=True) if keep]
    shape = (min(len(order), MAX_PLACES), 1)
    note = "" if len(order) <= MAX_PLACES else f"The first {MAX_PLACES} of {len(order)} places; all are in summary.csv."
    return Panel(
        key=f"places-{slug(direction)}",
        kind="places",
        title="Single places",
        direction=direction,
        row_title="Place",
        column_title="",
        rows=tuple(cell_name(cell) for cell in cells[:MAX_PLACES]),
        columns=("",),
        metrics=by_metric(rows, row_of, [0] * len(row_of), shape),
        note=note,
        sweeps=tuple(dict.fromkeys(str(key[0]) for key in order)),
    )


def _cells(order: list[tuple[Any, ...]], names: list[str]) -> Iterator[dict[str, Any]]:
    for key in order:
        yield dict(zip(names, key, strict=True))


__all__ = ["MAX_CELLS", "Panel", "Values", "module_path", "panels", "slug"]
