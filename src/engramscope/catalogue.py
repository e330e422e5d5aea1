"""What there is, by name: tasks, corruptions, metrics, pair formats and bundled models."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from engramscope import bundled
from engramscope.corruptions import corruption_names
from engramscope.metrics import metric_names
from engramscope.pairs import format_names
from engramscope.registry import describe_file
from engramscope.tasks import task_names


def catalogue() -> RenderableType:
    """Tables of every component that is found by its name, with the first line of its documentation."""
    parts = [
        ("tasks", "engramscope.tasks", task_names()),
        ("corruptions", "engramscope.corruptions", corruption_names()),
        ("metrics", "engramscope.metrics", metric_names()),
        ("pair formats", "engramscope.pairs.readers", format_names()),
    ]
    tables = [
        _table(title, [(name, describe_file(package, name)) for name in names]) for title, package, names in parts
    ]
    models = [(name, "bundled with Engramscope; see docs/models.md") for name in bundled.names()]
    return Group(*tables, _table("models", [*models, ("…", "any Hugging Face causal model: a folder or a hub id")]))


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(name, text)
    return table
