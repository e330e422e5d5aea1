"""Two finished studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app


@app.command(epilog="Example: engramscope compare results-mini results-mini-llama --out both.html")
def compare(
    one: Annotated[Path, typer.Argument(help="A results folder.", show_default=False)],
    other: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("comparison.html"),
    quiet: Quiet = False,
) -> None:
    """Show two finished studies side by side: two models, two corruptions, two kinds of pairs."""
    from engramscope.comparison import compare_studies

    found = compare_studies(one, other, out)
    if not quiet:
        for sentence in found.sentences():
            typer.echo(sentence)
        typer.echo(f"\nPage: {found.page}")
