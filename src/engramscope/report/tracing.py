"""Causal tracing: total effect, average indirect effects over layers by class of position, severed curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from engramscope.report.load import Study, records, section
from engramscope.report.panels import Panel, by_metric, slug
from engramscope.report.ways import SEVERED, severed
from engramscope.report.words import (
    METRIC_UNITS,
    interval,
    metric_words,
    missing,
    number,
    role_label,
    role_order,
    role_words,
    star_note,
)
from engramscope.results.schema import Frame

_STATES = ("resid_pre", "resid_mid", "resid_post")
_TRACED = (*_STATES, "mlp_out", "attn_out")


def is_tracing(study: Study) -> bool:
    """Whether a study traces: noise on embeddings, or modules severed from a restored state."""
    method = section(study.manifest, "corruption").get("method")
    return method == "gaussian" or any(severed(study, sweep) for sweep in _sweeps(study))


def tracing_panels(study: Study) -> list[Panel]:
    """Curves over layers in units of the metric: one figure per sweep by class of position, one per severed position.

    Source: Meng et al. 2022 (arXiv 2202.05262), Figures 2, 3 and 7.
    """
    if not is_tracing(study):
        return []
    rows = _in_units(study.summary.loc[(study.summary["direction"] == "denoise").to_numpy()])
    curves = [_classes(rows.loc[(rows["sweep"] == sweep).to_numpy()], sweep) for sweep in _sweeps(study)]
    return [*(panel for panel in curves if panel is not None), *_severed_panels(study, rows)]


def totals(study: Study) -> list[dict[str, Any]]:
    """Per metric: mean of the clean and the corrupted runs, and the total effect with its interval."""
    return [
        {
            "metric": metric_words(str(row.get("metric"))),
            "unit": METRIC_UNITS.get(str(row.get("metric")), ""),
            "clean": number(row.get("clean")),
            "corrupted": number(row.get("corrupted")),
            "gap": number(row.get("gap")),
            "interval": interval(row.get("low"), row.get("high"), "effect", "denoise"),
            "n": row.get("n"),
        }
        for row in records(study.findings, "gaps")
    ]


def known_words(study: Study) -> str:
    """How many facts the model knows, where only those are traced; else empty."""
    known = section(study.manifest, "known")
    if missing(known.get("kept")):
        return ""
    return f"The model knows {known['kept']} of {known['of']} facts; only those are traced."


def _sweeps(study: Study) -> list[str]:
    return [str(name) for name in dict.fromkeys(study.summary["sweep"])]


def _in_units(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean effect instead of the recovery: what the papers call the average indirect effect."""
    return rows.assign(
        shown=rows["effect"], shown_low=rows["effect_low"], shown_high=rows["effect_high"], quantity="effect"
    )


def _classes(rows: pd.DataFrame, sweep: str) -> Panel | None:
    """A line per class of position; None for a sweep that has no classes."""
    rows = rows.loc[rows["layer"].notna().to_numpy()]
    roles = sorted({str(role) for role in rows["position_role"] if not missing(role)}, key=role_order)
    by_index = bool(rows[["position", "head"]].notna().to_numpy().any())
    if not len(rows) or len(roles) < 2 or by_index:
        return None
    if str(rows["site"].iloc[0]) not in _TRACED:
        return None
    return _lines(rows, roles, list(rows["position_role"]), f"{sweep}: indirect effect", f"aie-{slug(sweep)}",
                  (sweep,), [role_label(role) for role in roles])  # fmt: skip


def _severed_panels(study: Study, rows: pd.DataFrame) -> list[Panel]:
    """The restored state as it is, and with modules severed, at each position that was severed."""
    cut = [sweep for sweep in _sweeps(study) if severed(study, sweep)]
    found = []
    mine: Frame = rows.loc[rows["sweep"].isin(cut).to_numpy() & rows["layer"].notna().to_numpy()]
    for (site, role), part in mine.groupby(["site", "position_role"], sort=False):
        names = [str(name) for name in dict.fromkeys(part["sweep"])]
        plain = _unsevered(rows.loc[~rows["sweep"].isin(cut).to_numpy()], str(site), str(role))
        both = pd.concat([plain.assign(sweep=""), part]) if len(plain) else part
        keys = [*([""] if len(plain) else []), *names]
        labels = [_severed_label(study, name, names) for name in keys]
        title = f"State restored at {role_words(role)}, modules severed"
        key = f"severed-{slug(str(site))}-{slug(str(role))}"
        found.append(_lines(both, keys, list(both["sweep"]), title, key, tuple(names), labels))
    return found


def _severed_label(study: Study, sweep: str, names: Sequence[str]) -> str:
    if not sweep:
        return "nothing severed"
    words = SEVERED[severed(study, sweep)]
    return words if sum(severed(study, name) == severed(study, sweep) for name in names) == 1 else f"{words} ({sweep})"


def _unsevered(rows: pd.DataFrame, site: str, role: str) -> pd.DataFrame:
    """The same state restored and nothing severed, single layers, from the first sweep that has it."""
    same = (rows["site"] == site) & (rows["position_role"] == role) & (rows["window"] == 1) & rows["layer"].notna()
    alike = rows.loc[same.to_numpy()]
    return alike.loc[(alike["sweep"] == alike["sweep"].iloc[0]).to_numpy()] if len(alike) else alike


def _lines(
    rows: pd.DataFrame, keys: Sequence[Any], row_of: Sequence[Any], title: str, key: str, sweeps: tuple[str, ...],
    labels: Sequence[str],
) -> Panel:  # fmt: skip
    layers = sorted({int(value) for value in rows["layer"]})
    place = {name: number for number, name in enumerate(keys)}
    column = [layers.index(int(value)) for value in rows["layer"]]
    metrics = by_metric(rows, [place[name] for name in row_of], column, (len(keys), len(layers)))
    return Panel(
        key=key,
        kind="profile",
        title=title,
        direction="denoise",
        row_title="Line",
        column_title="Layer",
        rows=tuple(labels),
        columns=tuple(str(layer) for layer in layers),
        metrics={name: replace(values, detected=np.where(values.cut, False, values.detected))
                 for name, values in metrics.items()},
        note=star_note(labels),
        sweeps=sweeps,
    )  # fmt: skip
