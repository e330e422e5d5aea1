"""The page of sequences of edits: curves against the number of edits, and the numbers behind them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from engramscope.editing.figures import Curve, curves, is_number, look_of
from engramscope.editing.words import better, cell, label_words, listed, measure_title, plain
from engramscope.report.small_page import embedded_figure, render_page
from engramscope.report.words import number, seconds
from engramscope.results.atomic import write_json, write_text

FINDINGS = "sequence.json"
#: measures of the tables; the others stand in curves.csv
_COLUMNS = ("S", "ES", "PS", "NS", "ES_gen")
_PERPLEXITY, _CHANGE = "Perplexity of held-out texts", "|ΔW| / |W|, the largest"
#: measures that are drawn, with the titles of their panels
_DRAWN = {
    "ES": "ES, efficacy score", "PS": "PS, paraphrase score", "NS": "NS, neighbourhood score",
    "ES_gen": "ES_gen, efficacy in the model's own words",
}  # fmt: skip


def write_sequence_files(folder: Path, findings: Mapping[str, Any]) -> None:
    """Write `sequence.json`, `curves.csv` and `report.html`, each in full or not at all.

    Raises:
        ResultsError: the disk refuses.
    """
    text = io.StringIO()
    pd.DataFrame(_flat(findings)).to_csv(text, index=False, lineterminator="\n")
    write_text(folder / "curves.csv", text.getvalue())
    write_text(folder / "report.html", _page(findings))
    write_json(folder / FINDINGS, findings)


def sequence_sentences(findings: Mapping[str, Any]) -> list[str]:
    """What came out, each sentence with its numbers."""
    said = []
    for label in findings["labels"]:
        points = [point for point in findings["curves"] if point["editor"] == label]
        last = points[-1]
        values = [
            f"{name} {plain(last['measures'][name]['mean'])}" for name in ("ES", "PS", "NS") if name in last["measures"]
        ]
        text = f"{label_words(label)} after {last['edits']:,} edits: {', '.join(values)}"
        if is_number(points[0]["perplexity"]):
            text += f", perplexity {number(points[0]['perplexity'])} → {_perplexity(last)}"
        said.append(f"{text}.{_limit(findings['editors'][label])}")
    return said


def sequence_remarks(findings: Mapping[str, Any]) -> list[str]:
    """What must be known beside the curves."""
    said = [
        "Measured are the facts edited so far"
        + (f", of more than {findings['sample']} a sample." if findings["n"] > findings["sample"] else ".")
    ]
    if findings["batch"] > 1:
        said.append(f"Facts were given to the editors {findings['batch']} at a time.")
    if findings["n"] < findings["records_available"]:
        said.append(f"The first {findings['n']:,} of {findings['records_available']:,} records were edited.")
    said += list(findings["records_notes"])
    said += [f"{label_words(one['label'])} takes no part. {one['why']}" for one in findings["skipped"]]
    for label, facts in findings["editors"].items():
        if facts["failed"]:
            said.append(
                f"{label_words(label)}: {len(facts['failed'])} edits could not be computed "
                f"({facts['failed'][0]['why'].rstrip('.')}). Their facts are counted and measured all the same."
            )
    if not findings["texts"]:
        said.append("Without held-out texts the perplexity was not measured; give some (--texts).")
    return said


def _limit(facts: Mapping[str, Any]) -> str:
    said = []
    if facts["damaged"] is not None:
        said.append(f"the perplexity has more than doubled at {facts['damaged']}")
    if facts["collapsed"] is not None:
        said.append(f"the model has collapsed at {facts['collapsed']}")
    return f" Measured then, {listed(said)}." if said else ""


def _page(findings: Mapping[str, Any]) -> str:
    failed = any(facts["failed"] for facts in findings["editors"].values())
    across = "facts given to the editors" if failed else "edits kept"
    return render_page(
        "engramscope.editing",
        "sequence.html.j2",
        found=findings,
        sentences=sequence_sentences(findings),
        remarks=sequence_remarks(findings),
        figures=[
            (title, embedded_figure(curves(found, across, percent=title not in (_PERPLEXITY, _CHANGE))))
            for title, found in _panels(findings).items()
        ],
        legend=[(label_words(label), *look_of(place)) for place, label in enumerate(findings["labels"])],
        measures=[(name, measure_title(name)) for name in _shown(findings)],
        tables=[_table(findings, label) for label in findings["labels"]],
        settings=[(label_words(label), one) for label, one in findings["settings"].items()],
        seconds=seconds,
    )  # fmt: skip


def _panels(findings: Mapping[str, Any]) -> dict[str, list[Curve]]:
    panels: dict[str, list[Curve]] = {}
    points = {
        label: [point for point in findings["curves"] if point["editor"] == label] for label in findings["labels"]
    }
    for name, title in _DRAWN.items():
        if name in findings["measures"]:
            panels[title] = [_curve(label, found, name) for label, found in points.items()]
    if any(is_number(point["perplexity"]) for found in points.values() for point in found):
        panels[_PERPLEXITY] = [
            Curve(label_words(label), _x(found), [_number(point["perplexity"]) for point in found])
            for label, found in points.items()
        ]
    panels[_CHANGE] = [
        Curve(label_words(label), _x(found), [_number(point["change"]) for point in found])
        for label, found in points.items()
    ]
    return panels


def _curve(label: str, points: Sequence[Mapping[str, Any]], name: str) -> Curve:
    found = [point["measures"].get(name, {}) for point in points]
    columns = ([_number(one.get(key)) for one in found] for key in ("mean", "better_low", "better_high"))
    return Curve(label_words(label), _x(points), *columns)


def _x(points: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(point["position"]) for point in points]


def _number(value: Any) -> float:
    return float(value) if is_number(value) else nan


def _table(findings: Mapping[str, Any], label: str) -> dict[str, Any]:
    rows = []
    for point in findings["curves"]:
        if point["editor"] == label:
            cells = [point["measures"].get(name) for name in _shown(findings)]
            rows.append({
                "position": point["position"], "edits": point["edits"], "cases": point["cases"],
                "cells": [{"value": cell(one), "interval": better(one)} for one in cells],
                "perplexity": _perplexity(point), "change": number(point["change"]),
            })  # fmt: skip
    return {"label": label_words(label), "rows": rows, "seconds": findings["editors"][label]["seconds"]}


def _shown(findings: Mapping[str, Any]) -> list[str]:
    """The measures that have a column."""
    return [name for name in findings["measures"] if name in _COLUMNS]


def _perplexity(point: Mapping[str, Any]) -> str:
    return "∞" if point["perplexity"] is None and point["collapsed"] else number(point["perplexity"])


def _flat(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each editor, point and measure."""
    return [
        {"editor": point["editor"], "position": point["position"], "edits": point["edits"], "cases": point["cases"],
         "perplexity": point["perplexity"], "change": point["change"], "collapsed": point["collapsed"],
         **{key: one[key] for key in ("measure", "mean", "low", "high", "better_low", "better_high", "rule")}}
        for point in findings["curves"]
        for one in point["measures"].values()
    ]  # fmt: skip
