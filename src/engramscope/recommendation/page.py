"""The page of a recommendation: the sentences, the two profiles in one figure, and every layer in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engramscope.recommendation.words import NOT_EDITABILITY, sentences
from engramscope.report.small_page import embedded_figure, render_page
from engramscope.results.atomic import write_text

_COLOURS = {"main": "#2166ac", "noise": "#b8762a"}
_LABELS = {"main": "other tokens", "noise": "Gaussian noise"}


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write `recommendation.html`.

    Raises:
        ResultsError: the disk refuses.
    """
    said = [sentence for sentence in sentences(found) if sentence != NOT_EDITABILITY]
    text = render_page(
        "engramscope.recommendation",
        "recommendation.html.j2",
        found=found,
        sentences=said,
        caution=NOT_EDITABILITY,
        figure=embedded_figure(profile_figure(found)),
    )
    path = folder / "recommendation.html"
    write_text(path, text)
    return path


def profile_figure(found: Mapping[str, Any]) -> Figure:
    """Mean effect by layer under both corruptions, with intervals; the recommended layers are shaded."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0.0, color="#5d594f", linewidth=0.7)
    if found["main"]["supported"]:
        for layer in found["main"]["recommended"]:
            axes.axvspan(layer - 0.5, layer + 0.5, color="#eaf2f9", linewidth=0)
    for name, colour in _COLOURS.items():
        one = found[name]
        layers = np.array(one["layers"])
        shown, low, high = (
            np.array([np.nan if value is None else value for value in one[key]], dtype=float)
            for key in ("effect", "low", "high")
        )
        axes.fill_between(layers, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(layers, shown, color=colour, linewidth=1.5, label=_LABELS[name])
        face = [colour if detected else "white" for detected in one["detected"]]
        axes.scatter(layers, shown, s=22, c=face, edgecolors=colour, linewidths=1.1, zorder=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("Layer", fontsize=9)
    axes.set_ylabel("Effect (logits)", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    return figure
