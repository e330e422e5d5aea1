"""The application, what its commands share, and how progress is shown.

Nothing heavy is imported at the top, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

NOTHING_WRITTEN = "Interrupted; nothing was written."
BEFORE_ANYTHING = "Interrupted before there was anything to keep; the same command begins anew."


class Interrupted(Exception):
    """Ctrl-C in the middle of a command, with what is to be said; versions of typer treat the bare one differently."""


app = typer.Typer(
    name="engramscope",
    help="Find where a language model keeps a piece of knowledge, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
StudyPath = Annotated[Path, typer.Argument(help="The study file (TOML).", show_default=False)]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"engramscope {version('engramscope')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del show_version


def complain(message: str, code: int) -> int:
    for line in message.splitlines():
        typer.echo(f"engramscope: {line}", err=True)
    return code


def goes_on_in(folder: Path, sign: str = "") -> Callable[[], str]:
    """What a command with --resume says at Ctrl-C: where it goes on, if there is anything to go on with by then.

    Args:
        folder: of the results.
        sign: the file in it without which --resume would be refused; by default any file will do.
    """

    def words() -> str:
        there = (folder / sign).is_file() if sign else folder.is_dir() and any(folder.iterdir())
        return f"Interrupted. The same command with --resume goes on in {folder}." if there else BEFORE_ANYTHING

    return words


#: called with (what, done, total); None where nothing is shown
Progress = Callable[[str, int, int], None] | None


@contextmanager
def show_progress(quiet: bool, stopped: str | Callable[[], str] = "") -> Iterator[Progress]:
    """A progress bar on the terminal (none when quiet, or when the output is no terminal); Ctrl-C gets its words."""
    try:
        if quiet or not sys.stderr.isatty():
            yield None
        else:
            with _bars() as advance:
                yield advance
    except KeyboardInterrupt as error:
        said = stopped if isinstance(stopped, str) else stopped()
        raise Interrupted(said or str(error) or NOTHING_WRITTEN) from None


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        running: dict[str, TaskID] = {}
        # loading the libraries alone takes seconds
        first = bars.add_task("starting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(first, visible=False)
            if what not in running:
                running[what] = bars.add_task(what, total=total)
            bars.update(running[what], completed=done, total=total)

        yield advance


def print_result(result: object) -> None:
    from engramscope.study import StudyResult

    assert isinstance(result, StudyResult)
    for sentence in (*result.sentences(), result.executor_note()):
        if sentence:
            typer.echo(sentence)
    typer.echo(f"\nReport: {result.folder / 'report.html'}")
