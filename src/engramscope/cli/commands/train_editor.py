"""Training of the editors that are networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engramscope.cli._app import Progress, Quiet, app, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engramscope.models.model import Model
    from engramscope.records.record import Record

_BUNDLED = "bundled"


@app.command("train-editor", epilog="Example: engramscope train-editor mend --model mini --on counterfact")
def train_editor(
    editor: Annotated[str, typer.Argument(help="mend or ke.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    on: Annotated[str, typer.Option("--on", help="counterfact (KE-CF, MEND-CF) or text (KE, MEND).")] = "counterfact",
    records: Annotated[str, typer.Option(help="With --on counterfact: a file, counterfact, … or bundled.")] = _BUNDLED,
    texts: Annotated[
        str, typer.Option(help="With --on text: a text file, a corpus folder or its table, or 'bundled'.")
    ] = _BUNDLED,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder (default: in editors/, where it is looked for).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", help="The first so many records or passages.", min=2)
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: a setting of its own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of an earlier run.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train KE or MEND for a model; without this they refuse to edit it.

    The network learns from edits of a training set how to change the last MLPs, and is judged on edits that are held
    out. On counterfact the edits are records, on text they are continuations of passages.
    """
    stopped = "Interrupted. The same command with --resume goes on."
    with show_progress(quiet, stopped) as progress:
        from engramscope.edit.hyper.editor import default_folder
        from engramscope.edit.hyper.run import train_editor as train
        from engramscope.edit.hyper.run import trained_editor
        from engramscope.edit.hyper.settings import MOST_PASSAGES, corpus_named
        from engramscope.models.load import load_model
        from engramscope.provenance import machine, versions

        trained_editor(editor)
        corpus = corpus_named(on)
        loaded = load_model(model, device=device)
        folder = out if out is not None else default_folder(editor, corpus, loaded)
        result = train(
            editor, loaded, folder, on=corpus, sets=sets or (), resume=resume,
            records=_records(records, loaded, progress)[:limit] if corpus == "counterfact" else (),
            texts=_texts(texts, loaded, limit or MOST_PASSAGES) if corpus == "text" else (),
            source=records if corpus == "counterfact" else texts,
            provenance={"versions": versions(), "machine": machine()}, progress=progress,
        )  # fmt: skip
    if not quiet:
        typer.echo("\n".join(result.sentences()))
        typer.echo(f"\nEditor: {result.folder}")


def _records(given: str, model: Model, progress: Progress) -> Sequence[Record]:
    """The records of a file, or the training split of the bundled ones."""
    from engramscope.records.bundled import bundled_records
    from engramscope.records.located import located
    from engramscope.records.read import read_records
    from engramscope.records.targets import with_drawn_targets

    if given != _BUNDLED:
        return with_drawn_targets(read_records(located(given, progress)))
    _ensure_bundled(model, "--records FILE")
    return bundled_records("train")


def _texts(given: str, model: Model, most: int) -> Sequence[str]:
    """The passages of a text file, the abstracts of a corpus, or documents like those the bundled models learned."""
    from engramscope.edit.hyper.passages import read_passages
    from engramscope.records.bundled_texts import training_texts

    if given == _BUNDLED:
        _ensure_bundled(model, "--texts FILE")
        return training_texts(most)
    path = Path(given)
    if path.is_dir() or path.suffix == ".parquet":
        from engramscope.corpus.table import read_corpus

        return [text for text in read_corpus(path)["Abstract"].astype(str).str.strip() if text]
    return read_passages(path)


def _ensure_bundled(model: Model, instead: str) -> None:
    """Refuse the bundled data for a model that does not know the people in it."""
    from engramscope.errors import InputError

    if model.source != "bundled":
        raise InputError(
            f"The bundled data are about invented people whom only the bundled models know; for {model.name} give data "
            f"of its own ({instead})."
        )
