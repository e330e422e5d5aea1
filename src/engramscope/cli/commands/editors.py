"""What editors there are."""

from __future__ import annotations

from typing import Annotated

import typer

from engramscope.cli._app import app
from engramscope.cli._editing import WIDE


@app.command(epilog="Example: engramscope editors --model mini")
def editors(
    model: Annotated[str, typer.Option("--model", help="Say which of them can edit this model.")] = "",
    options: Annotated[bool, typer.Option("--options", help="Show every option with its default.")] = False,
) -> None:
    """List the editors: what each does, how many facts it takes at once, its presets, and its source."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from engramscope.editing.support import list_editors, support

    found = list_editors()
    table = Table(box=None, pad_edge=False, header_style="bold", row_styles=["", ""])
    for title in ("editor", "what it is", "facts", "kind", "presets"):
        table.add_column(title, no_wrap=title == "editor", style="cyan" if title == "editor" else None)
    for one in found:
        kind = "control" if one.control else "trained" if one.trained else "method"
        said = escape(one.summary) + (f"\n[dim]{escape(one.source)}[/dim]" if one.source else "")
        table.add_row(one.name, said, "many at once" if one.many else "one by one", kind, ", ".join(one.presets))
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    console.print(table)
    if options:
        for one in found:
            shown = ", ".join(f"{key}={value}" for key, value in one.options.items())
            console.print(f"\n[bold]{one.name}[/bold] {escape(shown)}")
    if model:
        from engramscope.models.load import load_model

        loaded = load_model(model, device="cpu")
        console.print(f"\n[bold]{escape(loaded.name)}[/bold] ({loaded.anatomy.model_type})")
        for one in found:
            state = support(loaded, one)
            where = f" ({state.why})" if state.why else ""
            where += f", edits {', '.join(state.places)}" if state.places else ""
            said = f"yes{where}" if state.ready else f"no. {escape(state.why)}"
            console.print(f"  {one.name}: {said}", soft_wrap=True)
