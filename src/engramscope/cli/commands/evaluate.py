"""The measures of a saved edit, or of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, show_progress
from engramscope.cli._editing import print_table, stopped


@app.command(epilog="Example: engramscope evaluate edit --records bundled --out evaluation")
def evaluate(
    subject: Annotated[
        str,
        typer.Argument(help="An edit (its folder or file), or a model.", metavar="EDIT_OR_MODEL", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", help="Of an edit: the model, if it is not where it was.")] = "",
    records: Annotated[
        str, typer.Option(help="A file of records, counterfact, … or bundled. Default: the facts of the edit.")
    ] = "",
    count: Annotated[int, typer.Option("-n", "--count", help="The first so many records; 0 for all.", min=0)] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Of an edit: also records that it does not edit.")] = False,
    before: Annotated[
        str, typer.Option("--before", help="A model to compare with, for example the unedited one.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="counterfact or zsre.")] = "counterfact",
    generation: Annotated[
        bool, typer.Option("--generation/--no-generation", help="Write texts (GE and RS): most of the time.")
    ] = True,
    texts: Annotated[str | None, typer.Option(help="Held-out texts for the perplexity: a file, or 'bundled'.")] = None,
    references: Annotated[
        str | None, typer.Option(help="Reference texts for RS: a file, or attribute_snippets.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new folder for tables and a page.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    quiet: Quiet = False,
) -> None:
    """Measure a saved edit, or a model as it is, on records: the nine measures and more, with intervals.

    An edit is compared with its model without it. All facts of the edit are in the model at once.
    """
    with show_progress(quiet, stopped(out)) as progress:
        from engramscope.editing.evaluation import edit_at, evaluated_materials, run_evaluation
        from engramscope.editing.inputs import measured_options
        from engramscope.models.load import load_model
        from engramscope.results.folders import refuse_occupied

        options = measured_options(protocol, generation=generation, seed=seed)
        if out is not None:
            refuse_occupied(out)
        chosen = edit_at(subject)
        name = model or (str(chosen.edit.model["name"]) if chosen.edit else subject)
        loaded = load_model(name, dtype=dtype, device=device)
        other = load_model(before, dtype=dtype, device=device) if before else None
        given = evaluated_materials(
            loaded, chosen, records, count=count or None, everything=everything, texts=texts, references=references,
            seed=seed, progress=progress,
        )  # fmt: skip
        found = run_evaluation(
            loaded, chosen, given, out, before=other, options=options, seed=seed, progress=progress
        )  # fmt: skip
    if not quiet:
        print_table(found.findings)
        if out is not None:
            typer.echo(f"\nPage: {found.page}")
