"""The whole study in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.report.words import counted, number, percent


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What training did, what CLAP's tables are here, and what the two other studies say; each with its numbers."""
    said = [training_sentence(found), _published(found)]
    for name, words in _TITLES.items():
        study = found["studies"][name]
        doubt = f" (with {counted(len(study['warnings']), 'warning')} of the audit)" if study["warnings"] else ""
        if study["lead"]:
            said.append(f"{words}{doubt}: {study['lead'][0]}")
    return said


_TITLES = {"token-replacement": "By token replacement", "what-training-moved": "Against the model before training"}


def training_sentence(found: Mapping[str, Any]) -> str:
    """On how many abstracts the model was trained, and what that did to the perplexity on others."""
    best = found["finetune"][found["best"]]
    rows, split = best["history"], best["split"]
    after = next(row["validation_perplexity"] for row in rows if row["epoch"] == best["best_epoch"])
    trained, held_out = (split[side]["documents"] for side in ("train", "validation"))
    return (
        f"Fine-tuning on {counted(trained, 'abstract')} ({found['best']}, epoch {best['best_epoch']}) took the "
        f"perplexity on {counted(held_out, 'held-out one')} from "
        f"{number(rows[0]['validation_perplexity'])} to {number(after)}."
    )


def _published(found: Mapping[str, Any]) -> str:
    parts = []
    for table in dict.fromkeys(row["table"] for row in found["tables"]):
        rows = [row for row in found["tables"] if row["table"] == table]
        row = next((row for row in rows if row["about"]), rows[0] if rows else None)
        if row is not None:
            share = "no recovery can be given" if row["recovery"] is None else f"recovery {percent(row['recovery'])}"
            parts.append(f"{row['table']} ({row['patched_part']}, {row['kind']}) {share}{', a cut' * row['cut']}")
    return f"CLAP's tables in our numbers: {'; '.join(parts)}." if parts else ""
