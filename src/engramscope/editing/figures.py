"""The figures of the studies of editors: bars with intervals, generalisation against specificity, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

_INK, _SOFT, _RULE = "#1d1c1a", "#5d594f", "#e0dcd2"
_BAR, _PUBLISHED = "#2166ac", "#b2182b"
_COLOURS = {"unedited": "#a5a096", "control": "#b8762a"}
_LINES = ("#2166ac", "#b2182b", "#4d7f3a", "#8a5a9c", "#b8762a", "#3b8686", "#1d1c1a", "#c06c9c", "#7f7f2a")
_STYLES = ("-", "--", ":")
#: edits beyond which their axis is logarithmic, and a span of values beyond which theirs is
_MANY, _DECADE = 20, 10
#: where the names stand beside a plane, and how far apart, in its units
_NAMES, _LINE = 108.0, 4.4


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


def bars(found: Sequence[Bar]) -> Figure:
    """Horizontal bars of one measure with their intervals, the first one on top."""
    figure, axes = _figure(4.2, 0.6 + 0.25 * len(found))
    axes.spines["left"].set_visible(False)
    y = np.arange(len(found))
    values = np.array([bar.value for bar in found], dtype=float)
    axes.barh(y, np.nan_to_num(values), height=0.62, color=[_COLOURS.get(bar.kind, _BAR) for bar in found], alpha=0.82)
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
    return figure


def plane(points: Sequence[Point], x_label: str, y_label: str, best: str) -> Figure:
    """Editors in a plane of two measures, with the intervals of both; curves of equal harmonic mean behind them.

    Args:
        points: the editors.
        x_label, y_label: the measures, both in percent.
        best: words for the corner where both are 100.
    """
    figure, axes = _figure(6.6, 5.2)
    x = np.linspace(1, 100, 300)
    for mean in (20, 40, 60, 80):
        with np.errstate(divide="ignore", invalid="ignore"):
            y = mean * x / (2 * x - mean)
        seen = (x > mean / 2) & (y >= 0) & (y <= 100)
        axes.plot(x[seen], y[seen], color=_RULE, linewidth=0.9, zorder=0)
    for point in points:
        colour = _COLOURS.get(point.kind, _BAR)
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
    axes.set_title(f"{best} ↗", loc="right", fontsize=7.5, color=_SOFT)
    return figure


def curves(found: Sequence[Curve], x_label: str, *, percent: bool = True) -> Figure:
    """Lines of one measure against the number of edits, with bands where there are intervals.

    Many edits are on a logarithmic scale; 0 stands left of it.

    Args:
        found: one curve for each editor; its place decides on its look (`look_of`).
        x_label: what the number counts.
        percent: the measure goes from 0 to 100; else values that span more than a decade are on a logarithmic scale.
    """
    figure, axes = _figure(5.4, 2.9)
    for number, curve in enumerate(found):
        colour, style = look_of(number)
        if len(curve.low):
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(curve.x, curve.y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3.2)
    axes.set_xlabel(x_label, fontsize=8.5, color=_SOFT)
    _edits_axis(axes, found)
    if percent:
        axes.set_ylim(-3, 103)
    else:
        _free_axis(axes, found)
    return figure


def look_of(number: int) -> tuple[str, str]:
    """Colour and line style of the curve at a place."""
    return _LINES[number % len(_LINES)], _STYLES[number // len(_LINES) % len(_STYLES)]


def _edits_axis(axes: Axes, found: Sequence[Curve]) -> None:
    at = sorted({x for curve in found for x in curve.x})
    if at and at[-1] > _MANY:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xticks(at, labels=[f"{x:g}" for x in at])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _free_axis(axes: Axes, found: Sequence[Curve]) -> None:
    values = np.array([y for curve in found for y in curve.y], dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > _DECADE * positive.min() and positive.size == np.isfinite(values).sum():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0 if values.size and np.nanmin(values) == 0 else None)


def _labels(axes: Axes, points: Sequence[Point]) -> None:
    """Names in a column right of the plane, in the order of their points, each with a line to its own."""
    shown = sorted((point for point in points if np.isfinite([point.x, point.y]).all()), key=lambda one: -one.y)
    for point, height in zip(shown, _apart([point.y for point in shown]), strict=True):
        axes.plot([point.x, _NAMES], [point.y, height], color=_SOFT, linewidth=0.5, alpha=0.6, zorder=1, clip_on=False)
        axes.annotate(point.label, (_NAMES, height), va="center", fontsize=8.5, color=_INK, xytext=(3, 0),
                      textcoords="offset points", parse_math=False, annotation_clip=False)  # fmt: skip


def _apart(heights: Sequence[float]) -> list[float]:
    """Falling heights in [0, 100], moved as far as names need that stand one below the other."""
    found: list[float] = []
    for height in heights:
        found.append(min(height, found[-1] - _LINE) if found else height)
    # what fell out at the bottom pushes the others up
    floor = 0.0
    for place in range(len(found) - 1, -1, -1):
        found[place] = max(found[place], floor)
        floor = found[place] + _LINE
    return found


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8, length=3, width=0.6)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(_SOFT)
    return figure, axes


def is_number(value: Any) -> bool:
    """Whether a value of a table can be drawn."""
    return value is not None and bool(np.isfinite(value))
