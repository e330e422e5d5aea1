"""What kind of head is each head of a model: attention scores and copy scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engramscope.cli._app import Quiet, app, show_progress

if TYPE_CHECKING:
    from engramscope.locate.attention_scores import AttentionScores

#: scores that are listed, and what they are called; the entropy says little by its highest values, and is in the CSV
_LISTED = {
    "previous_token": "previous token", "duplicate": "duplicate token", "induction": "induction",
    "first_position": "first position", "copy": "copy", "negated_copy": "negated copy",
}  # fmt: skip


@app.command(epilog="Example: engramscope heads openai-community/gpt2 --bos --csv heads.csv")
def heads(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A bundled name, a folder, or a hub id.", show_default=False)
    ],
    copy_words: Annotated[
        Path | None,
        typer.Option(help="A text file of words, one a line, for the copy scores; default: random tokens."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="So many heads are listed for each score.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Write the scores of all heads to this file.")] = None,
    bos: Annotated[
        bool, typer.Option("--bos", help="Put the tokenizer's BOS token in front even where it does not by itself.")
    ] = False,
    sequences: Annotated[int, typer.Option(min=1, help="Number of random sequences.")] = 10,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence before it is repeated.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Load a pickle checkpoint: only from sources you trust.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find previous-token, duplicate-token, induction and copying heads on repeated random sequences.

    Every score lies between 0 and 1. They describe where a head looks and what it would copy; patching says whether it
    matters for an answer.
    """
    with show_progress(quiet) as progress:
        from engramscope.locate.attention_scores import attention_scores, bos_of, read_words
        from engramscope.models import load_model

        words = None if copy_words is None else read_words(copy_words)
        model = load_model(
            name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
        scores = attention_scores(
            model, words=words, leading=bos_of(model) if bos else None, sequences=sequences, length=length, seed=seed,
            progress=progress,
        )  # fmt: skip
        if csv is not None:
            from engramscope.results.atomic import write_text

            write_text(csv, scores.table.to_csv(index=False))
    if not quiet:
        from rich.console import Console

        console = Console()
        console.print(_listed(name, scores, top))
        for sentence in (*_made_of(scores), *scores.notes):
            console.print(sentence, markup=False, highlight=False)
        if csv is not None:
            console.print(f"All heads: {csv}", markup=False, highlight=False, soft_wrap=True)


def _listed(name: str, scores: AttentionScores, count: int) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Heads of {escape(name)}", title_justify="left")
    columns: list[list[str]] = []
    for score, title in _LISTED.items():
        best = scores.top(score, count)
        if len(best):
            table.add_column(title, justify="right")
            rows = best.itertuples(index=False, name=None)
            columns.append([f"{layer}.{head}  {value:.2f}" for layer, head, value in rows])
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _made_of(scores: AttentionScores) -> list[str]:
    front = "one special token in front" if scores.leading == 1 else f"{scores.leading or 'no'} special tokens in front"
    said = [f"{scores.sequences} sequences of {scores.length} random tokens, each twice, with {front}."]
    even = scores.uniform
    said.append(
        f"A head that looks at all tokens alike: previous token {even['previous_token']:.2f}, duplicate token and "
        f"induction {even['duplicate']:.2f}, first position {even['first_position']:.2f}."
    )
    return said + ([f"Copy scores from {scores.copied} tokens."] if scores.copied else [])
