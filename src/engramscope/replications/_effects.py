"""From the effects table of an arm to the numbers that published figures show: cells, profiles over layers, peaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from engramscope.locate.cells import window_layers
from engramscope.metrics import get_metric
from engramscope.replications._verdict import Detection
from engramscope.results.schema import Frame
from engramscope.results.summary import families
from engramscope.stats.bootstrap import bootstrap_mean, bootstrap_recovery
from engramscope.stats.two_sd import two_sd

#: effect: in units of the metric; recovery: divided by the mean gap between clean and corrupted runs (normalised)
Scale = Literal["effect", "recovery"]
#: columns of the effects table that are looked at
COLUMNS = (
    "pair", "group", "corruption", "seed", "direction", "site", "layer", "head", "position", "position_role", "window",
    "metric", "clean", "corrupted", "patched", "effect", "status", "sweep", "cut",
)  # fmt: skip
_RESAMPLES = 2000


class NotMeasuredError(Exception):
    """A value that cannot be measured here; the message says why, as the end of the sentence "not measured: …"."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over pairs, where there is one.

    Attributes:
        value: the number.
        low, high: a cluster bootstrap's percentile limits; NaN where it says nothing (one cluster).
        n: pairs behind it.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0


@dataclass(frozen=True)
class Table:
    """One sweep under one metric, pair by pair; larger values are better, whatever the metric counts as good.

    Attributes:
        cells: one row per cell: site, layer, head, position, position_role, window.
        effect: [pairs, cells], averaged over draws; NaN where a pair has no such cell.
        gap: [pairs], clean minus corrupted, averaged over draws.
        clusters: [pairs], what pairs share with those that they depend on.
        cut: [cells], whether the value holds by construction in every pair.
        pairs: their ids.
    """

    cells: pd.DataFrame
    effect: np.ndarray
    gap: np.ndarray
    clusters: np.ndarray
    cut: np.ndarray
    pairs: tuple[str, ...]

    def columns(self, layer: int | None = None, head: int | None = None, role: str | None = None) -> np.ndarray:
        """Indices of the cells with these parts; None for any."""
        keep = np.ones(len(self.cells), dtype=bool)
        for name, wanted in (("layer", layer), ("head", head), ("position_role", role)):
            if wanted is not None:
                keep &= self.cells[name].eq(wanted).fillna(False).to_numpy(dtype=bool)
        return np.flatnonzero(keep)

    def series(self, columns: np.ndarray) -> np.ndarray:
        """Effects pair by pair, averaged over these cells within a pair: [pairs]; NaN where a pair has none."""
        part = self.effect[:, columns]
        known = ~np.isnan(part)
        count = known.sum(axis=1)
        total = np.where(known, part, 0.0).sum(axis=1)
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

    def mean(self, columns: np.ndarray, scale: Scale) -> float:
        """Mean effect over pairs, or pooled recovery (a ratio of means); NaN where no pair has the cell."""
        series = self.series(columns)
        known = ~np.isnan(series)
        below = float(self.gap[known].sum()) if scale == "recovery" else float(known.sum())
        return float(series[known].sum()) / below if below else float("nan")

    def estimate(self, columns: np.ndarray, scale: Scale) -> Estimate:
        """The same with its interval."""
        series = self.series(columns)
        known = ~np.isnan(series)
        if not known.any():
            raise NotMeasuredError("no pair has such a cell")
        rng = np.random.default_rng(0)
        values, clusters = series[known][:, None], self.clusters[known]
        interval = (
            bootstrap_recovery(values, self.gap[known], clusters, rng=rng, resamples=_RESAMPLES)
            if scale == "recovery"
            else bootstrap_mean(values, clusters, rng=rng, resamples=_RESAMPLES)
        )
        return Estimate(self.mean(columns, scale), float(interval.low[0]), float(interval.high[0]), int(known.sum()))


def table_of(effects: pd.DataFrame, sweep: str | None, metric: str) -> Table:
    """The cells of one denoising sweep under one metric.

    Args:
        effects: the effects table.
        sweep: its name; None where the table holds one only.
        metric: name of the metric. Where lower is better, signs are turned.

    Raises:
        NotMeasuredError: there is no such row.
    """
    rows: Frame = effects[(effects["metric"] == metric) & (effects["direction"] == "denoise")]
    rows = rows if sweep is None else rows[rows["sweep"] == sweep]
    if not len(rows):
        raise NotMeasuredError(f"the study has no effects on {metric!r}" + (f" in sweep {sweep!r}" if sweep else ""))
    (family, *others) = families(rows)
    assert not others, "a table of several sweeps needs the name of one"
    gap = family.gap
    if gap is None:
        raise NotMeasuredError("the corruption makes no corrupted run")
    sign = 1.0 if get_metric(metric).higher_is_better else -1.0
    group = dict(zip(rows["pair"], rows["group"], strict=True))
    clusters = np.array([str(group.get(pair) or pair) for pair in family.pairs])
    return Table(family.cells, sign * family.effect, sign * gap, clusters, family.cut, family.pairs)


