"""What there is to work with: models, tasks, corruptions, metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from engramscope.cli._app import app


@app.command(epilog="Example: engramscope model openai-community/gpt2")
def model(
    name: Annotated[str, typer.Argument(help="A bundled name, a folder, or a hub id.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Load a pickle checkpoint: only from sources you trust.")] = False,
) -> None:
    """Show a model's parts, the sites that it offers, and the self-checks made when it is loaded."""
    from rich.console import Console

    from engramscope.models import load_model
    from engramscope.models.describe import describe

    loaded = load_model(
        name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    Console().print(describe(loaded))


@app.command(epilog="Example: engramscope tasks")
def tasks() -> None:
    """List the tasks, corruptions, metrics and pair file formats by name."""
    from rich.console import Console

    from engramscope.catalogue import catalogue

    Console().print(catalogue())
