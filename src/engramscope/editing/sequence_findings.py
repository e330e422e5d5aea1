"""What sequences of edits say: measures, perplexity and size against the number of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.health import HealthLimits
from engramscope.evaluate.summary import RESAMPLES, summarise
from engramscope.records.record import Record

#: the columns of the table
MEASURES: tuple[str, ...] = ("S", "ES", "PS", "NS", "ES_gen", "PS_gen", "NS_gen")


def sequence_findings(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], records: Sequence[Record], about: Mapping[str, Any], *,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What sequences say.

    Args:
        rows: label -> what was measured at each point, the unedited model first, at position 0.
        records: the records.
        about: what is known of the study; goes in as it is.
        seed: of the bootstrap.
    """
    clusters = {record.id: record.fact.subject for record in records}
    curves: list[dict[str, Any]] = []
    editors: dict[str, Any] = {}
    for label, found in rows.items():
        points = [_point(row, clusters, seed) for row in found]
        curves += [{"editor": label, **point} for point in points]
        editors[label] = {
            "failed": list(found[-1]["failed"]), "seconds": sum(row["seconds"] for row in found),
            "edits": found[-1]["edits"], **_limits(points),
        }  # fmt: skip
    there = [name for name in MEASURES if any(name in point["measures"] for point in curves)]
    return {**about, "n": len(records), "subjects": len(set(clusters.values())), "labels": list(rows),
            "measures": there, "curves": curves, "editors": editors}  # fmt: skip


def _point(row: Mapping[str, Any], clusters: Mapping[str, str], seed: int) -> dict[str, Any]:
    cases = [CaseResult.from_dict(one) for one in row["cases"]]
    measures = [name for name in MEASURES if name not in ("S", *_absent(cases))]
    names = ["S", *measures] if {"ES", "PS", "NS"} <= set(measures) else measures
    found = summarise({"": cases}, names, clusters, seed=seed, resamples=RESAMPLES)
    changes = [value for value in row["change"].values() if value is not None]
    return {
        "position": row["position"], "edits": row["edits"], "cases": len(cases),
        "perplexity": row["perplexity"], "collapsed": row["collapsed"], "change": max(changes, default=0.0),
        "measures": {one.measure: asdict(one) for one in found},
    }  # fmt: skip


def _absent(cases: Sequence[CaseResult]) -> set[str]:
    there = {one.measure for case in cases for one in case.rows}
    return set(MEASURES) - there


def _limits(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the model is first found collapsed, and where the perplexity has first risen beyond its limit."""
    base = points[0]["perplexity"]
    collapsed = next((point["position"] for point in points[1:] if point["collapsed"]), None)
    damaged = None
    if base is not None:
        high = base * HealthLimits().perplexity
        damaged = next(
            (point["position"] for point in points[1:] if point["perplexity"] is None or point["perplexity"] > high),
            None,
        )
    return {"collapsed": collapsed, "damaged": damaged}
