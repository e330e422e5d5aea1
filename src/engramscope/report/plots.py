"""Panels as the data that the page's script draws: numbers, and labels that plotly cannot take for markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engramscope.report.escape import plotly_text
from engramscope.report.panels import Panel, Values
from engramscope.report.words import METRIC_UNITS, metric_words, shortened


def figure_data(found: Sequence[Panel]) -> dict[str, Any]:
    """What the script draws: element id -> panel, as JSON values. All text in it is escaped for plotly."""
    return {panel.key: _panel(panel) for panel in found}


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "kind": panel.kind,
        "title": plotly_text(panel.title),
        "rowTitle": plotly_text(panel.row_title),
        "columnTitle": plotly_text(panel.column_title),
        "rows": [plotly_text(label) for label in panel.rows],
        "shortRows": [plotly_text(shortened(label, 15)) for label in panel.rows],
        "columns": [plotly_text(label) for label in panel.columns],
        "metrics": {metric: _values(values, metric) for metric, values in panel.metrics.items()},
    }


def _values(values: Values, metric: str) -> dict[str, Any]:
    percent = values.quantity in {"recovery", "loss"}
    return {
        "quantity": plotly_text(values.quantity),
        "metric": plotly_text(metric_words(metric)),
        "unit": "%" if percent else plotly_text(METRIC_UNITS.get(metric, "")),
        "scale": 100 if percent else 1,
        "limit": _rounded(values.limit),
        "shown": _matrix(values.shown),
        "low": _matrix(values.low),
        "high": _matrix(values.high),
        "p": _matrix(values.p),
        "n": _matrix(values.n),
        "cut": values.cut.astype(int).tolist(),
        "detected": values.detected.astype(int).tolist(),
    }


def _matrix(matrix: np.ndarray) -> list[list[float | None]]:
    return [[_rounded(value) for value in row] for row in matrix.tolist()]


def _rounded(value: float) -> float | None:
    # four significant digits: what a figure can show; the full numbers are in summary.csv
    return float(f"{value:.4g}") if np.isfinite(value) else None
