"""Corpora of abstracts: from PubMed, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress

if TYPE_CHECKING:
    from engramscope.corpus import Corpus

corpus = typer.Typer(name="corpus", no_args_is_help=True, help="Make a corpus of abstracts, cleaned and counted.")
app.add_typer(corpus)

Out = Annotated[Path, typer.Option("--out", "-o", help="A new folder.")]
_RETRACTED = "Keep retracted articles and notices of retraction."
_LANGUAGES = "Keep records that are not in English."


@corpus.command(
    epilog='Example: engramscope corpus pubmed --query "epilepsy AND (EEG OR seizure)" --max 10000 --out corpus'
)
def pubmed(
    query: Annotated[str, typer.Option(help="As PubMed's search field takes it.", show_default=False)],
    out: Out = Path("corpus"),
    most: Annotated[int, typer.Option("--max", help="Records at most, the newest first.", min=1)] = 10_000,
    terms: Annotated[str, typer.Option(help="Whose mentions are counted: epilepsy,EEG. Default: of the query.")] = "",
    api_key: Annotated[
        str, typer.Option(help="Of NCBI: ten requests a second, not three.", envvar="NCBI_API_KEY", show_envvar=True)
    ] = "",
    email: Annotated[str, typer.Option(help="Whom NCBI may write to.")] = "",
    endpoint: Annotated[str, typer.Option(help="Another server with the same interface. Default: NCBI's.")] = "",
    batch: Annotated[int, typer.Option(help="Records per request.", min=1, max=9999)] = 200,
    keep_retracted: Annotated[bool, typer.Option("--keep-retracted", help=_RETRACTED)] = False,
    keep_languages: Annotated[bool, typer.Option("--keep-languages", help=_LANGUAGES)] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier retrieval stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Search PubMed and make a corpus of the abstracts.

    The NCBI E-utilities are asked politely (3 requests a second, 10 with a key) and patiently.

    What has come is kept: after an interruption, the same command with --resume fetches only the rest.
    """
    with show_progress(quiet, goes_on_in(out)) as progress:
        from engramscope.corpus import fetch_pubmed
        from engramscope.corpus.eutils import NCBI

        made = fetch_pubmed(
            query, out, most=most, batch=batch, terms=_names(terms) or None, api_key=api_key, email=email,
            endpoint=endpoint or NCBI, resume=resume, keep_retracted=keep_retracted, keep_languages=keep_languages,
            progress=progress,
        )  # fmt: skip
    _say(made, quiet)


@corpus.command(epilog="Example: engramscope corpus read abstracts.csv --terms epilepsy,EEG,seizure --out corpus")
def read(
    files: Annotated[
        list[Path], typer.Argument(help="CSV, TSV, Parquet, JSON lines, or PubMed's XML; also .gz.", show_default=False)
    ],
    out: Out = Path("corpus"),
    terms: Annotated[str, typer.Option(help="Whose mentions are counted: epilepsy,EEG,seizure.")] = "",
    columns: Annotated[str, typer.Option(help="Which column holds what: Abstract=text,Title=headline.")] = "",
    keep_retracted: Annotated[bool, typer.Option("--keep-retracted", help=_RETRACTED)] = False,
    keep_languages: Annotated[bool, typer.Option("--keep-languages", help=_LANGUAGES)] = False,
    quiet: Quiet = False,
) -> None:
    """Make a corpus of the abstracts in local files; no network is needed."""
    with show_progress(quiet) as progress:
        from engramscope.corpus import read_files

        made = read_files(
            files, out, terms=_names(terms), columns=_pairs(columns), keep_retracted=keep_retracted,
            keep_languages=keep_languages, progress=progress,
        )  # fmt: skip
    _say(made, quiet)


def _say(made: Corpus, quiet: bool) -> None:
    from engramscope.corpus.page import sentences

    if not quiet:
        for sentence in sentences(made.manifest):
            typer.echo(sentence)
        typer.echo(f"\nPage: {made.page}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _pairs(text: str) -> dict[str, str]:
    from engramscope.errors import InputError

    pairs: dict[str, str] = {}
    for part in _names(text):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise InputError(
                f"--columns takes NAME=COLUMN, as in Abstract=text,Title=headline,Journal=; {part!r} is none."
            )
        pairs[name] = column
    return pairs
