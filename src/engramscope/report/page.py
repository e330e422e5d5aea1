"""The report: one HTML file that opens offline, made from nothing but the results folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from engramscope.report import tables
from engramscope.report.escape import script_hash, script_json
from engramscope.report.figures import write_figures
from engramscope.report.load import Study, load, records, section
from engramscope.report.panels import Panel, panels
from engramscope.report.plots import figure_data
from engramscope.report.sentences import answer, model_name, pooled_words, question
from engramscope.report.tracing import is_tracing, known_words, totals, tracing_panels
from engramscope.report.training import moved_weights, moved_words
from engramscope.report.words import capital, counted, metric_words, percent, whole
from engramscope.results.atomic import write_text


def write_report(folder: Path, *, figures: bool = True) -> Path:
    """Write `report.html` (and `figures/`) into a results folder, from what stands in it.

    Args:
        folder: the results folder of a finished study.
        figures: write the figures as SVG and PNG as well.

    Returns:
        The path of `report.html`.

    Raises:
        ResultsError: the folder is not ours, not finished, damaged, or the disk refuses.
    """
    study = load(Path(folder))
    found = [*tracing_panels(study), *panels(study)]
    target = study.path / "report.html"
    write_text(target, render(study, found))
    if figures:
        write_figures(study, found)
    return target


def render(study: Study, found: Sequence[Panel]) -> str:
    """The page as text. What comes from the study is escaped; only scripts whose hash is in the policy run."""
    plotly, script = _script(get_plotlyjs()), _script(_template("report.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("engramscope.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        **context(study, found),
        policy=_policy(plotly, script),
        css=Markup(_template("report.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        data=Markup(script_json(figure_data(found))),
    )


def context(study: Study, found: Sequence[Panel]) -> dict[str, Any]:
    """What the template shows, as plain values."""
    audit = tables.audit_items(study)
    metrics, pairs = tables.pair_rows(study)
    excluded, skipped = tables.exclusions(study)
    differing, n_differing = tables.contrast_cells(study)
    return {
        "name": str(section(study.manifest, "study").get("name") or study.path.name),
        "question": question(study),
        "answer": answer(study),
        "facts": _facts(study),
        "audit": audit,
        "audit_counts": _audit_counts(audit),
        "panels": list(found),
        "directions": list(dict.fromkeys(panel.direction for panel in found)),
        "metrics": [(name, metric_words(name)) for name in study.metrics],
        "confidence": percent(study.confidence),
        "totals": totals(study) if is_tracing(study) else [],
        "known": known_words(study),
        "moved": moved_weights(study),
        "moved_words": moved_words(study),
        "top": tables.top_components(study),
        "contrast": tables.contrast_rows(study),
        "contrast_groups": [str(group) for group in section(study.findings, "contrast").get("groups", [])],
        "contrast_cells": differing,
        "contrast_cells_count": n_differing,
        "whole": whole,
        "capital": capital,
        "both": tables.both_directions(study),
        "cuts": records(study.findings, "cuts"),
        "pair_metrics": [metric_words(name) for name in metrics],
        "pairs": pairs,
        "pairs_left_out": max(0, len(study.pairs) - len(pairs)),
        "excluded": excluded,
        "few": tables.FEW_EXCLUDED,
        "skipped": skipped,
        "provenance": tables.provenance(study),
        "checks": tables.self_checks(study),
        "toml": study.toml,
    }


def _facts(study: Study) -> list[tuple[str, str]]:
    place = ["sweep", "direction", "site", "layer", "head", "position", "position_role"]
    cells = study.summary.drop_duplicates(place)
    facts = [("Model", model_name(study)), ("Pairs", f"{whole(len(study.pairs))}{pooled_words(study)}")]
    facts.append(("Cells", whole(len(cells))))
    started = str(study.manifest.get("started") or "")[:10]
    return [*facts, *([("Run on", started)] if started else [])]


def _audit_counts(audit: list[dict[str, Any]]) -> str:
    words = {"error": "error", "warning": "warning", "note": "note", "ok": "check passed"}
    plural = {"ok": "checks passed"}
    counts = {key: sum(item["severity"] == key for item in audit) for key in words}
    return ", ".join(counted(n, words[key], plural.get(key)) for key, n in counts.items() if n)


def _policy(*scripts: str) -> str:
    allowed = " ".join(script_hash(text) for text in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _script(text: str) -> str:
    # a browser hashes what its HTML parser saw: line ends as \n; "</script" would end the element early
    clean = text.replace("\r\n", "\n").replace("\r", "\n")
    return clean.replace("</script", "<\\/script")


def _template(name: str) -> str:
    return resources.files("engramscope.report").joinpath("templates", name).read_text(encoding="utf-8")
