"""Does locating help editing?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from engramscope.cli._app import Progress, Quiet, app, show_progress


@app.command(
    "locate-edit", epilog="Example: engramscope locate-edit --model mini --records bundled -n 40 --out locate-edit"
)
def locate_edit(
    model_name: Annotated[str, typer.Option("--model", help="A bundled name, a folder, or a hub id.")] = "mini",
    records: Annotated[str, typer.Option(help="A file of records, counterfact, … or bundled.")] = "bundled",
    count: Annotated[int, typer.Option("-n", "--facts", help="At most so many facts, drawn at random.", min=3)] = 40,
    methods: Annotated[str, typer.Option(help="Editors (engramscope editors), each used at every layer.")] = "rome,ft",
    layers: Annotated[str, typer.Option(help="each, or layers to edit: 0,4,8.")] = "each",
    options: Annotated[
        list[str] | None, typer.Option("--option", help="method.option=value: an editor's own (several times).")
    ] = None,
    site: Annotated[str, typer.Option(help="What tracing restores: mlp_out, resid_post, or both.")] = "mlp_out",
    windows: Annotated[
        str, typer.Option("--window", help="MLP layers restored together; several are compared.")
    ] = "5,1",
    corruptions: Annotated[str, typer.Option(help="gaussian, str, or both.")] = "gaussian,str",
    draws: Annotated[int, typer.Option(help="Noise draws of each fact.", min=1)] = 3,
    edit_seeds: Annotated[int, typer.Option(help="Edits of each fact and layer.", min=1)] = 1,
    cluster: Annotated[str, typer.Option(help="What is resampled: fact, or relation.")] = "fact",
    resamples: Annotated[int, typer.Option(help="Of bootstrap and permutation.", min=100)] = 2000,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("engramscope-locate-edit"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say whether causal tracing tells which layer to edit, on facts that the model states right.

    Facts are traced under noise and under token replacement, edited at every layer, and compared: R² of layer and
    tracing, correlations within layers, and the success at a random layer, at the best fixed one and at each fact's own
    tracing peak. After Hase et al. (2023).
    """
    with show_progress(quiet, f"Interrupted. The same command with --resume goes on in {out}.") as progress:
        from engramscope.locate_edit import run_locate_edit
        from engramscope.locate_edit.settings import settings_of
        from engramscope.models import load_model
        from engramscope.results.folders import refuse_occupied

        settings = settings_of(
            facts=count, methods=_names(methods), layers=_layers(layers), options=_options(options or []),
            sites=_names(site), windows=_whole(windows), corruptions=_names(corruptions), draws=draws,
            edit_seeds=edit_seeds, cluster=cluster, resamples=resamples, seed=seed,
        )  # fmt: skip
        refuse_occupied(out, resume)
        given, source = _records(records, seed, progress)
        model = load_model(model_name, device=device, dtype=dtype)
        found = run_locate_edit(given, model, out, settings, source=source, resume=resume, progress=progress)
    if not quiet:
        for sentence in found.sentences():
            typer.echo(sentence)
        typer.echo(f"\nPage: {found.page}")


def _records(name: str, seed: int, progress: Progress) -> tuple[Any, dict[str, Any]]:
    """The records, and where they come from."""
    from engramscope.records import read_records
    from engramscope.records.bundled import bundled_records
    from engramscope.records.located import located
    from engramscope.records.targets import with_drawn_targets

    found = bundled_records() if name == "bundled" else with_drawn_targets(read_records(located(name, progress)), seed)
    notes = found.described()
    return found.records, {"name": found.name, "format": found.format, "sha256": found.sha256, "notes": notes}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _layers(text: str) -> tuple[Any, ...] | None:
    if text.strip() == "each":
        return None
    return _whole(text)


def _whole(text: str) -> tuple[Any, ...]:
    """Numbers; what is none is left as it is, and refused with the other settings."""
    return tuple(int(name) if name.isascii() and name.isdigit() else name for name in _names(text))


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    """`method.option=value`, the value as JSON where it is some, else as text.

    Raises:
        InputError: one is of another form.
    """
    from engramscope.errors import InputError

    found: dict[str, dict[str, Any]] = {}
    for one in given:
        key, equals, value = one.partition("=")
        method, dot, option = key.strip().partition(".")
        if not (equals and dot and method and option):
            raise InputError(f"--option {one!r}: expected method.option=value, for example ft.steps=10.")
        try:
            found.setdefault(method, {})[option] = json.loads(value)
        except json.JSONDecodeError:
            found.setdefault(method, {})[option] = value.strip()
    return found
