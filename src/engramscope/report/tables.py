"""The tables of the page, as lists of plain values; the template writes and escapes them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from engramscope.report.load import Study, records, section, strings
from engramscope.report.words import (
    METRIC_UNITS,
    MINUS,
    amount,
    bare_p,
    cell_name,
    counted,
    interval,
    metric_words,
    missing,
    number,
    percent,
    seconds,
    token_text,
    whole,
)
from engramscope.results.effect_scale import is_loss

TOP = 15
#: pairs that stand in the page; the rest is in pairs.parquet
MAX_PAIRS = 2_000
#: excluded pairs that are named at once
FEW_EXCLUDED = 6
_MINUS_SIGN = re.compile(r"(?<![\w.])-(?=\d)")
_SEVERITIES = ("error", "warning", "note", "ok")
_SEVERITY_OF = {"info": "note", "passed": "ok", "pass": "ok", "fail": "error", "failed": "error", "warn": "warning"}


def audit_items(study: Study) -> list[dict[str, Any]]:
    """The findings of the audit, the gravest first."""
    out = []
    for item in records(study.manifest, "audit"):
        severity = str(item.get("severity", "note")).lower()
        severity = _SEVERITY_OF.get(severity, severity if severity in _SEVERITIES else "note")
        out.append(
            {
                "severity": severity,
                "title": str(item.get("title") or _title(str(item.get("check") or "finding"))),
                "message": str(item.get("message") or ""),
                "items": [str(entry) for entry in item.get("items") or []],
            }
        )
    return sorted(out, key=lambda item: _SEVERITIES.index(item["severity"]))


def _title(check: str) -> str:
    words = check.replace("_", " ").strip()
    return "BOS" if words == "bos" else words[:1].upper() + words[1:]


def top_components(study: Study) -> list[dict[str, Any]]:
    """The cells with the largest estimates that are no cuts, first metric; the second metric stands beside."""
    rows = study.summary
    if not study.metrics:
        return []
    first = rows.loc[((rows["metric"] == study.metrics[0]) & ~rows["cut"] & rows["shown"].notna()).to_numpy()]
    order = first["shown"].abs().sort_values(ascending=False, kind="stable").index[:TOP]
    second = _second_metric(study, first.loc[order])
    out = []
    for rank, (_, row) in enumerate(first.loc[order].iterrows(), start=1):
        cell = row.to_dict()
        kind, direction, metric = str(cell["estimate_kind"]), str(cell["direction"]), str(cell["metric"])
        out.append(
            {
                "rank": rank,
                "name": cell_name(cell),
                "sweep": cell["sweep"],
                "direction": direction,
                "estimate": amount(cell["estimate"], kind, metric, direction),
                "sort": float(cell["shown"]),
                "interval": interval(cell["low"], cell["high"], kind, direction),
                "p": bare_p(cell["p"]),
                "p_adjusted": bare_p(cell["p_adjusted"]),
                "n": _pairs_behind(cell),
                "detected": bool(cell["detected"]),
                "second": second[rank - 1],
                "note": str(cell["note"] or ""),
            }
        )
    return out


def _pairs_behind(cell: Mapping[str, Any]) -> str:
    """The pairs behind an estimate, "8 of 12" where a recovery was computed from fewer than were tested."""
    n, pooled = cell["n"], cell["n_pooled"]
    if missing(n):
        return "–"
    fewer = cell["estimate_kind"] == "recovery" and not missing(pooled) and int(pooled) < int(n)
    return f"{whole(int(pooled))} of {whole(int(n))}" if fewer else whole(int(n))


def _second_metric(study: Study, chosen: pd.DataFrame) -> list[str]:
    if len(study.metrics) < 2:
        return [""] * len(chosen)
    place = ["sweep", "direction", "site", "layer", "head", "position", "position_role", "window"]

    def keys(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
        return [tuple(None if missing(v) else v for v in key) for key in rows[place].itertuples(index=False, name=None)]

    rows = study.summary
    other = rows.loc[(rows["metric"] == study.metrics[1]).to_numpy()]
    found = dict(zip(keys(other), other.to_dict("records"), strict=True))
    out = []
    for key in keys(chosen):
        row = found.get(key)
        parts = None if row is None else (row["estimate"], row["estimate_kind"], row["metric"], row["direction"])
        out.append("–" if parts is None else amount(parts[0], *(str(part) for part in parts[1:])))
    return out


def differs(row: Mapping[str, Any], confidence: float) -> bool:
    """Whether two groups differ: the interval of the difference leaves out 0, and p, where there is one, is small.

    p is the one that is adjusted for all statistics and sweeps that are compared, where it is there.
    """
    low, high, p = row.get("low"), row.get("high"), row.get("p_adjusted", row.get("p"))
    if missing(low) or missing(high) or float(low) <= 0.0 <= float(high):  # type: ignore[arg-type]
        return False
    return missing(p) or float(p) <= 1.0 - confidence + 1e-12  # type: ignore[arg-type]


def contrast_rows(study: Study) -> list[dict[str, Any]]:
    """The comparison of two groups of pairs, a row per sweep, metric and statistic."""
    out = []
    for row in records(section(study.findings, "contrast"), "rows"):
        values = [*(row.get("values") or []), None, None][:2]
        low, high = row.get("low"), row.get("high")
        known = not (missing(low) or missing(high))
        out.append(
            {
                "sweep": row.get("sweep", ""),
                "metric": metric_words(str(row.get("metric", ""))),
                "direction": row.get("direction", ""),
                "statistic": row.get("statistic", ""),
                "values": [number(value) for value in values],
                "intervals": [_range(ends) for ends in [*(row.get("intervals") or []), None, None][:2]],
                "difference": number(row.get("difference")),
                "interval": f"{number(low)} to {number(high)}" if known else "no interval",
                "p": bare_p(row.get("p_adjusted", row.get("p"))),
                "differs": differs(row, study.confidence),
            }
        )
    return out


def _range(ends: object) -> str:
    if not isinstance(ends, list | tuple) or len(ends) != 2 or any(missing(end) for end in ends):
        return ""
    return f"{number(ends[0])} to {number(ends[1])}"


def contrast_cells(study: Study) -> tuple[list[dict[str, Any]], int]:
    """Cells in which the two groups differ after correction, first metric, largest difference first; and how many.

    The manifest holds the change against the baseline run over the gap; when noising that is `-loss`, and the loss is
    what the rest of the page shows, so its sign is turned here.
    """
    metric = study.metrics[0] if study.metrics else ""
    rows = [row for row in records(section(study.findings, "contrast"), "cells") if row.get("metric", metric) == metric]
    level = study.family_error
    found = [row for row in rows if not missing(row.get("p_adjusted")) and float(row["p_adjusted"]) <= level]
    found.sort(key=lambda row: -abs(float(row.get("difference") or 0.0)))
    kinds = study.summary.drop_duplicates(["sweep", "direction", "metric"])
    shares = {
        (row["sweep"], row["direction"])
        for row in kinds.to_dict("records")
        if row["metric"] == metric and row["estimate_kind"] == "recovery"
    }
    return [_contrast_cell(row, shares) for row in found[:TOP]], len(found)


def _contrast_cell(row: Mapping[str, Any], shares: set[tuple[str, str]]) -> dict[str, Any]:
    share = (row.get("sweep"), row.get("direction")) in shares
    sign = -1.0 if is_loss("recovery" if share else "effect", str(row.get("direction"))) else 1.0

    def text(value: object) -> str:
        turned = None if missing(value) else sign * float(value)  # type: ignore[arg-type]
        return percent(turned) if share else number(turned)

    ends = [row.get("low"), row.get("high")][:: int(sign)]
    cell = section(row, "cell")
    return {
        "name": cell_name(cell) if cell else str(row.get("label", "")),
        "sweep": row.get("sweep", ""),
        "direction": row.get("direction", ""),
        "values": [text(value) for value in [*(row.get("values") or []), None, None][:2]],
        "difference": text(row.get("difference")),
        "interval": "no interval" if any(missing(end) for end in ends) else " to ".join(text(end) for end in ends),
        "p_adjusted": bare_p(row.get("p_adjusted")),
    }


def both_directions(study: Study) -> list[dict[str, Any]]:
    """Per sweep that was run in both directions, the 2 x 2: detected when denoising against detected when noising.

    Cells come with the largest first; a minus marks those that work against the answer when denoised (or, where only
    noising detects them, when noised).
    """
    rows = study.summary
    if not study.metrics:
        return []
    rows = rows.loc[((rows["metric"] == study.metrics[0]) & rows["p_adjusted"].notna()).to_numpy()]
    out = []
    for sweep in dict.fromkeys(rows["sweep"]):
        mine = rows.loc[(rows["sweep"] == sweep).to_numpy()]
        if {"denoise", "noise"} <= set(mine["direction"]):
            out.append({"sweep": sweep, "cells": _two_by_two(mine)})
    return out


def _two_by_two(mine: pd.DataFrame) -> dict[str, dict[str, Any]]:
    place = ["site", "layer", "head", "position", "position_role", "window"]
    found: dict[str, dict[str, tuple[bool, float]]] = {}
    for row in mine.to_dict("records"):
        size = 0.0 if missing(row["shown"]) else float(row["shown"])
        found.setdefault(cell_name({key: row[key] for key in place}), {})[str(row["direction"])] = row["detected"], size
    groups: dict[str, list[tuple[float, str]]] = {"11": [], "10": [], "01": [], "00": []}
    for name, sides in found.items():
        if {"denoise", "noise"} <= set(sides):
            denoise, noise = sides["denoise"], sides["noise"]
            size = denoise[1] if denoise[0] or not noise[0] else noise[1]
            groups[f"{int(denoise[0])}{int(noise[0])}"].append((size, f"{name} ({MINUS})" if size < 0 else name))
    return {
        key: _few([name for _, name in sorted(cells, key=lambda item: -abs(item[0]))]) for key, cells in groups.items()
    }


def _few(names: list[str], most: int = 6) -> dict[str, Any]:
    return {"count": len(names), "names": names[:most], "more": max(0, len(names) - most)}


def pair_rows(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Metric columns and rows of the pair table; prompts as pieces of text with a mark on what was changed."""
    frame = study.pairs.head(MAX_PAIRS)
    metrics = [name for name in study.metrics if f"clean_{name}" in frame.columns]
    out = []
    for row in frame.to_dict("records"):
        clean, corrupted = _marked(row)
        values = [number(row.get(f"{run}_{name}")) for name in metrics for run in ("clean", "corrupted")]
        out.append(
            {
                "pair": row.get("pair", ""),
                "group": row.get("group") or "",
                "labels": _labels(row.get("labels")),
                "clean": clean,
                "corrupted": corrupted,
                "correct": " · ".join(token_text(text) for text in strings(row.get("correct"))),
                "incorrect": " · ".join(token_text(text) for text in strings(row.get("incorrect"))),
                "values": values,
                "excluded": str(row.get("reason") or "excluded") if row.get("status") == "excluded" else "",
            }
        )
    return metrics, out


