"""The page of one edit: one file without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engramscope.editing.edit_words import edit_sentences, share, warnings_of
from engramscope.editing.words import label_words
from engramscope.report.small_page import render_page
from engramscope.report.words import number, seconds
from engramscope.results.atomic import write_text


def write_edit_page(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write `report.html`.

    Raises:
        ResultsError: the disk refuses.
    """
    health = manifest["health"]
    text = render_page(
        "engramscope.editing",
        "edit.html.j2",
        found=manifest,
        method=label_words(manifest["method"]),
        sentences=edit_sentences(manifest),
        warnings=warnings_of(manifest),
        facts=[_fact(fact) for fact in manifest["facts"]],
        norms=[(name, number(value), manifest["parameters"][name]) for name, value in health["norms"].items()],
        perplexity=[_perplexity(health[f"perplexity_{when}"]) for when in ("before", "after")],
        settings=[
            (key, _plain(value))
            for key, value in manifest["settings"].items()
            if key != "editor" and value is not None
        ],
        seconds=seconds(manifest["seconds"]),
    )  # fmt: skip
    path = folder / "report.html"
    write_text(path, text)
    return path


def _fact(fact: Mapping[str, Any]) -> dict[str, Any]:
    before, _, after = fact["prompt"].partition(fact["subject"])
    return {
        "before": before, "subject": fact["subject"], "after": after, "target": fact["target"], "true": fact["true"],
        "sides": [_side(fact, when, words) for when, words in (("before", "Before"), ("after", "With the edit"))],
    }  # fmt: skip


def _side(fact: Mapping[str, Any], when: str, words: str) -> dict[str, Any]:
    seen = fact[when]
    return {
        "words": words, "text": seen["text"], "target": share(seen["target"]),
        "true": None if seen["true"] is None else share(seen["true"]),
        "top": [
            {"token": token, "share": share(value), "width": round(100 * value, 2)} for token, value in seen["top"]
        ],
    }  # fmt: skip


def _perplexity(value: float | None) -> str:
    return "not a number" if value is None else number(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
