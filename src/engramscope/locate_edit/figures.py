"""The figures: every fact in its layer, success beside tracing by layer, and the ways to choose a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engramscope.edit.names import editor_words
from engramscope.locate_edit.words import OUTCOMES, SHORT, WAYS, primary
from engramscope.report.words import MINUS

_COLOURS = ("#2166ac", "#b8762a", "#2c6e49", "#7b4a9e", "#a4262c", "#5d594f")
_LINE = "#a4262c"
#: layers that a row of scatter plots shows at most
_MOST_LAYERS = 8


def scatter_figure(predictor: np.ndarray, outcome: np.ndarray, layers: Sequence[int], row: Mapping[str, Any]) -> Figure:
    """A panel for each layer: fraction restored against success, a point for each fact, and the layer's own line.

    Args:
        predictor: `[n_facts, n_layers]`; NaN is not shown.
        outcome: `[n_facts, n_layers]`.
        layers: numbers of the columns.
        row: the analysis, for the rank correlations in the titles.
    """
    shown = _spread(len(layers))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(7.2, 0.5 + 1.75 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    correlations = row["within"][1]["r"] if row["status"] == "ok" else [None] * len(layers)
    for axes, at in zip(grid.flat, shown, strict=False):
        x, y = predictor[:, at], outcome[:, at]
        known = np.isfinite(x) & np.isfinite(y)
        axes.scatter(x[known], y[known], s=11, color=_COLOURS[0], alpha=0.55, linewidths=0)
        if known.sum() > 2 and np.ptp(x[known]) > 1e-9:
            slope, level = np.polyfit(x[known], y[known], 1)
            ends = np.array([x[known].min(), x[known].max()])
            axes.plot(ends, level + slope * ends, color=_LINE, linewidth=1.2)
        r = correlations[at]
        said = "" if r is None else f", rank r {r:.2f}".replace("-", MINUS)
        axes.set_title(f"layer {layers[at]}{said}", fontsize=8)
        axes.set_ylim(-0.05, 1.05)
        _plain(axes)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("Fraction restored by tracing", fontsize=9)
    figure.supylabel("Success of the edit", fontsize=9)
    return figure


def curves_figure(found: Mapping[str, Any]) -> Figure:
    """Success of each editor by layer, and beside it what tracing restores by layer, both with intervals."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    edited = [one for one in found["curves"] if one["what"] == "outcome" and one["outcome"] == "rewrite"]
    for number, one in enumerate(edited):
        _band(left, one, _COLOURS[number % len(_COLOURS)], editor_words(one["editor"]))
    first = next(one for one in found["curves"] if one["what"] == "tracing")
    traced = [
        one
        for one in found["curves"]
        if one["what"] == "tracing" and all(one[key] == first[key] for key in ("site", "window", "tokens"))
    ]
    for number, one in enumerate(traced):
        label = f"{SHORT[one['corruption']]}, {SHORT[one['metric']]}"
        _band(right, one, _COLOURS[number % len(_COLOURS)], label)
    left.set_ylabel("Success of the rewrite", fontsize=9)
    right.set_ylabel("Fraction restored", fontsize=9)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("Layer", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def controls_figure(found: Mapping[str, Any]) -> Figure:
    """Bars: success by each way to choose the layer, for each editor and outcome, with intervals."""
    editors = found["settings"]["methods"]
    figure = Figure(figsize=(7.2, 0.5 + 2.3 * len(editors)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(editors), 1, sharex=True, squeeze=False)
    for axes, editor in zip(grid[:, 0], editors, strict=True):
        for number, way in enumerate(WAYS):
            for at, outcome in enumerate(OUTCOMES):
                row = primary(found, editor, outcome)
                if row["status"] == "ok":
                    _bar(axes, at + 0.2 * (number - 1.5), row["choice"]["success"][way], _COLOURS[number],
                         WAYS[way] if at == 0 else None)  # fmt: skip
        axes.set_xticks(range(len(OUTCOMES)), list(OUTCOMES.values()))
        axes.set_ylim(0, 1.05)
        axes.set_ylabel(f"{editor_words(editor)}: mean score", fontsize=9)
        _plain(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _bar(axes: Axes, x: float, estimate: Mapping[str, Any], colour: str, label: str | None) -> None:
    value = estimate["value"]
    axes.bar(x, value, width=0.18, color=colour, label=label)
    if estimate["low"] is not None and estimate["high"] is not None:
        arms = [[max(0.0, value - estimate["low"])], [max(0.0, estimate["high"] - value)]]
        axes.errorbar(x, value, yerr=arms, color="#1d1c1a", linewidth=0.9, capsize=2)


def _band(axes: Axes, one: Mapping[str, Any], colour: str, label: str) -> None:
    if not one["mean"]:
        return
    layers, mean, low, high = (
        np.array([np.nan if value is None else value for value in one[key]], dtype=float)
        for key in ("layers", "mean", "low", "high")
    )
    order = np.argsort(layers)
    axes.fill_between(layers[order], low[order], high[order], color=colour, alpha=0.16, linewidth=0)
    axes.plot(layers[order], mean[order], color=colour, linewidth=1.5, marker="o", markersize=3.5, label=label)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _spread(count: int) -> list[int]:
    """At most so many columns, evenly from the first to the last."""
    if count <= _MOST_LAYERS:
        return list(range(count))
    return sorted({round(at * (count - 1) / (_MOST_LAYERS - 1)) for at in range(_MOST_LAYERS)})
