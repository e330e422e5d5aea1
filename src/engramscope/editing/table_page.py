"""The page of a table of editors: one file without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from engramscope.editing.figures import Bar, Point, bars, is_number, plane
from engramscope.editing.findings import UNEDITED, estimate_of
from engramscope.editing.words import (
    LEVEL,
    better,
    cell,
    figure,
    label_words,
    measure_title,
    plain,
    published_row,
    remarks,
    sentences,
)
from engramscope.evaluate.measures import HARMONIC, MEASURES
from engramscope.report.small_page import embedded_figure, render_page
from engramscope.report.words import bare_p, missing, number, seconds
from engramscope.results.atomic import write_text

#: measures that are not columns of the published table, in the order in which they are shown
_FURTHER = (
    "ES_acc", "ES_gen", "PS_acc", "PS_gen", "NS_acc", "NS_gen", "NS+", "NM+", "NKL", "NKL+", "essence",
)  # fmt: skip
#: the axes of the plane: generalisation and specificity, for both protocols
_AXES = (("PS", "NS"), ("zsRE paraphrase", "zsRE specificity"))
_CONTROLS = ("random_site",)


def write_table_page(folder: Path, findings: Mapping[str, Any]) -> Path:
    """Write `report.html`.

    Raises:
        ResultsError: the disk refuses.
    """
    measures = list(findings["measures"])
    shown = {one["measure"] for one in findings["estimates"]} - set(findings["measures"])
    further = [name for name in _FURTHER if name in shown]
    text = render_page(
        "engramscope.editing",
        "table.html.j2",
        title="Evaluation" if findings["kind"] == "evaluation" else "Editors",
        found=findings,
        sentences=sentences(findings),
        remarks=remarks(findings),
        measures=[(name, measure_title(name)) for name in measures],
        rows=_rows(findings, measures),
        further=[(name, measure_title(name), MEASURES[name].what, MEASURES[name].reading) for name in further],
        further_rows=_rows(findings, further),
        bars=[
            (measure_title(name), embedded_figure(bars(found))) for name, found in _panels(findings, measures).items()
        ],
        plane=_plane(findings),
        differences=[_matrix(findings, name) for name in measures] if findings["differences"] else [],
        damage=_damages(findings),
        samples=[_sample(one) for one in findings["samples"]],
        notes=[(label_words(label), note) for label, facts in findings["editors"].items() for note in facts["notes"]],
        settings=[(label_words(label), _settings(one)) for label, one in findings["settings"].items()],
        what=[(name, MEASURES[name].what, MEASURES[name].reading) for name in measures if name not in HARMONIC],
        label_words=label_words,
    )  # fmt: skip
    path = folder / "report.html"
    write_text(path, text)
    return path


def _rows(findings: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each editor, with the published one below it where there is one."""
    rows: list[dict[str, Any]] = []
    for label in findings["labels"]:
        found = [estimate_of(findings, label, name) for name in measures]
        rows.append({
            "label": label_words(label), "kind": kind_of(label), "of": "ours",
            "cells": [
                {"value": cell(one), "interval": better(one), "best": label in _leaders(findings, name)}
                for name, one in zip(measures, found, strict=True)
            ],
        })  # fmt: skip
        figures = published_row(findings, label)
        if any(name in figures for name in measures):
            rows.append({
                "label": "published", "kind": kind_of(label), "of": "published",
                "cells": [{"value": figure(figures.get(name)), "interval": "", "best": False} for name in measures],
            })  # fmt: skip
    return rows


def _leaders(findings: Mapping[str, Any], measure: str) -> list[str]:
    """The editors with the best value of a measure; none where all have the same."""
    better_is_more = True if measure in HARMONIC else MEASURES[measure].higher_is_better
    values = {
        label: one["mean"]
        for label in findings["labels"]
        if label != UNEDITED and (one := estimate_of(findings, label, measure)) is not None and is_number(one["mean"])
    }
    if len(set(values.values())) < 2 or better_is_more is None:
        return []
    best = max(values.values()) if better_is_more else min(values.values())
    return [label for label, value in values.items() if value == best]


def kind_of(label: str) -> str:
    """What a column is: "unedited", "control" or "editor"."""
    return "unedited" if label == UNEDITED else "control" if label in _CONTROLS else "editor"


