"""What a study found, as plain data: confirmed peaks, counts, contrasts, both directions, cuts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from engramscope.results.effect_scale import UNSIGNED, higher_is_better, is_signed, no_effect
from engramscope.results.schema import CELL, Frame
from engramscope.results.summary import Family, cell_label, families, family_rng
from engramscope.stats.bootstrap import bootstrap_mean
from engramscope.stats.contrast import contrast_cells, contrast_concentration
from engramscope.stats.correction import holm
from engramscope.stats.split import Split, confirmed_peak, split_by_cluster

#: what the measures of concentration are called where people read them
MEASURE_NAMES = {
    "effective_layers": "effective number of layers",
    "centre_of_mass": "centre of mass (layer)",
    "top_share": "share of the top layer",
}


def findings(
    effects: pd.DataFrame,
    summary: pd.DataFrame,
    clusters: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    label: str | None,
    pooled: frozenset[str],
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that the report says in sentences.

    Args:
        effects: the effects table.
        summary: the summary table made from it.
        clusters: pair id -> cluster.
        labels: pair id -> value of the label to compare by; empty where there is none.
        label: the name of that label.
        pooled: ids of the pairs that enter recovery.
        confidence: of intervals.
        resamples: of bootstrap and permutation.
        seed: of the split and the resampling.

    Returns:
        The `findings` entry of the manifest; numbers are finite or None.
    """
    peaks, rows, cells = [], [], []
    groups = tuple(sorted(set(labels.values())))
    parts = list(families(effects))
    halves = _halves(parts, clusters, labels, seed)
    for family in parts:
        settings = {"confidence": confidence, "resamples": resamples}
        names = np.array([clusters.get(pair, pair) for pair in family.pairs])
        peaks.append(_peak(family, names, halves, pooled, seed, settings))
        if len(groups) == 2:
            first = np.array([labels.get(pair) == groups[0] for pair in family.pairs])
            known = np.array([pair in labels for pair in family.pairs])
            rows += _profile_contrast(family, names, first, known, seed, settings)
            cells += _cell_contrasts(family, names, first, known, pooled, seed, settings)
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_adjusted"] = adjusted
    contrast = {"label": label, "groups": list(groups), "rows": rows, "cells": cells} if rows or cells else None
    return finite(
        {
            "peaks": [peak for peak in peaks if peak is not None],
            "detected": _detected(summary),
            "contrast": contrast,
            "both_directions": _both_directions(summary),
            "cuts": _cuts(summary),
            "gaps": _gaps(parts, clusters, seed, {"confidence": confidence, "resamples": resamples}),
        }
    )


