"""Questions proposed from a corpus."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, app, show_progress


@app.command(epilog="Example: engramscope questions corpus --model gpt2 --terms epilepsy,seizure --out questions.jsonl")
def questions(
    corpus: Annotated[Path, typer.Argument(help="A corpus folder (engramscope corpus).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The pair file to write, .jsonl.")] = Path("questions.jsonl"),
    model_name: Annotated[
        str, typer.Option("--model", help="Whose tokens are counted: a bundled name, a folder, or a hub id.")
    ] = "mini",
    terms: Annotated[str, typer.Option(help="Key terms: epilepsy,EEG,drug:valproic acid.")] = "",
    definitional: Annotated[int, typer.Option(help="Definitional questions at most, an even number.", min=0)] = 40,
    associative: Annotated[int, typer.Option(help="Associative questions at most, an even number.", min=0)] = 40,
    min_documents: Annotated[int, typer.Option(help="Documents that must support a question.", min=1)] = 3,
    agreement: Annotated[float, typer.Option(help="Share of definitions that must agree, above 0.5.")] = 0.9,
    form: Annotated[
        str, typer.Option(help="prompts (a statement to complete) or answers (for the answer swap).")
    ] = "prompts",
    seed: Annotated[int, typer.Option(help="Of the choice of partners.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Propose questions from a corpus, for a person to edit.

    Definitional ones (abbreviation, long form) and associative ones (two terms that stand together more often than by
    chance), each with a wrong answer of the same form and token length. The evidence goes into a table beside the file.
    """
    with show_progress(quiet) as progress:
        from engramscope.corpus.table import read_corpus
        from engramscope.models.load import load_tokenizer
        from engramscope.questions import propose, write
        from engramscope.questions.files import refuse_unfit
        from engramscope.questions.words import summary

        refuse_unfit(out, force=force)
        table = read_corpus(corpus)
        found = propose(
            table, load_tokenizer(model_name), terms=_split(terms), definitional=definitional, associative=associative,
            min_documents=min_documents, agreement=agreement, form=form, seed=seed, progress=progress,
        )  # fmt: skip
        review = write(found, out, force=force)
    if not quiet:
        for line in summary(found, len(table)):
            typer.echo(line)
        typer.echo(f"\nQuestions: {out}\nTo review: {review}")
        for line in _next(model_name, out, form):
            typer.echo(line)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _next(model: str, out: Path, form: str) -> list[str]:
    from engramscope.finetune.layout import Layout
    from engramscope.finetune.run import FinetuneResult

    asked, pairs = shlex.quote(model), f"--pairs {shlex.quote(str(out))}"
    lines = [f"Next: engramscope new study.toml --model {asked} {pairs}"]
    if form != "prompts":
        return lines  # the answer swap is a comparison of its own
    if Layout(Path(model)).manifest.is_file():
        manifest = FinetuneResult(Path(model)).manifest()
        if manifest.get("settings", {}).get("random_weights"):
            return lines  # the model of that name is not the one that training began from
        base = shlex.quote(str(manifest["model"]["name"]))
        what = f"What training moved: engramscope new moved.toml --model {asked} --base {base} {pairs}"
    else:
        what = f"What fine-tuning moves in it: engramscope new moved.toml --model TUNED --base {asked} {pairs}"
    return [*lines, f"{what}   (corruption base_model)"]
