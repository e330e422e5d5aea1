"""The table that compares editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress
from engramscope.cli._editing import print_table


@app.command(epilog="Example: engramscope table4 --model mini --methods ft,rome,memit -n 20 --out table4")
def table4(
    model: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    methods: Annotated[str, typer.Option(help="Editors: ft,rome,rome-2022,ke-cf … or all.")] = "all",
    records: Annotated[str, typer.Option(help="A file of records, counterfact, … or bundled.")] = "bundled",
    count: Annotated[int, typer.Option("-n", "--count", help="The first so many records; 0 for all.", min=0)] = 50,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("table4"),
    sets: Annotated[list[str] | None, typer.Option("--set", help="editor.key=value: an option of an editor.")] = None,
    texts: Annotated[str | None, typer.Option(help="Held-out texts for the perplexity: a file, or 'bundled'.")] = None,
    references: Annotated[
        str | None, typer.Option(help="Reference texts for RS: a file, or attribute_snippets.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="counterfact or zsre.")] = "counterfact",
    generation: Annotated[
        bool, typer.Option("--generation/--no-generation", help="Write texts (GE and RS): most of the time.")
    ] = True,
    train: Annotated[
        bool, typer.Option("--train", help="First train the networks (KE, MEND) that are not there, on bundled data.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run stopped; also with more records or editors.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare editors on the same facts: does the edit take, does it generalise, does it leave the rest alone?

    Every fact is edited by every editor, one edit at a time. The table has S, ES, EM, PS, PM, NS, NM, GE and RS with
    intervals, accuracies without teacher forcing, differences between editors, damage and time.
    """
    with show_progress(quiet, goes_on_in(out, "settings.json")) as progress:
        from engramscope.editing.chosen import chosen_editors
        from engramscope.editing.inputs import materials, measured_options
        from engramscope.editing.table4 import run_table4
        from engramscope.models.load import load_model
        from engramscope.results.folders import refuse_occupied

        editors = chosen_editors([name for name in methods.split(",") if name.strip()], sets or ())
        options = measured_options(protocol, generation=generation, seed=seed)
        refuse_occupied(out, resume)
        loaded = load_model(model, dtype=dtype, device=device)
        given = materials(loaded, records, texts=texts, references=references, seed=seed, progress=progress)
        if train:
            from engramscope.editing.train import train_missing

            train_missing(loaded, editors, progress)
        found = run_table4(
            loaded,
            editors,
            given,
            out,
            count=count or None,
            options=options,
            seed=seed,
            resume=resume,
            progress=progress,
        )
    if not quiet:
        print_table(found.findings)
        typer.echo(f"\nPage: {found.page}")
