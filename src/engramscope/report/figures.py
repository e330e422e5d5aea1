"""The figures of the report as SVG and PNG, for papers and slides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from engramscope.errors import ResultsError
from engramscope.report.load import Study
from engramscope.report.panels import Panel, Values, slug
from engramscope.report.words import METRIC_UNITS, STAR, metric_words, shortened
from engramscope.results.atomic import atomic_file, disk_sentence

_LINES = ("#2166ac", "#b2182b", "#4d7f3a", "#8a5a9c", "#b8762a", "#3b8686")
_INK, _SOFT, _CUT, _HATCH = "#1d1c1a", "#5d594f", "#e4e1da", "#a5a096"


def write_figures(study: Study, found: Sequence[Panel]) -> list[Path]:
    """Every panel and metric as `figures/<sweep>-<direction>-<metric>.svg` and `.png`.

    The names depend on the study only, so that a paper can point at them.

    Returns:
        The files, in the order of the report.

    Raises:
        ResultsError: the disk refuses.
    """
    folder = study.path / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    out: list[Path] = []
    for panel in found:
        for metric, values in panel.metrics.items():
            figure = draw(panel, values, metric)
            _lay_out(figure)
            for ending in ("svg", "png"):
                target = folder / f"{panel.key}-{slug(metric)}.{ending}"
                _save(figure, target, ending)
                out.append(target)
    return out


def draw(panel: Panel, values: Values, metric: str) -> Figure:
    """One panel in one metric as a matplotlib figure (no pyplot, no global state)."""
    maker = {"heatmap": _heatmap, "profile": _profile, "places": _places}[panel.kind]
    return maker(panel, values, metric)


def _lay_out(figure: Figure) -> None:
    # once, and not again for every format: the layout costs more than the drawing
    engine = figure.get_layout_engine()
    if engine is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            engine.execute(figure)
        figure.set_layout_engine("none")


def _save(figure: Figure, target: Path, ending: str) -> None:
    # the salt makes the ids in an SVG, and with them the file, the same on every run
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "engramscope"}), atomic_file(target) as handle:
        # a prompt may hold letters that the font lacks; the box that is drawn instead says so itself
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        metadata = {"Date": None} if ending == "svg" else {}
        figure.savefig(handle, format=ending, dpi=200, metadata=metadata, facecolor="white")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(colors=_INK, labelsize=8, length=3, width=0.6)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(_SOFT)
    return figure, axes


def _title(axes: Axes, panel: Panel, metric: str) -> None:
    text = f"{shortened(panel.title, 40)}, {metric_words(metric)} ({panel.direction})"
    axes.set_title(text, fontsize=9.5, color=_INK, loc="left", parse_math=False)


def _unit(values: Values, metric: str) -> tuple[float, str]:
    percent = values.quantity in {"recovery", "loss"}
    unit = "%" if percent else METRIC_UNITS.get(metric, "")
    return (100.0 if percent else 1.0), values.quantity.capitalize() + (f" ({unit})" if unit else "")


def _label_axis(axis: Axis, labels: Sequence[str], most: int) -> None:
    step = max(1, -(-len(labels) // most))
    at = list(range(0, len(labels), step))
    axis.set_ticks(at, labels=[shortened(labels[i], 34) for i in at])
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def _name_columns(axes: Axes, panel: Panel) -> None:
    # a figure also stands without its caption
    star = "     (* token of the subject)" if STAR in panel.note else ""
    axes.set_xlabel(panel.column_title + star, fontsize=9, color=_SOFT)


def _heatmap(panel: Panel, values: Values, metric: str) -> Figure:
    rows, columns = values.shown.shape
    width = min(12.0, max(4.0, 1.6 + 0.28 * columns + 0.06 * max(map(len, panel.rows))))
    figure, axes = _figure(width, min(14.0, max(1.7, 0.9 + 0.22 * rows)))
    factor, label = _unit(values, metric)
    limit = values.limit * factor
    drawn = np.ma.masked_invalid(np.where(values.cut, np.nan, values.shown * factor))
    image = axes.imshow(drawn, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    for i, j in np.argwhere(values.cut):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_CUT, edgecolor=_HATCH, hatch="////", linewidth=0))
    marks = np.argwhere(values.detected & ~values.cut)
    if len(marks):
        strong = np.abs(drawn[marks[:, 0], marks[:, 1]].filled(0.0)) > 0.55 * limit
        axes.scatter(marks[:, 1], marks[:, 0], s=5, c=np.where(strong, "white", _INK), linewidths=0)
    if rows * columns <= 1500:
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.8)
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8)
    axes.spines[:].set_visible(False)
    _label_axis(axes.xaxis, panel.columns, 24)
    _label_axis(axes.yaxis, panel.rows, 60)
    _name_columns(axes, panel)
    axes.set_ylabel(panel.row_title if panel.row_title == "Head" else "", fontsize=9, color=_SOFT)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=18)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, length=2, width=0.6)
    bar.set_label(label, fontsize=8, color=_SOFT)
    _title(axes, panel, metric)
    return figure


def _profile(panel: Panel, values: Values, metric: str) -> Figure:
    rows, columns = values.shown.shape
    figure, axes = _figure(min(12.0, max(6.4, 3.6 + 0.3 * columns)), 3.0)
    factor, label = _unit(values, metric)
    x = np.arange(columns)
    axes.axhline(0.0, color=_SOFT, linewidth=0.7)
    for i in range(rows):
        colour = _LINES[i % len(_LINES)]
        open_ = ~values.cut[i]
        y, low, high = (np.where(open_, m[i] * factor, np.nan) for m in (values.shown, values.low, values.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        (line,) = axes.plot(x, y, color=colour, linewidth=1.5)
        line.set_label(shortened(panel.rows[i], 50))
        axes.scatter(
            x, y, s=22, c=np.where(values.detected[i], colour, "white"), edgecolors=colour, linewidths=1.1, zorder=3
        )
        cut = x[values.cut[i]]
        axes.scatter(cut, values.shown[i][values.cut[i]] * factor, marker="x", s=26, color=_HATCH, zorder=3)
    axes.spines[["top", "right"]].set_visible(False)
    _label_axis(axes.xaxis, panel.columns, 24)
    _name_columns(axes, panel)
    axes.set_ylabel(label, fontsize=9, color=_SOFT)
    legend = axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for text in legend.get_texts():
        text.set_parse_math(False)
    _title(axes, panel, metric)
    return figure


def _places(panel: Panel, values: Values, metric: str) -> Figure:
    rows = len(panel.rows)
    figure, axes = _figure(6.4, max(1.5, 0.9 + 0.3 * rows))
    factor, label = _unit(values, metric)
    shown, low, high = (m[:, 0] * factor for m in (values.shown, values.low, values.high))
    y, cut = np.arange(rows), values.cut[:, 0]
    axes.axvline(0.0, color=_SOFT, linewidth=0.7)
    axes.hlines(y[~cut], low[~cut], high[~cut], color=_LINES[0], linewidth=1.4)
    fill = np.where(values.detected[:, 0][~cut], _LINES[0], "white")
    axes.scatter(shown[~cut], y[~cut], s=34, c=fill, edgecolors=_LINES[0], linewidths=1.2, zorder=3)
    axes.scatter(shown[cut], y[cut], marker="x", s=34, color=_HATCH, zorder=3)
    for i in np.flatnonzero(cut & np.isfinite(shown)):
        axes.annotate("by construction", (shown[i], y[i]), xytext=(-7, 0), textcoords="offset points", ha="right",
                      va="center", fontsize=7.5, color=_SOFT)  # fmt: skip
    axes.set_ylim(rows - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _label_axis(axes.yaxis, panel.rows, 200)
    axes.set_xlabel(label, fontsize=9, color=_SOFT)
    _title(axes, panel, metric)
    return figure
