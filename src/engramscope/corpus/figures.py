"""The figures of a corpus as SVG: mentions of terms, keywords, years."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from engramscope.corpus.keywords import Analysis
from engramscope.results.atomic import atomic_file
from engramscope.results.numbers import whole

FOLDER = "figures"
_BLUE, _LIGHT, _INK, _SOFT = "#2166ac", "#a9c6e2", "#1d1c1a", "#5d594f"
#: keywords that are drawn; the table has more
_SHOWN = 20
#: years that are named on the axis, about
_TICKS = 8
#: text of a corpus is text: a "$" in it begins no formula
_STYLE: dict[Any, Any] = {"svg.hashsalt": "engramscope", "text.parse_math": False}


def write_figures(folder: Path, analysis: Analysis) -> dict[str, Path]:
    """Write `figures/terms.svg`, `figures/keywords.svg` and `figures/years.svg`, as far as there is something to draw.

    Returns:
        The files by their names without ending.

    Raises:
        ResultsError: the disk refuses.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    written: dict[str, Path] = {}
    for name, make in MAKERS.items():
        path = folder / FOLDER / f"{name}.svg"
        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            # a keyword may hold letters that the font lacks; the box that is drawn instead says so itself
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure = make(analysis)
            if figure is None:
                continue
            with atomic_file(path) as handle:
                figure.savefig(handle, format="svg", metadata={"Date": None}, facecolor="white")
        written[name] = path
    return written


def _terms(analysis: Analysis) -> Figure | None:
    if not analysis.terms:
        return None
    figure, axes = _axes(6.4, 1.1 + 0.55 * len(analysis.terms))
    places = range(len(analysis.terms))
    axes.barh([p - 0.2 for p in places], [t.mentions for t in analysis.terms], 0.38, color=_BLUE, label="mentions")
    axes.barh([p + 0.2 for p in places], [t.documents for t in analysis.terms], 0.38, color=_LIGHT, label="abstracts")
    _name_bars(axes, [term.term for term in analysis.terms])
    for place, term in zip(places, analysis.terms, strict=True):
        for shift, number in ((-0.2, term.mentions), (0.2, term.documents)):
            axes.annotate(whole(number), (number, place + shift), (3, 0), textcoords="offset points", va="center",
                          fontsize=8, color=_SOFT)  # fmt: skip
    axes.margins(x=0.12)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def _keywords(analysis: Analysis) -> Figure | None:
    entries = analysis.frequent.entries[:_SHOWN]
    if not entries:
        return None
    figure, axes = _axes(6.4, 0.9 + 0.24 * len(entries))
    axes.barh(range(len(entries)), [documents for _, _, documents in entries], 0.7, color=_BLUE)
    _name_bars(axes, [name for name, _, _ in entries])
    axes.set_xlabel("abstracts", color=_SOFT, fontsize=9)
    return figure


def _years(analysis: Analysis) -> Figure | None:
    if not analysis.years:
        return None
    figure, axes = _axes(6.4, 2.6)
    axes.bar([year for year, _ in analysis.years], [rows for _, rows in analysis.years], 0.85, color=_BLUE)
    if len(analysis.years) > _TICKS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=_TICKS))
    else:
        axes.set_xticks([year for year, _ in analysis.years])
        axes.set_xlim(analysis.years[0][0] - 2, analysis.years[-1][0] + 2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_ylabel("abstracts", color=_SOFT, fontsize=9)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: whole(round(x))))
    axes.tick_params(colors=_INK, labelsize=9)
    return figure, axes


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) < 40 else f"{name[:38]}…" for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


MAKERS = {"terms": _terms, "keywords": _keywords, "years": _years}
