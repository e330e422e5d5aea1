"""Pages without scripts: tables and embedded figures in the report's style."""

from __future__ import annotations

from base64 import b64encode
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from engramscope.report.words import bare_p, metric_words, number, percent

#: nothing is fetched, and no script runs
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_page(package: str, template: str, **context: Any) -> str:
    """A page from a package's `templates/`, everything in it escaped.

    Args:
        package: the package that holds the template.
        template: its file name.
        **context: what it shows; `css`, `policy` and the functions of `report.words` are there already.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = resources.files("engramscope.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    words = {"number": number, "percent": percent, "metric_words": metric_words, "bare_p": bare_p}
    return environment.get_template(template).render(css=Markup(css), policy=POLICY, **words, **context)


def embedded_file(path: Path) -> str:
    """An SVG file as a data URI, so that the page is one file."""
    return _uri(path.read_bytes())


def embedded_figure(figure: Figure) -> str:
    """A figure as SVG in a data URI; the same bytes on every run."""
    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "engramscope"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return _uri(buffer.getvalue())


def _uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg).decode("ascii")