def _gaps(
    parts: Sequence[Family], clusters: Mapping[str, str], seed: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Per metric the mean of the unpatched runs, and the gap between them: the total effect of the corruption."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for family in parts:
        key = (family.key["corruption"], family.key["metric"])
        gap = family.gap
        # sweeps differ in nothing here but in the pairs that have a cell: the one with most of them speaks
        if gap is None or family.corrupted is None or rows.get(key, {"n": 0})["n"] >= len(gap):
            continue
        names = np.array([clusters.get(pair, pair) for pair in family.pairs])
        found = bootstrap_mean(gap[:, None], names, rng=family_rng(family, seed + 2), **settings)
        rows[key] = {
            "corruption": key[0], "metric": key[1], "n": len(gap), "clean": float(family.clean.mean()),
            "corrupted": float(family.corrupted.mean(axis=1).mean()), "gap": float(gap.mean()),
            "low": float(found.low[0]), "high": float(found.high[0]), "higher_is_better": higher_is_better(key[1]),
        }  # fmt: skip
    return list(rows.values())


def _halves(
    parts: Sequence[Family], clusters: Mapping[str, str], labels: Mapping[str, str], seed: int
) -> frozenset[str]:
    """Ids of the pairs on which peaks are chosen; the others measure them.

    One split for the whole study: a peak that is chosen among sweeps, directions and metrics has then been chosen on
    the same half everywhere, and no pair that measures it had a say.
    """
    pairs = list(dict.fromkeys(pair for part in parts for pair in part.pairs))
    names = np.array([clusters.get(pair, pair) for pair in pairs])
    strata = np.array([labels.get(pair, "") for pair in pairs])
    split = split_by_cluster(names, np.random.default_rng([seed, 5]), strata=strata)
    return frozenset(pair for pair, chosen in zip(pairs, split.selection, strict=True) if chosen)


def _peak(
    family: Family,
    clusters: np.ndarray,
    halves: frozenset[str],
    pooled: frozenset[str],
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any] | None:
    if family.cut.all() or len(family.cells) < 2:
        return None
    rng = family_rng(family, seed + 1)
    selection = np.array([pair in halves for pair in family.pairs])
    split = Split(selection, ~selection)
    gap = family.gap
    inside = np.array([pair in pooled for pair in family.pairs])
    gap = None if gap is None else np.where(inside, gap, np.nan)
    peak = confirmed_peak(family.effect, clusters, split, rng=rng, gap=gap, cut=family.cut, **settings)
    if peak.cell < 0:
        return None
    cell = family.cells.iloc[peak.cell]
    kind = "effect" if gap is None else "recovery"
    # the change is counted from the run that was patched
    start = no_effect(kind, family.key["direction"])
    estimate, low, high = (start + getattr(peak, name) for name in (kind, f"{kind}_low", f"{kind}_high"))
    pooling = {} if gap is None else {"n_pooled": peak.n_pooled, "n_clusters_pooled": peak.n_clusters_pooled}
    return {
        **family.key,
        "cell": _cell(cell, family.key),
        "label": cell_label({**cell.to_dict()}),
        "estimate_kind": kind,
        "selection_effect": peak.selection_effect,
        "effect": peak.effect,
        "estimate": estimate,
        "low": low,
        "high": high,
        "p": peak.p if family.signed else None,
        "n": peak.n_confirmation,
        "n_clusters": peak.n_clusters,
        **pooling,
        "status": peak.status if family.signed else UNSIGNED,
        "note": family.notes[peak.cell],
    }


def _profile_contrast(
    family: Family, clusters: np.ndarray, first: np.ndarray, known: np.ndarray, seed: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For a sweep over layers only: is the profile of one group more concentrated than that of the other?"""
    cells: Frame = family.cells
    layers = cells["layer"]
    single = family.cells.drop(columns="layer").drop_duplicates().shape[0] == 1
    kept = ~family.cut
    if not single or layers.isna().any() or kept.sum() < 3 or _too_few(first, known, clusters):
        return []
    order = np.argsort(layers[kept].to_numpy(dtype=int))
    effect = family.effect[:, kept][:, order][known]
    if np.isnan(effect).any():
        return []
    rng = family_rng(family, seed + 2)
    numbers = np.sort(layers[kept].to_numpy(dtype=int))
    result = contrast_concentration(effect, first[known], clusters[known], rng=rng, layers=numbers, **settings)
    return [
        {
            **family.key,
            "statistic": MEASURE_NAMES.get(measure.name, measure.name),
            "values": [measure.first, measure.second],
            "intervals": [[measure.first_low, measure.first_high], [measure.second_low, measure.second_high]],
            "difference": measure.difference,
            "low": measure.low,
            "high": measure.high,
            "p": measure.p,
        }
        for measure in result
    ]


def _cell_contrasts(
    family: Family,
    clusters: np.ndarray,
    first: np.ndarray,
    known: np.ndarray,
    pooled: frozenset[str],
    seed: int,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    if _too_few(first, known, clusters):
        return []
    gap = family.gap
    inside = known & np.array([pair in pooled for pair in family.pairs]) if gap is not None else known
    if _too_few(first, inside, clusters):
        return []
    result = contrast_cells(
        family.effect[inside],
        None if gap is None else gap[inside],
        first[inside],
        clusters[inside],
        rng=family_rng(family, seed + 3),
        family=~family.cut,
        **settings,
    )
    return [
        {
            **family.key,
            "cell": _cell(family.cells.iloc[number], family.key),
            "label": cell_label(family.cells.iloc[number].to_dict()),
            "values": [result.first[number], result.second[number]],
            "difference": result.difference[number],
            "low": result.bca_low[number],
            "high": result.bca_high[number],
            "p": result.p[number],
            "p_adjusted": result.p_max_t[number],
        }
        for number in np.flatnonzero(~family.cut)
    ]


def _too_few(first: np.ndarray, known: np.ndarray, clusters: np.ndarray) -> bool:
    return any(len(set(clusters[known & side])) < 2 for side in (first, ~first))


def _detected(summary: Frame) -> list[dict[str, Any]]:
    keys = ["sweep", "metric", "direction"]
    return [
        {
            **dict(zip(keys, key, strict=True)),
            "detected": int(rows["detected"].sum()),
            "tested": int(rows["p_adjusted"].notna().sum()),
            "cut": int(rows["cut"].astype(bool).sum()),
            "two_sd": int(rows["two_sd"].sum()),
            "cells": [cell_label(row) for row in _records(rows[rows["detected"].astype(bool)])][:50],
        }
        for key, rows in summary.groupby(keys, sort=False)
    ]


def _both_directions(summary: Frame) -> list[dict[str, Any]]:
    """Cells that were patched in both directions: what suffices, beside what is needed."""
    same = [name for name in CELL if name != "direction"] + ["metric"]
    signed = {metric: is_signed(metric) for metric in summary["metric"].unique()}
    summary = summary[summary["metric"].map(signed).astype(bool)]
    filled = summary.assign(**{name: summary[name].astype(object).where(summary[name].notna(), "") for name in same})
    wide = {name: rows for name, rows in filled.groupby("direction")}
    if not {"denoise", "noise"} <= set(wide):
        return []
    joined = wide["denoise"].merge(wide["noise"], on=same, suffixes=("_denoise", "_noise"))
    return [
        {
            "sweep": row["sweep"],
            "metric": row["metric"],
            "label": cell_label({name: row[name] if row[name] != "" else None for name in CELL if name != "direction"}),
            "denoise": row["recovery_denoise"],
            "noise": row["recovery_noise"],
            "sufficient": bool(row["detected_denoise"]),
            "necessary": bool(row["detected_noise"]),
        }
        for row in joined.to_dict("records")
    ]


def _cuts(summary: Frame) -> list[dict[str, Any]]:
    return [
        {
            **{name: row[name] for name in ("sweep", "site", "layer", "position_role", "metric", "direction")},
            "label": cell_label(row),
            "recovery": row["recovery"],
        }
        for row in _records(summary[summary["cut"].astype(bool)])
    ]


def _records(rows: Frame) -> list[dict[str, Any]]:
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _cell(cell: Frame, key: Mapping[str, str]) -> dict[str, Any]:
    values = {**cell.to_dict(), **{name: key[name] for name in ("sweep", "corruption", "direction")}}
    return {name: values[name] for name in CELL}


def finite(value: Any) -> Any:
    """The same data without NaN, numpy scalars or pandas missing values, as JSON needs it."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(part) for part in value]
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value
