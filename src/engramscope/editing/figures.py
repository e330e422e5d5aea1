"""The figures of the studies of editors: bars with intervals, generalisation against specificity, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_INK, _SOFT, _RULE = "#1d1c1a", "#5d594f", "#e0dcd2"
_BAR, _BASE, _CONTROL, _PUBLISHED = "#2166ac", "#a5a096", "#b8762a", "#b2182b"
LINES = ("#2166ac", "#b2182b", "#4d7f3a", "#8a5a9c", "#b8762a", "#3b8686", "#1d1c1a", "#c06c9c", "#7f7f2a")
_STYLES = ("-", "--", ":")


@dataclass(frozen=True, slots=True)
class Bar:
    """One editor's value of one measure.

    Attributes:
        label: the editor.
        value: the estimate; NaN where there is none.
        low, high: its interval; NaN where there is none.
        kind: "editor", "unedited" or "control".
        published: the value of the paper, where the model is one of its.
    """

    label: str
    value: float
    low: float
    high: float
    kind: str = "editor"
    published: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One editor in a plane of two measures, each with its interval (low, high)."""

    label: str
    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    kind: str = "editor"


@dataclass(frozen=True, slots=True)
class Curve:
    """One editor's values of one measure against the number of edits."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def bars(panels: Mapping[str, Sequence[Bar]], columns: int = 3) -> Figure:
    """Horizontal bars with intervals, one panel for each measure; the same editors in each.

    Args:
        panels: title of a measure -> bars, the first one on top.
        columns: panels side by side.
    """
    rows = -(-len(panels) // columns)
    most = max((len(found) for found in panels.values()), default=1)
    figure = Figure(figsize=(3.35 * columns, rows * (0.75 + 0.23 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        axes.set_visible(index < len(panels))
    for axes, (title, found) in zip(grid.flat, panels.items(), strict=False):
        _bars(axes, title, found)
    return figure


def plane(points: Sequence[Point], x_label: str, y_label: str, best: str) -> Figure:
    """Editors in a plane of two measures, with the intervals of both; curves of equal harmonic mean behind them.

    Args:
        points: the editors.
        x_label, y_label: the measures, both in percent.
        best: words for the corner where both are 100.
    """
    figure = Figure(figsize=(6.6, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plain(axes)
    x = np.linspace(1, 100, 300)
    for mean in (20, 40, 60, 80):
        with np.errstate(divide="ignore", invalid="ignore"):
            y = mean * x / (2 * x - mean)
        seen = (x > mean / 2) & (y >= 0) & (y <= 100)
        axes.plot(x[seen], y[seen], color=_RULE, linewidth=0.9, zorder=0)
    for number, point in enumerate(points):
        colour = _colour(point.kind, number)
        for end, horizontal in ((point.x_interval, True), (point.y_interval, False)):
            if np.isfinite(end).all():
                line = ([*end], [point.y, point.y]) if horizontal else ([point.x, point.x], [*end])
                axes.plot(*line, color=colour, linewidth=1.1, alpha=0.7)
        axes.scatter([point.x], [point.y], s=46, color=colour, zorder=3, edgecolors="white", linewidths=0.8)
    _labels(axes, points)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(x_label, fontsize=9, color=_SOFT)
    axes.set_ylabel(y_label, fontsize=9, color=_SOFT)
    axes.annotate(best, (100, 100), ha="right", va="top", fontsize=7.5, color=_SOFT, xytext=(0, -3),
                  textcoords="offset points")  # fmt: skip
    return figure


def curves(panels: Mapping[str, Sequence[Curve]], x_label: str, log: Sequence[str] = ()) -> Figure:
    """Lines against the number of edits, one panel for each measure, with bands where there are intervals.

    Args:
        panels: title of a measure -> one curve for each editor, the same editors in each.
        x_label: what the number counts.
        log: titles of panels with a logarithmic scale.
    """
    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9.6, 2.9 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        axes.set_visible(index < len(panels))
    for axes, (title, found) in zip(grid.flat, panels.items(), strict=False):
        _plain(axes)
        for number, curve in enumerate(found):
            colour, style = LINES[number % len(LINES)], _STYLES[number // len(LINES) % len(_STYLES)]
            if len(curve.low):
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(curve.x, curve.y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3.2,
                      label=curve.label)  # fmt: skip
        axes.set_title(title, fontsize=9.5, color=_INK, loc="left", parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x_label, fontsize=8.5, color=_SOFT)
        if title in log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(-3, 103)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=min(6, max(1, len(labels))), frameon=False,
                           fontsize=8.5)  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _bars(axes: Axes, title: str, found: Sequence[Bar]) -> None:
    _plain(axes)
    axes.spines["left"].set_visible(False)
    y = np.arange(len(found))
    values = np.array([bar.value for bar in found], dtype=float)
    colours = [_colour(bar.kind, 0) for bar in found]
    axes.barh(y, np.nan_to_num(values), height=0.62, color=colours, alpha=0.82)
    axes.axvline(0, color=_SOFT, linewidth=0.7)
    for place, bar in zip(y, found, strict=True):
        if np.isfinite([bar.low, bar.high]).all():
            axes.plot([bar.low, bar.high], [place, place], color=_INK, linewidth=1.2)
        if bar.published is not None:
            axes.plot([bar.published], [place], marker="D", markersize=4.5, markerfacecolor="white",
                      markeredgecolor=_PUBLISHED, linewidth=0, gid="published")  # fmt: skip
        if not np.isfinite(bar.value):
            axes.annotate("none", (0, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5,
                          color=_SOFT)  # fmt: skip
    axes.set_yticks(y, labels=[bar.label for bar in found])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, fontsize=9.5, color=_INK, loc="left", parse_math=False)


def _labels(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside points; where points lie close together the names go one below the other."""
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: -one.y):
        left = point.x > 82
        y = point.y
        while any(abs(y - other_y) < 4 and abs(point.x - other_x) < 22 for other_x, other_y in taken):
            y -= 4
        taken.append((point.x, y))
        axes.annotate(point.label, (point.x, y), ha="right" if left else "left", va="center", fontsize=8.5, color=_INK,
                      xytext=(-9 if left else 9, 7), textcoords="offset points", parse_math=False)  # fmt: skip


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8, length=3, width=0.6)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(_SOFT)


def _colour(kind: str, number: int) -> str:
    del number
    return {"unedited": _BASE, "control": _CONTROL}.get(kind, _BAR)


def is_number(value: Any) -> bool:
    """Whether a value of a table can be drawn."""
    return value is not None and bool(np.isfinite(value))
