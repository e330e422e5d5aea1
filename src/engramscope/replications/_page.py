"""The page of a reproduction: published against measured, a verdict for every value; one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engramscope.replications._record import tally_sentence, verdict_sentence
from engramscope.report.small_page import render_page
from engramscope.results.atomic import write_text

#: verdict -> (severity of the report's style, sign)
_ICONS: Mapping[str, tuple[str, str]] = {
    "reproduced": ("ok", "✓"),
    "differs": ("error", "✕"),
    "no published value for this model": ("note", "i"),
    "not measured": ("warning", "!"),
}


def write_page(path: Path, record: Mapping[str, Any]) -> Path:
    """Write the page, in full or not at all; everything in the record is escaped.

    Raises:
        ResultsError: the disk refuses.
    """
    text = render_page(
        "engramscope.replications",
        "replication.html.j2",
        record=record,
        icons=_ICONS,
        verdict=verdict_sentence(record),
        tally=tally_sentence(record),
        tags={row["tag"]: row["tag_words"] for row in record["values"]},
    )
    write_text(path, text)
    return path
