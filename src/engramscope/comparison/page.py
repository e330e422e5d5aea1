"""The side-by-side page of two results folders, made from nothing but what stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engramscope.comparison.cells import compare_cells
from engramscope.report.figures import draw
from engramscope.report.load import Study, load, section
from engramscope.report.panels import Panel, Values, panels
from engramscope.report.sentences import answer, model_name, question
from engramscope.report.small_page import embedded_figure, render_page
from engramscope.report.tracing import tracing_panels
from engramscope.report.words import amount, bare_p, cell_name, metric_words, number, percent
from engramscope.results.atomic import write_text
from engramscope.results.findings import finite
from engramscope.results.store import differences

#: pairs of figures that are shown; more are in the studies' own reports
_FIGURES = 24


@dataclass(frozen=True)
class Comparison:
    """Two studies side by side.

    Attributes:
        page: the page that was written.
        rows: `comparison.cells.compare_cells`: agreement by sweep, direction and metric.
        differs: what differs between the two study files.
    """

    page: Path
    rows: tuple[Mapping[str, Any], ...]
    differs: tuple[str, ...]

    def sentences(self) -> list[str]:
        """How far the two agree, in the first metric."""
        if not self.rows:
            return ["The two studies have no sweep in common."]
        metric = self.rows[0]["metric"]
        return [_sentence(row) for row in self.rows if row["metric"] == metric]


def compare_studies(one: Path | str, other: Path | str, out: Path | str) -> Comparison:
    """Write a page that shows two finished studies side by side.

    Sweeps are matched by name. Heat maps of one sweep share their colour scale. Cells are compared where both studies
    have them: two models of other sizes have few in common, and the page says how many.

    Args:
        one, other: results folders.
        out: the page to write.

    Raises:
        ResultsError: a folder is not ours, not finished or damaged; the page cannot be written.
    """
    studies = (load(Path(one)), load(Path(other)))
    rows = tuple(finite(compare_cells(studies[0].summary, studies[1].summary)))
    declared = [
        {key: value for key, value in section(study.manifest, "study").items() if key not in ("name", "run")}
        for study in studies
    ]
    differs = tuple(differences(declared[0], declared[1]))
    path = Path(out)
    text = render_page(
        "engramscope.comparison",
        "comparison.html.j2",
        titles=_titles(studies),
        sides=[_side(study) for study in studies],
        differs=differs,
        rows=[_row(row) for row in rows],
        figures=_figures(studies),
    )
    write_text(path, text)
    return Comparison(path, rows, differs)


def _titles(studies: Sequence[Study]) -> list[str]:
    """Names that tell the two apart: by study, or where these are equal by model, or by folder."""
    for name in (lambda study: str(section(study.manifest, "study").get("name")), model_name):
        names = [name(study) for study in studies]
        if names[0] != names[1]:
            return names
    return [study.path.name for study in studies]


def _side(study: Study) -> dict[str, Any]:
    said = answer(study)
    return {
        "model": model_name(study),
        "question": question(study),
        "warning": said.warning,
        "lead": " ".join(said.lead),
        "folder": study.path.name,
        "confidence": percent(study.confidence),
    }


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    widest = row["widest"]
    apart = ""
    if widest:
        direction, shown = str(widest["direction"]), str(widest["shown"])
        kind = "effect" if shown == "effect" else str(widest["estimate_kind"])
        values = [amount(widest[key], kind, str(row["metric"]), direction) for key in (shown, f"{shown}_other")]
        apart = f"{cell_name(widest)}: {values[0]} against {values[1]}"
    shared = f"{row['common']}" if row["common"] == row["either"] else f"{row['common']} of {row['either']}"
    return {
        "sweep": str(row["sweep"]), "direction": str(row["direction"]), "metric": metric_words(str(row["metric"])),
        "cells": shared, "correlation": number(row["correlation"]), "jaccard": percent(row["jaccard"]),
        "chance": percent(row["chance"]), "p": "–" if row["p"] is None else bare_p(row["p"]), "widest": apart,
    }  # fmt: skip


def _sentence(row: Mapping[str, Any]) -> str:
    if not row["common"]:
        return f"Sweep {row['sweep']} ({row['direction']}): no cell in common."
    where = f"Sweep {row['sweep']} ({row['direction']}, {metric_words(str(row['metric']))})"
    agreed = (
        "neither detects anything"
        if row["jaccard"] is None
        else f"detections agree to {percent(row['jaccard'])} (Jaccard; chance {percent(row['chance'])})"
    )
    return f"{where}: rank correlation of the estimates {number(row['correlation'])}; {agreed}."


def _figures(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Panels of the same name in pairs, on one scale; a panel that only one study has stands alone."""
    by_key = [{panel.key: panel for panel in (*tracing_panels(study), *panels(study))} for study in studies]
    made = []
    for key in dict.fromkeys((*by_key[0], *by_key[1])):
        found = [panels_of.get(key) for panels_of in by_key]
        metrics = [name for panel in found if panel for name in panel.metrics]
        for metric in dict.fromkeys(metrics[:1]):
            limit = _limit(found, metric)
            drawn = [_drawn(panel, metric, limit) for panel in found]
            title = next(panel.title for panel in found if panel)
            made.append({"title": title, "metric": metric_words(metric), "first": drawn[0], "second": drawn[1]})
    return made[:_FIGURES]


def _limit(found: Sequence[Panel | None], metric: str) -> float | None:
    """Half the width of the scale of both; None where they show different quantities, each on its own scale."""
    both = [panel.metrics[metric] for panel in found if panel and metric in panel.metrics]
    return max(values.limit for values in both) if len({values.quantity for values in both}) == 1 else None


def _drawn(panel: Panel | None, metric: str, limit: float | None) -> str:
    if panel is None or metric not in panel.metrics:
        return ""
    values: Values = replace(panel.metrics[metric], scale=limit)
    return embedded_figure(draw(panel, values, metric))
