"""The page of a reproduction: published against measured, a verdict for every value; one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from engramscope.replications._record import tally_sentence, verdict_sentence
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("engramscope.replications", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = resources.files("engramscope.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    text = environment.get_template("replication.html.j2").render(
        record=record,
        icons=_ICONS,
        verdict=verdict_sentence(record),
        tally=tally_sentence(record),
        tags={row["tag"]: row["tag_words"] for row in record["values"]},
        css=Markup(css),
    )
    write_text(path, text)
    return path