def _labels(value: object) -> str:
    try:
        found = json.loads(value) if isinstance(value, str) and value else {}
    except json.JSONDecodeError:
        return ""
    return ", ".join(str(item) for item in found.values()) if isinstance(found, dict) else ""


def _marked(row: Mapping[str, Any]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both prompts as (text, changed) pieces; whole prompts where the tokens do not stand side by side."""
    clean, corrupted = strings(row.get("clean_tokens")), strings(row.get("corrupted_tokens"))
    whole = str(row.get("clean") or ""), str(row.get("corrupted") or "")
    sides = []
    for tokens, other, text in ((clean, corrupted, whole[0]), (corrupted, clean, whole[1])):
        aligned = len(tokens) == len(other) and "".join(tokens).endswith(text) and bool(text)
        lead = len("".join(tokens)) - len(text)
        sides.append(_pieces(tokens, other, lead) if aligned else [(text, False)])
    return sides[0], sides[1]


def _pieces(tokens: list[str], other: list[str], lead: int) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    for token, partner in zip(tokens, other, strict=True):
        kept, lead = token[lead:], max(0, lead - len(token))
        changed = token != partner
        if changed and (space := kept[: len(kept) - len(kept.lstrip(" "))]):
            # the space before a word is not what differs, unless it is all that there is
            kept = kept[len(space) :] or kept
            if kept != space:
                out.append((space, False))
        if out and out[-1][1] == changed:
            out[-1] = (out[-1][0] + kept, changed)
        elif kept:
            out.append((kept, changed))
    return out


def exclusions(study: Study) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str, int, int]]]:
    """Excluded pairs by reason, each with its numbers; skipped cells as (sweep, reason, pairs, cells)."""
    reasons: dict[str, list[str]] = {}
    for item in records(study.manifest, "excluded"):
        # behind a colon stand the numbers of this pair: "its gap is of the wrong sign: clean 1.2, corrupted 3.4"
        reason, _, numbers = str(item.get("reason") or "no reason given").partition(": ")
        said = _MINUS_SIGN.sub(MINUS, numbers)
        reasons.setdefault(reason, []).append(f"{item.get('pair', '')}{f' ({said})' if said else ''}")
    pairs: Counter[tuple[str, str]] = Counter()
    cells: Counter[tuple[str, str]] = Counter()
    for item in records(study.manifest, "skipped"):
        key = (str(item.get("sweep", "")), str(item.get("reason", "")))
        pairs[key] += int(item.get("pairs") or 1)
        cells[key] += int(item.get("cells") or 0)
    return list(reasons.items()), [(*key, pairs[key], cells[key]) for key in pairs]


def provenance(study: Study) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of names and values: model, run, versions, numbers."""
    manifest = study.manifest
    model = section(manifest, "model")
    sizes = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_mlp", "vocab")
    timings = section(manifest, "timings_s")
    base = _named(section(manifest, "base_model"), ("name", "source", "revision", "weight_hash"))
    return [
        ("Model", [*_named(model, ("name", "source", "model_type", "revision", "weight_hash", "dtype", "device")),
                   *((name, whole(int(model[name]))) for name in (*sizes, "parameters")
                     if not missing(model.get(name)))]),
        *([("Model before training", base)] if base else []),
        ("Run", [*_named(manifest, ("engramscope", "status", "started", "finished")),
                 ("elapsed", seconds(manifest.get("elapsed_s"))),
                 *_named(manifest, ("platform", "seed", "study_hash", "schema", "executor", "memory")),
                 *((f"time: {name}", seconds(value)) for name, value in timings.items())]),
        ("Versions", [(str(name), str(value)) for name, value in section(manifest, "versions").items()]),
        ("Numbers", [*_counts(study), *((f"noise floor, {metric_words(str(name))}", _floor(str(name), value))
                     for name, value in section(manifest, "noise_floor").items())]),
    ]  # fmt: skip


def _floor(metric: str, value: object) -> str:
    return f"{number(value)} {METRIC_UNITS.get(metric, '')}".strip()


def _named(values: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, _flat(values[name])) for name in names if not missing(values.get(name))]


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if not missing(item) and item != "")
    return str(value)


