"""Which layers hold these facts?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress


@app.command(epilog="Example: engramscope locate facts.jsonl --model openai-community/gpt2-xl --out layers")
def locate(
    facts: Annotated[Path, typer.Argument(help="A pair file whose prompts name their subject.", show_default=False)],
    model_name: Annotated[
        str, typer.Option("--model", help="A bundled name, a folder, or a hub id.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("engramscope-layers"),
    limit: Annotated[int | None, typer.Option(help="At most this many pairs.", min=1, show_default="all")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also facts that the model does not know.")] = False,
    at_least: Annotated[int, typer.Option(help="Refuse fewer known pairs than this.", min=1)] = 20,
    draws: Annotated[int, typer.Option(help="Draws of the noise.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say which layers' MLPs hold these facts, how sure that is, and what it does not mean.

    Layers are traced one by one at the last subject token, under token replacement and under noise; the answer comes
    with its interval, its stability over bootstrap resamples and over corruptions, and the audit of the design.
    """
    with show_progress(quiet, goes_on_in(out)) as progress:
        from engramscope.recommendation import recommend_layers

        found = recommend_layers(
            facts, model_name, out, limit=limit, known=not every, at_least=at_least, draws=draws, seed=seed,
            resume=resume, progress=progress,
        )  # fmt: skip
    if not quiet:
        for sentence in found.sentences():
            typer.echo(sentence)
        typer.echo(f"\nPage: {found.page}")
