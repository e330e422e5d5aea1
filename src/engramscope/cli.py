"""The command line: parses, calls one library function, writes what it returned.

Nothing heavy is imported at the top, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

_NOTHING_WRITTEN = "Interrupted; nothing was written."


class _Interrupted(Exception):
    """Ctrl-C in the middle of a command, with what is to be said; versions of typer treat the bare one differently."""


#: the common base of usage errors; typer re-exports only its subclasses
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

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


@app.command(epilog="Example: engramscope run study.toml --out results")
def run(
    study: StudyPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run of this study stopped.")] = False,
    executor: Annotated[
        str | None,
        typer.Option(help="traversal or reference, instead of what the study says; the numbers are the same."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run a study: patch every cell, test, audit, and write the report.

    A study that was interrupted goes on with --resume and ends with the same tables. Exit codes: 0 done, 2 the input is
    at fault, 130 interrupted, 1 anything else.
    """
    with _progress(quiet) as progress:
        from engramscope.study import run_study

        result = run_study(study, out, resume=resume, executor=_executor(executor), progress=progress)
    if not quiet:
        _print_result(result)


def _executor(name: str | None) -> Literal["traversal", "reference"] | None:
    if name in (None, "traversal", "reference"):
        return cast("Literal['traversal', 'reference'] | None", name)
    raise typer.BadParameter(f"{name!r} is no executor; choose traversal or reference.", param_hint="--executor")


@app.command(epilog="Example: engramscope check study.toml")
def check(study: StudyPath, quiet: Quiet = False) -> None:
    """Audit the design of a study before anything is computed.

    Exit code 2 where the study could not be run as it is.
    """
    with _progress(quiet) as progress:
        from engramscope.study import check_study

        findings = check_study(study, progress=progress)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not quiet:
        from rich.console import Console

        Console(soft_wrap=True).print(_findings_text(findings))
    else:
        for finding in errors:
            _complain("\n    ".join([f"{finding.check}: {finding.message}", *finding.items]), EXIT_INPUT)
    if errors:
        raise typer.Exit(EXIT_INPUT)


@app.command(epilog="Example: engramscope demo --out engramscope-demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("engramscope-demo"),
    quiet: Quiet = False,
) -> None:
    """Find where a small bundled model keeps what it knows about epilepsy (under a minute)."""
    with _progress(quiet, "Interrupted. Run the demonstration again; it begins anew.") as progress:
        from engramscope.demo import run_demo

        main_study, *others = run_demo(out, progress=progress)
    if not quiet:
        _print_result(main_study)
        for other in others:
            typer.echo(f"In CLAP's own set-up: {other.folder / 'report.html'}")


@app.command(epilog="Example: engramscope model openai-community/gpt2")
def model(
    name: Annotated[str, typer.Argument(help="A bundled name, a folder, or a hub id.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Load a pickle checkpoint: only from sources you trust.")] = False,
) -> None:
    """Show a model's parts, the sites that it offers, and the self-checks made when it is loaded."""
    from rich.console import Console

    from engramscope.models import load_model
    from engramscope.models.describe import describe

    loaded = load_model(
        name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    Console().print(describe(loaded))


@app.command(epilog="Example: engramscope tasks")
def tasks() -> None:
    """List the tasks, corruptions, metrics and pair file formats by name."""
    from rich.console import Console

    from engramscope.catalogue import catalogue

    Console().print(catalogue())


@app.command(epilog="Example: engramscope new study.toml --model openai-community/gpt2 --pairs pairs.jsonl")
def new(
    path: Annotated[Path, typer.Argument(help="The study file to write.", show_default=False)],
    model_name: Annotated[
        str | None, typer.Option("--model", help="A bundled name, a folder, or a hub id; default: the task's.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task to take the pairs from.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="A pair file to take them from instead.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented study file to start from."""
    from engramscope.starter import write_starter

    typer.echo(write_starter(path, model_name, task, pairs, force=force))


@app.command(epilog="Example: engramscope report results")
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Write the report and figures of a results folder anew, without running the model."""
    from engramscope.report import write_report

    path = write_report(folder)
    if not quiet:
        typer.echo(str(path))


def main() -> None:
    """Entry point: turns errors into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show a character shows a substitute, rather than the command failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    # a scheduler's polite request to stop is treated as Ctrl-C: what was computed is kept
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(_run_app(sys.argv[1:]))


def _stop(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


def _run_app(arguments: list[str]) -> int:
    from engramscope.errors import EngramscopeError, InputError

    try:
        code = app(arguments, standalone_mode=False)
    except _Interrupted as error:
        return _complain(str(error), EXIT_INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _complain(_NOTHING_WRITTEN, EXIT_INTERRUPTED)
    except _UsageError as error:
        message = getattr(error, "format_message", error.__str__)()
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message)
            return EXIT_INPUT
        return _complain(f"{message} Try 'engramscope {_command(arguments)}--help'.", EXIT_INPUT)
    except InputError as error:
        return _complain("\n".join(error.faults), EXIT_INPUT)
    except EngramscopeError as error:
        return _complain(str(error), EXIT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}.", EXIT_FAILED)
    if code == EXIT_INTERRUPTED:  # newer versions of typer say so by the code alone
        return _complain(_NOTHING_WRITTEN, EXIT_INTERRUPTED)
    return code if isinstance(code, int) else EXIT_OK


def _command(arguments: list[str]) -> str:
    names = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    return f"{arguments[0]} " if arguments and arguments[0] in names else ""


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        typer.echo(f"engramscope: {line}", err=True)
    return code


@contextmanager
def _progress(quiet: bool, stopped: str = "") -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on the terminal (none when quiet, or when the output is no terminal); Ctrl-C gets its words."""
    try:
        if quiet or not sys.stderr.isatty():
            yield None
        else:
            with _bars() as advance:
                yield advance
    except KeyboardInterrupt as error:
        raise _Interrupted(stopped or str(error) or _NOTHING_WRITTEN) from None


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


def _print_result(result: object) -> None:
    from engramscope.study import StudyResult

    assert isinstance(result, StudyResult)
    for sentence in (*result.sentences(), result.executor_note()):
        if sentence:
            typer.echo(sentence)
    typer.echo(f"\nReport: {result.folder / 'report.html'}")


def _findings_text(findings: list) -> object:
    from rich.text import Text

    colours = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}
    text = Text()
    for finding in findings:
        text.append(f"{finding.severity:<8}", style=colours[finding.severity])
        text.append(f"{finding.check}: {finding.message}\n")
        for item in finding.items:
            text.append(f"          {item}\n", style="dim")
    counts = {level: sum(f.severity == level for f in findings) for level in colours}
    text.append(", ".join(f"{count} {level}" for level, count in counts.items()))
    return text


if __name__ == "__main__":
    main()
