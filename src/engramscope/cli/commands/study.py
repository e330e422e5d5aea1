"""Studies: begin, check, run and report them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from engramscope.cli._app import EXIT_INPUT, Quiet, StudyPath, app, complain, print_result, show_progress


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
    with show_progress(quiet) as progress:
        from engramscope.study import run_study

        result = run_study(study, out, resume=resume, executor=_executor(executor), progress=progress)
    if not quiet:
        print_result(result)


def _executor(name: str | None) -> Literal["traversal", "reference"] | None:
    if name in (None, "traversal", "reference"):
        return cast("Literal['traversal', 'reference'] | None", name)
    raise typer.BadParameter(f"{name!r} is no executor; choose traversal or reference.", param_hint="--executor")


@app.command(epilog="Example: engramscope check study.toml")
def check(study: StudyPath, quiet: Quiet = False) -> None:
    """Audit the design of a study before anything is computed.

    Exit code 2 where the study could not be run as it is.
    """
    with show_progress(quiet) as progress:
        from engramscope.study import check_study

        findings = check_study(study, progress=progress)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not quiet:
        from rich.console import Console

        Console(soft_wrap=True).print(_findings_text(findings))
    else:
        for finding in errors:
            complain("\n    ".join([f"{finding.check}: {finding.message}", *finding.items]), EXIT_INPUT)
    if errors:
        raise typer.Exit(EXIT_INPUT)


@app.command(epilog="Example: engramscope new study.toml --model openai-community/gpt2 --pairs pairs.jsonl")
def new(
    path: Annotated[Path, typer.Argument(help="The study file to write.", show_default=False)],
    model_name: Annotated[
        str | None, typer.Option("--model", help="A bundled name, a folder, or a hub id; default: the task's.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task to take the pairs from.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="A pair file to take them from instead.")] = None,
    base: Annotated[str, typer.Option(help="The model before training: a study of what training moved.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented study file to start from."""
    from engramscope.starter import write_starter

    typer.echo(write_starter(path, model_name, task, pairs, base=base, force=force))


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


@app.command(epilog="Example: engramscope demo --out engramscope-demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("engramscope-demo"),
    quiet: Quiet = False,
) -> None:
    """Find where a small bundled model keeps what it knows about epilepsy (under a minute)."""
    with show_progress(quiet, "Interrupted. Run the demonstration again; it begins anew.") as progress:
        from engramscope.demo import run_demo

        main_study, *others = run_demo(out, progress=progress)
    if not quiet:
        print_result(main_study)
        for other in others:
            typer.echo(f"In CLAP's own set-up: {other.folder / 'report.html'}")


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
