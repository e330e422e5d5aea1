"""Published tables and figures, run again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engramscope.cli._app import Quiet, app, goes_on_in, show_progress


@app.command(epilog="Example: engramscope reproduce zn_table5 --quick --model mini --out again")
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Which one (--list shows them).", show_default=False)] = None,
    model_name: Annotated[
        str | None, typer.Option("--model", help="Another model than the published one.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder; default: engramscope-reproduce/NAME.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few pairs, draws and resamples, to see that it runs.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List what can be reproduced.")] = False,
    facts: Annotated[
        list[Path] | None,
        typer.Option(help="A file of facts (known_1000.json, CounterFact), where the published study used them."),
    ] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="--model is the published model under another name: compare.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    allow_pickle: Annotated[bool, typer.Option(help="Load a pickle checkpoint: only from sources you trust.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run the studies behind a published table or figure again, and compare its values with what they find.

    A verdict for every value: reproduced, differs, no published value for this model, or not measured. Exit code 0
    whatever the verdicts are; 2 where the input is at fault, 130 interrupted, 1 anything else.
    """
    if show:
        _print_catalogue()
        return
    if name is None:
        raise typer.BadParameter("name one, or list them with --list.", param_hint="NAME")
    folder = out or Path("engramscope-reproduce") / name
    held: dict[str, Any] = {"dtype": dtype, "device": device, "allow_pickle": allow_pickle}
    with show_progress(quiet, goes_on_in(folder)) as progress:
        from engramscope import replications

        found = replications.reproduce(
            name, folder, model=model_name, facts=facts or (), quick=quick, resume=resume, as_published=as_published,
            held=held, progress=progress,
        )  # fmt: skip
    if not quiet:
        from rich.console import Console

        from engramscope.replications._show import sentences, values_table

        console = Console()
        console.print(values_table(found.record))
        for sentence in sentences(found.record):
            console.print(sentence, markup=False, highlight=False)
        console.print(f"\nPage: {found.page}", markup=False, highlight=False, soft_wrap=True)


def _print_catalogue() -> None:
    from rich.console import Console

    from engramscope.replications._show import catalogue, exempt

    console = Console()
    console.print(catalogue())
    console.print("Nothing to measure:", markup=False, highlight=False)
    for sentence in exempt():
        console.print(f"  {sentence}", markup=False, highlight=False)
