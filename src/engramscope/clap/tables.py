"""CLAP's tables in our numbers: mean logit differences of the clean, corrupted and patched runs, and the recovery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from engramscope.clap.studies import TABLES
from engramscope.results.summary import summarise_effects
from engramscope.study import StudyResult

#: what is printed in arXiv 2504.02976: clean, corrupted, patched logit difference, and recovery in percent
PRINTED: Mapping[str, tuple[float, float, float, float]] = {
    "Table 3": (0.76, -0.34, 0.43, 56.0),
    "Table 4": (2.1928, 0.9691, 2.1928, 100.0),
    "Table 5": (0.1261, -1.4626, -0.0899, 13.6),
}


def recovery(clean: float, corrupted: float, patched: float) -> float:
    """(patched - corrupted) / (clean - corrupted); 0 is as corrupted, 1 is as clean."""
    return (patched - corrupted) / (clean - corrupted)


def clap_tables(result: StudyResult) -> list[dict[str, Any]]:
    """Each table of the paper for each kind of question, as plain data.

    Args:
        result: the study "as-published".

    Returns:
        One row per table and kind: the table, what is patched, the kind, whether the paper's table is about it, n, how
        many pairs are pooled (those whose gap has the right sign), over these the means of the three runs and the
        recovery with its interval, p of a test of the effect on all pairs, `cut`, and the printed numbers with the
        recovery that follows from them.
    """
    effects = result.effects()
    manifest = result.manifest()
    left_out = {row["pair"] for row in manifest.get("excluded") or []}
    pairs = pd.read_parquet(result.folder / "pairs.parquet")
    kinds = _kinds(pairs)
    rows = []
    for table, (sweep, about) in TABLES.items():
        for kind in dict.fromkeys(kinds.values()):
            mine = effects[
                (effects["sweep"] == sweep) & effects["pair"].isin([pair for pair, one in kinds.items() if one == kind])
            ]
            if not mine.empty:
                rows.append(_row(table, sweep, kind, kind == about, mine, left_out, manifest))
    return rows


def _row(
    table: str, sweep: str, kind: str, about: bool, effects: Any, left_out: set[str], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    clusters = dict(zip(effects["pair"], effects["group"], strict=True))
    stats = manifest["study"]["stats"]
    found = summarise_effects(
        effects, clusters, pooled=set(effects["pair"]) - left_out, confidence=stats["confidence"],
        resamples=stats["resamples"], seed=manifest["seed"],
    ).iloc[0]  # fmt: skip
    pooled = effects[~effects["pair"].isin(list(left_out))]
    clean, corrupted, patched, printed = PRINTED[table]
    return {
        "table": table,
        "patched_part": sweep,
        "kind": kind,
        "about": about,
        "n": int(effects["pair"].nunique()),
        "n_pooled": int(pooled["pair"].nunique()),
        **{run: _number(pooled[run].mean()) for run in ("clean", "corrupted", "patched")},
        **{name: _number(found[name]) for name in ("recovery", "recovery_low", "recovery_high", "p")},
        "cut": bool(found["cut"]),
        "printed": {"clean": clean, "corrupted": corrupted, "patched": patched, "recovery": printed / 100},
        "printed_by_definition": recovery(clean, corrupted, patched),
    }


def _kinds(pairs: pd.DataFrame) -> dict[str, str]:
    labels = (json.loads(text) for text in pairs["labels"])
    return {pair: str(label.get("kind") or "all") for pair, label in zip(pairs["pair"], labels, strict=True)}


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
