"""Edits that are kept, one upon another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress


@app.command("edit-sequence", epilog="Example: engramscope edit-sequence --model mini --methods ft,rome,memit -n 50")
def edit_sequence(
    model: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    methods: Annotated[str, typer.Option(help="Editors: ft,rome,memit … or all.")] = "ft,rome,memit",
    records: Annotated[str, typer.Option(help="A file of records, counterfact, … or bundled.")] = "bundled",
    count: Annotated[int, typer.Option("-n", "--count", help="The first so many records; 0 for all.", min=0)] = 50,
    batch: Annotated[int, typer.Option(help="Facts that are given to an editor at once.", min=1)] = 1,
    sample: Annotated[int, typer.Option(help="Of the facts edited so far, measure at most so many.", min=2)] = 100,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("sequence"),
    sets: Annotated[list[str] | None, typer.Option("--set", help="editor.key=value: an option of an editor.")] = None,
    texts: Annotated[str | None, typer.Option(help="Held-out texts for the perplexity: a file, or 'bundled'.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Edit fact after fact and keep the edits: when does the model forget the first ones, and when does it break?

    Efficacy, generalisation, specificity and perplexity against the number of edits, a curve for each editor.
    """
    with show_progress(quiet, goes_on_in(out, "settings.json")) as progress:
        from engramscope.editing.chosen import chosen_editors
        from engramscope.editing.inputs import materials
        from engramscope.editing.sequence import run_sequence
        from engramscope.editing.sequence_page import sequence_remarks, sequence_sentences
        from engramscope.models.load import load_model
        from engramscope.results.folders import refuse_occupied

        editors = chosen_editors([name for name in methods.split(",") if name.strip()], sets or ())
        refuse_occupied(out, resume)
        loaded = load_model(model, dtype=dtype, device=device)
        given = materials(loaded, records, texts=texts, seed=seed, progress=progress)
        found = run_sequence(
            loaded, editors, given, out, count=count or None, batch=batch, sample=sample, seed=seed, resume=resume,
            progress=progress,
        )  # fmt: skip
    if not quiet:
        for sentence in (*sequence_sentences(found.findings), "", *sequence_remarks(found.findings)):
            typer.echo(sentence)
        typer.echo(f"\nPage: {found.page}")