def _panels(findings: Mapping[str, Any], measures: Sequence[str]) -> dict[str, list[Bar]]:
    panels: dict[str, list[Bar]] = {}
    for name in measures:
        panels[name] = []
        for label in findings["labels"]:
            one = estimate_of(findings, label, name) or {}
            theirs = published_row(findings, label).get(name)
            panels[name].append(
                Bar(label_words(label), _number(one.get("mean")), _number(one.get("better_low")),
                    _number(one.get("better_high")), kind_of(label), theirs["value"] if theirs else None)
            )  # fmt: skip
    return panels


def _number(value: Any) -> float:
    return float(value) if is_number(value) else nan


def _plane(findings: Mapping[str, Any]) -> str | None:
    """Generalisation against specificity, as a data URI; None where the records do not have both."""
    axes = next((pair for pair in _AXES if set(pair) <= set(findings["measures"])), None)
    if axes is None:
        return None
    points = []
    for label in findings["labels"]:
        x, y = (estimate_of(findings, label, name) for name in axes)
        if x is None or y is None or not (is_number(x["mean"]) and is_number(y["mean"])):
            continue
        across, along = ((_number(one["better_low"]), _number(one["better_high"])) for one in (x, y))
        points.append(Point(label_words(label), x["mean"], y["mean"], across, along, kind_of(label)))
    if not points:
        return None
    across, along = (f"{measure_title(name)} (%)" for name in axes)
    return embedded_figure(plane(points, across, along, "generalises, and leaves the rest alone"))


def _matrix(findings: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Differences in one measure: row minus column."""
    found = {(one["first"], one["second"]): one for one in findings["differences"] if one["measure"] == measure}
    names = [label for label in findings["labels"] if any(label in pair for pair in found)]
    lines = []
    for row in names:
        cells = []
        for column in names:
            one, sign = (found[row, column], 1) if (row, column) in found else (found.get((column, row)), -1)
            cells.append(None if one is None or row == column else _cell(one, sign))
        lines.append((label_words(row), cells))
    first = next(iter(found.values()), None)
    return {"measure": measure, "title": measure_title(measure), "names": [label_words(name) for name in names],
            "lines": lines, "n": first["n"] if first else 0, "left_out": first["left_out"] if first else 0}  # fmt: skip


def _cell(one: Mapping[str, Any], sign: int) -> dict[str, Any]:
    low, high = sorted((sign * one["low"], sign * one["high"]))
    # where every resample has the same difference the bootstrap says nothing about how sure it is
    interval = f"{plain(low)} to {plain(high)}" if low < high else ""
    return {"difference": plain(sign * one["difference"]), "interval": interval,
            "p": bare_p(one["p_max_t"]), "sure": not missing(one["p_max_t"]) and one["p_max_t"] < LEVEL}  # fmt: skip


def _damages(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each editor; none for an evaluation, which is of one edit."""
    if findings["kind"] == "evaluation":
        return []
    return [_damage(label, facts) for label, facts in findings["editors"].items() if label != UNEDITED]


def _damage(label: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    ratio, worst = facts["perplexity_ratio"], facts["worst_perplexity_ratio"]
    return {
        "label": label_words(label), "edits": facts["edits"], "failed": len(facts["failed"]),
        "collapsed": len(facts["collapsed"]), "damaged": len(facts["damaged"]), "large": facts["large"],
        "misaligned": facts["misaligned"], "change": number(facts["change"]), "ratio": number(ratio),
        "worst": number(worst), "edit": _seconds(facts["edit_s"]), "measure": _seconds(facts["measure_s"]),
    }  # fmt: skip


def _seconds(value: float | None) -> str:
    return number(None) if value is None else seconds(value) if value >= 10 else f"{number(value)} s"


def _sample(one: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of one record; what the model wrote stands apart from the beginning that it was given."""
    before, _, after = one["prompt"].partition(one["subject"])
    texts = []
    for label, found in one["texts"].items():
        text = found[0]
        begin = one["begin"] if text.startswith(one["begin"]) else ""
        texts.append({"label": label_words(label), "begin": begin, "text": text[len(begin) :]})
    return {**one, "before": before, "after": after, "texts": texts}


def _settings(one: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in one.items() if value is not None and key not in ("editor", "preset")}
    name = one["editor"] + (f", preset {one['preset']}" if one["preset"] else "")
    return f"{name}: " + ", ".join(f"{key} {_setting(value)}" for key, value in shown.items())


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