def _counts(study: Study) -> list[tuple[str, str]]:
    counts = section(study.manifest, "counts")
    plain = [(name, whole(int(counts[name]))) for name in ("pairs", "used", "cells", "rows")
             if isinstance(counts.get(name), int)]  # fmt: skip
    by_status = [(f"rows: {name}", whole(int(value))) for name, value in section(counts, "by_status").items()]
    return [*plain, *by_status, ("confidence", percent(study.confidence))]


def self_checks(study: Study) -> list[dict[str, Any]]:
    """The checks at model load, and the recomputation with the reference executor."""
    out = [
        {
            "name": str(check.get("name", "")),
            "value": number(check.get("value")),
            "tolerance": number(check.get("tolerance")),
            "passed": bool(check.get("passed", True)),
            "detail": str(check.get("detail") or ""),
        }
        for check in records(study.manifest, "self_checks")
    ]
    parity = section(study.manifest, "parity")
    if parity:
        value, tolerance = parity.get("max_abs_diff"), parity.get("tolerance")
        passed = missing(value) or missing(tolerance) or float(value) <= float(tolerance)  # type: ignore[arg-type]
        detail = (
            f"{counted(parity.get('checked', 0), 'cell')} recomputed by whole forwards of the model, each in one pair: "
            "shows that the traversal, batches, and pieces stored earlier change no number"
        )
        out.append({"name": "parity", "value": number(value), "tolerance": number(tolerance), "passed": passed,
                    "detail": detail})  # fmt: skip
    return out
