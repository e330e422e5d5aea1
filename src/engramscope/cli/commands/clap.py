"""The whole study of CLAP, from corpus to page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engramscope.cli._app import Quiet, StudyPath, app, goes_on_in, show_progress


@app.command(epilog="Example: engramscope clap studies/clap_paper.toml --quick --corpus abstracts.csv --out clap")
def clap(
    study: StudyPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("engramscope-clap"),
    quick: Annotated[bool, typer.Option("--quick", help="A small model and few abstracts: minutes.")] = False,
    corpus: Annotated[str, typer.Option(help="A file of abstracts or a corpus folder, in place of PubMed.")] = "",
    model_name: Annotated[str, typer.Option("--model", help="In place of the study's: a name, folder or hub id.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto, in place of the study's.")] = "",
    until: Annotated[str, typer.Option(help="Stop after: corpus, finetune or questions (to edit them).")] = "studies",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on abstracts and find which parts hold what it learned: one file, one page.

    Corpus, fine-tuning, questions, localisation as published and by best practice, and what training moved: weights and
    activations exchanged with the model before training.
    """
    with show_progress(quiet, goes_on_in(out, "clap.json")) as progress:
        from engramscope.clap.run import run_clap
        from engramscope.clap.study import read_clap_study
        from engramscope.errors import InputError

        declared = read_clap_study(study)
        if corpus:
            file = str(Path(corpus).absolute())
            declared = declared.model_copy(update={"corpus": declared.corpus.model_copy(update={"file": file})})
        declared = declared.quickened() if quick else declared
        changes = {key: value for key, value in (("name", model_name), ("device", device)) if value}
        if device not in ("", "auto", "cpu", "cuda"):
            raise InputError(f"--device takes auto, cpu or cuda, not {device!r}; CUDA_VISIBLE_DEVICES chooses a GPU.")
        declared = declared.model_copy(update={"model": declared.model.model_copy(update=changes)})
        result = run_clap(
            declared, out, here=study.parent, quick=quick, resume=resume, until=until, progress=progress,
            say=None if quiet else typer.echo,
        )  # fmt: skip
    if not quiet:
        for sentence in result.sentences():
            typer.echo(sentence)
        if until == "questions":
            files = f"{out}/questions/prompts.jsonl and answers.jsonl"
            typer.echo(f"\nRead and edit {files}; the same command with --resume, without --until, asks them.")
        typer.echo(f"\nPage: {result.page}" if result.page.exists() else f"\nSo far: {result.folder}")