def baseline_of(effects: pd.DataFrame, metric: str, run: Literal["clean", "corrupted", "gap"]) -> Estimate:
    """Mean over pairs of an unpatched run's metric (draws averaged within a pair), or of clean minus corrupted.

    Raises:
        NotMeasuredError: there is no such run.
    """
    rows: Frame = effects[effects["metric"] == metric]
    columns = ["clean", "corrupted"] if run == "gap" else [run]
    grouped: Frame = rows.groupby("pair", sort=False)[columns].mean()
    values = (grouped["clean"] - grouped["corrupted"] if run == "gap" else grouped[run]).to_numpy(dtype=float)
    if not len(values) or np.isnan(values).all():
        raise NotMeasuredError(f"the study has no {run} run with {metric!r}")
    group = dict(zip(rows["pair"], rows["group"], strict=True))
    clusters = np.array([str(group.get(pair) or pair) for pair in grouped.index])
    rng = np.random.default_rng(0)
    interval = bootstrap_mean(values[:, None], clusters, rng=rng, resamples=_RESAMPLES)
    return Estimate(float(np.nanmean(values)), float(interval.low[0]), float(interval.high[0]), len(values))


def profile(table: Table, role: str | None, scale: Scale) -> dict[int, float]:
    """Layer -> mean over pairs at one role (or of the only cell); layers without it are left out.

    Raises:
        NotMeasuredError: no prompt has the role.
    """
    places = {layer: table.columns(layer, role=role) for layer in _layers(table)}
    # what holds by construction is no height of a curve
    found = {layer: table.mean(columns[~table.cut[columns]], scale) for layer, columns in places.items()}
    known = {layer: value for layer, value in found.items() if not np.isnan(value)}
    if not known:
        raise NotMeasuredError(f"no prompt has a position {role!r}" if role else "no cell has an effect")
    return known


def sums_of_singles(singles: Mapping[int, float], width: int) -> dict[int, float]:
    """Centre layer -> sum over the layers of its window (`window_layers`, cut at the ends) of single-layer values."""
    layers = max(singles) + 1
    return {
        centre: sum(singles.get(layer, 0.0) for layer in window_layers(centre, width, layers)) for centre in singles
    }


def peak(values: Mapping[int, float], between: tuple[int, int] | None = None) -> tuple[int, float]:
    """(layer, height) of the highest value, among layers `between` (both ends included).

    Raises:
        NotMeasuredError: no layer lies there.
    """
    inside = {layer: value for layer, value in values.items() if between is None or between[0] <= layer <= between[1]}
    if not inside:
        raise NotMeasuredError(
            f"no layer lies between {between[0]} and {between[1]}" if between else "there is no layer"
        )
    layer = max(inside, key=lambda one: inside[one])
    return layer, inside[layer]


def scaled(between: Sequence[int] | None, published: int, layers: int) -> tuple[int, int] | None:
    """A range of layers of the published model in a model of another depth, in proportion; at least one layer."""
    if between is None or len(between) < 2:
        return None
    if published == layers:
        return between[0], between[1]
    first = min(layers - 1, int(between[0] * layers / published))
    last = min(layers - 1, max(first, int(np.ceil((between[1] + 1) * layers / published)) - 1))
    return first, last


def detection(table: Table, role: str | None = None) -> Detection:
    """The 2-SD rule over all cells of the sweep; only those at one role (or all) are listed, by head.

    Cells that no pair has take no part in mean and SD. A role that stands at several positions gives
    a head the distance of its furthest cell.
    """
    means = np.array([table.mean(np.array([column]), "effect") for column in range(len(table.cells))])
    rule = two_sd(means, cut=table.cut)
    if not rule.sd > 0:
        raise NotMeasuredError("all cells have the same effect, so none can stand out")
    z = (means - rule.mean) / rule.sd
    found: dict[str, float] = {}
    for column in table.columns(role=role):
        name = f"{table.cells['layer'].iloc[column]}.{table.cells['head'].iloc[column]}"
        if not np.isnan(z[column]) and abs(z[column]) >= abs(found.get(name, 0.0)):
            found[name] = float(z[column])
    if not found:
        raise NotMeasuredError(f"no prompt has a position {role!r}")
    return Detection(found)


def participation_ratio(values: np.ndarray) -> float:
    """`(Σ e²)² / Σ e⁴`: how many of the cells share the effect; 1 = a single one, n = all n alike."""
    squares = np.square(values[~np.isnan(values)])
    return float(squares.sum() ** 2 / np.square(squares).sum()) if squares.any() else float("nan")


def _layers(table: Table) -> list[int]:
    return sorted({int(layer) for layer in table.cells["layer"].dropna()})
