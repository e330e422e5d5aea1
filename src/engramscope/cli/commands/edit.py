"""One edit, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engramscope.cli._app import Progress, Quiet, app, show_progress
from engramscope.cli._editing import stopped

if TYPE_CHECKING:
    from engramscope.records.fact import Fact

_EXAMPLE = (
    'Example: engramscope edit --method rome --model gpt2 --fact "The mother tongue of {Danielle Darrieux} is" '
    "--target English --true French"
)


@app.command(epilog=_EXAMPLE)
def edit(
    method: Annotated[str, typer.Option("--method", help="An editor (engramscope editors).")] = "rome",
    model: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    fact: Annotated[
        str, typer.Option(help="The prompt, right up to the answer, with its subject in braces.", show_default=False)
    ] = "",
    target: Annotated[str, typer.Option(help="The new answer, of one token or many.", show_default=False)] = "",
    true: Annotated[str | None, typer.Option(help="The old answer, to be compared.")] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Instead: a file of facts or records (or counterfact, …), all of them edited.", show_default=False
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", help="The first so many of the file.", min=1)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("edit"),
    preset: Annotated[str | None, typer.Option(help="A named set of options, for example rome-2022.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: an option of the editor.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to edit, from 0; several for some editors: 3,4,5.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the whole edited model, a plain Hugging Face checkpoint.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Also write the edit as a LoRA adapter (low rank only).")] = None,
    texts: Annotated[str | None, typer.Option(help="Held-out texts for the perplexity: a file, or 'bundled'.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    quiet: Quiet = False,
) -> None:
    """Edit a fact in a model, and show what the model says before and after.

    The edit is a small file of its own: the model is not changed on disk. The folder gets edit.safetensors,
    manifest.json and report.html.
    """
    with show_progress(quiet, stopped(out, export, adapter)) as progress:
        from engramscope.editing.chosen import one_editor
        from engramscope.editing.inputs import held_out
        from engramscope.editing.one_edit import ensure_free, run_edit
        from engramscope.models.load import load_model

        editor = one_editor(method, sets or (), preset=preset, layers=layer)
        wanted = _facts(fact, target, true, facts, count, seed, progress)
        ensure_free(out, export, adapter)
        loaded = load_model(model, dtype=dtype, device=device)
        read, source = held_out(loaded, texts)
        found = run_edit(
            loaded, editor, wanted, out, texts=read, texts_from=source, seed=seed, checkpoint=export, adapter=adapter,
            progress=progress,
        )  # fmt: skip
    if not quiet:
        typer.echo("\n".join(found.sentences()))
        typer.echo(f"\nEdit: {found.folder}\nPage: {found.page}")


def _facts(
    text: str, target: str, true: str | None, file: Path | None, count: int | None, seed: int, progress: Progress
) -> list[Fact]:  # fmt: skip
    """The fact of the command line, or those of a file."""
    from engramscope.editing.fact_text import parse_fact
    from engramscope.editing.inputs import facts_file
    from engramscope.errors import InputError

    if file is not None:
        if text or target or true is not None:
            raise InputError("Give either --fact with --target, or --facts FILE, not both.")
        return [record.fact for record in facts_file(file, seed=seed, progress=progress)][:count]
    if not text:
        raise InputError(
            'Say what is to be edited: --fact "The mother tongue of {Danielle Darrieux} is" --target English, or '
            "--facts FILE."
        )
    if not target.strip():
        raise InputError("Say what the model is to answer: --target English.")
    return [parse_fact(text, target, true)]
