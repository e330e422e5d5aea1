"""Fine-tuning of a model on a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress


@app.command(epilog="Example: engramscope finetune --preset clap-1 --corpus corpus --model mini --out tuned")
def finetune(
    corpus: Annotated[Path, typer.Option("--corpus", help="A corpus folder, or its table.", show_default=False)],
    preset: Annotated[str, typer.Option(help="clap-1 or clap-2: the values of the paper.")] = "clap-1",
    model: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("tuned"),
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: a setting of its own.")] = None,
    terms: Annotated[str, typer.Option(help="Key terms that the split is stratified by.")] = "epilepsy,EEG,seizure",
    only: Annotated[list[str] | None, typer.Option(help="Train this module only (several times).")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters instead of the weights.")] = False,
    merge: Annotated[bool, typer.Option("--merge/--no-merge", help="Fold the adapters into the weights.")] = True,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Configuration and tokenizer of the model, weights from the seed.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="A random sample of so many documents.", min=2)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    processes: Annotated[int, typer.Option(help="Processes side by side, one per GPU.", min=1)] = 1,
    prepare: Annotated[bool, typer.Option("--prepare", help="Stop before training, for a torchrun by hand.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of an earlier run.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on the abstracts of a corpus, and show what training did.

    An 80/20 split by document, chunks of tokens with masked padding, AdamW with a constant rate after warm-up, early
    stopping, and the weights of the best epoch in a folder that every other command takes as a model.
    """
    with show_progress(quiet, goes_on_in(out, "training.json")) as progress:
        from engramscope.finetune import resolve_settings, run_finetune

        settings = resolve_settings(
            preset, sets or (), terms=_names(terms), only=only or [], lora={} if lora else None, merge=merge,
            random_weights=random_weights, limit=limit, device=device, processes=processes,
        )  # fmt: skip
        result = run_finetune(
            settings, corpus, model, out, resume=resume, prepare_only=prepare, progress=progress,
            say=None if quiet else typer.echo,
        )  # fmt: skip
    if not quiet and not prepare:
        typer.echo("\n" + "\n".join(result.sentences()))
        typer.echo(f"\nPage: {result.page}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
