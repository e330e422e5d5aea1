"""The best-practice comparison of one task on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress


@app.command(epilog="Example: engramscope practices ioi --model mini --out practices")
def practices(
    task: Annotated[str, typer.Argument(help="A task (engramscope tasks).", show_default=False)],
    model_name: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("engramscope-practices"),
    limit: Annotated[int, typer.Option(help="Pairs.", min=1)] = 100,
    draws: Annotated[int, typer.Option(help="Draws of the noise.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    heads: Annotated[str, typer.Option(help="Heads whose attention is looked at: 9.9,9.6. Default: detected.")] = "",
    restore: Annotated[str, typer.Option(help="Heads whose values are restored meanwhile. Default: detected.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare corruptions, metrics, windows and corrupted tokens on one task, side by side.

    Token replacement against noise, logit difference against probability and KL, windows against sums of single layers,
    and where the heads of the answer look, in clean, corrupted and patched runs.
    """
    with show_progress(quiet, goes_on_in(out)) as progress:
        from engramscope.practices import run_practices
        from engramscope.practices.page import sentences

        found = run_practices(
            task, model_name, out, limit=limit, draws=draws, seed=seed, heads=_names(heads), restore=_names(restore),
            resume=resume, progress=progress,
        )  # fmt: skip
    if not quiet:
        for sentence in sentences(found.found):
            typer.echo(sentence)
        typer.echo(f"\nPage: {found.page}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
