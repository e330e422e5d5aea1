"""The page: the answer, the figures, and every number in tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engramscope.edit.names import editor_words
from engramscope.locate_edit.analysis import Predictor, Tables
from engramscope.locate_edit.figures import controls_figure, curves_figure, scatter_figure
from engramscope.locate_edit.words import (
    CORRUPTIONS,
    METRICS,
    OUTCOMES,
    SHORT,
    TOKENS,
    WAYS,
    brief_site,
    cautions,
    points,
    primary,
    sentences,
    site_words,
    verdict,
)
from engramscope.report.small_page import embedded_figure, render_page
from engramscope.report.words import joined
from engramscope.results.atomic import write_text


def write_page(folder: Path, tables: Tables, found: Mapping[str, Any]) -> Path:
    """Write `locate_edit.html`.

    Raises:
        ResultsError: the disk refuses.
    """
    first = [primary(found, editor) for editor in found["settings"]["methods"]]
    warned = cautions(found)
    text = render_page(
        "engramscope.locate_edit",
        "locate_edit.html.j2",
        found=found,
        lead=[sentence for sentence in sentences(found) if sentence not in warned],
        cautions=warned,
        scatters=[_scatter(tables, row) for row in first],
        curves=embedded_figure(curves_figure(found)),
        controls=embedded_figure(controls_figure(found)),
        analyses=[row for row in found["analyses"] if row["status"] == "ok"],
        missing=[row for row in found["analyses"] if row["status"] != "ok"],
        within=[row for row in first if row["status"] == "ok"],
        words={
            "corruption": CORRUPTIONS,
            "metric": METRICS,
            "tokens": TOKENS,
            "outcome": OUTCOMES,
            "way": WAYS,
            "short": SHORT,
        },
        methods=joined([editor_words(editor) for editor in found["settings"]["methods"]], 20),
        editor_words=editor_words,
        site=site_words,
        brief_site=brief_site,
        points=points,
        verdict=verdict,
    )
    path = folder / "locate_edit.html"
    write_text(path, text)
    return path


def _scatter(tables: Tables, row: Mapping[str, Any]) -> dict[str, Any]:
    predictor = Predictor(row["site"], row["window"], row["corruption"], row["metric"], row["tokens"])
    x = predictor.of(tables.tracing, tables.facts, tables.layers)
    y = tables.outcome(row["editor"], row["outcome"])
    return {"editor": row["editor"], "row": row, "source": embedded_figure(scatter_figure(x, y, tables.layers, row))}
